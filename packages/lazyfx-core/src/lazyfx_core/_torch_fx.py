"""The seam to ``torch.fx``: what lazyfx-core patches, and the privates of ``GraphModule`` it uses.

Two patches, each installed on first use and removed exactly (the very same object goes back):

- **The factory.** One function of torch decides which class ``symbolic_trace``, ``make_fx``,
  ``Transformer``, Dynamo, the AOT partitioners, ``split_module`` and unpickling build:
  ``torch.fx._lazy_graph_module._get_graph_module_cls``. A chooser stands in its place.
- **The constructor** (wide). Code that calls ``fx.GraphModule(...)`` itself goes through
  ``fx.GraphModule.__new__``; some 75 places in torch do.

==========================================================  ========================================
private name                                                used for
==========================================================  ========================================
``_lazy_graph_module._get_graph_module_cls``                replaced while installed
``_lazy_graph_module._make_graph_module``                   checked: must look the former up by name
``_lazy_graph_module._force_skip_lazy_graph_module_flag``   read: torch's own "never lazy" wins
``GraphModule.__new__``                                     replaced while the wide seam is
                                                            installed
``graph_module.reduce_graph_module``                        first half of ``__reduce__``
``graph_module._format_import_block``                       second half of ``__reduce__``
``graph_module._copy_attr``, ``graph_module._assign_attr``  building a module from its root
``graph_module._CodeOnlyModule``                            what torch's deepcopy and unpickling
                                                            pass
``Module._modules``                                         what of such a module is copied
``Module._buffers``                                         the same
``Module._parameters``                                      the same
``torch._dynamo.mutation_guard.GenerationTracker``          tagging modules as Dynamo's constructor
                                                            does
``function._dynamo_marked_constant``                        lets Dynamo evaluate a call while
                                                            tracing
``eval_frame.set_code_exec_strategy``                       keeping Dynamo from compiling the
                                                            descriptors (after torch 2.6)
``eval_frame._FrameAction``                                 the same
``eval_frame._FrameExecStrategy``                           the same
``eval_frame.skip_code``                                    keeping it from that (before torch 2.9)
``eval_frame.set_eval_frame``                               keeping it from that, too
``graph_module._forward_from_src``                          Dynamo replaces it while it is compiling
``Module.torchdynamo_force_dynamic``                        tells that Dynamo is about to look at a
                                                            module
``graph_module._loader.eval_cache``                         torch's own copy of every source; where
                                                            it is missing, it cannot be released
==========================================================  ========================================

Seen to be there in torch 2.6 to 2.15; a release that moves one of the patched names makes
:func:`install` raise :class:`~lazyfx_core.errors.SeamError`.
"""

from __future__ import annotations

import linecache
import os
import threading
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch._C._dynamo.eval_frame as _eval_frame
import torch.fx._lazy_graph_module as _torch_lazy
import torch.fx.graph_module as _torch_graph_module
from torch import fx
from torch.fx.graph_module import (
    _assign_attr,
    _CodeOnlyModule,
    _copy_attr,
    _format_import_block,
    reduce_graph_module,
)
from torch.package import sys_importer

from .errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import CodeType

    from torch import nn

    ChooseClass = Callable[[Callable[[], type[fx.GraphModule]]], type[fx.GraphModule]]
    ReplaceClass = Callable[[], type[fx.GraphModule] | None]

_F = TypeVar("_F", bound="Callable[..., Any]")

GENERATED_FIELDS = tuple(
    name
    for name in ("_code", "_lineno_map", "_prologue_start")  # the last: after torch 2.9
    if name in fx.GraphModule.recompile.__code__.co_names
)
"""Instance attributes that torch writes when it generates code and reads directly elsewhere."""

DYNAMO_ASKS_FIRST = "torchdynamo_force_dynamic"
"""The attribute that Dynamo asks of a module before it looks at the module's class."""

SWITCH_DYNAMO: Callable[[Any], Any] | None = (
    None
    if hasattr(_eval_frame, "set_code_exec_strategy")
    else getattr(_eval_frame, "set_eval_frame", None)
)
"""Up to torch 2.6: takes what is to look at frames, None for nobody, and returns what did before.

There Dynamo cannot be told to leave alone what a function calls.
"""

_forward_from_src = _torch_graph_module._forward_from_src
_IMPL_QUALNAME = "GraphModule.__new__.<locals>.GraphModuleImpl"
_TARGET = "_get_graph_module_cls"
_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
_original: Callable[[], type[fx.GraphModule]] | None = None
_replacement: Callable[[], type[fx.GraphModule]] | None = None
_original_new: Any = None
_replacement_new: Any = None


def install(choose: ChooseClass) -> None:
    """Let ``choose(original)`` decide which class torch builds. Idempotent and thread-safe.

    Args:
        choose: Called with torch's own chooser each time torch is about to build a module.

    Raises:
        SeamError: This release of torch does not have the function to replace, or no longer
            asks it; nothing was patched.
    """
    global _original, _replacement
    if _replacement is not None and getattr(_torch_lazy, _TARGET, None) is not _original:
        return
    with _lock:
        original = getattr(_torch_lazy, _TARGET, None)
        if _replacement is not None and original is not _original:
            return  # installed, perhaps below a later patch; otherwise somebody put torch's back
        maker = getattr(_torch_lazy, "_make_graph_module", None)
        if not callable(original) or _TARGET not in _names_used_by(maker):
            raise SeamError(
                f"torch {torch.__version__} has no {_torch_lazy.__name__}.{_TARGET} that "
                "_make_graph_module asks, so lazyfx-core cannot reach torch's own constructions; "
                "use LazyGraphModule(...) directly, or a release of lazyfx-core that knows this "
                "torch"
            )
        kept: Callable[[], type[fx.GraphModule]] = original

        def get_graph_module_cls() -> type[fx.GraphModule]:
            return choose(kept)

        setattr(_torch_lazy, _TARGET, get_graph_module_cls)
        _original, _replacement = kept, get_graph_module_cls


def install_wide(replace: ReplaceClass) -> None:
    """Let ``replace()`` say what a direct ``fx.GraphModule(...)`` builds instead, or None.

    Subclasses build what they are. Idempotent and thread-safe.

    Raises:
        SeamError: ``fx.GraphModule`` of this release has no ``__new__`` that makes a class for
            each instance; nothing was patched.
    """
    global _original_new, _replacement_new
    with _lock:
        if _replacement_new is not None:
            if vars(fx.GraphModule).get("__new__") is not _original_new:
                return
            _original_new = _replacement_new = None  # somebody put torch's own back
        kept = vars(fx.GraphModule).get("__new__")
        make = getattr(kept, "__func__", kept)
        owner = getattr(make, "__module__", None)
        if callable(make) and owner != fx.GraphModule.__module__:
            raise SeamError(
                f"torch.fx.GraphModule.__new__ was replaced by {owner}, so "
                "use_lazy_graph_module(everywhere=True) cannot tell what a direct call builds; "
                "enter the block before that patch is made, or leave everywhere out"
            )
        if not callable(make) or "__mro__" not in _names_used_by(make):
            raise SeamError(
                f"torch {torch.__version__} has no GraphModule.__new__ that makes a class for each "
                "instance, so use_lazy_graph_module(everywhere=True) cannot reach direct calls of "
                "fx.GraphModule; leave everywhere out"
            )

        def new(cls: type[fx.GraphModule], *args: Any, **kwargs: Any) -> Any:
            if cls is fx.GraphModule or (
                cls.__base__ is fx.GraphModule and cls.__qualname__ == _IMPL_QUALNAME
            ):  # the latter from copies
                other = replace()
                if other is not None:
                    return other.__new__(other)
            return make(cls, *args, **kwargs)

        _original_new, _replacement_new = kept, staticmethod(new)
        fx.GraphModule.__new__ = _replacement_new  # type: ignore[method-assign]


def remove() -> None:
    """Put torch's own functions back, the very same objects. Does nothing if not installed.

    Raises:
        SeamError: Somebody else has replaced one of the functions after us; putting the original
            back would silently undo their patch. Nothing was removed.
    """
    global _original, _replacement, _original_new, _replacement_new
    with _lock:
        current = getattr(_torch_lazy, _TARGET, None)
        if _replacement is not None and current not in (_replacement, _original):
            raise SeamError(
                f"{_torch_lazy.__name__}.{_TARGET} is now {current!r}, not what lazyfx-core "
                "installed; remove the later patch first, then call remove_seam() again"
            )
        current = vars(fx.GraphModule).get("__new__")
        if _replacement_new is not None and current not in (_replacement_new, _original_new):
            raise SeamError(
                f"torch.fx.GraphModule.__new__ is now {current!r}, not what lazyfx-core "
                "installed; remove the later patch first, then call remove_seam() again"
            )
        if _replacement is not None:
            setattr(_torch_lazy, _TARGET, _original)
            _original = _replacement = None
        if _replacement_new is not None:
            fx.GraphModule.__new__ = _original_new  # type: ignore[method-assign]
            _original_new = _replacement_new = None


def installed() -> bool:
    """Whether torch asks lazyfx-core which class to build."""
    return _replacement is not None and getattr(_torch_lazy, _TARGET, None) is not _original


def wide_installed() -> bool:
    """Whether direct calls of ``fx.GraphModule`` ask lazyfx-core too."""
    return _replacement_new is not None


def torchs_choice() -> type[fx.GraphModule]:
    """The class that torch would build if lazyfx-core were not there."""
    original = _original
    if original is not None:
        return original()
    return _torch_lazy._get_graph_module_cls()


def torch_forbids_laziness() -> bool:
    """Whether torch is inside its own ``_force_skip_lazy_graph_module``."""
    return bool(getattr(_torch_lazy, "_force_skip_lazy_graph_module_flag", False))


class _Blank(fx.GraphModule):
    """A graph module that never has code."""

    def recompile(self) -> Any:
        return None


def blank_state() -> dict[str, Any]:
    """What torch's constructor leaves in the dictionary of a module, in its order.

    Generated fields and the graph are None.
    """
    graph = fx.Graph()
    graph.output(None)
    state: dict[str, Any] = {}
    for name, value in vars(_Blank({}, graph)).items():
        if name == "_graph":  # assigning it is what makes torch generate
            state.update(dict.fromkeys(("_graph", *GENERATED_FIELDS)))
        else:
            state[name] = value
    return state


def unwrapped_by_dynamo(init: Any) -> tuple[Any, Callable[[Any], object] | None]:
    """What Dynamo wrapped when it was first used, and what it does after each construction.

    Dynamo tags every ``nn.Module`` with the time of its construction.

    Returns:
        ``(init, None)`` if Dynamo has not wrapped it.
    """
    code, closure = getattr(init, "__code__", None), getattr(init, "__closure__", None) or ()
    held = getattr(init, "__globals__", {})
    if held.get("__name__") == "torch._dynamo.mutation_guard" and code is not None:
        inner = dict(zip(code.co_freevars, closure, strict=True)).get("init")
        tracker: Any = held.get("GenerationTracker")
        if inner is not None and hasattr(tracker, "tag"):
            return inner.cell_contents, tracker.tag
    return init, None


def copy_attributes(
    module: fx.GraphModule, root: nn.Module | Mapping[str, Any], targets: list[str]
) -> None:
    """Give ``module`` what ``targets`` name in ``root``, the way torch's constructor does.

    Raises:
        AttributeError, KeyError: ``root`` has no such attribute.
    """
    if isinstance(root, torch.nn.Module):
        if isinstance(root, _CodeOnlyModule) and (
            root._modules or root._buffers or root._parameters
        ):
            for group in (root.named_children, root.named_buffers, root.named_parameters):
                for name, _ in group():
                    _copy_attr(root, module, name)
        for target in targets:
            _copy_attr(root, module, target)
        return
    for target in sorted(targets, key=lambda name: name.count(".")):
        _assign_attr(root[target], module, target)  # parents first: they would replace children


def torch_reduction(body: dict[str, Any], code: fx.graph.PythonCode) -> tuple[Any, tuple[Any, str]]:
    """What ``fx.GraphModule.__reduce__`` returns for this state and generated code."""
    return (reduce_graph_module, (body, _format_import_block(code.globals, sys_importer)))


def new_plain_module(cls: type[fx.GraphModule]) -> fx.GraphModule:
    """An instance of ``cls`` that is not built yet, lazy only if ``cls`` is, whatever the flags."""
    make = fx.GraphModule.__new__ if _original_new is None else _original_new.__func__
    module: fx.GraphModule = (
        make(cls) if cls.__new__ is fx.GraphModule.__new__ else cls.__new__(cls)
    )
    return module


def set_graph(module: fx.GraphModule, graph: fx.Graph) -> None:
    """Give ``graph`` to a module that has none; a plain one generates its code."""
    module.__dict__["_graph"] = graph
    graph.owning_module = module
    module.recompile()


def dynamo_constant(function: _F) -> _F:
    """Let Dynamo run ``function`` while tracing and take its result as a constant."""
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def hide_from_dynamo(function: Callable[..., Any], *, with_calls: bool = False) -> None:
    """Never let Dynamo compile ``function`` as a frame of its own; it may still be traced into.

    Dynamo compiles whatever Python runs while it is switched on, and checks the guards of what it
    compiled by reading attributes. Where reading an attribute is what makes code be generated, the
    compiled frame would pull the code from under its own guards.

    Args:
        function: A function in Python.
        with_calls: Nor anything that it calls.
    """
    code = function.__code__
    frames: Any = _eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip = frames._FrameAction.SKIP
        calls = skip if with_calls else frames._FrameAction.DEFAULT
        frames.set_code_exec_strategy(code, frames._FrameExecStrategy(skip, calls))
    elif hasattr(frames, "skip_code"):  # up to torch 2.6
        frames.skip_code(code)


def inside_dynamo() -> bool:
    """Whether Dynamo is compiling, and marks code that is generated now as not to be compiled."""
    return _torch_graph_module._forward_from_src is not _forward_from_src


def _names_used_by(function: object) -> tuple[str, ...]:
    code = getattr(function, "__code__", None)
    return getattr(code, "co_names", ())


# --- sources of generated code --------------------------------------------------------------------
# torch keeps the text of everything it ever generated in two dictionaries, its own loader's and
# linecache, under a name that is used once, and removes nothing: 11.7 MB for a thousand recompiles
# of a 200-node graph. Here an entry goes when the code object it belongs to is freed, so that
# tracebacks and inspect.getsource show its lines as long as anybody can run it.
#
# A code object may be freed anywhere, inside linecache itself too: the entries of dead ones are
# removed by the next generation, not by the garbage collector.

_ONCE = "<eval_with_key>"  # names that are used again, by content, belong to nobody
_alive: dict[str, weakref.ref[CodeType]] = {}
_dead: deque[str] = deque()


def release_with(code: CodeType) -> None:
    """Forget the source of ``code`` once ``code`` is freed, and that of what was freed before.

    Call with the generation lock held.
    """
    name = code.co_filename
    if name.startswith(_ONCE):
        _alive[name] = weakref.ref(code, lambda _: _dead.append(name))
    sources: Any = getattr(getattr(_torch_graph_module, "_loader", None), "eval_cache", {})
    # linecache refuses names that look like <...>, as that of a traced lambda does; it could then
    # not be scripted, and a traceback would show none of its lines
    if name not in linecache.cache and name in sources:
        text = sources[name]
        linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    while _dead:
        gone = _dead.popleft()
        _alive.pop(gone, None)
        sources.pop(gone, None)
        linecache.cache.pop(gone, None)
