"""Kinds of calls: what is captured again, how many are kept, what a pickle brings back."""

from __future__ import annotations

import collections
import copy
import dataclasses
import gc
import io
import logging
import os
import pickle
import random
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch._functorch.aot_autograd import aot_function, aot_module, make_boxed_compiler
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import lazyfx_ltc as ltc

X = torch.randn(3, 4)


def scaled(x: Any, *, factor: Any = 2, shift: Any = None) -> Any:
    return x * factor if shift is None else x * factor + shift


@dataclasses.dataclass(frozen=True)
class Batch:
    values: Any
    mask: Any = None

    def __post_init__(self) -> None:
        raise AssertionError("constructors of arguments do not run")


def batch(values: Any, mask: Any = None) -> Batch:
    made = object.__new__(Batch)
    object.__setattr__(made, "values", values)
    object.__setattr__(made, "mask", mask)
    return made


Pair = collections.namedtuple("Pair", "left right")


def traced(function: Callable[..., Any], *names: str) -> fx.GraphModule:
    """A graph of one call of a python function, which gets the arguments as they are."""
    graph = fx.Graph()
    graph.output(graph.call_function(function, tuple(graph.placeholder(one) for one in names)))
    return fx.GraphModule(nn.Module(), graph)


def of_a_nest(nest: Any, more: Any) -> Any:
    return {
        "sum": nest["a"][0] + nest["a"][1].left,
        "more": [more.values * 2, Pair(more.mask, nest["n"])],
        "same": nest,
    }


def nest(seed: int) -> tuple[Any, Any]:
    torch.manual_seed(seed)
    tensors = [torch.randn(3, 4) for _ in range(4)]
    return (
        {"a": (tensors[0], Pair(tensors[1], None)), "n": 3},
        batch(tensors[2], tensors[3]),
    )


def test_nested_arguments_and_results_keep_their_types() -> None:
    gm = traced(of_a_nest, "nest", "more")
    compiled = ltc.extract_compiled_graph(gm, nest(0))
    args, twin = nest(1), nest(1)
    got, want = compiled(*args), gm(*twin)
    assert got["same"] == args[0]
    assert got["same"]["a"][1].left is args[0]["a"][1].left
    assert type(got["more"][1]) is Pair
    assert got["more"][1].left is args[1].mask
    torch.testing.assert_close(got["sum"], want["sum"])
    torch.testing.assert_close(got["more"][0], want["more"][0])
    assert compiled.captures == 1
    names = [line.partition(":")[0] for line in compiled.explain().inputs]
    assert names[0] == "argument 0['a'][0]"
    assert "argument 0['a'][1].left" in names
    assert names[-2:] == ["argument 1.values", "argument 1.mask"]


def test_a_dataclass_is_returned_without_running_its_constructor() -> None:
    gm = traced(lambda x: batch(x + 1, x), "x")
    got = ltc.extract_compiled_graph(gm, (X,))(X)
    assert type(got) is Batch
    assert got.mask is X
    torch.testing.assert_close(got.values, X + 1)


def test_arguments_by_name_and_defaults() -> None:
    gm = fx.symbolic_trace(scaled, concrete_args={"shift": None})
    compiled = ltc.extract_compiled_graph(gm, (X,), {"factor": torch.tensor(3.0)})
    torch.testing.assert_close(compiled(X, factor=torch.tensor(4.0)), X * 4)
    assert compiled.captures == 1
    torch.testing.assert_close(compiled(X, factor=5), X * 5)
    torch.testing.assert_close(compiled(X), X * 2)
    assert compiled.captures == 3
    with pytest.raises(ltc.InputError, match="argument 'other': the model takes no such"):
        compiled(X, other=1)
    with pytest.raises(ltc.InputError, match="argument 'x': given twice"):
        compiled(X, x=X)


DIFFERENT: dict[str, tuple[Any, ...]] = {
    "shape": (torch.randn(5, 4), 2),
    "dtype": (X.double(), 2),
    "strides": (torch.randn(4, 3).t(), 2),
    "a value": (X, 3),
    "a value of another type": (X, 2.0),
    "a bool": (X, True),
    "a tensor for a number": (X, torch.tensor(2.0)),
    "a number for a tensor": (7, torch.randn(2)),
}


@pytest.mark.parametrize("args", DIFFERENT.values(), ids=DIFFERENT)
def test_another_kind_of_call_is_captured_too(args: tuple[Any, ...]) -> None:
    gm = fx.symbolic_trace(lambda a, b: a * b)
    compiled = ltc.extract_compiled_graph(gm, (X, 2))
    strict = ltc.extract_compiled_graph(gm, (X, 2), on_mismatch="error")
    got, want = compiled(*args), gm(*args)
    torch.testing.assert_close(got, want)
    assert (got.dtype, got.stride()) == (want.dtype, want.stride())
    assert compiled.captures == 2
    torch.testing.assert_close(compiled(X, 2), X * 2)
    assert compiled.captures == 2
    with pytest.raises(ltc.GuardError, match=r"argument \d: expected .*, as at capture, seen"):
        strict(*args)


def test_zero_and_minus_zero_are_different_values_and_nan_is_one() -> None:
    gm = fx.symbolic_trace(lambda a, b: a * b)
    compiled = ltc.extract_compiled_graph(gm, (X, 0.0))
    assert torch.equal(compiled(X, -0.0).signbit(), (X * -0.0).signbit())
    compiled(X, float("nan"))
    compiled(X, float("nan"))
    assert compiled.captures == 3


def test_no_more_captures_are_kept_than_asked_for(caplog: pytest.LogCaptureFixture) -> None:
    gm = fx.symbolic_trace(lambda a: a * 2)
    compiled = ltc.extract_compiled_graph(gm, (torch.randn(1),), max_captures=3)
    with caplog.at_level(logging.WARNING, logger="lazyfx_ltc"):
        for size in range(2, 4):
            compiled(torch.randn(size))
        assert not caplog.records
        compiled(torch.randn(4))
    assert "more than 3 kinds of calls" in caplog.text
    assert compiled.captures == 3
    for size in range(1, 9):
        x = torch.randn(size)
        torch.testing.assert_close(compiled(x), x * 2)


class AsksForGradMode(nn.Module):
    def forward(self, x: Any) -> Any:
        return x + (1 if torch.is_grad_enabled() else -1)


def test_grad_mode_counts_where_python_code_asks_for_it() -> None:
    model = nn.Sequential(AsksForGradMode())
    graph = fx.Graph()
    graph.output(graph.call_module("0", (graph.placeholder("x"),)))
    compiled = ltc.extract_compiled_graph(fx.GraphModule(model, graph), (X,))
    torch.testing.assert_close(compiled(X), X + 1)
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), X - 1)
    assert compiled.captures == 2
    plain = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a + 1), (X,))
    with torch.no_grad():
        plain(X)
    assert plain.captures == 1


def test_requires_grad_counts_where_python_code_may_ask_for_it() -> None:
    gm = traced(lambda x: x * (2 if x.requires_grad else 3), "x")
    compiled = ltc.extract_compiled_graph(gm, (X,))
    with torch.no_grad():
        torch.testing.assert_close(compiled(X), X * 3)
        torch.testing.assert_close(compiled(X.clone().requires_grad_()), X * 2)


def test_views_of_what_requires_grad_require_it_as_in_eager() -> None:
    gm = fx.symbolic_trace(lambda a: (a.t(), a.detach(), a[1].detach()[1:], a + 1))
    compiled = ltc.extract_compiled_graph(gm, (X,))
    x = X.clone().requires_grad_()
    with torch.no_grad():
        assert [y.requires_grad for y in compiled(x)] == [y.requires_grad for y in gm(x)]
    views = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: (a.t(), a.detach())), (X,))
    kept, detached = views(x)
    kept.sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 4))
    assert not detached.requires_grad


@pytest.mark.parametrize("name", ["requires_grad_", "detach_"])
def test_changes_of_what_is_recorded_are_refused(name: str) -> None:
    gm = fx.symbolic_trace(lambda a: (getattr(a, name)(), a + 1))
    with pytest.raises(ltc.CaptureError, match=f"calls {name}"):
        ltc.extract_compiled_graph(gm, (X,))


def test_sizes_and_ordered_dicts_keep_their_types() -> None:
    gm = traced(lambda x: collections.OrderedDict(b=x.shape, a=x + 1), "x")
    got = ltc.extract_compiled_graph(gm, (X,))(X)
    assert type(got) is collections.OrderedDict
    assert list(got) == ["b", "a"]
    assert type(got["b"]) is torch.Size


def test_arguments_without_end_are_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    gm = traced(lambda x: 1, "x")
    with pytest.raises(ltc.InputError, match="without end"):
        ltc.extract_compiled_graph(gm, (endless,))
    compiled = ltc.extract_compiled_graph(gm, (X,))
    with pytest.raises(ltc.InputError, match="without end"):
        compiled(endless)


def test_the_default_dtype_counts() -> None:
    compiled = ltc.extract_compiled_graph(traced(lambda a: a + torch.ones(4), "a"), (X,))
    torch.set_default_dtype(torch.float64)
    try:
        assert compiled(X).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    assert compiled(X).dtype is torch.float32


def rolled(a: Any, b: Any) -> Any:
    a.add_(1)
    b.mul_(2)
    return a + b.sum(), b


SHARING: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]] = {
    "one object twice": lambda x: (x, x),
    "a part": lambda x: (x, x[1:]),
    "overlapping parts": lambda x: (x[:2], x[1:]),
    "parts that do not overlap": lambda x: (x[:1], x[1:]),
    "transposed": lambda x: (x, x.t()),
    "columns": lambda x: (x[:, ::2], x[:, 1]),
    "a view of the whole": lambda x: (x.view(-1), x),
    "a later part first": lambda x: (x[2], x[0]),
}


@pytest.mark.parametrize("parts", SHARING.values(), ids=SHARING)
def test_writes_to_memory_that_arguments_share_are_seen_in_all_of_them(
    parts: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]],
) -> None:
    gm = fx.symbolic_trace(rolled)
    compiled = ltc.extract_compiled_graph(gm, parts(torch.randn(4, 4)))
    for seed in range(3):
        ours = torch.randn(4, 4, generator=torch.Generator().manual_seed(seed))
        theirs = ours.clone()
        args = parts(ours)
        got, want = compiled(*args), gm(*parts(theirs))
        torch.testing.assert_close(ours, theirs)
        torch.testing.assert_close(got, want)
        assert got[1] is args[1]
    assert compiled.captures == 1
    apart = [part.clone() for part in parts(torch.randn(4, 4))]
    twins = [part.clone() for part in apart]
    torch.testing.assert_close(compiled(*apart), gm(*twins))
    torch.testing.assert_close(apart, twins)


def test_a_buffer_that_is_also_an_argument_is_written_in_both() -> None:
    model = nn.Module()
    model.register_buffer("seen", torch.zeros(4))
    graph = fx.Graph()
    x = graph.placeholder("x")
    written = graph.call_method("add_", (graph.get_attr("seen"), 1))
    graph.output(graph.call_function(torch.add, (x, written)))
    gm = fx.GraphModule(model, graph)
    compiled = ltc.extract_compiled_graph(gm, (torch.zeros(4),))
    torch.testing.assert_close(compiled(torch.zeros(4)), torch.ones(4))
    torch.testing.assert_close(compiled(gm.seen), torch.full((4,), 4.0))
    torch.testing.assert_close(gm.seen, torch.full((4,), 2.0))


def test_fake_examples_and_symbolic_numbers_stand_for_real_ones() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    fake = mode.from_tensor(torch.randn(3, 4))
    assert isinstance(fake.shape[0], torch.SymInt)
    gm = fx.symbolic_trace(lambda a, n: a * n)
    with mode:
        compiled = ltc.extract_compiled_graph(gm, (fake, fake.shape[0]))
    torch.testing.assert_close(compiled(X, 3), X * 3)
    torch.testing.assert_close(compiled(X, 4), X * 4)
    assert compiled.captures == 2
    with pytest.raises(ltc.InputError, match="seen fake ones"):
        compiled(mode.from_tensor(torch.randn(2, 2)), 3)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))

    def forward(self, x: Any, scale: Any) -> Any:
        return (self.layers(x) * scale).sum(-1), None


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("boxed", [False, True])
def test_forward_and_backward_graphs_of_aot_autograd(dynamic: bool, boxed: bool) -> None:
    model, captured = Net(), []

    def compiler(gm: fx.GraphModule, examples: Any) -> Any:
        captured.append(ltc.extract_compiled_graph(gm, examples))
        return captured[-1].boxed if boxed else captured[-1]

    twin = copy.deepcopy(model)
    function = aot_function(
        lambda x, scale, *weights: torch.func.functional_call(
            model, dict(zip(dict(model.named_parameters()), weights, strict=True)), (x, scale)
        ),
        fw_compiler=compiler if boxed else make_boxed_compiler(compiler),
        bw_compiler=compiler if boxed else make_boxed_compiler(compiler),
        dynamic=dynamic,
    )
    for _ in range(2):
        x = torch.randn(3, 4, requires_grad=True)
        x_twin = x.detach().clone().requires_grad_()
        got, nothing = function(x, 3, *model.parameters())
        want, _ = twin(x_twin, 3)
        assert nothing is None
        torch.testing.assert_close(got, want)
        got.sum().backward()
        want.sum().backward()
        torch.testing.assert_close(x.grad, x_twin.grad)
        for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(ours.grad, theirs.grad)
    assert len(captured) == 2


def test_a_pickle_brings_back_the_kinds_of_calls_and_the_weights() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Linear(4, 2)).eval())
    compiled = ltc.extract_compiled_graph(gm, (X,), max_captures=2)
    with torch.no_grad():
        compiled(torch.randn(7, 4))
        back = pickle.loads(pickle.dumps(compiled))
        assert (back.captures, repr(back)) == (2, repr(compiled))
        torch.testing.assert_close(back(X), gm(X))
        torch.testing.assert_close(back(torch.ones(7, 4)), gm(torch.ones(7, 4)))
        assert back.captures == 2
        gm.get_parameter("0.weight").zero_()
        assert not torch.equal(back(X), gm(X))
        with io.BytesIO() as file:
            torch.save(compiled, file)
            file.seek(0)
            torch.testing.assert_close(torch.load(file, weights_only=False)(X), gm(X))


def test_a_pickle_remembers_which_arguments_shared_memory() -> None:
    compiled = ltc.extract_compiled_graph(
        fx.symbolic_trace(rolled), (lambda x: (x, x.t()))(torch.zeros(4, 4)), on_mismatch="error"
    )
    back = pickle.loads(pickle.dumps(compiled))
    x = torch.randn(4, 4)
    twin = x.clone()
    torch.testing.assert_close(back(x, x.t()), rolled(twin, twin.t()))
    torch.testing.assert_close(x, twin)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()),
            *(nn.Linear(4 * 25, 6), nn.LayerNorm(6)),
        )

    def forward(self, x: Any) -> Any:
        return self.layers(x)


def test_a_network_with_normalization_trains_as_in_eager() -> None:
    model = Convolutions()
    twin = copy.deepcopy(model)

    def compiler(gm: fx.GraphModule, examples: Any) -> Any:
        return ltc.extract_compiled_graph(gm, examples).boxed

    ours = aot_module(
        model, fw_compiler=compiler, bw_compiler=compiler, decompositions=ltc.decompositions()
    )
    optimizers = [torch.optim.SGD(one.parameters(), 0.1) for one in (model, twin)]
    for _ in range(3):
        x = torch.randn(2, 3, 5, 5)
        for module, optimizer in zip((ours, twin), optimizers, strict=True):
            optimizer.zero_grad()
            module(x).square().mean().backward()
            optimizer.step()
        torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_the_first_capture_of_a_process_may_be_inside_a_fake_mode(alone: Any) -> None:
    done = alone("""
import torch, lazyfx_ltc as ltc
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode(), torch.inference_mode():
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a + 1), (torch.ones(3),))
assert torch.equal(compiled(torch.ones(3)), torch.full((3,), 2.0))
""")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("change", ["set_", "data"])
def test_other_memory_under_an_argument_is_refused(change: str) -> None:
    def model(a: Any, b: Any) -> Any:
        if change == "set_":
            a.set_(b)
        else:
            a.data = b
        return a + 1

    with pytest.raises(ltc.CaptureError, match="memory"):
        ltc.extract_compiled_graph(traced(model, "a", "b"), (X.clone(), X.clone()))


def test_a_dropped_capture_frees_all_it_held() -> None:
    model = nn.Linear(4, 4)
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(nn.Sequential(model)), (X,))
    with torch.no_grad():
        compiled(X)
    dead = weakref.ref(compiled), weakref.ref(model.weight), weakref.ref(compiled.graph)
    del compiled, model
    gc.collect()
    assert [reference() for reference in dead] == [None, None, None]


def test_a_call_of_a_new_kind_from_many_threads_is_captured_once(
    at_once: Callable[..., None],
) -> None:
    gm = fx.symbolic_trace(lambda a: a.tanh() * 3)
    compiled = ltc.extract_compiled_graph(gm, (X,))

    def work() -> None:
        x = torch.randn(6, 4)
        torch.testing.assert_close(compiled(x), gm(x))

    at_once(*[work] * 8)
    assert compiled.captures == 2


def _graph_of(number: int) -> fx.GraphModule:
    """One of many graphs; those of neighbors share what torch's cache would tell them apart by."""
    graph = fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    pair = (a, b) if number % 2 else (b, a)
    node = graph.call_function(torch.sub, pair)
    node = graph.call_function(torch.mul, (node, 1 + number // 2))
    graph.output(graph.call_function(torch.sub, (node, a)))
    return fx.GraphModule(nn.Module(), graph)


def _resident_megabytes() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def test_no_graph_is_taken_for_another() -> None:
    kept = [ltc.extract_compiled_graph(_graph_of(number), (X, X + 1)) for number in range(60)]
    for number, compiled in enumerate(kept):
        torch.testing.assert_close(compiled(X, X + 1), _graph_of(number)(X, X + 1))


@pytest.mark.slow
def test_ten_thousand_captures_are_all_there_and_memory_stays_flat() -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    kept = [ltc.extract_compiled_graph(_graph_of(number), (x, y)) for number in range(10_000)]
    for number, compiled in enumerate(kept):
        torch.testing.assert_close(compiled(x, y), _graph_of(number)(x, y))
    del kept, compiled
    used = []
    for number in range(10_000):
        ltc.extract_compiled_graph(_graph_of(number), (x, y))(x, y)
        if number % 1_000 == 999:
            gc.collect()
            used.append(_resident_megabytes())
    assert used[-1] - used[1] < 20, used


@pytest.mark.parametrize(
    ("options", "message"),
    [({"on_mismatch": "guess"}, "on_mismatch"), ({"max_captures": 0}, "max_captures")],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ltc.extract_compiled_graph(fx.symbolic_trace(lambda a: a), (X,), **options)


def test_pickling_leaves_the_model_as_it_is() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).train()
    model[1].eval()
    gm = fx.symbolic_trace(model)
    pickle.dumps(ltc.extract_compiled_graph(gm, (X,)))
    assert [gm.training, gm.get_submodule("1").training] == [True, False]


CHANGES: dict[str, Callable[[Any], Any]] = {
    "a child": lambda leaf: leaf.append(nn.Sigmoid()),
    "a bias": lambda leaf: setattr(leaf[0], "bias", nn.Parameter(torch.ones(4))),
    "a class": lambda leaf: setattr(leaf[1], "__class__", nn.Sigmoid),
    "a setting": lambda leaf: setattr(leaf[2], "normalized_shape", (4,)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_is_added_to_a_leaf_is_noticed(change: Callable[[Any], Any]) -> None:
    model = nn.Module()
    model.leaf = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Tanh(), nn.LayerNorm(4))
    graph = fx.Graph()
    graph.output(graph.call_module("leaf", (graph.placeholder("x"),)))
    gm = fx.GraphModule(model, graph)
    with torch.no_grad():
        compiled = ltc.extract_compiled_graph(gm, (X,))
        compiled(X)
        change(gm.leaf)
        torch.testing.assert_close(compiled(X), gm(X))


def test_hooks_added_later_are_refused() -> None:
    gm = fx.symbolic_trace(nn.Sequential(nn.ReLU()))
    compiled = ltc.extract_compiled_graph(gm, (X,), on_mismatch="error")
    for register in (
        gm.register_forward_hook,
        nn.modules.module.register_module_forward_hook,
    ):
        handle = register(lambda *_: None)
        with pytest.raises(ltc.GuardError, match="hooks"):
            compiled(X)
        handle.remove()
    compiled(X)


def test_only_what_the_model_writes_is_written_in_shared_memory() -> None:
    gm = fx.symbolic_trace(rolled)
    memory = torch.arange(12.0).view(3, 4)
    twin = memory.clone()
    part = memory[:, 1:3]
    compiled = ltc.extract_compiled_graph(gm, (part, part[1]))
    torch.testing.assert_close(compiled(part, part[1]), gm(twin[:, 1:3], twin[:, 1:3][1]))
    torch.testing.assert_close(memory, twin)


@pytest.mark.parametrize("columns", [slice(None), slice(1, 3)])
def test_views_of_shared_memory_that_is_written_are_views_of_it(columns: slice) -> None:
    def model(a: Any, b: Any) -> Any:
        a.add_(1)
        b.mul_(2)
        return a[0], b.t(), a + b.sum()

    gm = fx.symbolic_trace(model)
    ours = torch.arange(12.0).view(3, 4)
    theirs = ours.clone()
    a, b = ours[:, columns], ours[1:, columns]
    compiled = ltc.extract_compiled_graph(gm, (a, b))
    got, want = compiled(a, b), gm(theirs[:, columns], theirs[1:, columns])
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(ours, theirs)
    got[0].zero_()
    assert not a[0].any()


def test_memory_of_numpy_that_overlaps_is_refused() -> None:
    import numpy

    array = numpy.zeros(8, dtype=numpy.float32)
    a, b = torch.from_numpy(array[0:5]), torch.from_numpy(array[2:7])
    with pytest.raises(ltc.CaptureError, match="through a storage of its own"):
        ltc.extract_compiled_graph(traced(lambda x, y: (x.add_(1), y * 2)[1], "x", "y"), (a, b))


GENERATORS: dict[str, Callable[[Any], Any]] = {
    "seeds": lambda x: (torch.manual_seed(0), x + 1)[1],
    "python": lambda x: x * random.randint(0, 5),
}


@pytest.mark.parametrize("model", GENERATORS.values(), ids=GENERATORS)
def test_generators_used_in_python_are_refused_and_do_not_move(model: Callable[..., Any]) -> None:
    torch_state, python_state = torch.get_rng_state(), random.getstate()
    with pytest.raises(ltc.CaptureError, match="random generator in python code"):
        ltc.extract_compiled_graph(traced(model, "x"), (X,))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert random.getstate() == python_state


class OwnAutocast(nn.Module):
    def forward(self, x: Any, w: Any) -> Any:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = x @ w
        return y.float()


def test_a_model_that_enters_autocast_itself() -> None:
    model = nn.Module()
    model.leaf = OwnAutocast()
    graph = fx.Graph()
    graph.output(graph.call_module("leaf", (graph.placeholder("x"), graph.placeholder("w"))))
    gm = fx.GraphModule(model, graph)
    x, w = torch.randn(8, 8), torch.randn(8, 8)
    compiled = ltc.extract_compiled_graph(gm, (x, w))
    assert torch.equal(compiled(x, w), gm(x, w))
