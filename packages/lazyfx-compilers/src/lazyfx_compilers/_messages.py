"""How a node is told in a message: its name, what it runs, the user's line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from . import _torch_debug

if TYPE_CHECKING:
    from torch import fx


def describe(node: fx.Node) -> str:
    """A node in a message: its name, what it runs and the user's line."""
    line = user_line(node)
    where = f", from {line}" if line else ""
    return f"node {node.name!r} ({node.op} {_torch_debug.target_text(node.target)}{where})"


def user_line(node: fx.Node) -> str | None:
    """The line of the user's code a node was traced from: ``file:line in function: code``."""
    trace = node.meta.get("stack_trace")
    if not isinstance(trace, str):
        return None
    frames = re.findall(
        r'File "([^"\n]+)", line (\d+), in (\S+)(?:\n[ \t]*(?!File )(\S.*))?', trace
    )
    if not frames:
        return None
    file, line, function, code = frames[-1]
    return f"{file}:{line} in {function}" + (f": {code.strip()}" if code else "")
