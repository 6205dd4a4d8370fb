"""``memory_efficient_fusion``: recompute what is cheap, save what is not, fuse the rest.

The forward and backward graphs are traced together, the min-cut partitioner decides which
intermediate results are saved for the backward and which are computed again, and a code generator
compiles both halves. The reference used TorchScript's NVFuser, which is gone; what fuses today is
inductor.

Two things the reference gets wrong are right here. It replays its first graph for ever: here a key
of everything the graph depends on is compared at each call (see :mod:`lazyfx_compilers._guards`).
And where torch is told to recompute everything (an activation memory budget below one), random
operators are drawn again in the backward, which makes wrong gradients without a word: here that is
refused.
"""

from __future__ import annotations

import copy
import functools
import shutil
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from . import _guards, _torch_aot
from .decompositions import default_decompositions
from .errors import (
    MissingDependencyError,
    NotCompilableError,
    NoTensorOutputError,
    UnknownOptionError,
    UnsafeRecomputationError,
)
from .torchscript import ts_compile

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._types import FxCompiler

MAX_GRAPHS = 8
"""How many compiled graphs one function or module keeps; the one unused longest is dropped."""

_OVERRIDES = ("bw_compiler", "decompositions", "fw_compiler", "partition_fn")
_compiling = threading.RLock()  # AOTAutograd and inductor patch process-wide settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How graphs are compiled: the settings of ``aot_function``."""

    fw_compiler: FxCompiler
    bw_compiler: FxCompiler
    partition_fn: Callable[..., tuple[fx.GraphModule, fx.GraphModule]]
    decompositions: Mapping[Any, Callable[..., Any]]
    dynamic: bool

    def settings(self) -> dict[str, Any]:
        """As keyword arguments for ``aot_function``."""
        return {
            "fw_compiler": self.fw_compiler,
            "bw_compiler": self.bw_compiler,
            "inference_compiler": self.fw_compiler,
            "partition_fn": self.partition_fn,
            "decompositions": dict(self.decompositions),
            "dynamic": self.dynamic,
        }


def memory_efficient_fusion(
    fn: Callable[..., Any] | nn.Module,
    *,
    codegen: str | FxCompiler = "inductor",
    dynamic: bool = False,
    guard: bool = True,
    **overrides: Any,
) -> Any:
    """A version of ``fn`` that saves less for the backward and runs compiled code.

    Nothing is traced or compiled before the first call. A call that differs from all earlier ones
    in shapes, dtypes, devices, ``requires_grad``, Python arguments, gradient or autocast mode or,
    for a module, in training flags, plain attributes, hooks or submodules compiles a new graph;
    the last :data:`MAX_GRAPHS` are kept.

    Args:
        fn: A function of tensors, numbers, strings and containers of them that returns at least
            one tensor, or a module. A module's parameters and buffers are used by reference:
            optimizer steps, ``load_state_dict`` and running statistics are seen by both.
        codegen: ``"inductor"`` (needs a C++ compiler on CPU), ``"ts"`` for TorchScript, or any
            compiler, for example :func:`~lazyfx_compilers.nop`.
        dynamic: Trace with symbolic shapes.
        guard: With ``False`` the first graph is replayed for ever, as the reference does.
        **overrides: ``fw_compiler``, ``bw_compiler``, ``partition_fn``, ``decompositions``: taken
            instead of what ``codegen`` chooses, as in the reference.

    Returns:
        A function with the signature of ``fn``; for a module, a module with the same state-dict
        keys that shares all its parameters, buffers and submodules.

    Raises:
        NotCompilableError: ``fn`` is neither callable nor a module; on calling, an argument of a
            type that cannot be compared.
        UnknownOptionError: An unknown ``codegen`` or keyword; lists those that are known.
        MissingDependencyError: ``codegen="inductor"`` without a C++ compiler.
        NoTensorOutputError: On calling, ``fn`` returns no tensor.
        UnsafeRecomputationError: On calling, torch is set to recompute random operators, which
            would draw other numbers in the backward.

    Thread-safety: calls may race; compilation is serialised across the process. While a module is
    compiled, do not run the *original* in another thread: torch traces by putting fake parameters
    into it for the time being.
    """
    if not callable(fn):
        raise NotCompilableError(
            f"memory_efficient_fusion(fn) takes a function or an nn.Module, got {type(fn)!r}"
        )
    recipe = make_recipe(codegen, dynamic=dynamic, overrides=overrides)
    if isinstance(fn, nn.Module):
        return FusedModule(fn, recipe, guard=guard)
    graphs = _Graphs(functools.partial(_compile_function, fn, recipe))

    @functools.wraps(fn)
    def fused(*args: Any, **kwargs: Any) -> Any:
        key = _guards.call_key(args, kwargs) if guard else ()
        return graphs.get(key)(*args, **kwargs)

    return fused


def make_recipe(
    codegen: str | FxCompiler, *, dynamic: bool, overrides: Mapping[str, Any]
) -> Recipe:
    """Resolve ``codegen`` and the reference's overrides.

    Raises:
        UnknownOptionError: An unknown ``codegen`` or override.
        MissingDependencyError: Inductor without a C++ compiler.
    """
    unknown = sorted(set(overrides) - set(_OVERRIDES))
    if unknown:
        raise UnknownOptionError(
            f"memory_efficient_fusion got the unknown keyword {unknown[0]!r}; "
            f"it takes codegen, dynamic, guard, {', '.join(_OVERRIDES)}"
        )
    partition = _refusing_redrawn_randomness(
        overrides.get("partition_fn") or _torch_aot.min_cut_partition
    )
    forward: FxCompiler
    backward: FxCompiler
    decompositions: Mapping[Any, Callable[..., Any]] = default_decompositions
    if codegen == "inductor" and not {"fw_compiler", "bw_compiler"} <= set(overrides):
        _require_cxx()
        forward = _torch_aot.inductor_compiler(is_backward=False)
        backward = _torch_aot.inductor_compiler(is_backward=True)
        if not {"fw_compiler", "bw_compiler"} & set(overrides):
            partition = _torch_aot.inductor_partition(partition)
        decompositions = _torch_aot.inductor_decompositions()
    elif codegen in ("inductor", "ts"):
        forward = backward = ts_compile
    elif callable(codegen):
        forward = backward = codegen
    else:
        raise UnknownOptionError(
            f"memory_efficient_fusion(codegen={codegen!r}): expected 'inductor', 'ts' or a "
            "compiler (gm, example_inputs) -> callable"
        )
    forward = overrides.get("fw_compiler") or forward
    return Recipe(
        fw_compiler=forward,
        # in the reference a forward compiler alone does both
        bw_compiler=overrides.get("bw_compiler")
        or (forward if "fw_compiler" in overrides else backward),
        partition_fn=partition,
        decompositions=overrides["decompositions"]
        if overrides.get("decompositions") is not None
        else decompositions,
        dynamic=dynamic,
    )


class FusedModule(nn.Module):
    """A module that runs compiled code over another module's parameters and buffers.

    Parameters, buffers, submodules and the training flag are those of the original: the two are
    one module with two ways to run it. Attributes this class does not have are the original's.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, *, guard: bool) -> None:
        vars(self)["_original"] = module
        super().__init__()
        for shared in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            vars(self)[shared] = vars(module)[shared]
        vars(self)["_recipe"] = recipe
        vars(self)["_guard"] = guard
        vars(self)["_graphs"] = _Graphs(functools.partial(_compile_module, module, recipe))

    @property
    def training(self) -> bool:
        """The original's flag."""
        return bool(self._original.training)

    @training.setter
    def training(self, mode: bool) -> None:
        if "_parameters" in vars(self):  # not while nn.Module.__init__ sets its default
            self._original.training = mode

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the graph compiled for calls like this one."""
        key: tuple[Any, ...] = ()
        with _compiling:  # torch traces by putting fake parameters into the module meanwhile
            if self._guard:
                key = (_guards.call_key(args, kwargs), _guards.module_key(self._original))
            parameters = dict(self._original.named_parameters(remove_duplicate=False))
            buffers = dict(self._original.named_buffers(remove_duplicate=False))
        return self._graphs.get(key)(parameters, buffers, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["_original"], name)

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedModule:
        """A fused module over a deep copy of the original, compiled anew."""
        return FusedModule(copy.deepcopy(self._original, memo), self._recipe, guard=self._guard)


class _Graphs:
    """Compiled graphs by key, at most :data:`MAX_GRAPHS`, the least recently used one dropped."""

    def __init__(self, compile_one: Callable[[], Callable[..., Any]]) -> None:
        self._compile_one = compile_one
        self._by_key: OrderedDict[Any, Callable[..., Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> Callable[..., Any]:
        with self._lock:
            found = self._by_key.get(key)
            if found is None:
                found = self._by_key[key] = _Once(self._compile_one())
                if len(self._by_key) > MAX_GRAPHS:
                    self._by_key.popitem(last=False)
            else:
                self._by_key.move_to_end(key)
        return found


class _Once:
    """Serialises the calls of an ``aot_function`` until its first one has compiled it."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function
        self._ready = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._ready:
            return self._function(*args, **kwargs)
        with _compiling:
            result = self._function(*args, **kwargs)
            self._ready = True
        return result


def _compile_function(fn: Callable[..., Any], recipe: Recipe) -> Callable[..., Any]:
    return _torch_aot.aot_function(_with_tensor_result(fn), **recipe.settings())


def _compile_module(module: nn.Module, recipe: Recipe) -> Callable[..., Any]:
    def functional(
        parameters: dict[str, torch.Tensor],
        buffers: dict[str, torch.Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        return torch.func.functional_call(module, {**parameters, **buffers}, args, kwargs)

    held = len(list(module.parameters())) + len(list(module.buffers()))
    return _torch_aot.aot_function(
        _with_tensor_result(functional), num_params_buffers=held, **recipe.settings()
    )


def _with_tensor_result(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def checked(*args: Any, **kwargs: Any) -> Any:
        result = fn(*args, **kwargs)
        leaves, _ = _torch_aot.tree_flatten(result)
        if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise NoTensorOutputError(
                f"memory_efficient_fusion: {getattr(fn, '__name__', fn)!r} returned "
                f"{type(result).__name__} without a tensor in it; expected at least one tensor"
            )
        return result

    return checked


def _refusing_redrawn_randomness(partition: Callable[..., Any]) -> Callable[..., Any]:
    def checked(joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any) -> Any:
        setting = _torch_aot.recomputes_freely()
        random = _torch_aot.random_operators(joint) if setting else []
        if random:
            raise UnsafeRecomputationError(
                f"node {random[0].name!r} ({random[0].target}) draws random numbers, and {setting} "
                "lets torch compute it again in the backward with other numbers, which makes wrong "
                "gradients; expected a budget of 1.0 (the default) for a graph with random "
                "operators"
            )
        return partition(joint, joint_inputs, **settings)

    return checked


def _require_cxx() -> None:
    if torch.cuda.is_available() or any(
        shutil.which(program) for program in ("g++", "clang++", "c++", "cl")
    ):
        return
    raise MissingDependencyError(
        "g++",
        needed_for="memory_efficient_fusion with codegen='inductor' on CPU",
        command="apt-get install g++   (or pass codegen='ts', which needs no compiler)",
    )
