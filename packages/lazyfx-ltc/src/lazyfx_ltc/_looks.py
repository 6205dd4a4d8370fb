"""A program on fake tensors: what each value of it looks like, without computing anything."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

import torch

from . import _torch_lazy
from ._specs import TensorSpec
from ._text import Instruction, write
from ._torch_tracing import fake_mode

_LONG = 300  # operators; what half a megabyte of stack can take, several times over
_ROOM = 64 * 2**20  # bytes of address space, not of memory
_T = TypeVar("_T")


def run_on_fakes(
    function: Callable[..., Any], mode: Any, inputs: Sequence[Any], operators: int
) -> Any:
    """What a program returns for fake tensors.

    The first run of a function is the one in which TorchScript prepares it for execution, recursing
    over chains of operators. For a long program that happens on a thread with room for it, so that
    later calls are safe on threads with a small stack.
    """

    def run() -> Any:
        with torch.inference_mode(False), torch.no_grad(), mode:
            return function(*inputs)

    return run() if operators < _LONG else _with_room(run)


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


def fake_source(mode: Any, spec: TensorSpec) -> torch.Tensor:
    """A fake tensor for a source, as the program gets it: one element if it has no dimensions."""
    with mode:
        fake = torch.empty_strided(spec.shape, spec.stride, dtype=spec.dtype, device=spec.device)
        return fake if fake.dim() else fake.reshape(1)


def looks(
    instructions: Sequence[Instruction],
    wanted: Iterable[str],
    sources: dict[str, TensorSpec],
    constants: dict[str, torch.Tensor],
) -> dict[str, TensorSpec]:
    """What tensors of a program look like.

    Args:
        instructions: The program.
        wanted: The tensors, and perhaps names of other values.
        sources: What its inputs look like.
        constants: Those of its inputs that are constants.

    Raises:
        RuntimeError: The program does not run.
    """
    names = [*sources, *constants]
    made = [name for one in instructions for name, kind in one.outs if kind == "Tensor"]
    asked = set(wanted)
    made = [name for name in made if name in asked]
    if not made:
        return dict(sources)
    bound = {len(sources) + place: one for place, one in enumerate(constants.values())}
    graph = _torch_lazy.bound_graph(write(names, instructions, made), bound)
    function = _torch_lazy.build_function(graph)
    mode = fake_mode(with_real=True)  # the constants
    inputs = [fake_source(mode, spec) for spec in sources.values()]
    returned = run_on_fakes(function, mode, inputs, len(instructions))
    results = returned if isinstance(returned, tuple) else (returned,)
    found = dict(sources)
    for name, value in zip(made, results, strict=True):
        if isinstance(value, torch.Tensor):
            found[name] = TensorSpec.of(value)
    return found
