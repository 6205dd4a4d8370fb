"""One node's result, held against all that is known of the node."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from lazyfx_compilers import _torch_debug

from . import _metadata, _sharing, _torch_checks, _values
from ._checks import COSTLY_CHECKS, Settings
from ._formula import Bindings, Formula
from ._metadata import Difference, Facts, TensorFacts

Env = Mapping[fx.Node, Any]
Found = tuple[Difference, str]
"""A difference, and of which output, in words."""

_BAKED = (bool, int, float, str)
_ATTENTION = ("_scaled_dot_product_", "_flash_attention_", "_efficient_attention_", "_cudnn_")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offset:
    """Where a tensor begins in its memory.

    Attributes:
        geometry: Of the tensor.
        itemsize: Bytes of an element.
        origin: A node whose value is in the same memory, and its geometry and bytes; ``None`` if
            the tensor is in memory of its own. What is in the memory of an input begins where the
            input says, and nobody guards on that: only the distance counts.
    """

    geometry: Formula
    itemsize: int
    origin: tuple[fx.Node, Formula, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One leaf of a node's result.

    Attributes:
        facts: What was recorded.
        offset: ``None`` if it is not compared.
        relations: With which nodes it must share memory, or must not, and who says so.
        shares: Tells whether two tensors share memory. That they do through another library
            (``torch.from_numpy(x.numpy())``) takes longer to tell, and operators of torch's own
            do not do it.
    """

    facts: Facts
    offset: Offset | None
    relations: tuple[tuple[fx.Node, bool, str], ...]
    shares: Callable[[Any, Any], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeCheck:
    """What is known of one node.

    Attributes:
        node: The node.
        leaves: Of its result; empty if nothing was recorded.
        watched: The nodes that it must not write to.
        apart: Whether no two leaves may share memory.
        foreign: Whether an operator of another library runs, which writes uncounted under a mode.
        costly: The checks that read elements.
        inputs: The nodes that it takes.
    """

    node: fx.Node
    leaves: tuple[Leaf, ...]
    watched: tuple[fx.Node, ...]
    apart: bool
    foreign: bool
    costly: frozenset[str]
    inputs: tuple[fx.Node, ...]

    def before(self, env: Env) -> tuple[list[int | None], _values.Elements | None]:
        """What must be known before the node runs, for :meth:`accept` and :meth:`differences`."""
        versions = [_version(env[node]) for node in self.watched]
        checks = self.costly
        if self.foreign and self.watched and _torch_checks.modes_are_active():
            checks |= {"writes"}
        if not checks:
            return versions, None
        given = (self.node.args, self.node.kwargs)
        return versions, _values.Elements(checks, self.inputs, given, self.watched, env)

    def accept(self, result: Any, env: Env, before: Any, bindings: Bindings) -> bool:
        """Whether all is exactly as known; ``False`` may mean that it takes a closer look."""
        leaves = self.leaves
        if len(leaves) == 1:
            if not _is_right(leaves[0], result, env, bindings):
                return False
        elif leaves:
            if type(result) not in (tuple, list) or len(result) != len(leaves):
                return False
            for leaf, value in zip(leaves, result, strict=True):
                if not _is_right(leaf, value, env, bindings):
                    return False
            if self.apart and not _are_apart(result):
                return False
        versions, elements = before
        if elements is not None and not elements.accept(result):
            return False
        for node, version in zip(self.watched, versions, strict=True):
            if _version(env[node]) != version:
                return False
        return True

    def differences(
        self, result: Any, env: Env, before: Any, bindings: Bindings
    ) -> Iterator[Found]:
        """All that is not as known."""
        leaves = self.leaves
        values = [result]
        if len(leaves) != 1 or not isinstance(result, torch.Tensor):
            values = _metadata.leaves(result) if leaves else []
        if len(values) == len(leaves):
            for place, (leaf, value) in enumerate(zip(leaves, values, strict=True)):
                if value is None and len(leaves) > 1 and not _is_used(self.node, place):
                    continue  # many operators compute only what their `output_mask` says
                which = f" of output {place} of {len(leaves)}" if len(leaves) > 1 else ""
                for difference in _leaf_differences(leaf, value, self.inputs, env, bindings):
                    yield difference, which
            if self.apart and not _are_apart(values):
                yield _alike(values), ""
        elif not (len(leaves) == 1 and leaves[0].facts is None):  # not just an unknown object
            yield _number_of(len(leaves), len(values)), ""
        versions, elements = before
        for node, version in zip(self.watched, versions, strict=True):
            if _version(env[node]) != version and not self._is_shared(env[node], env):
                yield _written(node), ""
        if elements is not None:
            for difference in elements.differences(result):
                if difference.check == "writes" and "writes" not in self.costly:
                    difference = replace(difference, check="mutation")
                yield difference, ""

    def _is_shared(self, value: Any, env: Env) -> bool:
        """Whether a tensor is in the memory of one that the node may write to."""
        others = (env[node] for node in self.inputs if node not in self.watched)
        return any(_torch_checks.shares_any(value, other) for other in others)


def of_graph(
    graph: fx.Graph,
    placeholders: Sequence[fx.Node],
    example_inputs: Sequence[Any],
    settings: Settings,
) -> dict[fx.Node, NodeCheck]:
    """What tracing recorded and what operators declare, of all nodes of which something is known.

    Args:
        graph: Read only.
        placeholders: Its placeholders.
        example_inputs: What it was traced with. A Python value that no node uses has been baked
            into the graph: it becomes a fact about its placeholder.
        settings: What to check.
    """
    facts = _facts(graph, placeholders, example_inputs)
    follows_memory = _sharing.is_traceable(graph)
    costly = frozenset() if _sharing.wraps_tensors(graph) else settings.checks & COSTLY_CHECKS
    found = {}
    for node in graph.nodes:
        if node.op == "output":
            continue
        check = _node_check(node, facts, settings.checks, costly, follows_memory)
        if check.leaves or check.watched or check.costly:
            found[node] = check
    return found


def _facts(
    graph: fx.Graph, placeholders: Sequence[fx.Node], example_inputs: Sequence[Any]
) -> dict[fx.Node, tuple[Facts, ...]]:
    facts: dict[fx.Node, tuple[Facts, ...]] = {}
    recorded_later: set[int] = set()
    for node in reversed(graph.nodes):
        if node.op == "output":
            continue
        if "val" in node.meta:
            # an input without a description is a Python value, see below
            if node.meta["val"] is not None or node.op != "placeholder":
                facts[node] = _metadata.record(node.meta["val"])
        elif "example_value" in node.meta:
            value = node.meta["example_value"]
            # Dynamo records the very tensor it traces with: after `a.t_()` the record of `a` has
            # the sizes that it got there, so only the last node of a tensor tells its sizes. A
            # write may make it need a gradient, through a view of it too.
            known = id(value) not in recorded_later
            facts[node] = _metadata.record(
                value, with_geometry=known, with_autograd=known and _was_never_written(value)
            )
            if isinstance(value, torch.Tensor):
                recorded_later.add(id(value))
    for node in facts:
        facts[node] = tuple(
            _anywhere(fact) if _is_seed(node, fact) else fact for fact in facts[node]
        )
    for node, example in zip(placeholders, example_inputs, strict=False):
        if node not in facts and not node.users and type(example) in _BAKED:
            facts[node] = _metadata.record(example)
    return facts


def _is_seed(node: fx.Node, fact: Facts) -> bool:
    """Whether it is (one of) what attention on a GPU draws its dropout from.

    Its kernels leave that on the CPU, or on the GPU while a CUDA graph is captured. Tracing cannot
    know which, and says that it is where the rest is.
    """
    if not isinstance(fact, TensorFacts) or fact.dtype not in (torch.int64, torch.uint64):
        return False
    if node.op == "placeholder":
        return bool(node.users) and all(map(_is_attention, node.users))
    made_by = node.args[0] if node.target is operator.getitem else node
    return isinstance(made_by, fx.Node) and _is_attention(made_by)


def _is_attention(node: fx.Node) -> bool:
    return _torch_checks.base_name(node.target).startswith(_ATTENTION)


def _anywhere(fact: Facts) -> Facts:
    return replace(fact, device=None) if isinstance(fact, TensorFacts) else fact


def _was_never_written(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and _torch_checks.version(value) == 0


def _node_check(
    node: fx.Node,
    facts: Mapping[fx.Node, tuple[Facts, ...]],
    checks: frozenset[str],
    costly: frozenset[str],
    follows_memory: bool,
) -> NodeCheck:
    own = facts.get(node, ())
    sources = _sharing.sources(node, len(own)) if follows_memory else ()
    origins = _sharing.origins(node, len(own)) if follows_memory else None
    foreign = _torch_debug.foreign_namespace(node.target) is not None
    leaves = []
    for place, fact in enumerate(own):
        relations = tuple(
            (one.node, must, one.said_by)
            for one in sources
            if "aliasing" in checks and (must := one.shares[place]) is not None
        )
        offset = None
        if origins is not None and "storage_offset" in checks:
            offset = _offset(fact, origins[place], facts)
        shares = _torch_checks.shares_any if foreign else _torch_checks.shares_storage
        leaves.append(Leaf(facts=fact, offset=offset, relations=relations, shares=shares))
    return NodeCheck(
        node=node,
        leaves=tuple(leaves),
        watched=tuple(
            one.node for one in sources if checks & {"mutation", "writes"} and not one.may_write
        ),
        apart="aliasing" in checks
        and follows_memory
        and _sharing.results_are_apart(node, len(own)),
        foreign=foreign and "mutation" in checks,
        costly=costly if _values.makes_values(node) else frozenset(),
        inputs=tuple(node.all_input_nodes),
    )


def _offset(
    fact: Facts, origin: fx.Node | None, facts: Mapping[fx.Node, tuple[Facts, ...]]
) -> Offset | None:
    if not isinstance(fact, TensorFacts) or not _has_offset(fact):
        return None
    assert fact.geometry is not None
    if origin is None:
        return Offset(geometry=fact.geometry, itemsize=fact.dtype.itemsize, origin=None)
    other = facts[origin][0]
    if not isinstance(other, TensorFacts) or not _has_offset(other):
        return None
    assert other.geometry is not None
    return Offset(
        geometry=fact.geometry,
        itemsize=fact.dtype.itemsize,
        origin=(origin, other.geometry, other.dtype.itemsize),
    )


def _has_offset(fact: TensorFacts) -> bool:
    return fact.geometry is not None and fact.geometry.recorded[2] is not None


# --- a leaf --------------------------------------------------------------------------------------


def _is_right(leaf: Leaf, value: Any, env: Env, bindings: Bindings) -> bool:
    if not _metadata.accept(leaf.facts, value, bindings):
        return False
    if leaf.offset is None and not leaf.relations:
        return True
    if not _torch_checks.is_plain(value):
        return not isinstance(value, torch.Tensor)
    if leaf.offset is not None:
        expected = _expected_offset(leaf.offset, env, bindings)
        if expected is not None and expected != value.storage_offset():
            return False
    for node, shares, _ in leaf.relations:  # noqa: SIM110 (a generator costs as much as the rest)
        if leaf.shares(value, env[node]) is not shares:
            return False
    return True


def _leaf_differences(
    leaf: Leaf, value: Any, inputs: Sequence[fx.Node], env: Env, bindings: Bindings
) -> Iterator[Difference]:
    yield from _metadata.differences(leaf.facts, value, bindings)
    if not _torch_checks.is_plain(value):
        return
    if leaf.offset is not None:
        expected = _expected_offset(leaf.offset, env, bindings)
        # what is a copy to whom traces it may be the argument itself (dropout in evaluation)
        anywhere = leaf.offset.origin is None and any(
            _torch_checks.shares_any(value, env[node]) for node in inputs
        )
        if expected is not None and expected != value.storage_offset() and not anywhere:
            yield Difference(
                check="storage_offset",
                checked="storage offset",
                expected=expected,
                seen=value.storage_offset(),
            )
    if not leaf.relations:
        return
    shared = [node for node in inputs if _torch_checks.shares_any(value, env[node])]
    for node, shares, said_by in leaf.relations:
        if shares and node not in shared and _torch_checks.is_plain(env[node]):
            yield Difference(
                check="aliasing",
                checked="memory",
                expected=f"that it is shared with {node.name!r}",
                seen="its own",
                said_by=said_by,
            )
    forbidden = {node: said_by for node, shares, said_by in leaf.relations if not shares}
    if any(node not in forbidden for node in shared):
        return  # an input may be in the memory of another, with which the result may share
    for node, said_by in forbidden.items():
        if node in shared:
            yield Difference(
                check="aliasing",
                checked="memory",
                expected="that it is not",
                seen=f"shared with {node.name!r}",
                said_by=said_by,
            )


def _expected_offset(offset: Offset, env: Env, bindings: Bindings) -> int | None:
    own: int | None = offset.geometry.resolve(bindings)[2]
    if offset.origin is None or own is None:
        return own
    node, geometry, itemsize = offset.origin
    recorded, value = geometry.resolve(bindings)[2], env[node]
    if recorded is None or not _torch_checks.is_plain(value):
        return None
    shift = value.storage_offset() - recorded
    if not shift:
        return own
    moved = Fraction(shift * itemsize, offset.itemsize)
    return own + int(moved) if moved.denominator == 1 else None


def _are_apart(values: Sequence[Any]) -> bool:
    plain = [value for value in values if _torch_checks.is_plain(value)]
    return len({_torch_debug.storage_key(value) for value in plain}) == len(plain)


def _alike(values: Sequence[Any]) -> Difference:
    first: dict[int, int] = {}
    for place, value in enumerate(values):
        if _torch_checks.is_plain(value):
            other = first.setdefault(_torch_debug.storage_key(value), place)
            if other != place:
                break
    return Difference(
        check="aliasing",
        checked="memory",
        expected="that each output has its own",
        seen=f"shared by outputs {other} and {place}",
        said_by="its schema or tracing says",
    )


# --- the rest ------------------------------------------------------------------------------------


def _is_used(node: fx.Node, place: int) -> bool:
    return any(user.target is not operator.getitem or user.args[1] == place for user in node.users)


def _version(value: Any) -> int | None:
    try:
        return value._version  # type: ignore[no-any-return]
    except (AttributeError, RuntimeError):  # no tensor, or one made under inference_mode
        return None


def _number_of(expected: int, seen: int) -> Difference:
    return Difference(check="kind", checked="number of outputs", expected=expected, seen=seen)


def _written(node: fx.Node) -> Difference:
    return Difference(
        check="mutation",
        checked=f"argument {node.name!r}",
        expected="that it is only read",
        seen="written",
        said_by="its schema or tracing says",
    )
