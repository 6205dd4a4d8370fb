"""What a model asks of its tensors: sizes, strides, whether they are contiguous.

The lazy device knows sizes and types only: there every tensor is contiguous and begins at the start
of its memory. So the fake run notes each answer that is no tensor, in order, and the lazy run is
given the same answers. A run that asks something else is not the same run.

For the same reason what gives a view in one place gives a copy in the other: ``reshape`` of a
transposed matrix copies, and on the lazy device it does not. That matters where either is written
to. The fake run notes which results share memory with their operands, and the lazy run copies what
was a copy.
"""

from __future__ import annotations

import collections
import dis
import functools
import random
import sys
import sysconfig
import types
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ._rewrite import called_whole
from ._run import OURS, TORCH, Runner
from ._torch_tracing import (
    is_operator,
    questions_about_gradients,
    storage_key,
    tensors_in,
)
from .errors import CaptureError

_DEVICE: Any = torch.Tensor.device
_DEVICE = _DEVICE.__get__  # fake tensors have their own, which nobody notes
_MODES = (torch.is_grad_enabled, torch.is_inference_mode_enabled)
_WHERE = frozenset(
    {torch.Tensor.storage_offset, torch.Tensor.data_ptr, torch.Tensor.untyped_storage}
)
# What is another function by the time that the lazy run sees it, see _rewrite.py.
_RENAMED: dict[Any, Any] = {
    torch.Tensor.cpu: torch.Tensor.to,
    torch.Tensor.cuda: torch.Tensor.to,
}
_PARAMETERS = {"aten::linear": ("input", "weight", "bias"), "aten::matmul": ("input", "other")}


Sharing = Mapping[Any, Sequence[tuple[bool, ...] | None]]
"""For a function, call by call: which results share memory with operands; None: it is all one."""


class Asked(TorchFunctionMode):
    """Notes the answers.

    Args:
        runner: Says where the model is.
        sources: Storages whose place in memory depends on the call.
        device: The session's device type.
        dense: Takes which operands of products are contiguous, call by call.

    Attributes:
        answers: ``(function, answer)``, in order.
        looked_at: The memory of the tensors that were asked about.
        in_autocast: Whether the model switches autocast on or off itself.
    """

    def __init__(
        self,
        runner: Runner,
        sources: Iterable[int],
        device: str,
        dense: dict[str, list[tuple[bool, ...]]],
    ) -> None:
        super().__init__()
        self.in_autocast = False
        self._dense = dense
        self._device = device
        self._autocast = torch.is_autocast_enabled(device)
        self.answers: list[tuple[Any, Any]] = []
        self.looked_at: set[int] = set()
        self._results: list[tuple[Any, list[torch.Tensor], list[torch.Tensor]]] = []
        self._runner = runner
        self._sources = frozenset(sources)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        self.in_autocast |= torch.is_autocast_enabled(self._device) is not self._autocast
        if func in questions_about_gradients():
            raise CaptureError(
                f"{self._runner.where()} asks what a tensor records for gradients"
                f" ({getattr(func, '__self__', func)}), which differs from call to call"
            )
        if func in _WHERE and storage_key(args[0]) in self._sources:
            raise CaptureError(
                f"{self._runner.where()} asks where in memory an argument or model tensor is"
                f" ({func.__name__}), which differs from call to call; use clone() on it first"
            )
        if func is torch.nn.functional.multi_head_attention_forward:
            self._refuse_fast_path(kwargs or {})
        op = called_whole(func, args)
        if op in _PARAMETERS:  # of the others, the operators below are looked at
            named = kwargs or {}
            rest = [named.get(name) for name in _PARAMETERS[op][len(args) :]]
            operands = [one for one in (*args, *rest) if isinstance(one, torch.Tensor)]
            self._dense.setdefault(op, []).append(tuple(one.is_contiguous() for one in operands))
        result = func(*args, **(kwargs or {}))
        if func != _DEVICE and _is_answer(result):
            if is_operator(func) and not str(func).startswith(("aten.", "prim")):
                raise CaptureError(
                    f"{self._runner.where()} returns no tensor ({func}): what it returns for this"
                    " call would be baked in; return a tensor"
                )
            self.answers.append((func, result))
            self.looked_at.update(map(storage_key, tensors_in((args, kwargs))))
        elif found := tensors_in(result):
            self._results.append((func, found, tensors_in((args, kwargs))))
        return result

    def _refuse_fast_path(self, kwargs: Mapping[str, Any]) -> None:
        """Torch has a kernel for whole attention modules, which it does not call in here."""
        padded, training = kwargs.get("key_padding_mask") is not None, kwargs.get("training", True)
        if padded and not training and torch.backends.mha.get_fastpath_enabled():
            raise CaptureError(
                f"{self._runner.where()} attends with a key_padding_mask in eval mode: torch's"
                " fast path gives other values for what is padded than the operators that can be"
                " captured; torch.backends.mha.set_fastpath_enabled(False) makes eager call those"
            )

    def sharing(self, written: Container[int]) -> Sharing:
        """Which results share memory with operands, where some of that memory is written to.

        Args:
            written: The storages that the run wrote to.
        """
        calls: dict[Any, list[tuple[bool, ...] | None]] = {}
        for func, results, operands in self._results:
            memory = [storage_key(one) for one in (*results, *operands)]
            matters = any(one in written for one in memory)
            told = _shares(results, operands) if matters else None
            calls.setdefault(_RENAMED.get(func, func), []).append(told)
        return {func: tuple(told) for func, told in calls.items() if any(told)}


class Answered(TorchFunctionMode):
    """Gives the answers again, and has results share memory with operands as before."""

    def __init__(
        self,
        runner: Runner,
        answers: Iterable[tuple[Any, Any]],
        sharing: Sharing,
        device: torch.device,
    ) -> None:
        super().__init__()
        self._runner = runner
        self._sharing = sharing
        self._calls: collections.Counter[Any] = collections.Counter()
        self._device = device
        self._answers = list(answers)
        self._next = 0

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func == _DEVICE:
            return self._device
        if self._next < len(self._answers) and self._answers[self._next][0] == func:
            self._next += 1
            return self._answers[self._next - 1][1]
        result = func(*args, **(kwargs or {}))
        if _is_answer(result):
            raise self._not_the_same(func)
        if _RENAMED.get(func, func) in self._sharing and (found := tensors_in(result)):
            return self._as_before(func, result, found, tensors_in((args, kwargs)))
        return result

    def _as_before(
        self,
        func: Any,
        result: Any,
        found: Sequence[torch.Tensor],
        operands: Sequence[torch.Tensor],
    ) -> Any:
        known = _RENAMED.get(func, func)
        told, call = self._sharing[known], self._calls[known]
        self._calls[known] += 1
        if call >= len(told):
            raise self._not_the_same(func)
        before, now = told[call], _shares(found, operands)
        if before is None or before == now:
            return result
        if isinstance(result, torch.Tensor) and before == (False,):
            return result.clone()
        if before == (True,) and func is torch.Tensor.to:  # then it gave the tensor itself
            return operands[0]
        name = getattr(func, "__name__", func)
        raise CaptureError(
            f"{self._runner.where()} calls {name}, of which torch's lazy device does not know"
            " whether it gives views of its arguments, and the model writes to one of them; write"
            f" to a clone() of what {name} gives, or use the form that does not work in place"
        )

    def check(self) -> None:
        """Raise :class:`CaptureError` if something was not asked again."""
        if self._next < len(self._answers):
            raise self._not_the_same(self._answers[self._next][0])

    def _not_the_same(self, func: Any) -> CaptureError:
        return CaptureError(
            f"{self._runner.where()}: the model's python code does not do the same twice (it asked"
            f" {getattr(func, '__name__', func)} in one run and not in the other); a capture"
            " would hold for one of the two"
        )


_STDLIB = sysconfig.get_path("stdlib")
_HELPERS = frozenset({"sympy", "mpmath", "numpy"})
_CONTAINERS = (list, dict, set, collections.deque)


class Ran:
    """The python code that ran while a model was looked at, and what it may bind.

    Attributes:
        codes: The code; None if somebody else's profiler kept it from being seen.
        before: For each global that code may bind, the code, its dictionary, name and value before.
        held: Each container outside of code that it mentions, and what it held before.
    """

    def __init__(self) -> None:
        self.codes: set[types.CodeType] | None = set()
        self.before: list[tuple[types.CodeType, dict[str, Any], str, Any]] = []
        self.held: list[tuple[types.CodeType, Any, list[int]]] = []

    def note(self, frame: types.FrameType) -> None:
        """A call of a function, before it runs."""
        code = frame.f_code
        if self.codes is None or code in self.codes:
            return
        self.codes.add(code)
        for name in bound_globals(code):
            self.before.append((code, frame.f_globals, name, frame.f_globals.get(name, self)))
        outside = [frame.f_globals.get(name) for name in code.co_names]
        if code.co_freevars:
            outside += [frame.f_locals.get(name) for name in code.co_freevars]
        held: list[Any] = [one for one in outside if type(one) in _CONTAINERS]
        self.held += [(code, one, list(map(id, one))) for one in held]

    def changed(self, codes: Container[types.CodeType]) -> str | None:
        """What some of the code did to something outside of it, in words.

        Args:
            codes: The code that is the model's. Other code runs in between on the same thread, the
                garbage collector's callbacks for one.
        """
        for code, names, name, value in self.before:
            if code in codes and names.get(name, self) is not value:
                return f"binds the global {name!r}"
        for code, container, before in self.held:
            if code in codes and list(map(id, container)) != before:
                return f"changes a {type(container).__name__} outside of it"
        return None


RAN: ContextVar[Ran | None] = ContextVar("lazyfx_ltc_ran", default=None)
"""Where to note what runs, if anybody wants to know."""


@functools.lru_cache(maxsize=4096)
def _is_librarys(file: str) -> bool:
    """Whether code belongs to torch, to what torch computes sizes with, or to Python."""
    inner = file.startswith(_STDLIB) and "site-packages" not in file
    parts = file.replace("\\", "/").split("/")
    return inner or file.startswith((OURS, TORCH, "<frozen")) or not _HELPERS.isdisjoint(parts)


@functools.lru_cache(maxsize=4096)
def bound_globals(code: types.CodeType) -> tuple[str, ...]:
    """The globals that code may bind or delete."""
    stores = ("STORE_GLOBAL", "DELETE_GLOBAL")
    return tuple(one.argval for one in dis.get_instructions(code) if one.opname in stores)


class ModesAsked:
    """Notes whether code outside of torch asks for grad mode or inference mode.

    They are functions of C, which nobody can stand in for: Python's profiler sees the calls. If
    somebody else is using it, the answer is that all of them may have been asked. It takes as long
    as all the rest, so it is left alone where only torch's own code runs (``watching``).
    """

    def __init__(self, runner: Runner, *, watching: bool) -> None:
        self.asked: dict[str, str] = {}
        self._watching = watching
        self._ran = RAN.get()
        self._runner = runner
        self._mine = False

    def __enter__(self) -> ModesAsked:
        if not self._watching:
            return self
        if sys.getprofile() is None:
            self._mine = True
            sys.setprofile(self._note)
        else:
            self.asked.update((one.__name__, "the model") for one in _MODES)
            if self._ran is not None:
                self._ran.codes = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._mine:
            sys.setprofile(None)

    def _note(self, frame: types.FrameType, event: str, called: Any) -> None:
        if event == "call" and self._ran is not None:
            if not _is_librarys(frame.f_code.co_filename):
                self._ran.note(frame)
            return
        asks = event == "c_call" and called in _MODES
        if asks and not frame.f_code.co_filename.startswith((OURS, TORCH)):
            self.asked.setdefault(called.__name__, self._runner.where())
        if event == "c_call" and _is_random(getattr(called, "__self__", None)):
            # Before the call: nothing has moved.
            raise CaptureError(
                f"{self._runner.where()} uses a random generator in python code"
                f" ({called.__name__}): a replay would not; draw with torch's functions, and seed"
                " outside of the captured graph"
            )


def _is_random(owner: Any) -> bool:
    """Whether it is a generator that the process shares: torch's, Python's or NumPy's."""
    draws = [random.random, getattr(sys.modules.get("numpy.random"), "random", None)]
    shared = [getattr(draw, "__self__", None) for draw in draws]
    return isinstance(owner, torch.Generator) or any(
        owner is one for one in shared if one is not None
    )


def _shares(results: Sequence[torch.Tensor], operands: Sequence[torch.Tensor]) -> tuple[bool, ...]:
    """For each result whether it shares memory with an operand."""
    memory = {storage_key(one) for one in operands}
    return tuple(storage_key(one) in memory for one in results)


def _is_answer(value: Any) -> bool:
    """Whether a result is neither tensors nor nothing; what returns nothing does something."""
    if value is None or isinstance(value, torch.Tensor):
        return False
    return not tensors_in(value)
