"""``fallback="partition"``: eager nodes between captured pieces, and the same as eager in all."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lazyfx_ltc as ltc

X = torch.randn(3, 4)


@pytest.fixture(scope="module", autouse=True)
def noted() -> Iterator[Any]:
    """An operator that writes: neither the backend nor functionalization knows it."""
    library = torch.library.Library("lazyfx_ltc_partition", "DEF")
    library.define("double_(Tensor(a!) x) -> ()")
    library.impl("double_", in_place, "CompositeExplicitAutograd")
    yield torch.ops.lazyfx_ltc_partition
    library._destroy()


def in_place(x: torch.Tensor) -> None:
    x.mul_(2)


def double_(x: torch.Tensor) -> torch.Tensor:
    torch.ops.lazyfx_ltc_partition.double_(x)
    return x


fx.wrap("double_")


def partitioned(model: Any, *examples: Any) -> ltc.PartitionedGraph:
    gm = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    made = ltc.extract_compiled_graph(gm, examples, fallback="partition")
    assert isinstance(made, ltc.PartitionedGraph)
    return made


def agree(model: Any, *makers: Callable[[], Any]) -> ltc.PartitionedGraph:
    """Three calls against eager: results, what was written, and the random state."""
    gm = model if isinstance(model, fx.GraphModule) else fx.symbolic_trace(model)
    made = partitioned(gm, *(make() for make in makers))
    for seed in range(3):
        torch.manual_seed(seed)
        ours = [make() for make in makers]
        theirs = [one.clone() if isinstance(one, torch.Tensor) else one for one in ours]
        with torch.no_grad():
            torch.manual_seed(seed)
            want = gm(*theirs)
            state = torch.get_rng_state()
            torch.manual_seed(seed)
            got = made(*ours)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(got, want)
        torch.testing.assert_close(ours, theirs)
    return made


def random_x() -> torch.Tensor:
    return torch.randn(3, 4)


def test_operators_outside_any_program_run_between_captured_pieces(strange: Any) -> None:
    made = agree(lambda a: strange.scaled(a.sin() + 1)[0].cos() * strange.named(a, '"'), random_x)
    kinds = [one.captured is not None for one in made.segments]
    assert kinds.count(False) == 2
    assert True in kinds
    explained = made.explain()
    assert len(explained.segments) == len(made.segments)
    assert len(explained.fallbacks) == 2
    assert "eager: 'scaled'" in explained.fallbacks[0]
    assert "lazyfx_ltc_tests::scaled" in explained.fallbacks[0]
    assert explained.operators["aten::sin"] == explained.operators["aten::cos"] == 1
    assert "PartitionedGraph(" in repr(made)


def test_what_can_be_captured_whole_is_no_partition() -> None:
    gm = fx.symbolic_trace(lambda a: a + 1)
    made = ltc.extract_compiled_graph(gm, (X,), fallback="partition")
    assert type(made) is ltc.CompiledGraph


def test_writes_and_views_cross_the_pieces(strange: Any) -> None:
    def model(a: Any) -> Any:
        row = a[0]
        row.add_(1)
        number = strange.scaled(row)[0]
        a[1].mul_(number)
        return row, a[1], a

    made = partitioned(model, X.clone())
    ours, theirs = X.clone(), X.clone()
    row, second, whole = made(ours)
    torch.testing.assert_close([row, second, whole], list(model(theirs)))
    assert whole is ours
    row.zero_()
    assert not ours[0].any()


def test_an_operator_that_writes_runs_as_in_eager() -> None:
    made = agree(lambda a: double_(a + 1) * 3, random_x)
    assert any("double_" in one for one in made.fallbacks)
    agree(lambda a: (a.add_(1), double_(a), a * 3)[2], random_x)


def test_draws_keep_their_order(strange: Any) -> None:
    def model(a: Any) -> Any:
        first = torch.rand_like(a)
        middle = strange.drawn(a)[0]
        return first, middle, torch.nn.functional.dropout(a, 0.5)

    agree(model, random_x)


def test_shapes_that_depend_on_values() -> None:
    made = agree(lambda a: (a.nonzero().sum(0) + 1) * 2, random_x)
    assert made.explain().operators["aten::mul"] >= 1
    agree(lambda a: a[a > 0].exp().sum() + a.sum(), random_x)


def test_values_that_are_read() -> None:
    agree(lambda a: (a * a.sum().item() + 1).sin(), random_x)


def test_control_flow_of_graphs() -> None:
    def model(a: Any) -> Any:
        return torch.cond(a.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (a + 1,)) * 2

    made = agree(make_fx(model)(X), random_x)
    assert any("cond" in one for one in made.fallbacks)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Any) -> Any:
        low = self.first(x).nonzero().shape[0]
        return self.norm(self.first(x)) * self.scale + low


def test_weights_and_statistics_are_the_models() -> None:
    model = Counting()
    twin = Counting()
    twin.load_state_dict(model.state_dict())
    made = partitioned(fx.symbolic_trace(model), X)
    other = fx.symbolic_trace(twin)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(made(X), other(X))
        for one in (model, twin):
            one.first.weight.mul_(2)
            one.eval()
        for _ in range(2):
            torch.testing.assert_close(made(X), other(X))
    torch.testing.assert_close(model.state_dict(), twin.state_dict())


def test_another_shape_is_captured_piece_by_piece(strange: Any) -> None:
    gm = fx.symbolic_trace(lambda a: strange.scaled(a + 1)[0] * 2)
    made = partitioned(gm, X)
    for rows in (3, 5, 3, 7):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(made(x), gm(x))


def test_gradients_are_refused_before_anything_ran(strange: Any) -> None:
    def model(a: Any, b: Any) -> Any:
        a.add_(1)
        return strange.scaled(a)[0] * b

    made = partitioned(model, X.clone(), X.clone())
    a = X.clone()
    with pytest.raises(ltc.GradientError, match="argument 1 requires grad"):
        made(a, X.clone().requires_grad_())
    assert torch.equal(a, X)


def test_bad_arguments_are_named(strange: Any) -> None:
    gm = fx.symbolic_trace(lambda a: strange.scaled(a)[0])
    with pytest.raises(ValueError, match="fallback: expected 'error' or 'partition', seen 'no'"):
        ltc.extract_compiled_graph(gm, (X,), fallback="no")  # type: ignore[call-overload]
    with pytest.raises(ValueError, match="on_mismatch"):
        ltc.extract_compiled_graph(gm, (X,), fallback="partition", on_mismatch="error")  # type: ignore[call-overload]
    with pytest.raises(ltc.InputError):
        partitioned(gm, X)(X, X)


def test_errors_of_eager_nodes_are_eagers(strange: Any) -> None:
    made = partitioned(lambda a, b: strange.scaled(a)[0] @ b, X, X.t())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        made(X, X)


def test_threads_make_the_first_call_together(strange: Any, at_once: Callable[..., None]) -> None:
    gm = fx.symbolic_trace(lambda a: strange.scaled(a.sin())[0].cos() + strange.named(a, '"'))
    made = partitioned(gm, X)

    def work(seed: int) -> None:
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        for _ in range(5):
            torch.testing.assert_close(made(x), gm(x))

    at_once(*(partial(work, seed) for seed in range(6)))


def test_a_pickle_finds_its_pieces_again(strange: Any) -> None:
    made = partitioned(lambda a: strange.scaled(a.sin())[0] + 1, X)
    want = made(X)
    again = pickle.loads(pickle.dumps(made))
    torch.testing.assert_close(again(X), want)
    torch.testing.assert_close(made.boxed([X]), want)


class Rebinding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.h = torch.zeros(3)

    def forward(self, x: Any) -> Any:
        self.h = self.h + 1
        return x + self.h


def test_attributes_are_read_where_they_stand() -> None:
    def made() -> fx.GraphModule:
        graph = fx.Graph()
        x = graph.placeholder("x")
        before = graph.get_attr("leaf.h")
        y = graph.call_module("leaf", (x,))
        after = graph.get_attr("leaf.h")
        ten = graph.call_function(torch.mul, (before, 10))
        graph.output((graph.call_function(torch.add, (y, ten)), before, after))
        root = nn.Module()
        root.leaf = Rebinding()
        return fx.GraphModule(root, graph)

    eager, x = made(), torch.ones(3)
    compiled = partitioned(made(), x)
    for _ in range(3):
        torch.testing.assert_close(compiled(x), eager(x))


def make_list(x: Any) -> Any:
    return [x, x + 1]


def same(x: Any) -> Any:
    return x


def appended(target: Any, x: Any) -> Any:
    target.append(double_(x + 0))
    return target[-1]


fx.wrap("make_list")
fx.wrap("same")
fx.wrap("appended")


def test_containers_stay_the_same_objects() -> None:
    def model(x: Any) -> Any:
        first = make_list(x)
        second = same(first)
        last = appended(first, x)
        return last, second

    compiled = partitioned(model, X)
    got, want = compiled(X), model(X)
    assert len(got[1]) == 3
    torch.testing.assert_close(got, want)
    given = partitioned(lambda x, y: appended([x, y], x), X, X)
    torch.testing.assert_close(given(X, X), X * 2)


def test_a_program_that_fails_is_not_run_twice() -> None:
    def model(x: Any, index: Any) -> Any:
        return (torch.rand_like(x) + x)[index], double_(x + 0)

    compiled = partitioned(model, X, torch.tensor([0]))
    compiled(X, torch.tensor([1]))
    states = []
    for one in (model, compiled):
        torch.manual_seed(0)
        with pytest.raises((IndexError, RuntimeError)):
            one(X, torch.tensor([9]))
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_what_is_captured_again_and_again_runs_as_in_eager_in_the_end() -> None:
    gm = make_fx(lambda x: (x * x.sum().item()).sin() + 1, tracing_mode="symbolic")(X)
    compiled = ltc.extract_compiled_graph(gm, (X,), fallback="partition", max_captures=2)
    assert isinstance(compiled, ltc.PartitionedGraph)
    for _ in range(12):
        x = torch.randn(3, 4)
        torch.testing.assert_close(compiled(x), (x * x.sum()).sin() + 1)
    captured = [one.captured for one in compiled.segments if one.captured is not None]
    assert any(one.dropped == 4 for one in captured)
    assert all(one.dropped <= 4 for one in captured)


@torch.no_grad()
def test_what_is_written_and_given_is_told_by_piece() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        x.add_(1)
        return x * x.sum().item()

    gm = fx.symbolic_trace(model)
    parts = ltc.extract_compiled_graph(gm, (torch.rand(2),), fallback="partition")
    assert isinstance(parts, ltc.PartitionedGraph)
    untried = [n for n, piece in enumerate(parts.segments) if piece.is_open]
    assert untried
    for number in untried:
        assert f"piece {number}: not tried yet" in parts.explain().mutated
    parts(torch.rand(2))
    told = parts.explain()
    captured = [n for n, piece in enumerate(parts.segments) if piece.captured is not None]
    eager = [n for n, piece in enumerate(parts.segments) if piece.captured is None]
    assert captured
    assert eager
    assert any(line.startswith(f"piece {captured[0]}: ") for line in told.mutated)
    for number in eager:
        assert f"piece {number}: whatever its operators write in eager" in told.mutated
    assert {line.partition(":")[0] for line in told.outputs} == {
        f"piece {number}" for number in captured + eager
    }
    assert {line.partition(":")[0] for line in told.guards} <= {f"piece {n}" for n in captured}
