"""What a model creates lands on the lazy device, however the device is written."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lazyfx_ltc as ltc

X = torch.randn(3, 4)
CPU = torch.device("cpu")  # or the device of the tests, see `there`
FACTORIES: dict[str, tuple[Any, tuple[Any, ...], dict[str, Any]]] = {
    "zeros": (torch.zeros, (4,), {}),
    "ones with a device": (torch.ones, (4,), {"device": CPU}),
    "ones with a device as text": (torch.ones, (4,), {"device": "cpu"}),
    "full": (torch.full, ((4,), 0.3), {}),
    "arange": (torch.arange, (4,), {}),
    "tensor": (torch.tensor, ([1.0, 2.0, 3.0, 4.0],), {}),
    "a zero-dimensional tensor": (torch.tensor, (2.5,), {}),
    "scalar_tensor": (torch.scalar_tensor, (2.5,), {}),
    "rand": (torch.rand, (3, 4), {}),
    "randn": (torch.randn, (3, 4), {"device": CPU, "dtype": torch.float64}),
    "aten zeros": (torch.ops.aten.zeros.default, ([4],), {}),
    "aten ones": (torch.ops.aten.ones.default, ([4],), {"device": CPU, "pin_memory": False}),
    "aten full": (torch.ops.aten.full.default, ([4], 2), {"dtype": torch.float32, "device": CPU}),
    "linspace": (torch.linspace, (0, 1, 4), {}),
    "eye": (torch.eye, (3, 4), {}),
    "aten arange": (torch.ops.aten.arange.default, (4,), {"device": CPU}),
}


def there(kwargs: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Keywords that name the device where they named the CPU, or nothing, and it is another."""
    if device.type == "cpu":
        return kwargs
    return {**kwargs, "device": device.type if kwargs.get("device") == "cpu" else device}


def graph_with(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.GraphModule:
    graph = fx.Graph()
    a = graph.placeholder("a")
    made = graph.call_function(target, args, kwargs)
    graph.output(graph.call_function(operator.add, (a, made)))
    return fx.GraphModule(nn.Module(), graph)


@pytest.mark.parametrize("case", FACTORIES.values(), ids=FACTORIES.keys())
def test_factories_agree_with_eager(
    case: Any, agrees: Callable[..., Any], device: torch.device
) -> None:
    target, args, kwargs = case
    agrees(graph_with(target, args, there(kwargs, device)), X)


@pytest.mark.parametrize("target", [torch.zeros, torch.ones, torch.rand, torch.arange, torch.empty])
def test_what_a_factory_made_can_be_viewed_and_written(
    target: Any, agrees: Callable[..., Any], device: torch.device
) -> None:
    graph = fx.Graph()
    a = graph.placeholder("a")
    made = graph.call_function(target, (4,), there({"dtype": torch.float32}, device))
    # Filled before it is read: what `empty` hands out may hold NaN, in one run and not the next.
    known = graph.call_method("fill_", (graph.call_method("narrow", (made, 0, 1, 2)), 3.0))
    written = graph.call_method("mul_", (known, 2.0))
    filled = graph.call_method("fill_", (graph.call_method("narrow", (made, 0, 0, 1)), 7.0))
    rest = graph.call_method("fill_", (graph.call_method("narrow", (made, 0, 3, 1)), 1.0))
    both = graph.call_method("unsqueeze", (made, 0))
    graph.output((both, graph.call_function(operator.add, (a, made)), written, filled, rest))
    agrees(fx.GraphModule(nn.Module(), graph), X)


METHODS: dict[str, Callable[[Any, torch.device], Any]] = {
    "cpu or cuda": lambda a, d: getattr(a + 1, d.type)() * 2,
    "to text": lambda a, d: (a + 1).to(d.type) * 2,
    "to a device": lambda a, d: (a + 1).to(d) * 2,
    "to a device and a type": lambda a, d: (a + 1).to(d, torch.float64) * 2,
    "to by keyword": lambda a, d: (a + 1).to(device=d.type, dtype=torch.float16) * 2,
    "to the number of a GPU": lambda a, d: (a + 1).to(0 if d.type == "cuda" else d) * 2,
    "new_zeros": lambda a, d: a + a.new_zeros(3, 4, device=d),
    "zeros_like": lambda a, d: a + torch.zeros_like(a, device=d.type),
    "the device of a tensor": lambda a, d: a + torch.ones(4, device=a.device),
    "nothing is moved": lambda a, d: (a.to(d.type), a.to(d), getattr(a, d.type)()),
}


@pytest.mark.parametrize("case", METHODS.values(), ids=METHODS.keys())
def test_moves_to_the_models_own_device_agree_with_eager(
    case: Callable[[Any, torch.device], Any], agrees: Callable[..., Any], device: torch.device
) -> None:
    agrees(lambda a: case(a, device), X)


class Leaf(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kind = x.device.type
        place = {} if kind == "cpu" else {"device": kind}  # the CPU goes without saying
        made = torch.arange(4, device=kind) + torch.ones(4, **place)
        return getattr(x + made + torch.tensor([1, 2, 3, 4], **place), kind)().to(kind)


def test_python_code_of_leaf_modules_agrees_with_eager(agrees: Callable[..., Any]) -> None:
    class Everything(fx.Tracer):
        def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
            return True

    model = nn.Sequential(Leaf())
    agrees(fx.GraphModule(model, Everything().trace(model)), X)


def test_a_make_fx_graph_with_factories_agrees_with_eager(
    agrees: Callable[..., Any], device: torch.device
) -> None:
    def f(a: torch.Tensor) -> torch.Tensor:
        table = torch.tensor([1.0, 2.0, 3.0, 4.0], device=a.device)
        return a + torch.ones(4, device=a.device) * torch.arange(4, device=a.device) + table

    agrees(make_fx(f)(X.to(device)), X)


def test_force_lazy_device_edits_the_model_in_place() -> None:
    gm = graph_with(torch.zeros, (3, 4), {})
    nested = gm.graph.find_nodes(op="call_function", target=torch.zeros)[0]
    with gm.graph.inserting_after(nested):
        gm.graph.call_function(torch.full, ((4,), 1.0), {"device": CPU})
    assert ltc.force_lazy_device(gm) is None
    devices = [node.kwargs["device"] for node in gm.graph.nodes if "device" in node.kwargs]
    assert devices == [torch.device("lazy", 0)] * 2
    assert "device(type='lazy', index=0)" in gm.code
    ltc.initialize()
    assert gm(X.to("lazy")).device.type == "lazy"


def test_force_lazy_device_leaves_other_nodes_alone() -> None:
    gm = fx.symbolic_trace(lambda a: torch.zeros_like(a) + a.new_ones(3))
    before = str(gm.graph)
    ltc.force_lazy_device(gm)
    assert str(gm.graph) == before
