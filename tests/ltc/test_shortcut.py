"""The short way for calls like the last one: it is taken, and it notices whatever has changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.overrides import TorchFunctionMode

import lazyfx_ltc as ltc

X = torch.randn(3, 4)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.drop = nn.Dropout(0.5)
        self.last = nn.Linear(4, 4)
        self.register_buffer("shift", torch.zeros(4))

    def forward(self, x: Any) -> Any:
        return self.last(self.drop(self.first(x).relu())) + self.shift


def both() -> tuple[ltc.CompiledGraph, fx.GraphModule]:
    gm = fx.symbolic_trace(Net().eval())
    gm.eval()
    with torch.no_grad():
        compiled = ltc.extract_compiled_graph(gm, (X,))
        compiled(X)
    assert compiled._shortcut is not None
    return compiled, gm


def taken(compiled: ltc.CompiledGraph, *args: Any) -> bool:
    from lazyfx_ltc._captured import MISS

    assert compiled._shortcut is not None
    return compiled._shortcut(args) is not MISS


def test_the_short_way_is_taken_and_right() -> None:
    compiled, gm = both()
    with torch.no_grad():
        assert taken(compiled, X)
        x = torch.randn(3, 4)
        torch.testing.assert_close(compiled(x), gm(x))


def replaced(gm: Any) -> None:
    gm.first.weight = nn.Parameter(torch.randn(4, 4))


def swapped(gm: Any) -> None:
    gm.first.weight.data = torch.randn(4, 4)


def tied(gm: Any) -> None:
    gm.last.weight = gm.first.weight


CHANGES: dict[str, tuple[Callable[[Any], Any], bool]] = {
    # What changes, and whether the short way must not be taken.
    "values": (lambda gm: gm.first.weight.data.mul_(2), False),
    "a parameter": (replaced, False),
    "data": (swapped, False),
    "a buffer": (lambda gm: setattr(gm, "shift", torch.ones(4)), False),
    "a transposed weight": (
        lambda gm: setattr(gm.first.weight, "data", torch.randn(4, 4).t()),
        True,
    ),
    "another dtype": (lambda gm: gm.double(), True),
    "train mode": (lambda gm: gm.train(), True),
    "train mode of one": (lambda gm: gm.drop.train(), True),
    "a setting": (lambda gm: setattr(gm.drop, "p", 0.1), True),
    "a new setting": (lambda gm: setattr(gm.first, "other", 1), True),
    "a submodule": (lambda gm: setattr(gm, "first", nn.Linear(4, 4, bias=False)), True),
    "a class": (lambda gm: setattr(gm.drop, "__class__", nn.Identity), True),
    "a child": (lambda gm: gm.first.add_module("more", nn.ReLU()), True),
    "no bias": (lambda gm: gm.first.register_parameter("bias", None), True),
    "a hook": (lambda gm: gm.first.register_forward_hook(lambda m, i, o: o + 1), True),
    "a hook before": (lambda gm: gm.last.register_forward_pre_hook(lambda m, i: i), True),
    "a parameter gone": (lambda gm: delattr(gm.first, "weight"), True),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_has_changed_is_seen(name: str) -> None:
    change, missed = CHANGES[name]
    compiled, gm = both()
    with torch.no_grad():
        change(gm)
        x = X.double() if name == "another dtype" else X
        assert taken(compiled, x) is not missed
        try:
            torch.manual_seed(0)
            want = gm(x)
        except Exception:  # a model that does not run any more
            with pytest.raises(ltc.LtcError):
                compiled(x)
            return
        torch.manual_seed(0)
        try:
            got = compiled(x)
        except ltc.LtcError:
            assert "hook" in name or "class" in name or "child" in name or "bias" in name
            return
        torch.testing.assert_close(got, want)


def test_global_hooks_and_ties_are_seen() -> None:
    compiled, gm = both()
    with torch.no_grad():
        handle = register_module_forward_hook(lambda m, i, o: None)
        try:
            assert not taken(compiled, X)
        finally:
            handle.remove()
        assert taken(compiled, X)
        tied(gm)
        assert not taken(compiled, X)


def test_tensors_of_other_looks_are_seen() -> None:
    compiled, _ = both()
    others = [
        torch.randn(4, 4),
        torch.randn(4, 3).t(),
        X.double(),
        nn.Parameter(X, requires_grad=False),
        torch.randn(3, 4).requires_grad_(),
        torch.randn(3, 4, 1),
        torch.randn(3, 4).to_sparse(),
        torch.complex(X, X).conj().imag,
        None,
        X.tolist(),
    ]
    with torch.no_grad():
        for other in others:
            assert not taken(compiled, other)
        assert not taken(compiled)
        assert not taken(compiled, X, X)
        assert taken(compiled, X)


def test_the_threads_state_is_seen() -> None:
    compiled, gm = both()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not taken(compiled, X)
        torch.testing.assert_close(compiled(X), gm(X))
    with torch.inference_mode():
        assert not taken(compiled, X)
    assert not taken(compiled, X)  # grad mode is on, and the weights require grad
    with pytest.raises(ltc.GradientError):
        compiled(X)
    with torch.no_grad():
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            assert not taken(compiled, X)
        finally:
            torch.set_default_dtype(before)
        assert taken(compiled, X)


def test_python_values_are_held_against_the_last_ones() -> None:
    graph = fx.Graph()
    a, b, c = (graph.placeholder(name) for name in "abc")
    graph.output(graph.call_function(torch.add, (a, c), {"alpha": b}))
    gm = fx.GraphModule(nn.Module(), graph)
    compiled = ltc.extract_compiled_graph(gm, (X, 1, X))
    for value in (1, 1, 1.0, 300, 300, 2, -1):
        other = torch.randn(3, 4)
        torch.testing.assert_close(compiled(X, value, other), gm(X, value, other))
    assert compiled._shortcut is not None


def test_arguments_that_nobody_looks_at_may_be_anything() -> None:
    gm = fx.symbolic_trace(lambda a, b, c: a + c)
    compiled = ltc.extract_compiled_graph(gm, (X, X.clone(), X.clone()))
    y = torch.randn(3, 4)
    compiled(X, X.clone(), y)
    captures = compiled.captures
    for unused in (torch.randn(7), torch.randn(3, 4, requires_grad=True), y):
        torch.testing.assert_close(compiled(X, unused, y), X + y)
    assert compiled.captures == captures


def test_arguments_that_share_memory_are_seen_where_the_model_writes() -> None:
    def model(a: Any, b: Any) -> Any:
        a.add_(1)
        return a * b

    gm = fx.symbolic_trace(model)
    compiled = ltc.extract_compiled_graph(gm, (X.clone(), X.clone()))
    compiled(X.clone(), X.clone())
    ours, theirs = torch.randn(4, 4), torch.empty(4, 4)
    theirs.copy_(ours)
    torch.testing.assert_close(compiled(ours[:3], ours[1:]), model(theirs[:3], theirs[1:]))
    assert torch.equal(ours, theirs)
    same, other = X.clone(), X.clone()
    torch.testing.assert_close(compiled(same, same), model(other, other))


def test_a_program_that_fails_leaves_the_short_way_usable() -> None:
    gm = fx.symbolic_trace(lambda a, i: a[i] + 1)
    compiled = ltc.extract_compiled_graph(gm, (X, torch.tensor([0, 1])))
    want = copy.deepcopy(compiled(X, torch.tensor([0, 1])))
    with pytest.raises(ltc.CaptureError, match="nothing was written"):
        compiled(X, torch.tensor([0, 9]))
    torch.testing.assert_close(compiled(X, torch.tensor([0, 1])), want)


def test_a_refused_call_prepares_nothing() -> None:
    def model(a: Any, b: Any, x: Any) -> Any:
        a.add_(x)
        b.add_(x)
        return a + b

    with torch.inference_mode():
        b = torch.zeros(3)
    compiled = ltc.extract_compiled_graph(
        fx.symbolic_trace(model), (torch.ones(3), torch.ones(3), torch.ones(3))
    )
    a = torch.zeros(3)
    for _ in range(3):
        with pytest.raises(ltc.GuardError, match="inference mode"):
            compiled(a, b, torch.ones(3))
    assert not a.any()


def test_a_state_set_anew_is_seen() -> None:
    compiled, gm = both()
    gm.first.__setstate__(nn.Linear(4, 4).__dict__)
    with torch.no_grad():
        assert not taken(compiled, X)
        torch.testing.assert_close(compiled(X), gm(X))
    assert compiled.captures == 2


def test_an_attribute_that_hides_a_child_is_seen() -> None:
    compiled, gm = both()
    gm.__dict__["first"] = nn.Linear(4, 4)
    with torch.no_grad():
        assert not taken(compiled, X)
        with pytest.raises(ltc.LtcError):
            compiled(X)


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result * 2 if func is torch.add else result


def test_modes_that_functions_would_pass_through_are_refused() -> None:
    gm = fx.symbolic_trace(lambda a: torch.add(a, 1))
    compiled = ltc.extract_compiled_graph(gm, (X,))
    compiled(X)
    for mode in (Doubling(), torch.device("meta")):
        with mode, pytest.raises(ltc.GuardError, match="a mode for torch functions is active"):
            compiled(X)
    with torch.device("cpu"):
        torch.testing.assert_close(compiled(X), X + 1)


def test_tensors_inside_of_a_transform_are_refused() -> None:
    gm = fx.symbolic_trace(lambda a: a + torch.rand_like(a))
    compiled = ltc.extract_compiled_graph(gm, (X[0],))
    compiled(X[0])
    with pytest.raises(ltc.LtcError, match="inside of a transform"):
        torch.vmap(compiled, randomness="different")(X)
