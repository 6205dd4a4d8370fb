"""Python values as JSON: the alphabet in which graphs are stored.

``None``, ``bool``, ``str``, ``int``, finite ``float`` and ``list`` stand for themselves. Everything
else is a JSON object with exactly one key that says what it is:

==========================================  ====================================================
``{"node": 3}``                             the fourth node of the graph
``{"tuple": […]}``, ``set``, ``frozenset``  containers; sets are sorted, so equal sets look equal
``{"list": […]}``                           a list in metadata, which may move to a table
``{"immutable": …}``                        torch's immutable lists and dicts in metadata
``{"dict": {…}}``, ``{"items": [[k, v]]}``  string keys, any keys; ``ordered``: OrderedDict
``{"slice": [a, b, c]}``, ``range``         as the constructors take them
``{"float": "inf"}``, ``{"int": "0x…"}``    what JSON numbers cannot say
``{"complex": [re, im]}``, ``bytes``        ``bytes`` in base64
``{"dtype": "float32"}``                    also ``device``, ``layout``, ``memory_format``, ``size``
``{"op": ["overload", "aten.add.Tensor"]}`` an operator of torch's registries
``{"fn": ["torch", "sin"]}``                a function or class of the table in ``_names``
``{"record": ["torch…", {…}]}``             a dataclass, named tuple or enum of torch's own
``{"class": "torch…"}``                     a class of torch's own that is only referred to
``{"spec": […]}``                           a tree spec
``{"typing": ["List", […]]}``               an annotation
``{"fake": …}``                             a fake tensor, a symbolic number, an expression
``{"text": 5}``, ``{"shared": 7}``          an entry of the writer's tables
``{"again": 4}``                            a copy of an entry: equal to others, and its own object;
                                            these three are entries of metadata, and nothing less
``{"name": "module:qualname"}``             a class or function that was written by name only
``{"object": 2}``, ``{"tensor": 2}``        whatever the door of the caller stores besides the JSON
==========================================  ====================================================

:mod:`lazyfx_core._decode` reads it.
"""

from __future__ import annotations

import base64
import collections
import enum
import json
import math
import types
import typing
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.fx.immutable_collections import immutable_dict, immutable_list

from . import _names, _torch_records
from ._torch_codegen import describe_spec, is_spec
from ._torch_graph import operator_name
from ._torch_symbolic import FakeWriter, Unstorable, is_fake_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Encode = Callable[[Any], Any]

TYPING_NAMES = frozenset(
    {
        *("Any", "Callable", "Dict", "FrozenSet", "Iterable", "List", "Mapping", "NamedTuple"),
        *("NoReturn", "Optional", "Sequence", "Set", "Tuple", "Type", "Union"),
    }
)
"""Names of ``typing`` that may stand in an annotation."""

LONGEST_REPEATED = 32
"""Entries of a value that may be repeated by its number alone: what a short text may grow to."""

_SMALL_INT = 1 << 63
_LONG_TEXT = 40
_ATOMS = frozenset({str, bool, type(None)})
_CONTAINERS = frozenset({list, dict, tuple, set})
_DTYPES = {v: {"dtype": str(v)[6:]} for v in vars(torch).values() if isinstance(v, torch.dtype)}


class Encoder:
    """Turns the values of one module into JSON. Not thread-safe; keeps what it wrote alive.

    Args:
        other: Stores what the alphabet cannot say and returns its JSON, or raises ``Unstorable``.
        nodes: The JSON of each node that may be referred to.
        fakes: Gives the writer of fake values; by default a new one, for this encoder alone.
    """

    def __init__(
        self,
        other: Encode,
        nodes: dict[fx.Node, Any],
        fakes: Callable[[], FakeWriter] | None = None,
    ) -> None:
        self.texts: list[str] = []
        self.shared: list[Any] = []
        self.again: list[Any] = []
        self.nodes = nodes
        self.in_meta = False
        self.by_name_only = False  # classes and functions that are not in the table
        self._fakes: FakeWriter | None = None
        self._give_fakes = fakes
        self._store_other = other
        self._text_index: dict[str, Any] = {}
        self._shared_index: dict[int, tuple[Any, Any]] = {}
        self._again_index: dict[Any, int] = {}
        self._named: dict[int, tuple[Any, Any]] = {}  # of operators, functions and classes
        self._named_only: dict[int, tuple[Any, Any]] = {}  # the same, while by_name_only is set
        self._of_type: dict[type, Encode] = {
            int: _encode_int,
            float: _encode_float,
            fx.Node: self._encode_node,
            list: self._encode_list,
            immutable_list: self._encode_immutable,
            tuple: lambda value: {"tuple": self._encode_list(value)},
            dict: self._encode_dict,
            immutable_dict: self._encode_immutable,
            collections.OrderedDict: lambda value: {"ordered": self._pairs(value)},
            set: lambda value: {"set": self._sorted(value)},
            frozenset: lambda value: {"frozenset": self._sorted(value)},
            slice: lambda v: {"slice": [self(v.start), self(v.stop), self(v.step)]},
            range: lambda v: {"range": [self(v.start), self(v.stop), self(v.step)]},
            complex: lambda v: {"complex": [_encode_float(v.real), _encode_float(v.imag)]},
            bytes: lambda v: {"bytes": base64.b64encode(v).decode()},
            type(...): lambda _: {"constant": "Ellipsis"},
            type(NotImplemented): lambda _: {"constant": "NotImplemented"},
            torch.dtype: _DTYPES.__getitem__,
            torch.device: lambda v: {"device": str(v)},
            torch.layout: lambda v: {"layout": str(v)[6:]},
            torch.memory_format: lambda v: {"memory_format": str(v)[6:]},
            torch.Size: lambda v: {"size": self._encode_list(v)},
        }

    def __call__(self, value: Any) -> Any:
        """The JSON of ``value``.

        Raises:
            Unstorable: It cannot be stored; says why.
        """
        kind = type(value)
        if kind in _ATOMS:
            return value
        encode = self._of_type.get(kind)
        return self._other(value) if encode is None else encode(value)

    def text(self, value: str) -> Any:
        """A string that is likely to come again."""
        if len(value) < _LONG_TEXT:
            return value
        found = self._text_index.get(value)
        if found is None:
            found = self._text_index[value] = {"text": len(self.texts)}
            self.texts.append(value)
        return found

    def entry(self, value: Any) -> Any:
        """An entry of metadata: the only place that refers to tables."""
        kind = type(value)
        if kind is str:
            return self.text(value)
        if kind in _CONTAINERS:
            return self.once(value)
        if _torch_records.is_tensor_meta(value):
            key = _torch_records.tensor_meta_key(value)
            return self(value) if key is None else self._repeat(key, value, self)
        return self(value)

    def once(self, value: Any) -> Any:
        """A container that may be referred to from several places; they will share it again.

        It stands where it was met first, until it is met again: only then it moves to the table.
        """
        held = self._shared_index.get(id(value))
        if held is None:
            stack = self.by_name_only and stack_key(value)
            encoded = self._repeat(stack, value, self._encode_dict) if stack else self(value)
            if type(encoded) is not dict:
                encoded = {"list": encoded}
            self._shared_index[id(value)] = (encoded, value)
            return encoded
        encoded = held[0]
        if "shared" not in encoded:
            self.shared.append(dict(encoded))
            encoded.clear()
            encoded["shared"] = len(self.shared) - 1
        return encoded

    def _repeat(self, key: Any, value: Any, encode: Encode) -> Any:
        """A value that is likely to be equal to others; ``key`` is equal if they are the same."""
        index = self._again_index.get(key)
        if index is None:
            encoded = encode(value)
            index = self._again_index[key] = len(self.again)
            self.again.append(encoded)
        return {"again": index}

    def enter_meta(self, other: Encode) -> Encode:
        """Let ``other`` store what JSON cannot say; returns what :meth:`leave_meta` takes."""
        outside, self._store_other = self._store_other, other
        self.in_meta = True
        return outside

    def leave_meta(self, outside: Encode) -> None:
        """Go back to what :meth:`enter_meta` returned."""
        self._store_other, self.by_name_only, self.in_meta = outside, False, False

    def environment(self) -> Any:
        """What the fake values of this writer have in common; ask when all has been written."""
        if self._fakes is None or self._give_fakes is not None:
            return None
        return self._fakes.environment()

    def _encode_node(self, node: fx.Node) -> Any:
        try:
            return self.nodes[node]
        except KeyError:
            raise Unstorable(f"it refers to {node.name!r}, which is not a node before it") from None

    def _encode_list(self, value: Iterable[Any]) -> list[Any]:
        return [item if type(item) in _ATOMS else self(item) for item in value]

    def _encode_dict(self, value: dict[Any, Any]) -> Any:
        if all(type(key) is str for key in value):
            return {"dict": {k: v if type(v) in _ATOMS else self(v) for k, v in value.items()}}
        return {"items": self._pairs(value)}

    def _encode_immutable(self, value: Any) -> Any:
        """Of arguments, where torch makes it again; metadata is left as it is."""
        data = self._encode_dict(value) if isinstance(value, dict) else self._encode_list(value)
        return {"immutable": data} if self.in_meta else data

    def _pairs(self, value: dict[Any, Any]) -> list[Any]:
        return [[self(key), self(item)] for key, item in value.items()]

    def _sorted(self, value: set[Any] | frozenset[Any]) -> list[Any]:
        return sorted((self(item) for item in value), key=json.dumps)

    def _encode_fake(self, value: Any) -> Any:
        if self._fakes is None:
            self._fakes = FakeWriter() if self._give_fakes is None else self._give_fakes()
        return {"fake": self._fakes.describe(value)}

    def _encode_record(self, value: Any) -> Any:
        path, fields = _torch_records.describe(value) or ("", {})
        return {
            "record": [
                path,
                {k: v if type(v) in _ATOMS else self(v) for k, v in fields.items()},
            ]
        }

    def _other(self, value: Any) -> Any:
        """What is told by more than its exact type."""
        held = self._named.get(id(value))
        if held is None and self.by_name_only:
            held = self._named_only.get(id(value))
        if held is not None:
            return held[0]
        if is_fake_value(value):
            encoded = self._encode_fake(value)
            self._of_type[type(value)] = self._encode_fake
            return encoded
        if is_spec(value):
            return {"spec": describe_spec(value, self)}
        operator_ = operator_name(value)
        if operator_ is not None:
            return self._name(value, {"op": list(operator_)})
        named = _names.name_of(value)
        if named is not None:
            return self._name(value, {"fn": list(named)})
        if _torch_records.describe(value) is not None:
            self._of_type[type(value)] = self._encode_record
            return self._encode_record(value)
        class_path = _torch_records.class_path(value)
        if class_path is not None:
            return {"class": class_path}
        annotation = self._annotation(value)
        if annotation is not None:
            return annotation
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return {"named": [self(type(value)), [self(item) for item in value]]}
        if isinstance(value, tuple) and hasattr(value, "n_sequence_fields"):
            return {"named": [self(type(value)), [self(item) for item in value]]}
        if isinstance(value, enum.Enum) and _has_name(value):
            return {"enum": [self(type(value)), value.name]}
        if self.by_name_only and hasattr(value, "__qualname__"):
            encoded = {"name": f"{getattr(value, '__module__', '')}:{value.__qualname__}"}
            self._named_only[id(value)] = (encoded, value)
            return encoded
        return self._store_other(value)

    def _name(self, value: Any, encoded: Any) -> Any:
        self._named[id(value)] = (encoded, value)  # keeps it alive, so that its id stays its own
        return encoded

    def _annotation(self, value: Any) -> Any:
        arguments = typing.get_args(value)
        if isinstance(value, types.GenericAlias):
            return {"alias": [self(value.__origin__), [self(item) for item in arguments]]}
        if isinstance(value, types.UnionType):
            return {"union": [self(item) for item in arguments]}
        if getattr(value, "__module__", None) != "typing":
            return None
        name = getattr(value, "_name", None) or getattr(value, "__name__", None)
        if name is None and typing.get_origin(value) is typing.Union:
            name = "Union"
        if name == "Optional":
            name = "Union"  # its arguments say the rest
        if name not in TYPING_NAMES:
            return None
        if not arguments and typing.get_origin(value) is tuple and value is not typing.Tuple:  # noqa: UP006
            arguments = ((),)  # Tuple[()], the type of the empty tuple
        return {"typing": [name, [self(item) for item in arguments]]}


def _has_name(value: enum.Enum) -> bool:
    """Whether it is a member, and no combination of flags."""
    return type(value).__members__.get(str(value.name)) is value


def stack_key(value: Any) -> Any:
    """What the ``nn_module_stack`` ``value`` is equal to; None if it is of another kind.

    Type-exact: ``1`` and ``True`` are equal, but not the same.
    """
    if type(value) is not dict or len(value) > LONGEST_REPEATED:
        return None
    for path, entry in value.items():
        if type(path) is not str or type(entry) is not tuple or len(entry) != 2:
            return None
        name, owner = entry
        if type(name) is not str or type(owner) not in (str, type):
            return None
    return tuple(value.items())


def _encode_int(value: int) -> Any:
    return value if -_SMALL_INT <= value < _SMALL_INT else {"int": hex(value)}


def _encode_float(value: float) -> Any:
    return value if math.isfinite(value) else {"float": repr(value)}
