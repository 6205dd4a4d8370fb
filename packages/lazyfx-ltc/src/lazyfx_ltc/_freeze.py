"""Frozen weights: what they alone decide is computed once, at capture.

* A batch normalization in eval mode behind a convolution becomes part of its weights. The sums are
  the same in another order, so results differ from eager's by rounding.
* Whatever else follows from frozen tensors and numbers alone becomes a constant, unless it is much
  larger than what it follows from.

That holds as long as nobody changes the weights. :class:`Frozen` looks, at every call, whether each
is the same object, in the same memory, in the same version. A write that torch does not count (to
``weight.data``, or through NumPy) is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace

import torch

from . import _torch_lazy
from ._state import Binding
from ._text import Instruction, write
from .errors import FrozenError

_FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    """A tensor of the model that must not change; ``number`` is its place among the sources."""

    number: int
    binding: Binding
    tensor: torch.Tensor
    version: int
    address: int

    @classmethod
    def of(cls, number: int, binding: Binding) -> Frozen:
        """The tensor that a binding leads to, as it is now."""
        tensor = binding.read()
        return cls(
            number=number,
            binding=binding,
            tensor=tensor,
            version=version(tensor),
            address=tensor.data_ptr(),
        )

    def check(self) -> None:
        """Raise :class:`FrozenError` if it has changed."""
        seen = self.binding.owner.get(self.binding.key)
        if seen is not self.tensor:
            what = "another one, or none"
        elif seen.data_ptr() != self.address:
            what = "it in other memory (an assignment to .data, say)"
        elif version(seen) != self.version:
            what = "that it was written to"
        else:
            return
        raise FrozenError(
            f"model tensor {self.binding.name!r}: expected it as at capture, since it is frozen,"
            f" seen {what}; extract the graph again, or without freeze=True"
        )


def version(tensor: torch.Tensor) -> int:
    """How often torch has counted a write; inference tensors have no count."""
    return -1 if tensor.is_inference() else int(tensor._version)


def folded(
    instructions: Sequence[Instruction],
    constants: Mapping[str, torch.Tensor],
    effects: Set[str],
    results: Sequence[str],
) -> tuple[list[Instruction], dict[str, torch.Tensor], dict[str, str]]:
    """A program without what its constants decide.

    Args:
        instructions: The program, each instruction after its operands.
        constants: Its tensor constants, by name.
        effects: Names of values that are made for an effect.
        results: The names of what it returns.

    Returns:
        The instructions, more constants, and names that now have another one.
    """
    live, known, aliases = _without_batch_norms(instructions, constants, results)
    fixed = set(known)
    inside: list[Instruction] = []
    wanted = set(results)
    for one in live:
        makes = {name for name, _ in one.outs}
        if set(one.ins) <= fixed and not makes & effects:
            fixed |= makes
            inside.append(one)
        else:
            wanted.update(one.ins)
    kinds = dict(out for one in inside for out in one.outs)
    asked = [name for name, kind in kinds.items() if kind == "Tensor" and name in wanted]
    made = _computed(inside, known, asked)
    used = {name for one in inside for name in one.ins}
    largest = max((one.numel() for name, one in known.items() if name in used), default=0)
    kept = {name: one for name, one in made.items() if _is_worth_it(one, largest)}
    done = [one for one in live if not {name for name, _ in one.outs} & kept.keys()]
    merged = {name: known[name] for name in known.keys() - constants.keys()}
    return done, {**merged, **kept}, aliases


def _computed(
    instructions: Sequence[Instruction], constants: Mapping[str, torch.Tensor], asked: Sequence[str]
) -> dict[str, torch.Tensor]:
    if not asked:
        return {}
    graph = _torch_lazy.bound_graph(
        write(list(constants), instructions, asked), dict(enumerate(constants.values()))
    )
    with torch.no_grad():
        returned = _torch_lazy.build_function(graph)()
    values = returned if isinstance(returned, tuple) else (returned,)
    return dict(zip(asked, values, strict=True))


def _is_worth_it(made: torch.Tensor, largest: int) -> bool:
    """Whether a constant takes little more memory than the largest of what it was made from."""
    return made.untyped_storage().nbytes() <= 2 * made.element_size() * max(largest, 1024)


def _without_batch_norms(
    instructions: Sequence[Instruction],
    constants: Mapping[str, torch.Tensor],
    results: Sequence[str],
) -> tuple[list[Instruction], dict[str, torch.Tensor], dict[str, str]]:
    known = dict(constants)
    numbers = {one.outs[0][0]: one for one in instructions if one.kind == "prim::Constant"}
    uses = Counter([name for one in instructions for name in one.ins] + list(results))
    done: list[Instruction] = []
    convolutions: dict[str, int] = {}  # the place of each among what is done, by its result
    aliases: dict[str, str] = {}
    for one in instructions:
        one = replace(one, ins=tuple(aliases.get(name, name) for name in one.ins))
        place = convolutions.get(one.ins[0]) if one.kind == "aten::native_batch_norm" else None
        merged = None
        if place is not None and uses[one.ins[0]] == 1:
            only_result = not any(uses[name] for name, _ in one.outs[1:])
            in_eval_mode = _value(numbers, one.ins[5]) == "0"
            if only_result and in_eval_mode:
                merged = _merged(done[place], one, known, numbers)
        if place is not None and merged is not None:
            before, name = done[place], one.outs[0][0]
            weight, bias = f"f{name}w", f"f{name}b"
            known[weight], known[bias] = merged
            done[place] = replace(before, ins=(before.ins[0], weight, bias, *before.ins[3:]))
            aliases[name] = before.outs[0][0]
            uses[aliases[name]] = uses[name]
            continue
        if one.kind == "aten::convolution" and _value(numbers, one.ins[6]) == "0":
            convolutions[one.outs[0][0]] = len(done)
        done.append(one)
    return done, known, aliases


def _value(numbers: Mapping[str, Instruction], name: str) -> str | None:
    one = numbers.get(name)
    return None if one is None else (one.attrs or "None").removeprefix("value=")


def _merged(
    convolution: Instruction,
    norm: Instruction,
    known: Mapping[str, torch.Tensor],
    numbers: Mapping[str, Instruction],
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Weight and bias of a convolution that normalizes as well; None if that cannot be."""
    weight = known.get(convolution.ins[1])
    epsilon = _value(numbers, norm.ins[7])
    if weight is None or weight.dtype not in _FLOATS or epsilon is None:
        return None
    channels = weight.shape[0]

    def given(name: str, otherwise: float) -> torch.Tensor | None:
        if _value(numbers, name) == "None":
            made = torch.full((channels,), otherwise, dtype=torch.float64)
            return made.to(weight.device)
        one = known.get(name)
        return None if one is None else one.double()

    bias = given(convolution.ins[2], 0.0)
    parts = [given(name, float(place == 0)) for place, name in enumerate(norm.ins[1:5])]
    scale, shift, mean, variance = parts
    if bias is None or scale is None or shift is None or mean is None or variance is None:
        return None
    factor = scale * (variance + float(epsilon)).rsqrt()
    wide = weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1))
    return wide.to(weight.dtype), ((bias - mean) * factor + shift).to(weight.dtype)
