"""``python -m lazyfx_core show FILE``: what is in an archive, for people.

Nothing of the file is run or imported, and it need not be trusted. Functions that are not torch's
are shown by name.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ._container import read_structure
from ._show import describe_file
from .errors import LazyFxError

if TYPE_CHECKING:
    from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m lazyfx_core", description="Look into files that lazyfx_core wrote."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show = commands.add_parser("show", help="print what an archive holds")
    show.add_argument("file", type=Path)
    show.add_argument("--json", action="store_true", help="print the structure as it is stored")
    show.add_argument("--no-code", action="store_true", help="leave the code out")
    chosen = parser.parse_args(arguments)
    try:
        if chosen.json:
            text, _ = read_structure(chosen.file)
            sys.stdout.write(json.dumps(json.loads(text), indent=1) + "\n")
        else:
            for line in describe_file(chosen.file, code=not chosen.no_code):
                sys.stdout.write(line + "\n")
    except BrokenPipeError:  # somebody piped it into head
        sys.stderr.close()
        return 0
    except (LazyFxError, OSError) as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
