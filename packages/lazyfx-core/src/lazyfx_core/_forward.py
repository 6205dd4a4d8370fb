"""Laziness by observation: the descriptors that stand where generated code will be.

While a module is *stale* its per-instance class holds non-data descriptors for ``forward`` and
``__call__``. Whoever looks at either one, from the instance or from the class, makes the code be
generated and gets the real function, so no observer can tell a lazy module from a plain one. Once
generated, both are ordinary functions on the class and cost nothing. A module that is being
verified keeps the descriptors while fresh: each look compares the graph with the one the code was
made from (:mod:`lazyfx_core._verify`).

``_code``, ``_lineno_map`` and ``_prologue_start`` are instance attributes that torch reads
directly; :class:`GeneratedField` makes reading one an observation too. The keys are always in the
instance's dictionary, ``None`` while stale: another thread may be iterating over it.

Dynamo traces ``__get__``. It can because the only thing in it that Dynamo must not enter,
generation, sits behind a function marked as a trace-time constant that returns a plain int. Some
of its paths do not run descriptors at all (``gm.forward`` from outside in torch 2.6,
``type(gm).forward``); but up to torch 2.13 it asks each module for one optional attribute before it
looks at the class, and :class:`DynamoTap` makes that a look.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import threading
from typing import TYPE_CHECKING, Any

from torch.fx.graph import PythonCode

from ._torch_fx import SWITCH_DYNAMO, dynamo_constant, hide_from_dynamo
from .errors import LazyFxError

if TYPE_CHECKING:
    from ._graph_module import LazyGraphModule

GENERATION_LOCK = threading.RLock()
"""Held while code is generated or a module is marked stale.

One lock for all modules: ``Graph.python_code`` mutates nodes, and modules may share a graph.
Reentrant: generating one module may observe another.
"""

_LONGEST_WAIT = 10.0  # seconds
_holds_for_fork = False


def _before_fork() -> None:
    global _holds_for_fork
    _holds_for_fork = GENERATION_LOCK.acquire(timeout=_LONGEST_WAIT)


def _after_fork() -> None:
    if _holds_for_fork:
        GENERATION_LOCK.release()


def _in_forked_child() -> None:
    if _holds_for_fork:
        GENERATION_LOCK.release()
    else:
        GENERATION_LOCK._at_fork_reinit()  # type: ignore[attr-defined]  # as threading does


if hasattr(os, "register_at_fork"):
    # A child forked while another thread generates would inherit a lock nobody can release, and a
    # module in between two states. If that thread itself waits for the fork, waiting is no use.
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork, after_in_child=_in_forked_child
    )


@dynamo_constant
def ensure_generated(module: LazyGraphModule, cause: str) -> int:
    """Generate the code of ``module`` if it is stale, verify it if that was asked for.

    Returns:
        1 if the real function has to be taken from the state, as the class keeps its descriptors;
        0 if it is on the class.
    """
    from . import _generation, _verify

    state = type(module).__lazyfx__
    if state.stale:
        dynamo = None if SWITCH_DYNAMO is None else SWITCH_DYNAMO(None)
        try:
            _generation.generate_if_stale(module, cause)
        finally:
            if SWITCH_DYNAMO is not None:
                SWITCH_DYNAMO(dynamo)
    elif state.verify:
        _verify.check(module)
    elif cause in ("forward", "call"):
        # The module is fresh and yet its descriptor was found: somebody who had saved it put it
        # back (mock.patch.object on the class does).
        _generation.install_generated(module)
    state = type(module).__lazyfx__
    return 1 if state.verify and not state.stale else 0


class StaleForward:
    """Stands for ``forward`` on the class of a stale module."""

    __slots__ = ()

    def __get__(self, obj: LazyGraphModule | None, owner: Any = None) -> Any:
        if obj is None:
            module = _alive(owner, "forward")
            if ensure_generated(module, "forward"):
                return type(module).__lazyfx__.generated.forward  # type: ignore[union-attr]
            return type(module).forward
        if ensure_generated(obj, "forward"):
            return type(obj).__lazyfx__.generated.forward.__get__(obj, owner)  # type: ignore[union-attr]
        return type(obj).forward.__get__(obj, owner)


class StaleCall:
    """Stands for ``__call__`` on the class of a stale module."""

    __slots__ = ()

    def __get__(self, obj: LazyGraphModule | None, owner: Any = None) -> Any:
        if obj is None:
            module = _alive(owner, "__call__")
            if ensure_generated(module, "call"):
                return type(module).__lazyfx__.generated.call  # type: ignore[union-attr]
            return type(module).__call__
        if ensure_generated(obj, "call"):
            return type(obj).__lazyfx__.generated.call.__get__(obj, owner)  # type: ignore[union-attr]
        return type(obj).__call__.__get__(obj, owner)


STALE_FORWARD = StaleForward()
STALE_CALL = StaleCall()
hide_from_dynamo(ensure_generated, with_calls=True)
hide_from_dynamo(StaleForward.__get__)
hide_from_dynamo(StaleCall.__get__)


class GeneratedField:
    """Stands for an instance attribute that code generation writes."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, obj: LazyGraphModule | None, owner: type | None = None) -> Any:
        if obj is not None:
            held = vars(obj)
            if held.get(self._name) is None:  # torch reads what it has just written: not a look
                ensure_generated(obj, "code")
            made = type(obj).__lazyfx__.generated
            if held.get(self._name) is None and made is not None:
                # The dictionary of another module was put in place of its own.
                held[self._name] = made.fields.get(self._name)
            if held.get(self._name) is not None or made is not None:
                return held.get(self._name)
        holder = owner.__name__ if owner is not None else type(obj).__name__
        raise AttributeError(f"{holder!r} object has no attribute {self._name!r}")

    def __set__(self, obj: LazyGraphModule, value: Any) -> None:
        vars(obj)[self._name] = value

    def __delete__(self, obj: LazyGraphModule) -> None:
        vars(obj)[self._name] = None


class DynamoTap:
    """An attribute that no module has, and that Dynamo asks for just before it reads the class."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, obj: LazyGraphModule | None, owner: type | None = None) -> Any:
        if obj is not None:
            with contextlib.suppress(LazyFxError):  # a real look will say what is wrong
                ensure_generated(obj, "dynamo")
        raise AttributeError(self._name)


hide_from_dynamo(GeneratedField.__get__)
hide_from_dynamo(DynamoTap.__get__)


class LazyPythonCode(PythonCode):
    """What ``recompile()`` returns: a ``PythonCode`` whose fields are generated when read.

    Reading any field is an observation of the module. Once filled, the fields stay those of that
    generation, like the ``PythonCode`` that ``fx.GraphModule.recompile`` returns.
    """

    def __init__(self, module: LazyGraphModule) -> None:
        self._lazyfx_module: LazyGraphModule | None = module

    def fill(self, code: PythonCode) -> None:
        """Take over the fields of generated code and let go of the module."""
        vars(self).update(vars(code))
        self._lazyfx_module = None


class _PendingField:
    """A field of :class:`LazyPythonCode` that nobody has read yet."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, obj: LazyPythonCode | None, owner: type | None = None) -> Any:
        module = None if obj is None else vars(obj).get("_lazyfx_module")
        if obj is not None and module is not None:
            ensure_generated(module, "python_code")
            made = type(module).__lazyfx__.generated
            if made is not None and self._name not in vars(obj):
                obj.fill(made.code)  # an interrupt came between generating and filling
        if obj is not None and self._name in vars(obj):
            return vars(obj)[self._name]
        raise AttributeError(f"{self._name!r} is not filled in")


for _field in dataclasses.fields(PythonCode):
    setattr(LazyPythonCode, _field.name, _PendingField(_field.name))


def _alive(owner: Any, name: str) -> LazyGraphModule:
    reference = owner.__lazyfx__.owner
    module: LazyGraphModule | None = None if reference is None else reference()
    if module is None:
        raise AttributeError(
            f"{name!r} cannot be generated: the graph module this class was made for is gone"
        )
    return module
