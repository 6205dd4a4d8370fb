"""Hold a captured program against the contract before anybody gets it.

The program runs once on fake tensors: every result must have the shape, dtype and device that
eager's has. That catches what the backend gets wrong about types (``int * 0.5``) and any slip in
the wiring of inputs of different shapes.

It is also the function's first run, in which TorchScript prepares it for execution, recursing over
chains of operators. For a long program that happens on a thread with room for it, so that later
calls are safe on threads with a small stack.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from ._program import Program
from ._specs import TensorSpec
from ._torch_tracing import fake_mode
from .errors import CaptureError

_LONG = 300  # operators; what half a megabyte of stack can take, several times over
_ROOM = 64 * 2**20  # bytes of address space, not of memory
_T = TypeVar("_T")


def _run(program: Program, mode: Any, inputs: Sequence[torch.Tensor]) -> Any:
    with torch.inference_mode(False), torch.no_grad(), mode:
        return program.function(*inputs)


def _with_room(work: Callable[[], _T]) -> _T:
    """Do some work on a thread with a large stack, and pass on what it returns or raises.

    Callers hold the session's lock: the size of new stacks is a setting of the process.
    """
    done: Future[_T] = Future()

    def run() -> None:
        try:
            done.set_result(work())
        except BaseException as error:
            done.set_exception(error)

    before = threading.stack_size(_ROOM)
    try:
        thread = threading.Thread(target=run, name="lazyfx-ltc-check")
        thread.start()
    finally:
        threading.stack_size(before)
    thread.join()
    return done.result()


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
    mode = fake_mode()
    inputs: list[torch.Tensor] = []
    for number, constant in zip(program.inputs, program.constants, strict=True):
        with mode:
            if number is None:
                inputs.append(mode.from_tensor(constant))
            else:
                spec = sources[number]
                fake = torch.empty_strided(
                    spec.shape, spec.stride, dtype=spec.dtype, device=spec.device
                )
                inputs.append(fake if fake.dim() else fake.reshape(1))
    try:
        if sum(program.calls.values()) < _LONG:
            returned = _run(program, mode, inputs)
        else:
            returned = _with_room(lambda: _run(program, mode, inputs))
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
