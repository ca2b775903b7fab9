"""``python -m studies NAME``: answer one question again, or list them with ``--help``."""

from __future__ import annotations

import sys

import tyro

from pfb.lab.cli import add_benchmark, exit_codes
from studies import advice, cifair, deviations, gpu, grid, groups, saturated, scale, starved, stream, tools, whole, zoo

app = tyro.extras.SubcommandApp()
for _study in (grid, stream, groups, starved, advice, tools, cifair, scale, gpu, saturated, whole, deviations, zoo):
    add_benchmark(app, _study)


def main(args: list[str] | None = None) -> None:
    """Exit codes as those of ``pfb``."""
    with exit_codes():
        app.cli(prog="python -m studies", args=sys.argv[1:] if args is None else args)


if __name__ == "__main__":
    main()
