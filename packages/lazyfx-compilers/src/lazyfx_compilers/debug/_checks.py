"""What is checked of each node, and the error when a result is not what was recorded.

=================  ==============================================================================
check              a result, or an input, differs in
=================  ==============================================================================
``kind``           being a tensor, or the number of outputs
``dtype``          its dtype
``device``         where it is
``layout``         being dense or sparse
``size``           its size
``strides``        the strides that decide an address
``storage_offset`` where it begins in its memory; an input is taken as it comes, and what is in the
                   memory of an input moves with it
``requires_grad``  whether autograd follows it, where Dynamo recorded that
``value``          a number, known or symbolic
``aliasing``       which arguments it shares memory with, or other outputs
``mutation``       which arguments were written, as their version counters say
``writes``         the same, by comparing bytes: finds writes through numpy and ``.data``
``nan``, ``inf``   the node makes the first ones: its result has some and its inputs have none
=================  ==============================================================================
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from torch import fx

from lazyfx_compilers import _torch_debug
from lazyfx_compilers._messages import describe, user_line
from lazyfx_compilers.errors import MetadataMismatchError, UnknownOptionError

from ._metadata import Difference

Action = Literal["raise", "warn"]

COSTLY_CHECKS = frozenset({"nan", "inf", "writes"})
DEFAULT_CHECKS = frozenset(
    {
        *("kind", "dtype", "device", "layout", "size", "strides", "storage_offset"),
        *("requires_grad", "value", "aliasing", "mutation"),
    }
)
CHECKS = DEFAULT_CHECKS | COSTLY_CHECKS

# what differs in one of these makes others differ that are computed from it
OF_METADATA = DEFAULT_CHECKS - {"aliasing", "mutation"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is checked, and what happens then.

    Attributes:
        checks: Names of checks.
        action: ``"raise"`` an error, or ``"warn"``.
        ignore: Pairs of what a node runs and a check that it need not pass.
    """

    checks: frozenset[str] = DEFAULT_CHECKS
    action: Action = "raise"
    ignore: frozenset[tuple[str, str]] = frozenset()


def settings(
    checks: Collection[str] | None, action: str, ignore: Iterable[tuple[str, str]]
) -> Settings:
    """Checked settings.

    Raises:
        UnknownOptionError: A name is unknown; lists those that are known.
    """
    names = DEFAULT_CHECKS if checks is None else _known_checks("checks", checks)
    if action not in ("raise", "warn"):
        raise UnknownOptionError(f"action is {action!r}; it is 'raise' or 'warn'")
    pairs = frozenset(map(_pair, ignore))
    _known_checks("ignore", {check for _, check in pairs})
    return Settings(checks=names, action=action, ignore=pairs)  # type: ignore[arg-type]


def _known_checks(option: str, names: Collection[str]) -> frozenset[str]:
    if isinstance(names, str):
        raise UnknownOptionError(
            f"{option}={names!r} is one string; it takes a collection of names, like {{{names!r}}}"
        )
    for name in names:
        if name not in CHECKS:
            raise UnknownOptionError(
                f"{option} has the unknown check {name!r}; there are {', '.join(sorted(CHECKS))}"
            )
    return frozenset(names)


def _pair(value: Any) -> tuple[str, str]:
    if isinstance(value, tuple) and len(value) == 2 and all(isinstance(one, str) for one in value):
        return value
    raise UnknownOptionError(
        f"ignore has {value!r}; it takes pairs of an operator and a check, like "
        "('aten.native_layer_norm.default', 'dtype')"
    )


# --- the error -----------------------------------------------------------------------------------


def ignored(node: fx.Node, check: str, settings: Settings) -> bool:
    """Whether a node need not pass a check."""
    if check not in settings.checks:
        return True
    return bool(settings.ignore) and (_torch_debug.target_text(node.target), check) in (
        settings.ignore
    )


def mismatch(node: fx.Node, difference: Difference, which: str) -> MetadataMismatchError:
    """The error about a difference; ``which`` says in which of several outputs it is."""
    error = MetadataMismatchError(
        f"{describe(node)}: the {difference.checked}{which} is {difference.seen}, "
        f"{difference.said_by} {difference.expected}; {_advice(node, difference.check)}"
    )
    error.node = node.name
    error.target = _torch_debug.target_text(node.target)
    error.check = difference.check
    error.checked = difference.checked
    error.expected = difference.expected
    error.seen = difference.seen
    error.user_line = user_line(node)
    return error


def _advice(node: fx.Node, check: str) -> str:
    if node.op == "placeholder":
        return (
            "the graph was called with other inputs than it was compiled for: compile it for "
            "these, or guard the call"
        )
    if check in ("nan", "inf"):
        return "this node is the first to make one: look at its inputs"
    if check in ("mutation", "writes"):
        return (
            "whoever compiles the graph believes that: declare the write in the operator's schema "
            "(mutates_args), or write to a copy"
        )
    if check == "aliasing":
        return (
            "whoever compiles the graph believes that, and reuses or overwrites the memory: "
            "declare it in the operator's schema, or return a copy; or a pass changed the graph "
            "and not node.meta"
        )
    return (
        "the operator's fake kernel or decomposition says something else than its real kernel, or "
        "a pass changed the graph and not node.meta"
    )
