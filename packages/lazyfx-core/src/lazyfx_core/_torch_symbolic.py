"""Fake tensors and symbolic numbers as JSON, and back, in one fake tensor mode.

``node.meta["val"]`` holds tensors without data (``FakeTensor``) whose sizes may be symbols
(``SymInt``) of a shape environment. All that one writer describes comes back in one mode with one
environment, usable for more operations. A value is described by a pair, ``["tensor", i]``,
``["number", i]``, ``["expression", i]``, ``["mode", 0]`` or ``["shapes", 0]``; the tables they
refer to are the *environment*:

==================  ===============================================================================
``"expressions"``   rows of :mod:`lazyfx_core._expressions`
``"numbers"``       ``["int" | "float" | "bool", expression, hint]``, perhaps a fourth: a constant
``"layouts"``       ``[dtype, device, size, stride, offset, bytes of its storage, bits]``; lengths
                    are integers, or ``[i]`` for a number; bits: 1 requires grad, 2 is a parameter,
                    4 conjugated, 8 negated
``"tensors"``       a layout, or ``[layout, storage]`` where several tensors share a storage
``"mode"``          settings of the mode
``"shapes"``        the environment of :mod:`lazyfx_core._torch_shape_env`; only its settings if no
                    value was symbolic
==================  ===============================================================================

Kept: what the layout says, which tensor is which, and which of them share a storage. Not kept: real
values that a fake tensor knows of, the autograd history, memoised results of ``item()``.

:mod:`lazyfx_core._torch_fake` reads it.

==========================================  ============================================
private name                                used for
==========================================  ============================================
``torch._subclasses.fake_tensor``           ``FakeTensor``, ``FakeTensorMode``
``torch.fx.experimental.symbolic_shapes``   ``ShapeEnv``
``torch.fx.experimental.sym_node.SymNode``  what stands behind a symbolic number
``SymNode._expr``, ``SymNode._hint``        the expression before replacements; its hint
``Tensor._is_param``                        whether a fake tensor is a parameter
``UntypedStorage._cdata``                   which storage is which
==========================================  ============================================
"""

from __future__ import annotations

import collections
import sys
from typing import Any

import torch

from . import _torch_shape_env
from ._expressions import Expressions
from ._torch_fake import MODE_SETTINGS, SYMBOLIC, FakeReader, write_number
from ._torch_sympy import Unstorable, is_value_of, load_sympy

__all__ = ["FakeReader", "FakeWriter", "Unstorable", "is_fake_value"]


def is_fake_value(value: Any) -> bool:
    """Whether :class:`FakeWriter` is the one to describe ``value``. Imports nothing."""
    if isinstance(value, torch.Tensor):
        return _is_of("torch._subclasses.fake_tensor", "FakeTensor", value)
    return (
        type(value) in SYMBOLIC
        or _is_of("sympy", "Basic", value)
        or _is_of("torch.fx.experimental.symbolic_shapes", "ShapeEnv", value)
        or _is_of("torch._subclasses.fake_tensor", "FakeTensorMode", value)
    )


class FakeWriter:
    """Describes the fake values of one module. Not thread-safe; keeps them alive, changes none."""

    def __init__(self) -> None:
        from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
        from torch.fx.experimental.sym_node import SymNode
        from torch.fx.experimental.symbolic_shapes import ShapeEnv

        self._fake_tensor: Any = FakeTensor
        self._mode_type: Any = FakeTensorMode
        self._env_type: Any = ShapeEnv
        self._sym_node: Any = SymNode
        self._table = Expressions()
        self._seen: dict[int, tuple[Any, list[Any]]] = {}
        self._layouts: dict[Any, int] = {}
        self._layout_rows: list[list[Any]] = []
        self._tensors: list[tuple[int, int]] = []
        self._storages: dict[int, Any] = {}
        self._numbers: dict[str, int] = {}
        self._number_rows: list[list[Any]] = []
        self._nodes: dict[int, tuple[Any, int]] = {}
        self._modes: list[Any] = []
        self._shape_env: Any = None
        self._shapes: dict[str, Any] | None = None
        self._why_no_shapes = ""

    def describe(self, value: Any) -> list[Any]:
        """The JSON of one value; the same list for the same tensor.

        Args:
            value: A ``FakeTensor``, ``SymInt``, ``SymFloat``, ``SymBool``, ``sympy.Basic``,
                ``FakeTensorMode`` or ``ShapeEnv``.

        Raises:
            Unstorable: It cannot be stored; the text says why.
        """
        kind = type(value)
        if kind is self._fake_tensor:
            held = self._seen.get(id(value))
            if held is None:
                held = self._seen[id(value)] = (value, ["tensor", self._tensor(value)])
            return held[1]
        if kind in SYMBOLIC:
            return ["number", self._number(value)]
        if isinstance(value, torch.Tensor):
            raise Unstorable(f"it is a {kind.__module__}.{kind.__qualname__}, a tensor subclass")
        if kind is self._env_type:
            self._meet_env(value, "it")
            return ["shapes", 0]
        if kind is self._mode_type:
            if value.shape_env is not None:
                self._meet_env(value.shape_env, "its shape environment")
            self._meet_mode(value)
            return ["mode", 0]
        if not _is_of("sympy", "Basic", value):
            raise Unstorable(f"it is a {kind.__module__}.{kind.__qualname__}")
        return ["expression", self._table.index(value)]

    def environment(self) -> dict[str, Any]:
        """The tables that the descriptions refer to; ask when all has been described."""
        uses = collections.Counter(storage for _, storage in self._tensors)
        number = {storage: index for index, storage in enumerate(uses)}
        data: dict[str, Any] = {
            "expressions": self._table.rows,
            "numbers": self._number_rows,
            "layouts": self._layout_rows,
            "tensors": [
                layout if uses[storage] == 1 else [layout, number[storage]]
                for layout, storage in self._tensors
            ],
        }
        env = self._shape_env
        mode = next((mode for mode in self._modes if mode.shape_env is env), None)
        if mode is None and self._modes:
            mode = self._modes[0]
        if mode is not None:
            data["mode"] = {name: bool(getattr(mode, name)) for name in MODE_SETTINGS}
            env = env or mode.shape_env
        if self._shapes is not None:
            data["shapes"] = self._shapes
        elif env is not None:
            data["shapes"] = _torch_shape_env.write_settings(env)
        return data

    def _tensor(self, value: Any) -> int:
        if value.layout is not torch.strided or value.is_nested or value.is_quantized:
            what = "quantized" if value.is_quantized else str(value.layout)
            what = "nested" if value.is_nested else what
            raise Unstorable(f"it is a fake tensor of kind {what}; only strided ones are stored")
        storage = value.untyped_storage()
        key = (
            *(value.size(), value.stride(), value.storage_offset(), storage.nbytes()),
            *(value.dtype, value.fake_device, value.requires_grad, "_is_param" in value.__dict__),
            *(value.is_conj(), value.is_neg()),
        )
        try:
            layout = self._layouts.get(key)
        except TypeError:  # symbolic sizes have no hash, and comparing them would add guards
            key = self._without_symbols(key)
            layout = self._layouts.get(key)
        if layout is None:
            layout = self._layouts[key] = len(self._layout_rows)
            self._layout_rows.append(_layout_row(key))
        address, nbytes = storage._cdata, self._layout_rows[layout][5]
        if self._storages.setdefault(address, nbytes) != nbytes:
            raise Unstorable("its storage was resized while it was being stored")
        if value.fake_mode not in self._modes:
            self._meet_mode(value.fake_mode)
        self._tensors.append((layout, address))
        return len(self._tensors) - 1

    def _without_symbols(self, key: tuple[Any, ...]) -> tuple[Any, ...]:
        """``key`` with ``(i,)`` for the number in row ``i``."""

        def plain(length: Any) -> Any:
            return length if type(length) is int else (self._number(length),)

        size, stride, offset, nbytes, *rest = key
        lengths = tuple(map(plain, size)), tuple(map(plain, stride))
        return (*lengths, plain(offset), plain(nbytes), *rest)

    def _number(self, value: Any) -> int:
        node = value.node
        held = self._nodes.get(id(node))
        if held is not None:
            return held[1]
        if type(node) is not self._sym_node:
            raise Unstorable(f"the symbolic number {value} is a {type(node).__name__}")
        if node.shape_env is not self._shape_env or self._shapes is None:
            self._meet_env(node.shape_env, f"the shape environment of {value}")
        expression = node._expr
        if isinstance(expression, int):
            expression = load_sympy().sympify(expression)
        kind = SYMBOLIC[type(value)]
        if not is_value_of(kind, expression):
            raise Unstorable(f"the symbolic number {value} is not of kind {kind}")
        row = [kind, self._table.index(expression)]
        row += [write_number(known) for known in (node._hint, node.constant)]
        if node.constant is None:
            row.pop()
        key = repr(row)
        found = self._numbers.get(key)
        if found is None:
            found = self._numbers[key] = len(self._number_rows)
            self._number_rows.append(row)
        self._nodes[id(node)] = (node, found)
        return found

    def _meet_mode(self, mode: Any) -> None:
        if mode not in self._modes:
            self._modes.append(mode)

    def _meet_env(self, env: Any, what: str) -> None:
        """Take ``env`` for the environment of everything, unless there is one already."""
        if env is None:
            raise Unstorable(f"{what} is None")
        if self._shape_env is None:
            self._shape_env = env
            try:
                self._shapes = _torch_shape_env.write_shape_env(env, self._table)
            except Unstorable as error:
                self._why_no_shapes = str(error)
        if env is not self._shape_env:
            raise Unstorable(
                f"{what} is a second shape environment; all values are stored with one"
            )
        if self._shapes is None:
            raise Unstorable(self._why_no_shapes)


def _layout_row(key: tuple[Any, ...]) -> list[Any]:
    def plain(length: Any) -> Any:
        return list(length) if type(length) is tuple else length

    size, stride, offset, nbytes, dtype, device, *rest = key
    lengths = [plain(length) for length in size], [plain(length) for length in stride]
    bits = sum(1 << place for place, is_set in enumerate(rest) if is_set)
    return [str(dtype)[6:], str(device), *lengths, plain(offset), plain(nbytes), bits]


def _is_of(module: str, name: str, value: Any) -> bool:
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(value, cls)
