"""Descriptions of a graph's inputs as JSON: what is written, and how it is read back safely.

A description never holds data and reading it never executes anything. Every field is checked; an
error names the file and the path to the field.

.. code-block:: json

    {"format": 1, "kind": "lazyfx.inputs", "inputs": [
      {"name": "primals_1", "kind": "tensor", "dtype": "float32", "device": "cpu",
       "size": [2, 3], "stride": [3, 1], "storage_offset": 0, "requires_grad": false},
      {"name": "scale", "kind": "int", "value": 2},
      {"name": "s0", "kind": "symint", "expression": "s0", "hint": 4}]}
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_aot
from lazyfx_compilers.errors import DumpFormatError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

FORMAT = 1
_SCALARS: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
_LIMIT = 1 << 40  # elements: no graph has larger inputs, a hostile file might


@dataclass(frozen=True, slots=True, kw_only=True)
class InputSpec:
    """One input of a graph.

    ``kind`` is ``tensor``, ``int``, ``float``, ``bool``, ``str``, ``none``, ``symint`` (``value``
    is its hint) or ``opaque`` (something that cannot be described; ``type`` names it).
    Sizes, strides and the offset are in elements; symbolic ones are stored as their hints.
    """

    name: str
    kind: str
    value: Any = None
    type: str | None = None
    dtype: str | None = None
    device: str | None = None
    size: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    storage_offset: int = 0
    requires_grad: bool = False
    symbolic: dict[str, str] = field(default_factory=dict)

    def torch_dtype(self) -> torch.dtype:
        """The dtype itself."""
        dtype = getattr(torch, str(self.dtype))
        assert isinstance(dtype, torch.dtype)
        return dtype

    def storage_size(self) -> int:
        """Elements of the smallest storage that the view needs."""
        if 0 in self.size:
            return self.storage_offset
        last = sum((n - 1) * s for n, s in zip(self.size, self.stride, strict=True))
        return self.storage_offset + last + 1


def describe_inputs(names: Sequence[str], inputs: Sequence[Any]) -> list[InputSpec]:
    """Describe each input; nested ones (a joint graph's primals and tangents) are flattened."""
    leaves, _ = _torch_aot.tree_flatten(list(inputs))
    padded = [*names, *(f"input_{i}" for i in range(len(names), len(leaves)))]
    return [_describe(name, leaf) for name, leaf in zip(padded, leaves, strict=False)]


def _describe(name: str, value: Any) -> InputSpec:
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            return InputSpec(name=name, kind="opaque", type=f"{value.layout} tensor")
        symbolic: dict[str, str] = {}
        return InputSpec(
            name=name,
            kind="tensor",
            dtype=str(value.dtype).removeprefix("torch."),
            device=str(value.device),
            size=_concrete("size", value.shape, symbolic),
            stride=_concrete("stride", value.stride(), symbolic),
            storage_offset=_concrete("storage_offset", (value.storage_offset(),), symbolic)[0],
            requires_grad=value.requires_grad,
            symbolic=symbolic,
        )
    if value is None:
        return InputSpec(name=name, kind="none")
    if isinstance(value, torch.SymInt):
        hint = _torch_aot.hint(value)
        return InputSpec(name=name, kind="symint", value=hint, symbolic={"value": str(value)})
    for kind, python_type in _SCALARS.items():
        if type(value) is python_type:
            return InputSpec(name=name, kind=kind, value=value)
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    return InputSpec(name=name, kind="opaque", type=kind)


def _concrete(what: str, numbers: Sequence[Any], symbolic: dict[str, str]) -> tuple[int, ...]:
    for i, number in enumerate(numbers):
        if not isinstance(number, int):
            symbolic[f"{what}[{i}]"] = str(number)
    return tuple(_torch_aot.hint(number) for number in numbers)


def dumps(specs: Sequence[InputSpec]) -> str:
    """The description as JSON text; default values are left out."""
    rows = []
    for spec in specs:
        row = {k: v for k, v in asdict(spec).items() if v not in (None, (), {}, False)}
        if spec.kind == "tensor":
            row.update(size=spec.size, stride=spec.stride, requires_grad=spec.requires_grad)
        elif spec.kind in _SCALARS or spec.kind == "symint":
            row["value"] = repr(spec.value) if spec.kind == "float" else spec.value
        rows.append(row)
    return json.dumps({"format": FORMAT, "kind": "lazyfx.inputs", "inputs": rows}, indent=1) + "\n"


def read_inputs(file: Path) -> list[InputSpec]:
    """Read and check a description.

    Raises:
        DumpFormatError: Names the file and the field.
    """
    document = read_document(file, "lazyfx.inputs")
    rows = document.get("inputs")
    if not isinstance(rows, list):
        raise DumpFormatError(f"{file}: field 'inputs' is {rows!r}; expected a list")
    return [_read_input(file, f"inputs[{i}]", row) for i, row in enumerate(rows)]


def read_document(file: Path, kind: str) -> dict[str, Any]:
    """Read one of this package's JSON files and check its kind and format."""
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DumpFormatError(f"{file}: cannot be read as JSON: {error}") from error
    if not isinstance(document, dict) or document.get("kind") != kind:
        raise DumpFormatError(f"{file}: field 'kind' is missing or not {kind!r}; not one of ours")
    version = document.get("format")
    if type(version) is not int or version < 1:
        raise DumpFormatError(f"{file}: field 'format' is {version!r}; expected a number from 1")
    if version > FORMAT:
        raise DumpFormatError(
            f"{file}: field 'format' is {version}, this lazyfx-compilers reads up to {FORMAT}; "
            "use a newer one"
        )
    return document


def _read_input(file: Path, where: str, row: Any) -> InputSpec:
    def bad(name: str, expected: str) -> DumpFormatError:
        seen = row.get(name) if isinstance(row, dict) else row
        return DumpFormatError(f"{file}: field {where}.{name} is {seen!r}; expected {expected}")

    if not isinstance(row, dict):
        raise DumpFormatError(f"{file}: field {where} is {row!r}; expected an object")
    if not isinstance(row.get("name"), str):
        raise bad("name", "a string")
    name, kind = row["name"], row.get("kind")
    if kind == "none":
        return InputSpec(name=name, kind="none")
    if kind == "opaque":
        return InputSpec(name=name, kind="opaque", type=str(row.get("type")))
    if kind == "symint":
        if type(row.get("value")) is not int:
            raise bad("value", "an integer")
        return InputSpec(name=name, kind="symint", value=row["value"])
    if kind in _SCALARS:
        try:
            value = float(row["value"]) if kind == "float" else row["value"]
        except (KeyError, TypeError, ValueError):
            raise bad("value", "a number") from None
        if type(value) is not _SCALARS[kind]:
            raise bad("value", f"a value of type {kind}")
        return InputSpec(name=name, kind=kind, value=value)
    if kind != "tensor":
        raise bad("kind", f"tensor, none, symint, opaque or one of {', '.join(_SCALARS)}")
    for key in ("size", "stride"):
        numbers = row.get(key)
        if not isinstance(numbers, list) or not all(_is_size(n) for n in numbers):
            raise bad(key, "a list of integers from 0")
    if len(row["size"]) != len(row["stride"]):
        raise bad("stride", f"as many numbers as size has ({len(row['size'])})")
    if not _is_size(row.get("storage_offset", 0)):
        raise bad("storage_offset", "an integer from 0")
    if not isinstance(getattr(torch, str(row.get("dtype")), None), torch.dtype):
        raise bad("dtype", "the name of a torch dtype")
    try:
        torch.device(row["device"])
    except (KeyError, TypeError, RuntimeError):
        raise bad("device", "the name of a device") from None
    spec = InputSpec(
        name=name,
        kind="tensor",
        dtype=row["dtype"],
        device=row["device"],
        size=tuple(row["size"]),
        stride=tuple(row["stride"]),
        storage_offset=row.get("storage_offset", 0),
        requires_grad=row.get("requires_grad") is True,
    )
    if math.prod(spec.size) > _LIMIT or spec.storage_size() > _LIMIT:
        raise bad("size", f"at most {_LIMIT} elements")
    return spec


def _is_size(number: object) -> bool:
    return type(number) is int and 0 <= number <= _LIMIT
