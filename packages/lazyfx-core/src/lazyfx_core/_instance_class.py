"""The class of its own that every lazy graph module has, and what is known about the module.

``fx.GraphModule`` gives each instance a class, because ``forward`` differs from instance to
instance. torch hashes a module's ``__dict__`` for its compile caches, so what lazyfx knows about a
module lives on that class too: one :class:`State` under the name ``__lazyfx__``. A class is born
stale, with the descriptors of :mod:`lazyfx_core._forward` in its dictionary, which makes it ready
in one ``type(...)`` call. Something may subclass it later (``torch.nn.utils.parametrize`` does);
every such class gets a state of its own when it first needs one.

Making a class is two thirds of what building a small module costs, and a class is freed only by
the garbage collector. A class is therefore used again when its module died without ever having
been looked at, which is the life of most intermediate modules of a pass pipeline. It has no
history then: no generated code, hence nothing compiled by Dynamo or scripted. It is used only if by
then the module is gone for good, nobody else holds the class (counted references and weak
references, the latter being how Dynamo's guards hold classes) and nobody changed it.

**A loaded graph** is built when somebody looks at it. Loading a module only to run code that a
cache holds for it, or to ask for its parameters, should not pay for its nodes. While nobody has
looked, the class of the module holds a descriptor where ``_graph`` is read; the key stays in the
instance's dictionary, as for generated code. The first look builds the graph, once, under the lock
that generation takes, and takes the descriptor away. If building fails, the error surfaces at every
look and the module stays as it is.
"""

from __future__ import annotations

import copy
import sys
import sysconfig
import weakref
from types import FunctionType
from typing import TYPE_CHECKING, Any

from torch import fx

from ._forward import GENERATION_LOCK
from ._torch_fx import inside_dynamo
from .errors import LazyFxError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.fx.graph import PythonCode

    from ._graph_module import LazyGraphModule
    from ._pickle import DeferredGraph

_IMPL = "GraphModuleImpl"
QUALNAME = f"GraphModule.__new__.<locals>.{_IMPL}"
_MODULE = fx.GraphModule.__module__
_KEPT_CLASSES = 256


class Generated:
    """What one generation made.

    Kept so that a ``recompile()`` of a graph that did not change costs a comparison. What it is
    compared with, the snapshot, belongs to the graph: classes are kept by many (``torch.jit`` never
    lets go of one), and must not keep nodes, hence modules and weights, alive.
    """

    __slots__ = ("__weakref__", "_pristine", "call", "code", "fields", "forward", "nodes")

    def __init__(
        self,
        nodes: int,
        code: PythonCode,
        fields: dict[str, Any],
        forward: FunctionType,
        call: Callable[..., Any],
    ) -> None:
        self.nodes = nodes
        self.code = code
        self.fields = fields
        self.forward = forward
        self.call = call
        self._pristine = (_copied(vars(code)), _copied(fields), dict(forward.__globals__))

    def renew(self) -> None:
        """Make everything anew that somebody may have changed, around the same code object."""
        old = self.forward
        code, fields, names = self._pristine
        self.forward = FunctionType(
            old.__code__, dict(names), old.__name__, old.__defaults__, old.__closure__
        )
        self.forward.__annotations__ = dict(old.__annotations__)
        self.forward.__kwdefaults__ = old.__kwdefaults__
        self.fields = _copied(fields)
        self.code = copy.copy(self.code)
        vars(self.code).update(_copied(code))


def _copied(values: dict[str, Any]) -> dict[str, Any]:
    return {name: dict(v) if type(v) is dict else v for name, v in values.items()}


class State:
    """What is known about one module, held by its class. Guarded by ``GENERATION_LOCK``."""

    __slots__ = (
        *("by_dynamo", "deferred", "generated", "owner", "pending", "stale"),
        *("superseded", "unasked", "verify"),
    )

    def __init__(self) -> None:
        self.owner: weakref.ref[LazyGraphModule] | None = None
        self.stale = True
        self.by_dynamo = False  # who asked for code: Dynamo's own graphs are not compiled
        self.unasked = False  # a recompile() of the user's own has not asked for code yet
        self.verify = False
        self.pending: weakref.ref[Any] | None = None
        self.generated: Generated | None = None
        self.superseded: Generated | None = None  # outlives the look that replaced it
        self.deferred: DeferredGraph | None = None  # a stored graph nobody has looked at


def user_class(cls: type[fx.GraphModule]) -> type[fx.GraphModule]:
    """The class a person wrote, below the per-instance classes on top."""
    return next(c for c in cls.__mro__ if c.__qualname__.rpartition(".")[2] != _IMPL)


def own_classes(cls: type[LazyGraphModule]) -> Iterator[type[LazyGraphModule]]:
    """The classes that belong to one instance: its own, and whatever subclasses it later.

    A class that was mixed in on the way belongs to somebody else.
    """
    mro: Any = cls.__mro__
    own = next(c for c in mro if c.__qualname__.rpartition(".")[2] == _IMPL)
    for candidate in mro:
        if issubclass(candidate, own):
            yield candidate
        if candidate is own:
            return


def with_own_class(module: Any, forward: object, call: object) -> type[LazyGraphModule]:
    """The class of ``module``, which gets one of its own if somebody assigned it a shared one."""
    cls: type[LazyGraphModule] = type(module)
    if not any(c.__qualname__.rpartition(".")[2] == _IMPL for c in cls.__mro__):
        own = new_class(cls, forward, call)
        own.__name__ = cls.__name__
        own.__lazyfx__.owner = weakref.ref(module)
        module.__class__ = own
        cls = own
    return cls


def own_state(cls: type[LazyGraphModule]) -> State:
    """The state of exactly ``cls``; made from the inherited one if it has none yet."""
    state: State | None = cls.__dict__.get("__lazyfx__")
    if state is None:
        inherited = cls.__lazyfx__
        state = State()
        state.owner = inherited.owner
        state.stale = inherited.stale
        state.by_dynamo = inherited.by_dynamo
        state.verify = inherited.verify
        state.deferred = inherited.deferred
        cls.__lazyfx__ = state
    return state


def new_class(base: type[fx.GraphModule], forward: object, call: object) -> type[LazyGraphModule]:
    """A class for one instance of ``base``, born stale, with the two descriptors given."""
    namespace = {
        "__module__": _MODULE,
        "__qualname__": QUALNAME,
        "__doc__": None,
        "forward": forward,
        "__call__": call,
        "__lazyfx__": State(),
    }
    return type(_IMPL, (base,), namespace)


class ClassPool:
    """Classes of ``base`` whose modules died unseen. Thread-safe; bounded.

    Args:
        base: The only class that is pooled for. Classes a person wrote may count their
            subclasses or keep them, so they always get new ones.
        forward: The descriptor for ``forward``.
        call: The descriptor for ``__call__``.
    """

    def __init__(self, base: type[LazyGraphModule], forward: object, call: object) -> None:
        self._free: list[type[LazyGraphModule]] = []
        self._base = base
        self._forward = forward
        self._call = call
        self._untouched = self._measure()

    def take(self, base: type[fx.GraphModule]) -> type[LazyGraphModule]:
        """A class for one new instance of ``base``."""
        while self._free and base is self._base:
            try:
                cls = self._free.pop()
            except IndexError:  # another thread took the last one
                break
            references = sys.getrefcount(cls)
            state = cls.__lazyfx__
            # __del__ ran, and yet somebody may have got hold of the module in the same moment
            # (through a weak reference that was still alive) and use it.
            owner = None if state.owner is None else state.owner()
            if owner is None and self._is_untouched(cls, references):
                state.by_dynamo = inside_dynamo()
                state.owner = state.pending = state.deferred = None
                return cls
        cls = new_class(base, self._forward, self._call)
        if inside_dynamo():
            cls.__lazyfx__.by_dynamo = True
        return cls

    def give_back(self, cls: type[LazyGraphModule]) -> None:
        """Keep ``cls``, the class of a module that is dying; :meth:`take` decides what then."""
        state = cls.__dict__.get("__lazyfx__")
        if (
            state is not None
            and state.stale
            and state.generated is None
            and cls.__base__ is self._base
            and len(self._free) < _KEPT_CLASSES
        ):
            self._free.append(cls)

    def _is_untouched(self, cls: type[LazyGraphModule], references: int) -> bool:
        held = cls.__dict__
        state = held.get("__lazyfx__")
        return (
            state is not None
            and state.stale
            and state.generated is None
            and not state.verify
            and (references, *_hold(cls)) == self._untouched
            and held.get("forward") is self._forward
            and held.get("__call__") is self._call
            and held.get("__doc__") is None
            and held.get("__module__") == _MODULE
            and cls.__qualname__ == QUALNAME
        )

    def _measure(self) -> tuple[int, ...]:
        """What is counted for a class that nobody but :meth:`take` holds; differs by Python."""
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            return ()  # reference counts say nothing there: never used again
        seen: list[tuple[int, ...]] = []
        probe: Any = type("Probe", (), {})
        for _ in range(3):
            free: list[Any] = [new_class(probe, self._forward, self._call)]
            free[0]()
            cls = free.pop()
            references = sys.getrefcount(cls)
            seen.append((references, *_hold(cls)))
            del cls
        return min(seen)


def finalizer(
    retire: Callable[[type[LazyGraphModule]], None],
) -> Callable[[LazyGraphModule], None]:
    """A ``__del__`` that hands the class of what dies to ``retire``.

    Needs no global name, since it may run when they are gone.
    """

    def __del__(self: LazyGraphModule) -> None:
        retire(type(self))

    return __del__


def _hold(
    cls: type,
    references: Callable[[object], int] = sys.getrefcount,
    weak_references: Callable[[Any], list[Any]] = weakref.getweakrefs,
) -> list[int]:
    """Attributes of ``cls``, and the references to each weak reference to it.

    The one weak reference is that of ``__subclasses__``; Python hands the same one to everybody
    who asks for one.
    """
    counts = [len(cls.__dict__)]
    for weak in weak_references(cls):
        counts.append(references(weak))
    return counts


class _DeferredGraph:
    """Reads and writes of ``_graph`` while it has not been built."""

    def __get__(self, module: LazyGraphModule | None, owner: type | None = None) -> Any:
        if module is None:
            return self
        with GENERATION_LOCK:
            graph = module.__dict__["_graph"]
            deferred = type(module).__lazyfx__.deferred
            if graph is None and deferred is not None:
                try:
                    graph = deferred.build(module)
                except (LazyFxError, Warning):
                    raise
                except Exception as error:  # an AttributeError would vanish in nn.Module
                    raise SerializationError(
                        f"the stored graph of {type(module).__name__!r} cannot be built: "
                        f"{type(error).__name__}: {error}"
                    ) from error
                graph.owning_module = module
                self._settle(module, graph)
            return graph

    def __set__(self, module: LazyGraphModule, graph: fx.Graph) -> None:
        with GENERATION_LOCK:
            self._settle(module, graph)

    def _settle(self, module: LazyGraphModule, graph: fx.Graph) -> None:
        module.__dict__["_graph"] = graph
        cls = type(module)
        for owned in own_classes(cls):
            if vars(owned).get("_graph") is self:
                delattr(owned, "_graph")
            own = vars(owned).get("__lazyfx__")
            if own is not None:
                own.deferred = None


DEFERRED_GRAPH = _DeferredGraph()
