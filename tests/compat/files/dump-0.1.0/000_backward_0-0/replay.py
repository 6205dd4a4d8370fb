"""Runs what was dumped here again; see `python replay.py --help`."""

import sys
from pathlib import Path

try:
    from lazyfx_cli import main
except ImportError as error:
    sys.exit(f"{error}; run: python -m pip install lazyfx-tools")

if __name__ == "__main__":
    sys.exit(main(["replay", str(Path(__file__).resolve().parent), *sys.argv[1:]]))
