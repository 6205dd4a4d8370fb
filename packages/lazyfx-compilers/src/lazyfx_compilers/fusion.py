"""``memory_efficient_fusion``: recompute what is cheap, save what is not, fuse the rest.

The forward and backward graphs are traced together, the min-cut partitioner decides which
intermediate results are saved for the backward and which are computed again, and a code generator
compiles both halves. The reference used TorchScript's NVFuser, which is gone; what fuses today is
inductor.

Two things the reference gets wrong are right here. It replays its first graph for ever: here a key
of what the graph depends on is compared at each call (see :mod:`lazyfx_compilers._guards`). And
where torch is told to recompute more than by default, random operators are drawn again in the
backward, which makes wrong gradients without a word: the partitioner here saves what they drew
(:mod:`lazyfx_compilers.partition`), and any other is refused if it does not.
"""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from . import _torch_aot, _torch_distributed, _torch_inductor
from ._fused import FusedModule, fused_function, is_fused
from ._nop import nop
from ._torch_randomness import never_redrawn
from .decompositions import default_decompositions
from .errors import (
    BudgetError,
    FallbackWarning,
    InvalidGraphError,
    MissingDependencyError,
    NotCompilableError,
    UnknownOptionError,
)
from .partition import budget_partitioner
from .torchscript import ts_compile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._types import FxCompiler

_OVERRIDES = ("bw_compiler", "fw_compiler", "partition_fn")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How graphs are compiled: the settings of ``aot_function``."""

    fw_compiler: FxCompiler
    bw_compiler: FxCompiler
    inference_compiler: FxCompiler
    partition_fn: Callable[..., tuple[fx.GraphModule, fx.GraphModule]]
    decompositions: Mapping[Any, Callable[..., Any]]
    dynamic: bool

    def settings(self) -> dict[str, Any]:
        """As keyword arguments for ``aot_function``."""
        return {
            "fw_compiler": self.fw_compiler,
            "bw_compiler": self.bw_compiler,
            "inference_compiler": self.inference_compiler,
            "partition_fn": self.partition_fn,
            "decompositions": dict(self.decompositions),
            "dynamic": self.dynamic,
        }


def memory_efficient_fusion(
    fn: Callable[..., Any] | nn.Module,
    *,
    codegen: str | FxCompiler = "inductor",
    budget: float | None = None,
    partitioner: Callable[..., Any] | None = None,
    decompositions: Mapping[Any, Callable[..., Any]] | None = None,
    dynamic: bool | None = None,
    guard: bool = True,
    fallback: str | None = None,
    **overrides: Any,
) -> Any:
    """A version of ``fn`` that saves less for the backward and runs compiled code.

    Nothing is traced or compiled before the first call. A call that differs from all earlier ones
    in anything that :mod:`lazyfx_compilers._guards` lists (shapes, strides, dtypes, devices,
    ``requires_grad``, Python arguments, gradient and autocast mode; a module's training flags,
    attributes, hooks, submodules; a function's defaults, closure and globals) compiles a new
    graph. The eight used last are kept.

    Inside ``torch.compile``, ``torch.export``, ``make_fx``, ``torch.jit.trace`` and a
    ``FakeTensorMode``, ``fn`` itself is traced. Inside ``vmap``, ``grad``, ``jvp`` and other
    transforms of ``torch.func`` a call is an error: fuse what the transform returns.

    Args:
        fn: A function of tensors, numbers, strings and containers of them that returns at least
            one tensor, or a module. A module's parameters and buffers are used by reference:
            optimizer steps, ``load_state_dict`` and running statistics are seen by both.
        codegen: ``"inductor"`` (needs a C++ compiler on CPU), ``"ts"`` for TorchScript, or any
            compiler, for example :func:`~lazyfx_compilers.nop`.
        budget: How much may be saved for the backward: from 0 to 1 a fraction of what would be
            saved without one, an int from 2 up a number of bytes; inputs and parameters do not
            count. What does not fit is computed again. None: torch's setting
            ``torch._functorch.config.activation_memory_budget``.
        partitioner: Taken instead of :func:`~lazyfx_compilers.budget_partitioner`; then there can
            be no ``budget``.
        decompositions: Operators that are taken apart while tracing, taken instead of those that
            ``codegen`` is best with.
        dynamic: Trace with symbolic shapes. With ``guard=True`` there is still one graph for each
            shape, since nothing else tells for which shapes a graph is right.
        guard: With ``False`` the first graph is replayed for ever, as the reference does.
        fallback: ``"eager"``: a graph (forward, backward or inference) that the compiler cannot
            take runs as it was traced, operator by operator, with one :class:`FallbackWarning`.
            None: that is an error.
        **overrides: ``fw_compiler``, ``bw_compiler``: each taken instead of what ``codegen``
            chooses, and ``partition_fn``: the reference's name of ``partitioner``.

    Returns:
        A function with the signature of ``fn``; for a module, a module with the same state-dict
        keys that shares all its parameters, buffers and submodules.

    Raises:
        NotCompilableError: ``fn`` is neither callable nor a module; on calling, an argument of a
            type that cannot be traced, a tensor that is not an argument, a result that depends
            on the values of a tensor in a way that tracing cannot follow.
        UnknownOptionError: An unknown ``codegen``, ``fallback`` or keyword; lists those that are
            known.
        BudgetError: ``budget`` is neither a fraction nor a number of bytes, or there is a
            ``partitioner`` as well.
        MissingDependencyError: ``codegen="inductor"`` without a C++ compiler.
        NoTensorOutputError: On calling, ``fn`` returns no tensor.
        CodegenError: On calling, inductor cannot take the graph; says why.
        TorchScriptUnsupportedError: On calling, TorchScript cannot take a node; names it.
        UnsafeRecomputationError: On calling, a ``partitioner`` draws the forward's random numbers
            again in the backward.

    Warns:
        BudgetWarning: On calling, more has to be saved than ``budget`` allows.
        FallbackWarning: On calling, a graph runs eagerly because of ``fallback``.

    Thread-safety: calls may race; compilation is serialized across the process. While a module is
    compiled, do not run the *original* in another thread: torch traces by putting fake parameters
    into it for the time being.
    """
    if not callable(fn):
        raise NotCompilableError(
            f"memory_efficient_fusion(fn) takes a function or an nn.Module, got {type(fn)!r}"
        )
    if is_fused(fn):
        raise NotCompilableError(
            f"memory_efficient_fusion(fn): {getattr(fn, '__qualname__', 'the module')} is fused"
            " already; give it the original"
        )
    given = {"partition_fn": partitioner, "decompositions": decompositions}
    overrides = {**overrides, **{name: one for name, one in given.items() if one is not None}}
    recipe = make_recipe(
        codegen, budget=budget, dynamic=dynamic, fallback=fallback, overrides=overrides
    )
    if isinstance(fn, nn.Module):
        return FusedModule(fn, recipe.settings(), guard=guard)
    return fused_function(fn, recipe.settings(), guard=guard)


def make_recipe(
    codegen: str | FxCompiler,
    *,
    budget: float | None,
    dynamic: bool | None = None,
    fallback: str | None = None,
    overrides: Mapping[str, Any],
) -> Recipe:
    """Resolve ``codegen`` and the reference's overrides.

    Raises:
        BudgetError: A wrong ``budget``, or one besides a partitioner.
        UnknownOptionError: An unknown ``codegen``, ``fallback`` or override.
        MissingDependencyError: Inductor without a C++ compiler.
    """
    unknown = sorted(set(overrides) - {*_OVERRIDES, "decompositions"})
    if unknown:
        raise UnknownOptionError(
            f"memory_efficient_fusion got the unknown keyword {unknown[0]!r}; "
            "it takes codegen, budget, partitioner, decompositions, dynamic, guard, fallback, "
            f"{', '.join(_OVERRIDES)}"
        )
    if fallback not in (None, "eager"):
        raise UnknownOptionError(f"fallback={fallback!r}: expected None or 'eager'")
    chosen = {name: value for name, value in overrides.items() if value is not None}
    if budget is not None and "partition_fn" in chosen:
        raise BudgetError(
            f"budget={budget!r}: expected none besides a partitioner, which decides what is saved;"
            " leave one of the two out"
        )
    partition = budget_partitioner(budget)
    if "partition_fn" in chosen:
        partition = never_redrawn(chosen["partition_fn"])
    forward: FxCompiler
    backward: FxCompiler
    inference: FxCompiler
    decompositions: Mapping[Any, Callable[..., Any]] = default_decompositions
    if codegen == "inductor" and {"fw_compiler", "bw_compiler"} <= set(chosen):
        forward = inference = backward = nop  # both are replaced below
    elif codegen == "inductor":
        _require_cxx()
        forward = _torch_inductor.compiler("forward")
        backward = _torch_inductor.compiler("backward")
        inference = _torch_inductor.compiler("inference")
        partition = _torch_inductor.with_joint_passes(partition)
        decompositions = _torch_inductor.decompositions()
    elif codegen == "ts":
        forward = inference = backward = ts_compile
    elif callable(codegen):
        forward = inference = backward = codegen
    else:
        raise UnknownOptionError(
            f"memory_efficient_fusion(codegen={codegen!r}): expected 'inductor', 'ts' or a "
            "compiler (gm, example_inputs) -> callable"
        )
    halves = [
        chosen.get("fw_compiler", forward),
        chosen.get("bw_compiler", backward),
        chosen.get("fw_compiler", inference),
    ]
    if fallback == "eager":
        halves = _or_eager(halves)
    # outermost: what a compiled graph would do wrong, the graph run as it is does wrong, too
    forward, backward, inference = map(_torch_distributed.without_collectives, halves)
    return Recipe(
        fw_compiler=forward,
        bw_compiler=_torch_aot.locked(backward),
        inference_compiler=inference,
        partition_fn=partition,
        decompositions=chosen.get("decompositions", decompositions),
        dynamic=bool(dynamic),
    )


def _or_eager(compilers: Sequence[FxCompiler]) -> list[FxCompiler]:
    """Compilers that run a graph as it is where one fails; the first time, they warn."""
    warned: list[str] = []

    def either(compiler: FxCompiler) -> FxCompiler:
        def compile_or_run(
            gm: fx.GraphModule, example_inputs: Sequence[Any], /
        ) -> Callable[..., Any]:
            spare = fx.GraphModule(gm, copy.deepcopy(gm.graph))  # inductor changes what it is given
            try:
                return compiler(gm, example_inputs)
            except (NotCompilableError, InvalidGraphError):
                raise  # the graph is what is wrong
            except Exception as error:
                if not warned:
                    warned.append(_torch_aot.phase(spare))
                    reason = str(error).partition("; use ")[0]
                    warnings.warn(
                        f"the {warned[0]} graph runs eagerly, as fallback='eager' asks, and so does"
                        f" any other that cannot be compiled: {type(error).__name__}: {reason}",
                        FallbackWarning,
                        stacklevel=2,
                    )
                return nop(spare, example_inputs)

        return compile_or_run

    return [either(one) for one in compilers]


def _require_cxx() -> None:
    compilers = (os.environ.get("CXX", "g++"), "g++", "clang++", "c++", "cl")
    if any(shutil.which(program) for program in compilers) or torch.cuda.is_available():
        return
    raise MissingDependencyError(
        "g++",
        needed_for="memory_efficient_fusion with codegen='inductor' on CPU",
        command="apt-get install g++   (or pass codegen='ts', which needs no compiler)",
    )
