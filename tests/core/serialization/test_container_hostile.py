"""Damaged, foreign and hostile archives: a named error, never anything else, never silence.

``Parts`` takes a file apart and puts it together again as the format's specification says, digests
included: what anybody can do who wants to be believed.
"""

import hashlib
import json
import os
import random
import struct
import subprocess
import sys
import zlib

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lazyfx_core._container import read_container, read_structure, write_container
from lazyfx_core.errors import GraphFormatError

PIECE = 8 << 20


class Parts:
    """A file in parts that may be changed."""

    def __init__(self, content):
        length = 8 + struct.unpack("<Q", content[:8])[0]
        self.header = json.loads(content[8:length])
        data = content[length:]
        self.structure, self.table_text = (
            data[slice(*self.header.pop(key)["data_offsets"])]
            for key in ("lazyfx.structure", "lazyfx.tensors")
        )
        self.metadata = self.header.pop("__metadata__")
        self.table = json.loads(self.table_text)
        self.values = data[: -len(self.structure) - len(self.table_text)]

    def join(self, *, table_text=None, structure_entry=None, header_text=None):
        table = json.dumps(self.table).encode() if table_text is None else table_text
        middle = len(self.values) + len(self.structure)
        metadata = dict(self.metadata)
        if "tensors_sha256" in metadata:
            pieces = [self.values[i : i + PIECE] for i in range(0, len(self.values), PIECE)]
            together = b"".join(hashlib.sha256(piece).digest() for piece in pieces)
            metadata["tensors_sha256"] = hashlib.sha256(together).hexdigest()
        if "structure_sha256" in metadata:
            metadata["structure_sha256"] = "0" * 64
        header = {
            "__metadata__": metadata,
            **self.header,
            "lazyfx.structure": structure_entry
            or {
                "dtype": "U8",
                "shape": [len(self.structure)],
                "data_offsets": [len(self.values), middle],
            },
            "lazyfx.tensors": {
                "dtype": "U8",
                "shape": [len(table)],
                "data_offsets": [middle, middle + len(table)],
            },
        }
        text = json.dumps(header).encode() if header_text is None else header_text(header)
        text = struct.pack("<Q", len(text)) + text
        digest = hashlib.sha256(text + self.structure + table).hexdigest()
        text = text.replace(
            b'"structure_sha256": "' + b"0" * 64, b'"structure_sha256": "%s' % digest.encode()
        )
        return text + self.values + self.structure + table


def tensors():
    whole = torch.arange(12.0)
    return [
        nn.Parameter(whole.view(3, 4)),
        whole[2:8:3],
        torch.complex(torch.ones(2), torch.ones(2)).conj(),
        torch.empty(2, 3, device="meta"),
        torch.tensor([True, False, True]),
        torch.empty(0, 2),
    ]


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "file"
    given = tensors()
    write_container(path, b'{"graph": []}' * 3, [*given, given[0]], names=[*"abcdef", "again"])
    return path.read_bytes()


@pytest.fixture
def parts(content):
    return Parts(content)


def message_of(reader, path, **options):
    """What the reader complains about, None if nothing."""
    try:
        reader(path, **options)
    except GraphFormatError as error:
        return str(error)
    return None


@pytest.fixture
def read(tmp_path):
    """Read bytes as a file; both readers agree about what is wrong with it."""
    path = tmp_path / "archive"

    def read(content, **options):
        path.write_bytes(content)
        seen = message_of(read_structure, path)
        if seen is not None:
            assert message_of(read_container, path, **options) == seen
        return read_container(path, **options)

    return read


def refused(read, content, match, **options):
    with pytest.raises(GraphFormatError, match=match) as caught:
        read(content, **options)
    assert "archive'" in str(caught.value)
    assert len(str(caught.value)) < 1500


def test_parts_put_together_are_a_good_file(read, parts):
    structure, back = read(parts.join())
    assert structure == b'{"graph": []}' * 3
    assert torch.equal(back[0], tensors()[0])
    assert back[6] is back[0]


# Damage.


def test_a_file_cut_off_anywhere_is_refused(read, content):
    for end in range(len(content)):
        with pytest.raises(GraphFormatError):
            read(content[:end])


def test_any_flipped_bit_is_noticed(tmp_path, content):
    path = tmp_path / "archive"
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(GraphFormatError, match="archive"):
            read_container(path)


def test_without_the_check_of_values_all_but_the_values_is_checked(tmp_path, content):
    path = tmp_path / "archive"
    begin = 8 + struct.unpack("<Q", content[:8])[0]
    end = begin + len(Parts(content).values)
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << (position + 3) % 8
        path.write_bytes(damaged)
        if begin <= position < end:
            assert len(read_container(path, check_tensors=False)[1]) == 7
            continue
        with pytest.raises(GraphFormatError):
            read_container(path, check_tensors=False)


def test_appended_and_inserted_bytes_are_noticed(read, content):
    refused(read, content + b"\0", "cut off or something was appended")
    refused(read, b"\0" + content, "not a safetensors file")
    refused(read, content[:8] + b" " + content[8:], "does not begin with '{'")


def test_random_damage_of_every_kind_is_noticed(tmp_path, content):
    path = tmp_path / "archive"
    chance = random.Random(4)
    for _ in range(1500):
        damaged = bytearray(content)
        for _ in range(chance.randint(1, 3)):
            at, length = chance.randrange(len(damaged)), chance.randint(1, 30)
            kind = chance.randrange(4)
            if kind == 0:
                damaged[at : at + length] = chance.randbytes(length)
            elif kind == 1:
                del damaged[at : at + length]
            elif kind == 2:
                damaged[at:at] = damaged[: chance.randrange(1, 200)]
            else:
                other = chance.randrange(len(damaged))
                damaged[at : at + length] = damaged[other : other + length]
            damaged = damaged or bytearray(b"x")
        if damaged == content:
            continue
        path.write_bytes(damaged)
        with pytest.raises(GraphFormatError):
            read_container(path)


# Other files.


def test_other_files_are_told_what_they_are(tmp_path, read):
    other = tmp_path / "other"
    torch.save({"a": torch.ones(3)}, other)
    refused(read, other.read_bytes(), "not a safetensors file.*zip file.*torch.save")
    save_file({"a": torch.ones(3)}, other, metadata={"format": "pt"})
    refused(read, other.read_bytes(), "a safetensors file that holds no lazyfx graph")
    save_file({"a": torch.ones(3)}, other)
    refused(read, other.read_bytes(), "a safetensors file that holds no lazyfx graph")
    refused(read, b"", "not a safetensors file, or cut off: it has 0 bytes")
    refused(read, b"\x08\0\0\0\0\0\0\0not json", "does not begin with")
    refused(read, b"\x08\0\0\0\0\0\0\0{ot json", "header is not JSON")
    refused(read, b"\x02\0\0\0\0\0\0\0{}", "holds no lazyfx graph")
    refused(read, struct.pack("<Q", 2**63) + b"{}", "9223372036854775808")
    refused(read, struct.pack("<Q", 9) + b'{"a":"\xff"}', "not JSON")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ("2", "schema is 2.*up to 1.*needs a newer lazyfx-core"),
        ("999999999", "needs a newer lazyfx-core"),
        ("9" * 5000, "expected a number"),
        ("0", "expected '1'"),
        ("01", "expected '1'"),
        ("-1", "expected a number"),
        ("²", "expected a number"),
        (1, "expected a number"),
        (None, "schema is None"),
    ],
)
def test_a_schema_that_is_not_ours_is_refused(read, parts, schema, message):
    parts.metadata["schema"] = schema
    refused(read, parts.join(), message)


def test_metadata_has_exactly_its_fields(read, parts):
    parts.metadata["more"] = "x"
    refused(read, parts.join(), "__metadata__ has the fields .*'more'")
    del parts.metadata["more"], parts.metadata["tensors_sha256"]
    refused(read, parts.join(), "__metadata__ has the fields")


@pytest.mark.parametrize("digest", ["", "0" * 63, "G" * 64, "A" * 64, 5, None, ["0" * 64]])
@pytest.mark.parametrize("field", ["tensors_sha256", "structure_sha256"])
def test_a_digest_is_sixty_four_lowercase_hex_digits(read, content, field, digest):
    parts = Parts(content)

    def header_text(header):
        header["__metadata__"][field] = digest
        return json.dumps(header).encode()

    refused(read, parts.join(header_text=header_text), f"__metadata__.{field} is")


def test_a_digest_that_stands_twice_is_refused(read, parts):
    def twice(header):
        header["__metadata__"]["structure_sha256"] = "1" * 64
        empty = {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}
        return json.dumps({"1" * 64: empty, **header}).encode()

    refused(read, parts.join(header_text=twice), "structure_sha256 stands more than once")


# Headers made by hand, with the right digests.

HEADERS = {
    "a gap": (lambda h: h["a"].update(data_offsets=[8, 56]), "begins at 8.*ends at 0"),
    "an overlap": (lambda h: h["c"].update(data_offsets=[40, 56]), "begins at 40.*ends at 48"),
    "backwards": (lambda h: h["a"].update(data_offsets=[48, 0]), "do not fit its shape"),
    "one offset": (lambda h: h["a"].update(data_offsets=[0]), "do not fit"),
    "three offsets": (lambda h: h["a"].update(data_offsets=[0, 48, 96]), "do not fit"),
    "a negative offset": (lambda h: h["a"].update(data_offsets=[-48, 0]), "from 0 up"),
    "a huge offset": (lambda h: h["a"].update(data_offsets=[0, 2**64]), "from 0 up"),
    "a fraction": (lambda h: h["a"].update(data_offsets=[0, 48.0]), "from 0 up"),
    "a shape that does not fit": (lambda h: h["a"].update(shape=[3, 5]), "do not fit its shape"),
    "an overflowing shape": (lambda h: h["a"].update(shape=[2**62, 2**62, 3]), "do not fit"),
    "a long shape": (lambda h: h["a"].update(shape=[1] * 65), "at most 64"),
    "a shape that is a text": (lambda h: h["a"].update(shape="34"), "at most 64"),
    "true as a size": (lambda h: h["a"].update(shape=[True, 12]), "from 0 up"),
    "nested": (lambda h: h["a"].update(shape=[[[[3]]], 4]), "a list of 2"),
    "an unknown dtype": (lambda h: h["a"].update(dtype="F128"), "has the dtype 'F128'"),
    "a dtype that is a list": (lambda h: h["a"].update(dtype=["F32"]), "has the dtype"),
    "a missing field": (lambda h: h["a"].pop("shape"), "has the fields"),
    "a surplus field": (lambda h: h["a"].update(more=1), "has the fields.*'more'"),
    "no object": (lambda h: h.update(a=[1]), "the entry 'a' is .*expected an object"),
    "a surplus entry": (
        lambda h: h.update(z={"dtype": "U8", "shape": [0], "data_offsets": [67, 67]}),
        "the entry 'z' of the file has no storage",
    ),
    "a missing entry": (lambda h: h.pop("f"), "storages.*key is 'f', no entry of the file"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_a_header_made_by_hand_is_refused_by_field(read, parts, case):
    change, message = HEADERS[case]
    change(parts.header)
    refused(read, parts.join(), message)


def test_entries_stand_in_the_order_of_their_bytes(read, parts):
    parts.header = dict(reversed(parts.header.items()))
    refused(read, parts.join(), "begins at")


def test_the_structure_and_the_table_stand_last(read, parts):
    def first(header):
        header["lazyfx.Structure"] = header.pop("lazyfx.structure")
        header["lazyfx.tensors"] = header.pop("lazyfx.tensors")
        return json.dumps(header).encode()

    refused(read, parts.join(header_text=first), "the last entries are not 'lazyfx.structure'")


def test_a_key_that_stands_twice_is_refused(read, parts):
    def twice(header):
        return json.dumps(header).encode().replace(b'"e": {', b'"a": {', 1)

    refused(read, parts.join(header_text=twice), "header holds the key 'a' twice")
    text = json.dumps(parts.table).encode().replace(b'"offset": 0', b'"offset": 0, "offset": 0', 1)
    refused(read, parts.join(table_text=text), "table holds the key 'offset' twice")


def test_deep_nesting_and_long_numbers_are_refused(read, parts):
    for text in (b"[" * 10**6, b"[" * 10**6 + b"]" * 10**6, b'{"a":' * 10**6):
        refused(read, parts.join(table_text=text), "tensor table is (nested too deeply|not JSON)")
    refused(read, parts.join(table_text=b"[" * 900 + b"]" * 900), "expected an object")
    refused(read, parts.join(table_text=b"1" * 10**6), "tensor table is not JSON")
    refused(read, parts.join(table_text=b"NaN"), "tensor table is nan, expected an object")
    refused(read, parts.join(table_text=b""), "tensor table is not JSON")
    refused(read, parts.join(table_text=b"\xff\xfe{}"), "tensor table is not JSON")

    def deep(header):
        return json.dumps(header).encode()[:-1] + b', "deep": ' + b"[" * 10**5 + b"]" * 10**5 + b"}"

    refused(read, parts.join(header_text=deep), "header is nested too deeply")


# Tables made by hand.


def row(index, **changes):
    def change(table):
        table["tensors"][index].update(changes)

    return change


TABLES = {
    "not inside": (row(1, offset=10), r"tensors\[1\] \('b'\) reaches outside of its storage"),
    "long stride": (row(1, stride=[10**6]), "reaches outside of its storage"),
    "wider dtype": (row(0, dtype="float64"), "need 96 bytes, the storage has 48"),
    "many rows": (row(0, size=[4, 4]), "need 64 bytes, the storage has 48"),
    "stride overflow": (row(0, stride=[2**62, 2**62]), "reaches outside"),
    "size overflow": (row(0, size=[2**62, 2**62], stride=[0, 0]), "more bytes than a number"),
    "size overflow of nothing": (row(5, size=[0, 2**62, 2**62], stride=[0] * 3), "more bytes"),
    "offset overflow of nothing": (row(5, offset=2**62), "more bytes than a number can count"),
    "size of 2**62": (row(0, size=[2**62], stride=[1]), "more bytes than a number can count"),
    "size of 2**60": (row(0, size=[2**60], stride=[1]), "reaches outside"),
    "size of 2**63": (row(0, size=[2**63], stride=[0]), "whole numbers from 0 up"),
    "size of 2**64": (row(0, size=[2**64], stride=[0]), "whole numbers from 0 up"),
    "negative size": (row(0, size=[-1, 4]), "size is .*whole numbers from 0 up"),
    "negative stride": (row(1, stride=[-1]), r"\('b'\).stride is \[-1\]"),
    "negative offset": (row(1, offset=-1), r"\('b'\).offset is -1"),
    "fractional size": (row(1, size=[2.0]), "size is .*whole numbers"),
    "size of true": (row(1, size=[True]), "size is .*whole numbers"),
    "size of a text": (row(1, size="2"), "expected a list of at most 64"),
    "offset of a text": (row(1, offset="0"), "offset is '0'"),
    "offset of null": (row(1, offset=None), "offset is None"),
    "too few strides": (row(0, stride=[4]), "size has 2 numbers, .stride 1"),
    "too many dimensions": (row(1, size=[1] * 65, stride=[1] * 65), "at most 64"),
    "deep size": (row(1, size=[[[2]]]), "size is a list of 1"),
    "unknown dtype": (row(1, dtype="float33"), "dtype is 'float33', which torch .* does not have"),
    "quantized dtype": (row(1, dtype="qint8"), "dtype is 'qint8'"),
    "a class as dtype": (row(1, dtype="Tensor"), "dtype is 'Tensor'"),
    "alias of a dtype": (row(1, dtype="float"), "dtype is 'float'"),
    "dtype of a list": (row(1, dtype=["float32"]), "dtype is"),
    "unknown storage": (row(1, storage=6), "storage is 6, there are 5"),
    "negative storage": (row(1, storage=-1), "storage is -1"),
    "storage of true": (row(1, storage=True), "storage is True"),
    "unknown kind": (row(1, kind="Parameter"), "kind is 'Parameter', expected one of"),
    "kind of a list": (row(1, kind=[]), r"kind is \[\]"),
    "false flag": (row(1, conj=False), "conj is False, expected true or nothing"),
    "flag of one": (row(1, requires_grad=1), "requires_grad is 1"),
    "conjugate reals": (row(1, conj=True), "conj is true, which torch.float32 does not allow"),
    "negative bools": (row(4, neg=True), "neg is true, which torch.bool does not allow"),
    "gradients of bools": (row(4, requires_grad=True), "requires_grad is true, which torch.bool"),
    "control characters": (row(1, name="\x1b[31m"), "name is .*printable"),
    "a long name": (row(1, name="x" * 201), "at most 200 printable"),
    "a name of 5": (row(1, name=5), "name is 5"),
    "a surplus field": (row(1, more=1), "has the fields"),
    "same as later": (row(6, same_as=6), "same_as is 6, which is no earlier tensor"),
    "same as nothing": (row(6, same_as=-1), "same_as is -1"),
    "same as, and more": (row(6, offset=0), "has the fields"),
    "a missing field": (lambda t: t["tensors"][1].pop("stride"), "has the fields"),
    "no name": (lambda t: t["tensors"][1].pop("name"), "name is None"),
    "a row that is a list": (lambda t: t["tensors"].append([1]), r"tensors\[7\] is"),
    "tensors of text": (lambda t: t.update(tensors="x"), "tensors is 'x', expected a list"),
    "tensors of an object": (lambda t: t.update(tensors={}), "tensors is an object"),
    "no tensors": (lambda t: t.update(tensors=[]), r"storages\[0\] \('a'\) belongs to no tensor"),
    "surplus in the table": (lambda t: t.update(more=1), "has the fields"),
    "a storage used twice": (
        lambda t: t["storages"].append(t["storages"][0]),
        r"storages\[5\].key is 'a', as of an earlier storage",
    ),
    "no such storage": (lambda t: t["storages"][0].update(key="zz"), "'zz', no entry of the file"),
    "the structure as storage": (
        lambda t: t["storages"][0].update(key="lazyfx.structure"),
        "no entry of the file",
    ),
    "metadata as storage": (
        lambda t: t["storages"][0].update(key="__metadata__"),
        "no entry of the file",
    ),
    "a key that is a list": (lambda t: t["storages"][0].update(key=["a"]), "no entry of the file"),
    "storages of text": (lambda t: t.update(storages="abc"), "storages is 'abc', expected a list"),
    "a storage that is null": (lambda t: t["storages"].append(None), r"storages\[5\] is None"),
    "no device": (lambda t: t["storages"][0].pop("device"), "has the fields"),
    "unknown device": (lambda t: t["storages"][0].update(device="gpu"), "knows no device by"),
    "long device": (lambda t: t["storages"][0].update(device="c" * 10**5), "knows no device"),
    "device of 5": (lambda t: t["storages"][0].update(device=5), "device is 5"),
    "device by another name": (lambda t: t["storages"][0].update(device="cuda:01"), "device"),
    "bytes on meta": (lambda t: t["storages"][0].update(device="meta"), "has the fields"),
    "meta on the cpu": (lambda t: t["storages"][2].update(device="cpu"), "has the fields"),
    "short meta": (lambda t: t["storages"][2].update(nbytes=23), "need 24 bytes.* has 23"),
    "negative meta": (lambda t: t["storages"][2].update(nbytes=-1), "nbytes is -1"),
    "infinite meta": (lambda t: t["storages"][2].update(nbytes=2**63), "nbytes is 92233"),
    "structure too short": (lambda t: t.update(structure_bytes=38), "exactly the 38 bytes"),
    "structure too long": (lambda t: t.update(structure_bytes=40), "exactly the 40 bytes"),
    "structure of nothing": (lambda t: t.update(structure_bytes=0), "exactly the 0 bytes"),
    "structure of 2**62": (lambda t: t.update(structure_bytes=2**62), "a file of this size"),
    "structure of -1": (lambda t: t.update(structure_bytes=-1), "structure_bytes is -1"),
}


@pytest.mark.parametrize("case", TABLES)
def test_a_table_made_by_hand_is_refused_by_field(read, parts, case):
    change, message = TABLES[case]
    change(parts.table)
    refused(read, parts.join(), message)


def test_a_table_may_say_whatever_lies_inside(read, parts):
    row(0, dtype="int16", size=[24], stride=[1], requires_grad=True)(parts.table)
    del parts.table["tensors"][0]["requires_grad"]
    row(1, size=[3, 10**9], stride=[4, 0])(parts.table)
    row(3, size=[1, 1], stride=[2**62, 0])(parts.table)
    _, back = read(parts.join())
    assert back[0].dtype is torch.int16
    assert back[1].shape == (3, 10**9)
    assert back[1][2, 5] == 10.0


@pytest.mark.parametrize("spaces", range(8))
def test_misaligned_values_come_back_right(read, parts, spaces):
    def odd(header):
        return json.dumps(header).encode() + b" " * spaces

    _, back = read(parts.join(header_text=odd))
    assert back[0].data_ptr() % 4 == 0
    assert torch.equal(back[0], tensors()[0])
    assert torch.equal(back[2], tensors()[2])


@pytest.mark.parametrize(
    "device", ["cuda:127", "xpu:0", "mps:0", "hpu", "xla:0", "lazy", "privateuseone", "vulkan"]
)
def test_tensors_of_a_device_that_is_not_here_need_map_location(tmp_path, read, parts, device):
    parts.table["storages"][0]["device"] = device
    path = tmp_path / "archive"
    path.write_bytes(parts.join())
    with pytest.raises(GraphFormatError, match=f"'a' were on {device}.*pass map_location"):
        read_container(path)
    assert str(read_structure(path)[1][0].device) == device
    assert torch.equal(read_container(path, map_location="cpu")[1][0], tensors()[0])


# Structures that expand.


def test_a_structure_that_expands_to_more_than_it_says_is_stopped(read, parts):
    parts.structure = zlib.compress(bytes(1 << 26))
    for stated in (10, 1 << 20, (1 << 26) - 1, (1 << 26) + 1):
        parts.table["structure_bytes"] = stated
        refused(read, parts.join(), f"exactly the {stated} bytes")
    parts.table["structure_bytes"] = 1 << 26
    assert len(read(parts.join())[0]) == 1 << 26


def test_a_structure_larger_than_allowed_is_not_expanded(tmp_path, parts):
    parts.structure = zlib.compress(bytes(1 << 20))
    parts.table["structure_bytes"] = 1 << 20
    path = tmp_path / "archive"
    path.write_bytes(parts.join())
    for read in (read_container, read_structure):
        assert len(read(path, max_structure_bytes=1 << 20)[0]) == 1 << 20
        with pytest.raises(GraphFormatError, match="1048576, more than the 1048575 .*hostile"):
            read(path, max_structure_bytes=(1 << 20) - 1)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        b"x",
        zlib.compress(b'{"graph": []}' * 3)[:-1],
        zlib.compress(b'{"graph": []}' * 3)[:-4] + b"abcd",
        zlib.compress(b'{"graph": []}' * 3) + b"\0",
        zlib.compress(b'{"graph": []}' * 3) * 2,
        bytes(100),
    ],
)
def test_a_structure_that_is_not_one_whole_stream_is_refused(read, parts, blob):
    parts.structure = blob
    refused(read, parts.join(), "lazyfx.structure (cannot be expanded|does not expand)")


def test_a_file_of_holes_is_refused_before_memory_is_asked_for(tmp_path, parts):
    path = tmp_path / "archive"
    parts.header, parts.values = {}, b""
    holes = 1 << 42
    text = parts.join(
        structure_entry={"dtype": "U8", "shape": [holes], "data_offsets": [0, holes]},
        header_text=lambda h: json.dumps(
            {
                **h,
                "lazyfx.tensors": {
                    "dtype": "U8",
                    "shape": [9],
                    "data_offsets": [holes, holes + 9],
                },
            }
        ).encode(),
    )
    length = 8 + struct.unpack("<Q", text[:8])[0]
    path.write_bytes(text[:length])
    os.truncate(path, length + holes + 9)
    with pytest.raises(GraphFormatError, match="lazyfx.structure has 4398046511104 bytes"):
        read_container(path)


def test_random_tables_with_right_digests_are_read_or_refused(tmp_path, content):
    path = tmp_path / "archive"
    chance = random.Random(5)
    numbers = [-1, 0, 1, 2, 3, 5, 12, 2**31, 2**60, 2**62, 2**63 - 1, 2**63, 2**64]
    others = [
        None,
        True,
        "",
        "meta",
        "cpu",
        "cuda",
        "float64",
        "complex64",
        [],
        {},
        1.5,
        [1],
        ["a"],
    ]

    def mutate(value):
        choice = chance.randrange(6)
        if isinstance(value, dict) and value and choice < 5:
            key = chance.choice(list(value))
            if choice == 0:
                del value[key]
            elif choice == 1:
                value[chance.choice(["conj", "neg", "kind", "same_as", "nbytes", "x"])] = (
                    chance.choice([True, 0, *numbers, *others])
                )
            else:
                value[key] = mutate(value[key])
            return value
        if isinstance(value, list) and value and choice < 5:
            at = chance.randrange(len(value))
            if choice == 0:
                del value[at]
            elif choice == 1:
                value.insert(at, json.loads(json.dumps(chance.choice(value))))
            else:
                value[at] = mutate(value[at])
            return value
        return json.loads(json.dumps(chance.choice(numbers if chance.random() < 0.6 else others)))

    read_well = 0
    for _ in range(2000):
        parts = Parts(content)
        for _ in range(chance.randint(1, 4)):
            target = parts.header if chance.random() < 0.2 else parts.table
            mutate(target)
        path.write_bytes(parts.join())
        try:
            _, back = read_container(path)
        except GraphFormatError:
            continue
        read_well += 1
        for tensor in back:
            inside(tensor)
    assert read_well > 20


def inside(tensor):
    """Touch the first and last byte: outside of a mapping this would crash."""
    if tensor.numel() and tensor.device.type == "cpu":
        storage, width = tensor.untyped_storage(), tensor.dtype.itemsize
        first = tensor.storage_offset() * width
        last = first + width - 1
        last += sum((n - 1) * s * width for n, s in zip(tensor.shape, tensor.stride(), strict=True))
        assert 0 <= first <= last < storage.nbytes()
        everything = torch.empty(0, dtype=torch.uint8).set_(storage)
        assert everything[first] + everything[last] >= 0


def test_reading_imports_nothing_and_does_not_need_safetensors_or_numpy(tmp_path, content):
    path = tmp_path / "archive"
    path.write_bytes(content)
    code = f"""
import sys
sys.modules["safetensors"] = None
from lazyfx_core._container import read_container, write_container
import torch
before = set(sys.modules)
structure, tensors = read_container({str(path)!r})
write_container({str(path)!r}, structure, tensors)
new = {{name.partition(".")[0] for name in set(sys.modules) - before}} - sys.stdlib_module_names
assert not new, new
assert tensors[0].shape == (3, 4)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.equal(read_container(path)[1][0], tensors()[0])
