"""torch's own graph passes work on our modules, stale or fresh, as they do on fx.GraphModule.

Passes are where laziness pays, and where a module that is not quite a ``fx.GraphModule`` breaks:
they read ``forward`` and ``code``, copy, subclass, call ``recompile()`` and build new modules.
"""

import operator

import pytest
import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental import const_fold, merge_matmul, normalize, optimization
from torch.fx.passes import (
    annotate_getitem_nodes,
    fake_tensor_prop,
    graph_manipulation,
    graph_transform_observer,
    param_fetch,
    shape_prop,
    split_module,
    split_utils,
    tools_common,
)
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager
from torch.fx.passes.operator_support import OperatorSupport
from torch.fx.passes.utils import common, fuser_utils, source_matcher_utils

from lazyfx_core import LazyGraphModule, use_lazy_graph_module

# torch's const_fold, on any module.
pytestmark = pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node with no")


def through_hand_made_replacement(gm, x):
    fx.replace_pattern(gm, lambda a, b: a * b, lambda a, b: torch.mul(a, b))
    gm.recompile()
    assert "torch.mul" in gm.code
    return gm(x)


def through_replacement_with_filters(gm, x):
    replaced = fx.subgraph_rewriter.replace_pattern_with_filters(
        gm,
        lambda a, b: a * b,
        lambda a, b: torch.mul(a, b),
        [lambda match, original, pattern: True],
    )
    assert len(replaced) == 1
    assert "torch.mul" in gm.code
    return gm(x)


def through_replacement_by_modules(gm, x):
    """Patterns and replacements may be graph modules themselves, ours too."""

    def lazily(function):
        return LazyGraphModule.from_graphmodule(fx.symbolic_trace(function))

    fx.replace_pattern(gm, lazily(lambda a, b: a * b), lazily(lambda a, b: torch.mul(a, b)))
    assert "torch.mul" in gm.code
    return gm(x)


def through_split(gm, x):
    parts = iter(range(100))
    return split_module.split_module(gm, gm, lambda node: next(parts) // 3)(x)


def through_split_by_tags(gm, x):
    computing = [n for n in gm.graph.nodes if n.op not in ("placeholder", "output", "get_attr")]
    for position, node in enumerate(computing):
        node.tag = "first" if position < 2 else "second"
    return split_utils.split_by_tags(gm, ["first", "second"])(x)


def through_const_fold(gm, x):
    """``weight + offset`` does not depend on the input and is folded at the first run."""
    total = next(n for n in gm.graph.nodes if n.target is operator.add)
    product, _ = total.args
    with gm.graph.inserting_before(product):
        weight = product.args[1]
        doubled = gm.graph.call_function(torch.mul, (weight, 2))
    product.replace_input_with(weight, doubled)
    with gm.graph.inserting_after(product):
        halved = gm.graph.call_function(torch.div, (product, 2))
    total.replace_input_with(product, halved)
    gm.recompile()
    folded = const_fold.split_const_subgraphs(gm)
    assert folded.const_subgraph_module is not None
    return folded(x)


class Pointwise(OperatorSupport):
    def is_node_supported(self, submodules, node):
        return node.op in ("call_function", "call_method")


def through_partitioner(gm, x):
    partitioner = CapabilityBasedPartitioner(gm, Pointwise(), allows_single_node_partition=True)
    fused = partitioner.partition_and_fuse()
    assert [n for n in fused.graph.nodes if n.op == "call_module" and "fused" in n.target]
    return fused(x)


def through_fuser(gm, x):
    nodes = [n for n in gm.graph.nodes if n.op in ("call_function", "call_method")][1:3]
    partition = nodes if _takes_lists() else dict.fromkeys(nodes)
    return fuser_utils.fuse_by_partitions(gm, [partition])(x)


def _takes_lists():
    hints = fuser_utils.fuse_by_partitions.__annotations__["partitions"]
    return "dict" not in str(hints).lower()


def through_lifting(gm, x):
    nodes = [n for n in gm.graph.nodes if n.op != "placeholder"]
    comp = split_utils.Component(graph=fx.Graph(), order=0, name="part")
    mapping = {}
    for node in gm.graph.nodes:
        mapping[node] = comp.graph.node_copy(node, lambda n: mapping[n])
    assert nodes
    lifted = common.lift_subgraph_as_module(gm, comp.graph, comp_name="part")
    return (lifted[0] if isinstance(lifted, tuple) else lifted)(x)


def through_shape_prop(gm, x):
    shape_prop.ShapeProp(gm).propagate(x)
    assert all("tensor_meta" in n.meta for n in gm.graph.nodes if n.op != "output")
    return gm(x)


def through_fake_tensor_prop(gm, x):
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake_tensor_prop.FakeTensorProp(gm, mode).propagate(x)
    assert all(n.meta["val"].shape[-1] == 4 for n in gm.graph.nodes if n.op == "call_function")
    return gm(x)


def through_sizes(gm, x):
    graph_manipulation.get_size_of_all_nodes(gm, [x])
    param_fetch.lift_lowering_attrs_to_nodes(gm)
    return gm(x)


def through_pass_manager(gm, x):
    class Mul(PassBase):
        def call(self, graph_module):
            for node in graph_module.graph.find_nodes(op="call_function", target=operator.mul):
                node.target = torch.mul
            return PassResult(graph_module, True)

    result = PassManager([Mul()], run_checks_after_each_pass=True)(gm)
    assert "torch.mul" in result.graph_module.code
    return result.graph_module(x)


def through_transform_observer(gm, x):
    with graph_transform_observer.GraphTransformObserver(gm, "cleaning"):
        gm.graph.eliminate_dead_code()
        gm.recompile()
    return gm(x)


def through_submodule_edits(gm, x):
    gm.add_submodule("branch.leaf", nn.Identity())
    gm.add_submodule("unused", nn.Identity())
    with gm.graph.inserting_before(gm.graph.output_node()):
        leaf = gm.graph.call_module("branch.leaf", (gm.graph.output_node().args[0],))
    gm.graph.output_node().args = (leaf,)
    gm.delete_all_unused_submodules()
    gm.recompile()
    assert not hasattr(gm, "unused")
    return gm(x)


def through_source_partitions(gm, x):
    found = source_matcher_utils.get_source_partitions(gm.graph, [nn.Linear])
    assert found == {}
    return gm(x)


def through_graph_copy(gm, x):
    graph = fx.Graph()
    mapping = {}
    graph.output(graph.graph_copy(gm.graph, mapping))
    return fx.GraphModule(gm, graph)(x)


def through_new_graph(gm, x):
    gm.graph = fx.symbolic_trace(gm).graph
    return gm(x)


def through_draw(gm, x):
    pytest.importorskip("pydot")
    from torch.fx.passes.graph_drawer import FxGraphDrawer

    assert FxGraphDrawer(gm, "drawn").get_dot_graph().to_string()
    return gm(x)


PASSES = {
    "replace_pattern": through_hand_made_replacement,
    "replace_pattern with filters": through_replacement_with_filters,
    "replace_pattern with lazy patterns": through_replacement_by_modules,
    "split_module": through_split,
    "split_by_tags": through_split_by_tags,
    "const_fold": through_const_fold,
    "capability-based partitioner": through_partitioner,
    "fuse_by_partitions": through_fuser,
    "lift_subgraph_as_module": through_lifting,
    "ShapeProp": through_shape_prop,
    "FakeTensorProp": through_fake_tensor_prop,
    "sizes and parameters": through_sizes,
    "PassManager": through_pass_manager,
    "GraphTransformObserver": through_transform_observer,
    "submodule edits": through_submodule_edits,
    "source partitions": through_source_partitions,
    "graph_copy": through_graph_copy,
    "assigning a graph": through_new_graph,
    "graph drawer": through_draw,
    "legalize_graph": lambda gm, x: tools_common.legalize_graph(gm)(x),
    "normalize arguments": lambda gm, x: normalize.NormalizeArgs(gm).transform()(x),
    "normalize operators": lambda gm, x: normalize.NormalizeOperators(gm).transform()(x),
    "merge_matmul": lambda gm, x: merge_matmul.merge_matmul(gm)(x),
    "remove_dropout": lambda gm, x: optimization.remove_dropout(gm)(x),
    "annotate_getitem": lambda gm, x: (
        annotate_getitem_nodes.annotate_getitem_nodes(gm.graph),
        gm(x),
    )[1],
    "eliminate_dead_code and lint": lambda gm, x: (
        gm.graph.eliminate_dead_code(),
        gm.graph.lint(),
        gm.recompile(),
        gm(x),
    )[3],
}


def make(kind, model):
    gm = fx.symbolic_trace(model)
    if kind == "plain":
        return gm
    lazy = LazyGraphModule.from_graphmodule(gm)
    if kind == "fresh":
        lazy.real_recompile()
    assert lazy.needs_recompile == (kind == "stale")
    return lazy


@pytest.mark.parametrize("flag", [False, True], ids=["", "under the flag"])
@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
@pytest.mark.parametrize("name", PASSES)
def test_every_pass_takes_a_graph_module(name, kind, flag, model, x):
    expected = model(x)
    if flag:
        with use_lazy_graph_module(True):
            result = PASSES[name](make(kind, model), x)
    else:
        result = PASSES[name](make(kind, model), x)
    torch.testing.assert_close(result, expected)


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.bn = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.bn(self.conv(x)).relu().mean((2, 3)))


@pytest.fixture
def conv_net(_fixed_seed):
    net = ConvNet()
    net(torch.randn(8, 1, 6, 6))  # batch statistics that are not the identity
    return net.eval()


@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_convolution_and_batch_norm_are_fused(kind, conv_net):
    images = torch.randn(2, 1, 6, 6)
    fused = optimization.fuse(make(kind, conv_net))
    assert not [m for m in fused.modules() if isinstance(m, nn.BatchNorm2d)]
    torch.testing.assert_close(fused(images), conv_net(images), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.ao.quantization is deprecated")
@pytest.mark.filterwarnings("ignore:Please use quant_min and quant_max")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*are deprecated")
@pytest.mark.parametrize("flag", [False, True], ids=["", "under the flag"])
@pytest.mark.parametrize("kind", ["plain", "stale", "fresh"])
def test_quantization_prepares_and_converts(kind, flag, conv_net):
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    images = torch.randn(2, 1, 6, 6)
    outputs = []
    for which in ("plain", kind):
        with use_lazy_graph_module(flag):
            prepared = quantize_fx.prepare_fx(
                make(which, conv_net), get_default_qconfig_mapping("x86"), (images,)
            )
            prepared(images)
            outputs.append(quantize_fx.convert_fx(prepared)(images))
    assert torch.equal(outputs[0], outputs[1])
