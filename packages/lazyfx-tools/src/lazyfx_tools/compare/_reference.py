"""The reference: a graph run node by node, and beside it the same in float64.

In float64 every floating-point value is wider, and so are the dtypes that nodes name. What is not a
matter of precision is eager's: random numbers, whole numbers, truth values (a mask, the index of a
maximum), and the results of operators that have no float64 kernel.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from lazyfx_compilers import _torch_aot, _torch_debug, _torch_randomness

from . import _torch_compare

if TYPE_CHECKING:
    from collections.abc import Sequence

_WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex32: torch.complex128,
    torch.complex64: torch.complex128,
}


# --- states ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RandomState:
    """The states of torch's global generators; ``cuda`` is empty if CUDA was not in use yet."""

    cpu: torch.Tensor
    cuda: tuple[torch.Tensor, ...]

    @staticmethod
    def now() -> RandomState:
        """Those of this moment. To ask CUDA for its states would set CUDA up, so it may be left."""
        used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
        states = tuple(torch.cuda.get_rng_state_all()) if used else ()
        return RandomState(torch.get_rng_state(), states)

    def restore(self) -> None:
        """Make them the present ones."""
        torch.set_rng_state(self.cpu)
        if self.cuda:
            torch.cuda.set_rng_state_all(self.cuda)
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(torch.initial_seed())  # where torch.manual_seed has it begin


def duplicate(values: Sequence[Any]) -> list[Any]:
    """Copies that share nothing with the originals; strides and sharing among them are kept."""
    detached: dict[int, torch.Tensor] = {}
    for value in values:
        if isinstance(value, torch.Tensor):
            detached.setdefault(id(value), value.detach())
    memo: dict[int, Any] = {}
    copies = {key: copy.deepcopy(value, memo) for key, value in detached.items()}
    return [copies[id(one)] if isinstance(one, torch.Tensor) else one for one in values]


# --- running ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What a graph gave.

    Attributes:
        outputs: Flat.
        inputs: As they are afterwards.
        exact_outputs: In float64; None if that was not asked for.
        exact_inputs: In float64, as they are afterwards.
    """

    outputs: list[Any]
    inputs: list[Any]
    exact_outputs: list[Any] | None = None
    exact_inputs: list[Any] | None = None


class Reference(fx.Interpreter):
    """Runs a graph on inputs that it may write to.

    Attributes:
        states: The random state before each node that draws.
        writers: The nodes that have written each input, by the input's name.
    """

    def __init__(self, gm: fx.GraphModule, *, exact: bool = False) -> None:
        super().__init__(gm, garbage_collect_values=True)
        self.states: dict[str, RandomState] = {}
        self.writers: dict[str, list[fx.Node]] = {}
        self._exact = _Wide(gm) if exact else None
        self._homes: dict[int, list[str]] = {}
        self._exact_inputs: list[Any] = []

    def start(self, inputs: list[Any]) -> Run:
        """Run on ``inputs``, which is kept."""
        with torch.no_grad():
            outputs = self.run(*inputs)
        exact_outputs = exact_inputs = None
        if self._exact is not None:
            exact_outputs = flat(self._exact.result)
            exact_inputs = self._exact_inputs
        return Run(
            outputs=flat(outputs),
            inputs=inputs,
            exact_outputs=exact_outputs,
            exact_inputs=exact_inputs,
        )

    def run_node(self, n: fx.Node) -> Any:
        """Run one node, and again in float64."""
        if _torch_randomness.draws(n):
            self.states[n.name] = RandomState.now()
        result = super().run_node(n)
        if n.op == "placeholder" and isinstance(result, torch.Tensor) and _has_storage(result):
            self._homes.setdefault(_torch_debug.storage_key(result), []).append(n.name)
        for one in _torch_compare.written_arguments(n):
            written = self.env.get(one)
            if isinstance(written, torch.Tensor) and _has_storage(written):
                for name in self._homes.get(_torch_debug.storage_key(written), ()):
                    self.writers.setdefault(name, []).append(n)
        if self._exact is not None:
            exact = self._exact.follow(n, result, self.env)
            if n.op == "placeholder":
                self._exact_inputs.append(exact)
        return result


class _Wide(fx.Interpreter):
    """The float64 half: led node by node."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.result: Any = None

    def follow(self, node: fx.Node, eager: Any, eager_values: dict[fx.Node, Any]) -> Any:
        """Run ``node`` as eager has; ``eager`` is its value there."""
        value = self._value(node, eager, eager_values)
        self.env[node] = value
        if node.op == "output":
            self.result = value
            self.env = {}
        return value

    def _value(self, node: fx.Node, eager: Any, eager_values: dict[fx.Node, Any]) -> Any:
        if node.op in ("placeholder", "get_attr"):
            return _widened(eager)
        if node.op == "output":
            return fx.node.map_arg(node.args[0], lambda one: self.env[one])
        if _torch_randomness.draws(node) or _torch_compare.is_uninitialized(node):
            return _widened(eager)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        try:
            args, kwargs = _map_dtypes(args), _map_dtypes(kwargs)
            exact = getattr(self, node.op)(node.target, args, kwargs)
        except Exception:  # no float64 kernel: eager's own value is the best there is
            return _widened(eager)
        return _like(exact, eager)


def _map_dtypes(tree: Any) -> Any:
    leaves, structure = _torch_aot.tree_flatten(tree)
    wider = [_WIDER.get(one, one) if isinstance(one, torch.dtype) else one for one in leaves]
    return _torch_aot.tree_unflatten(wider, structure)


def _like(exact: Any, eager: Any) -> Any:
    """``exact`` with eager's values where it is no better version of them."""
    found, structure = _torch_aot.tree_flatten(exact)
    wanted, _ = _torch_aot.tree_flatten(eager)
    if len(found) != len(wanted):
        return _widened(eager)
    leaves = [
        one if _fits(one, other) else _widened(other)
        for one, other in zip(found, wanted, strict=True)
    ]
    return _torch_aot.tree_unflatten(leaves, structure)


def _fits(exact: Any, eager: Any) -> bool:
    if not isinstance(eager, torch.Tensor):
        return not isinstance(exact, torch.Tensor)
    if not isinstance(exact, torch.Tensor) or exact.shape != eager.shape:
        return False
    if exact.dtype is not _WIDER.get(eager.dtype, eager.dtype):
        return False
    # a mask or an index is eager's; the same one stays, since it may be a view of another value
    return eager.is_floating_point() or eager.is_complex() or bool(torch.equal(exact, eager))


def _widened(value: Any) -> Any:
    leaves, structure = _torch_aot.tree_flatten(value)
    wide = [
        one.detach().to(_WIDER.get(one.dtype, one.dtype), copy=True)
        if isinstance(one, torch.Tensor)
        else one
        for one in leaves
    ]
    return _torch_aot.tree_unflatten(wide, structure)


def _has_storage(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided


def flat(value: Any) -> list[Any]:
    """The leaves of a result, None among them."""
    if isinstance(value, (tuple, list)):
        return [leaf for each in value for leaf in flat(each)]
    return [value]
