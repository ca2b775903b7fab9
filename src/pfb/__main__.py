"""``python -m pfb`` and the ``pfb`` command: the laboratory's command line, where it is
installed.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line, or say what to install: ``pip install pfb`` alone brings the library,
    which needs torch only.
    """
    try:
        from pfb.lab.cli import main as run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "pfb":
            raise
        print(
            f"pfb: the command line needs {error.name}, which is not installed: pip install 'torch-pfb[train]'",
            file=sys.stderr,
        )
        sys.exit(1)
    run()


if __name__ == "__main__":
    main()
