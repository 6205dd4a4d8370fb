"""The file of the safe archive: what goes in comes back, other tools read it, nothing is torn."""

import contextlib
import gc
import hashlib
import json
import os
import stat
import threading
import warnings
import zlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from torch._subclasses import FakeTensorMode

from lazyfx_core import _container
from lazyfx_core._container import read_container, read_structure, write_container
from lazyfx_core._tensor_table import storable_dtypes
from lazyfx_core.errors import GraphFormatError, SerializationError


@pytest.fixture
def path(tmp_path):
    return tmp_path / "graph.safetensors"


def raw_bytes(tensor):
    """All bytes of the storage of a tensor."""
    storage = tensor.untyped_storage()
    return bytes(torch.empty(0, dtype=torch.uint8).set_(storage).tolist())


def facts(tensor):
    """Whatever must survive, values included, bit by bit."""
    return {
        "class": type(tensor),
        "dtype": tensor.dtype,
        "size": tensor.shape,
        "stride": tensor.stride(),
        "offset": tensor.storage_offset(),
        "device": tensor.device,
        "requires_grad": tensor.requires_grad,
        "leaf": tensor.is_leaf,
        "conj": tensor.is_conj(),
        "neg": tensor.is_neg(),
        "buffer": isinstance(tensor, nn.Buffer),
        "persistent": getattr(tensor, "persistent", None),
        "inference": tensor.is_inference(),
        "nbytes": tensor.untyped_storage().nbytes(),
        "bytes": None if tensor.device.type == "meta" else raw_bytes(tensor),
    }


def round_trip(path, tensors, **options):
    write_container(path, b"structure", tensors, names=None)
    structure, back = read_container(path, **options)
    assert structure == b"structure"
    return back


def of_dtype(dtype):
    """Sixteen elements of any dtype, from bytes: factories refuse or warn about some."""
    data = torch.arange(16 * dtype.itemsize, dtype=torch.uint8) % 2
    return data.view(dtype)


COMPLEX = torch.complex(torch.arange(4.0), torch.ones(4))
CASES = {
    "plain": lambda: torch.randn(3, 4),
    "no dimensions": lambda: torch.tensor(3.5),
    "no elements": lambda: torch.empty(0, 3),
    "no elements, offset beyond its storage": lambda: torch.empty(3, 0).narrow(0, 2, 1),
    "no elements of a long storage": lambda: torch.ones(5)[5:],
    "a column": lambda: torch.arange(12.0).view(3, 4)[:, 1],
    "transposed": lambda: torch.arange(12.0).view(3, 4).t(),
    "every other": lambda: torch.arange(12)[1::2],
    "expanded": lambda: torch.ones(1).expand(5, 6),
    "overlapping": lambda: torch.arange(10.0).unfold(0, 4, 1),
    "channels last": lambda: torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
    "strange stride of a dimension of one": lambda: torch.ones(4).as_strided((1, 4), (999, 1)),
    "sixty-four dimensions": lambda: torch.ones([1] * 64),
    "conjugate": lambda: COMPLEX.conj(),
    "negative": lambda: COMPLEX.conj().imag,
    "conjugate and transposed": lambda: COMPLEX.view(2, 2).mH,
    "real part": lambda: COMPLEX.real,
    "parameter": lambda: nn.Parameter(torch.randn(2)),
    "frozen parameter": lambda: nn.Parameter(torch.arange(3), requires_grad=False),
    "complex parameter": lambda: nn.Parameter(COMPLEX.clone()),
    "buffer": lambda: nn.Buffer(torch.randn(2)),
    "temporary buffer": lambda: nn.Buffer(torch.randn(2), persistent=False),
    "needs gradients": lambda: torch.randn(2, requires_grad=True),
    "on meta": lambda: torch.empty(3, 4, device="meta").t(),
    "huge on meta": lambda: torch.empty(1 << 40, 1 << 20, device="meta", dtype=torch.int8),
    "not a number": lambda: torch.tensor([float("nan"), float("-inf"), -0.0]),
    "a dtype seen as another": lambda: torch.arange(6, dtype=torch.int16).view(torch.int8)[2:],
    "copied on write": lambda: torch._lazy_clone(torch.ones(3)),
}


@pytest.mark.parametrize("case", CASES)
def test_a_tensor_comes_back_with_all_that_it_was(path, case):
    tensor = CASES[case]()
    (back,) = round_trip(path, [tensor])
    assert facts(back) == facts(tensor)
    assert not back._is_view()


@pytest.mark.parametrize("name", sorted(storable_dtypes()))
def test_every_dtype_of_this_torch_comes_back_without_a_warning(path, name):
    tensor = of_dtype(storable_dtypes()[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (back,) = round_trip(path, [tensor])
    assert back.dtype == tensor.dtype
    assert raw_bytes(back) == raw_bytes(tensor)
    assert len(load_file(path)) == 3


@st.composite
def views(draw):
    """Some storages, and tensors that are views into them, any size, stride and offset."""
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=3))
    storages = [torch.arange(n, dtype=torch.uint8).untyped_storage() for n in lengths]
    tensors = []
    for _ in range(draw(st.integers(1, 6))):
        storage = draw(st.sampled_from(storages))
        dtype = draw(st.sampled_from([torch.uint8, torch.int16, torch.float32, torch.complex128]))
        left = storage.nbytes() // dtype.itemsize - 1
        if left < 0:
            size, stride, offset = (0, 2), (2, 1), 0
        else:
            offset = draw(st.integers(0, left))
            size, stride, left = [], [], left - offset
            for _ in range(draw(st.integers(0, 3))):
                n, step = draw(st.integers(0, 4)), draw(st.integers(0, 5))
                if n and (n - 1) * step > left:
                    n = 1
                size.append(n)
                stride.append(step)
                left -= max(n - 1, 0) * step
        tensors.append(torch.empty(0, dtype=dtype).set_(storage, offset, size, stride))
    order = draw(st.lists(st.integers(0, len(tensors) - 1), max_size=8))
    return [tensors[i] for i in order]


@settings(max_examples=150, deadline=None)
@given(tensors=views())
def test_views_of_storages_come_back_as_views_of_storages(tmp_path_factory, tensors):
    path = tmp_path_factory.mktemp("views") / "file"
    back = round_trip(path, tensors)
    assert [facts(t) for t in back] == [facts(t) for t in tensors]
    for i in range(len(tensors)):
        for j in range(i):
            assert (back[i] is back[j]) == (tensors[i] is tensors[j])
            same = tensors[i].untyped_storage()._cdata == tensors[j].untyped_storage()._cdata
            assert same == (back[i].untyped_storage()._cdata == back[j].untyped_storage()._cdata)


def test_a_write_through_one_view_shows_in_the_others(path):
    whole = torch.arange(6.0)
    matrix, row, bits = round_trip(path, [whole.view(2, 3), whole[3:], whole.view(torch.int32)])
    matrix[1, 0] = 7.0
    assert row[0] == 7.0
    bits[3] = 0
    assert matrix[1, 0] == 0.0


def test_two_arrays_over_the_same_memory_come_back_as_one_storage(path):
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(4.0)
    first, second = round_trip(path, [torch.from_numpy(array), torch.from_numpy(array)])
    first[0] = 9.0
    assert second[0] == 9.0


def test_memory_shared_in_part_through_two_storages_is_refused_by_name(path):
    memory = bytearray(16)
    whole = torch.frombuffer(memory, dtype=torch.uint8)
    part = torch.frombuffer(memory, dtype=torch.uint8, count=4, offset=8)
    with pytest.raises(SerializationError, match=r"'whole'.*'part'.*clone one of them"):
        write_container(path, b"", [whole, part], names=["whole", "part"])


def test_no_tensors_and_no_structure_make_a_file_too(path):
    write_container(path, b"", [])
    assert read_container(path) == (b"", [])
    assert read_structure(path) == (b"", [])


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_tensors_may_end_anywhere_in_a_piece(path, monkeypatch, extra):
    monkeypatch.setattr(_container, "PIECE", 64)
    tensors = [torch.arange(64 + extra, dtype=torch.uint8), torch.arange(300), torch.ones(7)]
    back = round_trip(path, tensors)
    assert [facts(t) for t in back] == [facts(t) for t in tensors]


def test_files_larger_than_a_piece_come_back(path):
    tensor = torch.arange(5 * (1 << 20), dtype=torch.int32)
    (back,) = round_trip(path, [tensor])
    assert torch.equal(back, tensor)
    content = bytearray(path.read_bytes())
    content[20 << 18] ^= 1
    path.write_bytes(content)
    with pytest.raises(GraphFormatError, match="tensors_sha256"):
        read_container(path)


def test_storages_of_odd_length_do_not_leave_others_misaligned(path):
    odd = torch.arange(13, dtype=torch.uint8).untyped_storage()
    tensors = [
        torch.empty(0, dtype=torch.int64).set_(odd, 0, (1,), (1,)),
        torch.empty(0, dtype=torch.int32).set_(odd, 1, (2,), (1,)),
        torch.tensor(True),
        torch.arange(3.0, dtype=torch.float64),
        torch.arange(3, dtype=torch.int16),
        torch.ones(32),
    ]
    back = round_trip(path, tensors)
    for tensor, original in zip(back, tensors, strict=True):
        assert facts(tensor) == facts(original)
        assert tensor.data_ptr() % tensor.dtype.itemsize == 0
    assert back[-1].data_ptr() % 64 == 0


# What other tools see.


def test_other_tools_read_weights_by_name_in_their_own_shape_and_dtype(path):
    weight, embedding = nn.Parameter(torch.randn(2, 3)), torch.randn(4, 2).bfloat16()
    write_container(
        path,
        b"graph",
        [weight.data[0], weight, embedding, weight, torch.arange(6.0)[::2]],
        names=["row", "fc.weight", "embed", "tied", "every other"],
    )
    with safe_open(path, "pt") as file:
        assert file.metadata()["format"] == "lazyfx-graph"
        found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert found.keys() == {
        *("fc.weight", "embed", "every other", "lazyfx.structure", "lazyfx.tensors")
    }
    assert torch.equal(found["fc.weight"], weight.data)
    assert torch.equal(found["embed"], embedding)
    assert torch.equal(found["every other"], torch.arange(6.0))
    assert zlib.decompress(bytes(found["lazyfx.structure"].tolist())) == b"graph"
    table = json.loads(bytes(found["lazyfx.tensors"].tolist()))
    assert [row["name"] for row in table["tensors"]] == [
        *("row", "fc.weight", "embed", "tied", "every other")
    ]


def test_a_conjugated_weight_is_not_shown_to_other_tools_as_if_it_were_plain(path):
    write_container(path, b"", [COMPLEX.conj()], names=["w"])
    assert load_file(path)["w"].dtype == torch.uint8


def test_names_become_keys_that_are_unique_printable_and_short(path):
    names = ["w", "w", "w~2", "", "a\nb\x1b[31m\u202e", "x" * 500, "x" * 500, "lazyfx.tensors"]
    names += ["__metadata__", "\ud800", "größe 重み"]
    tensors = [torch.tensor(float(i)) for i in range(len(names))]
    write_container(path, b"", tensors, names=names)
    keys = [key for key in load_file(path) if key not in ("lazyfx.structure", "lazyfx.tensors")]
    assert len(keys) == len(names)
    assert all(key.isprintable() and 0 < len(key) <= 200 for key in keys)
    assert {"w", "w~2", "w~2~2", "tensor3", "a_b_[31m_", "größe 重み"} <= set(keys)
    assert read_container(path)[1] == tensors
    assert [info.name for info in read_structure(path)[1]][:5] == [
        *("w", "w", "w~2", "tensor3", "a_b_[31m_")
    ]


def test_the_digests_are_what_the_specification_says(path):
    tensors = [torch.arange(3 << 20), torch.ones(3), torch.tensor(True)]
    write_container(path, b"structure" * 99, tensors)
    content = path.read_bytes()
    length = 8 + int.from_bytes(content[:8], "little")
    assert length % 64 == 0
    header = json.loads(content[8:length])
    begin = length + header["lazyfx.structure"]["data_offsets"][0]
    assert begin + sum(header[k]["shape"][0] for k in header if k.startswith("lazyfx.")) == len(
        content
    )
    values, piece = content[length:begin], 8 << 20
    pieces = [values[i : i + piece] for i in range(0, len(values), piece)]
    assert len(pieces) > 2
    together = b"".join(hashlib.sha256(p).digest() for p in pieces)
    metadata = header["__metadata__"]
    assert metadata.pop("tensors_sha256") == hashlib.sha256(together).hexdigest()
    stated = metadata.pop("structure_sha256")
    blank = content[:length].replace(stated.encode(), b"0" * 64)
    assert stated == hashlib.sha256(blank + content[begin:]).hexdigest()
    assert metadata == {"format": "lazyfx-graph", "schema": "1"}


def test_equal_contents_make_equal_files(tmp_path):
    for name in "ab":
        tensors = [torch.ones(3), torch.arange(4)]
        write_container(tmp_path / name, b"structure", tensors, names=["x", "y"])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_viewer_gets_the_facts_without_the_values(path):
    weight = nn.Parameter(torch.randn(2, 3))
    tensors = [weight, weight.data.t(), torch.ones(1).expand(5), torch.ones(2, device="meta")]
    write_container(path, b"graph", [*tensors, weight], names=["w", "t", "e", "m", "again"])
    content = bytearray(path.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    content[begin : begin + 28] = bytes(28)  # the values are not looked at
    path.write_bytes(content)
    structure, infos = read_structure(path)
    assert structure == b"graph"
    assert [i.name for i in infos] == ["w", "t", "e", "m", "again"]
    assert [i.shape for i in infos] == [(2, 3), (3, 2), (5,), (2,), (2, 3)]
    assert [i.stride for i in infos] == [(3, 1), (1, 3), (0,), (1,), (3, 1)]
    assert [i.nbytes for i in infos] == [24, 24, 20, 8, 24]
    assert [i.storage_nbytes for i in infos] == [24, 24, 4, 8, 24]
    assert [i.shares_storage_with for i in infos] == [None, 0, None, None, 0]
    assert [i.kind for i in infos] == ["parameter", "tensor", "tensor", "tensor", "parameter"]
    assert [str(i.device) for i in infos] == ["cpu", "cpu", "cpu", "meta", "cpu"]
    assert infos[0].dtype is torch.float32
    assert infos[0].requires_grad
    _, unchecked = read_container(path, check_tensors=False)
    assert unchecked[0].sum() == 0
    with pytest.raises(GraphFormatError, match="tensors_sha256"):
        read_container(path)


# What cannot be stored.


class Subclass(torch.Tensor):
    pass


def freed():
    tensor = torch.ones(4)
    tensor.untyped_storage().resize_(0)
    return tensor


REFUSED = {
    "sparse": (lambda: torch.eye(3).to_sparse(), r"sparse_coo.*to_dense"),
    "compressed": (lambda: torch.eye(3).to_sparse_csr(), r"sparse_csr.*to_dense"),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested"),
    "jagged": (
        lambda: torch.nested.nested_tensor([torch.ones(2)], layout=torch.jagged),
        "NestedTensor",
    ),
    "mkldnn": (lambda: torch.eye(3).to_mkldnn(), r"mkldnn.*to_dense"),
    "fake": (lambda: FakeTensorMode().from_tensor(torch.ones(2)), "FakeTensor"),
    "functional": (lambda: torch._to_functional_tensor(torch.ones(2)), "without memory"),
    "zero": (lambda: torch._efficientzerotensor((2,)), "without memory"),
    "subclass": (lambda: Subclass(), r"Subclass.*plain torch.Tensor"),
    "parameter of a subclass": (lambda: nn.Parameter(Subclass()), "Subclass"),
    "uninitialized": (lambda: nn.UninitializedParameter(), "UninitializedParameter"),
    "freed": (freed, "needs 16 bytes and its storage has 0"),
    "many dimensions": (lambda: torch.ones([1] * 65), "65 dimensions"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_what_is_not_plain_memory_is_refused_by_name(path, case):
    make, message = REFUSED[case]
    path.write_bytes(b"old")
    with pytest.raises(SerializationError, match=message) as caught:
        write_container(path, b"", [torch.ones(1), make()], names=["fine", "offender"])
    assert "tensors[1] ('offender')" in str(caught.value)
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.filterwarnings("ignore:.*quantize:UserWarning")
def test_a_quantized_tensor_is_refused_by_name(path):
    tensor = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
    with pytest.raises(SerializationError, match=r"tensors\[0\] \('q'\) is quantized.*dequantize"):
        write_container(path, b"", [tensor], names=["q"])


def test_a_tensor_inside_a_transformation_is_refused(path):
    with pytest.raises(SerializationError, match="without memory of its own"):
        torch.func.vmap(lambda x: write_container(path, b"", [x]))(torch.ones(2, 3))
    assert not path.exists()


def test_what_is_no_tensor_and_names_that_do_not_fit_are_told_apart(path):
    with pytest.raises(TypeError, match=r"tensors\[1\] \('b'\) is 3.0, expected a tensor"):
        write_container(path, b"", [torch.ones(1), 3.0], names=["a", "b"])
    with pytest.raises(TypeError, match=r"names\[0\] is 7"):
        write_container(path, b"", [torch.ones(1)], names=[7])
    with pytest.raises(ValueError, match="1 tensors and 2 names"):
        write_container(path, b"", [torch.ones(1)], names=["a", "b"])


# Modes that would have operations pretended.


@pytest.mark.parametrize(
    "mode",
    [
        FakeTensorMode,
        lambda: torch.device("meta"),
        torch.inference_mode,
        torch.no_grad,
        lambda: torch.overrides.BaseTorchFunctionMode(),
    ],
)
def test_modes_around_the_call_change_nothing(path, mode):
    tensors = [torch.arange(12.0).view(3, 4).t(), nn.Parameter(torch.ones(2)), COMPLEX.conj()]
    tensors += [nn.Buffer(torch.ones(2)), torch.empty(2, device="meta"), torch.ones(0)]
    with mode():
        back = round_trip(path, tensors)
    assert [facts(t) for t in back] == [facts(t) for t in tensors]


@pytest.mark.parametrize("transform", ["functionalize", "vmap", "grad"])
def test_transformations_around_the_call_change_nothing(path, transform):
    tensors = [torch.arange(3.0), nn.Parameter(torch.ones(2))]
    seen = []

    def function(x):
        seen.extend(round_trip(path, tensors))
        return x.sum()

    getattr(torch.func, transform)(function)(torch.ones(2, 2)[0])
    assert [facts(t) for t in seen] == [facts(t) for t in tensors]


def test_an_inference_tensor_comes_back_as_an_ordinary_one(path):
    with torch.inference_mode():
        tensor = torch.arange(3.0)
    (back,) = round_trip(path, [tensor])
    assert not back.is_inference()
    assert torch.equal(back, tensor)


# The mapping.


def test_changing_a_loaded_tensor_does_not_reach_the_file_or_another_load(path):
    (first,) = round_trip(path, [torch.zeros(2000)])
    _, (second,) = read_container(path)
    first.fill_(5)
    assert second.sum() == 0
    assert read_container(path)[1][0].sum() == 0


def test_loaded_tensors_outlive_the_file_and_everything_else_that_was_loaded(path):
    back = round_trip(path, [torch.full((5000,), float(i)) for i in range(20)])
    keep = back[7][10:20]
    del back
    path.unlink()
    gc.collect()
    assert keep.tolist() == [7.0] * 10


def test_replacing_the_file_leaves_loaded_tensors_as_they_are(path):
    (old,) = round_trip(path, [torch.zeros(5000)], check_tensors=False)
    (new,) = round_trip(path, [torch.ones(5000)])
    assert old.sum() == 0
    assert new.sum() == 5000


def test_a_loaded_tensor_cannot_be_resized_but_used_like_any_other(path):
    (weight,) = round_trip(path, [nn.Parameter(torch.ones(2, 2))])
    (weight * 2).sum().backward()
    torch.optim.SGD([weight], lr=1.0).step()
    assert weight.tolist() == [[-1.0, -1.0], [-1.0, -1.0]]
    with pytest.raises(RuntimeError, match="not resizable"):
        weight.detach().resize_(100)


def test_map_location_moves_everything_that_has_values(path):
    whole = torch.arange(6.0)
    tensors = [nn.Parameter(whole), whole[2:], torch.ones(0), torch.ones(2, device="meta")]
    back = round_trip(path, tensors, map_location="meta")
    assert {t.device.type for t in back} == {"meta"}
    assert [(t.shape, t.stride()) for t in back] == [(t.shape, t.stride()) for t in tensors]
    assert back[0].untyped_storage()._cdata == back[1].untyped_storage()._cdata
    back = round_trip(path, tensors, map_location=torch.device("cpu"))
    assert [t.device.type for t in back] == ["cpu", "cpu", "cpu", "meta"]


def test_tensors_go_back_to_the_device_they_were_on(path, device):
    whole = torch.arange(6.0, device=device)
    tensors = [nn.Parameter(whole), whole[2:], torch.ones(0, device=device), torch.ones(3)]
    back = round_trip(path, tensors)
    assert [t.device for t in back] == [t.device for t in tensors]
    assert torch.equal(back[0], tensors[0])
    with torch.no_grad():
        back[0][2] = 9.0
    assert back[1][0] == 9.0
    back = round_trip(path, tensors, map_location="cpu")
    assert back[0].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


# Writing: all or nothing.


def leftovers(folder):
    return [name for name in os.listdir(folder) if name.endswith("tmp")]


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failure_while_writing_leaves_the_old_file_and_nothing_else(path, monkeypatch, fails):
    write_container(path, b"old", [torch.zeros(3)])
    before = path.read_bytes()

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, fails, broken)
    with pytest.raises(OSError, match="No space left"):
        write_container(path, b"new", [torch.ones(3)])
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_an_interrupt_while_writing_leaves_the_old_file_and_nothing_else(path, monkeypatch):
    path.write_bytes(b"old")

    def interrupted(storages):
        yield bytearray(b"some bytes")
        raise KeyboardInterrupt

    monkeypatch.setattr(_container, "pieces_of_storages", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_container(path, b"new", [torch.ones(3)])
    assert path.read_bytes() == b"old"
    assert os.listdir(path.parent) == [path.name]


@pytest.fixture
def umask():
    old = os.umask(0o027)
    yield
    os.umask(old)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_new_file_gets_the_usual_permissions_and_an_old_one_keeps_its_own(path, umask):
    write_container(path, b"", [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    path.chmod(0o600)
    write_container(path, b"", [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="links of POSIX")
def test_a_link_is_followed_and_stays_a_link(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "link", tmp_path / "elsewhere" / "target"
    link.symlink_to(target)
    write_container(link, b"through", [])
    assert link.is_symlink()
    assert read_container(target)[0] == b"through"
    assert os.listdir(tmp_path / "elsewhere") == ["target"]


def test_places_where_no_file_can_be_give_the_usual_errors(tmp_path):
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        write_container(tmp_path, b"", [])
    missing = tmp_path / "missing" / "file"
    with pytest.raises(FileNotFoundError, match=r"missing.file"):
        write_container(missing, b"", [])
    with pytest.raises(FileNotFoundError, match=r"missing.file"):
        read_container(missing)
    with pytest.raises(IsADirectoryError):
        read_container(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(NotADirectoryError):
        write_container(tmp_path / "file" / "below", b"", [])
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_and_a_write_protected_file_are_respected(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    with pytest.raises(PermissionError, match="file"):
        write_container(path, b"", [])
    tmp_path.chmod(0o555)
    with contextlib.ExitStack() as stack:
        stack.callback(tmp_path.chmod, 0o755)
        with pytest.raises(PermissionError, match="other"):
            write_container(tmp_path / "other", b"", [])
    assert path.read_bytes() == b"old"


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="needs /dev/null")
def test_a_device_is_neither_replaced_nor_read():
    with pytest.raises(OSError, match="not a regular file"):
        write_container("/dev/null", b"", [])
    with pytest.raises(GraphFormatError, match="not a regular file"):
        read_container("/dev/null")


def test_paths_may_be_text_bytes_or_path_objects(path):
    for form in (path, str(path), os.fsencode(path)):
        write_container(form, b"x", [])
        assert read_container(form)[0] == b"x"


def test_threads_that_write_one_path_leave_one_of_their_files(path):
    def write(number):
        write_container(path, b"%d" % number, [torch.full((1000,), float(number))])

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    structure, (tensor,) = read_container(path)
    assert set(tensor.tolist()) == {float(structure)}
    assert os.listdir(path.parent) == [path.name]


def test_a_tensor_that_changes_while_it_is_written_makes_a_file_that_still_loads(path):
    tensor = torch.zeros(2 << 20)
    stop = threading.Event()

    def change():
        while not stop.is_set():
            tensor.add_(1)

    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(5):
        write_container(path, b"", [tensor])
        read_container(path)
    stop.set()
    thread.join()
