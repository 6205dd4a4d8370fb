"""Hold a captured program against the contract before anybody gets it.

The program runs once on fake tensors: every result must have the shape, dtype and device that
eager's has. That catches what the backend gets wrong about types (``int * 0.5``) and any slip in
the wiring of inputs of different shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ._looks import fake_source, run_on_fakes
from ._program import Program
from ._specs import TensorSpec
from ._torch_tracing import fake_mode
from .errors import CaptureError


def check_program(
    program: Program, sources: Sequence[TensorSpec], expected: Sequence[tuple[str, TensorSpec]]
) -> None:
    """Compare shapes, dtypes and devices of a program's results with eager's.

    Args:
        program: The program.
        sources: What the sources look like, by number.
        expected: For each result, what it is in words, and what it must look like.

    Raises:
        CaptureError: A result would differ from eager, or the program does not run.
    """
    mode = fake_mode(with_real=True)  # the program's constants are real
    inputs = [fake_source(mode, sources[number]) for number in program.inputs]
    try:
        returned = run_on_fakes(program.function, mode, inputs, sum(program.calls.values()))
    except Exception as error:  # TorchScript raises whatever an operator raises
        raise CaptureError(
            f"the recorded graph does not run ({type(error).__name__}: {error}); please report it"
            " together with the torch version"
        ) from error
    results: Any = returned if isinstance(returned, tuple) else (returned,)
    for place, (who, spec) in zip(program.results, expected, strict=True):
        seen = TensorSpec.of(results[place])
        if (seen.shape, seen.dtype, seen.device) != (spec.shape, spec.dtype, spec.device):
            raise CaptureError(
                f"{who} would be {seen} from torch's lazy backend: expected {spec}, as in eager."
                " Write the type conversion out (x.to(dtype)) where python numbers or"
                " zero-dimensional tensors meet tensors of another type"
            )
