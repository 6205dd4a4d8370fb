"""Which value the captured program gets at each of its inputs.

A lazy graph starts from *device data*: tensors that were moved to the lazy device, and constants
that the model or the backend made on the way. The backend lists them with a tensor id each. An id
that belongs to an argument is filled from the call; every other datum is a constant of the graph.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import GuardError


@dataclass(frozen=True, slots=True)
class GraphInputMatcher:
    """Assembles the inputs of a captured graph from the arguments of a call.

    Thread-safe: calling it changes nothing.

    Attributes:
        tensor_id_to_arg_idx: The position of the argument behind a tensor id.
        graph_input_tensor_ids: The tensor id of each graph input, in the graph's order.
        graph_input_ivalues: The value each graph input had at capture; kept for constants only,
            may be None where the input is an argument.
    """

    tensor_id_to_arg_idx: Mapping[int, int]
    graph_input_tensor_ids: Sequence[int]
    graph_input_ivalues: Sequence[Any]

    def __post_init__(self) -> None:
        ids, values = len(self.graph_input_tensor_ids), len(self.graph_input_ivalues)
        if ids != values:
            raise ValueError(
                f"graph_input_ivalues: expected {ids} values, one for each of"
                f" graph_input_tensor_ids, seen {values}"
            )

    def positions(self) -> tuple[int | None, ...]:
        """For each graph input the argument it comes from, or None for a constant."""
        return tuple(self.tensor_id_to_arg_idx.get(one) for one in self.graph_input_tensor_ids)

    def __call__(self, args: Sequence[Any]) -> list[Any]:
        """The graph's inputs for one call.

        Args:
            args: The call's arguments; more than the graph uses are allowed.

        Raises:
            GuardError: An argument the graph needs is missing.
        """
        inputs = []
        for position, constant in zip(self.positions(), self.graph_input_ivalues, strict=True):
            if position is None:
                inputs.append(constant)
            elif position < len(args):
                inputs.append(args[position])
            else:
                raise GuardError(
                    f"argument {position} is missing: expected at least {position + 1}"
                    f" arguments, seen {len(args)}; pass all arguments of the captured model"
                )
        return inputs
