"""Part (c): 200 small rewrites over MiniLM's graph, as pass authors write them.

Each rewrite changes one place and ends with ``gm.recompile()``. Together they turn the exported
graph (``view``, ``permute``, ``addmm``, ``view``) back into what a person would have written
(``linear``).
"""

from __future__ import annotations

import contextlib
import operator
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unittest import mock

import torch
from torch import fx

from lazyfx_core import LazyGraphModule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

aten = torch.ops.aten
LIMIT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one run of the pipeline did: counts, seconds, and the module it left."""

    asked: int
    done: int
    seconds: float
    nodes_before: int
    nodes_after: int
    module: fx.GraphModule


def _shape(node: object) -> tuple[int, ...] | None:
    value = node.meta.get("val") if isinstance(node, fx.Node) else None
    return tuple(value.shape) if isinstance(value, torch.Tensor) else None


def _is(node: object, target: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "call_function" and node.target is target


def _swap(old: fx.Node, new: fx.Node) -> None:
    old.replace_all_uses_with(new)
    old.graph.erase_node(old)


def drop_assertion(node: fx.Node) -> bool:
    """Metadata assertions guard nothing that a fixed graph could break."""
    if not _is(node, aten._assert_tensor_metadata.default):
        return False
    node.graph.erase_node(node)
    return True


def drop_expand(node: fx.Node) -> bool:
    """``expand`` to the shape a tensor has already."""
    if not _is(node, aten.expand.default) or _shape(node) != _shape(node.args[0]):
        return False
    _swap(node, node.args[0])  # type: ignore[arg-type]
    return True


def join_clone_and_view(node: fx.Node) -> bool:
    """``view(clone(x))`` is what ``reshape`` means."""
    if not (_is(node, aten.view.default) and _is(node.args[0], aten.clone.default)):
        return False
    clone = node.args[0]
    assert isinstance(clone, fx.Node)
    if len(clone.users) != 1:
        return False
    node.target = aten.reshape.default
    node.args = (clone.args[0], node.args[1])
    node.graph.erase_node(clone)
    return True


def make_linear(node: fx.Node) -> bool:
    """``addmm(bias, x, permute(weight))`` is ``linear``."""
    if not (_is(node, aten.addmm.default) and _is(node.args[2], aten.permute.default)):
        return False
    bias, x, transposed = node.args
    assert isinstance(transposed, fx.Node)
    if list(transposed.args[1]) != [1, 0]:  # type: ignore[arg-type]
        return False
    node.target = aten.linear.default
    node.args = (x, transposed.args[0], bias)
    if not transposed.users:
        node.graph.erase_node(transposed)
    return True


def widen_linear(node: fx.Node) -> bool:
    """``view(linear(view(x)))``: ``linear`` takes leading dimensions as they are."""
    if not (_is(node, aten.view.default) and _is(node.args[0], aten.linear.default)):
        return False
    linear = node.args[0]
    assert isinstance(linear, fx.Node)
    flat = linear.args[0]
    if len(linear.users) != 1 or not _is(flat, aten.view.default):
        return False
    assert isinstance(flat, fx.Node)
    outer, inner = _shape(node), _shape(flat.args[0])
    if outer is None or inner is None or outer[:-1] != inner[:-1]:
        return False
    linear.args = (flat.args[0], *linear.args[1:])
    linear.meta["val"] = node.meta["val"]
    _swap(node, linear)
    if not flat.users:
        node.graph.erase_node(flat)
    return True


def join_views(node: fx.Node) -> bool:
    """``view(view(x))`` needs only the last shape."""
    both = (aten.view.default, aten.reshape.default)
    inner = node.args[0] if node.args else None
    if not any(_is(node, t) for t in both) or not any(_is(inner, t) for t in both):
        return False
    assert isinstance(inner, fx.Node)
    node.target = aten.reshape.default
    node.args = (inner.args[0], node.args[1])
    if not inner.users:
        node.graph.erase_node(inner)
    return True


def drop_view(node: fx.Node) -> bool:
    """``view`` or ``reshape`` to the shape a tensor has already."""
    if not (_is(node, aten.view.default) or _is(node, aten.reshape.default)):
        return False
    if _shape(node) is None or _shape(node) != _shape(node.args[0]):
        return False
    _swap(node, node.args[0])  # type: ignore[arg-type]
    return True


def make_layer_norm(node: fx.Node) -> bool:
    """The first of ``native_layer_norm``'s results is ``layer_norm``."""
    norm = node.args[0] if _is(node, operator.getitem) else None
    if not _is(norm, aten.native_layer_norm.default) or node.args[1] != 0:
        return False
    assert isinstance(norm, fx.Node)
    if len(norm.users) != 1:
        return False
    node.target = aten.layer_norm.default
    node.args = norm.args
    node.graph.erase_node(norm)
    return True


def make_matmul(node: fx.Node) -> bool:
    """``view(bmm(view(a), view(b)))``: ``matmul`` takes leading dimensions as they are."""
    bmm = node.args[0] if _is(node, aten.view.default) else None
    if not _is(bmm, aten.bmm.default):
        return False
    assert isinstance(bmm, fx.Node)
    reshaped = (aten.view.default, aten.reshape.default)
    if len(bmm.users) != 1 or not all(any(_is(a, t) for t in reshaped) for a in bmm.args):
        return False
    a, b = (argument.args[0] for argument in bmm.args)  # type: ignore[union-attr]
    first, second, outer = _shape(a), _shape(b), _shape(node)
    if first is None or second is None or outer != (*first[:-1], second[-1]):
        return False
    node.target = aten.matmul.default
    node.args = (a, b)
    node.graph.erase_node(bmm)
    return True


def make_transpose(node: fx.Node) -> bool:
    """``permute`` that exchanges two dimensions is ``transpose``."""
    if not _is(node, aten.permute.default):
        return False
    order = list(node.args[1])  # type: ignore[arg-type]
    moved = [i for i, d in enumerate(order) if i != d]
    if len(moved) != 2:
        return False
    node.target = aten.transpose.int
    node.args = (node.args[0], *moved)
    return True


def drop_unused(node: fx.Node) -> bool:
    """A pure node nobody uses any more."""
    if node.users or node.op not in ("call_function", "get_attr") or node.is_impure():
        return False
    node.graph.erase_node(node)
    return True


RULES = (
    *(drop_assertion, drop_expand, join_clone_and_view, make_linear),
    *(widen_linear, join_views, drop_view, make_layer_norm, drop_unused),
    *(make_matmul, make_transpose, drop_unused),
)


@contextlib.contextmanager
def counted_generations() -> Iterator[list[float]]:
    """Seconds of each code generation inside the block, by anybody."""
    seconds: list[float] = []
    original: Callable[..., object] = fx.Graph.python_code

    def timed(self: fx.Graph, *args: object, **kwargs: object) -> object:
        start = time.perf_counter()
        try:
            return original(self, *args, **kwargs)
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(fx.Graph, "python_code", timed):
        yield seconds


def rewrite(gm: fx.GraphModule) -> int:
    """Apply one rule at one place, recompile, and again, up to 200 times; how often."""
    done = 0
    for rule in RULES:
        for node in list(gm.graph.nodes):
            if done == LIMIT:
                return done
            if not node._erased and rule(node):
                gm.recompile()
                done += 1
    return done


def run(make: Callable[[], fx.GraphModule], *, lazy: bool) -> Outcome:
    """Run the pipeline on a fresh copy of the graph, then look at the code once."""
    gm = make()
    if lazy:
        gm = LazyGraphModule.from_graphmodule(gm)
    before = len(gm.graph.nodes)
    with counted_generations() as generations:
        start = time.perf_counter()
        asked = rewrite(gm)
        code = gm.code
        seconds = time.perf_counter() - start
    assert "linear" in code
    return Outcome(
        asked=asked,
        done=len(generations),
        seconds=seconds,
        nodes_before=before,
        nodes_after=len(gm.graph.nodes),
        module=gm,
    )
