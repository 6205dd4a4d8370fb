"""``LazyGraphModule``: an ``fx.GraphModule`` that generates code only when somebody looks.

A module is *stale* when its graph may have changed since its code was generated. ``recompile()``
marks it stale; the next *observation* (``forward``, a call, ``code``, ``str()``, a signature, a
script, a pickle) generates, once. See :mod:`lazyfx_core._forward` for how observers are caught.

Where the state lives: torch hashes a module's ``__dict__`` for its compile caches, so nothing of
ours is in there. ``fx.GraphModule`` gives each instance a class of its own; that class holds the
flag ``_lazyfx_stale`` and, while stale, the two descriptors. Something may subclass that class
later (``torch.nn.utils.parametrize`` does), therefore marking touches every per-instance class.

Generation itself is always the stock ``fx.GraphModule.recompile``: its text differs between torch
releases and is never re-implemented here.
"""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import fx, nn

from . import _package, _pickle
from ._forward import GENERATION_LOCK, GeneratedField, LazyPythonCode, StaleCall, StaleForward
from ._structure import check_graph, check_targets_exist, describe
from ._torch_fx import GENERATED_FIELDS, pytree_specs, torch_reduction
from .errors import CodeGenerationError, InvalidGraphError, NotAGraphModuleError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch.fx.graph import PythonCode
    from torch.package import PackageExporter

_IMPL = "GraphModuleImpl"


class LazyGraphModule(fx.GraphModule):
    """A ``torch.fx.GraphModule`` whose code is generated when it is first looked at.

    Everything that works with ``fx.GraphModule`` works with this class; the only difference is
    when code generation happens. Constructing a module and calling :meth:`recompile` cost no
    generation, so a pipeline of many rewrites pays for one generation instead of one per rewrite.

    Args:
        root: Module, or mapping from qualified names to attributes, from which everything the
            graph refers to is taken. Shared, not copied.
        graph: The graph. Owned from now on: ``graph.owning_module`` becomes this module.
        class_name: Shown in error messages and ``repr``.

    Raises:
        NotAGraphModuleError: ``root`` or ``graph`` is of the wrong kind.
        InvalidGraphError: A node refers to something ``root`` does not have.

    Reading ``forward``, ``code`` or anything else that needs code may raise
    :class:`InvalidGraphError` (the graph is wrong; names the node) or
    :class:`CodeGenerationError`. The module then stays stale: repair the graph and look again.

    Thread-safety: observing, calling and :meth:`recompile` may race with each other; generation
    happens once. Editing a graph while another thread observes it needs the caller's own lock, as
    with any Python data structure.

    Example:
        >>> import torch
        >>> from torch import fx
        >>> gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(lambda x: torch.sin(x)))
        >>> for node in gm.graph.find_nodes(op="call_function", target=torch.sin):
        ...     node.target = torch.cos
        >>> _ = gm.recompile()
        >>> gm.needs_recompile
        True
        >>> gm(torch.zeros(()))
        tensor(1.)
        >>> gm.needs_recompile
        False
    """

    # TorchScript compiles every property that is not named here.
    __jit_unused_properties__ = [  # noqa: RUF012
        *getattr(fx.GraphModule, "__jit_unused_properties__", ["graph"]),
        "needs_recompile",
    ]

    _lazyfx_stale: ClassVar[bool] = False
    _lazyfx_pending: ClassVar[weakref.ref[LazyPythonCode] | None] = None

    if not TYPE_CHECKING:
        # Declared for the interpreter only: they are the same attributes fx.GraphModule has.
        _code = GeneratedField("_code")
        _lineno_map = GeneratedField("_lineno_map")
        _prologue_start = GeneratedField("_prologue_start")

    def __init__(
        self,
        root: nn.Module | Mapping[str, Any],
        graph: fx.Graph,
        class_name: str = "GraphModule",
    ) -> None:
        if not isinstance(root, (nn.Module, dict)):
            raise NotAGraphModuleError(
                f"LazyGraphModule(root=...) takes an nn.Module or a dict, got {describe(root)}; "
                "pass nn.Module() if the graph refers to no parameters or submodules"
            )
        if not isinstance(graph, fx.Graph):
            hint = "pass gm.graph" if isinstance(graph, fx.GraphModule) else "trace one first"
            raise NotAGraphModuleError(
                f"LazyGraphModule(graph=...) takes a torch.fx.Graph, got {describe(graph)}; {hint}"
            )
        try:
            super().__init__(root, graph, class_name)
        except (AttributeError, RuntimeError):
            check_targets_exist(root, graph)  # says it better, if that is what went wrong
            raise

    # --- laziness ---------------------------------------------------------------------------

    @property
    def needs_recompile(self) -> bool:
        """Whether the module is stale. Looking at this does not generate anything."""
        return type(self)._lazyfx_stale

    def _needs_recompile(self) -> bool:
        """:attr:`needs_recompile` under the name that torch's private class uses."""
        return type(self)._lazyfx_stale

    def recompile(self) -> PythonCode:
        """Mark the module stale, in time that does not depend on the size of the graph.

        Submodules that are graph modules are recompiled too, as ``fx.GraphModule`` does; lazy
        ones are only marked.

        Returns:
            A ``PythonCode`` whose fields are generated when read.
        """
        with GENERATION_LOCK:
            for child in self._modules.values():
                if isinstance(child, fx.GraphModule):
                    child.recompile()
            specs = pytree_specs(self._graph)
            if specs is not None:
                self._in_spec, self._out_spec = specs
            return self._mark_stale()

    def real_recompile(self) -> None:
        """Generate the code now if the module is stale; otherwise do nothing."""
        with GENERATION_LOCK:
            if type(self)._lazyfx_stale:
                self._real_recompile()

    def _real_recompile(self) -> PythonCode:
        """Generate the code now, stale or not, and return it (torch's private protocol)."""
        with GENERATION_LOCK:
            cls = type(self)
            by_hand = None
            if cls._lazyfx_stale:
                # Whatever replaced our descriptor was set by a user after recompile(): it stays.
                by_hand = next(
                    (
                        vars(c)["forward"]
                        for c in _own_classes(cls)
                        if not isinstance(vars(c).get("forward"), (StaleForward, type(None)))
                    ),
                    None,
                )
            try:
                check_graph(self._graph)
                for owned in _own_classes(cls):
                    # torch wraps a __call__ that it finds here: ours would recurse.
                    if isinstance(vars(owned).get("__call__"), StaleCall):
                        del owned.__call__
                code = super().recompile()
            except BaseException as error:
                self._mark_stale()
                if by_hand is not None:
                    cls.forward = by_hand
                if isinstance(error, InvalidGraphError) or not isinstance(error, Exception):
                    raise
                raise CodeGenerationError(
                    f"torch could not generate code for {cls.__name__!r}: "
                    f"{type(error).__name__}: {error}; the module stays stale: mend its graph and "
                    "look again (gm.graph.lint() and print(gm.graph) may help)"
                ) from error
            if by_hand is not None:
                cls.forward = by_hand
            cls._lazyfx_stale = False
            pending = _pending_code(cls)
            if pending is not None:
                pending.fill(code)
            cls._lazyfx_pending = None
            return code

    def _mark_stale(self) -> PythonCode:
        cls = type(self)
        for name in GENERATED_FIELDS:
            self.__dict__.pop(name, None)  # stale values must not be readable
        for owned in _own_classes(cls):
            owned.forward = StaleForward(self)  # type: ignore[assignment]
            owned.__call__ = StaleCall(self)  # type: ignore[assignment]
            owned._lazyfx_stale = True
        pending = _pending_code(cls)
        if pending is None:
            pending = LazyPythonCode(self)
            cls._lazyfx_pending = weakref.ref(pending)
        return pending

    def _recompile_submodules(self) -> list[tuple[str, PythonCode]]:
        # recompile() has told the children already; telling them again while generating would
        # make fresh ones stale under a thread that is running them.
        return []

    # --- from and to other modules -----------------------------------------------------------

    @classmethod
    def from_graphmodule(cls, gm: fx.GraphModule) -> Self:
        """A lazy module with the state of ``gm``; ``gm`` itself if it is one already.

        The graph, parameters, buffers, submodules, hooks and ``meta`` are shared, nothing is
        copied or generated. ``gm.graph.owning_module`` becomes the new module; go on with that
        one. Methods that a subclass of ``fx.GraphModule`` defines are not carried over.

        Raises:
            NotAGraphModuleError: ``gm`` is not a ``torch.fx.GraphModule``.
        """
        if isinstance(gm, cls):
            return gm
        require_graph_module(gm, "LazyGraphModule.from_graphmodule(gm)")
        new = cls.__new__(cls)
        containers = vars(nn.Module()).keys()
        vars(new).update(
            {
                name: copy.copy(value) if name in containers else value
                for name, value in vars(gm).items()
                if name not in GENERATED_FIELDS
            }
        )
        new._adopt(gm.graph, type(gm).__name__)
        return new

    @staticmethod
    def force_recompile(gm: fx.GraphModule) -> None:
        """Generate the code of ``gm`` now if it is a stale lazy module; plain ones are fresh.

        Raises:
            NotAGraphModuleError: ``gm`` is not a ``torch.fx.GraphModule``.
        """
        require_graph_module(gm, "LazyGraphModule.force_recompile(gm)")
        if isinstance(gm, LazyGraphModule):
            gm.real_recompile()

    def _adopt(self, graph: fx.Graph, class_name: str) -> None:
        """Own ``graph`` and be stale, without the scan of the nodes that ``__init__`` makes."""
        type(self).__name__ = class_name
        with GENERATION_LOCK:
            self.__dict__["_graph"] = graph
            graph.owning_module = self
            self._mark_stale()

    def __copy__(self) -> Self:
        """A module over the same graph and the same state, of the same class, and stale."""
        new = type(self).__new__(type(self))
        fx.GraphModule.__init__(new, self, self.graph, type(self).__name__)
        new.meta = self.meta
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        new = super().__deepcopy__(memo)
        type(new).__name__ = type(self).__name__
        return new  # type: ignore[return-value]  # torch makes it with type(self).__new__

    def __getstate__(self) -> dict[str, Any]:
        """The instance dictionary with generated fields, for torch's ``GraphPickler``."""
        self.real_recompile()
        return self.__dict__.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        """What ``fx.GraphModule.__reduce__`` returns: torch's caches unpack exactly that shape.

        Loading it re-traces generated source. Pickles of a lazy module do not go this way:
        ``pickle`` asks :meth:`__reduce_ex__` first.
        """
        code = self._real_recompile()
        body = self.__dict__.copy()
        del body["_graph"]
        return torch_reduction(body, code)

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """Pickle the graph itself, class and laziness included; see :mod:`lazyfx_core._pickle`."""
        if type(self).__reduce__ is not LazyGraphModule.__reduce__:
            return self.__reduce__()  # a subclass that brings its own pickling
        return _pickle.reduce_module(self)

    @_package.instance_only
    def __reduce_package__(self, exporter: PackageExporter) -> tuple[Any, ...]:
        """Store the graph itself in a ``torch.package``; see :mod:`lazyfx_core._package`."""
        return _package.reduce_module(self, exporter)


def require_graph_module(value: object, where: str) -> None:
    """Raise :class:`NotAGraphModuleError` unless ``value`` is a ``torch.fx.GraphModule``.

    Args:
        value: What the caller was given.
        where: The function and argument, as the message should name them.
    """
    if isinstance(value, fx.GraphModule):
        return
    hint = (
        "trace it first, for example with torch.fx.symbolic_trace(module)"
        if isinstance(value, nn.Module) or callable(value)
        else "build one with torch.fx.symbolic_trace or torch.fx.GraphModule(root, graph)"
    )
    raise NotAGraphModuleError(
        f"{where} takes a torch.fx.GraphModule, got {describe(value)}; {hint}"
    )


def user_class(cls: type[fx.GraphModule]) -> type[fx.GraphModule]:
    """The class a person wrote, below the per-instance classes that torch puts on top."""
    return next(c for c in cls.__mro__ if c.__qualname__.rpartition(".")[2] != _IMPL)


def _pending_code(cls: type[LazyGraphModule]) -> LazyPythonCode | None:
    """What the last ``recompile()`` returned, if somebody still holds it unread."""
    return None if cls._lazyfx_pending is None else cls._lazyfx_pending()


def _own_classes(cls: type[LazyGraphModule]) -> Iterator[type[LazyGraphModule]]:
    """The classes that belong to one instance: torch's, and whatever subclasses it later."""
    for candidate in cls.__mro__:
        yield candidate
        if candidate.__qualname__.rpartition(".")[2] == _IMPL:
            return
