"""Each model of the zoo against eager: traced, decomposed into operators, compiled, and trained."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.torch_version import TorchVersion
from torch.utils._pytree import tree_leaves, tree_map

import lazyfx_ltc as ltc
from lazyfx_ltc import backend


def _load() -> Any:
    name = "ltc_zoo_models"
    if name not in sys.modules:
        path = Path(__file__).parent / "zoo" / "models.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


ZOO: dict[str, Any] = _load().ZOO
TRACEABLE = [name for name, entry in ZOO.items() if entry.traceable]
TRAINABLE = [name for name, entry in ZOO.items() if entry.trains]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    backend._made.clear()
    # Dynamo leaves nn.LSTM and nn.GRU to eager unless asked; torch 2.6 does not know the setting.
    recurrent = {"allow_rnn": True} if hasattr(torch._dynamo.config, "allow_rnn") else {}
    with torch._dynamo.config.patch(recurrent):
        yield
    torch._dynamo.reset()


def entry_of(name: str, device: torch.device) -> Any:
    """An entry whose models and inputs are on the device."""
    entry = ZOO[name]
    if (missing := entry.missing()) is not None:
        pytest.skip(missing)

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, torch.Tensor) else value

    return dataclasses.replace(
        entry,
        make=lambda: entry.make().to(device),
        inputs=lambda seed: tree_map(moved, entry.inputs(seed)),
    )


def compilable(name: str, device: torch.device) -> Any:
    """An entry that Dynamo of this torch can take."""
    entry = entry_of(name, device)
    if "transformers" in entry.needs and TorchVersion(torch.__version__) < (2, 7):
        pytest.skip(
            "Dynamo of torch 2.6 cannot trace transformers 5: it asks a code object for names"
        )
    return entry


def agree(
    entry: Any, ours: Any, theirs: Any, modules: tuple[nn.Module, nn.Module], **close: float
) -> None:
    """Calls with other values, enough to try all ways of running: results, arguments, buffers."""
    placed = [one for one in tree_leaves(entry.inputs(0)) if isinstance(one, torch.Tensor)]
    if any(one.is_cuda for one in placed):  # where eager may choose a kernel of cuDNN's
        close = {"rtol": 1e-3, "atol": 1e-3}
    for seed in range(1, 9):
        given, twin = entry.inputs(seed), entry.inputs(seed)
        with torch.no_grad():
            torch.manual_seed(seed)
            want = theirs(*twin)
            torch.manual_seed(seed)
            got = ours(*given)
        torch.testing.assert_close(got, want, **close)
        torch.testing.assert_close(given, twin, **close)
    torch.testing.assert_close(modules[0].state_dict(), modules[1].state_dict(), **close)


def whole(entry: Any) -> bool:
    return entry.fullgraph or hasattr(torch._dynamo.config, "allow_rnn")


def eager_share() -> float:
    """The share of nodes that run as in eager, of all graphs that were compiled."""
    nodes, eager = 0, 0
    for graph in backend._made:
        nodes += sum(node.op == "call_function" for node in graph.graph.nodes)
        if isinstance(graph, ltc.PartitionedGraph):
            eager += sum(len(one.nodes) for one in graph.segments if one.captured is None)
    return eager / nodes


def extracted(entry: Any, gm: fx.GraphModule) -> None:
    twin = copy.deepcopy(gm)
    with torch.no_grad():
        compiled = ltc.extract_compiled_graph(gm, entry.inputs(0))
    agree(entry, compiled, twin, (gm, twin))


@pytest.mark.parametrize("name", TRACEABLE)
def test_a_traced_model_agrees_with_eager(name: str, traced: Any, device: torch.device) -> None:
    entry = entry_of(name, device)
    extracted(entry, traced(entry.make().eval()))


@pytest.mark.parametrize("name", ZOO)
def test_a_model_as_operators_agrees_with_eager(name: str, device: torch.device) -> None:
    entry = entry_of(name, device)
    with torch.no_grad():
        gm = make_fx(entry.make().eval())(*entry.inputs(0))
    extracted(entry, gm)


@pytest.mark.once
@pytest.mark.parametrize("name", ZOO)
def test_a_compiled_model_agrees_with_eager_and_nothing_of_it_runs_eagerly(
    name: str, device: torch.device
) -> None:
    entry = compilable(name, device)
    theirs, ours = entry.make().eval(), entry.make().eval()
    compiled = torch.compile(ours, backend="lazyfx_ltc", fullgraph=whole(entry))
    # AOTAutograd takes bilinear upsampling apart; the same bits come from backend="aot_eager".
    close = {"rtol": 1e-4, "atol": 5e-5} if "bilinear" in name else {}
    agree(entry, compiled, theirs, (ours, theirs), **close)
    assert len(backend._made) >= 1
    assert eager_share() == 0


@pytest.mark.parametrize(
    "freeze", [False, pytest.param(True, marks=pytest.mark.once)], ids=["bound", "frozen"]
)
@pytest.mark.parametrize("name", ZOO)
def test_a_model_without_a_trace_agrees_with_eager(
    name: str, freeze: bool, device: torch.device
) -> None:
    entry = entry_of(name, device)
    theirs, ours = entry.make().eval(), entry.make().eval()
    compiled = ltc.compile(ours, freeze=freeze)
    # Batch normalization within a convolution rounds otherwise, layer upon layer.
    close = {"rtol": 1e-4, "atol": 1e-4} if freeze else {}
    agree(entry, compiled, theirs, (ours, theirs), **close)
    assert compiled.fallbacks == ()
    assert compiled.captures == 1


@pytest.mark.once
@pytest.mark.parametrize("name", TRAINABLE)
def test_two_steps_of_training_agree_with_eager(name: str, device: torch.device) -> None:
    entry = compilable(name, device)
    theirs, ours = entry.make(), entry.make()
    compiled = torch.compile(ours, backend="lazyfx_ltc", fullgraph=whole(entry))
    # AOTAutograd draws the dropout inside of nn.LSTM in another order than eager does.
    eager = theirs if entry.fullgraph else torch.compile(theirs, backend="aot_eager")
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.01) for one in (theirs, ours)]
    for seed in (0, 1):
        losses = []
        for model, optimizer in zip((eager, compiled), optimizers, strict=True):
            torch.manual_seed(seed)
            loss = entry.loss(model(*entry.inputs(seed)))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(theirs.state_dict(), ours.state_dict(), rtol=1e-4, atol=1e-5)
    assert eager_share() <= 0.05


@pytest.mark.parametrize("name", ["bert sdpa", "bert eager", "resnet18"])
def test_ten_steps_of_training_end_with_eagers_parameters(name: str, device: torch.device) -> None:
    entry = compilable(name, device)
    theirs, ours = entry.make(), entry.make()
    compiled = torch.compile(ours, backend="lazyfx_ltc", fullgraph=True)
    optimizers = [torch.optim.SGD(one.parameters(), lr=0.01) for one in (theirs, ours)]
    for seed in range(10):
        for model, optimizer in zip((theirs, compiled), optimizers, strict=True):
            torch.manual_seed(seed)
            optimizer.zero_grad()
            entry.loss(model(*entry.inputs(seed))).backward()
            optimizer.step()
    mine = ours.state_dict()
    worst = max(
        (value.float() - mine[key].float()).abs().max().item()
        for key, value in theirs.state_dict().items()
    )
    assert worst <= (1e-5 if device.type == "cpu" else 1e-3)
