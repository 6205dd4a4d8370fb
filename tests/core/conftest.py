import operator
from collections.abc import Iterator

import pytest
import torch
from torch import fx, nn

from lazyfx_core import LazyGraphModule, remove_seam


class Model(nn.Module):
    """Parameters, a submodule, a buffer, a method call and a function call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.weight = nn.Parameter(torch.randn(4))
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (self.linear(torch.sin(x)) * self.weight + self.offset).relu()


@pytest.fixture
def model(device: torch.device) -> Model:
    return Model().to(device)


@pytest.fixture
def plain(model: Model) -> fx.GraphModule:
    return fx.symbolic_trace(model)


@pytest.fixture
def lazy(plain: fx.GraphModule) -> LazyGraphModule:
    gm = LazyGraphModule(plain, plain.graph, "Model")
    assert gm.needs_recompile
    return gm


@pytest.fixture
def x(device: torch.device) -> torch.Tensor:
    return torch.randn(2, 4).to(device)


@pytest.fixture(autouse=True)
def _no_seam_left_behind() -> Iterator[None]:
    yield
    remove_seam()


def replace(gm: fx.GraphModule, old: object, new: object) -> None:
    """Change what every call of ``old`` calls, without telling the module."""
    for node in gm.graph.find_nodes(op="call_function", target=old):
        node.target = new


@pytest.fixture
def mutating() -> LazyGraphModule:
    """``x += 1`` in place, an unused node, names given by hand and a typed placeholder."""
    graph = fx.Graph()
    x = graph.placeholder("x", type_expr=torch.Tensor)
    unused = graph.call_function(torch.cos, (x,))
    unused.name = "never_used"
    added = graph.call_function(operator.iadd, (x, 1))
    graph.output(added)
    return LazyGraphModule({}, graph, "Mutating")
