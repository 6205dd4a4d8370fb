"""What a graph from a stranger may say.

Generated code is text that Python runs, and torch writes names, attribute paths and the parameters
of ``forward`` into it as they are. So every text that ends up in code has to be what it claims to
be, an identifier, before it gets near a graph; and what a node calls has to be in the table of
:mod:`lazyfx_core._names`. Reading such a graph executes nothing. Calling it runs the operators it
lists, on the tensors it is given; it is no sandbox for operators with bugs in them.

The same check tells the writer whether a graph can be read back under these rules.
"""

from __future__ import annotations

import re
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from ._names import why_not_callable
from ._torch_codegen import texts_in_code
from .errors import GraphFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch.fx.graph import CodeGen

_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z")
_PLAIN_OPS = frozenset({"placeholder", "output"})


class NodeCheck:
    """Raises :class:`GraphFormatError` for nodes that a graph from a stranger may not hold.

    Not thread-safe: remembers what was found to be fine, by identity; whoever uses it keeps the
    targets alive meanwhile.

    Args:
        allowed: Functions, or names of methods, that may be called all the same.
    """

    def __init__(self, allowed: frozenset[Any] = frozenset()) -> None:
        self._allowed_names = {entry for entry in allowed if type(entry) is str}
        self._allowed_ids = {id(entry) for entry in allowed}
        self._fine: set[tuple[str, str | int]] = set()

    def __call__(
        self, op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], name: str
    ) -> None:
        """Check one node by its fields, all of them decoded."""
        if not name.isidentifier() or iskeyword(name) or not name.isascii() or kwargs:
            check_texts(op, target, kwargs, name)
        key = (op, target if type(target) is str else id(target))
        if key in self._fine:
            return
        check_texts(op, target, kwargs, name)
        known = (
            target in self._allowed_names if type(target) is str else key[1] in self._allowed_ids
        )
        if op not in _PLAIN_OPS and not known:
            reason = why_not_callable(op, target, args, kwargs)
            if reason is not None:
                raise GraphFormatError(f"{reason}; pass what you trust in allow=[...]")
            if target is getattr:
                return  # depends on its arguments
        self._fine.add(key)


def check_texts(op: str, target: Any, kwargs: Mapping[str, Any], name: str) -> None:
    """Raise :class:`GraphFormatError` if a text of this node would be more than a name in code."""
    if not _is_identifier(name):
        raise GraphFormatError(f"the name {name!r:.200} is not a Python identifier")
    if op == "placeholder" and not _is_parameter(target):
        raise GraphFormatError(f"{target!r:.200} is not the name of a parameter")
    if op in ("get_attr", "call_module") and _PATH.match(target) is None:
        raise GraphFormatError(f"{target!r:.200} is not the path of an attribute")
    for key in kwargs:
        if not _is_identifier(key):
            raise GraphFormatError(f"the keyword {key!r:.200} is not a Python identifier")


def check_codegen(codegen: CodeGen) -> None:
    """Raise :class:`GraphFormatError` if text of ``codegen`` would be more than names in code."""
    for text in texts_in_code(codegen):
        if not _is_parameter(text):
            raise GraphFormatError(f"{text!r:.200} is not the name of a parameter")


def check_attributes_exist(module: nn.Module, graph: fx.Graph) -> None:
    """Raise :class:`GraphFormatError` if a node refers to what ``module`` does not hold itself.

    Attributes of classes do not count: a file could reach methods through them.
    """
    for node in graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        found: Any = module
        for atom in str(node.target).split("."):
            held = vars(found) if isinstance(found, nn.Module) else {}
            tables = [held.get(t, {}) for t in ("_parameters", "_buffers", "_modules")]
            found = next((table[atom] for table in tables if atom in table), held.get(atom))
        is_right = isinstance(found, nn.Module) if node.op == "call_module" else found is not None
        if not is_right:
            raise GraphFormatError(
                f"node {node.name!r} refers to {node.target!r:.200}, which is not in the file"
            )


def _is_parameter(text: Any) -> bool:
    stars = len(text) - len(text.lstrip("*"))
    return stars <= 2 and _is_identifier(text[stars:])


def _is_identifier(text: Any) -> bool:
    return type(text) is str and text.isascii() and text.isidentifier() and not iskeyword(text)
