"""The class of its own that every lazy graph module has, and what is known about the module.

``fx.GraphModule`` gives each instance a class, because ``forward`` differs from instance to
instance. torch hashes a module's ``__dict__`` for its compile caches, so what lazyfx knows about a
module lives on that class too: one :class:`State` under the name ``_lazyfx``. A class is born
stale, with the descriptors of :mod:`lazyfx_core._forward` in its dictionary, which makes it ready
in one ``type(...)`` call. Something may subclass it later (``torch.nn.utils.parametrize`` does);
every such class gets a state of its own when it first needs one.

Making a class is two thirds of what building a small module costs, and a class is freed only by
the garbage collector. A class is therefore used again when its module died without ever having
been looked at, which is the life of most intermediate modules of a pass pipeline. It has no
history then: no generated code, hence nothing compiled by Dynamo or scripted. It is kept only if
nobody else holds it (counted references and weak references, the latter being how Dynamo's guards
hold classes) and nobody changed it.
"""

from __future__ import annotations

import sys
import sysconfig
import weakref
from typing import TYPE_CHECKING, Any

from torch import fx

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch.fx.graph import PythonCode

    from ._graph_module import LazyGraphModule
    from ._snapshot import Snapshot

_IMPL = "GraphModuleImpl"
QUALNAME = f"GraphModule.__new__.<locals>.{_IMPL}"
_MODULE = fx.GraphModule.__module__
_KEPT_CLASSES = 256


class Generated:
    """What one generation made, and the graph it was made from.

    Kept so that a ``recompile()`` of a graph that did not change costs a comparison.
    """

    __slots__ = ("call", "code", "fields", "forward", "nodes", "snapshot")

    def __init__(
        self,
        snapshot: Snapshot,
        code: PythonCode,
        fields: dict[str, Any],
        forward: Callable[..., Any],
        call: Callable[..., Any],
    ) -> None:
        self.snapshot = snapshot
        self.nodes = snapshot.nodes
        self.code = code
        self.fields = fields
        self.forward = forward
        self.call = call


class State:
    """What is known about one module, held by its class. Guarded by ``GENERATION_LOCK``."""

    __slots__ = ("generated", "owner", "pending", "stale", "unasked", "verify")

    def __init__(self) -> None:
        self.owner: weakref.ref[LazyGraphModule] | None = None
        self.stale = True
        self.unasked = False  # a recompile() of the user's own has not asked for code yet
        self.verify = False
        self.pending: weakref.ref[Any] | None = None
        self.generated: Generated | None = None


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


def own_state(cls: type[LazyGraphModule]) -> State:
    """The state of exactly ``cls``; made from the inherited one if it has none yet."""
    state: State | None = cls.__dict__.get("_lazyfx")
    if state is None:
        inherited = cls._lazyfx
        state = State()
        state.owner = inherited.owner
        state.stale = inherited.stale
        state.verify = inherited.verify
        cls._lazyfx = state
    return state


def new_class(base: type[fx.GraphModule], forward: object, call: object) -> type[LazyGraphModule]:
    """A class for one instance of ``base``, born stale, with the two descriptors given."""
    namespace = {
        "__module__": _MODULE,
        "__qualname__": QUALNAME,
        "__doc__": None,
        "forward": forward,
        "__call__": call,
        "_lazyfx": State(),
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
        if self._free and base is self._base:
            try:
                return self._free.pop()
            except IndexError:  # another thread took the last one
                pass
        return new_class(base, self._forward, self._call)

    def give_back(self, cls: type[LazyGraphModule], references: int) -> None:
        """Keep ``cls``, the class of a module that is dying, if nobody can tell.

        Args:
            cls: The class.
            references: As many as :func:`finalizer` counted.
        """
        held = cls.__dict__
        state = held.get("_lazyfx")
        if (
            state is not None
            and state.stale
            and state.generated is None
            and not state.verify
            and cls.__base__ is self._base
            and (references, *_hold(cls)) == self._untouched
            and held.get("forward") is self._forward
            and held.get("__call__") is self._call
            and held.get("__doc__") is None
            and held.get("__module__") == _MODULE
            and cls.__qualname__ == QUALNAME
            and len(self._free) < _KEPT_CLASSES
        ):
            state.owner = state.pending = None
            self._free.append(cls)

    def _measure(self) -> tuple[int, ...]:
        """What is counted for a class that only its instance holds; differs between Pythons."""
        if sysconfig.get_config_var("Py_GIL_DISABLED"):
            return ()  # reference counts say nothing there: never used again
        seen: list[tuple[int, ...]] = []
        probe: Any = type(
            "Probe",
            (),
            {"__del__": finalizer(lambda cls, references: seen.append((references, *_hold(cls))))},
        )
        for _ in range(3):
            cls: Any = new_class(probe, self._forward, self._call)
            instance = cls()
            del cls
            del instance
        return min(seen)


def finalizer(
    retire: Callable[[type[LazyGraphModule], int], None],
    references: Callable[[object], int] = sys.getrefcount,
) -> Callable[[LazyGraphModule], None]:
    """A ``__del__`` that tells ``retire`` the class of what dies, and how often it is referred to.

    Counted here and nowhere else: how many references a call adds depends on who evaluates frames
    (Dynamo may). Needs no global name, since it may run when they are gone.
    """

    def __del__(self: LazyGraphModule) -> None:
        cls = type(self)
        retire(cls, references(cls))

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
