"""torchao's quantization of exported programs, on lazy graph modules.

Nothing of it knows of lazyfx: ``prepare_pt2e`` and ``convert_pt2e`` annotate, match patterns,
insert observers, fold batch normalization, and call ``recompile()`` after each of their passes.
"""

import copy

import pytest
import torch
from torch import nn

from lazyfx_core import LazyGraphModule, load_graph, recompile_stats, save_graph, verify_graphs
from lazyfx_core import use_lazy_graph_module as use_lazy

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def quantize(net, batches, *, lazy):
    """What torchao's own guide says: export, prepare, calibrate, convert."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with use_lazy(lazy, everywhere=lazy), recompile_stats() as stats:
        exported = torch.export.export(copy.deepcopy(net), batches[:1]).module()
        prepared = prepare_pt2e(exported, quantizer)
        for batch in batches:
            prepared(batch)
        converted = convert_pt2e(prepared)
    return prepared, converted, stats.snapshot()


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    net = Net().eval()
    batches = tuple(torch.randn(4, 3, 8, 8) for _ in range(3))
    return net, batches, *(quantize(net, batches, lazy=lazy) for lazy in (False, True))


def test_lazy_modules_quantize_bit_by_bit_as_plain_ones(both):
    net, batches, (_, plain, _), (prepared, converted, _) = both
    assert isinstance(prepared, LazyGraphModule)
    assert isinstance(converted, LazyGraphModule)
    assert not isinstance(plain, LazyGraphModule)
    for batch in batches:
        assert torch.equal(converted(batch), plain(batch))
        assert not torch.equal(converted(batch), net(batch))  # it is quantized
        torch.testing.assert_close(converted(batch), net(batch), rtol=0, atol=0.05)
    assert [str(node.target) for node in converted.graph.nodes] == [
        str(node.target) for node in plain.graph.nodes
    ]


def test_code_is_generated_a_third_as_often(both):
    _, _, (_, _, plain), (_, _, lazy) = both
    assert lazy.asked == plain.asked
    assert plain.done == plain.asked
    assert lazy.done * 3 <= plain.done


def test_a_quantized_module_goes_through_the_archive(both, tmp_path):
    _, batches, _, (_, converted, _) = both
    save_graph(converted, tmp_path / "net.safetensors", warn=False)
    loaded = load_graph(tmp_path / "net.safetensors")
    assert torch.equal(loaded(batches[0]), converted(batches[0]))


def test_no_pass_of_torchao_forgets_to_recompile(both):
    net, batches, _, _ = both
    with verify_graphs():
        quantize(net, batches, lazy=True)
