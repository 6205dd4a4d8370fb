"""The command ``lazyfx``: dumps of graphs listed, shown, run again, compared, made smaller.

A package beside ``lazyfx_tools`` and not a module in it: importing anything of that package imports
torch, which takes seconds, and ``lazyfx --help`` and completion need none of it. Every command
imports what it needs when it runs.
"""

from ._main import cli, main

__all__ = ["cli", "main"]
