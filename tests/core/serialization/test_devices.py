"""What is stored on one device comes back there, or on another one if that is asked for."""

import io

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from lazyfx_core import (
    LazyGraphModule,
    allow_in_weights_only_load,
    graph_hash,
    load_graph,
    save_graph,
    use_lazy_graph_module,
)
from lazyfx_core.__main__ import main


class Block(nn.Module):
    """A transformer block in training: attention behind a mask, two dropouts."""

    def __init__(self):
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(16), nn.Linear(16, 48, bias=False)
        self.out, self.drop = nn.Linear(16, 16), nn.Dropout(0.3)
        self.register_buffer("mask", torch.ones(6, 6).tril() == 0, persistent=False)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        scores = (q @ k.transpose(-1, -2) * 0.25).masked_fill(self.mask, float("-inf"))
        return x + self.drop(self.out(F.dropout(scores.softmax(-1), 0.2, True) @ v))


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.norm, self.head = nn.BatchNorm2d(4), nn.Linear(4, 5)

    def forward(self, x):
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


class Words(nn.Module):
    """An embedding whose weight is that of the last layer, too."""

    def __init__(self):
        super().__init__()
        self.words, self.last = nn.Embedding(11, 8), nn.Linear(8, 11)
        self.last.weight = self.words.weight

    def forward(self, x):
        return self.last(self.words(x).tanh())


MODELS = {
    "transformer block": (Block, lambda: torch.randn(2, 6, 16)),
    "conv and batch norm": (ConvNet, lambda: torch.randn(2, 3, 6, 6)),
    "embedding": (Words, lambda: torch.randint(11, (2, 7))),
}


def made(name, device):
    """A lazy module over a traced model, and an input: the same numbers on every device."""
    make, values = MODELS[name]
    torch.manual_seed(0)
    with use_lazy_graph_module(True):
        gm = fx.symbolic_trace(make()).to(device)
    assert isinstance(gm, LazyGraphModule)
    return gm, values().to(device)


def devices_of(gm):
    return {one.device for one in (*gm.parameters(), *gm.buffers())}


def assert_same_tensors(one, other):
    """Bit for bit, wherever they are."""
    for left, right in zip((one, other), (other, one), strict=True):
        mine, theirs = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (left, right))
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value.cpu(), theirs[name].cpu()), name


@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_training_goes_through_every_door_on_its_device(
    name, door, device, assert_runs_the_same
):
    gm, x = made(name, device)
    back = door(gm)
    assert devices_of(back) == devices_of(gm)
    assert isinstance(back, LazyGraphModule)
    assert back.needs_recompile
    assert_runs_the_same(gm, back, (x,))


@pytest.mark.parametrize("name", MODELS)
def test_what_is_stored_on_one_device_is_loaded_on_another(name, device, tmp_path):
    gm, x = made(name, device)
    gm.eval()
    for node in gm.graph.find_nodes(op="call_function", target=F.dropout):
        node.kwargs = {**node.kwargs, "training": False}
    gm.recompile()
    path = tmp_path / "graph.safetensors"
    save_graph(gm, path)
    on_cpu = load_graph(path, map_location="cpu")
    assert {one.type for one in devices_of(on_cpu)} == {"cpu"}
    assert_same_tensors(on_cpu, gm)
    close = {"rtol": 1e-4, "atol": 1e-5}  # another device may add up in another order
    torch.testing.assert_close(on_cpu(x.cpu()), gm(x).cpu(), **close)

    save_graph(on_cpu, path)
    for place in (str(device), device, x.device):
        moved = load_graph(path, map_location=place)
        assert devices_of(moved) == {x.device}
        assert_same_tensors(moved, gm)
        torch.testing.assert_close(moved(x), gm(x), **close)
    assert {one.type for one in devices_of(load_graph(path, map_location="meta"))} == {"meta"}
    if name == "embedding":
        assert moved.last.weight is moved.words.weight


def test_torchs_own_files_are_mapped_to_a_device(device, tmp_path):
    gm, x = made("embedding", device)
    expected = gm(x)
    file = io.BytesIO()
    torch.save(gm, file)
    for place, given in (("cpu", x.cpu()), (device, x)):
        file.seek(0)
        back = torch.load(file, map_location=place, weights_only=False)
        assert devices_of(back) == {given.device}
        torch.testing.assert_close(back(given).to(device), expected, rtol=1e-4, atol=1e-5)
    file.seek(0)
    allowed = torch.serialization.get_safe_globals()
    try:
        allow_in_weights_only_load(nn.Embedding, nn.Linear)
        back = torch.load(file, map_location="cpu", weights_only=True)
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(allowed)
    assert_same_tensors(back, gm)


def variety(device):
    """Tensors of many dtypes and layouts, some of them views of one storage."""
    whole = torch.arange(24.0, device=device)
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.complex64, torch.complex128]
    dtypes += [torch.int8, torch.int16, torch.int64, torch.uint8, torch.uint16, torch.bool]
    found = [torch.arange(6).to(dtype).to(device) for dtype in dtypes]
    found += [torch.arange(6, dtype=torch.uint8, device=device).view(torch.float8_e4m3fn)]
    found += [whole, whole[3:9], whole.view(4, 6).t(), whole.view(4, 6)[:, ::2]]
    found += [torch.ones(1, device=device).expand(5), torch.zeros(0, 3, device=device)]
    found += [torch.tensor(1 + 2j, device=device).conj(), torch.ones((), device=device)]
    found += [torch.ones(2, 3, 4, 4, device=device).to(memory_format=torch.channels_last)]
    found += [torch.arange(4)]  # on the CPU, beside the others
    return found


def holding(tensors):
    module = nn.Module()
    graph = fx.Graph()
    graph.output(graph.placeholder("x"))
    for number, tensor in enumerate(tensors):
        module.register_buffer(f"held_{number}", tensor)
    gm = LazyGraphModule(module, graph)
    for number, tensor in enumerate(tensors):
        gm.register_buffer(f"held_{number}", tensor)
    return gm


def facts(tensor):
    bits = tensor.cpu().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8)
    return tensor.dtype, tensor.shape, tensor.stride(), tensor.is_conj(), bits.tolist()


@pytest.mark.parametrize("moved", [False, True], ids=["where they were", "to the cpu"])
def test_tensors_of_every_kind_survive_an_archive(moved, device, tmp_path):
    tensors = variety(device)
    path = tmp_path / "graph.safetensors"
    save_graph(holding(tensors), path)
    back = list(load_graph(path, map_location="cpu" if moved else None).buffers())
    for one, other in zip(tensors, back, strict=True):
        assert facts(one) == facts(other)
        assert other.device == (torch.device("cpu") if moved else one.device)
    whole, part = back[12], back[13]
    whole[4] = 99.0
    assert part[1] == 99.0


def test_what_is_larger_than_a_piece_is_copied_whole(device, tmp_path):
    numbers = torch.arange(3_000_001, dtype=torch.int32)
    tensors = [numbers[:7].clone().to(device), numbers.to(device), numbers[:5].clone()]
    path = tmp_path / "graph.safetensors"
    save_graph(holding(tensors), path)
    back = list(load_graph(path).buffers())
    for one, other in zip(tensors, back, strict=True):
        assert one.device == other.device
        assert torch.equal(one, other)


def test_page_locked_memory_is_stored_as_any_other(cuda, tmp_path):
    pinned = torch.arange(6.0).pin_memory()
    save_graph(holding([pinned]), tmp_path / "graph.safetensors")
    (back,) = load_graph(tmp_path / "graph.safetensors").buffers()
    assert not back.is_pinned()
    assert torch.equal(back, pinned)


def test_a_device_that_cannot_be_used_is_named(tmp_path):
    save_graph(holding([torch.ones(2)]), tmp_path / "graph.safetensors")
    with pytest.raises(ValueError, match=r"map_location='cuda:120' cannot be used .*'cpu'"):
        load_graph(tmp_path / "graph.safetensors", map_location="cuda:120")


def test_a_hash_is_of_the_values_on_the_device(door, device):
    gm, _ = made("conv and batch norm", device)
    before = graph_hash(gm, values=True)
    assert graph_hash(door(gm), values=True) == before
    with torch.no_grad():
        gm.conv.weight[0, 0, 0, 0] += 1.0
    assert graph_hash(gm, values=True) != before
    assert graph_hash(gm) == graph_hash(door(gm))


def test_an_autocast_region_of_a_graph_survives(door, device):
    graphs = []

    def keep(gm, example_inputs):
        graphs.append(gm)
        return gm.forward

    def run(x, weight):
        with torch.autocast(device.type, torch.bfloat16):
            return (x @ weight).relu(), weight.sum()

    x, weight = torch.randn(4, 4).to(device), torch.randn(4, 4).to(device)
    torch.compiler.reset()
    expected = torch.compile(run, backend=keep, fullgraph=True)(x, weight)
    assert expected[0].dtype is torch.bfloat16
    (captured,) = graphs
    gm = LazyGraphModule(captured, captured.graph)
    back = door(gm)
    autocast = [node for node in back.graph.nodes if "autocast" in str(node.target)]
    assert device.type in autocast[0].args
    seen = back(x, weight)
    assert [one.dtype for one in seen] == [torch.bfloat16, torch.float32]
    assert all(map(torch.equal, seen, expected))


@pytest.mark.parametrize("place", ["cuda:0", "cuda:3", "cpu"])
def test_a_graph_that_was_traced_for_cuda_is_stored_without_a_gpu(place, door, tmp_path, capsys):
    def run(x):
        other = torch.arange(4, device=place) + torch.full((), 2)
        return (x.softmax(-1) * other).to("cpu", torch.float16)

    with pytest.MonkeyPatch.context() as patch:
        # where there is a GPU, torch would begin to use the one that is described
        patch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda device: None)
        with FakeTensorMode():
            plain = make_fx(run)(torch.empty(3, 4, device=place))
        gm = LazyGraphModule.from_graphmodule(plain)
        back = door(gm)

    def described(gm):
        return [
            (node.name, pytree.tree_map(str, (node.args, node.kwargs)), node.meta["val"].device)
            for node in gm.graph.nodes
            if node.op != "output"
        ]

    assert described(back) == described(gm)
    assert torch.device(place) in {device for _, _, device in described(back)}
    assert torch.device("cpu") in {device for _, _, device in described(back)}
    assert back.code == gm.code
    assert graph_hash(back) == graph_hash(gm)
    save_graph(gm, tmp_path / "graph.safetensors")
    assert main(["show", str(tmp_path / "graph.safetensors")]) == 0
    assert f"device(type='{place[:4].rstrip(':')}'" in capsys.readouterr().out
