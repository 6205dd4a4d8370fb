"""``LazyGraphModule``: an ``fx.GraphModule`` that generates code only when somebody looks.

A module is *stale* when its graph may have changed since its code was generated. ``recompile()``
marks it stale; the next *observation* (``forward``, a call, ``code``, ``str()``, a signature, a
script, a pickle) generates, once. See :mod:`lazyfx_core._forward` for how observers are caught.

Where the state lives: torch hashes a module's ``__dict__`` for its compile caches, so nothing of
ours is in there. ``fx.GraphModule`` gives each instance a class of its own; that class holds a
``State`` and, while stale, the two descriptors (:mod:`lazyfx_core._instance_class`).

A look at a module whose graph turns out to be the very one its code was made from brings that code
back instead of generating it again (:mod:`lazyfx_core._snapshot`).

Generation itself is always the stock ``fx.GraphModule.recompile``: its text differs between torch
releases and is never re-implemented here.
"""

from __future__ import annotations

import copy
import weakref
from typing import TYPE_CHECKING, Any, ClassVar, Self

from torch import fx, nn
from torch.fx.graph import CodeGen

from . import _codegen_stats, _construct, _package, _pickle, _verify
from ._forward import GENERATION_LOCK, STALE_CALL, STALE_FORWARD, DynamoTap, GeneratedField
from ._generation import (
    bring_up_to_date,
    generate_if_stale,
    leave_to_subclass,
    mark_stale,
    set_torch_recompile,
)
from ._instance_class import (
    DEFERRED_GRAPH,
    ClassPool,
    State,
    finalizer,
    user_class,
)
from ._structure import check_targets_exist, describe, require_parts
from ._torch_fx import DYNAMO_ASKS_FIRST, GENERATED_FIELDS, torch_reduction
from ._torch_graph import depends_on_the_moment, pytree_specs
from .errors import NotAGraphModuleError

if TYPE_CHECKING:
    from torch.fx.graph import PythonCode
    from torch.package import PackageExporter


class LazyGraphModule(fx.GraphModule):
    """A ``torch.fx.GraphModule`` whose code is generated when it is first looked at.

    Everything that works with ``fx.GraphModule`` works with this class; the only difference is
    when code generation happens. Constructing a module and calling :meth:`recompile` cost no
    generation, so a pipeline of many rewrites pays for one generation instead of one per rewrite.

    Args:
        root: Module, or dict from qualified names to attributes, from which everything the graph
            refers to is taken. Shared, not copied.
        graph: The graph. Owned from now on: ``graph.owning_module`` becomes this module.
        class_name: Shown in error messages and ``repr``.
        verify: Compare the graph with the code at every call and every look at ``forward``, and
            raise :class:`StaleGraphError` if it was edited without :meth:`recompile`. Costs a pass
            over the nodes per call; see also :func:`verify_graphs`. Copies are verified too.

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

    __lazyfx__: ClassVar[State]

    if not TYPE_CHECKING:
        # Declared for the interpreter only: they are the same attributes fx.GraphModule has.
        _code = GeneratedField("_code")
        _lineno_map = GeneratedField("_lineno_map")
        _prologue_start = GeneratedField("_prologue_start")
        locals()[DYNAMO_ASKS_FIRST] = DynamoTap(DYNAMO_ASKS_FIRST)

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """An instance with a class of its own, stale, that is not built yet."""
        base = cls if cls is LazyGraphModule else user_class(cls)
        own = _classes.take(base)
        self = super(fx.GraphModule, base).__new__(own)
        own.__lazyfx__.owner = weakref.ref(self)
        return self  # type: ignore[return-value]  # own is a subclass of base

    def __init__(
        self,
        root: nn.Module | dict[str, Any],
        graph: fx.Graph,
        class_name: str = "GraphModule",
        *,
        verify: bool = False,
    ) -> None:
        require_parts("LazyGraphModule", root, graph)
        theirs = type(self).recompile is not LazyGraphModule.recompile
        if theirs:
            leave_to_subclass(self)
        try:
            if not _construct.build(self, root, graph, class_name):
                super().__init__(root, graph, class_name)
            elif (
                _codegen_stats.collecting
                or self.__dict__["_modules"]
                or type(graph._codegen) is not CodeGen
                or theirs
                or not type(self).__lazyfx__.stale  # somebody calls the constructor once more
                or depends_on_the_moment(graph)
            ):
                self.recompile()  # otherwise there is nothing to mark: it was born stale
        except (AttributeError, KeyError, RuntimeError):
            check_targets_exist(root, graph)  # says it better, if that is what went wrong
            raise
        if verify or _verify.asked_for():
            type(self).__lazyfx__.verify = True

    # --- laziness ---------------------------------------------------------------------------

    @property
    def needs_recompile(self) -> bool:
        """Whether the module is stale. Looking at this does not generate anything."""
        return type(self).__lazyfx__.stale

    def _needs_recompile(self) -> bool:
        """:attr:`needs_recompile` under the name that torch's private class uses."""
        return type(self).__lazyfx__.stale

    def recompile(self) -> PythonCode:
        """Mark the module stale, in time that does not depend on the size of the graph.

        Submodules that are graph modules are recompiled too, as ``fx.GraphModule`` does; lazy
        ones are only marked. If the graph turns out not to have changed, the next look brings the
        code back that was there before.

        Returns:
            A ``PythonCode`` whose fields are generated when read.
        """
        if _codegen_stats.collecting:
            _codegen_stats.asked()
        held = self.__dict__
        with GENERATION_LOCK:
            if held["_modules"]:
                for child in held["_modules"].values():
                    if isinstance(child, fx.GraphModule):
                        child.recompile()
            graph = held["_graph"]
            if graph is not None and type(graph._codegen) is not CodeGen:
                specs = pytree_specs(graph)
                if specs is not None:
                    self._in_spec, self._out_spec = specs
            pending = mark_stale(self)
            if graph is not None and depends_on_the_moment(graph):
                generate_if_stale(self, "transform")
            return pending

    def real_recompile(self) -> None:
        """Generate the code now if the module is stale; otherwise do nothing."""
        generate_if_stale(self, "real_recompile")

    def _real_recompile(self) -> PythonCode:
        """Make the code fit the graph now, stale or not, and return it (torch's protocol)."""
        return bring_up_to_date(self, "real_recompile")

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
        adopt(new, gm.graph, type(gm).__name__)
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

    def __dir__(self) -> list[str]:
        names: list[str] = super().__dir__()  # type: ignore[no-untyped-call]
        return [name for name in names if name not in ("__lazyfx__", DYNAMO_ASKS_FIRST)]

    def __copy__(self) -> Self:
        """A module over the same graph and the same state, of the same class, and stale."""
        new = type(self).__new__(type(self))
        LazyGraphModule.__init__(new, self, self.graph, type(self).__name__)
        new.meta = self.meta
        type(new).__lazyfx__.verify = type(self).__lazyfx__.verify
        return new

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """What ``fx.GraphModule`` copies, of the same class and class name, and stale."""
        _construct.prepare_deepcopy(self, memo)
        new = super().__deepcopy__(memo)
        type(new).__name__ = type(self).__name__
        type(new).__lazyfx__.verify = type(self).__lazyfx__.verify  # type: ignore[attr-defined]
        return new  # type: ignore[return-value]  # torch makes it with type(self).__new__

    def _deepcopy_init(self) -> Any:
        return LazyGraphModule.__init__

    def __getstate__(self) -> dict[str, Any]:
        """The instance dictionary with generated fields, for torch's ``GraphPickler``."""
        generate_if_stale(self, "pickle")
        return self.__dict__.copy()

    def __reduce__(self) -> tuple[Any, ...]:
        """What ``fx.GraphModule.__reduce__`` returns: torch's caches unpack exactly that shape.

        Loading it re-traces generated source. Pickles of a lazy module do not go this way:
        ``pickle`` asks :meth:`__reduce_ex__` first.
        """
        code = bring_up_to_date(self, "pickle")
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


def adopt(gm: LazyGraphModule, graph: fx.Graph, class_name: str) -> None:
    """Let ``gm`` own ``graph`` and be stale, without the scan of nodes that ``__init__`` makes."""
    if _codegen_stats.collecting:
        _codegen_stats.asked()
    cls = type(gm)
    cls.__name__ = class_name
    with GENERATION_LOCK:
        gm.__dict__["_graph"] = graph
        graph.owning_module = gm
        if cls.recompile is LazyGraphModule.recompile:
            mark_stale(gm)
        else:
            leave_to_subclass(gm)
            gm.recompile()


def adopt_stored(gm: LazyGraphModule, graph: _pickle.DeferredGraph, class_name: str) -> None:
    """Let ``gm`` own a graph that is built when somebody looks at it."""
    cls = type(gm)
    if cls.recompile is not LazyGraphModule.recompile:
        adopt(gm, graph.build(gm), class_name)
        return
    if _codegen_stats.collecting:
        _codegen_stats.asked()
    cls.__name__ = class_name
    with GENERATION_LOCK:
        cls.__lazyfx__.deferred = graph
        cls._graph = DEFERRED_GRAPH  # type: ignore[assignment]
        mark_stale(gm)


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


set_torch_recompile(lambda module: super(LazyGraphModule, module).recompile())
_classes = ClassPool(LazyGraphModule, STALE_FORWARD, STALE_CALL)
LazyGraphModule.__del__ = finalizer(_classes.give_back)  # type: ignore[attr-defined]
