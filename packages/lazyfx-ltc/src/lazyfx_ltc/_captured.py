"""One capture: a program, what a call must be like, and what goes back to the caller.

Nothing is written before the program has returned: a call that raises has changed nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ._aliases import flat
from ._guards import Guard
from ._outputs import place, place_shared
from ._program import Program, lifted_tensor
from ._specs import Constant, Contract, Fresh, Itself, Leaf, TensorSpec, ViewOf, picker
from ._structure import assembler, unflatten
from .errors import GradientError, GuardError, ProgramError

_NOTHING: Any = contextlib.nullcontext()
MISS: Any = object()
"""A call that was prepared for, and does not fit after all."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False, eq=False)
class Capture:
    """Immutable; safe to run from several threads. Owns its program and constants.

    Attributes:
        guard: What a call must be like.
        device: The device type it computes on.
        contract: What a call does.
        program: Computes it; None where there is nothing to compute.
        ir: The lazy IR as recorded.
        used: Numbers of the sources that a gradient would flow through.
        write_back: For the flat memory of a group, the members to write and their offsets.
        targets: Numbers of the sources that are written in the end.
    """

    guard: Guard
    device: str
    contract: Contract
    program: Program | None
    ir: str
    used: frozenset[int]
    write_back: dict[int, tuple[tuple[int, int], ...]]
    targets: tuple[int, ...]

    def run(self, sources: list[torch.Tensor]) -> Any:
        """Run the program on the sources of a call that fits the guard; write, and return.

        Raises:
            GradientError: Grad mode is on, and a source requires grad.
            GuardError: A source that is written was made in inference mode, and it is off.
        """
        if torch.is_grad_enabled():
            self.refuse_gradients(sources)
        if self.targets and not torch.is_inference_mode_enabled():
            self._refuse_inference_tensors(sources)
        autocast = self.guard.modes.autocast is not None
        with (
            torch.no_grad(),
            torch.autocast(self.device, enabled=False) if autocast else _NOTHING,
        ):
            function = self.program.function if self.program is not None else None
            fresh = self._compute(sources, function)
        return self._assembled(sources, fresh)  # views of sources follow the caller's grad mode

    def run_checked(self, sources: list[torch.Tensor]) -> Any:
        """:meth:`run` for sources that it would not refuse, outside of autocast.

        Where grad mode is on, no source may require grad.
        """
        function = self.program.runners.run if self.program is not None else None
        return self._assembled(sources, self._compute(sources, function))

    def _compute(
        self, sources: list[torch.Tensor], function: Callable[..., Any] | None
    ) -> list[torch.Tensor]:
        """The computed outputs by slot; writes what is to be written."""
        contract, program = self.contract, self.program
        given = len(sources)
        sources += [flat(sources, group) for group in self.guard.groups]
        if program is None or function is None:
            return []
        inputs = [
            lifted_tensor(sources[number])
            if number < given
            else sources[number].clone()  # the program counts offsets from the start of memory
            for number in program.inputs
        ]
        results = self._results(program, self._computed(function, inputs))
        split = len(contract.fresh)
        fresh = self._arrange(results[:split])
        for number, value in zip(contract.written, results[split:], strict=True):
            self._write(sources, number, value)
        return fresh

    def _assembled(self, sources: Sequence[torch.Tensor], fresh: Sequence[torch.Tensor]) -> Any:
        contract = self.contract
        leaves: list[Any] = []
        for index, first in enumerate(contract.same):
            if first < index:
                leaves.append(leaves[first])
            else:
                leaves.append(_leaf(contract.leaves[index], sources, fresh))
        return unflatten(leaves, contract.structure)

    def prepared(self) -> Callable[[list[torch.Tensor]], Any]:
        """:meth:`run_checked`, quickly for programs that only compute new tensors.

        The sources need not have been held against each other: where the model writes, that is
        done here, and :data:`MISS` returned if they share memory otherwise than at capture.
        """
        contract, program = self.contract, self.program
        if contract.written:
            return self._run_if_memory_fits
        plain = all(isinstance(leaf, Fresh) for leaf in contract.leaves)
        if program is None or contract.shared or not plain:
            return self.run_checked
        return _prepared(self, program)

    def _run_if_memory_fits(self, sources: list[torch.Tensor]) -> Any:
        if self.guard.why_not_memory(sources) is not None:
            return MISS
        return self.run_checked(sources)

    def refuse_gradients(self, sources: Sequence[torch.Tensor]) -> None:
        """Raise if the results of a call under grad mode would have to carry gradients."""
        for index in self.used:
            if index < len(sources) and sources[index].requires_grad:
                raise GradientError(
                    f"{self.guard.source_names[index]} requires grad and grad mode is on: expected"
                    " a call without gradients, as a captured graph has no backward. Call it under"
                    " torch.no_grad(), or detach what you pass in"
                )

    def _write(self, sources: Sequence[torch.Tensor], number: int, value: torch.Tensor) -> None:
        members = self.write_back.get(number)
        if members is None:
            target = sources[number]
            target.copy_(value if target.dim() else value.reshape(()))
            return
        whole = value.contiguous()
        for member, offset in members:
            target = sources[member]
            target.copy_(whole.as_strided(target.shape, target.stride(), offset))

    def _refuse_inference_tensors(self, sources: Sequence[torch.Tensor]) -> None:
        """Raise before anything ran if a write would: outside of inference mode, to one of it."""
        for number in self.targets:
            if sources[number].is_inference():
                raise GuardError(
                    f"{self.guard.source_names[number]} was made in inference mode, and the model"
                    " writes to it: expected a call in inference mode, or an ordinary tensor; pass"
                    " a clone()"
                )

    def _computed(self, function: Callable[..., Any], inputs: Sequence[Any]) -> Any:
        try:
            return function(*inputs)
        except RuntimeError as error:
            raise _failed(error) from error

    def _results(self, program: Program, returned: Any) -> list[torch.Tensor]:
        """The program's results in order, those that must not be handed out as they are cloned."""
        outputs = returned if isinstance(returned, tuple) else (returned,)
        picked = [outputs[position] for position in program.results]
        # Before anything is written: what leads to an input would change under the write.
        results = [
            value if own else value.clone() for value, own in zip(picked, program.own, strict=True)
        ]
        split = len(self.contract.fresh)
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
        specs = self.contract.fresh
        arranged = [place(value, spec) for value, spec in zip(values, specs, strict=True)]
        for group in self.contract.shared:
            members = [arranged[slot] for slot in group.slots]
            together = place_shared(members, [specs[slot] for slot in group.slots], group)
            for slot, tensor in zip(group.slots, together, strict=True):
                arranged[slot] = tensor
        return arranged

    def describe(self, leaf: Leaf) -> str:
        """An output in words."""
        names = self.guard.source_names
        if isinstance(leaf, Constant):
            return f"constant {leaf.value!r}"
        if isinstance(leaf, Itself):
            return f"{names[leaf.source]} itself"
        if isinstance(leaf, ViewOf):
            return f"a view of {names[leaf.source]}, {list(leaf.size)}"
        return str(self.contract.fresh[leaf.slot])


def _prepared(capture: Capture, program: Program) -> Callable[[list[torch.Tensor]], Any]:
    """Runs a program whose results are the leaves that the caller gets."""
    contract, runners = capture.contract, program.runners
    pick = picker(program.inputs)
    specs = [one for one in capture.guard.leaves if isinstance(one, TensorSpec)]
    specs += capture.guard.state_specs
    scalars = [
        place
        for place, number in enumerate(program.inputs)
        if number < len(specs) and not specs[number].shape
    ]
    slots = [leaf.slot for leaf in contract.leaves if isinstance(leaf, Fresh)]
    order = list(dict.fromkeys(slots))  # one object each, however often it is returned
    results = [(program.results[slot], program.own[slot], contract.fresh[slot]) for slot in order]
    places = [order.index(slot) for slot in slots] if len(order) < len(slots) else None
    assembled = assembler(contract.structure)

    def computed(sources: list[torch.Tensor]) -> Any:
        inputs: Sequence[Any] = pick(sources)
        if scalars:
            inputs = lifted = [*inputs]
            for place in scalars:
                lifted[place] = lifted[place].reshape(1)
        try:
            return runners.run(*inputs)
        except RuntimeError as error:
            raise _failed(error) from error

    def run(sources: list[torch.Tensor]) -> Any:
        returned = computed(sources)
        outputs = returned if isinstance(returned, tuple) else (returned,)
        leaves = []
        for where, own, spec in results:
            value = outputs[where]
            if not own:
                value = value.clone()
            leaves.append(value if value.stride() == spec.stride else place(value, spec))
        return assembled(leaves if places is None else [leaves[one] for one in places])

    if program.arity > 1 or len(results) > 1 or contract.structure.count > 1:
        return run
    ((_, own, spec),) = results
    is_leaf = contract.structure.spec.num_nodes == 1 and not contract.structure.records
    if scalars or not own or not is_leaf:
        return run
    stride = spec.stride

    def run_one(sources: list[torch.Tensor]) -> Any:
        try:
            value = runners.run(*pick(sources))
        except RuntimeError as error:
            raise _failed(error) from error
        return value if value.stride() == stride else place(value, spec)

    return run_one


def _failed(error: RuntimeError) -> ProgramError:
    return ProgramError(f"the captured program failed, and nothing was written: {error}")


def _leaf(described: Leaf, sources: Sequence[torch.Tensor], fresh: Sequence[torch.Tensor]) -> Any:
    if isinstance(described, Fresh):
        return fresh[described.slot]
    if isinstance(described, Itself):
        return sources[described.source]
    if isinstance(described, Constant):
        return described.value
    source = sources[described.source]
    if described.detached:
        source = source.detach()
    offset = source.storage_offset() + described.offset
    return source.as_strided(described.size, described.stride, offset)
