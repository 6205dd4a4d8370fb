"""Compilers with one fault each, and models to plant faults in.

A fault is planted at a node, by name: also in graphs that are derived from the one it was drawn
from, as long as they compute that node.
"""

import operator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import fx, nn

from lazyfx_compilers import nop

aten = torch.ops.aten


# --- faults ------------------------------------------------------------------------------------


def wrong_constant(node):
    known = {
        aten.add.Tensor: 1,
        aten.mul.Tensor: 1,
        aten.mul.Scalar: 1,
        aten.div.Tensor: 1,
        aten.div.Scalar: 1,
        aten.pow.Tensor_Scalar: 1,
        aten.full.default: 1,
        aten.scalar_tensor.default: 0,
        aten.gt.Scalar: 1,
        aten.le.Scalar: 1,
        aten.native_layer_norm.default: 4,
        aten._native_batch_norm_legit_functional.default: 6,
    }
    place = known.get(node.target)
    if place is None or isinstance(node.args[place], (bool, fx.Node)):
        return None

    def change(node):
        args = list(node.args)
        args[place] = args[place] * 2 + 0.25
        node.args = tuple(args)

    return change


def swapped_arguments(node):
    pairs = {
        aten.sub.Tensor: (0, 1),
        aten.div.Tensor: (0, 1),
        aten.mm.default: (0, 1),
        aten.bmm.default: (0, 1),
        aten.where.self: (1, 2),
        aten.tanh_backward.default: (0, 1),
        aten.gelu_backward.default: (0, 1),
        aten.threshold_backward.default: (0, 1),
        aten._softmax_backward_data.default: (0, 1),
    }
    pair = pairs.get(node.target)
    if pair is None or not all(isinstance(node.args[place], fx.Node) for place in pair):
        return None
    one, other = (node.args[place].meta["val"] for place in pair)
    if one.shape != other.shape or one.dtype != other.dtype:
        return None

    def change(node):
        args = list(node.args)
        args[pair[0]], args[pair[1]] = args[pair[1]], args[pair[0]]
        node.args = tuple(args)

    return change


def dropped_mutation(node):
    """A write to an input, or what AOTAutograd makes of a write to a slice."""
    if node.target is aten.slice_scatter.default:

        def change(node):
            copied = _after(node, aten.clone.default, (node.args[0],))
            _replaced(node, copied, copied)

        return change
    if node.target is not aten.copy_.default:
        return None

    def change(node):
        node.replace_all_uses_with(node.args[1])
        node.graph.erase_node(node)

    return change


def wrong_stride(node):
    if not _is_computed(node) or node.meta["val"].dim() < 2:
        return None
    if any(length < 2 for length in node.meta["val"].shape[-2:]):
        return None

    def change(node):
        turned = _after(node, aten.transpose.int, (node, -1, -2))
        dense = _after(turned, aten.clone.default, (turned,), memory_format=torch.contiguous_format)
        _replaced(node, _after(dense, aten.transpose.int, (dense, -1, -2)), turned)

    return change


def fp16_overflow(node):
    """The operator in float16, cast back."""
    if not _is_computed(node) or node.meta["val"].dtype is not torch.float32:
        return None

    def change(node):
        half = _after(node, aten._to_copy.default, (node,), dtype=torch.float16)
        _replaced(node, _after(half, aten._to_copy.default, (half,), dtype=torch.float32), half)

    return change


def wrong_dtype(node):
    if not _is_computed(node):
        return None
    dtype = node.meta["val"].dtype
    other = {torch.float32: torch.float64, torch.bool: torch.uint8, torch.int64: torch.int32}
    if dtype not in other:
        return None

    def change(node):
        cast = _after(node, aten._to_copy.default, (node,), dtype=other[dtype])
        _replaced(node, cast, cast)

    return change


def off_by_one(node):
    """What is moved by one place: a slice, or the whole result."""
    if not _is_computed(node) or node.meta["val"].dim() == 0:
        return None

    def change(node):
        moved = _after(node, aten.roll.default, (node, [1], [-1]))
        _replaced(node, moved, moved)

    return change


def missing_eps(node):
    places = {
        aten.native_layer_norm.default: 4,
        aten._native_batch_norm_legit_functional.default: 7,
        aten.add.Tensor: 1,
    }
    place = places.get(node.target)
    if place is None or not isinstance(node.args[place], float) or node.args[place] > 1e-2:
        return None

    def change(node):
        node.args = (*node.args[:place], 0.0, *node.args[place + 1 :])

    return change


def dropped_mask(node):
    kept = {aten.where.self: 2, aten.masked_fill.Scalar: 0, aten.threshold_backward.default: 0}
    place = kept.get(node.target)
    if node.target is aten.mul.Tensor and "dropout" in str(node.meta.get("stack_trace")):
        place = 0
    if place is None or node.args[place].meta["val"].shape != node.meta["val"].shape:
        return None

    def change(node):
        copied = _after(node, aten.clone.default, (node.args[place],))
        _replaced(node, copied, copied)

    return change


def wrong_reduction(node):
    """Another dimension; the result has the same size, since that one is as long."""
    known = (aten.sum.dim_IntList, aten.mean.dim, aten._softmax.default, aten.amax.default)
    if node.target not in known:
        return None
    shape = node.args[0].meta["val"].shape
    dims = node.args[1] if isinstance(node.args[1], (list, tuple)) else [node.args[1]]
    if len(dims) != 1 or len(shape) < 2:
        return None
    dim = dims[0] % len(shape)
    other = next((i for i, n in enumerate(shape) if i != dim and n == shape[dim]), None)
    if other is None:
        return None

    def change(node):
        chosen = [other] if isinstance(node.args[1], (list, tuple)) else other
        node.args = (node.args[0], chosen, *node.args[2:])

    return change


KINDS = {
    "wrong constant": wrong_constant,
    "swapped arguments": swapped_arguments,
    "dropped mutation": dropped_mutation,
    "wrong stride": wrong_stride,
    "fp16 overflow": fp16_overflow,
    "wrong dtype": wrong_dtype,
    "off by one": off_by_one,
    "missing eps": missing_eps,
    "dropped mask": dropped_mask,
    "wrong reduction": wrong_reduction,
}


def _is_computed(node):
    """Whether a node computes one tensor in memory of its own."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.is_view:
        return False
    if not isinstance(node.meta.get("val"), torch.Tensor) or node.target._schema.is_mutable:
        return False
    return not {torch.Tag.nondeterministic_seeded} & {*node.target.tags} and (
        "empty" not in str(node.target)
    )


def _after(node, target, args, **kwargs):
    with node.graph.inserting_after(node):
        return node.graph.call_function(target, args, kwargs)


def _replaced(node, new, first):
    """Let everything but ``first``, which computes ``new`` from it, use ``new``."""
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user not in (first, new))


@dataclass(frozen=True)
class Fault:
    kind: str
    node: str
    target: str

    def plant(self, graph):
        """Change the node in a graph, if it is there; whether it is."""
        for node in graph.nodes:
            if node.op == "call_function" and (node.name, str(node.target)) == (
                self.node,
                self.target,
            ):
                change = KINDS[self.kind](node)
                change(node)
                return True
        return False


def faulty(plant, compiler=nop):
    """``compiler``, with a function that changes the graph first."""

    def compile_wrong(gm, example_inputs):
        plant(gm.graph)
        gm.recompile()
        return compiler(gm, example_inputs)

    return compile_wrong


class Recorder:
    """A right compiler that keeps a copy of each graph and of its values on a run."""

    def __init__(self):
        self.graphs = []

    def __call__(self, gm, example_inputs):
        class Keeping(fx.Interpreter):
            def run_node(self, n):
                result = super().run_node(n)
                leaves = result if isinstance(result, (tuple, list)) else [result]
                kept = [one.clone() if isinstance(one, torch.Tensor) else one for one in leaves]
                values[n.name] = kept if isinstance(result, (tuple, list)) else kept[0]
                return result

        values = {}
        self.graphs.append((gm, values))
        return Keeping(gm).run


def runs_of(graph):
    """The names of what a graph computes: operators, not the items of their results."""
    return {
        node.name
        for node in graph.nodes
        if node.op == "call_function" and node.target is not operator.getitem
    }


# --- models ------------------------------------------------------------------------------------


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        hidden = F.gelu(self.first(x)) - x / (1.5 + x.square())
        return torch.where(hidden > 0.1, hidden, hidden * 0.3) + self.last(hidden).tanh()


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        return self.head(x.mean((2, 3)) * 2.0).log_softmax(-1)


class Block(nn.Module):
    """A transformer block: layer norm, a causal mask, dropout, residuals."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x):
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        position = torch.arange(x.shape[1], device=x.device)
        scores = q @ k.transpose(-1, -2) / 8**0.5
        scores = scores.masked_fill(position[None] > position[:, None], float("-inf"))
        x = x + self.out(F.dropout(scores.softmax(-1), 0.2, self.training) @ v)
        hidden = F.gelu(self.up(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5)))
        return x + F.dropout(self.down(hidden), 0.2, self.training)


class InPlace(nn.Module):
    """Writes buffers, a slice of an intermediate value and, with numbers too big for float16."""

    def __init__(self):
        super().__init__()
        self.register_buffer("average", torch.zeros(8))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        self.calls.add_(1)
        hidden = x @ self.weight
        self.average.mul_(0.9).add_(hidden.detach().sum(0), alpha=0.1)
        loud = (hidden * 1000.0).square() + 3.0
        loud[1:, ::2] *= 0.5
        return (loud.sum(1, keepdim=True) - loud).sqrt() / (self.average.abs() + 2.0)


MODELS = {
    "mlp": (Mlp, (8, 8), None),
    "conv and batch norm": (ConvNet, (4, 2, 6, 6), None),
    "transformer block": (Block, (3, 8, 8), None),
    "in place": (InPlace, (8, 8), None),
    "mlp, dynamic": (Mlp, (8, 8), True),
    "transformer block, dynamic": (Block, (3, 8, 8), True),
}


def made(name, device):
    """A model in train mode, an input for it, and whether its shapes are dynamic.

    The numbers are the same on all devices.
    """
    make, shape, dynamic = MODELS[name]
    torch.manual_seed(0)
    return make().to(device), torch.randn(shape).to(device).requires_grad_(), dynamic
