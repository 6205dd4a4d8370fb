"""graph_dumper_aot writes every graph once; get_inputs makes what they take."""

import json
import warnings

import pytest
import torch
from functorch.compile import aot_module
from torch import nn

from lazyfx_compilers import DumpFormatError, UnknownOptionError, get_inputs, graph_dumper_aot
from lazyfx_compilers.dump import InputSpec
from lazyfx_compilers.dump._schema import describe_inputs, dumps, read_inputs


def train(function, x):
    function(x).square().sum().backward()


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Linear(8, 2))


def phases(root):
    return sorted(p.parent.relative_to(root).as_posix() for p in root.rglob("graph.json"))


def test_joint_forward_and_backward_of_one_compilation_stand_together(model, tmp_path):
    dumper = graph_dumper_aot("net", tmp_path)
    train(torch.compile(model, backend=dumper), torch.randn(3, 4))
    assert phases(dumper.root) == ["000/backward", "000/forward", "000/joint"]
    code = (dumper.root / "000/forward/graph.py").read_text()
    assert "torch.ops.aten.addmm.default" in code
    assert "f32[3, 8]" in code
    index = json.loads((dumper.root / "index.json").read_text())
    assert {g["phase"] for g in index["graphs"]} == {"joint", "forward", "backward"}
    assert all(g["nodes"] > 3 and g["ops"] for g in index["graphs"])


def test_two_forwards_before_a_backward_do_not_mix(model, tmp_path):
    dumper = graph_dumper_aot("net", tmp_path)
    first = torch.compile(model, backend=dumper)
    second = torch.compile(nn.Linear(4, 4), backend=dumper)
    a, b = first(torch.randn(3, 4)), second(torch.randn(3, 4))
    b.sum().backward()
    a.sum().backward()
    assert phases(dumper.root) == [
        f"{n}/{phase}" for n in ("000", "001") for phase in ("backward", "forward", "joint")
    ]
    for n, targets in (("000", "gelu"), ("001", "addmm")):
        assert targets in (dumper.root / n / "forward/graph.py").read_text()
        assert targets.replace("addmm", "mm") in (dumper.root / n / "backward/graph.py").read_text()
    assert "gelu" not in (dumper.root / "001/backward/graph.py").read_text()


def test_the_same_name_twice_overwrites_nothing(model, tmp_path):
    for _ in range(2):
        torch.compiler.reset()
        train(torch.compile(model, backend=graph_dumper_aot("net", tmp_path)), torch.randn(3, 4))
    assert len(phases(tmp_path / "net")) == 6


def test_its_parts_work_in_aot_module(model, tmp_path):
    dumper = graph_dumper_aot("net", tmp_path)
    function = aot_module(model, dumper.forward, dumper.backward, partition_fn=dumper.partition)
    train(function, torch.randn(3, 4))
    assert phases(dumper.root) == ["000/backward", "000/forward", "000/joint"]


def test_inference_graphs_are_called_so(model, tmp_path):
    dumper = graph_dumper_aot("net", tmp_path)
    with torch.no_grad():
        torch.compile(model, backend=dumper)(torch.randn(3, 4))
    assert phases(dumper.root) == ["000/inference"]


@pytest.mark.parametrize("name", ["a/b", "../../up", "..", "", "C:\\x", "a b.c", "x" * 500, "é"])
def test_any_name_stays_inside_the_folder(name, model, tmp_path):
    folder = tmp_path / "inside"
    dumper = graph_dumper_aot(name, folder)
    with torch.no_grad():
        torch.compile(model, backend=dumper)(torch.randn(3, 4))
    assert dumper.root.parent == folder
    assert list(folder.rglob("graph.json"))
    assert [p.name for p in tmp_path.iterdir()] == ["inside"]


def test_a_folder_that_cannot_be_written_warns_once_and_training_goes_on(model, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    x = torch.randn(3, 4)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        out = torch.compile(model, backend=graph_dumper_aot("net", blocked / "sub"))(x)
        out.sum().backward()
    ours = [w for w in seen if "graph_dumper_aot cannot write" in str(w.message)]
    assert len(ours) == 1
    torch.testing.assert_close(out, model(x))
    assert all(p.grad is not None for p in model.parameters())


def test_no_file_is_a_pickle(model, tmp_path):
    dumper = graph_dumper_aot("net", tmp_path, dump_example_input=True)
    train(torch.compile(model, backend=dumper), torch.randn(3, 4))
    suffixes = {p.suffix for p in tmp_path.rglob("*") if p.is_file()}
    assert suffixes == {".json", ".py", ".safetensors"}


def test_recorded_values_come_back_exactly(model, tmp_path):
    dumper = graph_dumper_aot("net", tmp_path, dump_example_input=True)
    x = torch.randn(4, 3).t()
    train(torch.compile(model, backend=dumper), x)
    inputs = get_inputs(dumper.root / "000/forward", data=True)
    assert any(torch.equal(t, x) and t.stride() == x.stride() for t in inputs)
    assert any(torch.equal(t, model[0].weight) for t in inputs)
    for phase in ("joint", "backward"):
        assert get_inputs(dumper.root / f"000/{phase}", seed=1)


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool,
    torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float8_e4m3fn,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_get_inputs_makes_every_dtype_with_exact_strides(dtype, tmp_path):
    base = torch.zeros(40, dtype=torch.float32).to(dtype)
    given = [base.as_strided((3, 4), (1, 5), 2), base[:0], base[3:4].reshape(())]
    file = tmp_path / "inputs.json"
    file.write_text(dumps(describe_inputs(["a", "b", "c"], given)))
    made = get_inputs(file, seed=0)
    for want, got in zip(given, made, strict=True):
        assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())
    again = get_inputs(file, seed=0)
    for one, two in zip(made, again, strict=True):
        assert torch.equal(one.to(torch.complex128), two.to(torch.complex128))
    if dtype not in (torch.bool, torch.float8_e4m3fn):
        assert len(made[0].flatten().tolist()) == 12
        assert len(set(made[0].flatten().tolist())) > 1


def test_scalars_none_and_symbolic_sizes_come_back(tmp_path):
    from torch.fx.experimental.proxy_tensor import make_fx

    seen = []

    def capture(gm):
        for node in gm.graph.nodes:
            if node.op == "placeholder":
                seen.append(node.meta["val"])

    capture(make_fx(lambda x: x + x.shape[0], tracing_mode="symbolic")(torch.randn(5, 2)))
    given = [3, 2.5, float("inf"), True, None, "text", seen[0].shape[0], seen[0]]
    file = tmp_path / "inputs.json"
    file.write_text(dumps(describe_inputs([], given)))
    made = get_inputs(file)
    assert made[:7] == [3, 2.5, float("inf"), True, None, "text", 5]
    assert made[7].shape == (5, 2)


def test_making_inputs_leaves_the_global_random_state_alone(tmp_path):
    file = tmp_path / "inputs.json"
    file.write_text(dumps(describe_inputs(["a"], [torch.ones(3)])))
    before = torch.get_rng_state()
    get_inputs(file)
    get_inputs(file, seed=3)
    assert torch.equal(before, torch.get_rng_state())


def good():
    return json.loads(dumps(describe_inputs(["a"], [torch.ones(2, 3)])))


def changed(**fields):
    document = good()
    document["inputs"][0].update(fields)
    return json.dumps(document)


HOSTILE = {
    "empty": ("", "cannot be read as JSON"),
    "truncated": (json.dumps(good())[:40], "cannot be read as JSON"),
    "a pickle": ("\x80\x04K\x01.", "JSON"),
    "foreign": ('{"a": 1}', "field 'kind'"),
    "a list": ("[]", "field 'kind'"),
    "deep": ("[" * 100_000, "cannot be read as JSON"),
    "newer": (json.dumps(good() | {"format": 99}), "'format' is 99"),
    "no inputs": (json.dumps(good() | {"inputs": None}), "field 'inputs'"),
    "a number for an input": (json.dumps(good() | {"inputs": [3]}), r"inputs\[0\] is 3"),
    "unknown kind": (changed(kind="module"), r"inputs\[0\]\.kind is 'module'"),
    "negative size": (changed(size=[-1, 3]), r"inputs\[0\]\.size"),
    "huge size": (changed(size=[1 << 40, 1 << 40]), r"inputs\[0\]\.size"),
    "huge stride": (changed(stride=[1 << 39, 1 << 40]), r"inputs\[0\]\.size"),
    "unequal lengths": (changed(stride=[1]), r"inputs\[0\]\.stride"),
    "a dtype that is a function": (changed(dtype="load"), r"inputs\[0\]\.dtype is 'load'"),
    "a dtype that is a path": (changed(dtype="os.system"), r"inputs\[0\]\.dtype"),
    "unknown device": (changed(device="toaster"), r"inputs\[0\]\.device is 'toaster'"),
    "a bool for a size": (changed(size=[True, 3]), r"inputs\[0\]\.size"),
    "no name": (changed(name=None), r"inputs\[0\]\.name"),
    "a text for an int": (changed(kind="int", value="3"), r"inputs\[0\]\.value"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_description_is_an_error_that_names_file_and_field(case, tmp_path):
    text, pattern = HOSTILE[case]
    file = tmp_path / "inputs.json"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(DumpFormatError, match=pattern) as caught:
        get_inputs(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_missing_data_and_opaque_inputs_are_named(tmp_path):
    with pytest.raises(DumpFormatError, match="nowhere"):
        get_inputs(tmp_path / "nowhere")
    file = tmp_path / "inputs.json"
    file.write_text(dumps(describe_inputs(["a"], [torch.ones(2)])))
    with pytest.raises(DumpFormatError, match="dump_example_input=True"):
        get_inputs(file, data=True)
    file.write_text(dumps(describe_inputs(["a"], [object()])))
    with pytest.raises(DumpFormatError, match=r"inputs\[0\] \('a'\) is a builtins\.object"):
        get_inputs(file)


def test_descriptions_round_trip(tmp_path):
    given = [torch.ones(2, 3).t().requires_grad_(), 3, None]
    specs = describe_inputs(["a", "b", "c"], given)
    file = tmp_path / "inputs.json"
    file.write_text(dumps(specs))
    assert read_inputs(file) == specs
    assert specs[0] == InputSpec(
        name="a", kind="tensor", dtype="float32", device="cpu", size=(3, 2), stride=(1, 3),
        requires_grad=True,
    )  # fmt: skip


def test_the_backends_modes_are_checked():
    from lazyfx_compilers.dump import dump_backend

    gm = torch.fx.symbolic_trace(lambda x: x + 1)
    with pytest.raises(UnknownOptionError, match="'everything'"):
        dump_backend(gm, [], example_inputs_mode="everything")
