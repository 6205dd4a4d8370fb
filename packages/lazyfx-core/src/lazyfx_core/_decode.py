"""Values back from JSON: the reader of what :mod:`lazyfx_core._encode` writes.

Reading imports torch's own modules only, and calls nothing but constructors of the types in that
table. It expects hostile data: whatever is not in the table is a :class:`GraphFormatError`.
"""

from __future__ import annotations

import base64
import collections
import collections.abc
import enum
import functools
import math
import operator
import sys
import types
import typing
from typing import TYPE_CHECKING, Any

import torch
from torch.fx.immutable_collections import immutable_dict, immutable_list

from . import _names, _torch_records
from ._encode import TYPING_NAMES, stack_key
from ._torch_codegen import rebuild_spec
from ._torch_names import find_operator_safely
from ._torch_symbolic import FakeReader
from .errors import GraphFormatError, NotInThisTorchError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import fx

    Decode = Callable[[Any], Any]

_MANY = 64
_CONSTANTS = {"Ellipsis": Ellipsis, "NotImplemented": NotImplemented}
_LAYOUTS = (
    *("strided", "sparse_coo", "sparse_csr", "sparse_csc", "sparse_bsr", "sparse_bsc", "jagged"),
)
_MEMORY_FORMATS = ("contiguous_format", "channels_last", "channels_last_3d", "preserve_format")
_DTYPES = {str(v)[6:]: v for v in vars(torch).values() if isinstance(v, torch.dtype)}
_ATOMS = frozenset({str, int, float, bool, type(None)})


class Decoder:
    """Turns JSON back into values. Not thread-safe.

    Args:
        nodes: What ``{"node": i}`` refers to; may grow while reading.
        texts, shared, again, environment: The writer's tables.
        objects: What ``{"object": i}`` refers to.
        other: Decoders for the kinds that only the caller knows.
        find_name: What ``{"name": …}`` comes back as; by default the class or function if its
            module is loaded, else its qualified name as a string.
        fakes: Gives the reader of fake values; by default a new one, made from ``environment``.
        trusted: Otherwise names of what is loaded are read only while :attr:`in_metadata` is set:
            writers use them nowhere else, and code would be what the names say.

    Tables are read by :meth:`entry` alone, so that a value of the file is in at most one other: a
    short file cannot describe a long value, and nothing that holds itself.
    """

    def __init__(
        self,
        *,
        nodes: list[fx.Node],
        texts: Any = (),
        shared: Any = (),
        again: Any = (),
        environment: Any = None,
        objects: tuple[Any, ...] = (),
        other: dict[str, Decode] | None = None,
        find_name: Callable[[str], Any] | None = None,
        fakes: Callable[[], FakeReader] | None = None,
        trusted: bool = True,
    ) -> None:
        self.in_metadata = trusted
        self._nodes = nodes
        self._texts = texts
        self._shared = shared
        self._shared_done: dict[int, Any] = {}
        self._again = again
        self._copiers: dict[int, Callable[[], Any]] = {}
        self._absent: dict[tuple[str, int], str] = {}
        self.left_out: dict[str, str] = {}
        """Keys of metadata that this torch does not have, and why: the first of each."""
        self._known: dict[Any, Any] = {}
        self._fakes: FakeReader | None = None
        self._give_fakes = fakes or (lambda: FakeReader(environment))
        self._find_name = find_name or find_loaded
        self._of_kind: dict[str, Decode] = {
            "node": lambda v: nodes[_index(v, nodes, "node")],
            "tuple": lambda v: tuple([i if type(i) in _ATOMS else self(i) for i in _list(v)]),
            "dict": lambda v: {k: i if type(i) in _ATOMS else self(i) for k, i in _dict(v).items()},
            "items": lambda v: dict(self._pairs(v)),
            "ordered": lambda v: collections.OrderedDict(self._pairs(v)),
            "set": lambda v: set(self._hashables(v)),
            "frozenset": lambda v: frozenset(self._hashables(v)),
            "slice": lambda v: slice(*map(self, _list(v, 3))),
            "range": self._range,
            "float": _decode_float,
            "int": _decode_int,
            "complex": lambda v: complex(*map(self._float, _list(v, 2))),
            "bytes": _decode_bytes,
            "constant": lambda v: _one_of(v, _CONSTANTS, "constant"),
            "dtype": lambda v: _one_of(v, _DTYPES, "dtype"),
            "device": _decode_device,
            "layout": lambda v: _torch_constant(v, _LAYOUTS, "layout"),
            "memory_format": lambda v: _torch_constant(v, _MEMORY_FORMATS, "memory format"),
            "size": self._size,
            "list": lambda v: [self(item) for item in _list(v)],
            "op": lambda v: self._named(_decode_operator, v),
            "fn": lambda v: self._named(_decode_function, v),
            "record": self._record,
            "class": lambda v: _torch_records.find_class(_str(v, "class")),
            "spec": lambda v: rebuild_spec(v, self),
            "named": self._named_tuple,
            "enum": self._enum,
            "typing": self._typing,
            "alias": self._alias,
            "union": lambda v: _reduce_union([self(item) for item in _list(v)]),
            "fake": lambda v: self.fakes.build(v),
            "immutable": self._immutable,
            "name": self._loaded,
            "object": lambda v: objects[_index(v, objects, "object")],
            **(other or {}),
        }

    def __call__(self, data: Any) -> Any:
        """The value that ``data`` stands for.

        Raises:
            GraphFormatError: It stands for none.
        """
        kind = type(data)
        if kind is dict:
            if len(data) != 1:
                raise GraphFormatError(
                    f"a tagged value has exactly one key, found {sorted(data)[:5]}"
                )
            ((tag, content),) = data.items()
            decode = self._of_kind.get(tag)
            if decode is None:
                raise GraphFormatError(f"{tag!r} is not a kind of value that can be stored")
            return decode(content)
        if kind is list:
            return [self(item) for item in data]
        return data

    def entry(self, data: Any) -> Any:
        """An entry of metadata: the only place that refers to tables.

        Raises:
            GraphFormatError: It stands for no value.
        """
        if type(data) is dict and len(data) == 1:
            ((tag, content),) = data.items()
            if tag == "text":
                return self._texts[_index(content, self._texts, tag)]
            if tag in ("shared", "again"):
                return self._from_table(tag, content)
        return self(data)

    def arguments(self, data: list[Any]) -> tuple[Any, ...]:
        """The positional arguments of a node: what is called most, hence the shortcuts."""
        nodes, count = self._nodes, len(self._nodes)
        values = []
        for item in data:
            kind = type(item)
            if kind is dict:
                index = item.get("node")
                if type(index) is int and 0 <= index < count and len(item) == 1:
                    values.append(nodes[index])
                else:
                    values.append(self(item))
            else:
                values.append(self(item) if kind is list else item)
        return tuple(values)

    @property
    def fakes(self) -> FakeReader:
        """The reader of fake values; made when first asked for."""
        if self._fakes is None:
            self._fakes = self._give_fakes()
        return self._fakes

    def _require_metadata(self, what: str) -> None:
        if not self.in_metadata:
            raise GraphFormatError(f"{what} may stand in metadata only")

    def _loaded(self, data: Any) -> Any:
        self._require_metadata(f"what is only named ({data!r:.80})")
        return self._find_name(_str(data, "name"))

    def _named(self, decode: Decode, data: Any) -> Any:
        """An operator or function; each is looked up once."""
        first, second = _list(data, 2)
        key = (decode, _str(first, "a name"), _str(second, "a name"))
        found = self._known.get(key)
        if found is None:
            found = self._known[key] = decode(data)
        return found

    def _immutable(self, data: Any) -> Any:
        value = self(data)
        if type(value) not in (list, dict):
            raise GraphFormatError(f"{value!r:.80} is neither a list nor a dict")
        return immutable_list(value) if type(value) is list else immutable_dict(value)

    def _from_table(self, tag: str, index: Any) -> Any:
        if type(index) is int and (tag, index) in self._absent:
            raise NotInThisTorchError(self._absent[tag, index])
        try:
            return self._share(index) if tag == "shared" else self._repeat(index)
        except NotInThisTorchError as error:  # other entries refer to it: not to be read again
            self._absent[tag, index] = str(error)
            raise

    def _share(self, data: Any) -> Any:
        index = _index(data, self._shared, "shared")
        if index not in self._shared_done:
            content = self._shared[index]
            is_copy = type(content) is dict and content.keys() == {"again"}
            value = self._repeat(content["again"]) if is_copy else self(content)
            self._shared_done[index] = value
        return self._shared_done[index]

    def _repeat(self, data: Any) -> Any:
        """A value of its own, equal to that of the table. Costs no more than a short list."""
        copier = self._copiers.get(data) if type(data) is int else None
        if copier is None:
            copier = _copier(self(self._again[_index(data, self._again, "again")]))
            self._copiers[data] = copier
        return copier()

    def _pairs(self, data: Any) -> list[tuple[Any, Any]]:
        pairs = [_list(pair, 2) for pair in _list(data)]
        made = [(_hashable(self(key)), self(item)) for key, item in pairs]
        _require_different_hashes([key for key, _ in made])
        return made

    def _hashables(self, data: Any) -> list[Any]:
        values = [_hashable(self(item)) for item in _list(data)]
        _require_different_hashes(values)
        return values

    def _float(self, data: Any) -> float:
        value = self(data)
        if not isinstance(value, (int, float)):
            raise GraphFormatError(f"expected a number, found {value!r:.80}")
        return float(value)

    def _range(self, data: Any) -> range:
        bounds = [self(item) for item in _list(data, 3)]
        if not all(type(bound) is int for bound in bounds) or not bounds[2]:
            raise GraphFormatError(f"a range takes start, stop, step, found {bounds!r:.80}")
        return range(*bounds)

    def _size(self, data: Any) -> Any:
        sizes = [item if type(item) is int else self(item) for item in _list(data)]
        if not all(type(size) is int or isinstance(size, torch.SymInt) for size in sizes):
            raise GraphFormatError(f"a torch.Size holds integers, found {sizes!r:.80}")
        try:
            return torch.Size(sizes)
        except (RuntimeError, TypeError, ValueError, OverflowError) as error:
            raise GraphFormatError(f"no torch.Size: {sizes!r:.80} ({error})") from error

    def _record(self, data: Any) -> Any:
        path, fields = _list(data, 2)
        values = {
            name: item if type(item) in _ATOMS else self(item)
            for name, item in _dict(fields).items()
        }
        return _torch_records.rebuild(_str(path, "record"), values)

    def _named_tuple(self, data: Any) -> Any:
        cls: Any
        cls, items = _list(data, 2)
        cls = self(cls)
        values = [self(item) for item in _list(items)]
        is_plain = hasattr(cls, "_fields")
        fields = getattr(cls, "_fields", range(getattr(cls, "n_sequence_fields", 0)))
        if not isinstance(cls, type) or not issubclass(cls, tuple) or len(values) != len(fields):
            raise GraphFormatError(f"{cls!r:.80} is no named tuple of {len(values)} fields")
        if not is_plain and _names.name_of(cls) is None:
            raise GraphFormatError(f"{cls!r:.80} is not a named tuple of torch's")
        return tuple.__new__(cls, values) if is_plain else cls(values)

    def _enum(self, data: Any) -> Any:
        cls, name = _list(data, 2)
        cls = self(cls)
        members: Any = cls.__members__ if isinstance(cls, enum.EnumMeta) else {}
        return _one_of(name, members, f"member of {cls!r:.80}")

    def _typing(self, data: Any) -> Any:
        name, arguments = _list(data, 2)
        if type(name) is not str or name not in TYPING_NAMES:
            raise GraphFormatError(f"{name!r:.80} is not an annotation that can be stored")
        generic = getattr(typing, name)
        return self._subscribe(generic, arguments) if _list(arguments) else generic

    def _alias(self, data: Any) -> Any:
        origin, arguments = _list(data, 2)
        values = tuple([self(item) for item in _list(arguments)])
        origin = _type(self(origin))
        if origin is collections.abc.Callable and len(values) == 2:
            return collections.abc.Callable[values[0], values[1]]
        # As written. Subscribing would call what a class or its metaclass defines.
        return types.GenericAlias(origin, values)

    def _subscribe(self, generic: Any, arguments: Any) -> Any:
        values = [self(item) for item in _list(arguments)]
        if generic is typing.Callable and len(values) == 2:
            return typing.Callable[values[0], values[1]]
        try:
            return generic[tuple(values) if len(values) != 1 else values[0]]
        except TypeError as error:
            raise GraphFormatError(f"{generic!r:.80} does not take {values!r:.80}") from error


def _copier(value: Any) -> Callable[[], Any]:
    """What makes a copy of ``value``, which is of the kinds that writers repeat.

    Raises:
        GraphFormatError: It is of another kind. A copy of anything could be of any size.
    """
    if stack_key(value) is not None:
        copy: Callable[[], Any] = value.copy
        return copy
    make = _torch_records.tensor_meta_copier(value)
    if make is None:
        raise GraphFormatError(f"a value that is repeated may not be {value!r:.80}")
    return make


def find_loaded(name: str) -> Any:
    """The class or function called ``module:qualname`` if its module is loaded, else the name.

    Nothing is imported. The qualified name is what ``torch.export`` keeps of a module class.
    """
    module_name, _, qualified = name.partition(":")
    found: Any = sys.modules.get(module_name)
    for atom in qualified.split("."):
        found = vars(found).get(atom) if isinstance(found, (types.ModuleType, type)) else None
    is_it = isinstance(found, (type, types.FunctionType, types.BuiltinFunctionType))
    is_it = is_it and found.__qualname__ == qualified
    return found if is_it else f"{module_name}.{qualified}"


def _decode_float(data: Any) -> float:
    names = {"inf": math.inf, "-inf": -math.inf, "nan": math.nan}
    return float(_one_of(data, names, "float"))


def _decode_int(data: Any) -> int:
    try:
        return int(_str(data, "int"), 16)
    except ValueError as error:
        raise GraphFormatError(f"not an integer in hexadecimal: {data!r:.80}") from error


def _decode_bytes(data: Any) -> bytes:
    try:
        return base64.b64decode(_str(data, "bytes"), validate=True)
    except ValueError as error:
        raise GraphFormatError(f"not bytes in base64: {data!r:.80}") from error


def _decode_device(data: Any) -> torch.device:
    try:
        return torch.device(_str(data, "device"))
    except RuntimeError as error:
        raise GraphFormatError(f"not a device: {data!r:.80}") from error


def _torch_constant(data: Any, names: tuple[str, ...], what: str) -> Any:
    if data not in names or not hasattr(torch, data):
        raise GraphFormatError(f"this torch has no {what} {data!r:.80}")
    return getattr(torch, data)


def _decode_operator(data: Any) -> Any:
    kind, name = (_str(item, "op") for item in _list(data, 2))
    found = find_operator_safely(kind, name)
    if found is None:
        raise NotInThisTorchError(
            f"the {kind} operator {name!r:.200} is not in this torch; import the library that "
            "registers it before loading"
        )
    return found


def _decode_function(data: Any) -> Any:
    namespace, name = (_str(item, "fn") for item in _list(data, 2))
    found = _names.find(namespace, name)
    if found is None:
        kind = NotInThisTorchError if _names.is_namespace(namespace) else GraphFormatError
        raise kind(f"{namespace}.{name} is not a function this torch knows")
    return found


def _reduce_union(values: list[Any]) -> Any:
    if len(values) < 2:
        raise GraphFormatError("a union has at least two members")
    try:
        return functools.reduce(operator.or_, map(_type, values))
    except TypeError as error:
        raise GraphFormatError(f"no union: {values!r:.80}") from error


def _type(value: Any) -> Any:
    if value is None or isinstance(value, (type, types.GenericAlias, types.UnionType)):
        if isinstance(value, type) and type(value).__or__ is not type.__or__:
            raise GraphFormatError(f"{value!r:.80} makes unions in its own way")
        return value
    if getattr(value, "__module__", None) == "typing":
        return value
    raise GraphFormatError(f"expected a type, found {value!r:.80}")


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError as error:
        raise GraphFormatError(f"a key is not hashable: {value!r:.80}") from error
    return value


def _require_different_hashes(keys: list[Any]) -> None:
    """Dictionaries of keys with one hash take quadratic time."""
    if len(keys) > _MANY and max(collections.Counter(map(hash, keys)).values()) > _MANY:
        raise GraphFormatError(f"more than {_MANY} keys have the same hash")


def _index(value: Any, table: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < len(table):
        raise GraphFormatError(f"{what} {value!r:.80} does not exist; there are {len(table)}")
    return value


def _list(value: Any, length: int | None = None) -> list[Any]:
    if type(value) is not list or (length is not None and len(value) != length):
        of = "" if length is None else f" of {length}"
        raise GraphFormatError(f"expected a list{of}, found {value!r:.80}")
    return value


def _dict(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise GraphFormatError(f"expected an object, found {value!r:.80}")
    return value


def _str(value: Any, what: str) -> str:
    if type(value) is not str:
        raise GraphFormatError(f"{what} is written as text, found {value!r:.80}")
    return value


def _one_of(value: Any, table: Any, what: str) -> Any:
    if type(value) is not str or value not in table:
        kind = NotInThisTorchError if table is _DTYPES and type(value) is str else GraphFormatError
        raise kind(f"{value!r:.80} is not a {what} that this torch has")
    return table[value]
