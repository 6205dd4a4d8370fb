"""Every door a graph module can go through, and what must come back: compared by hand.

``doors`` and ``fingerprint`` are given as session fixtures, so that hypothesis may use them.
"""

from __future__ import annotations

import dataclasses
import enum
import io
import pickle
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.package import PackageExporter, PackageImporter
from torch.utils import _pytree as pytree

from lazyfx_core import load_graph, save_graph
from lazyfx_core.testing._builder import Block, Inner

Door = Callable[..., Any]


def _pickle_door(protocol: int) -> Door:
    def through(gm: fx.GraphModule, allow: Any = ()) -> Any:
        return pickle.loads(pickle.dumps(gm, protocol))

    return through


def _torch_save(gm: fx.GraphModule, allow: Any = ()) -> Any:
    file = io.BytesIO()
    torch.save(gm, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def _torch_package(gm: fx.GraphModule, allow: Any = ()) -> Any:
    file = io.BytesIO()
    with warnings.catch_warnings():
        # torch.package reads typed storages, which torch itself has deprecated
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated")
        with PackageExporter(file) as exporter:
            exporter.extern("**")
            exporter.save_pickle("graph", "graph.pkl", gm)
        file.seek(0)
        return PackageImporter(file).load_pickle("graph", "graph.pkl")


def _archive(gm: fx.GraphModule, allow: Any = ()) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.safetensors"
        save_graph(gm, path)
        return load_graph(path, allow=[Block, Inner, *allow])


DOORS: dict[str, Door] = {
    **{f"pickle {protocol}": _pickle_door(protocol) for protocol in (2, 3, 4, 5)},
    "torch.save": _torch_save,
    "torch.package": _torch_package,
    "archive": _archive,
}


@pytest.fixture(scope="session")
def doors() -> dict[str, Door]:
    return DOORS


@pytest.fixture(scope="session", params=["pickle 2", "pickle 5", "torch.package", "archive"])
def door(request: pytest.FixtureRequest) -> Door:
    """One of each kind: writes a module, reads it back."""
    return DOORS[request.param]


@pytest.fixture(scope="session")
def fingerprint() -> Callable[..., list[Any]]:
    return _fingerprint


@pytest.fixture(scope="session")
def assert_same() -> Callable[..., None]:
    return _assert_same


def _assert_same(expected: Any, seen: Any, *, meta: bool = True) -> None:
    """Two modules hold the same graphs, classes, flags, and (if ``meta``) the same metadata."""
    before, after = _fingerprint(expected, meta=meta), _fingerprint(seen, meta=meta)
    for one, other in zip(before, after, strict=False):
        assert one == other
    assert len(before) == len(after)


def _fingerprint(gm: fx.GraphModule, *, meta: bool = True) -> list[Any]:
    """Rows that are equal for two modules if and only if what is stored of them is equal.

    Looks at graphs only: no code is generated. Objects that must stay shared are numbered in the
    order in which they are met, within one graph. Fake tensors of all modes come back in one.
    """
    return _Fingerprint(meta).module(gm)


class _Fingerprint:
    def __init__(self, meta: bool) -> None:
        self.with_meta = meta
        self.numbers: dict[int, int] = {}
        self.places: dict[fx.Node, int] = {}
        self.alive: list[Any] = []

    def number(self, value: Any) -> int:
        self.alive.append(value)
        return self.numbers.setdefault(id(value), len(self.numbers))

    def module(self, gm: nn.Module) -> list[Any]:
        cls = type(gm)
        base = cls
        while (isinstance(gm, fx.GraphModule) and "__lazyfx__" in vars(base)) or (
            base.__name__ == "GraphModuleImpl"
        ):
            base = base.__bases__[0]
        if isinstance(gm, fx.GraphModule) and base.__qualname__.endswith("GraphModuleImpl"):
            base = base.__bases__[0]
        rows: list[Any] = [("class", base, cls.__name__), ("training", gm.training)]
        held = vars(gm)
        rows.append(("non persistent", sorted(held["_non_persistent_buffers_set"])))
        for table in ("_parameters", "_buffers"):
            rows += [(table, name, self.value(item)) for name, item in held[table].items()]
        if isinstance(gm, fx.GraphModule):
            rows += self.graph(gm)
            skipped = {"_graph", "meta", "_code", "_lineno_map", "_prologue_start", "forward"}
            skipped |= {"_graphmodule_cls_name", "_load_state_dict_pre_hooks"}
            for name, item in held.items():
                if name in skipped or name in vars(nn.Module()):
                    continue
                rows.append(("attribute", name, self.value(item)))
        for name, child in held["_modules"].items():
            rows.append(("child", name))
            if child is not None and self.first(child):
                rows += self.module(child)
        return rows

    def first(self, value: Any) -> bool:
        known = id(value) in self.numbers
        self.number(value)
        return not known

    def graph(self, gm: fx.GraphModule) -> list[Any]:
        graph = gm.graph
        outside, self.places = self.places, {n: i for i, n in enumerate(graph.nodes)}
        modules, self.numbers = self.numbers, {}
        codegen = graph._codegen
        rows: list[Any] = [
            ("graph", type(graph), len(graph.nodes), graph.owning_module is gm),
            ("tracer", graph._tracer_cls, self.value(graph._tracer_extras)),
            ("codegen", type(codegen), {k: self.value(v) for k, v in vars(codegen).items()}),
        ]
        if self.with_meta:
            rows.append(("module meta", self.meta(gm.meta)))
        for index, node in enumerate(graph.nodes):
            rows.append(
                (
                    *(index, node.op, self.value(node.target), node.name),
                    *(self.value(node.args), self.value(node.kwargs), self.value(node.type)),
                    sorted(user.name for user in node.users),
                )
            )
            if self.with_meta:
                rows.append((index, node.name, self.meta(node.meta)))
            assert type(node.args) is tuple
        self.places, self.numbers = outside, modules
        return rows

    def meta(self, meta: dict[Any, Any]) -> Any:
        entries = []
        for key, value in meta.items():
            if type(value) in (list, dict, set):
                entries.append((key, "container", self.number(value), self.value(value)))
            else:
                entries.append((key, self.value(value)))
        return entries

    def value(self, value: Any) -> Any:
        kind = type(value)
        if kind in (type(None), bool, int, str, bytes):
            return kind, value
        if isinstance(value, (float, complex)):
            return kind, repr(value)
        if isinstance(value, fx.Node):
            return "node", self.places.get(value, "elsewhere"), value.name
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return kind, str(value.node.expr), value.node.hint
        if isinstance(value, FakeTensor):
            return (
                *(kind, self.number(value)),
                *(value.dtype, value.device, value.requires_grad),
                *(isinstance(value, nn.Parameter), value.layout, value.is_conj()),
                [self.value(size) for size in value.size()],
                [self.value(stride) for stride in value.stride()],
                self.value(value.storage_offset()),
            )
        if isinstance(value, (FakeTensorMode, ShapeEnv)):
            return kind, value.shape_env is not None if kind is FakeTensorMode else True
        if isinstance(value, torch.Tensor):
            return (
                *(kind, value.dtype, tuple(value.shape), value.requires_grad, value.layout),
                value.stride() if value.layout is torch.strided else None,
                value.device.type == "meta" or repr(value.detach().flatten().tolist()),
            )
        if isinstance(value, fx.GraphModule):
            return "module", self.number(value)
        if isinstance(value, nn.Module):
            return kind, repr(value), [self.value(t) for t in value.state_dict().values()]
        if isinstance(value, dict):
            plain = dict if kind.__name__ == "immutable_dict" else kind
            return plain, [(self.value(k), self.value(v)) for k, v in value.items()]
        if isinstance(value, (set, frozenset)):
            return kind, sorted(repr(self.value(item)) for item in value)
        if isinstance(value, (list, tuple)):
            plain = list if kind.__name__ == "immutable_list" else kind
            return plain, [self.value(item) for item in value]
        if kind is slice:
            return kind, [self.value(part) for part in (value.start, value.stop, value.step)]
        if isinstance(value, enum.Enum):
            return kind, value.name
        if isinstance(value, pytree.TreeSpec):
            return "spec", str(value), value == value
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            names = [f.name for f in dataclasses.fields(value)]
            return kind, [(n, self.value(getattr(value, n))) for n in names if hasattr(value, n)]
        if kind.__module__ == "torch.fx.traceback":
            held = {k: v for k, v in vars(value).items() if k not in ("_dict", "_action_string")}
            return kind, self.value(held)
        if kind.__module__.startswith(("sympy", "torch.utils._sympy")):
            return kind, repr(value)
        if isinstance(value, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)):
            return kind, str(value)  # in metadata, torch itself may leave a twin of the registered
        if callable(value) or kind.__module__ in ("typing", "types", "torch"):
            return kind, value
        return kind, repr(value)


@pytest.fixture(scope="session")
def outcome() -> Callable[..., Any]:
    return _outcome


@pytest.fixture(scope="session")
def assert_runs_the_same() -> Callable[..., None]:
    def check(expected: nn.Module, seen: nn.Module, inputs: Any) -> None:
        assert _outcome(expected, inputs) == _outcome(seen, inputs)

    return check


def _outcome(module: nn.Module, inputs: Any) -> Any:
    """What a call gives and what it does to inputs, parameters and buffers, to the bit."""
    given = pytree.tree_map(
        lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, inputs
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        out = module(*given)
    held = (out, given, dict(module.named_parameters()), dict(module.named_buffers()))
    leaves, spec = pytree.tree_flatten(held)
    return [_exactly(leaf) for leaf in leaves], spec


def _exactly(leaf: Any) -> Any:
    if not isinstance(leaf, torch.Tensor):
        return type(leaf), repr(leaf)
    plain = leaf.detach().contiguous()
    bits = plain.cpu().resolve_conj().resolve_neg().flatten().view(torch.uint8).numpy().tobytes()
    facts = leaf.dtype, leaf.device, leaf.shape, leaf.stride(), leaf.requires_grad
    return type(leaf), *facts, bits
