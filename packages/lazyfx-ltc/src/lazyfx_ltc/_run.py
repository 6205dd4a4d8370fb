"""Run a copy of a model, node by node, with other tensors in the place of its own.

Capture runs the model twice without touching it: once on fake tensors (``_contract.py``) and once
on lazy ones (``_record.py``). Both need a copy in which every tensor of the model is replaced.
``copy.deepcopy`` with a pre-filled memo does that wherever the tensor is referenced, keeps ties,
and copies no weight. Running by interpretation generates no code and knows the node at fault.
"""

from __future__ import annotations

import collections
import copy
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.immutable_collections import immutable_dict, immutable_list

from lazyfx_core import LazyGraphModule

from ._signature import placeholder_values
from ._state import TABLES, referenced
from ._torch_tracing import global_forward_hooks
from .errors import CaptureError, LtcError

# What makes a module one; of the rest, only what the graph refers to is copied.
_TABLES = frozenset(vars(nn.Module()))
OURS = str(Path(__file__).parent)
TORCH = str(Path(torch.__file__).parent)


class Runner(fx.Interpreter):
    """Interprets the graph of a copy; ``node`` is the node that runs or ran last."""

    def __init__(self, copied: fx.GraphModule) -> None:
        super().__init__(copied)
        self.copied = copied
        self.extra_traceback = False
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        """Remember the node, then run it."""
        self.node = n
        return super().run_node(n)

    def output(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The returned value with the lists and dicts that generated code would build."""
        return plain_containers(super().output(target, args, kwargs))

    def call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What the model returns for a call.

        Raises:
            InputError: The arguments do not fit its signature.
        """
        values = placeholder_values(self.copied.graph, args, kwargs)
        result = self.run(*values, enable_io_processing=False)
        return self.copied.graph.process_outputs(result)

    def forget(self) -> None:
        """Let go of the copy's tensors; it cannot run again."""
        self.env.clear()
        for module in self.copied.modules():
            module._parameters.clear()
            module._buffers.clear()
            for name, value in list(vars(module).items()):
                if isinstance(value, torch.Tensor):
                    del vars(module)[name]

    def blame(self, error: LtcError) -> None:
        """Note the current node as what an error is about, unless it knows better."""
        if self.node is not None and not error.nodes:
            error.nodes = (self.node.name,)

    def blamed(self, message: str) -> CaptureError:
        """An error about the current node."""
        error = CaptureError(message)
        self.blame(error)
        return error

    def where(self) -> str:
        """The current node in words, with the user's line where tracing kept it."""
        node = self.node
        if node is None:
            return "the graph's start"
        described = f"node {node.name!r} ({node.op} {_target_name(node)})"
        return f"{described}, from {line}" if (line := _traced_line(node)) else described


def plain_containers(value: Any) -> Any:
    """``value`` without the immutable containers that fx puts into a graph's arguments."""
    kind = type(value)
    if kind in (list, immutable_list):
        return [plain_containers(item) for item in value]
    if kind in (dict, immutable_dict):
        return {key: plain_containers(item) for key, item in value.items()}
    if kind is tuple:
        return tuple(plain_containers(item) for item in value)
    if isinstance(value, tuple) and hasattr(value, "_make"):
        return value._make(plain_containers(item) for item in value)
    return value


def filled(arguments: Any, value: Callable[[fx.Node], Any]) -> Any:
    """The arguments of a node with values for nodes, in containers as generated code makes them.

    Containers among the values are left as they are: they may be changed, and belong to others.
    """
    if isinstance(arguments, fx.Node):
        return value(arguments)
    kind = type(arguments)
    if kind in (list, immutable_list):
        return [filled(item, value) for item in arguments]
    if kind in (dict, immutable_dict):
        return {key: filled(item, value) for key, item in arguments.items()}
    if kind is tuple:
        return tuple(filled(item, value) for item in arguments)
    return fx.node.map_arg(arguments, value)  # slices and named tuples


def _target_name(node: fx.Node) -> str:
    target = node.target
    return target if isinstance(target, str) else getattr(target, "__name__", str(target))


def _traced_line(node: fx.Node) -> str:
    recorded = node.meta.get("stack_trace") or ""
    lines = [line.strip() for line in recorded.splitlines() if line.strip().startswith("File ")]
    return lines[-1] if lines else ""


def user_line(error: BaseException | None = None) -> str:
    """``, called at file:line`` of the innermost frame outside torch and this package, or ''."""
    if error is None:
        frames: Any = traceback.extract_stack()
    else:
        frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if frame.name == "run_node" and frame.filename.startswith(OURS):
            return ""  # the graph itself calls it: the node says where
        if not frame.filename.startswith((OURS, TORCH, "<")):
            return f", called at {frame.filename}:{frame.lineno}"
    return ""


def _refuse_hooks(model: nn.Module, names: frozenset[str]) -> None:
    if global_forward_hooks():
        raise CaptureError(
            "forward hooks are registered for all modules (register_module_forward_hook): a replay"
            " would not call them; remove them"
        )
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    for path, module in model.named_modules():
        if path and path.partition(".")[0] not in names:
            continue
        if any(getattr(module, kind, None) for kind in kinds):
            who = f"submodule {path!r}" if path else "the model"
            raise CaptureError(
                f"{who} has forward hooks: a replay runs the captured graph and would not call"
                " them; remove the hooks, or trace them into the graph with make_fx"
            )


def stand_in(model: nn.Module, graph: fx.Graph, replacements: Mapping[int, torch.Tensor]) -> Runner:
    """Copy a model with other tensors in place of its own.

    Args:
        model: The model; not changed. Its tensors are not copied, everything else that the graph
            refers to is.
        graph: What to run; copied.
        replacements: The replacement of each tensor of the model, by ``id``.

    Raises:
        CaptureError: The model has forward hooks, or something in it cannot be copied.
    """
    names = referenced(graph)
    _refuse_hooks(model, names)
    memo: dict[int, Any] = dict(replacements)
    attributes = {
        key: value for key, value in vars(model).items() if key in names or key in _TABLES
    }
    for table in TABLES:
        attributes[table] = {k: v for k, v in attributes[table].items() if k in names}
    root = nn.Module()
    try:
        root.__dict__.update(copy.deepcopy(attributes, memo))
        # Lazy: the copy is edited and interpreted, nobody ever needs its code.
        copied = LazyGraphModule(root, copy.deepcopy(graph))
    except (TypeError, RuntimeError, AttributeError) as error:
        raise CaptureError(
            f"the model cannot be copied for capture ({type(error).__name__}: {error}); every"
            " attribute of it and of its submodules must support copy.deepcopy"
        ) from error
    return Runner(copied)


def _inside(key: str, value: Any) -> Any:
    """What a container of the user's holds, by identity; None for everything else."""
    if key in _TABLES:
        return None
    if isinstance(value, dict):
        return [(id(key), id(item)) for key, item in value.items()]
    if isinstance(value, (list, set, collections.deque)):
        return [id(item) for item in value]
    return None


class AttributeWatch:
    """Notices a module that binds an attribute anew while it runs.

    Such a change happens to the copy only: neither the model nor a replay would see it, so it is
    refused. In-place changes of tensors are not meant; those are captured.
    """

    def __init__(self, root: nn.Module) -> None:
        self._before = {
            (path, kind): {key: (value, _inside(key, value)) for key, value in values.items()}
            for path, module in root.named_modules()
            for kind, values in self._kinds(module)
        }
        self._root = root

    @staticmethod
    def _kinds(module: nn.Module) -> list[tuple[str, dict[str, Any]]]:
        return [("attribute", vars(module)), *((kind, getattr(module, kind)) for kind in TABLES)]

    def check(self) -> None:
        """Compare with the start.

        Raises:
            CaptureError: An attribute was bound anew, added or removed.
        """
        for path, module in self._root.named_modules():
            for kind, values in self._kinds(module):
                before = self._before.get((path, kind), {})
                for key in before.keys() | values.keys():
                    if key in before and key in values and before[key][0] is values[key]:
                        if before[key][1] == _inside(key, values[key]):
                            continue
                        raise CaptureError(
                            f"submodule {path!r} changes its attribute {key!r} while it runs; a"
                            " replay would not do that. Do it outside the captured graph"
                        )
                    raise CaptureError(
                        f"submodule {path!r} binds its attribute {key!r} anew while it runs; a"
                        " replay would not do that. Change the tensor in place instead"
                        f" (self.{key}.copy_(...)), or do it outside the captured graph"
                    )
