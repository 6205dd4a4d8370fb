"""The steps of the state machine in which somebody other than the caller looks at the module.

A step is a hypothesis rule that is counted. One marked :func:`comparable` runs only when looking
at the code of both modules means the same (see :mod:`._pair`).
"""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from torch import fx, nn

from lazyfx_core._instance_class import user_class

from ._diff import assert_graphs_equal
from ._pair import assert_same_state, assert_same_tensors, run

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._pair import Outcome, Pair

    _Step = TypeVar("_Step", bound=Callable[..., None])


def step(**strategies: st.SearchStrategy[Any]) -> Callable[[_Step], Any]:
    """A hypothesis rule that counts its runs in ``executed``."""

    def decorate(function: _Step) -> Any:
        @functools.wraps(function)
        def counted(self: ObserverSteps, **drawn: Any) -> None:
            type(self).executed[function.__name__] += 1
            function(self, **drawn)

        make_rule: Any = rule
        return make_rule(**strategies)(counted)

    return decorate


def comparable(function: _Step) -> _Step:
    """Run the step only while the code of both modules was made from the same graph."""
    decorated: _Step = precondition(lambda self: not self.pair.diverged)(function)
    return decorated


class ObserverSteps(RuleBasedStateMachine):
    """Copies, pickles, texts, tracers and scripts."""

    executed: ClassVar[Counter[str]] = Counter()
    pair: Pair

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.executed = Counter()

    # --- texts --------------------------------------------------------------------------------

    @step()
    @comparable
    def read_the_code(self) -> None:
        """``code`` is the same text."""
        self.pair.assert_same_value(lambda gm: gm.code, "code")
        self.pair.looked()

    @step()
    @comparable
    def print_it(self) -> None:
        """``str()`` and ``repr()`` are the same texts."""
        self.pair.assert_same_value(str, "str()")
        self.pair.assert_same_value(repr, "repr()")
        self.pair.looked()

    @step()
    def print_readable(self) -> None:
        """``print_readable()`` shows the graph as it is now, and is no look."""
        self.pair.assert_same_value(lambda gm: gm.print_readable(False), "print_readable()")

    @step()
    @comparable
    def inspect_it(self) -> None:
        """Signature, annotations and argument names of ``forward``."""
        self.pair.assert_same_value(lambda gm: str(inspect.signature(gm.forward)), "signature")
        self.pair.assert_same_value(lambda gm: str(gm.forward.__annotations__), "annotations")
        self.pair.assert_same_value(
            lambda gm: gm.forward.__code__.co_varnames, "names of local variables"
        )
        self.pair.looked()

    @step()
    @comparable
    def read_what_recompile_returns(self) -> None:
        """``recompile()`` returns code that can be read, for both."""
        if self.pair.child_edited:
            self.pair.recompile()
        self.pair.assert_same_value(lambda gm: gm.recompile().src, "recompile().src")
        self.pair.recompiled()
        self.pair.looked()

    # --- copies -------------------------------------------------------------------------------

    @step(go_on=st.booleans())
    def deepcopy(self, go_on: bool) -> None:
        """Copies have class, graph, metadata, state and results; perhaps go on with them."""
        self.pair.mark()
        plain, tested = self.pair.both(copy.deepcopy, "deepcopy")
        if plain.error is None:
            self._compare_copies(plain.value, tested.value, "a deep copy")
            if go_on:
                again = self.pair.both(copy.deepcopy, "deepcopy")
                self.pair.plain, self.pair.tested = (outcome.value for outcome in again)
                # Copies of plain modules are called "GraphModule" whatever was copied.
                type(self.pair.plain).__name__ = type(self.pair.tested).__name__
                self.pair.mark()  # the nodes that copied metadata refers to are the old ones
                self.pair.recompile()

    @step()
    @comparable
    def copy(self) -> None:
        """A shallow copy has the same graph and metadata; calling it moves the same buffers."""
        self.pair.mark()
        plain, tested = self.pair.both(copy.copy, "copy")
        if plain.error is None:
            self._compare_copies(plain.value, tested.value, "a copy")
        for gm in (self.pair.plain, self.pair.tested):
            gm.graph.owning_module = gm  # it is the copy's now, for both

    @step(through=st.sampled_from(("pickle", "torch.save")))
    def pickle(self, through: str) -> None:
        """What is loaded equals what was stored: in-place operators, names, metadata, state.

        Not compared with a plain module's pickle: that loses the first three.
        """
        self.pair.mark()
        expected = run(lambda: copy.deepcopy(self.pair.plain))
        if not self.pair.is_lazy or expected.error is not None:
            return
        store = _through_pickle if through == "pickle" else _through_torch_save
        loaded = run(lambda: store(self.pair.tested))
        if loaded.error is not None:
            raise AssertionError(f"{through} raised") from loaded.error
        what = f"what was loaded from {through}"
        self._assert_same_class(loaded.value, what)
        assert_same_state(self.pair.tested, loaded.value, what)
        assert_same_tensors(self.pair.tested, loaded.value, what)
        self.pair.assert_same_calls(expected.value, loaded.value, what)

    def _compare_copies(self, plain: fx.GraphModule, tested: fx.GraphModule, what: str) -> None:
        self._assert_same_class(tested, what)
        assert_same_state(plain, tested, f"the state of {what}")
        assert_same_tensors(self.pair.tested, tested, what)
        # Not the modules: copying drops graph modules that the graph no longer calls, for both.
        assert_graphs_equal(self.pair.tested.graph, tested.graph)
        self.pair.assert_same_calls(plain, tested, what)

    def _assert_same_class(self, tested: fx.GraphModule, what: str) -> None:
        if user_class(type(tested)) is not user_class(type(self.pair.tested)):
            raise AssertionError(
                f"{what} should be a {user_class(type(self.pair.tested)).__name__}, is a "
                f"{user_class(type(tested)).__name__}"
            )

    # --- tracers ------------------------------------------------------------------------------

    @step()
    def interpret(self) -> None:
        """``fx.Interpreter`` runs the graph, not the code."""
        if not self.pair.diverged:
            plain, tested = self.pair.plain, self.pair.tested
            self.pair.assert_same_calls(
                fx.Interpreter(plain).run, fx.Interpreter(tested).run, "Interpreter"
            )

    @step()
    def transform(self) -> None:
        """``fx.Transformer`` rebuilds the graph."""
        if not self.pair.diverged:
            plain, tested = self.pair.both(lambda gm: fx.Transformer(gm).transform(), "Transformer")
            self._compare_traces(plain, tested, "Transformer")

    @step(inside_a_parent=st.booleans())
    @comparable
    def trace_symbolically(self, inside_a_parent: bool) -> None:
        """What ``fx.symbolic_trace`` does to the module, or to a module that calls it."""
        plain, tested = self.pair.both(
            lambda gm: _trace(_Parent(gm) if inside_a_parent else gm), "symbolic_trace"
        )
        self.pair.settle()
        self._compare_traces(plain, tested, "symbolic_trace")

    def _compare_traces(self, plain: Outcome, tested: Outcome, what: str) -> None:
        if plain.error is None:
            assert_graphs_equal(plain.value, tested.value)
            self.pair.assert_same_calls(plain.value, tested.value, what)

    # --- TorchScript --------------------------------------------------------------------------

    @step()
    @comparable
    def script(self) -> None:
        """``torch.jit.script`` works where it does for plain modules."""
        plain, tested = self.pair.both(torch.jit.script, "jit.script", messages=False)
        self.pair.settle()
        if plain.error is None:
            self.pair.assert_same_calls(plain.value, tested.value, "jit.script")

    @step()
    @comparable
    def trace(self) -> None:
        """``torch.jit.trace`` works where it does for plain modules."""
        inputs = self.pair.inputs
        trace: Any = torch.jit.trace  # has no annotations
        if not all(isinstance(value, torch.Tensor) for value in inputs):
            return
        plain, tested = self.pair.both(
            lambda gm: trace(gm, tuple(value.clone() for value in inputs), check_trace=False),
            "jit.trace",
            messages=False,
        )
        self.pair.settle()
        if plain.error is None:
            self.pair.assert_same_calls(plain.value, tested.value, "jit.trace")


class _Parent(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        return self.inner(*args)


class _Tracer(fx.Tracer):
    """Numbers the constants it meets by module; torch's counts through the whole process."""

    def get_fresh_qualname(self, prefix: str) -> str:
        return next(f"{prefix}{i}" for i in count() if not hasattr(self.root, f"{prefix}{i}"))


def _trace(module: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    graph = tracer.trace(module)
    return fx.GraphModule(tracer.root, graph)


def _through_pickle(gm: fx.GraphModule) -> Any:
    return pickle.loads(pickle.dumps(gm))


def _through_torch_save(gm: fx.GraphModule) -> Any:
    buffer = io.BytesIO()
    torch.save(gm, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)
