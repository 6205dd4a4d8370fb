"""What a graph from a stranger may say.

Generated code is text that Python runs, and torch writes names, attribute paths and the parameters
of ``forward`` into it as they are. So every text that ends up in code has to be what it claims to
be, an identifier, before it gets near a graph; and what a node calls has to be in the table of
:mod:`lazyfx_core._names`. Reading such a graph executes nothing. Calling it runs the operators it
lists, on the tensors it is given; it is no sandbox for operators with bugs in them.

The same goes for what code reaches through the module. Python looks for an attribute in the class
before ``nn.Module`` looks into its tables: a parameter called ``forward`` would be the method, and
``forward.__globals__`` everything. So what a module holds may not have a name of its class, nor of
Python's own, and what it holds may be called by torch, so it is as harmless as an argument.

The same check tells the writer whether a graph can be read back under these rules.
"""

from __future__ import annotations

import builtins
import collections
import collections.abc
import inspect
import re
import types
import typing
from keyword import iskeyword
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from ._names import name_of, why_not_arguments, why_not_target, why_not_value
from ._torch_codegen import is_spec, spec_parts, specs_of, texts_in_code
from ._torch_graph import attribute_nodes
from .errors import GraphFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping, Set

    from torch.fx.graph import CodeGen

_PATH = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*\Z")
_CLASS_NAME = re.compile(r"(\w+(\.\w+)*|<\w+>)\Z")
_WORD = re.compile(r"[^\W\d]\w*")
_PLAIN_OPS = frozenset({"placeholder", "output"})
# What names mean in generated code before it starts.
_GLOBALS = frozenset(vars(builtins)) | {"torch", "device", "fx_pytree", "pytree", "self"}
# Nodes are called something else if they have the name of a global; parameters are not.
_TAKEN = frozenset({"self", "torch", "fx_pytree", "pytree"})
_OWN_TABLES = frozenset(vars(nn.Module())) | {"_graph", "graph", "meta", "_code"}
_SYMBOLS = (torch.SymInt, torch.SymFloat, torch.SymBool)
_SEQUENCES = (tuple, list, immutable_list)
_MAPPINGS = (dict, collections.OrderedDict, immutable_dict)
_NOTHING = object()
# Functions of shapes print like those of Python, and are called at once.
_SAFE_IN_SYMBOLS = frozenset({"abs", "max", "min", "pow", "round", "True", "False", "None"})


# Arguments of these types hold no symbols.
_HARMLESS = frozenset({fx.Node, int, float, bool, str, type(None), torch.dtype, torch.device})


class NodeCheck:
    """Raises :class:`GraphFormatError` for nodes that a graph from a stranger may not hold.

    Not thread-safe: remembers what was found to be fine, by identity; whoever uses it keeps the
    targets alive meanwhile.

    Args:
        allowed: Functions, or names of methods, that may be called all the same.
    """

    def __init__(self, allowed: frozenset[Any] = frozenset()) -> None:
        self._symbols: dict[int, Any] = {}
        self._allowed_names = {entry for entry in allowed if type(entry) is str}
        self._allowed_ids = {id(entry) for entry in allowed}
        self._fine: set[tuple[str, str | int]] = set()

    def __call__(
        self,
        op: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        name: str,
        type_: Any,
    ) -> None:
        """Check one node by its fields, all of them decoded."""
        key = (op, target if type(target) is str else id(target))
        is_usual = key in self._fine and not kwargs and type_ is None and target is not getattr
        if is_usual and _is_variable(name):
            for value in args:
                if type(value) in _HARMLESS:
                    continue
                if type(value) not in _SEQUENCES or not _HARMLESS.issuperset(map(type, value)):
                    break
            else:
                return
        check_texts(op, target, kwargs, name)
        reason = why_not_arguments(target, args, kwargs, self._allowed_ids)
        if reason is not None:
            raise GraphFormatError(f"{reason}; pass what you trust in allow=[...]")
        if kwargs or not _HARMLESS.issuperset(map(type, args)):
            check_symbols((args, kwargs), self._symbols)
        if type_ is not None:
            check_annotation(type_)
        if key in self._fine:
            return
        known = (
            target in self._allowed_names if type(target) is str else key[1] in self._allowed_ids
        )
        if op not in _PLAIN_OPS and not known:
            reason = why_not_target(op, target)
            if reason is not None:
                raise GraphFormatError(f"{reason}; pass what you trust in allow=[...]")
        self._fine.add(key)


def check_texts(op: str, target: Any, kwargs: Mapping[str, Any], name: str) -> None:
    """Raise :class:`GraphFormatError` if a text of this node would be more than a name in code."""
    if not _is_identifier(name):
        raise GraphFormatError(f"the name {name!r:.200} is not a Python identifier")
    if name == "self":
        raise GraphFormatError("the name 'self' is that of the module in code")
    if op == "placeholder" and not _is_parameter(target):
        raise GraphFormatError(f"{target!r:.200} is not the name of a parameter")
    if op in ("get_attr", "call_module") and _PATH.match(target) is None:
        raise GraphFormatError(f"{target!r:.200} is not the path of an attribute")
    for key in kwargs:
        if not _is_identifier(key):
            raise GraphFormatError(f"the keyword {key!r:.200} is not a Python identifier")


def check_symbols(values: Any, fine: dict[int, Any]) -> None:
    """Raise :class:`GraphFormatError` for symbolic numbers whose text, as code, is something else.

    torch writes them into code as they print, and a symbol may be called ``eval``.

    Args:
        values: Arguments, looked through.
        fine: What was found to be fine, by ``id``, and kept alive; grows.
    """
    waiting: list[Any] = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, (dict, collections.abc.Mapping)):
            waiting += [*value.keys(), *value.values()]
        elif type(value) is slice:
            waiting += (value.start, value.stop, value.step)
        elif isinstance(value, _SYMBOLS) and id(value) not in fine:
            fine[id(value)] = value
            for word in _WORD.findall(str(value)):
                if (word in _GLOBALS and word not in _SAFE_IN_SYMBOLS) or word[:2] == "__":
                    raise GraphFormatError(
                        f"the symbol {word!r:.200} of an argument means something else in code"
                    )


def check_annotation(annotation: Any) -> None:
    """Raise :class:`GraphFormatError` for what is not a type, and so no annotation."""
    waiting = [annotation]
    while waiting:
        value = waiting.pop()
        arguments = value if isinstance(value, list) else typing.get_args(value)
        is_type = (
            value is None
            or value is Ellipsis
            or isinstance(value, (type, str, list, tuple, types.GenericAlias, types.UnionType))
            or getattr(value, "__module__", None) == "typing"
        )
        if not is_type:
            raise GraphFormatError(f"the type annotation {value!r:.80} is not a type")
        waiting += arguments


def check_codegen(codegen: CodeGen, allowed: Set[Any] = frozenset()) -> None:
    """Raise :class:`GraphFormatError` if ``codegen`` would write or call more than names.

    Args:
        codegen: Read only.
        allowed: Functions and classes that the caller trusts.
    """
    for text in texts_in_code(codegen):
        if not _is_parameter(text):
            raise GraphFormatError(f"{text!r:.200} is not the name of a parameter")
    for name, value in vars(codegen).items():
        if callable(value) and value not in allowed:
            raise GraphFormatError(f"{name.strip('_')} of the code generator rewrites code")
    for spec in specs_of(codegen):
        check_spec(spec, {id(entry) for entry in allowed})
        kind, _, children = spec_parts(spec)
        if kind is tuple and len(children) == 2:  # torch writes these keys into code, in quotes
            kind, context, _ = spec_parts(children[1])
            for key in context if kind is dict else ():
                if type(key) is str and repr(key) != f"'{key}'":
                    raise GraphFormatError(f"the keyword {key!r:.200} cannot stand in code")


def check_spec(spec: Any, allowed: Set[int]) -> None:
    """Raise :class:`GraphFormatError` if putting a tree together would call what it should not.

    Args:
        spec: A tree spec.
        allowed: Identities of functions and classes that the caller trusts.
    """
    kind, context, children = spec_parts(spec)
    fine = True
    if kind in _MAPPINGS:
        fine = isinstance(context, list)
    elif kind is collections.deque:
        fine = context is None or type(context) is int
    elif kind is collections.defaultdict:
        fine = (
            isinstance(context, list)
            and len(context) == 2
            and isinstance(context[1], list)
            and (isinstance(context[0], type) or context[0] is None or id(context[0]) in allowed)
            and why_not_value(context[0], allowed) is None
        )
    elif kind is collections.namedtuple:
        is_tuple = isinstance(context, type) and issubclass(context, tuple)
        fine = is_tuple and hasattr(context, "_fields")
    elif kind in _SEQUENCES or kind is None or id(kind) in allowed:
        fine = why_not_value(context, allowed) is None
    else:
        in_torch = name_of(kind)
        fine = in_torch is not None and in_torch[0] == "torch.return_types" and context is None
    if not fine:
        raise GraphFormatError(
            f"a tree of {kind!r:.80} with {context!r:.80}; pass what you trust in allow=[...]"
        )
    for child in children:
        check_spec(child, allowed)


def check_attribute_name(cls: type, name: Any) -> None:
    """Raise :class:`GraphFormatError` for a plain attribute that may not be called ``name``."""
    if name in _OWN_TABLES or not _is_identifier(name) or name[:2] == "__":
        raise GraphFormatError(f"a module has no attribute {name!r:.80}")
    if hides(cls, name, in_table=False):
        raise GraphFormatError(f"{name!r:.80} and what {cls.__name__} calls so hide each other")


def check_attribute(cls: type, name: Any, value: Any, allowed: Set[int]) -> None:
    """Raise :class:`GraphFormatError` for what an instance of ``cls`` may not hold.

    Args:
        cls: A class of modules.
        name: The name of the attribute.
        value: Its value, decoded. Modules, tensors and tree specs in it are checked elsewhere.
        allowed: Identities of functions and classes that the caller trusts.
    """
    check_attribute_name(cls, name)
    check_value(name, value, allowed)


def check_value(name: str, value: Any, allowed: Set[int]) -> None:
    """Raise :class:`GraphFormatError` if the attribute ``name`` may not have this value."""
    if is_spec(value):
        check_spec(value, allowed)
    elif not isinstance(value, nn.Module):
        reason = why_not_value(value, allowed)
        if reason is not None:
            raise GraphFormatError(
                f"attribute {name!r:.80}: {reason}; pass what you trust in allow=[...]"
            )


def check_held(cls: type, name: Any) -> None:
    """Raise :class:`GraphFormatError` for a parameter, buffer or child that may not be ``name``."""
    if type(name) is not str or not name or "." in name or name[:2] == "__":
        raise GraphFormatError(f"{name!r:.80} is not a name of what a module holds")
    if name in _OWN_TABLES or hides(cls, name, in_table=True):
        raise GraphFormatError(f"{name!r:.80} would be hidden by that of {cls.__name__}")


def hides(cls: type, name: str, *, in_table: bool) -> bool:
    """Whether an instance attribute ``name`` and that of ``cls`` would be taken for each other.

    Args:
        cls: A class.
        name: A name.
        in_table: Whether ``nn.Module.__getattr__`` has to find it, which is asked last.
    """
    found = inspect.getattr_static(cls, name, _NOTHING)
    if found is _NOTHING:
        return False
    return in_table or callable(found) or hasattr(type(found), "__get__")


def check_class_name(name: Any) -> str:
    """``name`` if it is the name of a class; torch writes it into folders of code.

    Raises:
        GraphFormatError: It is not.
    """
    if type(name) is not str or not _CLASS_NAME.match(name):
        raise GraphFormatError(f"the class name {name!r:.80} is not a name")
    return name


def check_attributes_exist(module: nn.Module, graph: fx.Graph) -> None:
    """Raise :class:`GraphFormatError` if a node refers to what ``module`` does not hold itself.

    Attributes of classes do not count: a file could reach methods through them. Nor do the tables
    that a module keeps itself, through which a graph could rebuild it.
    """
    for node in attribute_nodes(graph):
        found: Any = module
        for atom in str(node.target).split("."):
            found = _held(found, atom)
        is_right = isinstance(found, nn.Module) if node.op == "call_module" else found is not None
        if not is_right:
            raise GraphFormatError(
                f"node {node.name!r} refers to {node.target!r:.200}, which is not in the file"
            )


def _held(module: Any, name: str) -> Any:
    """What generated code finds as attribute ``name``, unless it is the class's or a table."""
    if not isinstance(module, nn.Module) or name in _OWN_TABLES:
        return None
    held = vars(module)
    if name in held:
        return None if hides(type(module), name, in_table=False) else held[name]
    for table in ("_parameters", "_buffers", "_modules"):
        if name in held.get(table, ()):
            return None if hides(type(module), name, in_table=True) else held[table][name]
    return None


def _is_variable(name: str) -> bool:
    return name.isidentifier() and name.isascii() and name != "self" and not iskeyword(name)


def _is_parameter(text: Any) -> bool:
    stars = len(text) - len(text.lstrip("*"))
    return stars <= 2 and _is_identifier(text[stars:]) and text[stars:] not in _TAKEN


def _is_identifier(text: Any) -> bool:
    return type(text) is str and text.isascii() and text.isidentifier() and not iskeyword(text)
