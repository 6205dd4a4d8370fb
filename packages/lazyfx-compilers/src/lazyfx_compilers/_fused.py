"""Functions and modules that run compiled graphs, and compile another one when they must."""

from __future__ import annotations

import contextlib
import copy
import functools
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from . import _guards, _torch_aot, _torch_callers, _torch_distributed, _torch_partition
from ._graphs import Graphs
from .errors import NotCompilableError, NoTensorOutputError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

_MARK = "_lazyfx_fused"
_SHARED = (
    *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"),
    *("_state_dict_hooks", "_state_dict_pre_hooks"),
    *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
)


def fused_function(
    fn: Callable[..., Any], settings: Mapping[str, Any], *, guard: bool
) -> Callable[..., Any]:
    """``fn``, compiled by ``aot_function`` with these settings for each kind of call."""

    def compile_one() -> Callable[..., Any]:
        traceable = _traceable(fn, fn, lambda: _guards.function_key(fn))
        return _compile_when_called(traceable, settings)

    graphs = Graphs(compile_one, _name(fn))

    @functools.wraps(fn)
    def fused(*args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_dynamo_compiling() or _torch_callers.called_while_tracing():
            return fn(*args, **kwargs)  # whoever traces guards it, compiles it or keeps it
        key: Any = None
        if _is_looked_at(graphs, guard):
            key = (_guards.call_key(args, kwargs), _guards.function_key(fn))
        return graphs.get(key if guard else None)(*args, **kwargs)

    vars(fused)[_MARK] = True
    return fused


def _is_looked_at(graphs: Graphs, guard: bool) -> bool:
    """Whether a call's key is made; without a guard, only for what the making refuses."""
    return guard or not len(graphs) or _torch_callers.called_while_transforming()


def is_fused(what: object) -> bool:
    """Whether this is what :func:`fused_function` or :class:`FusedModule` made."""
    return isinstance(what, FusedModule) or getattr(what, _MARK, False) is True


class FusedModule(nn.Module):
    """A module that runs compiled code over another module's parameters and buffers.

    The two are one module with two ways to run it. Parameters, buffers, submodules, the training
    flag and all other attributes are those of the original, also when set here; saving, loading,
    moving and switching to training or evaluation are done by the original. Hooks registered here
    run here, at each call; hooks of the original are traced into the graph.
    """

    def __init__(self, module: nn.Module, settings: Mapping[str, Any], *, guard: bool) -> None:
        own = vars(self)
        own["_original"] = module
        super().__init__()
        for shared in _SHARED:
            own[shared] = vars(module)[shared]
        own["_settings"] = settings
        own["_guard"] = guard
        compile_one = functools.partial(_compile_module, module, settings)
        own["_graphs"] = Graphs(compile_one, _name(module))

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
        original = self._original
        if torch.compiler.is_dynamo_compiling() or _torch_callers.called_while_tracing():
            return original(*args, **kwargs)
        with _torch_aot.compile_lock():  # tracing puts fake parameters into the module meanwhile
            state = _guards.module_state(original)
        key: Any = None
        if _is_looked_at(self._graphs, self._guard):
            key = (_guards.call_key(args, kwargs, state.held), state.key)
        run = self._graphs.get(key if self._guard else None)
        return run(state.parameters, state.buffers, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(vars(self)["_original"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "__class__":  # fully_shard changes the class of what it is given
            object.__setattr__(self, name, value)
            return
        setattr(self._original, name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._original, name)

    def train(self, mode: bool = True) -> Self:
        """Switch the original, which may do it in its own way."""
        self._original.train(mode)
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """The original's state."""
        return self._original.state_dict(*args, **kwargs)

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Load into the original."""
        return self._original.load_state_dict(*args, **kwargs)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._original._load_from_state_dict(*args, **kwargs)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._original._apply(*args, **kwargs)
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> FusedModule:
        """A fused module over a deep copy of the original, compiled anew."""
        return FusedModule(copy.deepcopy(self._original, memo), self._settings, guard=self._guard)


def _compile_module(module: nn.Module, settings: Mapping[str, Any]) -> Callable[..., Any]:
    def functional(
        parameters: dict[str, torch.Tensor],
        buffers: dict[str, torch.Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        # each tied parameter comes under one name; functional_call ties it again
        return torch.func.functional_call(module, {**parameters, **buffers}, args, kwargs)

    for name, each in module.named_modules():
        wrapper = _torch_distributed.wrapper(each)
        if wrapper is not None:
            raise NotCompilableError(
                f"memory_efficient_fusion: {name or 'the module'} is under {wrapper}, which gathers"
                " parameters or reduces gradients when it runs; a compiled graph would not do that."
                f" Fuse first, then apply {wrapper} to the fused module, or use"
                " torch.compile(module, backend='lazyfx_fusion')"
            )
    state = _guards.module_state(module)
    return _compile_when_called(
        _traceable(functional, module, lambda: _guards.module_state(module).key),
        {**settings, "num_params_buffers": len(state.parameters) + len(state.buffers)},
    )


class _UnusedInputsError(Exception):
    """Some inputs are read by nothing: tracing begins anew, with those detached."""


def _compile_when_called(
    traceable: Callable[..., Any], settings: Mapping[str, Any]
) -> Callable[..., Any]:
    """An ``aot_function`` of the tensors and numbers of a call; all else is that of the first."""
    compiled: Callable[..., Any] | None = None
    # AOTAutograd gives tuples back as lists, and inductor takes no plain numbers as results
    returned: list[Any] = []
    shape: Any = None
    unused: set[int] = set()
    partition = settings["partition_fn"]

    def filled_in(computed: Sequence[Any]) -> Any:
        results = iter(computed)
        leaves = [next(results) if each is _COMPUTED else each for each in returned]
        return _torch_aot.tree_unflatten(leaves, shape)

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal compiled
        leaves, structure = _torch_aot.tree_flatten((args, kwargs))
        traced = [leaf for leaf in leaves if _is_traced(leaf)]
        if compiled is None:
            fixed = [None if _is_traced(leaf) else leaf for leaf in leaves]
            traced_at = [index for index, leaf in enumerate(leaves) if _is_traced(leaf)]

            def flat(*values: Any) -> Any:
                nonlocal returned, shape
                filled = fixed.copy()
                for index, value in zip(traced_at, values, strict=True):
                    filled[index] = value
                args, kwargs = _torch_aot.tree_unflatten(filled, structure)
                recorded = [getattr(value, "grad_fn", None) for value in values]
                results, shape = _torch_aot.tree_flatten(traceable(*args, **kwargs))
                for leaf, value, before in zip(traced, values, recorded, strict=True):
                    if isinstance(leaf, torch.Tensor) and leaf.is_leaf and leaf.requires_grad:
                        _refuse_recorded_write(value, before)
                returned = [_COMPUTED if _is_computed(each) else each for each in results]
                return [each for each in results if _is_computed(each)]

            @functools.wraps(partition)
            def partition_if_all_is_used(joint: Any, *given: Any, **named: Any) -> Any:
                for at in _torch_partition.unused_inputs(joint, len(traced)):
                    if getattr(traced[at], "requires_grad", False):
                        unused.add(at)
                if unused:
                    raise _UnusedInputsError
                return partition(joint, *given, **named)

            # An edge to a parameter that has no gradient would tell DistributedDataParallel that
            # there is one, of zeros: such parameters go in without.
            first = _torch_aot.aot_function(
                flat, **{**settings, "partition_fn": partition_if_all_is_used}
            )
            try:
                result = first(*traced)
            except _UnusedInputsError:
                compiled = _torch_aot.aot_function(flat, **settings)
            else:
                compiled = first
                return filled_in(result)
        return filled_in(
            compiled(*[leaf.detach() if at in unused else leaf for at, leaf in enumerate(traced)])
        )

    return call


def _refuse_recorded_write(value: torch.Tensor, before: Any) -> None:
    """While tracing no input is a leaf, so that autograd records what it refuses in eager."""
    if value.grad_fn is not before:
        raise NotCompilableError(
            "memory_efficient_fusion: writes in place to an argument or parameter of shape "
            f"{list(value.shape)}, a leaf that requires grad, which eager refuses; write under "
            "torch.no_grad(), or to a copy"
        )


def _is_traced(leaf: object) -> bool:
    return isinstance(leaf, torch.Tensor) or type(leaf) in (int, float)


_COMPUTED = object()


def _is_computed(leaf: object) -> bool:
    return isinstance(leaf, (torch.Tensor, torch.SymInt, torch.SymFloat, torch.SymBool))


def _name(what: Any) -> str:
    return getattr(what, "__qualname__", type(what).__qualname__)


def _traceable(
    run: Callable[..., Any], what: Any, surroundings: Callable[[], Any]
) -> Callable[..., Any]:
    """``run``, with the errors of somebody who knows that it is being traced."""
    name = _name(what)
    modules = what.modules() if isinstance(what, nn.Module) else ()
    attends = any(isinstance(one, nn.MultiheadAttention) for one in modules)

    @functools.wraps(run)
    def checked(*args: Any, **kwargs: Any) -> Any:
        before = surroundings()
        put_back = _snapshot(what)
        try:
            with _OperatorsOnly(name) if attends else contextlib.nullcontext():
                result = run(*args, **kwargs)
        except Exception as error:
            put_back()
            reason = _torch_aot.why_untraceable(error)
            if reason is None:
                raise
            raise NotCompilableError(f"memory_efficient_fusion: {name} {reason}") from error
        changed = _guards.first_change(before, surroundings())
        if changed is not None:
            put_back()
            raise NotCompilableError(
                f"memory_efficient_fusion: {name} changes {changed!r} when it runs, which is an "
                "attribute, a global or a variable of its closure; a compiled graph would not do "
                "that. Return the value instead, or keep it in a registered buffer"
            )
        leaves, _ = _torch_aot.tree_flatten(result)
        if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise NoTensorOutputError(
                f"memory_efficient_fusion: {name} returned a {type(result).__name__} without a "
                "tensor in it; expected at least one tensor"
            )
        return result

    return checked


class _OperatorsOnly(TorchFunctionMode):
    """Torch leaves its fast path for whole attention modules alone while any mode is active."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if (
            func is nn.functional.multi_head_attention_forward
            and named.get("key_padding_mask") is not None
            and not named.get("training", True)
            and torch.backends.mha.get_fastpath_enabled()
        ):
            raise NotCompilableError(
                f"memory_efficient_fusion: {self._name} attends with a key_padding_mask in eval "
                "mode: torch's fast path gives other values for what is padded than the operators "
                "that can be traced; torch.backends.mha.set_fastpath_enabled(False) makes eager "
                "call those"
            )
        return func(*args, **named)


def _snapshot(what: Any) -> Callable[[], None]:
    """Something that puts a module's attributes back: a trace must not leave its tensors there."""
    homes = []
    for module in what.modules() if isinstance(what, nn.Module) else ():
        own = vars(module)
        homes += [(one, dict(one)) for one in (own, own["_buffers"], own["_modules"])]

    def put_back() -> None:
        for home, held in homes:
            home.clear()
            home.update(held)

    return put_back
