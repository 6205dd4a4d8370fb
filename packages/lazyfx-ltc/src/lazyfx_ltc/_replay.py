"""What the user calls: a model with its captures, each for one kind of call.

A call goes to the first capture whose guard it fits, the newest first. One that fits none is
captured as well, or refused, as the user chose.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import fx

from ._aliases import Group
from ._arguments import endless, request
from ._capture import capture
from ._captured import MISS, Capture
from ._drawing import drawing
from ._explanation import Explanation
from ._guards import Modes, check_surroundings
from ._held import Held
from ._session import LOCK, initialize
from ._shortcut import shortcut
from ._specs import TensorSpec
from ._structure import Structure, flatten_call, unflatten
from ._torch_tracing import is_fake, spec_children
from .errors import GuardError, InputError, LtcError

_TRIES = 100  # calls that alternate between kinds do not profit; then no more is prepared
_LOGGER = logging.getLogger("lazyfx_ltc")


class CompiledGraph(Held):
    """A model captured on torch's lazy device. Call it like the model.

    Made by :func:`lazyfx_ltc.extract_compiled_graph`; safe to call from several threads. It owns
    its programs and constants; the model's parameters and buffers are read from the model at each
    call (so the model stays alive), and never copied.

    A call returns what eager returns: the same structure, numbers, dtypes, strides, aliasing. It
    writes the arguments and buffers eager writes. A call that is unlike the captures (another
    structure, shape, dtype, device, stride order or python value, train or eval mode, grad mode,
    autocast) is captured as well; with ``on_mismatch="error"`` it raises
    :class:`~lazyfx_ltc.GuardError` before anything ran.

    Attributes:
        dropped: How many captures had to go, since ``max_captures`` others came after them.

    Pickles as its model and the kinds of calls it has captured; they are captured anew on loading.
    """

    __slots__ = (
        "__weakref__",
        "_captures",
        "_freeze",
        "_max",
        "_missed",
        "_on_mismatch",
        "_shortcut",
        "dropped",
    )

    def __init__(
        self,
        model: fx.GraphModule,
        graph: fx.Graph,
        device: str,
        captures: tuple[Capture, ...],
        *,
        on_mismatch: Literal["capture", "error"],
        max_captures: int,
        freeze: bool = False,
    ) -> None:
        super().__init__(model, graph, device)
        self._freeze = freeze
        self._captures = captures
        self._on_mismatch = on_mismatch
        self._max = max_captures
        self._shortcut: Callable[[tuple[Any, ...]], Any] | None = None
        self._missed = 0
        self.dropped = 0

    @classmethod
    def captured(
        cls,
        model: fx.GraphModule,
        graph: fx.Graph,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        device: str,
        *,
        on_mismatch: Literal["capture", "error"] = "capture",
        max_captures: int = 8,
        freeze: bool = False,
    ) -> CompiledGraph:
        """A model and a graph of it, captured for one call."""
        wanted = request(args, kwargs)
        # Calls that need gradients are refused, so a model with parameters is meant for no_grad.
        modes = Modes.now(device)
        first = capture(model, graph, wanted, device, modes, grad_if_needed=False, freeze=freeze)
        options: Any = {
            "on_mismatch": on_mismatch,
            "max_captures": max_captures,
            "freeze": freeze,
        }
        return cls(model, graph, device, (first,), **options)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the captured graph.

        Args:
            *args: The model's arguments. Those the model mutates are mutated.
            **kwargs: The same, by name.

        Returns:
            What the model returns, in the same structure.

        Raises:
            GuardError: The call is unlike all captures, and ``on_mismatch`` is ``"error"``.
            GradientError: Grad mode is on, and an argument or parameter requires grad.
            FrozenError: A frozen tensor of the model has changed.
            LtcError: The call cannot be captured, for the reasons that
                :func:`lazyfx_ltc.extract_compiled_graph` lists.
        """
        result = self.replayed(args, kwargs)
        return self._unlike(args, kwargs) if result is MISS else result

    def replayed(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What a call returns, or :data:`~lazyfx_ltc._captured.MISS` if it fits no capture."""
        short = self._shortcut
        if short is not None and not kwargs:
            result = short(args)
            if result is not MISS:
                return result
        check_surroundings(self._device)
        leaves, structure = _flattened(args, kwargs)
        modes = Modes.now(self._device)
        for held in reversed(self._captures):
            sources = held.guard.match(leaves, structure, modes)
            if not isinstance(sources, str):
                result = held.run(sources)
                if not kwargs:
                    self._shorten(held, args, sources)  # once it has run
                return result
        return MISS

    def _shorten(
        self, held: Capture, args: tuple[Any, ...], sources: Sequence[torch.Tensor]
    ) -> None:
        """Prepare the short way for more calls like this one."""
        if self._missed < _TRIES:
            self._missed += 1
            self._shortcut = shortcut(held, args, sources)

    def _unlike(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call that fits no capture."""
        made = self.prepare(args, kwargs)
        leaves, structure = _flattened(args, kwargs)
        sources = made.guard.match(leaves, structure, Modes.now(self._device))
        if isinstance(sources, str):
            raise GuardError(f"{sources}; the call changed while it was captured")
        return made.run(sources)

    def prepare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Capture:
        """Capture a call that fits no capture; nothing runs. Raises as a call does."""
        leaves, structure = _flattened(args, kwargs)
        modes = Modes.now(self._device)
        reason = (
            self._captures[-1].guard.match(leaves, structure, modes)
            if self._captures
            else "nothing is captured"
        )
        if modes.grad:
            without = dataclasses.replace(modes, grad=False)  # as captured, if one would need it
            for held in reversed(self._captures):
                sources = held.guard.match(leaves, structure, without)
                if not isinstance(sources, str):
                    held.refuse_gradients(sources)
        if self._on_mismatch == "error" and self._captures:
            raise GuardError(
                f"{reason}; call it as it was captured, extract the graph again, or extract it"
                ' with on_mismatch="capture"'
            )
        if any(map(is_fake, leaves)):
            raise InputError(
                "arguments: expected tensors with data, seen fake ones: they can be captured for,"
                " with extract_compiled_graph, not computed with"
            )
        wanted = request(args, kwargs)
        with LOCK:
            for held in reversed(self._captures):  # another thread may have captured it meanwhile
                if not isinstance(held.guard.match(wanted.leaves, structure, modes), str):
                    return held
            _LOGGER.info("captured again: %s", reason)
            made = capture(
                self._model, self._graph, wanted, self._device, modes, freeze=self._freeze
            )
            if len(self._captures) == self._max:
                self.dropped += 1
                _LOGGER.warning(
                    "more than %d kinds of calls (max_captures): the oldest capture is dropped",
                    self._max,
                )
            self._captures = (*self._captures, made)[-self._max :]
            return made

    def returned_kinds(self) -> list[Any]:
        """For a model that returns a tuple: what its parts are, containers or leaves (None)."""
        structure = self._newest().contract.structure
        return [one.type for one in spec_children(structure.spec)]

    def clear(self) -> None:
        """Forget all captures; the next call captures anew, with ``on_mismatch="error"`` too."""
        with LOCK:
            self._shortcut, self._captures = None, ()

    def check_frozen(self) -> None:
        """Raise :class:`~lazyfx_ltc.FrozenError` if a frozen tensor of the model has changed."""
        for held in self._captures:
            for one in held.guard.frozen:
                one.check()

    def _newest(self) -> Capture:
        if not self._captures:
            raise GuardError("nothing is captured since clear() was called; call it first")
        return self._captures[-1]

    @property
    def captures(self) -> int:
        """How many kinds of calls are captured."""
        return len(self._captures)

    @property
    def input_specs(self) -> tuple[TensorSpec, ...]:
        """What each tensor argument looks like, in the newest capture."""
        leaves = self._newest().guard.leaves
        return tuple(leaf for leaf in leaves if isinstance(leaf, TensorSpec))

    def ir(self) -> str:
        """The lazy IR of the newest capture, as text."""
        return self._newest().ir

    def dot(self) -> str:
        """The program of the newest capture as a drawing, in Graphviz' notation."""
        held = self._newest()
        return drawing(held.program, held.guard.source_names)

    def backend_ir(self) -> str:
        """The program of the newest capture, in TorchScript's notation."""
        program = self._newest().program
        return program.text if program is not None else ""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Always empty: see ``PartitionedGraph.fallbacks``."""
        return ()

    def explain(self) -> Explanation:
        """What a call of the newest capture's kind checks, reads, computes, writes and returns."""
        held = self._newest()
        guard, split = held.guard, len(held.guard.leaves)
        looks = [
            f"{name}: {one if isinstance(one, TensorSpec) else repr(one)}"
            for name, one in zip(guard.names, (*guard.leaves, *guard.state_specs), strict=False)
        ]
        names = guard.source_names
        return Explanation(
            inputs=tuple(looks[:split]),
            state=tuple(looks[split:]),
            mutated=tuple(names[number] for number in held.contract.written),
            outputs=tuple(held.describe(leaf) for leaf in held.contract.leaves),
            guards=guard.describe(),
            operators=dict(held.program.calls) if held.program is not None else {},
            fallbacks=self.fallbacks,
            segments=(f"captured: {len(held.contract.trace)} operators of the model",),
        )

    def __repr__(self) -> str:
        if not self._captures:
            return f"CompiledGraph({self._device}, 0 captures)"
        held = self._newest()
        operators = sum(held.program.calls.values()) if held.program is not None else 0
        return (
            f"CompiledGraph({held.guard.structure.count} arguments,"
            f" {len(held.guard.state_specs)} model tensors, {operators} operators,"
            f" {len(held.contract.leaves)} outputs, {self._device}, {self.captures} captures)"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        kinds = []
        for held in self._captures:
            guard = held.guard
            leaves = [_Look(one) if isinstance(one, TensorSpec) else one for one in guard.leaves]
            kinds.append((*unflatten(leaves, guard.structure), guard.modes, guard.groups))
        options = {
            "on_mismatch": self._on_mismatch,
            "max_captures": self._max,
            "freeze": self._freeze,
        }
        return _restore, (self._for_pickle(), tuple(kinds), options)


def _flattened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Sequence[Any], Structure]:
    try:
        return flatten_call(args, kwargs)
    except RecursionError as error:
        raise endless(error) from error


class _Look:
    """Stands in a pickle for a tensor of this look."""

    def __init__(self, spec: TensorSpec) -> None:
        self.spec = spec

    def example(self) -> torch.Tensor:
        spec = self.spec
        return torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)


def _examples(leaves: tuple[Any, ...], groups: tuple[Group, ...]) -> tuple[Any, ...]:
    """Tensors of the looks among ``leaves``, sharing memory as arguments did."""
    looks = [one.spec for one in leaves if isinstance(one, _Look)]
    made = [_Look(spec).example() for spec in looks]
    for group in groups:
        if max(group.members) >= len(looks):
            continue  # shared with a tensor of the model; the first such call is captured again
        spec = looks[group.members[0]]
        whole = torch.empty(group.numel, dtype=spec.dtype, device=spec.device)
        for number, offset in zip(group.members, group.offsets, strict=True):
            made[number] = whole.as_strided(looks[number].shape, looks[number].stride, offset)
    remaining = iter(made)
    return tuple(next(remaining) if isinstance(one, _Look) else one for one in leaves)


def _restore(
    model: fx.GraphModule,
    kinds: tuple[tuple[tuple[Any, ...], dict[str, Any], Modes, tuple[Group, ...]], ...],
    options: dict[str, Any],
) -> CompiledGraph:
    """Capture again what a pickle lists."""
    device = initialize()
    captures = []
    failures: list[LtcError] = []
    before = torch.get_default_dtype()
    for args, kwargs, modes, groups in kinds:
        wanted = request(args, kwargs)
        wanted = dataclasses.replace(wanted, leaves=_examples(wanted.leaves, groups))
        torch.set_default_dtype(modes.default_dtype)
        try:
            freeze = options["freeze"]
            captures.append(capture(model, model.graph, wanted, device, modes, freeze=freeze))
        except LtcError as error:  # the model has changed since
            _LOGGER.warning("a kind of call that was captured is not any more: %s", error)
            failures.append(error)
        finally:
            torch.set_default_dtype(before)
    if failures and not captures:
        raise failures[-1]
    return CompiledGraph(model, model.graph, device, tuple(captures), **options)
