"""A graph's inputs as descriptions: taken from values, written as JSON, read back and checked.

A description holds no data. Sizes are numbers: what a symbolic size stood for while tracing, and
2 for one that only data decides; ``shape_expr`` keeps the expressions. Tensors that share storage
have the same ``storage`` number. ``range`` is the least and greatest value of an integer tensor
that was real when it was described: random inputs made from it stay valid indices.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_aot, _torch_debug

from ._schema import Field, encode_float, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

UNDECIDED = 2
"""The size that stands for one that only data decides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """A strided, not quantized tensor; ``storage`` numbers the storages of one graph's inputs."""

    name: str
    dtype: torch.dtype
    device: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    storage_offset: int
    storage: int
    requires_grad: bool = False
    conj: bool = False
    neg: bool = False
    range: tuple[int, int] | None = None
    shape_expr: tuple[str, ...] | None = None

    def extent(self) -> int:
        """How many elements of the storage it spans, the offset not counted."""
        if 0 in self.shape:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))

    def span(self) -> tuple[int, int]:
        """First byte of the storage that it uses, and the one after the last."""
        start = self.storage_offset * self.dtype.itemsize
        return start, start + self.extent() * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarSpec:
    """A Python value: ``int``, ``float``, ``bool``, ``str``, ``complex`` or ``None``.

    ``expr`` is the expression of a symbolic number, whose ``value`` is what it stood for.
    """

    name: str
    value: int | float | bool | str | complex | None
    expr: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpaqueSpec:
    """Something that a description cannot make again."""

    name: str
    description: str


InputSpec = TensorSpec | ScalarSpec | OpaqueSpec


# --- from values -----------------------------------------------------------------------------


UNKNOWN = object()
"""Stands for a value that nobody has described."""


def describe_inputs(names: Sequence[str], values: Sequence[Any]) -> tuple[InputSpec, ...]:
    """Describe ``values``, real or fake; reads only, and data only of integer tensors.

    Args:
        names: Names of the graph's placeholders; missing ones become ``input_3``.
        values: Inputs, or containers of them (a joint graph's), which are flattened.
    """
    leaves, _ = _torch_aot.tree_flatten(list(values))
    storages: dict[int, int] = {}
    return tuple(
        _describe(names[i] if i < len(names) else f"input_{i}", leaf, storages)
        for i, leaf in enumerate(leaves)
    )


def _describe(name: str, value: Any, storages: dict[int, int]) -> InputSpec:
    if value is UNKNOWN:
        return OpaqueSpec(name=name, description="value that the graph does not describe")
    if isinstance(value, torch.Tensor):
        return _describe_tensor(name, value, storages)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        expr = _torch_debug.expression(value)
        return ScalarSpec(
            name=name, value=_concrete(value), expr=str(value if expr is None else expr)
        )
    if value is None or type(value) in (bool, int, float, str, complex):
        return ScalarSpec(name=name, value=value)
    return OpaqueSpec(name=name, description=f"{type(value).__module__}.{type(value).__qualname__}")


def _describe_tensor(name: str, tensor: torch.Tensor, storages: dict[int, int]) -> InputSpec:
    special = tensor.is_nested or tensor.is_quantized or not _is_plain(tensor)
    if tensor.layout is not torch.strided or special:
        kind = f"{type(tensor).__module__}.{type(tensor).__qualname__}"
        return OpaqueSpec(name=name, description=f"{kind}, {tensor.layout}, {tensor.dtype}")
    symbolic = any(type(extent) is not int for extent in tensor.shape)
    return TensorSpec(
        name=name,
        dtype=tensor.dtype,
        device=str(tensor.device),
        shape=tuple(_concrete(extent) for extent in tensor.shape),
        stride=tuple(_concrete(step) for step in tensor.stride()),
        storage_offset=_concrete(tensor.storage_offset()),
        storage=storages.setdefault(_torch_debug.storage_key(tensor), len(storages)),
        requires_grad=tensor.requires_grad,
        conj=tensor.is_conj(),
        neg=tensor.is_neg(),
        range=_value_range(tensor),
        shape_expr=tuple(str(extent) for extent in tensor.shape) if symbolic else None,
    )


def _is_plain(tensor: torch.Tensor) -> bool:
    return type(tensor) in (torch.Tensor, torch.nn.Parameter) or _torch_aot.is_fake(tensor)


def _concrete(value: Any) -> Any:
    if type(value) is int:
        return value
    known = _torch_debug.hint(value)
    if known is None:
        expr = _torch_debug.expression(value)
        unknown = dict.fromkeys(_torch_debug.free_symbols(expr), UNDECIDED)
        known = _torch_debug.evaluate(expr, unknown)
    return UNDECIDED if known is None else known


_INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _value_range(tensor: torch.Tensor) -> tuple[int, int] | None:
    if tensor.dtype not in _INTEGERS or tensor.device.type == "meta" or _torch_aot.is_fake(tensor):
        return None
    if tensor.numel() == 0:
        return None
    with _torch_aot.outside_fake_mode():
        least, greatest = torch.aminmax(tensor.detach())
        return int(least), int(greatest)


def with_expressions(
    specs: Sequence[InputSpec], traced: Sequence[InputSpec]
) -> tuple[InputSpec, ...]:
    """``specs`` of real values, with the expressions that were known while tracing."""
    merged: list[InputSpec] = list(specs)
    for i, (spec, old) in enumerate(zip(specs, traced, strict=False)):
        if isinstance(spec, TensorSpec) and isinstance(old, TensorSpec):
            merged[i] = replace(spec, shape_expr=old.shape_expr, requires_grad=old.requires_grad)
        elif isinstance(spec, ScalarSpec) and isinstance(old, ScalarSpec):
            merged[i] = replace(spec, expr=old.expr)
    return tuple(merged)


# --- to and from JSON ------------------------------------------------------------------------


def encode_spec(spec: InputSpec) -> dict[str, Any]:
    """One input as a JSON object."""
    if isinstance(spec, OpaqueSpec):
        return {"name": spec.name, "kind": "opaque", "description": spec.description}
    if isinstance(spec, ScalarSpec):
        return _encode_scalar(spec)
    encoded: dict[str, Any] = {
        "name": spec.name,
        "kind": "tensor",
        "dtype": str(spec.dtype).removeprefix("torch."),
        "device": spec.device,
        "shape": list(spec.shape),
        "stride": list(spec.stride),
        "storage_offset": spec.storage_offset,
        "storage": spec.storage,
        "requires_grad": spec.requires_grad,
    }
    for flag in ("conj", "neg"):
        if getattr(spec, flag):
            encoded[flag] = True
    if spec.range is not None:
        encoded["range"] = list(spec.range)
    if spec.shape_expr is not None:
        encoded["shape_expr"] = list(spec.shape_expr)
    return encoded


def _encode_scalar(spec: ScalarSpec) -> dict[str, Any]:
    value: Any = spec.value
    kind = "none" if value is None else type(value).__name__
    if isinstance(value, float):
        value = encode_float(value)
    elif isinstance(value, complex):
        value = [encode_float(value.real), encode_float(value.imag)]
    elif type(value) is int and not -(1 << 63) <= value < 1 << 63:
        return {"name": spec.name, "kind": "opaque", "description": "an int beyond 64 bits"}
    encoded = {"name": spec.name, "kind": kind, "value": value}
    if spec.expr is not None:
        encoded["expr"] = spec.expr
    return encoded


def encode_specs(kind: str, specs: Sequence[InputSpec]) -> str:
    """The text of a file that holds nothing but descriptions, ``"inputs"`` for example."""
    return to_json(kind, {kind: [encode_spec(spec) for spec in specs]})


def decode_specs(field: Field) -> tuple[InputSpec, ...]:
    """Descriptions from a JSON array.

    Raises:
        DumpFormatError: Names the file and the field.
    """
    return tuple(decode_spec(each) for each in field.items())


def decode_spec(field: Field) -> InputSpec:
    """One input from its JSON object.

    Raises:
        DumpFormatError: Names the file and the field.
    """
    name, kind = field.get("name").text(), field.get("kind")
    if kind.value == "opaque":
        return OpaqueSpec(name=name, description=field.get("description").text())
    if kind.value == "tensor":
        return _decode_tensor(name, field)
    value = field.get("value", None)
    decoded: Any
    match kind.value:
        case "none":
            decoded = None
        case "int":
            decoded = value.integer()
        case "float":
            decoded = value.number()
        case "bool":
            decoded = value.boolean()
        case "str":
            decoded = value.text()
        case "complex":
            parts = [each.number() for each in value.items()]
            if len(parts) != 2:
                raise value.wrong("two numbers")
            decoded = complex(*parts)
        case _:
            raise kind.wrong(
                "'tensor', 'int', 'float', 'bool', 'str', 'complex', 'none' or 'opaque'"
            )
    expr = field.get("expr", None)
    return ScalarSpec(name=name, value=decoded, expr=None if expr.value is None else expr.text())


def _decode_tensor(name: str, field: Field) -> TensorSpec:
    dtype_field, device_field = field.get("dtype"), field.get("device")
    dtype = getattr(torch, dtype_field.text(), None)
    if not isinstance(dtype, torch.dtype):
        raise dtype_field.wrong("the name of a dtype of this torch")
    try:
        torch.device(device_field.text())
    except RuntimeError:
        raise device_field.wrong("a device like 'cpu' or 'cuda:0'") from None
    shape = field.get("shape").integers(least=0)
    stride_field = field.get("stride")
    stride = stride_field.integers(least=0)
    if len(stride) != len(shape):
        raise stride_field.wrong(f"{len(shape)} numbers, as many as shape has")
    limits = field.get("range", None)
    expr = field.get("shape_expr", None)
    if limits.value is not None:
        bounds = limits.integers(least=-(1 << 63))
        if len(bounds) != 2 or bounds[0] > bounds[1]:
            raise limits.wrong("the least and the greatest value")
    return TensorSpec(
        name=name,
        dtype=dtype,
        device=device_field.text(),
        shape=shape,
        stride=stride,
        storage_offset=field.get("storage_offset", 0).integer(least=0),
        storage=field.get("storage").integer(least=0),
        requires_grad=field.get("requires_grad", False).boolean(),
        conj=field.get("conj", False).boolean(),
        neg=field.get("neg", False).boolean(),
        range=None if limits.value is None else (bounds[0], bounds[1]),
        shape_expr=None if expr.value is None else tuple(e.text() for e in expr.items()),
    )
