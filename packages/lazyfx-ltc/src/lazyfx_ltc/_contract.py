"""Learn what a call of the model does, without data: shapes, aliasing, writes, structure.

The model runs once on fake tensors. From that run comes the :class:`~._specs.Contract`, and with
it the refusals that need no lazy backend: values read on the host, sizes that depend on values,
tensors on another device, metadata changes of inputs, random draws whose memory order the
captured program could not repeat.

Each source gets a fake tensor with a storage of its own, also where two real ones share memory:
that way the answer does not depend on an accident of the example inputs.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import fx, nn

from ._aliases import Group
from ._describe import describe
from ._queries import Asked, ModesAsked
from ._run import AttributeWatch, Runner, user_line
from ._specs import Contract, TensorSpec
from ._structure import Structure, flatten
from ._subject import Subject
from ._torch_guards import in_forward_mode
from ._torch_tracing import (
    TorchDispatchMode,
    data_dependent_errors,
    fake_mode,
    op_name,
    schema_arguments,
    schema_writes,
    storage_key,
    tensors_in,
    tree_flatten,
)
from .errors import CaptureError, HostReadError, LtcError

MAX_OPERATORS = 5000
"""Longest capture, in operators: bounds time, and the depth of what the backend recurses over."""

_HOST_READS = frozenset(
    {"aten::_local_scalar_dense", "aten::equal", "aten::is_nonzero", "aten::_linalg_check_errors"}
)
_NUMBERS = frozenset({bool, int, float, complex})
_BATCH_NORMS = frozenset(
    {"aten::native_batch_norm", "aten::cudnn_batch_norm", "aten::miopen_batch_norm"}
)


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


def has_effects(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether a call has its place among others and may not be left out.

    It draws; or it is nobody-knows-what: an operator of the user's own may draw, print or count.
    """
    name = str(func._schema.name)
    return draws(func, args, kwargs) or not name.startswith(("aten::", "prim::", "prims::"))


def only_looks(func: Any, name: str) -> bool:
    """Whether an operator gives a view of its argument, or takes no more than its shape."""
    views = any(one.alias_info is not None for one in func._schema.returns)
    base = name.partition("::")[2].partition(".")[0]
    if name.startswith("prim::"):
        return True
    return (views and not func._schema.is_mutable) or base.startswith("new_") or "_like" in base


class _Observer(TorchDispatchMode):
    """Watches the operators of the fake run."""

    def __init__(self, runner: Runner, device: str, sources: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.runner = runner
        self.device = device
        self.trace: list[str] = []
        self.dense: dict[str, list[tuple[bool, ...]]] = {}
        self.touched: set[int] = set()
        self.looked_at: set[int] = set()
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
        name = op_name(func)
        if in_forward_mode():
            raise CaptureError(
                f"{self.runner.where()} uses forward-mode differentiation ({name}{user_line()}): a"
                " captured graph computes values only"
            )
        numbers = [one for one in tree_flatten((args, keywords))[0] if type(one) in _NUMBERS]
        self.trace.append(f"{name} {numbers}" if numbers else name)
        if len(self.trace) > MAX_OPERATORS:
            raise CaptureError(
                f"{self.runner.where()} is beyond operator {MAX_OPERATORS} of the model: expected"
                f" at most {MAX_OPERATORS} operators in one graph; split the model and extract"
                " its parts"
            )
        if name.split(".")[0] in _HOST_READS:
            raise host_read(name, self.runner)
        self._refuse(func, name, args, keywords)
        operands = tensors_in((args, keywords))
        self.looked_at.update(map(storage_key, operands))
        self.dense.setdefault(name, []).append(tuple(one.is_contiguous() for one in operands))
        for target in schema_writes(func, args, keywords):
            self.written.update(storage_key(tensor) for tensor in tensors_in(target))
        if not only_looks(func, name):
            self.touched.update(storage_key(one) for one in tensors_in((args, keywords)))
        result = func(*args, **keywords)
        drawing = draws(func, args, keywords)
        for tensor in tensors_in(result):
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
            if given.get("training"):
                self._refuse_odd_batch_norm(given)
                # Written, though the operator's schema does not say so.
                statistics = tensors_in([given.get("running_mean"), given.get("running_var")])
                self.written.update(storage_key(one) for one in statistics)
                if not self.source_storages.issuperset(map(storage_key, statistics)):
                    raise CaptureError(
                        f"{self.runner.where()} updates statistics of a batch normalization that"
                        " are neither arguments nor tensors of the model (instance normalization"
                        " does, which keeps running statistics); use track_running_stats=False"
                    )
        if base.startswith("aten::_foreach_"):
            self._refuse_shared_lists(func, name, args, kwargs)
        if base == "aten::as_strided":
            self._refuse_as_strided(args, kwargs)

    def _refuse_odd_batch_norm(self, given: dict[str, Any]) -> None:
        names = ("input", "running_mean", "running_var")
        memory = [storage_key(one) for one in tensors_in([given.get(name) for name in names])]
        if len(set(memory)) < len(memory) or not given["input"].numel():
            raise CaptureError(
                f"{self.runner.where()} is a batch normalization of no elements, or its statistics"
                " share memory with each other or with its input: expected separate tensors, and"
                " something to normalize"
            )

    def _refuse_shared_lists(
        self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Eager goes through the lists one by one, and reads what it wrote before."""
        lists = schema_writes(func, args, kwargs)
        written = [storage_key(one) for one in tensors_in(lists)]
        every = [storage_key(one) for one in tensors_in((args, kwargs))]
        if any(every.count(one) > 1 for one in written):
            raise CaptureError(
                f"{self.runner.where()} writes to a list of tensors ({name}) of which some share"
                " memory with each other or with operands; use the operator for single tensors"
            )

    def _refuse_as_strided(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (base,) = tensors_in(args[0])
        whole = base.untyped_storage().nbytes() == base.numel() * base.element_size()
        offset = args[3] if len(args) > 3 else kwargs.get("storage_offset")
        from_source = storage_key(base) in self.source_storages
        if not whole or not base.is_contiguous() or (from_source and offset is not None):
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


_TakenApart = dict[str, tuple[list[Any], Structure]]


def _taken_apart(args: Sequence[Any], kwargs: Mapping[str, Any]) -> _TakenApart:
    named = {**{str(place): value for place, value in enumerate(args)}, **kwargs}
    return {name: flatten(value) for name, value in named.items()}


def _refuse_changed_containers(before: _TakenApart, after: _TakenApart) -> None:
    for name, (leaves, structure) in before.items():
        now, as_now = after[name]
        if structure != as_now or not all(map(operator.is_, leaves, now)):
            raise CaptureError(
                f"the model changes argument {name}, a container that it is given: a replay would"
                " not do that to the caller's; change a copy of it, and return that"
            )


def _refuse_changes_of_requires_grad(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_method" and node.target in ("requires_grad_", "detach_"):
            raise CaptureError(
                f"node {node.name!r} calls {node.target}: a replay records no gradients and does"
                " not change what the caller's tensors record; do it outside the model"
            )


def _fake_sources(mode: Any, subject: Subject, groups: Sequence[Group]) -> list[torch.Tensor]:
    """Fake sources. They require grad where they can, to see which views of them would not."""
    fakes = []
    sources = subject.sources
    for real in sources:
        may = not subject.python and (real.is_floating_point() or real.is_complex())
        requires_grad = real.requires_grad or (may and not subject.grad)
        with mode:
            fake: torch.Tensor = torch.empty_strided(
                real.shape, real.stride(), dtype=real.dtype, device=real.device
            )
            if isinstance(real, nn.Parameter):
                fake = nn.Parameter(fake, requires_grad=requires_grad)
            else:
                fake.requires_grad_(requires_grad)
        fakes.append(fake)
    for group in groups:
        first = sources[group.members[0]]
        with mode:
            whole = torch.empty(group.numel, dtype=first.dtype, device=first.device)
            for number, offset in zip(group.members, group.offsets, strict=True):
                own = fakes[number]
                view = whole.as_strided(own.shape, own.stride(), offset)
                is_parameter = isinstance(own, nn.Parameter)
                fakes[number] = (
                    nn.Parameter(view, requires_grad=own.requires_grad)
                    if is_parameter
                    else view.requires_grad_(own.requires_grad)
                )
        fakes.append(whole)
    return fakes


def observe(subject: Subject, groups: Sequence[Group] = ()) -> Contract:
    """Learn a model's contract for inputs like these.

    Args:
        subject: What is captured; nothing of it is changed, and of its tensors only metadata used.
        groups: Sources that share memory; each group's memory is one source more.

    Raises:
        CaptureError: The call does something a captured graph could not repeat.
        HostReadError: It reads a tensor's value.
    """
    mode = fake_mode()
    _refuse_changes_of_requires_grad(subject.graph)
    fakes = _fake_sources(mode, subject, groups)
    before = [(TensorSpec.of(fake), storage_key(fake)) for fake in fakes]
    runner = subject.runner(fakes)
    watch = AttributeWatch(runner.copied)
    observer = _Observer(runner, subject.device, fakes)
    asked = Asked(runner, observer.source_storages, subject.device, observer.dense)
    modes = ModesAsked(runner, watching=subject.python)
    args, kwargs = subject.arguments(fakes)
    given = _taken_apart(args, kwargs)
    try:
        # In this order: leaving inference mode switches grad mode on.
        with (
            torch.inference_mode(False),
            torch.set_grad_enabled(subject.grad),
            mode,
            observer,
            asked,
            modes,
        ):
            result = runner.call(args, kwargs)
    except LtcError as error:
        runner.blame(error)
        raise
    except data_dependent_errors() as error:
        refused = host_read(str(getattr(error, "func", error)), runner, error)
        runner.blame(refused)
        raise refused from error
    except Exception as error:  # whatever the user's model raises
        raise runner.blamed(
            f"{runner.where()} failed while the shapes of the model were worked out for these"
            f" inputs{user_line(error)}: {type(error).__name__}: {error}"
        ) from error
    watch.check()
    _refuse_changed_containers(given, _taken_apart(args, kwargs))
    _refuse_metadata_changes(fakes, before, subject.names)
    leaves, structure = flatten(result)
    described, fresh, shared = describe(leaves, fakes)
    covered = {number for group in groups for number in group.members}
    written = tuple(
        number
        for number, fake in enumerate(fakes)
        if storage_key(fake) in observer.written and number not in covered
    )
    return Contract(
        structure=structure,
        leaves=described,
        same=_first_of_each(leaves),
        fresh=fresh,
        shared=shared,
        written=written,
        trace=tuple(observer.trace),
        dense=observer.dense,
        answers=tuple(asked.answers),
        sharing=asked.sharing(observer.written),
        modes_asked=modes.asked,
        in_autocast=asked.in_autocast,
        touched=tuple(
            number for number, fake in enumerate(fakes) if storage_key(fake) in observer.touched
        ),
        looked_at=tuple(
            number
            for number, fake in enumerate(fakes)
            if storage_key(fake) in observer.looked_at | asked.looked_at
        ),
    )


def _first_of_each(leaves: Sequence[Any]) -> tuple[int, ...]:
    """For each leaf the place of the first that is the same object; only tensors count."""
    first: dict[int, int] = {}
    return tuple(
        first.setdefault(id(one), place) if isinstance(one, torch.Tensor) else place
        for place, one in enumerate(leaves)
    )


def _refuse_metadata_changes(
    fakes: Sequence[torch.Tensor], before: Sequence[tuple[TensorSpec, int]], names: Sequence[str]
) -> None:
    for who, fake, (spec, storage) in zip(names, fakes, before, strict=False):
        if storage_key(fake) != storage:
            raise CaptureError(
                f"the model puts other memory under {who} (set_, or an assignment to .data): a"
                " replay cannot do that to the caller's tensor; copy into it (copy_) instead"
            )
        if TensorSpec.of(fake) != spec:
            raise CaptureError(
                f"the model changes the shape or layout of {who} in place, from {spec} to"
                f" {TensorSpec.of(fake)}; a captured graph cannot do that to the caller's tensor."
                " Use the form that returns a view (t instead of t_, unsqueeze, reshape)"
            )
