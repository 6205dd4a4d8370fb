"""Modules as plain data: the part of the safe archive between the file and the graphs.

A module is its class, its parameters, buffers and children, and its other attributes. What a
constructor or a hook would do is not data: classes are made without their constructors, as pickle
makes them, and a module with hooks is refused. A module that stands in several places is stored
once; one that contains itself is refused.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from . import _names
from ._decode import Decoder, find_loaded
from ._graph_module import LazyGraphModule, adopt
from ._instance_class import user_class
from ._meta import DroppedMeta, read_meta, warn_of_left_out
from ._serialize import GraphReader, GraphWriter, cannot_store
from ._tensors import describe_tensors
from ._torch_fx import GENERATED_FIELDS, new_plain_module, set_graph
from ._torch_graph import attribute_nodes
from ._torch_symbolic import FakeReader, FakeWriter, Unstorable
from ._untrusted import (
    check_attribute,
    check_attribute_name,
    check_attributes_exist,
    check_class_name,
    check_held,
    check_texts,
)
from .errors import GraphFormatError, LazyFxError, NotInThisTorchError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_CONTAINERS = frozenset(vars(nn.Module()))
_DATA = frozenset(
    {"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"}
)
_NOT_STORED = frozenset({"_graph", "meta", *GENERATED_FIELDS})


class ModuleWriter:
    """Writes a tree of modules. Not thread-safe; used once.

    Args:
        strict: Raise for what would be left out.
        meta: Store metadata.
    """

    def __init__(self, *, strict: bool, meta: bool) -> None:
        self.tensors: list[torch.Tensor] = []
        self.tensor_names: list[str] = []
        self._tensor_index: dict[int, int] = {}
        self._modules: list[nn.Module] = []
        self._paths: list[str] = []
        self._module_index: dict[int, int] = {}
        self._dropped: list[DroppedMeta] = []
        self._fakes = functools.cache(FakeWriter)
        self._strict = strict
        self._store_meta = meta

    def write(self, gm: fx.GraphModule) -> dict[str, Any]:
        """JSON of ``gm`` and everything below it; tensors are collected in :attr:`tensors`."""
        self._number(gm, "")
        written: list[Any] = []
        while len(written) < len(self._modules):  # grows while attributes are written
            index = len(written)
            written.append(self._module(self._modules[index], self._paths[index]))
        used = self._fakes.cache_info().currsize
        return {"modules": written, **({"fakes": self._fakes().environment()} if used else {})}

    def warn(self, stacklevel: int) -> None:
        """One warning for each module of which something was left out."""
        for dropped in self._dropped:
            dropped.warn(stacklevel + 1)

    def _number(self, module: nn.Module, path: str) -> int:
        index = self._module_index.get(id(module))
        if index is None:
            index = self._module_index[id(module)] = len(self._modules)
            self._modules.append(module)
            self._paths.append(path)
        return index

    def _module(self, module: nn.Module, path: str) -> dict[str, Any]:
        is_graph = isinstance(module, fx.GraphModule)
        where = f"module {path!r}" if path else "the module"
        state = vars(module) if is_graph else _state(module)
        for name in _CONTAINERS - _DATA:
            if name.endswith("hooks") and state.get(name):
                raise SerializationError(
                    f"{where} has {name.strip('_').replace('_', ' ')}: hooks are code and cannot "
                    "be stored in an archive; remove them first and add them after loading"
                )
        dropped = DroppedMeta(
            class_name=f"{type(module).__name__}{f' ({path})' if path else ''}",
            strict=self._strict,
        )
        self._dropped.append(dropped)
        writer = GraphWriter(
            lambda value: self._other(value, path),
            other_in_meta=lambda value: self._other_in_meta(value, path),
            dropped=dropped if self._store_meta else None,
            fakes=self._fakes,
        )
        entry: dict[str, Any] = {
            "class": self._class(module, where),
            "training": module.training,
            "parameters": self._tensors(state["_parameters"], path),
            "buffers": self._tensors(state["_buffers"], path),
            "unsaved_buffers": sorted(state["_non_persistent_buffers_set"]),
            "modules": {
                name: None if child is None else self._child(child, path, name, where)
                for name, child in state["_modules"].items()
            },
        }
        self._check_names(module, state, where)
        attributes: dict[str, Any] = {}
        for name, value in state.items():
            if name in _CONTAINERS or (is_graph and name in _NOT_STORED):
                continue
            try:
                check_attribute_name(type(module), name)
                attributes[name] = writer.encode(value)
            except (Unstorable, RecursionError, GraphFormatError) as error:
                if not is_graph:
                    raise cannot_store(f"{where}, attribute {name!r}", error) from error
                dropped.add(name, "an attribute of the module", str(error))
        entry["attributes"] = attributes
        if isinstance(module, fx.GraphModule):
            entry["class_name"] = type(module).__name__
            entry["graph"] = self._graph(writer, module, where)
            entry["meta"] = writer.meta(getattr(module, "meta", {}), "the module")
            entry["graph"].update(writer.tables())
        else:
            entry["tables"] = writer.tables()
        return entry

    def _check_names(self, module: nn.Module, state: dict[str, Any], where: str) -> None:
        """Raise for names that a reader would refuse."""
        try:
            if isinstance(module, fx.GraphModule):
                check_class_name(type(module).__name__)
            for table in ("_parameters", "_buffers", "_modules"):
                for name in state[table]:
                    check_held(type(module), name)
        except GraphFormatError as error:
            raise SerializationError(
                f"{where}: {error}; rename it, so that the file can be read"
            ) from error

    def _graph(self, writer: GraphWriter, gm: fx.GraphModule, where: str) -> dict[str, Any]:
        try:
            for node in gm.graph.nodes:
                check_texts(node.op, node.target, node.kwargs, node.name)
            return writer.graph(gm.graph)
        except GraphFormatError as error:
            raise SerializationError(
                f"{where}, node {node.name!r}: {error}; rename it, so that the file can be read"
            ) from error
        except SerializationError as error:
            raise SerializationError(f"{where}, {error}") from error

    def _child(self, child: nn.Module, path: str, name: str, where: str) -> int:
        index = self._number(child, f"{path}.{name}" if path else name)
        if index == 0:
            raise SerializationError(f"{where} contains the whole module as {name!r}")
        return index

    def _class(self, module: nn.Module, where: str) -> Any:
        cls: type[nn.Module] = type(module)
        if isinstance(module, fx.GraphModule):
            cls = user_class(type(module))
            if cls is LazyGraphModule:
                return "lazy graph module"
            if cls is fx.GraphModule or cls.__module__ == "torch.fx._lazy_graph_module":
                return "graph module"
        try:
            return by_name(cls)
        except Unstorable as error:
            raise cannot_store(f"{where}, class", error) from error

    def _tensors(self, tensors: dict[str, Any], path: str) -> dict[str, Any]:
        return {
            name: None
            if tensor is None
            else self._tensor(tensor, f"{path}.{name}" if path else name)
            for name, tensor in tensors.items()
        }

    def _tensor(self, tensor: torch.Tensor, name: str) -> int:
        index = self._tensor_index.get(id(tensor))
        if index is None:
            index = self._tensor_index[id(tensor)] = len(self.tensors)
            self.tensors.append(tensor)
            self.tensor_names.append(name)
        return index

    def _other(self, value: Any, path: str) -> Any:
        if isinstance(value, torch.Tensor):
            return {"tensor": self._tensor(value, f"{path}.constant" if path else "constant")}
        if isinstance(value, nn.Module):
            index = self._number(value, path)
            if index == 0:
                raise Unstorable("it is the module itself")
            return {"module": index}
        return by_name(value)

    def _other_in_meta(self, value: Any, path: str) -> Any:
        """The same for metadata, where a tensor that cannot be stored is left out."""
        if isinstance(value, torch.Tensor) and id(value) not in self._tensor_index:
            try:
                describe_tensors([value], None)
            except SerializationError as error:
                raise Unstorable(str(error)) from error
        return self._other(value, path)


class ModuleReader:
    """Reads what a :class:`ModuleWriter` wrote. Not thread-safe; used once.

    Args:
        structure: Its JSON, parsed.
        tensors: The tensors of the file.
        allowed: Functions and classes that it may name, see :func:`allowed_by_name`.
    """

    def __init__(
        self, structure: dict[str, Any], tensors: list[torch.Tensor], allowed: dict[str, Any]
    ) -> None:
        entries = structure.get("modules")
        if type(entries) is not list or not entries:
            raise GraphFormatError(f"'modules' is a list of modules, found {entries!r:.80}")
        self._entries = entries
        self._tensors = tensors
        self._allowed = allowed
        self._callables = frozenset(v for v in allowed.values() if _is_hashable(v))
        self._trusted_ids = {id(value) for value in allowed.values()}
        self._fakes = functools.cache(lambda: FakeReader(structure.get("fakes")))
        # None: being read; an error: it was left out, and so is what refers to it
        self._made: dict[int, nn.Module | NotInThisTorchError | None] = {}
        self._left_out: dict[str, str] = {}

    def warn(self, class_name: str, stacklevel: int) -> None:
        """Say which metadata was not loaded."""
        warn_of_left_out(self._left_out, class_name, stacklevel + 1)

    def read(self) -> fx.GraphModule:
        """The module, complete.

        Raises:
            GraphFormatError: The data are not what this version writes.
        """
        root = self._module(0)
        if len(self._made) != len(self._entries) and not self._left_out:
            raise GraphFormatError("there are modules that nobody refers to")
        if not isinstance(root, fx.GraphModule):
            raise GraphFormatError("module 0 is no graph module")
        return root

    def _module(self, index: Any) -> nn.Module:
        if type(index) is not int or not 0 <= index < len(self._entries):
            raise GraphFormatError(f"module {index!r:.80} does not exist")
        if index in self._made:
            made = self._made[index]
            if made is None:
                raise GraphFormatError(f"module {index} contains itself")
            if isinstance(made, NotInThisTorchError):
                raise made.with_traceback(None)
            return made
        self._made[index] = None
        try:
            made = self._made[index] = self._read(index)
        except RecursionError as error:
            raise GraphFormatError("modules are nested too deep") from error
        except GraphFormatError as error:
            at = "" if str(error).startswith("module") else f"module {index}: "
            told = type(error)(f"{at}{error}")
            if isinstance(told, NotInThisTorchError):
                self._made[index] = told
            raise told from error
        except LazyFxError:
            raise
        except Exception as error:  # whatever torch makes of hostile data
            raise GraphFormatError(f"module {index}: {type(error).__name__}: {error}") from error
        return made

    def _read(self, index: int) -> nn.Module:
        entry = self._entries[index]
        if type(entry) is not dict:
            raise GraphFormatError(f"a module is an object, found {entry!r:.80}")
        document = entry.get("graph")
        reader = GraphReader(
            entry.get("tables", {}) if document is None else document,
            other={
                "allowed": self._allowed_object,
                "tensor": self._tensor,
                "module": self._module,
            },
            trusted=False,
            allowed=self._callables,
            fakes=self._fakes,
        )
        module = self._empty(entry.get("class"), is_graph=document is not None)
        state = self._state(entry, reader.decode, type(module))
        if not isinstance(module, fx.GraphModule):
            module.__setstate__(state)  # type: ignore[no-untyped-call]
            return module
        class_name = check_class_name(entry.get("class_name"))
        vars(module).update(state)
        graph = reader.graph()
        meta = entry.get("meta")
        module.meta = {} if meta is None else read_meta(meta, reader.decode)
        self._left_out = {**reader.decode.left_out, **self._left_out}
        absent = entry.get("attributes", {}).keys() - state.keys()
        for node in attribute_nodes(graph) if absent else ():
            if (name := str(node.target).partition(".")[0]) in absent:
                reason = reader.decode.left_out[name]
                raise NotInThisTorchError(f"node {node.name!r} refers to {name!r}: {reason}")
        check_attributes_exist(module, graph)
        if isinstance(module, LazyGraphModule):
            adopt(module, graph, class_name)
        else:
            type(module).__name__ = class_name
            set_graph(module, graph)
        return module

    def _state(self, entry: dict[str, Any], decode: Decoder, cls: type) -> dict[str, Any]:
        state = dict(vars(nn.Module()))
        training = entry.get("training")
        if type(training) is not bool:
            raise GraphFormatError(f"'training' is true or false, found {training!r:.80}")
        unsaved = _field(entry, "unsaved_buffers", list)
        for value in unsaved:
            _text(value)
        state["training"] = training
        state["_non_persistent_buffers_set"] = set(unsaved)
        for name, kind in (("parameters", nn.Parameter), ("buffers", torch.Tensor)):
            for key, number in _field(entry, name, dict).items():
                check_held(cls, key)
                value = None if number is None else self._tensor(number)
                if value is not None and not isinstance(value, kind):
                    raise GraphFormatError(f"{name} {key!r:.80} is no {kind.__name__}")
                state[f"_{name}"][key] = value
        for key, number in _field(entry, "modules", dict).items():
            check_held(cls, key)
            state["_modules"][key] = None if number is None else self._module(number)
        for key, data in _field(entry, "attributes", dict).items():
            if key in _CONTAINERS or key in _NOT_STORED:
                raise GraphFormatError(f"a module has no attribute {key!r:.80}")
            try:
                value = decode(data)
            except NotInThisTorchError as error:
                if not issubclass(cls, fx.GraphModule):
                    raise
                decode.left_out.setdefault(key, str(error))
                continue
            check_attribute(cls, key, value, self._trusted_ids)
            state[key] = value
        return state

    def _empty(self, data: Any, *, is_graph: bool) -> nn.Module:
        """An instance of the class that ``data`` names, its constructor not run."""
        if is_graph and data == "lazy graph module":
            return LazyGraphModule.__new__(LazyGraphModule)
        if is_graph and data == "graph module":
            return new_plain_module(fx.GraphModule)
        decode = Decoder(nodes=[], other={"allowed": self._allowed_object}, trusted=False)
        cls: Any = decode(data)
        expected = fx.GraphModule if is_graph else nn.Module
        if not (isinstance(cls, type) and issubclass(cls, expected)):
            raise GraphFormatError(f"expected a class of {expected.__name__}, found {cls!r:.80}")
        if not is_graph and issubclass(cls, fx.GraphModule):
            raise GraphFormatError("a graph module has a graph")
        made: nn.Module = new_plain_module(cls) if is_graph else cls.__new__(cls)  # type: ignore[arg-type]
        return made

    def _tensor(self, number: Any) -> torch.Tensor:
        if type(number) is not int or not 0 <= number < len(self._tensors):
            raise GraphFormatError(f"tensor {number!r:.80} does not exist")
        return self._tensors[number]

    def _allowed_object(self, name: Any) -> Any:
        if type(name) is not str or name not in self._allowed:
            shown = str(name).replace(":", ".")
            raise GraphFormatError(
                f"it refers to {shown:.200}, which is not torch's; if you trust it, pass "
                f"allow=[{shown:.200}]"
            )
        return self._allowed[name]


def by_name(value: Any) -> Any:
    """JSON of a function or class that whoever loads the file has to pass in.

    Raises:
        Unstorable: It is neither, or has no name.
    """
    named = _names.name_of(value)
    if named is not None:
        return {"fn": list(named)}
    name = _name(value)
    if name is None or find_loaded(name) is not value:
        raise Unstorable(
            f"a {type(value).__name__} ({value!r:.80}) is neither plain data nor a function or "
            "class that has a name in its module; define it at the top level of one"
        )
    return {"allowed": name}


def allowed_by_name(allow: Iterable[Callable[..., Any] | type | str]) -> dict[str, Any]:
    """What a caller trusts, under the names that files use for it.

    Raises:
        TypeError: An entry is neither callable nor the name of a method.
    """
    if isinstance(allow, str) or not hasattr(allow, "__iter__"):
        raise TypeError(f"allow=... takes a list of functions, classes and names, got {allow!r}")
    found: dict[str, Any] = {}
    for entry in allow:
        name = entry if isinstance(entry, str) else _name(entry)
        if name is None:
            raise TypeError(
                f"allow=[...] takes functions, classes and names of methods, got {entry!r}"
            )
        found[name] = entry
    return found


def _state(module: nn.Module) -> dict[str, Any]:
    """What pickle would store of ``module``."""
    get_state = getattr(type(module), "__getstate__", None)
    if get_state is None or get_state is getattr(object, "__getstate__", None):
        return vars(module)
    state = get_state(module)
    if type(state) is not dict or not set(state) >= _DATA:
        raise SerializationError(
            f"{type(module).__name__}.__getstate__ does not give a module's dictionary, so an "
            "archive cannot store it"
        )
    return state


def _name(value: Any) -> str | None:
    module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(qualified, str) or not callable(value):
        return None
    return f"{module}:{qualified}"


def _field(entry: dict[str, Any], name: str, kind: type) -> Any:
    value = entry.get(name)
    if type(value) is not kind:
        raise GraphFormatError(f"{name!r} is a {kind.__name__}, found {value!r:.80}")
    return value


def _text(value: Any) -> str:
    if type(value) is not str:
        raise GraphFormatError(f"expected text, found {value!r:.80}")
    return value


def _is_hashable(value: Any) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True
