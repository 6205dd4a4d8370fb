"""get_inputs makes what a description says; a hostile one is an error that names the field."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lazyfx_compilers import (
    DumpFormatError,
    MissingDependencyError,
    get_inputs,
    graph_dumper_aot,
)
from lazyfx_compilers.dump import OpaqueSpec, load_dump, read_inputs_spec
from lazyfx_compilers.dump._schema import to_json
from lazyfx_compilers.dump._specs import describe_inputs, encode_spec


def write(folder: Path, *values: Any) -> Path:
    specs = describe_inputs([], values)
    file = folder / "inputs.json"
    file.write_text(to_json("inputs", {"inputs": [encode_spec(s) for s in specs]}))
    return file


DTYPES = [
    getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "complex32", "complex64", "complex128"),
        *("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz"),
        *("float8_e8m0fnu", "float4_e2m1fn_x2"),
    )
    if hasattr(torch, name)
]


@pytest.mark.filterwarnings("ignore:ComplexHalf support is experimental")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["real", "fake"])
def test_every_dtype_with_exact_sizes_strides_and_offsets(dtype, mode, tmp_path):
    base = torch.zeros(40 * dtype.itemsize, dtype=torch.uint8).view(dtype)
    values = [base.as_strided((3, 4), (1, 5), 2), base[:0], base[3:4].reshape(()), base[:7]]
    if mode == "fake":
        with FakeTensorMode() as fake:
            values = [fake.from_tensor(v) for v in values]
    file = write(tmp_path, *values)
    made = get_inputs(file, seed=0)
    for want, got in zip(values, made, strict=True):
        assert type(got) is torch.Tensor
        assert (got.dtype, got.shape, got.stride()) == (want.dtype, want.shape, want.stride())
        assert got.storage_offset() == want.storage_offset()
    raw = [m.untyped_storage().tolist() for m in made]
    assert raw == [m.untyped_storage().tolist() for m in get_inputs(file, seed=0)]
    if dtype.itemsize * 40 > 1 and not (mode == "real" and not dtype.is_floating_point):
        assert len(set(raw[0])) > 1, "all elements are equal"


def test_values_are_sensible(tmp_path):
    values = [torch.zeros(200), torch.zeros(200, dtype=torch.bool), torch.tensor([3, 9, 4] * 50)]
    with FakeTensorMode() as mode:
        index = mode.from_tensor(torch.zeros(200, dtype=torch.int64))
    floats, flags, ranged, small = get_inputs(write(tmp_path, *values, index), seed=1)
    assert 0 <= floats.min() < 0.1 < 0.9 < floats.max() < 1
    assert flags.any()
    assert not flags.all()
    assert (ranged.min(), ranged.max()) == (3, 9)
    assert set(small.tolist()) == {0, 1}


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**62])
def test_the_range_of_the_largest_integers_is_kept(value, tmp_path):
    file = write(tmp_path, torch.full((3,), value))
    assert get_inputs(file)[0].tolist() == [value] * 3


@pytest.mark.filterwarnings("ignore:.*quantize")
def test_a_quantized_tensor_is_not_described_as_a_plain_one(tmp_path):
    file = write(tmp_path, torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8))
    (spec,) = read_inputs_spec(file)
    assert isinstance(spec, OpaqueSpec)
    with pytest.raises(DumpFormatError, match="quint8"):
        get_inputs(file)


def test_python_values_come_back_as_they_were(tmp_path):
    values = [3, -(2**40), 2.5, float("inf"), -0.0, True, None, "tëxt\n", 1 + 2j, ""]
    made = get_inputs(write(tmp_path, *values))
    assert made == values
    assert [type(m) for m in made] == [type(v) for v in values]
    assert str(made[4]) == "-0.0"
    assert str(get_inputs(write(tmp_path, float("nan")))[0]) == "nan"


def test_descriptions_round_trip(tmp_path):
    values = [torch.ones(2, 3).t().requires_grad_(), 3, None, object(), torch.tensor([4, 5])]
    write(tmp_path, *values)
    assert read_inputs_spec(tmp_path) == describe_inputs([], values)


def test_requires_grad_sharing_and_overlap_come_back(tmp_path):
    base = torch.randn(6)
    values = [base, base[2:4], torch.randn(1, 3).expand(4, 3), torch.randn(2, requires_grad=True)]
    one, part, wide, leaf = get_inputs(write(tmp_path, *values))
    part.fill_(7.0)
    assert one[2:4].eq(7.0).all()
    assert wide.stride() == (0, 1)
    assert leaf.requires_grad
    assert leaf.is_leaf


def test_complex_conjugates_come_back_lazy(tmp_path):
    value = torch.randn(3, dtype=torch.complex64).conj()
    (made,) = get_inputs(
        write(
            tmp_path,
            value,
        )
    )
    assert made.is_conj()
    (imaginary,) = get_inputs(write(tmp_path, value.imag))
    assert imaginary.is_neg()


def test_the_global_random_state_is_left_alone_and_a_seed_repeats(tmp_path):
    file = write(tmp_path, torch.zeros(9))
    before = torch.get_rng_state()
    first, second = get_inputs(file), get_inputs(file)
    seeded, again = get_inputs(file, seed=3), get_inputs(file, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first[0], second[0])
    assert torch.equal(seeded[0], again[0])


def test_a_device_can_be_chosen(tmp_path):
    file = write(tmp_path, torch.zeros(2, device="meta"))
    assert get_inputs(file)[0].device.type == "meta"
    assert get_inputs(file, device="cpu")[0].device.type == "cpu"


def test_a_missing_device_is_named(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    file = write(tmp_path, torch.zeros(2))
    file.write_text(file.read_text().replace('"cpu"', '"cuda:0"'))
    with pytest.raises(DumpFormatError, match=r"inputs\[0\].*'cuda:0'.*device='cpu'"):
        get_inputs(file)
    assert get_inputs(file, device="cpu")[0].shape == (2,)


def test_what_cannot_be_described_is_opaque_and_named(tmp_path):
    file = write(tmp_path, 1, torch.eye(3).to_sparse(), object())
    specs = read_inputs_spec(tmp_path)
    assert [isinstance(s, OpaqueSpec) for s in specs] == [False, True, True]
    with pytest.raises(DumpFormatError, match=r"inputs\[1\] \('input_1'\) is a .*sparse_coo"):
        get_inputs(file)


def test_data_that_is_not_there_is_named(tmp_path):
    file = write(tmp_path, torch.zeros(2))
    with pytest.raises(DumpFormatError, match=r"inputs\.safetensors.*example_inputs='data'"):
        get_inputs(file, data=True)


def test_data_that_does_not_fit_the_description_is_named(tmp_path):
    from safetensors.torch import save_file

    file = write(tmp_path, torch.zeros(2))
    for content in (
        {"storage_0": torch.zeros(3, dtype=torch.uint8)},
        {"other": torch.zeros(8, dtype=torch.uint8)},
    ):
        save_file(content, tmp_path / "inputs.safetensors")
        with pytest.raises(DumpFormatError, match=r"inputs\.saf.*: field storage_0 .*expected 8"):
            get_inputs(file, data=True)
    (tmp_path / "inputs.safetensors").write_bytes(b"\xff" * 50)
    with pytest.raises(DumpFormatError, match=r"inputs\.safetensors: cannot be read"):
        get_inputs(file, data=True)


# --- hostile files -------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return (pytest.exit, ("a pickle was executed",))


def good() -> dict[str, Any]:
    tensor = {
        "name": "a", "kind": "tensor", "dtype": "float32", "device": "cpu", "shape": [2, 3],
        "stride": [3, 1], "storage_offset": 0, "storage": 0, "requires_grad": False,
    }  # fmt: skip
    return {"format": "lazyfx.inputs", "version": 1, "inputs": [tensor]}


def changed(**fields: Any) -> str:
    document = good()
    document["inputs"][0].update(fields)
    return json.dumps(document)


def without(field: str) -> str:
    document = good()
    del document["inputs"][0][field]
    return json.dumps(document)


HOSTILE: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", "not JSON"),
    "truncated": (json.dumps(good())[:60], "not JSON"),
    "a pickle": (pickle.dumps(Bomb()), "not JSON"),
    "not a number": (changed(kind="float", value=float("nan")), "NaN is not JSON"),
    "deeply nested": ("[" * 200_000, "not JSON"),
    "an array": ("[]", "the whole file is .*expected an object"),
    "foreign": ('{"a": 1}', "field format is missing"),
    "another file of the dump": ('{"format": "lazyfx.index"}', "field format is 'lazyfx.index'"),
    "from the future": (json.dumps(good() | {"version": 99}), "field version is 99.*newer"),
    "version true": (json.dumps(good() | {"version": True}), "field version is True"),
    "no inputs": (json.dumps(good() | {"inputs": None}), "field inputs is None"),
    "a number for an input": (json.dumps(good() | {"inputs": [3]}), r"field inputs\[0\] is 3"),
    "unknown kind": (changed(kind="module"), r"inputs\[0\]\.kind is 'module'"),
    "unhashable kind": (changed(kind={}), r"inputs\[0\]\.kind is \{\}"),
    "negative size": (changed(shape=[-1, 3]), r"inputs\[0\]\.shape\[0\] is -1"),
    "negative stride": (changed(stride=[-3, 1]), r"inputs\[0\]\.stride\[0\] is -3"),
    "huge size": (changed(shape=[1 << 40, 3]), r"inputs\[0\]\.shape: .*max_bytes"),
    "huge stride": (changed(stride=[1 << 62, 1]), r"inputs\[0\]\.shape: .*max_bytes"),
    "huge offset": (changed(storage_offset=1 << 60), r"inputs\[0\]\.shape: .*max_bytes"),
    "beyond 64 bits": (changed(shape=[1 << 70, 3]), r"inputs\[0\]\.shape\[0\]"),
    "unequal lengths": (changed(stride=[1]), r"inputs\[0\]\.stride is \[1\].*2 numbers"),
    "a dtype that is a function": (changed(dtype="load"), r"inputs\[0\]\.dtype is 'load'"),
    "a dtype that is a path": (changed(dtype="os.system"), r"inputs\[0\]\.dtype"),
    "unknown device": (changed(device="toaster"), r"inputs\[0\]\.device is 'toaster'"),
    "a bool for a size": (changed(shape=[True, 3]), r"inputs\[0\]\.shape\[0\] is True"),
    "a float for a size": (changed(shape=[2.0, 3]), r"inputs\[0\]\.shape\[0\] is 2.0"),
    "a text for a flag": (changed(requires_grad="yes"), r"inputs\[0\]\.requires_grad is 'yes'"),
    "gradients of integers": (changed(dtype="int64", requires_grad=True), r"inputs\[0\]"),
    "a range of one": (changed(dtype="int64", range=[1]), r"inputs\[0\]\.range"),
    "a range upside down": (changed(dtype="int64", range=[2, 1]), r"inputs\[0\]\.range"),
    "no name": (changed(name=None), r"inputs\[0\]\.name is None"),
    "no stride": (without("stride"), r"inputs\[0\]\.stride is missing"),
    "a text for an int": (changed(kind="int", value="3"), r"inputs\[0\]\.value is '3'"),
    "an int for a text": (changed(kind="str", value=3), r"inputs\[0\]\.value is 3"),
    "half a complex": (changed(kind="complex", value=[1]), r"inputs\[0\]\.value is \[1\]"),
    "not UTF-8": (b'{"format": "\xff"}', "not JSON"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_description_names_file_and_field(case, tmp_path):
    content, pattern = HOSTILE[case]
    file = tmp_path / "inputs.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DumpFormatError, match=pattern) as caught:
        get_inputs(file)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DumpFormatError, match="nowhere: cannot be read"):
        get_inputs(tmp_path / "nowhere")
    with pytest.raises(DumpFormatError, match=r"index\.json: cannot be read"):
        load_dump(tmp_path)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(good()["inputs"][0])), json_values, st.booleans())
def test_any_value_in_any_field_is_taken_or_refused_with_a_named_error(
    tmp_path_factory, field, value, drop
):
    file = tmp_path_factory.mktemp("fuzz") / "inputs.json"
    file.write_text(without(field) if drop else changed(**{field: value}))
    try:
        get_inputs(file, max_bytes=1 << 20)
    except DumpFormatError as error:
        message = str(error)
    else:
        message = str(file)
    assert str(file) in message


ENTRY = {"id": "000_joint", "phase": "joint", "compilation": 0, "nodes": 3, "ops": {"a": 1}}
INDEX = {
    "format": "lazyfx.index",
    "version": 1,
    "name": "n",
    "environment": {"torch": "2"},
    "graphs": [ENTRY],
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("id", v) for v in ("../../etc", "..", "", "/etc", 3)],
        *[("nodes", v) for v in (-1, "3", None)],
        *[("ops", v) for v in ([], {"a": "b"}, {"a": -1})],
        ("compilation", 1.5),
    ],
)
def test_a_hostile_index_names_the_field(field, value, tmp_path):
    document = json.loads(json.dumps(INDEX))
    (tmp_path / "index.json").write_text(json.dumps(document))
    assert load_dump(tmp_path).graphs[0].folder == tmp_path / "000_joint"
    document["graphs"][0][field] = value
    (tmp_path / "index.json").write_text(json.dumps(document))
    with pytest.raises(DumpFormatError, match=rf"index\.json: field graphs\[0\]\.{field}"):
        load_dump(tmp_path / "index.json")


def test_the_reference_executes_what_is_in_the_file(tmp_path):
    from torch._functorch.compilers import get_inputs as reference

    class Mark:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    file = tmp_path / "hostile.input"
    file.write_bytes(pickle.dumps([Mark()]))
    with pytest.raises(Exception):
        reference(str(file))
    assert (tmp_path / "executed").exists()
    (tmp_path / "executed").unlink()
    with pytest.raises(DumpFormatError, match="not JSON"):
        get_inputs(file)
    assert not (tmp_path / "executed").exists()


def test_the_reference_makes_only_zeros_for_integers_and_loses_strides(tmp_path):
    from torch._functorch.compilers import get_inputs as reference

    value = torch.zeros(30, 4, dtype=torch.int64).t()
    file = tmp_path / "a.input"
    meta = (torch.Tensor, value.shape, value.stride(), value.dtype, value.device)
    file.write_bytes(pickle.dumps([meta]))
    (theirs,) = reference(str(file))
    assert not theirs.any()
    assert theirs.stride() != value.stride()
    with FakeTensorMode() as mode:
        (ours,) = get_inputs(write(tmp_path, mode.from_tensor(value)))
    assert ours.any()
    assert ours.stride() == value.stride()


@pytest.mark.parametrize("absent", ["safetensors", "numpy"])
def test_data_that_cannot_be_stored_is_refused_at_once_with_the_command(
    tmp_path, monkeypatch, absent
):
    monkeypatch.delitem(sys.modules, "safetensors.torch", raising=False)
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingDependencyError, match=rf"'{absent}'.*lazyfx-compilers\[data\]"):
        graph_dumper_aot("net", tmp_path, example_inputs="data")
    assert not list(tmp_path.iterdir())
