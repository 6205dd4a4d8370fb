"""What a stored graph may name without anybody importing anything, and what it may call.

A table of the functions and classes that torch and Python themselves bring: ``torch``,
``torch.nn.functional``, ``torch.Tensor``, ``operator``, ``math``, a list of harmless builtins,
module classes, named tuples. Each has one preferred name, ``(namespace, name)``, and may have
others. Writing asks :func:`name_of`, reading asks :func:`find`; what is not in the table has to be
stored some other way, or refused. Nothing in it opens files, loads libraries, imports what is not
torch's, unpickles, runs text or starts processes. It is made at first use, from what
``import torch`` has loaded, and never changes.

A graph from a stranger is held to more (:func:`why_not_callable`), because a harmless function can
be given a harmful argument:

- ``getattr`` takes a fixed attribute from a list: data of tensors and their harmless methods.
- Some functions call what they are given (``sorted(key=...)``, higher-order operators). So what is
  safe only after a look at its arguments may be called but not handed on (:func:`why_not_value`):
  ``getattr``, operators that are refused, whatever is not in the table.
- torch writes the ``repr`` of arguments into code (:func:`why_not_arguments`), so those are plain
  values, containers of them, and what else is known to have a harmless one.
- Classes are not called, but for numbers, containers and the like.
- Operators may be called, those of other libraries too, since somebody registered them, but for
  those that are listed here or whose name says that they touch files, libraries or processes.

This keeps a graph from reaching files, other code and other data of the process by asking. What is
allowed still runs: kernels trust the indices inside sparse tensors and have bugs, and a graph may
ask for all the memory there is. Whoever expects that gives such a graph a process of its own.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx

from . import _torch_names
from ._torch_graph import operator_name
from ._torch_names import words
from ._torch_records import class_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Set

_CALLED_CLASSES = words("""
    builtins.bool builtins.bytes builtins.complex builtins.dict builtins.enumerate builtins.float
    builtins.frozenset builtins.int builtins.list builtins.range builtins.reversed builtins.set
    builtins.slice builtins.str builtins.tuple builtins.zip torch.Size torch.device torch.finfo
    torch.iinfo torch.Tensor torch.Generator torch.nn.Parameter
""")
_CONTAINER_METHODS = words("keys values items get append extend insert pop copy count index")
# Of dtypes, devices, number limits, slices, packed sequences.
_OTHER_ATTRIBUTES = frozenset(
    words("""
    type index is_floating_point is_complex is_signed itemsize min max eps tiny bits resolution
    smallest_normal start stop step numerator denominator batch_sizes sorted_indices
    unsorted_indices
""")
)
# Leaves and containers whose repr is a literal, a name of torch's, or a node's own name.
_QUIET = frozenset({fx.Node, int, float, bool, str, type(None), complex, bytes, type(...), range})
_QUIET |= {torch.dtype, torch.device, torch.layout, torch.memory_format, type(NotImplemented)}
_CONTAINERS = (list, tuple, dict, set, frozenset)
_KNOWN_TEXT = (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool, enum.Enum)

_TELLING_WORDS = frozenset(
    words("""
    file files path save load read write open import exec execute eval compile system shell spawn
    download url http library lib dlopen pickle unpickle asm ptr blob
""")
)
_SAFE_ALL_THE_SAME = frozenset({"higher_order.run_and_save_rng_state"})  # saves to a tensor
_UNSAFE_NAMESPACES = {
    "prim": "belongs to the TorchScript interpreter",
    "static_runtime": "belongs to the TorchScript interpreter",
    "debugprims": "reads files",
    "symm_mem": "reaches into the memory of other processes",
    "_test": "is for torch's own tests",
}
_SAFE_PRIM = frozenset({"device", "dtype", "layout"})
_UNSAFE_OPERATORS = {
    "aten.from_file": "opens files",
    "aten.save": "writes files",
    "aten._print": "writes to the terminal",
    "aten._reshape_alias": "reaches past the end of a tensor",
    "aten._reshape_alias_copy": "reaches past the end of a tensor",
    "inductor._reinterpret_tensor": "reaches past the end of a tensor",
    "inductor._alloc_from_pool": "reaches past the end of a tensor",
    "inductor.resize_storage_bytes_": "takes memory from under other tensors",
    "higher_order.aoti_call_delegate": "runs a compiled library",
    "higher_order.executorch_call_delegate": "runs a compiled library",
    "higher_order.inductor_compiled_code": "runs compiled code",
    "higher_order.inline_asm_elementwise": "runs assembly text",
    "higher_order.print": "formats text and writes to the terminal",
    "higher_order.triton_kernel_wrapper_functional": "runs a kernel of the process by its number",
    "higher_order.triton_kernel_wrapper_mutation": "runs a kernel of the process by its number",
    "higher_order.call_torchbind": "calls methods of script objects",
    "higher_order.custom_function_call": "calls methods of a class",
    "higher_order.dynamo_bypassing_wrapper": "calls functions of the process by name",
    "higher_order.flat_apply": "calls functions it makes from data",
    "higher_order.foreach_map": "calls functions it makes from data",
    "higher_order.invoke_leaf_function": "calls functions of the process by number",
    "higher_order.trace_wrapped": "calls functions of the process",
    "higher_order.run_const_graph": "runs code kept elsewhere in the process",
}


class _Table(NamedTuple):
    by_id: dict[int, tuple[str, str]]  # valid while by_name keeps the objects alive
    by_name: dict[str, dict[str, Any]]


class _Policy(NamedTuple):
    classes: frozenset[int]
    methods: frozenset[str]
    attributes: frozenset[str]


_table: _Table | None = None
_policy: _Policy | None = None


def name_of(value: object) -> tuple[str, str] | None:
    """``(namespace, name)`` of a function or class of the table, else None.

    By identity and in constant time, whatever ``value`` is: nothing of it is called.
    ``find(*name_of(value)) is value`` holds. Operators are not in the table. Thread-safe.
    """
    table = _table or _make_table()
    found = table.by_id.get(id(value))
    if found is None:
        path = _torch_names.extra_path(value)
        return None if path is None else ("torch.extra", path)
    return found


def find(namespace: str, name: str) -> Any | None:
    """The function or class that has this name, preferred or not; None if there is none.

    Imports nothing but what the table lists, which is torch's. Thread-safe.
    """
    table = _table or _make_table()
    if type(namespace) is not str or type(name) is not str or namespace not in table.by_name:
        return None
    found = table.by_name[namespace].get(name)
    if found is None and namespace == "torch.extra":
        return _torch_names.find_extra(name)
    return found


def is_namespace(namespace: str) -> bool:
    """Whether names of the table stand in ``namespace``. Thread-safe."""
    return namespace in (_table or _make_table()).by_name


def all_names() -> Iterator[tuple[str, str, Any]]:
    """Every ``(namespace, name, object)`` of the table, other names of an object included.

    Without the paths below ``torch.extra`` that are looked up when asked for.
    """
    table = _table or _make_table()
    for namespace, held in table.by_name.items():
        for name, value in held.items():
            yield namespace, name, value


def why_not_callable(
    op: str, target: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> str | None:
    """Why a graph from a stranger may not have this node; None if it may.

    Args:
        op: The ``op`` of the node. Paths of attributes and modules are not looked at.
        target: Its target, found by name already.
        args: Its arguments. Nodes in them are taken as unknown values.
        kwargs: The same.

    Returns:
        A reason that names the target: that of :func:`why_not_target`, which may be remembered for
        all nodes with this target, else that of :func:`why_not_arguments`, which may not.
    """
    return why_not_target(op, target) or why_not_arguments(target, args, kwargs)


def why_not_target(op: str, target: Any) -> str | None:
    """The part of :func:`why_not_callable` that depends on the target alone."""
    if op == "call_method":
        if type(target) is str and target in (_policy or _make_policy()).methods:
            return None
        return f"{target!r:.200} is not in the list of harmless methods of tensors and containers"
    if op != "call_function" or target is getattr:
        return None
    operator = operator_name(target)
    if operator is not None:
        return _why_not_operator(*operator)
    if name_of(target) is None:
        return f"{_described(target)} is not in the table of harmless functions"
    if isinstance(target, type) and id(target) not in (_policy or _make_policy()).classes:
        return f"{_described(target)} is a class that graphs have no reason to call"
    return None


def why_not_arguments(
    target: Any,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    allowed: Set[int] = frozenset(),
) -> str | None:
    """The part of :func:`why_not_callable` that depends on the arguments, for nodes of any ``op``.

    Refuses functions that may not be handed on, and values whose ``repr`` is not known to be
    harmless: torch writes it into code.

    Args:
        target: Names the node in the reason; ``getattr`` is given a closer look.
        args: The node's arguments.
        kwargs: The same.
        allowed: Identities of functions and classes that the caller trusts.
    """
    if target is getattr and id(getattr) not in allowed:
        reason = _why_not_getattr(args, kwargs)
        if reason is not None:
            return reason
    if not kwargs and _QUIET.issuperset(map(type, args)):
        return None
    for value in _leaves([*args, *kwargs.values()]):
        if id(value) in allowed or isinstance(value, _KNOWN_TEXT):
            continue
        reason = _why_not_leaf(value)
        if reason is None and not callable(value):
            reason = f"torch would write the text of a {type(value).__name__} into code"
        if reason is not None:
            return f"an argument of {_described(target)}: {reason}"
    return None


def why_not_value(value: Any, allowed: Set[int] = frozenset()) -> str | None:
    """Why a module from a stranger may not hold ``value`` as an attribute; None if it may.

    Who receives a function may call it, with arguments that nobody has looked at. What cannot be
    called is fine here. Looks into containers, not into other objects.

    Args:
        value: The value.
        allowed: Identities of functions and classes that the caller trusts.
    """
    for leaf in _leaves([value]):
        reason = None if id(leaf) in allowed else _why_not_leaf(leaf)
        if reason is not None:
            return reason
    return None


def _why_not_leaf(value: Any) -> str | None:
    if value is getattr:
        return "builtins.getattr may be called with a fixed attribute, but not handed on"
    operator = operator_name(value)
    if operator is not None:
        return _why_not_operator(*operator)
    if not callable(value) or name_of(value) is not None or class_path(value) is not None:
        return None
    return f"{_described(value)} is not in the table of harmless functions"


def _leaves(waiting: list[Any]) -> Iterator[Any]:
    """What containers in ``waiting`` hold in the end, plain values and nodes left out."""
    seen: set[int] = set()
    while waiting:
        value = waiting.pop()
        if type(value) in _QUIET or id(value) in seen:
            continue
        seen.add(id(value))
        if type(value) is slice:
            waiting += (value.start, value.stop, value.step)
        elif isinstance(value, _CONTAINERS):
            waiting += value
            waiting += value.values() if isinstance(value, dict) else ()
        else:
            yield value


def _make_table() -> _Table:
    """Make the table and publish it whole; if two threads make it, either one is good."""
    global _table
    by_id: dict[int, tuple[str, str]] = {}
    by_name: dict[str, dict[str, Any]] = {}
    for namespace, held in _torch_names.public_tables():
        by_name.setdefault(namespace, {}).update(held)
        for name, value in held.items():
            by_id.setdefault(id(value), (namespace, name))
    _table = _Table(by_id, by_name)
    return _table


def _make_policy() -> _Policy:
    global _policy
    return_types = _torch_names.return_types().values()
    split = [entry.rpartition(".") for entry in _CALLED_CLASSES]
    classes = {id(find(namespace, name)) for namespace, _, name in split}
    classes.add(id(find("torch.extra", "torch.autograd.function.FunctionCtx")))
    fields = {field for cls in return_types for field in cls.__match_args__}
    methods = {*_torch_names.tensor_methods(), *_CONTAINER_METHODS}
    public = {name for name in methods if name[0] != "_"}
    _policy = _Policy(
        classes=frozenset(classes | {id(cls) for cls in return_types}) - {id(None)},
        methods=frozenset(methods),
        attributes=_OTHER_ATTRIBUTES | fields | public | _torch_names.tensor_data(),
    )
    return _policy


def _why_not_getattr(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    if kwargs or len(args) not in (2, 3):
        return "builtins.getattr takes an object, an attribute and perhaps a default"
    if type(args[1]) is not str:
        return f"builtins.getattr takes an attribute that the graph spells out, not {args[1]!r:.80}"
    if args[1] in (_policy or _make_policy()).attributes:
        return None
    return f"builtins.getattr of {args[1]!r:.80}, which is not in the list of harmless attributes"


def _why_not_operator(kind: str, name: str) -> str | None:
    namespace, _, rest = name.partition(".")
    own = rest if kind == "higher_order" else rest.partition(".")[0]
    reason = _UNSAFE_OPERATORS.get(f"{namespace}.{own}")
    if reason is None and not (namespace == "prim" and own in _SAFE_PRIM):
        reason = _UNSAFE_NAMESPACES.get(namespace)
    if reason is None:
        telling = sorted(_TELLING_WORDS.intersection(own.lower().split("_")))
        if not telling or name in _SAFE_ALL_THE_SAME:
            return None
        reason = f"may touch files or programs, as {telling[0]!r} in its name says"
    return f"the operator {name:.200} {reason}"


def _described(value: Any) -> str:
    if type(value) is str:
        return f"{value!r:.200}"
    operator = operator_name(value)
    if operator is not None:
        return operator[1]
    name = name_of(value)
    if name is not None:
        return name[1] if name[0] == "torch.extra" else ".".join(name)
    module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if isinstance(module, str) and isinstance(qualified, str):
        return f"{module}.{qualified}"[:200]
    return f"{value!r:.200}"
