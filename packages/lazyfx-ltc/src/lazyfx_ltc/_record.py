"""Run the model on lazy tensors, so that torch's lazy backend records its graph.

Nothing is computed: the lazy device only builds nodes. A dispatch mode sits directly above the
backend (below functionalization, so it sees functional operators only) and

* refuses what would leave the lazy device (a transfer, a value read, a hidden real tensor, an
  operator that can be no part of the program) *before* it happens,
* notes calls of operators without a lazy kernel, which the program makes itself (``_called.py``),
* lowers the few operators the backend does not survive (``_lower.py``), and makes constants of
  tables such as ``arange``,
* notes the random draws in the order in which eager makes them,
* keeps every intermediate tensor, and lets go of the youngest first: the backend frees a chain of
  nodes recursively, and a long one would overflow the stack.

Arguments and model tensors of zero dimensions enter as one-element tensors, since the backend
merges equal scalars into one datum; the model sees a zero-dimensional view.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from . import _torch_lazy
from ._aliases import Group
from ._called import Call, Calls, can_be_called, lazy_data
from ._contract import MAX_OPERATORS, draws, has_effects, host_read, only_looks
from ._fallback import calls_that_leave, is_composite, lowers, native_result
from ._lower import LOWERED_HERE, is_table
from ._queries import Answered
from ._rewrite import LazyDevices, force_lazy_device
from ._run import Runner, user_line
from ._specs import Contract, Fresh
from ._structure import flatten
from ._subject import Subject
from ._torch_tracing import TorchDispatchMode, op_name, tensors_in
from .errors import CaptureError, FallbackError, LtcError


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """What the backend recorded; owns no lazy tensor.

    The graph's outputs are, in this order: random draws, operands of calls, fresh outputs by slot,
    written sources.

    Attributes:
        text: The graph in TorchScript's notation.
        ir: The lazy IR, as text.
        hash: The hash torch's own extraction would look it up by.
        source_ids: The number of the source behind a tensor id.
        ids: Tensor id of each graph input.
        values: The constant at each graph input, None where the input is a source.
        draws: What moves the random state, in eager's order: the number of a draw among the
            graph's outputs, or ``~n`` for the n-th call.
        calls: Operators that the program calls between what the graph computes.
        operands: The number of tensors that they start from.
    """

    text: str
    ir: str
    hash: str
    source_ids: dict[int, int]
    ids: list[int]
    values: list[Any]
    draws: tuple[int, ...]
    calls: tuple[Call, ...]
    operands: int


def _wrapped(value: Any) -> Any:
    return _torch_lazy.wrapped(value) if isinstance(value, torch.Tensor) else value


class _Recorder(TorchDispatchMode):
    """Stands between the model and the backend."""

    def __init__(self, runner: Runner, device: str, contract: Contract) -> None:
        super().__init__()
        self.runner = runner
        self.device = device
        self.operators = 0
        self.draws: list[torch.Tensor | int] = []
        self.calls = Calls(device, contract.dense)
        self.kept: list[Any] = []
        self.missing: dict[str, str] = {}
        self.missing_at: list[str] = []
        self.must_not_miss = False
        self.stand_ins: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        name = op_name(func)
        self._check(name, args, keywords)
        result = self._result(func, name, args, keywords)
        tensors = tensors_in(result)
        if any(tensor.device.type != "lazy" for tensor in tensors):
            raise self._off_device(name, next(t for t in tensors if t.device.type != "lazy"))
        self.kept.append(tensors)
        if name == "aten::lift_fresh" or not tensors_in((args, keywords)):
            # Made under a dispatch mode: not yet what views and in-place operators expect.
            result = fx.node.map_aggregate(result, _wrapped)
        return result

    def _result(self, func: Any, name: str, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        """What an operator returns on the lazy device, by the first way that there is."""
        lowered = LOWERED_HERE.get(name)
        if lowered is not None:
            return lowered(*args, **keywords)
        if is_table(name, args, keywords) and not draws(func, args, keywords):
            return func(*args, **{**keywords, "device": self.device}).to("lazy")
        if name == "aten::lift_fresh" and args[0].dim() == 0:
            return self._constant(args[0])
        if not is_composite(name):
            result, trusted = native_result(lambda: func(*args, **keywords), name)
            if trusted:
                if draws(func, args, keywords):
                    self.draws.extend(tensors_in(result)[:1])
                return result
        in_parts = is_composite(name) and lowers(name)
        makes = not tensors_in((args, keywords)) and not draws(func, args, keywords)
        if in_parts and (only_looks(func, name) or makes):
            return self._in_parts(func, name, args, keywords)
        if can_be_called(func, args, keywords):
            return self._called(func, args, keywords)
        if in_parts:
            return self._in_parts(func, name, args, keywords)
        return self._stand_in_result(func, name, args, keywords)

    def _in_parts(
        self, func: Any, name: str, args: tuple[Any, ...], keywords: dict[str, Any]
    ) -> Any:
        call = functools.partial(func, *args, **keywords)
        result, left = calls_that_leave(call, name, self.device)
        for one in left:
            self._misses()
            self.missing.setdefault(one, f"{self.runner.where()}, inside {name}")
            self.must_not_miss = True  # what it computed is in the graph by now
        if draws(func, args, keywords):
            self.draws.extend(tensors_in(result)[:1])
        return result

    def _called(self, func: Any, args: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
        if has_effects(func, args, keywords):
            self.draws.append(~len(self.calls.made))
        return self.calls.add(func, args, keywords)

    def _check(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.operators += 1
        if self.operators > 2 * MAX_OPERATORS:
            raise CaptureError(
                f"{self.runner.where()} is beyond operator {2 * MAX_OPERATORS} on the lazy device:"
                " split the model and extract its parts"
            )
        if name == "aten::_local_scalar_dense":
            raise host_read(name, self.runner)
        for tensor in tensors_in((args, kwargs)):
            if tensor.device.type != "lazy":
                raise self._off_device(name, tensor)
        device = kwargs.get("device")
        if device is not None and torch.device(device).type != "lazy":
            raise CaptureError(
                f"{self.runner.where()} sends a tensor to {device} ({name}{user_line()}), where"
                " the captured graph cannot follow; leave the device out"
            )

    def _off_device(self, name: str, tensor: torch.Tensor) -> CaptureError:
        return CaptureError(
            f"{self.runner.where()} uses a tensor on {tensor.device} of shape"
            f" {list(tensor.shape)} ({name}{user_line()}): expected only arguments, and tensors"
            " that are attributes of the model or its submodules. Register it as a buffer, or"
            " pass it as an argument"
        )

    def _constant(self, tensor: torch.Tensor) -> torch.Tensor:
        """A scalar the model makes, kept apart from the scalars the backend itself makes."""
        _, values = _torch_lazy.device_data([tensor])
        if len(values) != 1:
            return tensor
        one = torch.as_tensor(values[0], dtype=tensor.dtype).reshape(1)
        apart: torch.Tensor = torch.ops.aten.view_copy.default(one.to("lazy"), [])
        return apart

    def _stand_in_result(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Go on with empty results: one error lists every missing operator, or nobody uses them."""
        self._misses()
        self.missing.setdefault(name, self.runner.where())
        schema = func._schema
        if has_effects(func, args, kwargs) or schema.is_mutable or not schema.returns:
            self.must_not_miss = True  # it does something, whether or not its results are used

        def to_meta(value: Any) -> Any:
            if isinstance(value, torch.Tensor):
                return torch.empty(value.shape, dtype=value.dtype, device="meta")
            return value

        def to_lazy(value: Any) -> Any:
            if not isinstance(value, torch.Tensor):
                return value
            made, one = lazy_data(value.shape, value.dtype, self.device)
            self.stand_ins.add(one)
            return made

        map_leaves = fx.node.map_aggregate
        try:
            meta_args, meta_kwargs = map_leaves(args, to_meta), map_leaves(kwargs, to_meta)
            return map_leaves(func(*meta_args, **meta_kwargs), to_lazy)
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise self.fallback() from error

    def _misses(self) -> None:
        if self.runner.node is not None:
            self.missing_at.append(self.runner.node.name)

    def fallback(self) -> FallbackError:
        """The error that lists what is missing so far."""
        error = FallbackError(list(self.missing), list(self.missing.values()))
        error.nodes = tuple(dict.fromkeys(self.missing_at))
        return error

    def release(self) -> None:
        """Free the recorded nodes, youngest first."""
        self.draws.clear()
        while self.calls.operands:
            self.calls.operands.pop()
        while self.kept:
            self.kept.pop()


def _lazy_sources(
    sources: Sequence[torch.Tensor], groups: Sequence[Group]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """For each source (the lazy tensor that holds the data, what the model sees of it)."""
    found = [_lazy_source(one) for one in sources]
    for real, (_, seen) in zip(sources, found, strict=True):
        if real.requires_grad and not seen.requires_grad:
            seen.requires_grad_()  # the model's python code may ask
    for group in groups:
        first = sources[group.members[0]]
        whole, seen = _lazy_source(torch.empty(group.numel, dtype=first.dtype, device=first.device))
        for number, offset in zip(group.members, group.offsets, strict=True):
            real = sources[number]
            view = seen.as_strided(real.shape, real.stride(), offset)
            if isinstance(real, nn.Parameter):
                view = nn.Parameter(view, requires_grad=real.requires_grad)
            found[number] = (found[number][0], view)
        found.append((whole, seen))
    return found


def _lazy_source(real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same for one that shares no memory. Its values are not read: any will do."""
    shape = real.shape or torch.Size([1])
    data = torch.empty(shape, dtype=real.dtype, device=real.device).to("lazy")
    seen = data if real.dim() else data.view(())
    if isinstance(real, nn.Parameter) and real.dim():
        seen = nn.Parameter(data, requires_grad=real.requires_grad)
    return data, seen


def record(subject: Subject, contract: Contract, groups: Sequence[Group] = ()) -> Recording:
    """Record a model on the lazy device.

    Args:
        subject: What is captured; nothing of it is changed, and no value of it is read.
        contract: What the call must turn out to be.
        groups: Sources that share memory, as they were observed.

    Raises:
        FallbackError: Operators have no lazy kernel.
        CaptureError: The call does not fit its contract, or leaves the lazy device.
    """
    with torch.inference_mode(False), torch.no_grad():
        try:
            sources = _lazy_sources(subject.sources, groups)
        except (RuntimeError, NotImplementedError) as error:
            raise CaptureError(
                f"torch's lazy backend does not take tensors like the arguments: {error}"
            ) from error
        source_ids = {_torch_lazy.tensor_id(data): n for n, (data, _) in enumerate(sources)}
        runner = subject.runner([seen for _, seen in sources])
        force_lazy_device(runner.copied)
        recorder = _Recorder(runner, subject.device, contract)
        try:
            with torch.set_grad_enabled(subject.grad):
                seen = [view for _, view in sources]
                answered = Answered(runner, contract.answers, contract.sharing, subject.place)
                result = _run(runner, recorder, answered, *subject.arguments(seen))
            if recorder.must_not_miss:
                raise recorder.fallback()
            outputs = _fresh_outputs(flatten(result)[0], contract)
            written = [sources[number][0] for number in contract.written]
            recording = _read(recorder, [*outputs, *written], source_ids)
            used = recorder.stand_ins.intersection(recording.ids)
            if used:
                raise recorder.fallback()
            return recording
        finally:
            recorder.release()
            runner.forget()  # stand-ins as large as the weights, within cycles of references


def _run(
    runner: Runner,
    recorder: _Recorder,
    answered: Answered,
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> Any:
    try:
        with LazyDevices(), recorder, answered:
            result = runner.call(args, kwargs)
        answered.check()
    except LtcError as error:
        runner.blame(error)
        raise
    except Exception as error:  # whatever the backend or the model raises
        if recorder.missing:
            raise recorder.fallback() from error
        raise runner.blamed(
            f"{runner.where()} failed on torch's lazy device{user_line(error)}:"
            f" {type(error).__name__}: {error}"
        ) from error
    return result


def _fresh_outputs(leaves: Sequence[Any], contract: Contract) -> list[torch.Tensor]:
    if len(leaves) != len(contract.leaves):
        raise CaptureError(
            f"the model returned {len(leaves)} values on the lazy device, and"
            f" {len(contract.leaves)} before: its python code does not do the same twice"
        )
    fresh: dict[int, torch.Tensor] = {}
    for position, (leaf, described) in enumerate(zip(leaves, contract.leaves, strict=True)):
        if isinstance(described, Fresh):
            if not isinstance(leaf, torch.Tensor) or leaf.device.type != "lazy":
                raise CaptureError(
                    f"output {position}: expected a tensor on the lazy device, seen"
                    f" {getattr(leaf, 'device', type(leaf).__name__)}; the model's python code"
                    " does not do the same twice"
                )
            fresh.setdefault(described.slot, leaf)
    return [fresh[slot] for slot in range(len(contract.fresh))]


def _read(
    recorder: _Recorder, results: list[torch.Tensor], source_ids: dict[int, int]
) -> Recording:
    calls = tuple(recorder.calls.made)
    draws = [one for one in recorder.draws if isinstance(one, torch.Tensor)]
    operands = recorder.calls.operands
    numbers = iter(range(len(draws)))
    order = tuple(one if isinstance(one, int) else next(numbers) for one in recorder.draws)
    shared: dict[str, Any] = {
        "source_ids": source_ids,
        "draws": order,
        "calls": calls,
        "operands": len(operands),
    }
    roots = [*draws, *operands, *results]
    if not results and not order:
        return Recording(text="", ir="", hash="", ids=[], values=[], **shared)
    roots = _torch_lazy.settled(roots)
    ids, values = _torch_lazy.device_data(roots)
    stand_ins = {one for call in calls for one in call.ids}
    return Recording(
        text=_torch_lazy.backend_text(roots),
        ir=_torch_lazy.ir_text(roots),
        hash=_torch_lazy.graph_hash(roots),
        ids=ids,
        values=[
            None if one in source_ids or one in stand_ins else value
            for one, value in zip(ids, values, strict=True)
        ],
        **shared,
    )
