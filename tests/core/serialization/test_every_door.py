"""Random graphs with metadata of every kind, through every door: the same graph comes back."""

from __future__ import annotations

import collections
import contextlib
import itertools
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.passes.shape_prop import _extract_tensor_metadata

from lazyfx_core import LazyGraphModule, assert_max_recompiles
from lazyfx_core.testing import GraphCase, assert_graphs_equal, graph_cases
from lazyfx_core.testing._case import convert_children

fixed = settings(
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


class World:
    """What metadata of one module may refer to and share."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self.nodes = list(gm.graph.nodes)
        self.shared = {"shared": [1, 2], "deep": {"er": (3,)}}
        self.mode: Any = None
        self.fake: Any = None

    def fake_tensor(self) -> torch.Tensor:
        """One with a symbolic size; always the same."""
        if self.fake is None:
            self.mode = FakeTensorMode(shape_env=ShapeEnv())
            context = StatelessSymbolicContext([DimDynamic.DYNAMIC, DimDynamic.STATIC])
            self.fake = self.mode.from_tensor(torch.ones(5, 3), symbolic_context=context)
        return self.fake

    def other_fake_tensor(self) -> torch.Tensor:
        size = self.fake_tensor().shape[0]
        with self.mode:
            return torch.empty(size * 2, 3, dtype=torch.float16)


TRACE = '  File "model.py", line 7, in forward\n    return self.linear(x) + self.bias\n'
KINDS: dict[str, Callable[[World], Any]] = {
    "stack_trace": lambda world: TRACE,
    "nn_module_stack": lambda world: collections.OrderedDict(
        {"L__self___linear": ("L['self'].linear", nn.Linear), "old": ("x", "torch.nn.ReLU")}
    ),
    "source_fn_stack": lambda world: [("sin", torch.sin), ("linear", nn.Linear)],
    "val": lambda world: world.fake_tensor(),
    "example_value": lambda world: (world.other_fake_tensor(), world.fake_tensor(), None),
    "unbacked": lambda world: world.fake_tensor().shape[0] + 1,
    "tensor_meta": lambda world: _extract_tensor_metadata(torch.ones(2, 3).t()),
    "original_aten": lambda world: torch.ops.aten.add.Tensor,
    "seq_nr": lambda world: 17,
    "partitioner_tag": lambda world: "is_backward",
    "shared": lambda world: world.shared,
    "last node": lambda world: world.nodes[-1],
    "nodes": lambda world: {"first": [world.nodes[0]], "users": tuple(world.nodes[1:])},
    "numbers": lambda world: [float("nan"), -0.0, 1 << 70, -(1 << 64), 1 + 2j, True, 0, 1e-320],
    "texts": lambda world: {"": "ünï\ud800\x00", "long": "x" * 100},
    "keys": lambda world: {1: "a", (2, None): "b", torch.float32: "c", "d": frozenset({1, "2"})},
    "torch": lambda world: (torch.int8, torch.device("cpu"), torch.channels_last, torch.strided),
    "size": lambda world: torch.Size([2, 3]),
    "python": lambda world: [slice(None, 2, -1), range(3), ..., b"\x00\xff", {1, 2}, int, len],
    "tensor": lambda world: torch.arange(3),
    "ordered": lambda world: collections.OrderedDict(b=1, a=2),
    "function": lambda world: operator.add,
}
# A module is loaded without its nodes, so its own metadata cannot hold any.
NEEDS_NODES = ("last node", "nodes")


def add_metadata(gm: fx.GraphModule, chosen: list[tuple[int, str]]) -> None:
    """Entries of the chosen kinds on the chosen nodes; -1 is the module itself."""
    world = World(gm)
    for place, kind in chosen:
        if place >= 0:
            world.nodes[place % len(world.nodes)].meta[kind] = KINDS[kind](world)
        elif kind not in NEEDS_NODES:
            gm.meta[kind] = KINDS[kind](world)


chosen_metadata = st.lists(
    st.tuples(st.integers(-1, 20), st.sampled_from(list(KINDS))), max_size=8, unique=True
)


cases = {
    "case": graph_cases(),
    "chosen": chosen_metadata,
    "protocol": st.integers(2, 5),
    "plain_children": st.booleans(),
    "training": st.booleans(),
}


def build(case: GraphCase, *, plain_children: bool, training: bool) -> LazyGraphModule:
    gm = case.lazy()
    if plain_children:
        convert_children(gm, fx.GraphModule)
    gm.train(training)
    type(gm).__name__ = "Named"
    return gm


@pytest.fixture(scope="session")
def check(
    doors: dict[str, Any], fingerprint: Callable[..., Any], outcome: Callable[..., Any]
) -> Callable[..., None]:
    """Everything that is promised of one case, for every door."""

    def check(
        case: GraphCase, chosen: Any, protocol: int, *, plain_children: bool, training: bool
    ) -> None:
        how = {"plain_children": plain_children, "training": training}
        gm = build(case, **how)
        add_metadata(gm, chosen)
        before = fingerprint(gm)
        expected = outcome(build(case, **how), case.fresh_inputs())
        for name in (f"pickle {protocol}", "torch.save", "torch.package", "archive"):
            through = doors[name]
            # a plain module has its code as soon as it is there
            with contextlib.nullcontext() if plain_children else assert_max_recompiles(0):
                back = through(gm)
            assert isinstance(back, LazyGraphModule), name
            assert gm.needs_recompile, name
            assert back.needs_recompile, name
            assert type(back) is not type(gm), name
            assert name == "archive" or vars(back)["_graph"] is None, name
            for one, other in itertools.zip_longest(before, fingerprint(back)):
                assert one == other, name
            assert_graphs_equal(gm, back)
            back.graph.lint()
            assert back.needs_recompile, name
            assert outcome(back, case.fresh_inputs()) == expected, name
        assert fingerprint(gm) == before

    return check


@settings(fixed, max_examples=150)
@given(**cases)
def test_every_graph_comes_back_equal_through_every_door(
    check, case, chosen, protocol, plain_children, training
):
    check(case, chosen, protocol, plain_children=plain_children, training=training)


@pytest.mark.slow
@settings(fixed, max_examples=10_000)
@given(**cases)
def test_ten_thousand_graphs_come_back_equal_through_every_door(
    check, case, chosen, protocol, plain_children, training
):
    check(case, chosen, protocol, plain_children=plain_children, training=training)
