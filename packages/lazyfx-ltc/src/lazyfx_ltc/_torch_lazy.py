"""The seam to torch's lazy backend and to the TorchScript it lowers to.

Everything private that lazyfx-ltc needs from ``torch._C`` goes through the functions below, so
that one file breaks when torch moves something. Names are looked up when they are used, never at
import: importing this module initializes nothing. A name that is gone raises
:class:`lazyfx_core.errors.SeamError` that says which.

Facts relied on, each checked where it is used or by the self-test of ``_session``:

* ``_get_tensors_ts_device_data_node(roots)`` and ``_get_tensors_backend(roots)`` visit the nodes
  in the same order (post-order over the roots in the order given), so that the n-th device datum
  is the parameter ``%pn`` of the text;
* both merge two data only if they are one object; ``to("lazy")`` of a tensor with at least one
  dimension makes a new object each time, while equal scalars share one;
* registering the backend a second time raises, and leaves the dispatcher half re-registered.

==================================================  ================================================
private name                                        used for
==================================================  ================================================
``torch._C._lazy_ts_backend``                       starting the backend; the data that a graph
                                                    starts from
``torch._C._lazy``                                  counters, numbers of tensors, the graph as text
``torch._C._dispatch_has_kernel_for_dispatch_key``  whether the backend is there; which operators
                                                    have kernels
``torch._to_functional_tensor``                     views and in-place operators on lazy tensors
``torch._from_functional_tensor``                   the same
``torch._is_functional_tensor``, ``torch._sync``    the same
``torch._C.parse_ir``, ``torch._C.Graph``           graphs from their text
``torch._C._create_function_from_graph``            a captured graph as a function of its own
``torch._C._get_graph_executor_optimize``           TorchScript's optimizer, left out while it runs
``torch._C._set_graph_executor_optimize``           the same
``torch._C._jit_to_static_module``                  Static Runtime, where torch was built with it
``torch._C._VariableFunctions``, ``torch._C._nn``   calling an operator as Python does
``torch._C.parse_schema``                           which overload a call of the text is
``torch._C._jit_get_schemas_for_operator``          the same
==================================================  ================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from lazyfx_core.errors import SeamError

from .errors import CaptureError

_OWNER = "torch._C"


def _private(path: str) -> Any:
    found: Any = torch._C
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            raise SeamError(
                f"torch {torch.__version__} has no {_OWNER}.{path}, which lazyfx-ltc relies on;"
                " this torch release (or build) is not supported: install torch 2.6 to 2.15"
            )
    return found


# --- the backend -------------------------------------------------------------------------------


def backend_is_registered() -> bool:
    """Whether anybody in this process has initialized torch's lazy TorchScript backend."""
    return bool(_private("_dispatch_has_kernel_for_dispatch_key")("aten::add.Tensor", "Lazy"))


def register_backend() -> None:
    """Initialize the lazy TorchScript backend. Must not be called when it is registered."""
    _private("_lazy_ts_backend._init")()


def backend_device() -> str:
    """The device type the registered backend computes on, ``"cpu"`` or ``"cuda"``."""
    probe = torch.ones(1).to("lazy")
    return "cuda" if "device=CUDA" in ir_text([probe]) else "cpu"


@cache
def has_kernel(op: str, key: str) -> bool:
    """Whether ``op`` (``"aten::add.Tensor"``) has its own kernel under a dispatch key.

    False for the overloads that only TorchScript has: the dispatcher does not know them.
    """
    ask = _private("_dispatch_has_kernel_for_dispatch_key")
    try:
        return bool(ask(op, key))
    except RuntimeError:  # "operator ... does not exist"
        return False


def counters() -> dict[str, int]:
    """A snapshot of the process's lazy counters."""
    value = _private("_lazy._counter_value")
    return {name: int(value(name) or 0) for name in _private("_lazy._counter_names")()}


# --- lazy tensors ------------------------------------------------------------------------------


def tensor_id(tensor: torch.Tensor) -> int:
    """The number under which the backend reports this lazy tensor's data."""
    return int(_private("_lazy._get_tensor_id")(tensor))


def _functionalization(name: str) -> Any:
    function = getattr(torch, name, None)
    if function is None:
        raise SeamError(f"torch {torch.__version__} has no torch.{name}, which lazyfx-ltc needs")
    return function


def wrapped(tensor: torch.Tensor) -> torch.Tensor:
    """The functionalized form of a lazy tensor, which views and in-place operators need.

    Lazy tensors are born wrapped, except what is made under a dispatch mode.
    """
    if _functionalization("_is_functional_tensor")(tensor):
        return tensor
    outer: torch.Tensor = _functionalization("_to_functional_tensor")(tensor)
    return outer


def settled(tensors: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The tensors as roots of a graph: each sees the writes that were made through its views.

    The backend's inspection functions take the outer, functionalized tensors only; inner ones, as
    a dispatch mode sees them, are wrapped.
    """
    sync = _functionalization("_sync")
    inside = _functionalization("_from_functional_tensor")
    roots = [wrapped(one) for one in tensors]
    for root in roots:
        sync(root)
        if inside(root).device.type != "lazy":  # the backend would end the process
            raise CaptureError(
                "a view that an operator returned together with others (split, unbind) was written"
                " to through its base, which torch's lazy device does not follow; write to a clone"
            )
    return roots


def device_data(roots: Sequence[torch.Tensor]) -> tuple[list[int], list[Any]]:
    """Tensor ids and values of the data the graph of ``roots`` starts from, in ``%p`` order."""
    ids, values = _private("_lazy_ts_backend._get_tensors_ts_device_data_node")(list(roots))
    return list(ids), list(values)


def backend_text(roots: Sequence[torch.Tensor]) -> str:
    """The TorchScript text of the graph that computes ``roots``; nothing is executed."""
    return str(_private("_lazy._get_tensors_backend")(list(roots)))


def ir_text(roots: Sequence[torch.Tensor]) -> str:
    """The lazy IR of ``roots`` as text; nothing is executed."""
    return str(_private("_lazy._get_tensors_text")(list(roots)))


def graph_hash(roots: Sequence[torch.Tensor]) -> str:
    """The hash torch's own extraction would use; for comparison in logs only."""
    return str(bytes(_private("_lazy._get_graph_hash")(list(roots))).hex())


# --- TorchScript -------------------------------------------------------------------------------


def bound_graph(text: str, constants: Mapping[int, torch.Tensor] | None = None) -> Any:
    """A graph from its text, with constants in the place of some inputs.

    Args:
        text: The graph.
        constants: The values of some inputs, by place; the graph does not take them.

    Raises:
        RuntimeError: torch cannot parse the text.
    """
    graph = _private("parse_ir")(text)
    inputs = list(graph.inputs())
    start = next(iter(graph.nodes()), None) or graph.return_node()
    values = constants or {}
    for place in sorted(values, reverse=True):
        graph.setInsertPoint(start)
        inputs[place].replaceAllUsesWith(graph.insertConstant(values[place]))
        graph.eraseInput(place)
    return graph


def build_function(graph: Any) -> Callable[..., Any]:
    """Turn a graph into a function of its own (no cache, releases the GIL while it runs).

    TorchScript's optimizer is left out while the function runs (the setting is thread-local): it
    recurses over long chains, which ends a process whose thread has a small stack, folds constants
    into tensors that it hands out again at every call, and has nothing to fuse on a CPU.
    """
    function: Callable[..., Any] = _private("_create_function_from_graph")("captured", graph)
    is_optimizing = _private("_get_graph_executor_optimize")
    optimize = _private("_set_graph_executor_optimize")

    def run(*inputs: Any) -> Any:
        before = is_optimizing()
        optimize(False)
        try:
            return function(*inputs)
        finally:
            optimize(before)

    return run


def build_static(graph: Any) -> Callable[..., Any] | None:
    """The graph for torch's Static Runtime; None where this build of torch has none.

    It calls kernels directly and reuses the memory of intermediate results, which takes about half
    of the interpreter's time for small tensors. CPU only. What it returns was made in inference
    mode; it must not be entered twice at a time, and holds the GIL while it runs.

    Raises:
        RuntimeError: It does not take the graph.
    """
    make = getattr(torch._C, "_jit_to_static_module", None)
    if make is None:
        return None
    function: Callable[..., Any] = make(graph)
    return function


def python_function(name: str) -> Callable[..., Any] | None:
    """The function of C by which python calls an operator, if there is one; no namespace."""
    for owner in (_private("_VariableFunctions"), _private("_nn")):
        found: Callable[..., Any] | None = getattr(owner, name, None)
        if found is not None:
            return found
    return None


@cache
def schemas(kind: str) -> tuple[Any, ...]:
    """All schemas TorchScript knows for an operator (``"aten::add"``)."""
    return tuple(_private("_jit_get_schemas_for_operator")(kind))


@cache
def code_of(value: torch.dtype | torch.layout) -> int:
    """The number that TorchScript writes for a dtype or a layout."""
    graph = _private("Graph")()
    node = graph.insertConstant(value).node()
    return int(str(node).partition("value=")[2].partition("]")[0])


def overload_of(text: str, kind: str) -> str | None:
    """The overload (``"aten::add.Tensor"``) that a graph's last call of ``kind`` resolves to."""
    found = None
    for node in _private("parse_ir")(text).nodes():
        if node.kind() == kind and (described := node.schema()) != "(no schema)":
            schema = _private("parse_schema")(described)
            name, overload = schema.name, schema.overload_name
            found = f"{name}.{overload}" if overload else str(name)
    return found


def read_graph(
    text: str,
) -> tuple[list[int], list[tuple[list[int], list[int], Any | None]], list[int]]:
    """Parse a graph: (its inputs, its nodes, the values it returns).

    A node is (inputs, outputs, schema or None); values are numbers, since the parser renames. A
    tuple built for the return is looked through. ``prim`` nodes have no schema.
    """
    parse = _private("parse_schema")
    graph = _private("parse_ir")(text)
    nodes: list[tuple[list[int], list[int], Any | None]] = []
    returned = [value.unique() for value in graph.outputs()]
    for node in graph.nodes():
        described = node.schema()
        inputs = [value.unique() for value in node.inputs()]
        outputs = [value.unique() for value in node.outputs()]
        if node.kind() == "prim::TupleConstruct" and outputs == returned:
            returned = inputs
            continue
        schema = None if described == "(no schema)" else parse(described)
        nodes.append((inputs, outputs, schema))
    return [value.unique() for value in graph.inputs()], nodes, returned
