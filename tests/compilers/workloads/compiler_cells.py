"""What a compiler must be able to do, as data: functions and modules, inputs, surroundings.

A cell is run twice, each time with other values, a dynamic one with other shapes too, and
everything that a training step does is held against eager. Sixteen cells count for
``aot_function`` and ``aot_module``, fifteen of them for ``torch.compile``: four workloads, each
static, dynamic and under bfloat16 autocast, and arguments, outputs, mutation and no_grad. The
others are what went wrong once, or looked as if it could.

Nothing here knows of pytest: a benchmark counts with the same cells.
"""

from __future__ import annotations

import contextlib
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

from lazyfx_core import use_lazy_graph_module

Inputs = Callable[[torch.device], tuple[Any, ...]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """Something to compile, and how it is called.

    Attributes:
        name: Says what is special about it.
        make: Makes the function, or a module on the CPU; every call makes the same one.
        inputs: Makes the positional arguments of a call on a device.
        later_inputs: Those of the second call, where its shapes differ: then the cell is dynamic.
        keywords: The names under which the last inputs are passed.
        around: The context that calls are made in; the backward runs outside.
        tolerance: For outputs, gradients, inputs and buffers: relative to each number, and to the
            largest of a tensor (or 1).
        why: The reason for another tolerance than rounding in another order makes.
        counts_for_aot: One of the sixteen.
        counts_for_compile: One of the fifteen.
    """

    name: str
    make: Callable[[], Callable[..., Any]]
    inputs: Inputs
    later_inputs: Inputs | None = None
    keywords: tuple[str, ...] = ()
    around: Callable[[torch.device], contextlib.AbstractContextManager[Any]] = lambda device: (
        contextlib.nullcontext()
    )
    tolerance: float = 1e-4
    why: str = ""
    counts_for_aot: bool = False
    counts_for_compile: bool = False

    @property
    def dynamic(self) -> bool:
        """Whether one graph must do for several shapes."""
        return self.later_inputs is not None

    def subject(self, device: torch.device) -> Callable[..., Any]:
        """The function, or the module on ``device``; the same at every call."""
        torch.manual_seed(2)
        made = self.make()
        return made.to(device) if isinstance(made, nn.Module) else made


# --- running a cell ----------------------------------------------------------------------------

EXACT = (
    *("structure", "kinds", "strides", "requires grad", "shared memory"),
    *("unused gradients", "random numbers"),
)
CLOSE = ("outputs", "gradients", "inputs", "buffers")


def step(
    cell: Cell,
    function: Callable[..., Any],
    owner: Callable[..., Any],
    device: torch.device,
    call: int,
) -> dict[str, Any]:
    """Everything that a forward and a backward give and change.

    Args:
        cell: What is run.
        function: The cell's subject, or what a compiler made of it.
        owner: The subject that ``function`` was made of; if a module, it is changed as it runs.
        device: Where the inputs are made.
        call: 0 or 1; the same number makes the same inputs and random numbers.
    """
    torch.manual_seed(call)
    make = cell.later_inputs if call and cell.later_inputs is not None else cell.inputs
    arguments = make(device)
    torch.manual_seed(10 + call)
    split = len(arguments) - len(cell.keywords)
    with cell.around(device):
        result = function(
            *arguments[:split], **dict(zip(cell.keywords, arguments[split:], strict=True))
        )
    drawn_forward = torch.rand(1, device=device)
    leaves, structure = pytree.tree_flatten(result)
    given = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, torch.Tensor)]
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    module = owner if isinstance(owner, nn.Module) else nn.Module()
    wanted = [t for t in (*given, *module.parameters()) if t.requires_grad and t.is_leaf]
    ends = [t.float().square().sum() for t in tensors if t.requires_grad]
    gradients: tuple[torch.Tensor | None, ...] = ()
    if ends and wanted:
        gradients = torch.autograd.grad(sum(ends), wanted, allow_unused=True)
    seen = {
        "structure": structure,
        "kinds": [type(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves],
        "strides": [t.stride() for t in (*tensors, *given)],
        "requires grad": [t.requires_grad for t in tensors],
        "shared memory": _shared_memory([*given, *tensors]),
        "unused gradients": [each is None for each in gradients],
        "random numbers": (drawn_forward.item(), torch.rand(1, device=device).item()),
        "outputs": [t.detach().clone() for t in tensors],
        "gradients": [each.clone() for each in gradients if each is not None],
        "inputs": [t.detach().clone() for t in given],
        "buffers": [t.clone() for t in module.buffers()],
    }
    _use_up(tensors, given)
    return seen


def _shared_memory(tensors: list[torch.Tensor]) -> list[int]:
    first: dict[int, int] = {}
    addresses = [t.untyped_storage().data_ptr() or -1 - i for i, t in enumerate(tensors)]
    return [first.setdefault(address, i) for i, address in enumerate(addresses)]


def _use_up(results: list[torch.Tensor], given: list[torch.Tensor]) -> None:
    """Write to the results, as their owner may: the next call must not notice."""
    kept = {t.untyped_storage().data_ptr() for t in given}
    for result in results:
        if result.untyped_storage().data_ptr() not in kept:
            result.detach().zero_()


def differences(
    seen: dict[str, Any], expected: dict[str, Any], tolerance: float, what: tuple[str, ...]
) -> list[str]:
    """What differs from eager, in words; nothing if all agrees.

    Args:
        seen: From :func:`step`.
        expected: From :func:`step` too, run eagerly.
        tolerance: The cell's.
        what: Names among :data:`EXACT` and :data:`CLOSE`.
    """
    found = []
    for name in what:
        if name in EXACT:
            if seen[name] != expected[name]:
                found.append(f"{name}: {seen[name]}, in eager {expected[name]}")
            continue
        if len(seen[name]) != len(expected[name]):
            found.append(f"{name}: {len(seen[name])} tensors, in eager {len(expected[name])}")
            continue
        for place, (mine, theirs) in enumerate(zip(seen[name], expected[name], strict=True)):
            allowed = tolerance * max(1.0, _largest(theirs))
            try:
                torch.testing.assert_close(mine, theirs, atol=allowed, rtol=tolerance)
            except AssertionError as error:
                found.append(f"{name}, number {place}: {error}")
    return found


def _largest(tensor: torch.Tensor) -> float:
    if tensor.numel() == 0 or not tensor.dtype.is_floating_point:
        return 1.0
    return tensor.nan_to_num(posinf=0.0, neginf=0.0).abs().max().item()


# --- the four workloads ------------------------------------------------------------------------


def pointwise(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.gelu(x * y.sigmoid() + 0.5, approximate="tanh") * y.cos()


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 4), nn.Softplus())


class ConvolutionAndBatchNorm(nn.Module):
    """In train mode: updates running statistics and counts its batches."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(F.relu(self.norm(self.convolution(x))).mean((2, 3)))


class TransformerBlock(nn.Module):
    """Layer norms, attention, dropout twice, residuals."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = mixed.transpose(1, 2).reshape(batch, length, width)
        x = x + F.dropout(self.out(mixed), 0.1, self.training)
        return x + F.dropout(self.down(F.gelu(self.up(self.norms[1](x)))), 0.1, self.training)


# --- the other counted cells -------------------------------------------------------------------


def with_int_and_text(x: torch.Tensor, n: int, reduction: str) -> torch.Tensor:
    wanted = torch.arange(x.shape[0], device=x.device) % x.shape[1]
    return F.cross_entropy(x * n, wanted, reduction=reduction)


class SeveralOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        hidden = self.linear(x)
        return {"hidden": hidden, "several": (hidden.sin(), None, [x.detach() * 2, x.mean()])}


class Accumulator(nn.Module):
    """Writes to its argument and to its buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        total.add_(x.detach())
        return total * x * self.weight


# --- the further ones --------------------------------------------------------------------------


def masked_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    mask = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).triu(1)
    weights = scores.masked_fill(mask, float("-inf")).softmax(-1)
    return F.dropout(weights, 0.2) @ v


def autocast_inside(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    with torch.autocast(x.device.type, torch.bfloat16):
        return F.gelu(x @ weight)


def functional_batch_norm(
    x: torch.Tensor, weight: torch.Tensor, mean: torch.Tensor, variance: torch.Tensor
) -> torch.Tensor:
    return F.batch_norm(F.conv2d(x, weight), mean, variance, training=True).relu()


def chosen_by_arguments(
    x: torch.Tensor, twice: bool, scale: float, bias: torch.Tensor | None, n: int
) -> torch.Tensor:
    x = x * 2 if twice else x
    x = x * scale if bias is None else x + bias
    return x.sum(-1) / n + x.repeat(n, 1).sum()


def through_a_view(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    total.view(-1)[:2].mul_(3)
    return x * total


def transposed_in_place(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    total.t_()
    return x @ total


def copied_before_written(x: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    product = x @ total.t().clone()
    total.add_(1)
    return product


def counted(x: torch.Tensor, n: int) -> torch.Tensor:
    return x.sin().sum(0) * n + x.shape[0]


Pair = namedtuple("Pair", ["first", "second"])  # as results of torch are


def random_numbers(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    noise = torch.rand_like(x)
    return F.dropout(x * noise, 0.5), torch.bernoulli(noise)


def branches(x: torch.Tensor) -> torch.Tensor:
    """A condition that stays in the graph, with a graph for each branch."""
    return torch.cond(x.sum() > 0, lambda h: h.sin(), lambda h: h.cos(), (x,)) * 2


class Checkpointed(nn.Module):
    """Computed again in the backward, dropout included."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def _inner(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.linear(x).sin(), 0.3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(self._inner, x, use_reentrant=False) + x


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(self.embedding(tokens)).log_softmax(-1)


class Nested(nn.Module):
    """Submodules that are leaves to fx, two deep, a buffer and a parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.2))
        self.head = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.rand(2))
        self.register_buffer("shift", torch.rand(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x)) * self.scale + self.shift


def lazily_traced() -> nn.Module:
    with use_lazy_graph_module(True):
        return torch.fx.symbolic_trace(Nested())


def aten_graph() -> nn.Module:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, _ = x.max(0)
        return x.sin() + torch.tensor([1.0, 2.0, 3.0]), values

    return make_fx(function)(torch.randn(2, 3))


# --- inputs ------------------------------------------------------------------------------------


def normal(*shapes: tuple[int, ...]) -> Inputs:
    """Tensors of these shapes that require grad."""
    return lambda device: tuple(_normal(device, *shape) for shape in shapes)


def _normal(device: torch.device, *shape: int) -> torch.Tensor:
    return torch.randn(shape, device=device, requires_grad=True)


def _bfloat16(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16)


_ROUNDING = "a product rounded to bfloat16 by another kernel may differ in its last bits"


def _workload(
    name: str, make: Callable[[], Callable[..., Any]], first: Inputs, later: Inputs
) -> list[Cell]:
    return [
        Cell(
            name=name,
            make=make,
            inputs=first,
            counts_for_aot=True,
            counts_for_compile=True,
        ),
        Cell(
            name=f"{name}, dynamic",
            make=make,
            inputs=first,
            later_inputs=later,
            counts_for_aot=True,
            counts_for_compile=True,
        ),
        Cell(
            name=f"{name}, bfloat16 autocast",
            make=make,
            inputs=first,
            around=_bfloat16,
            tolerance=3e-2,
            why=_ROUNDING,
            counts_for_aot=True,
            # autocast leaves pointwise operators alone: nothing that Dynamo could get wrong
            counts_for_compile=make() is not pointwise,
        ),
    ]


CELLS: tuple[Cell, ...] = (
    *_workload("pointwise", lambda: pointwise, normal((3, 4), (3, 4)), normal((5, 7), (5, 7))),
    *_workload("MLP", mlp, normal((3, 6)), normal((5, 6))),
    *_workload(
        "convolution and batch norm",
        ConvolutionAndBatchNorm,
        normal((2, 3, 6, 6)),
        normal((4, 3, 8, 8)),
    ),
    *_workload("transformer block", TransformerBlock, normal((2, 5, 16)), normal((3, 7, 16))),
    Cell(
        name="int and str arguments",
        make=lambda: with_int_and_text,
        inputs=lambda device: (_normal(device, 3, 4), 2, "sum"),
        counts_for_aot=True,
        counts_for_compile=True,
    ),
    Cell(
        name="several, None and dict outputs",
        make=SeveralOutputs,
        inputs=normal((3, 4)),
        counts_for_aot=True,
        counts_for_compile=True,
    ),
    Cell(
        name="input mutation",
        make=Accumulator,
        inputs=lambda device: (_normal(device, 3), torch.zeros(3, device=device)),
        counts_for_aot=True,
        counts_for_compile=True,
    ),
    Cell(
        name="no_grad",
        make=mlp,
        inputs=normal((3, 6)),
        around=lambda device: torch.no_grad(),
        counts_for_aot=True,
        counts_for_compile=True,
    ),
    Cell(
        name="a constant made on the way",
        make=lambda: lambda x: (x.sin() + torch.arange(4.0, device=x.device)) * x.cos(),
        inputs=normal((3, 4)),
    ),
    Cell(name="operators only", make=lambda: lambda x, y: -x * 2 + y, inputs=normal((3,), (3,))),
    Cell(
        name="masked attention",
        make=lambda: masked_attention,
        inputs=normal(*[(2, 2, 5, 4)] * 3),
    ),
    Cell(
        name="masked attention, dynamic",
        make=lambda: masked_attention,
        # all extents differ: those that were equal in the first call would have to stay so
        inputs=normal(*[(2, 3, 5, 4)] * 3),
        later_inputs=normal(*[(3, 2, 6, 5)] * 3),
    ),
    Cell(
        name="sdpa",
        make=lambda: lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        inputs=normal(*[(2, 2, 5, 4)] * 3),
    ),
    Cell(
        name="layer norm",
        make=lambda: lambda x, weight, bias: F.gelu(F.layer_norm(x, (8,), weight, bias)) + x,
        inputs=normal((3, 8), (8,), (8,)),
    ),
    Cell(
        name="batch norm of running statistics that are inputs",
        make=lambda: functional_batch_norm,
        inputs=lambda device: (
            *normal((2, 3, 6, 6), (4, 3, 3, 3))(device),
            torch.zeros(4, device=device),
            torch.ones(4, device=device),
        ),
    ),
    Cell(
        name="autocast inside",
        make=lambda: autocast_inside,
        inputs=normal((4, 8), (8, 4)),
        tolerance=3e-2,
        why=_ROUNDING,
    ),
    Cell(
        name="an int and a float",
        make=lambda: lambda x, n, s: x.repeat(n) * s,
        inputs=lambda device: (_normal(device, 3), 2, 0.5),
    ),
    Cell(
        name="bool, float, None and int arguments",
        make=lambda: chosen_by_arguments,
        inputs=lambda device: (_normal(device, 3, 4), True, 0.25, None, 3),
    ),
    Cell(
        name="text and None",
        make=lambda: (
            lambda x, how, no: F.cross_entropy(
                x, torch.tensor([1, 2], device=x.device), no, reduction=how
            )
        ),
        inputs=lambda device: (_normal(device, 2, 3), "sum", None),
    ),
    Cell(
        name="an int, dynamic",
        make=lambda: counted,
        inputs=lambda device: (_normal(device, 3, 4), 2),
        later_inputs=lambda device: (_normal(device, 5, 4), 2),
    ),
    Cell(
        name="keywords and nested arguments",
        make=lambda: lambda x, pair, scale: x * pair["a"] + pair["b"][0] * scale,
        inputs=lambda device: (
            _normal(device, 3),
            {"a": _normal(device, 3), "b": [_normal(device, 3)]},
            torch.rand(3, device=device),
        ),
        keywords=("pair", "scale"),
    ),
    Cell(
        name="nested outputs",
        make=lambda: lambda x: {"a": x.sin(), "b": (None, x.detach() * 2, [x.mean()])},
        inputs=normal((3,)),
    ),
    Cell(
        name="a named tuple and a number as outputs",
        make=lambda: lambda x: (Pair(x.sin(), x.shape[0]), 2.5),
        inputs=normal((3,)),
    ),
    Cell(
        name="an output that is an input",
        make=lambda: lambda x: (x, x.view(2, 2), x.sin()),
        inputs=normal((4,)),
    ),
    Cell(
        name="outputs that share memory",
        make=lambda: lambda x: ((y := x.sin()), y.view(2, 2), y[1:], x.cos()),
        inputs=normal((4,)),
    ),
    Cell(
        name="a constant as an output",
        make=lambda: lambda x: (x.sin(), torch.ones(3, device=x.device)),
        inputs=normal((3,)),
    ),
    Cell(
        name="mutation",
        make=lambda: lambda x, total: total.add_(x.detach()) * x,
        inputs=lambda device: (_normal(device, 3), torch.zeros(3, device=device)),
    ),
    Cell(
        name="mutation through a view",
        make=lambda: through_a_view,
        inputs=lambda device: (_normal(device, 2, 2), torch.rand(2, 2, device=device)),
    ),
    Cell(
        name="mutation of strides",
        make=lambda: transposed_in_place,
        inputs=lambda device: (_normal(device, 2, 3), torch.rand(4, 3, device=device)),
    ),
    Cell(
        name="mutation of what the backward has a copy of",
        make=lambda: copied_before_written,
        inputs=lambda device: (_normal(device, 2, 3), torch.rand(4, 3, device=device)),
    ),
    Cell(
        name="one tensor twice",
        make=lambda: lambda x, y: x.sin() * y,
        inputs=lambda device: (_normal(device, 3),) * 2,
    ),
    Cell(
        name="no gradient",
        make=lambda: lambda x: (x.sin(), x.argmax(), x > 0),
        inputs=lambda device: (torch.randn(4, device=device),),
    ),
    Cell(
        name="double precision, complex and whole numbers",
        make=lambda: lambda x, n: (x.double().exp(), torch.complex(x, x).abs(), n // 2 + n.sum()),
        inputs=lambda device: (_normal(device, 3), torch.arange(4, device=device)),
    ),
    Cell(
        name="channels last",
        make=lambda: lambda x: x.mul(2).relu().sigmoid(),
        inputs=lambda device: (
            torch.randn(2, 3, 4, 4, device=device)
            .to(memory_format=torch.channels_last)
            .requires_grad_(),
        ),
    ),
    Cell(name="no elements", make=lambda: lambda x: x.sin().sum(0), inputs=normal((0, 4))),
    Cell(name="no dimensions", make=lambda: lambda x: x.exp(), inputs=normal(())),
    Cell(name="random numbers", make=lambda: random_numbers, inputs=normal((3, 4))),
    Cell(
        name="evaluation mode",
        make=lambda: Nested().eval(),
        inputs=normal((3, 4)),
    ),
    Cell(
        name="tied parameters",
        make=TiedEmbedding,
        inputs=lambda device: (torch.randint(5, (2, 3), device=device),),
    ),
    Cell(name="a lazy graph module of submodules", make=lazily_traced, inputs=normal((3, 4))),
    Cell(
        name="a graph module of submodules",
        make=lambda: torch.fx.symbolic_trace(Nested()),
        inputs=normal((3, 4)),
    ),
    Cell(name="a graph module of operators", make=aten_graph, inputs=normal((2, 3))),
    Cell(name="graphs in the graph", make=lambda: branches, inputs=normal((3, 4))),
    Cell(name="checkpoint", make=Checkpointed, inputs=normal((3, 4))),
)
