"""Builds the fake tensors and symbolic numbers that :mod:`lazyfx_core._torch_symbolic` describes.

Fake tensors are put together as torch's own converter does it, from a tensor on the ``meta`` device
and the device it claims to be on, not by running operators under the mode. Nothing is allocated,
whatever the sizes say. A tensor on a device that is not there can be read; where CUDA is there,
torch initializes it for the first fake CUDA tensor.

Tensors with symbolic sizes are made by the constructor for wrapper subclasses, because it takes
sizes as they are: every operator would first check them, symbol by symbol, for some 400 µs.

=============================================  ==============================================
private name                                   used for
=============================================  ==============================================
``torch._subclasses.fake_tensor``              ``FakeTensor``, ``FakeTensorMode``
``torch.fx.experimental.sym_node.SymNode``     what stands behind a symbolic number
``SymNode._hint``                              set, so that torch does not work it out
``Tensor._make_wrapper_subclass``              meta tensors with symbolic sizes
``torch._C._DisableTorchDispatch``             building tensors whatever modes are active
``torch._C.DisableTorchFunction``              the same
``torch._C._set_conj``, ``torch._C._set_neg``  the lazy conjugation and negation bits
``FakeTensor._fake_device``                    the device, with its number (after torch 2.11)
``Tensor._is_param``                           being a parameter
=============================================  ==============================================
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from . import _torch_shape_env
from ._expressions import Expressions
from ._torch_sympy import Unstorable, int_from_json, int_to_json, is_value_of
from .errors import GraphFormatError, NotInThisTorchError

if TYPE_CHECKING:
    from collections.abc import Iterator

SYMBOLIC: dict[Any, str] = {torch.SymInt: "int", torch.SymFloat: "float", torch.SymBool: "bool"}
"""How the kinds of symbolic numbers are written."""
MODE_SETTINGS = ("allow_non_fake_inputs", "allow_fallback_kernels", "static_shapes")
"""The attributes of a fake tensor mode that are stored."""

_KINDS: dict[Any, tuple[Any, Any]] = {
    "int": (int, torch.SymInt),
    "float": (float, torch.SymFloat),
    "bool": (bool, torch.SymBool),
}
_TABLES = ("expressions", "numbers", "layouts", "tensors")
_REQUIRES_GRAD, _PARAMETER, _CONJUGATED, _NEGATED = 1, 2, 4, 8
_NOTHING: Any = (None, None)
_MAX_LENGTH = 1 << 63
_TORCH_REFUSES = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError),
    *(RuntimeError, TypeError, ValueError),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """One row of ``layouts``, checked; ``nbytes_row`` is how its storage's size was written."""

    dtype: torch.dtype
    device: torch.device
    size: tuple[Any, ...]
    stride: tuple[Any, ...]
    offset: Any
    nbytes: Any
    nbytes_row: Any
    bits: int

    @property
    def is_symbolic(self) -> bool:
        lengths = (*self.size, *self.stride, self.offset, self.nbytes)
        return any(type(length) is not int for length in lengths)

    @property
    def is_natural(self) -> bool:
        """Whether a new tensor of this size and stride has a storage of just this size."""
        if self.is_symbolic or self.offset != 0:
            return False
        last = sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        return bool(self.nbytes == (0 if 0 in self.size else (last + 1) * self.dtype.itemsize))


class FakeReader:
    """Builds the fake values that a ``FakeWriter`` described. Not thread-safe.

    Args:
        environment: Its tables. They are looked at here and read when a value first needs them.

    Raises:
        GraphFormatError: ``environment`` is not what ``FakeWriter.environment`` returns.
    """

    def __init__(self, environment: Any) -> None:
        if type(environment) is not dict:
            raise GraphFormatError(
                f"the environment of fake values is an object, found {environment!r:.80}"
            )
        unknown = set(environment).difference((*_TABLES, "mode", "shapes"))
        if unknown:
            raise GraphFormatError(
                f"the environment of fake values has no {sorted(map(str, unknown))[:5]!r:.200}"
            )
        tables = {name: environment.get(name, []) for name in _TABLES}
        for name, rows in tables.items():
            if type(rows) is not list:
                raise GraphFormatError(f"fake values, {name}: expected a list, found {rows!r:.80}")
        self._data = environment
        self._rows: dict[str, list[Any]] = tables
        self._mode_settings = _read_mode(environment.get("mode", {}))
        self._table: Expressions | None = None
        self._absent: str | None = None
        self._mode: Any = None
        self._fake_tensor: Any = None
        self._numbers: dict[int, Any] = {}
        self._layouts: dict[int, tuple[_Layout, bool]] = {}
        self._tensors: dict[int, Any] = {}
        self._storages: dict[int, tuple[_Layout, Any]] = {}

    @property
    def fake_mode(self) -> Any:
        """The ``FakeTensorMode`` of all values; made when first asked for.

        Raises:
            GraphFormatError: Its shape environment cannot be read.
        """
        if self._mode is None:
            from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

            env = None
            if "shapes" in self._data:
                with _refusals("the shape environment"):
                    env = _torch_shape_env.read_shape_env(self._data["shapes"], self._expressions())
            self._fake_tensor = FakeTensor
            self._mode = FakeTensorMode(shape_env=env, **self._mode_settings)
        return self._mode

    def build(self, description: Any) -> Any:
        """The value that was described; the same object for the same tensor.

        Raises:
            GraphFormatError: ``description`` is not one, or a table it refers to is damaged.
            NotInThisTorchError: This torch lacks what it needs, or what any expression needs.
        """
        if self._table is None and self._rows["expressions"]:
            self._expressions()
        if type(description) is not list or len(description) != 2:
            raise GraphFormatError(f"no description of a fake value: {description!r:.80}")
        kind, index = description
        if kind == "tensor":
            found = self._tensors.get(index) if type(index) is int else None
            return self._tensor(index) if found is None else found
        if kind == "number":
            return self._number(index)
        if kind == "expression":
            return self._expressions().at(index)
        if kind == "mode" and index == 0:
            return self.fake_mode
        if kind == "shapes" and index == 0 and "shapes" in self._data:
            return self.fake_mode.shape_env
        raise GraphFormatError(f"{description!r:.80} does not describe a fake value")

    def _expressions(self) -> Expressions:
        if self._absent is not None:  # each value asks: the table is not to be read again
            raise NotInThisTorchError(self._absent)
        if self._table is None:
            table = Expressions()
            try:
                for row in self._rows["expressions"]:
                    table.add(row)
            except NotInThisTorchError as error:
                self._absent = str(error)
                raise
            self._table = table
        return self._table

    def _number(self, index: Any) -> Any:
        row = self._row("numbers", index)
        found = self._numbers.get(index)
        if found is not None:
            return found
        where = f"fake values, number {index}"
        if type(row) is not list or len(row) not in (3, 4) or type(row[0]) is not str:
            raise GraphFormatError(f"{where}: expected a kind, an expression, a hint: {row!r:.80}")
        if row[0] not in _KINDS:
            raise GraphFormatError(f"{where}: {row[0]!r:.80} is not a kind of number")
        python_type, symbolic_type = _KINDS[row[0]]
        expression = self._expressions().at(row[1])
        if not is_value_of(row[0], expression):
            raise GraphFormatError(f"{where}: {expression!s:.80} is not of kind {row[0]}")
        known = [_read_number(item, where) for item in row[2:]]
        if any(value is not None and type(value) is not python_type for value in known):
            raise GraphFormatError(f"{where}: {row[2:]!r:.80} is not of kind {row[0]}")
        env = self.fake_mode.shape_env
        if env is None:
            raise GraphFormatError(f"{where}: there is no shape environment")
        made = self._numbers[index] = symbolic_type(_node(expression, env, python_type, *known))
        return made

    def _tensor(self, index: Any) -> Any:
        row = self._row("tensors", index)
        storage = None
        if type(row) is list and len(row) == 2 and type(row[1]) is int:
            row, storage = row
        found = self._layouts.get(row) if type(row) is int else None
        layout, is_natural = self._layout(row) if found is None else found
        if self._mode is None:
            self.fake_mode  # noqa: B018 - makes it
        with _refusals(f"tensor {index}"), torch._C._DisableTorchDispatch():
            if is_natural and storage is None and not torch.is_inference_mode_enabled():
                with torch._C.DisableTorchFunction():
                    element = torch.empty_strided(
                        layout.size, layout.stride, dtype=layout.dtype, device="meta"
                    )
                    made = self._wrap(element, layout)
            else:
                made = self._other(layout, storage)
        self._tensors[index] = made
        return made

    def _layout(self, index: Any) -> tuple[_Layout, bool]:
        row = self._row("layouts", index)
        where = f"fake values, layout {index}"
        if type(row) is not list or len(row) != 7:
            raise GraphFormatError(f"{where}: expected a list of 7, found {row!r:.80}")
        name, device, sizes, strides, offset, nbytes, bits = row
        dtype = getattr(torch, name, None) if type(name) is str else None
        if not isinstance(dtype, torch.dtype) or str(dtype)[6:] != name:
            kind = NotInThisTorchError if type(name) is str else GraphFormatError
            raise kind(f"{where}: {name!r:.80} is not a dtype that this torch has")
        if type(sizes) is not list or type(strides) is not list or len(sizes) != len(strides):
            raise GraphFormatError(f"{where}: sizes and strides are two lists of one length")
        if type(bits) is not int or not 0 <= bits < 16:
            raise GraphFormatError(f"{where}: {bits!r:.80} is not a set of four bits")
        try:
            device = torch.device(device if type(device) is str else "")
        except RuntimeError as error:
            raise GraphFormatError(f"{where}: {row[1]!r:.80} is not a device") from error
        made = _Layout(
            dtype=dtype,
            device=device,
            size=tuple(self._length(item, where) for item in sizes),
            stride=tuple(self._length(item, where) for item in strides),
            offset=self._length(offset, where),
            nbytes=self._length(nbytes, where),
            nbytes_row=nbytes,
            bits=bits,
        )
        found = self._layouts[index] = (made, made.is_natural)
        return found

    def _length(self, data: Any, where: str) -> Any:
        if type(data) is int and 0 <= data < _MAX_LENGTH:
            return data
        if type(data) is list and len(data) == 1:
            made = self._number(data[0])
            if type(made) is torch.SymInt:
                return made
        raise GraphFormatError(f"{where}: {data!r:.80} is not a length")

    def _other(self, layout: _Layout, key: int | None) -> Any:
        """A tensor with an offset or symbols, or on a storage that is not just its own."""
        quiet: Any = contextlib.nullcontext()
        if layout.is_symbolic:
            quiet = _torch_shape_env.without_replacements(self._mode.shape_env)
        with torch._C.DisableTorchFunction(), torch.inference_mode(False), quiet:
            held, first = _NOTHING if key is None else self._storages.get(key, _NOTHING)
            if held is None:
                element = _with_symbols(layout) if layout.is_symbolic else _on_new_storage(layout)
                if key is not None:
                    self._storages[key] = (layout, element)
            elif held is layout:
                element = first  # becoming a fake tensor, it is copied, and its storage is not
            elif held.nbytes_row != layout.nbytes_row:
                raise GraphFormatError(
                    f"storage {key} has two sizes, {held.nbytes_row!r:.80} and "
                    f"{layout.nbytes_row!r:.80}"
                )
            elif layout.is_symbolic and held.dtype is layout.dtype:
                element = first.as_strided(layout.size, layout.stride, layout.offset)
            else:
                element = _on_storage(first.untyped_storage(), layout)
            return self._wrap(element, layout)

    def _wrap(self, element: Any, layout: _Layout) -> Any:
        device = layout.device
        if device.index:
            # torch initializes the device it is told; one of this number may not be there.
            made = self._fake_tensor(self._mode, element, torch.device(device.type, 0))
            own = vars(made)
            own["_fake_device" if "_fake_device" in own else "fake_device"] = device
        else:
            made = self._fake_tensor(self._mode, element, device)
        bits = layout.bits
        if bits:
            if bits & _CONJUGATED:
                torch._C._set_conj(made, True)
            if bits & _NEGATED:
                torch._C._set_neg(made, True)
            if bits & _REQUIRES_GRAD:
                made.requires_grad_(True)
            if bits & _PARAMETER:
                made._is_param = True
        return made

    def _row(self, table: str, index: Any) -> Any:
        rows = self._rows[table]
        if type(index) is not int or not 0 <= index < len(rows):
            raise GraphFormatError(
                f"fake values, {table}: {index!r:.80} does not exist; there are {len(rows)}"
            )
        return rows[index]


class _Sizes(torch.Tensor):
    """A tensor with symbolic sizes on the way to being a fake tensor; nobody gets to see one."""

    @classmethod
    def __torch_dispatch__(  # type: ignore[override] # torch declares it without its first argument
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise AssertionError(f"{func} was called on a tensor that is still being read")


def _on_new_storage(layout: _Layout) -> Any:
    storage: Any = torch.UntypedStorage
    return _on_storage(storage(layout.nbytes, device="meta"), layout)


def _on_storage(storage: Any, layout: _Layout) -> Any:
    element: Any = torch.empty(0, dtype=layout.dtype, device="meta")
    element.set_(storage, layout.offset, layout.size, layout.stride)
    if not layout.is_symbolic and storage.nbytes() != layout.nbytes:
        storage.resize_(layout.nbytes)  # it was smaller, and set_() has made it larger
    return element


def _with_symbols(layout: _Layout) -> Any:
    make: Any = torch.Tensor._make_wrapper_subclass
    return make(
        *(_Sizes, layout.size, layout.stride, layout.offset),
        dtype=layout.dtype,
        device="meta",
        storage_size=layout.nbytes,
    )


def _node(expression: Any, env: Any, python_type: Any, hint: Any, constant: Any = None) -> Any:
    from torch.fx.experimental.sym_node import SymNode

    # Without a hint torch would work one out, which may take long and may fail.
    node: Any = SymNode(expression, env, python_type, python_type(), constant)
    node._hint = hint
    return node


def write_number(value: Any) -> Any:
    """A hint or constant as JSON.

    Raises:
        Unstorable: It is not a plain number.
    """
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is int:
        return int_to_json(value)
    if kind is float:
        return ["float", value.hex()]
    raise Unstorable(f"a symbolic number has a {kind.__name__} for a hint")


def _read_number(data: Any, where: str) -> Any:
    if data is None or type(data) is bool:
        return data
    if type(data) is list and len(data) == 2 and data[0] == "float" and type(data[1]) is str:
        try:
            return float.fromhex(data[1])
        except (ValueError, OverflowError) as error:
            raise GraphFormatError(f"{where}: {data[1]!r:.80} is not a float") from error
    return int_from_json(data)


def _read_mode(data: Any) -> dict[str, bool]:
    if type(data) is not dict:
        raise GraphFormatError(f"fake values, mode: expected an object, found {data!r:.80}")
    for name, value in data.items():
        if name not in MODE_SETTINGS:
            raise GraphFormatError(f"fake values, mode: there is no setting {name!r:.80}")
        if type(value) is not bool:
            raise GraphFormatError(f"fake values, mode: {name} is {value!r:.80}, not true or false")
    return data


@contextlib.contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn what torch has against ``what`` into an error of ours."""
    try:
        yield
    except GraphFormatError as error:
        raise type(error)(f"fake values, {what}: {error}") from error
    except _TORCH_REFUSES as error:
        raise GraphFormatError(f"fake values, {what}: torch refuses it: {error!s:.200}") from error
