"""Drawing nodes one by one so that the graph runs whatever was drawn.

Each node has a *kind*, which says what it may be passed to, and two facts that in-place operators
need: which memory it may share (torch refuses to write to memory that another operand partly
covers) and whether it may require a gradient (torch refuses to write to a leaf, and a buffer that
got a gradient cannot be copied).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from hypothesis import strategies as st

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

_T = TypeVar("_T")
_NUMBERS = (0.5, 2, -1.25, 3, 1e-3, float("inf"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A node and what may be done with it.

    Attributes:
        node: The node.
        kind: ``full``: a float tensor of the common shape; ``row``: one that broadcasts to it;
            ``mask``: a bool tensor of the common shape; ``number``: a Python number.
        memory: Names the storages it may be a view of.
        gradient: Whether it may require a gradient.
    """

    node: fx.Node
    kind: str
    memory: frozenset[int]
    gradient: bool


class Builder:
    """A graph that grows by drawn nodes.

    Args:
        draw: The ``draw`` of a hypothesis composite.
        graph: Changed: nodes are appended.
    """

    def __init__(self, draw: Callable[[Any], Any], graph: fx.Graph) -> None:
        self._draw = draw
        self.graph = graph
        self.values: list[Value] = []

    def choose(self, options: Sequence[_T]) -> _T:
        """Draw one of ``options``; the first is the simplest."""
        chosen: _T = self._draw(st.sampled_from(options))
        return chosen

    def pick(self, *kinds: str) -> Value:
        """Draw a value of one of ``kinds``; the latest is the simplest, which shrinks to chains."""
        return self.choose([v for v in reversed(self.values) if v.kind in kinds])

    def has(self, kind: str) -> bool:
        """Whether there is a value of ``kind``."""
        return any(value.kind == kind for value in self.values)

    def other(self) -> tuple[Any, tuple[Value, ...]]:
        """Draw a second operand: a node or a number. Also returns the value it came from."""
        source = self.choose(("number", "node"))
        if source == "number":
            return self.choose(_NUMBERS[:-2]), ()
        value = self.pick("full", "row", "number")
        return value.node, (value,)

    def writable(self) -> list[Value]:
        """The values an in-place operator may write to, latest first."""
        return [v for v in reversed(self.values) if v.kind == "full" and not v.gradient]

    def operand_beside(self, target: Value) -> Any:
        """Draw what an in-place operator may combine ``target`` with."""
        nodes = [
            value.node
            for value in reversed(self.values)
            if value.kind in ("full", "row")
            and not value.gradient
            and not value.memory & target.memory
        ]
        return self.choose((*_NUMBERS[:-2], *nodes))

    def add(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        kind: str = "full",
        uses: Sequence[Value] = (),
        shares: Sequence[Value] = (),
        gradient: bool = False,
    ) -> Value:
        """Append a node.

        Args:
            op: As in ``fx.Graph.create_node``.
            target: As in ``fx.Graph.create_node``.
            args: As in ``fx.Graph.create_node``.
            kwargs: As in ``fx.Graph.create_node``.
            kind: See :class:`Value`.
            uses: Values whose gradient the result inherits.
            shares: Values whose memory the result may share, and whose gradient it inherits.
            gradient: Whether it may require a gradient whatever it uses.
        """
        node = self.graph.create_node(op, target, args, kwargs or {})
        style = self.choose(("plain", "plain", "plain", "named", "typed"))
        if style == "named":
            node.name = f"by_hand_{len(self.graph.nodes)}"
        elif style == "typed" and kind in ("full", "row", "mask"):
            node.type = torch.Tensor
        memory = frozenset[int]().union(*(value.memory for value in shares))
        value = Value(
            node=node,
            kind=kind,
            memory=memory or frozenset((len(self.graph.nodes),)),
            gradient=gradient or any(v.gradient for v in (*uses, *shares)),
        )
        self.values.append(value)
        return value
