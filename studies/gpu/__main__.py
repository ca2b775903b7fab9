"""``python -m studies.gpu``: as ``python -m studies gpu``, by the standard library alone."""

import sys

from studies.gpu import run
from studies.gpu.settings import parsed

if __name__ == "__main__":
    print(f"wrote {run(parsed(sys.argv[1:]))}")
