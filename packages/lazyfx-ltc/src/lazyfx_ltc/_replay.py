"""The captured graph as something to call: guards, the program, and what goes back to the caller.

A call checks that it fits the capture, runs the program, writes mutated sources back, and puts the
outputs together. Nothing is written before the program has returned: a call that raises has
changed nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ._outputs import place, place_shared
from ._program import Program
from ._specs import Constant, Contract, Fresh, Itself, Leaf, TensorSpec, ViewOf
from ._state import State
from ._torch_tracing import tree_unflatten
from .errors import GradientError, GuardError


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What a :class:`CompiledGraph` does, for people. ``str()`` of it is a short report.

    Attributes:
        inputs: Each argument, described.
        state: Each model tensor read at a call, described.
        mutated: Names of arguments and model tensors that a call writes.
        outputs: Each output leaf, described.
        operators: How often the program calls each operator.
        fallbacks: Operators outside the graph; empty, as capture refuses them.
    """

    inputs: tuple[str, ...]
    state: tuple[str, ...]
    mutated: tuple[str, ...]
    outputs: tuple[str, ...]
    operators: dict[str, int]
    fallbacks: tuple[str, ...]

    def __str__(self) -> str:
        lines = []
        for title in ("inputs", "state", "mutated", "outputs", "fallbacks"):
            entries = getattr(self, title)
            lines.append(f"{title}: {len(entries)}")
            lines.extend(f"  {entry}" for entry in entries)
        lines.append(f"operators: {sum(self.operators.values())}")
        lines.extend(f"  {name} x {count}" for name, count in sorted(self.operators.items()))
        return "\n".join(lines)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class CompiledGraph:
    """A model captured on torch's lazy device. Call it like the model, with tensors.

    Made by :func:`lazyfx_ltc.extract_compiled_graph`; immutable; safe to call from several
    threads. It owns its program and constants; the model's parameters and buffers are read from
    the model at each call (so the model stays alive), and never copied.

    A call returns what eager returns: the same structure, numbers, dtypes, strides, aliasing. It
    writes the arguments and buffers eager writes. It raises :class:`~lazyfx_ltc.GuardError`
    before anything ran when the call does not fit the capture.

    Attributes:
        graph: A copy of the graph that was captured.
        input_specs: What each argument must look like.
        device: The device type it computes on.
    """

    graph: fx.Graph
    input_specs: tuple[TensorSpec, ...]
    device: str
    _state: State
    _state_specs: tuple[TensorSpec, ...]
    _names: tuple[str, ...]
    _contract: Contract
    _program: Program | None
    _ir: str
    _used: frozenset[int]

    def __call__(self, *args: torch.Tensor) -> Any:
        """Run the captured graph.

        Args:
            *args: Tensors of exactly the shapes, dtypes, strides and device of the example
                inputs. Those the model mutates are mutated.

        Returns:
            What the model returns, in the same structure.

        Raises:
            GuardError: The call does not fit the capture.
            GradientError: Grad mode is on, and an argument or parameter requires grad.
        """
        sources = self._guard(args)
        contract, program = self._contract, self._program
        fresh: list[torch.Tensor] = []
        if program is not None:
            inputs = [
                constant if number is None else _lifted(sources[number])
                for number, constant in zip(program.inputs, program.constants, strict=True)
            ]
            with torch.no_grad():
                results = self._results(program, program.function(*inputs))
                split = len(contract.fresh)
                fresh = self._arrange(results[:split])
                for number, value in zip(contract.written, results[split:], strict=True):
                    target = sources[number]
                    target.copy_(value if target.dim() else value.reshape(()))
        leaves = [_leaf(described, sources, fresh) for described in contract.leaves]
        return tree_unflatten(leaves, contract.structure)

    def _results(self, program: Program, returned: Any) -> list[torch.Tensor]:
        """The program's results in order, those that must not be handed out as they are cloned."""
        outputs = returned if isinstance(returned, tuple) else (returned,)
        picked = [outputs[position] for position in program.results]
        # Before anything is written: what leads to an input would change under the write.
        results = [
            value if own else value.clone() for value, own in zip(picked, program.own, strict=True)
        ]
        split = len(self._contract.fresh)
        if split > 1:
            # TorchScript may merge equal computations: two outputs must not share memory for it.
            seen: set[int] = set()
            for index in range(split):
                address = results[index].untyped_storage().data_ptr()
                if address in seen:
                    results[index] = results[index].clone()
                seen.add(address)
        return results

    def _arrange(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        specs = self._contract.fresh
        arranged = [place(value, spec) for value, spec in zip(values, specs, strict=True)]
        for group in self._contract.shared:
            members = [arranged[slot] for slot in group.slots]
            together = place_shared(members, [specs[slot] for slot in group.slots], group)
            for slot, tensor in zip(group.slots, together, strict=True):
                arranged[slot] = tensor
        return arranged

    def _guard(self, args: Sequence[Any]) -> list[torch.Tensor]:
        if len(args) != len(self.input_specs):
            raise GuardError(
                f"expected {len(self.input_specs)} arguments, as at capture, seen {len(args)};"
                " pass the same number, or extract the graph again"
            )
        for index, (value, spec) in enumerate(zip(args, self.input_specs, strict=True)):
            if type(value) is not torch.Tensor and type(value) is not nn.Parameter:
                raise GuardError(
                    f"{self._names[index]}: expected a torch.Tensor, seen"
                    f" {type(value).__name__}; pass a plain tensor"
                )
            self._fits(index, value, spec)
        state = self._state.read()
        for index, (tensor, spec) in enumerate(
            zip(state, self._state_specs, strict=True), start=len(args)
        ):
            self._fits(index, tensor, spec)
        sources = [*args, *state]
        if torch.is_autocast_enabled(self.device):
            raise GuardError(
                f"autocast: expected off for {self.device}, as at capture, seen on; leave the"
                " autocast block, or trace the model under autocast with make_fx and extract that"
            )
        if torch.is_grad_enabled():
            for index in self._used:
                if sources[index].requires_grad:
                    raise GradientError(
                        f"{self._names[index]} requires grad and grad mode is on: expected a call"
                        " without gradients, as a captured graph has no backward. Call it under"
                        " torch.no_grad(), or detach what you pass in"
                    )
        if self._contract.written:
            refuse_shared_writes(sources, self._contract.written, self._names, GuardError)
        return sources

    def _fits(self, index: int, value: torch.Tensor, spec: TensorSpec) -> None:
        if (
            value.shape == spec.shape
            and value.dtype is spec.dtype
            and value.layout is torch.strided
            and value.device == spec.device
            and spec.same_layout(value.stride())
        ):
            return
        seen = TensorSpec.of(value) if value.layout is torch.strided else value.layout
        raise GuardError(
            f"{self._names[index]}: expected {spec}, as at capture, seen {seen}; pass a tensor"
            " like the example (contiguous() mends strides), or extract the graph again"
        )

    def ir(self) -> str:
        """The lazy IR as recorded, as text."""
        return self._ir

    def backend_ir(self) -> str:
        """The program that a call runs, in TorchScript's notation."""
        return self._program.text if self._program is not None else ""

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Operators that run outside the captured graph: none, capture refuses them."""
        return ()

    def explain(self) -> Explanation:
        """What a call reads, computes, writes and returns."""
        split = len(self.input_specs)
        described = [
            f"{name}: {spec}"
            for name, spec in zip(self._names, (*self.input_specs, *self._state_specs), strict=True)
        ]
        return Explanation(
            inputs=tuple(described[:split]),
            state=tuple(described[split:]),
            mutated=tuple(self._names[number] for number in self._contract.written),
            outputs=tuple(self._describe(leaf) for leaf in self._contract.leaves),
            operators=dict(self._program.calls) if self._program is not None else {},
            fallbacks=self.fallbacks,
        )

    def _describe(self, leaf: Leaf) -> str:
        if isinstance(leaf, Constant):
            return f"constant {leaf.value!r}"
        if isinstance(leaf, Itself):
            return f"{self._names[leaf.source]} itself"
        if isinstance(leaf, ViewOf):
            return f"a view of {self._names[leaf.source]}, {list(leaf.size)}"
        return str(self._contract.fresh[leaf.slot])

    def __repr__(self) -> str:
        operators = sum(self._program.calls.values()) if self._program is not None else 0
        return (
            f"CompiledGraph({len(self.input_specs)} arguments,"
            f" {len(self._state_specs)} model tensors, {operators} operators,"
            f" {len(self._contract.leaves)} outputs, {self.device})"
        )


def _lifted(tensor: torch.Tensor) -> torch.Tensor:
    """Zero-dimensional sources enter the program as one element; see ``_capture.py``."""
    return tensor if tensor.dim() else tensor.reshape(1)


def _leaf(described: Leaf, sources: Sequence[torch.Tensor], fresh: Sequence[torch.Tensor]) -> Any:
    if isinstance(described, Fresh):
        return fresh[described.slot]
    if isinstance(described, Itself):
        return sources[described.source]
    if isinstance(described, Constant):
        return described.value
    source = sources[described.source]
    offset = source.storage_offset() + described.offset
    return source.as_strided(described.size, described.stride, offset)


def refuse_shared_writes(
    sources: Sequence[torch.Tensor],
    written: Sequence[int],
    names: Sequence[str],
    error: type[Exception],
) -> None:
    """Refuse a written source that shares memory with another source, or with itself.

    The program computes each on its own, so that a write to one would not show in the other.
    """
    owners: dict[int, int] = {}
    for number, tensor in enumerate(sources):
        if tensor.numel():
            address = tensor.untyped_storage().data_ptr()
            first = owners.setdefault(address, number)
            if first != number and (first in written or number in written):
                raise error(
                    f"{names[number]} shares memory with {names[first]}, and the model writes to"
                    " one of them: expected separate memory; pass a clone()"
                )
    for number in written:
        tensor = sources[number]
        pairs = zip(tensor.shape, tensor.stride(), strict=True)
        if any(size > 1 and stride == 0 for size, stride in pairs):
            raise error(
                f"{names[number]} is an expanded tensor, and the model writes to it: expected"
                " memory of its own for each element; pass a clone()"
            )
