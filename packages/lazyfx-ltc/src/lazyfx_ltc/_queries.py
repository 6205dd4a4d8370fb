"""What a model asks of its tensors: sizes, strides, whether they are contiguous.

The lazy device knows sizes and types only: there every tensor is contiguous and begins at the start
of its memory. So the fake run notes each answer that is no tensor, in order, and the lazy run is
given the same answers. A run that asks something else is not the same run.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from ._run import OURS, TORCH, Runner
from ._torch_tracing import storage_key, tree_flatten
from .errors import CaptureError

_DEVICE: Any = torch.Tensor.device
_DEVICE = _DEVICE.__get__  # fake tensors have their own, which nobody notes
_MODES = (torch.is_grad_enabled, torch.is_inference_mode_enabled)
_WHERE = frozenset(
    {torch.Tensor.storage_offset, torch.Tensor.data_ptr, torch.Tensor.untyped_storage}
)


class Asked(TorchFunctionMode):
    """Notes the answers.

    Args:
        runner: Says where the model is.
        sources: Storages whose place in memory depends on the call.
    """

    def __init__(self, runner: Runner, sources: Iterable[int]) -> None:
        super().__init__()
        self.answers: list[tuple[Any, Any]] = []
        self._runner = runner
        self._sources = frozenset(sources)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        kinds: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in _WHERE and storage_key(args[0]) in self._sources:
            raise CaptureError(
                f"{self._runner.where()} asks where in memory an argument or model tensor is"
                f" ({func.__name__}), which differs from call to call; use clone() on it first"
            )
        result = func(*args, **(kwargs or {}))
        if func != _DEVICE and not _has_tensor(result):
            self.answers.append((func, result))
        return result


class Answered(TorchFunctionMode):
    """Gives the answers again."""

    def __init__(
        self, runner: Runner, answers: Iterable[tuple[Any, Any]], device: torch.device
    ) -> None:
        super().__init__()
        self._runner = runner
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
        if not _has_tensor(result):
            raise self._not_the_same(func)
        return result

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


class ModesAsked:
    """Notes whether code outside of torch asks for grad mode or inference mode.

    They are functions of C, which nobody can stand in for: Python's profiler sees the calls.
    """

    def __init__(self) -> None:
        self.asked: set[str] = set()
        self._before: Any = None

    def __enter__(self) -> ModesAsked:
        self._before = sys.getprofile()
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_: object) -> None:
        sys.setprofile(self._before)

    def _note(self, frame: types.FrameType, event: str, called: Any) -> None:
        asks = event == "c_call" and called in _MODES
        if asks and not frame.f_code.co_filename.startswith((OURS, TORCH)):
            self.asked.add(called.__name__)
        if self._before is not None:
            self._before(frame, event, called)


def _has_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor) or any(
        isinstance(leaf, torch.Tensor) for leaf in tree_flatten(value)[0]
    )
