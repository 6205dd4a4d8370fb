"""Learn what a call of the model does, without data: shapes, aliasing, writes, structure.

The model runs once on fake tensors. From that run comes the :class:`~._specs.Contract`, and with
it the refusals that need no lazy backend: values read on the host, sizes that depend on values,
tensors on another device, metadata changes of inputs, random draws whose memory order the
captured program could not repeat.

Each source gets a fake tensor with a storage of its own, also where two real ones share memory:
that way the answer does not depend on an accident of the example inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ._describe import describe
from ._run import AttributeWatch, Runner, stand_in, user_line
from ._specs import Contract, TensorSpec
from ._state import State
from ._torch_tracing import (
    TorchDispatchMode,
    data_dependent_errors,
    fake_mode,
    op_name,
    schema_arguments,
    schema_writes,
    storage_key,
    tree_flatten,
)
from .errors import CaptureError, HostReadError, LtcError

MAX_OPERATORS = 5000
"""Longest capture, in operators: bounds time, and the depth of what the backend recurses over."""

_HOST_READS = frozenset(
    {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::_linalg_check_errors"}
)
_BATCH_NORMS = frozenset(
    {"aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"}
)


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, torch.Tensor)]


def host_read(what: str, runner: Runner, error: BaseException | None = None) -> HostReadError:
    """The error for a value that is read while the model runs."""
    return HostReadError(
        f"{runner.where()} reads the value of a tensor ({what}{user_line(error)}): the value of"
        " this one run would be baked into the graph. Keep it a tensor (torch.where instead of if,"
        " no item/tolist/bool/float/numpy), or pass it in as an argument and extract per value"
    )


def draws(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call of an operator moves the random state."""
    if torch.Tag.nondeterministic_seeded not in func.tags:
        return False
    given = schema_arguments(func, args, kwargs)
    return given.get("dropout_p", 1.0) != 0 and given.get("train", True) is not False


class _Observer(TorchDispatchMode):
    """Watches the operators of the fake run."""

    def __init__(self, runner: Runner, device: str, sources: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.runner = runner
        self.device = device
        self.operators = 0
        self.written: set[int] = set()
        self.source_storages = {storage_key(tensor) for tensor in sources}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        keywords = dict(kwargs or {})
        self.operators += 1
        name = op_name(func)
        if self.operators > MAX_OPERATORS:
            raise CaptureError(
                f"{self.runner.where()} is beyond operator {MAX_OPERATORS} of the model: expected"
                f" at most {MAX_OPERATORS} operators in one graph; split the model and extract"
                " its parts"
            )
        if name.split(".")[0] in _HOST_READS:
            raise host_read(name, self.runner)
        self._refuse(func, name, args, keywords)
        for target in schema_writes(func, args, keywords):
            self.written.update(storage_key(tensor) for tensor in _tensors(target))
        result = func(*args, **keywords)
        drawing = draws(func, args, keywords)
        for tensor in _tensors(result):
            self._check_result(name, tensor, drawing)
        return result

    def _refuse(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        base = name.split(".")[0]
        if kwargs.get("generator") is not None:
            raise CaptureError(
                f"{self.runner.where()} draws from a torch.Generator of its own ({name}), which"
                " the captured program cannot; use the global random state"
            )
        if base in _BATCH_NORMS:
            given = schema_arguments(func, args, kwargs)
            if given.get("training") and given.get("running_mean") is not None:
                raise CaptureError(
                    f"{self.runner.where()} updates the running statistics of a batch"
                    " normalisation in train mode, which torch's lazy backend does not do; call"
                    " model.eval() before tracing, or use track_running_stats=False"
                )
        if base == "aten::as_strided":
            self._refuse_as_strided(args, kwargs)

    def _refuse_as_strided(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (base,) = _tensors(args[0])
        whole = base.untyped_storage().nbytes() == base.numel() * base.element_size()
        offset = args[3] if len(args) > 3 else kwargs.get("storage_offset")
        from_source = storage_key(base) in self.source_storages
        if not whole or not base.is_contiguous() or (from_source and offset):
            raise CaptureError(
                f"{self.runner.where()} uses as_strided on a tensor that is not the whole of its"
                " memory; the lazy backend does not know the memory behind a view. Use slicing,"
                " expand or transpose"
            )

    def _check_result(self, name: str, tensor: torch.Tensor, drawing: bool) -> None:
        if tensor.device.type != self.device:
            raise CaptureError(
                f"{self.runner.where()} makes a tensor on {tensor.device} ({name}{user_line()}):"
                f" expected {self.device}, the device of this process's lazy session. Move the"
                " model there, or leave the device out"
            )
        if tensor.layout is not torch.strided:
            raise CaptureError(
                f"{self.runner.where()} makes a tensor of layout {tensor.layout} ({name}):"
                " expected torch.strided only"
            )
        if drawing and not tensor.is_contiguous():
            raise CaptureError(
                f"{self.runner.where()} draws random numbers for a tensor that is not contiguous"
                f" ({name}): the captured program would draw them in another order than eager."
                " Call .contiguous() on the tensor first"
            )


def _fake_sources(mode: Any, specs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    fakes = []
    for real in specs:
        with mode:
            fake: torch.Tensor = torch.empty_strided(
                real.shape, real.stride(), dtype=real.dtype, device=real.device
            )
            if isinstance(real, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=real.requires_grad)
            else:
                fake.requires_grad_(real.requires_grad)
        fakes.append(fake)
    return fakes


def observe(
    model: fx.GraphModule, state: State, inputs: Sequence[torch.Tensor], device: str
) -> Contract:
    """Learn a model's contract for inputs like these.

    Args:
        model: The model; not changed, its data not read.
        state: Its tensors.
        inputs: The example inputs; only their metadata is used.
        device: The session's device type.

    Raises:
        CaptureError: The call does something a captured graph could not repeat.
        HostReadError: It reads a tensor's value.
    """
    own = [binding.read() for binding in state.tensors]
    mode = fake_mode()
    fakes = _fake_sources(mode, [*inputs, *own])
    before = [TensorSpec.of(fake) for fake in fakes]
    stand_ins = {id(real): fake for real, fake in zip(own, fakes[len(inputs) :], strict=True)}
    runner = stand_in(model, stand_ins)
    watch = AttributeWatch(runner.copied)
    observer = _Observer(runner, device, fakes)
    try:
        with torch.inference_mode(False), torch.no_grad(), mode, observer:
            result = runner.run(*fakes[: len(inputs)])
    except LtcError:
        raise
    except data_dependent_errors() as error:
        raise host_read(str(getattr(error, "func", error)), runner, error) from error
    except Exception as error:  # whatever the user's model raises
        raise CaptureError(
            f"{runner.where()} failed while the shapes of the model were worked out for these"
            f" inputs{user_line(error)}: {type(error).__name__}: {error}"
        ) from error
    watch.check()
    _refuse_metadata_changes(fakes, before, len(inputs), state)
    leaves, structure = tree_flatten(result)
    described, fresh, shared = describe(leaves, fakes)
    written = tuple(
        number for number, fake in enumerate(fakes) if storage_key(fake) in observer.written
    )
    return Contract(
        structure=structure,
        leaves=described,
        fresh=fresh,
        shared=shared,
        written=written,
        operators=observer.operators,
    )


def source_name(number: int, inputs: int, state: State) -> str:
    """A source in words."""
    if number < inputs:
        return f"argument {number}"
    return f"model tensor {state.tensors[number - inputs].name!r}"


def _refuse_metadata_changes(
    fakes: Sequence[torch.Tensor], before: Sequence[TensorSpec], inputs: int, state: State
) -> None:
    for number, (fake, spec) in enumerate(zip(fakes, before, strict=True)):
        if TensorSpec.of(fake) != spec:
            who = source_name(number, inputs, state)
            raise CaptureError(
                f"the model changes the shape or layout of {who} in place, from {spec} to"
                f" {TensorSpec.of(fake)}; a captured graph cannot do that to the caller's tensor."
                " Use the form that returns a view (t instead of t_, unsqueeze, reshape)"
            )
