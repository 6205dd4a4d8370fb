"""The ways to run a program, of which the fastest is kept.

TorchScript's interpreter runs every program, lets other threads of python run meanwhile, and may be
entered many times at once. For small tensors it is not the fastest: Static Runtime, which calls
kernels without torch's dispatcher, takes about half of the time, and plain python is quicker still
for up to three operators. So the first calls that look alike run the program each way. A way that
returns other values than the interpreter (but for last bits, since kernels may be given operands at
other places in memory), other strides, or memory that is shared otherwise, is left out for good; of
the others, the quickest is used from then on.

Only programs of torch's own operators are tried, without random draws, on the CPU: running them
twice shows nowhere. Those that take long are left to the interpreter, since Static Runtime holds
the GIL, and gains nothing there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from . import _torch_lazy
from ._direct import direct
from ._lean import lean
from ._text import Instruction, number, parse_written, write

_ROUNDS = 5
_ROUND = 1e-3  # seconds that a round of one way may take, unless a single run takes longer
_REPEATS = 20
_LAST_BITS = 8  # of the largest number; where operands lie in memory makes as much of a difference
_LONG = 2e-3  # seconds; the GIL is not held for longer
_GAIN = 0.97  # of the interpreter's time, to be worth it
_LOGGER = logging.getLogger("lazyfx_ltc")


class Runners:
    """Thread-safe: who comes while a way is tried, or in use, takes the interpreter.

    Attributes:
        run: Runs the program in the best way that is known so far. Takes and returns what the
            interpreter's function does.
        way: Its name: ``"interpreter"``, ``"lean interpreter"``, ``"python"`` or
            ``"static runtime"``.
    """

    __slots__ = ("_constants", "_last", "_lock", "_plain", "_text", "_times", "_ways", "run", "way")

    def __init__(
        self,
        plain: Callable[..., Any],
        text: str,
        constants: Mapping[int, torch.Tensor],
        *,
        tried: bool,
    ) -> None:
        self._plain = plain
        self._text = text
        self._constants = constants
        self._lock = threading.Lock()
        self._ways: dict[str, Callable[..., Any]] | None = None
        self._times: dict[str, list[float]] = {"interpreter": []}
        self._last: dict[str, Any] = {}
        self.run: Callable[..., Any] = self._tried if tried else plain
        self.way = "interpreter"

    def _tried(self, *inputs: torch.Tensor) -> Any:
        """Run the program each way, hold the results against each other, return the first."""
        if not self._lock.acquire(blocking=False):
            return self._plain(*inputs)
        try:
            expected, seconds = _timed(self._plain, inputs)
            if self._ways is None:
                self._ways = {} if seconds > 10 * _LONG else self._built(inputs)
            self._times["interpreter"].append(seconds)
            for name, way in list(self._ways.items()):
                if (reason := self._why_not(name, way, inputs, expected)) is not None:
                    _LOGGER.debug("%s is not used for a program: %s", name, reason)
                    del self._ways[name]
            if len(self._times["interpreter"]) == _ROUNDS or not self._ways:
                self._decide()
            return expected
        finally:
            self._lock.release()

    def _built(self, inputs: Sequence[torch.Tensor]) -> dict[str, Callable[..., Any]]:
        """The other ways, leaner by what a run on these inputs shows."""
        text, constants = lean(self._text, self._constants, inputs), self._constants
        ways: dict[str, Callable[..., Any]] = {}
        if text != self._text:
            graph = _torch_lazy.bound_graph(text, constants)
            ways["lean interpreter"] = _torch_lazy.build_function(graph)
        python = direct(text, constants)
        if python is not None:
            ways["python"] = python
        if not _stacks_one(text):
            static = _static(_with_signed_zeros(text), constants, self._plain)
            if static is not None:
                ways["static runtime"] = static
        return ways

    def _why_not(
        self,
        name: str,
        way: Callable[..., Any],
        inputs: Sequence[torch.Tensor],
        expected: Any,
    ) -> str | None:
        try:
            seen, seconds = _timed(way, inputs)
            agrees = _same(_listed(expected), _listed(seen))
        except Exception as error:  # whatever a kernel raises where the interpreter's does not
            return f"{type(error).__name__}: {error}"
        if not agrees:
            return "other results"
        last, self._last[name] = self._last.get(name), seen
        if _sharing(inputs, expected) != _sharing(inputs, seen):
            return "results that share memory"
        if last is not None and _storages(_listed(last)) & _storages(_listed(seen)):
            return "results that share memory with those of the call before"
        self._times.setdefault(name, []).append(seconds)
        return None

    def _decide(self) -> None:
        best = {name: min(times) for name, times in self._times.items()}
        limit = best["interpreter"] * _GAIN
        ways = self._ways or {}
        good = {
            name: way
            for name, way in ways.items()
            if best[name] < limit and (name != "static runtime" or best[name] < _LONG)
        }
        self.way = min(good, key=best.__getitem__, default="interpreter")
        self.run = self._or_plain(good[self.way]) if good else self._plain
        self._ways, self._last = {}, {}
        _LOGGER.debug("a program runs by %s; tried: %s", self.way, best)

    def _or_plain(self, way: Callable[..., Any]) -> Callable[..., Any]:
        """A way that leaves all that fails to the interpreter, for good."""
        plain = self._plain

        def run(*inputs: torch.Tensor) -> Any:
            try:
                return way(*inputs)
            except Exception:  # an index that is out of range, say
                self.run, self.way = plain, "interpreter"
                return plain(*inputs)

        return run


def _stacks_one(text: str) -> bool:
    """Whether a program stacks a single tensor.

    Static Runtime's kernel takes it to be contiguous, and writes past the end of the result.
    """
    _, instructions, _ = parse_written(text)
    single = {
        one.outs[0][0]
        for one in instructions
        if one.kind == "prim::ListConstruct" and len(one.ins) == 1
    }
    return any(one.kind == "aten::stack" and one.ins[0] in single for one in instructions)


def _with_signed_zeros(text: str) -> str:
    """Without ``relu``, which Static Runtime has a kernel of its own for: of -0.0 it makes 0.0."""
    names, instructions, outputs = parse_written(text)
    if not any(one.kind == "aten::relu" for one in instructions):
        return text
    done: list[Instruction] = []
    for one in instructions:
        if one.kind == "aten::relu":
            zero = f"z{one.outs[0][0]}"
            done += number(zero, 0)
            one = replace(one, kind="aten::clamp_min", ins=(*one.ins, zero))
        done.append(one)
    return write(names, done, outputs)


def _static(
    text: str, constants: Mapping[int, torch.Tensor], plain: Callable[..., Any]
) -> Callable[..., Any] | None:
    """A program on torch's Static Runtime; None if that does not take it."""
    try:
        function = _torch_lazy.build_static(_torch_lazy.bound_graph(text, constants))
    except RuntimeError:
        return None
    if function is None:
        return None
    free = threading.Lock()
    blanks: dict[torch.dtype, torch.Tensor] = {}

    def ordinary(made: torch.Tensor) -> torch.Tensor:
        """The same memory as a tensor that was not made in inference mode."""
        blank = blanks.get(made.dtype)
        if blank is None:
            blank = blanks[made.dtype] = torch.empty(0, dtype=made.dtype)
        same: torch.Tensor = blank.data.set_(made)  # type: ignore[call-overload]
        return same

    def run(*inputs: torch.Tensor) -> Any:
        if not free.acquire(False):
            return plain(*inputs)
        try:
            returned = function(*inputs)
        finally:
            free.release()
        if torch.is_inference_mode_enabled():
            return returned
        if type(returned) is tuple:
            return tuple([ordinary(one) for one in returned])
        return ordinary(returned)

    return run


def _timed(function: Callable[..., Any], inputs: Sequence[torch.Tensor]) -> tuple[Any, float]:
    """What it returns, and the seconds of its shortest run; what is over soon runs repeatedly."""
    spent = 0.0
    times: list[float] = []
    while not times or (spent < _ROUND and len(times) < _REPEATS):
        start = time.perf_counter()
        result = function(*inputs)
        times.append(time.perf_counter() - start)
        spent += times[-1]
    return result, min(times)


def _listed(returned: Any) -> Sequence[torch.Tensor]:
    return returned if isinstance(returned, tuple) else (returned,)


def _same(expected: Sequence[torch.Tensor], seen: Sequence[torch.Tensor]) -> bool:
    return len(expected) == len(seen) and all(
        a.shape == b.shape
        and a.stride() == b.stride()
        and a.dtype is b.dtype
        and a.is_inference() == b.is_inference()
        and _equal(a, b)
        for a, b in zip(expected, seen, strict=True)
    )


def _equal(expected: torch.Tensor, seen: torch.Tensor) -> bool:
    """Whether values are equal, but for the last bits of floating-point numbers."""
    if not expected.numel():
        return True
    if expected.is_complex():
        pairs = (torch.view_as_real(one.resolve_conj().resolve_neg()) for one in (expected, seen))
        return _equal(*pairs)
    if not expected.is_floating_point():
        return torch.equal(expected, seen)
    if not torch.equal(*(one.signbit() & (one == 0) for one in (expected, seen))):
        return False  # 1 / x tells -0.0 from 0.0
    finite = expected.isfinite()
    if not torch.equal(finite, seen.isfinite()):
        return False
    if not torch.equal(expected[~finite].nan_to_num(), seen[~finite].nan_to_num()):
        return False
    expected, seen = expected[finite], seen[finite]
    largest = float(expected.abs().amax()) if expected.numel() else 0.0
    close = _LAST_BITS * torch.finfo(expected.dtype).eps * largest
    return bool(((expected - seen).abs() <= close).all())


def _storages(tensors: Sequence[torch.Tensor]) -> set[int]:
    return {one.untyped_storage().data_ptr() for one in tensors} - {0}


def _sharing(inputs: Sequence[torch.Tensor], returned: Any) -> list[int]:
    """For each result, the first among inputs and results with the same memory."""
    addresses = [one.untyped_storage().data_ptr() for one in (*inputs, *_listed(returned))]
    return [addresses.index(one) for one in addresses[len(inputs) :]]
