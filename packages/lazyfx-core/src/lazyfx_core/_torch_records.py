"""The seam to small data classes of torch's own that stand in ``node.meta``.

They are stored as the path of their class and their fields, and come back without their
constructors being run. Only classes defined in the modules below count, and only those made of
nothing but fields: dataclasses, named tuples, enums, and the two of ``torch.fx.traceback``.

==============================================  ================================================
private name                                    used for
==============================================  ================================================
``torch.fx.passes.shape_prop``                  ``tensor_meta`` in metadata
``torch.fx.traceback``                          ``from_node``
``torch.fx.experimental.symbolic_shapes``       ``unbacked_bindings``
``torch.utils._pytree``                         key paths in them
``torch._functorch._aot_autograd.descriptors``  ``desc`` of inputs and outputs (after torch 2.6)
``torch._functorch._aot_autograd.schemas``      what AOTAutograd notes of a graph
``torch._guards.CompileId``                     the number of a compilation
==============================================  ================================================

Besides, the ``recompute`` policies of ``torch.utils.checkpoint`` and the signatures of
``torch.export``. Reading a record imports its module if nobody has yet; all belong to torch.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import importlib
from typing import TYPE_CHECKING, Any

import torch

from .errors import GraphFormatError, NotInThisTorchError

if TYPE_CHECKING:
    from collections.abc import Callable

_MOST_DIMENSIONS = 64
_TENSOR_META = "torch.fx.passes.shape_prop:TensorMetadata"
_MODULES = frozenset(
    {
        "torch._functorch._aot_autograd.descriptors",
        "torch._functorch._aot_autograd.schemas",
        "torch._guards",
        "torch.export.graph_signature",
        "torch.fx.experimental.symbolic_shapes",
        "torch.fx.passes.shape_prop",
        "torch.fx.traceback",
        "torch.utils._pytree",
        "torch.utils.checkpoint",
    }
)
_BY_ATTRIBUTES = frozenset(
    {"torch.fx.traceback:NodeSource", "torch.fx.traceback:NodeSource.NodeInfo"}
)
_CACHES = frozenset({"_dict", "_action_string"})  # which a NodeSource makes itself
# Of this module nothing else is data.
_ONLY = {"torch._guards": "CompileId"}
# What has these names in the modules above does more than hold data.
_NOT_DATA = frozenset({"ShapeEnv", "TreeSpec", "LeafSpec", "ShapeProp", "GraphModuleSerializer"})
# Classes that are referred to and never made from data.
_TRACERS = frozenset(
    {
        *("torch.fx._symbolic_trace:Tracer", "torch.fx.experimental.proxy_tensor:PythonKeyTracer"),
        "torch.fx.experimental.proxy_tensor:_ModuleStackTracer",
        "torch.fx.experimental.meta_tracer:MetaTracer",
        "torch._subclasses.fake_tensor:FakeTensor",
        *("torch._dynamo.output_graph:SubgraphTracer", "torch.fx.proxy:GraphAppendingTracer"),
        "torch.ao.quantization.fx.tracer:QuantizationTracer",
    }
)


def describe(value: object) -> tuple[str, dict[str, Any]] | None:
    """``(path of the class, fields)`` of a record; None for everything else."""
    cls = type(value)
    if cls.__module__ not in _MODULES:
        return None
    path = _path(cls)
    if _record_class(path) is not cls:
        return None
    if isinstance(value, enum.Enum):
        has_name = type(value).__members__.get(str(value.name)) is value
        return (path, {"name": value.name}) if has_name else None
    if path in _BY_ATTRIBUTES:
        return path, {k: v for k, v in vars(value).items() if k not in _CACHES}
    return path, {name: getattr(value, name) for name in _fields(cls) if hasattr(value, name)}


def is_tensor_meta(value: object) -> bool:
    """Whether ``value`` is the ``TensorMetadata`` that shape propagation leaves."""
    cls = type(value)
    return cls.__name__ == "TensorMetadata" and _path(cls) == _TENSOR_META


def tensor_meta_key(value: Any) -> Any:
    """What is equal for tensor metadata that is the same; None if there is no such thing."""
    shape, stride = value.shape, value.stride
    if type(value.qparams) is not dict or value.qparams:
        return None
    if type(shape) is not torch.Size or type(stride) is not tuple:
        return None
    if not {int}.issuperset(map(type, (*shape, *stride))):
        return None  # symbolic sizes, too
    key = (*value[:-1], *map(type, value))
    try:
        hash(key)
    except TypeError:
        return None
    return key


def tensor_meta_copier(value: Any) -> Callable[[], Any] | None:
    """What makes tensor metadata equal to ``value``; None if it is something else, or large."""
    if not is_tensor_meta(value) or tensor_meta_key(value) is None:
        return None
    if len(value.shape) > _MOST_DIMENSIONS or len(value.stride) > _MOST_DIMENSIONS:
        return None
    cls, fields = type(value), tuple(value)[:-1]
    return lambda: tuple.__new__(cls, (*fields, {}))


def rebuild(path: str, fields: dict[str, Any]) -> Any:
    """The record that :func:`describe` took apart.

    Raises:
        NotInThisTorchError: ``path`` is a record of another torch, or has other fields there.
        GraphFormatError: ``path`` is none of those that graphs are stored with.
    """
    cls: Any = _record_class(path)
    if cls is None:
        kind = NotInThisTorchError if _may_be_record(path) else GraphFormatError
        raise kind(f"{path!r:.200} is not a record that this torch has")
    if issubclass(cls, enum.Enum):
        member = fields.get("name")
        if type(member) is not str or member not in cls.__members__ or len(fields) != 1:
            raise NotInThisTorchError(f"{path} has no member {member!r:.80}")
        return cls[member]
    usual = _usual(cls)
    known = usual.keys() - _CACHES if path in _BY_ATTRIBUTES else set(_fields(cls))
    if not (known if path in _BY_ATTRIBUTES else _required(cls)) <= fields.keys() <= known:
        raise NotInThisTorchError(f"{path} takes {sorted(known)}, found {sorted(fields)!r:.200}")
    if issubclass(cls, tuple):
        return tuple.__new__(cls, [fields[name] for name in _fields(cls)])
    new = cls.__new__(cls)
    for name, value in {**usual, **fields}.items():
        if name == "action":
            value = _action(value, wanted=usual[name])
        object.__setattr__(new, name, value)
    return new


def _action(found: Any, wanted: Any) -> Any:
    """The action of a ``NodeSource``: one or None up to torch 2.6, then a list."""
    if (type(found) is list) == (type(wanted) is list):
        return found
    if type(wanted) is list:
        return [] if found is None else [found]
    if len(found) > 1:
        raise NotInThisTorchError("a NodeSource has one action, found several")
    return found[0] if found else None


def class_path(value: object) -> str | None:
    """The path of a class that :func:`find_class` finds, else None."""
    if not isinstance(value, type):
        return None
    path = _path(value)
    return path if path in _TRACERS or _record_class(path) is value else None


def find_class(path: str) -> type:
    """The class of torch's own that has this path.

    Raises:
        NotInThisTorchError: This torch has no such class.
        GraphFormatError: It is none of those that stored graphs refer to.
    """
    found: Any = _record_class(path)
    if found is None and path in _TRACERS:
        module_name, _, name = path.partition(":")
        try:
            found = getattr(importlib.import_module(module_name), name, None)
        except ImportError:
            found = None
    if not isinstance(found, type):
        known = path in _TRACERS or _may_be_record(path)
        raise (NotInThisTorchError if known else GraphFormatError)(
            f"{path!r:.200} is not a class that this torch has"
        )
    return found


def _path(cls: type) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _may_be_record(path: str) -> bool:
    """Whether it is in a module of records; there may be one of this name in another torch."""
    module_name, _, qualified = path.partition(":")
    if module_name not in _MODULES or qualified.rpartition(".")[2] in _NOT_DATA:
        return False
    return _ONLY.get(module_name, qualified) == qualified


@functools.lru_cache(maxsize=1024)
def _record_class(path: str) -> type | None:
    if not _may_be_record(path):
        return None
    module_name, _, qualified = path.partition(":")
    try:
        found: Any = importlib.import_module(module_name)
    except ImportError:
        return None
    for atom in qualified.split("."):
        found = vars(found).get(atom)
        if found is None or not (isinstance(found, type) or atom == qualified):
            return None
    if not isinstance(found, type) or _path(found) != path:
        return None
    is_data = (
        dataclasses.is_dataclass(found)
        or issubclass(found, enum.Enum)
        or (issubclass(found, tuple) and hasattr(found, "_fields"))
        or path in _BY_ATTRIBUTES
    )
    return found if is_data else None


def _fields(cls: Any) -> tuple[str, ...]:
    if issubclass(cls, tuple):
        return tuple(cls._fields)
    return tuple(field.name for field in dataclasses.fields(cls))


@functools.lru_cache(maxsize=1024)
def _usual(cls: Any) -> dict[str, Any]:
    """Fields that have a value if none is given, with that value."""
    if _path(cls) in _BY_ATTRIBUTES:
        return dict(vars(cls(*([None] if "NodeInfo" not in cls.__qualname__ else ["", "", 0]))))
    if issubclass(cls, tuple):
        return {}
    all_fields = dataclasses.fields(cls)
    return {f.name: f.default for f in all_fields if f.default is not dataclasses.MISSING}


def _required(cls: Any) -> set[str]:
    """Fields without which a record would lack an attribute."""
    if issubclass(cls, tuple):
        return set(cls._fields)
    given = [field for field in dataclasses.fields(cls) if field.init]
    return {field.name for field in given if field.default is dataclasses.MISSING}
