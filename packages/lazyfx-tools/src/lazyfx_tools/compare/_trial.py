"""One graph, run by the reference and compiled, and what differs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_aot, _torch_debug

from . import _graphs, _torch_compare
from ._reference import RandomState, Reference, Run, duplicate, flat
from ._values import Judge, Mismatch, identical

if TYPE_CHECKING:
    import contextlib
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

    from lazyfx_compilers._types import FxCompiler

    from ._graphs import Problem


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiling:
    """How a graph is compiled.

    Attributes:
        compiler: The compiler for graphs of this phase.
        surroundings: What AOTAutograd sets up around it.
        real: Whether it is given real inputs as examples, and not descriptions.
    """

    compiler: FxCompiler
    surroundings: Callable[[], contextlib.AbstractContextManager[None]]
    real: bool = False

    def compiled(self, problem: Problem) -> Callable[[list[Any]], list[Any]]:
        """Compile a copy of the graph; the result takes a list and gives flat outputs."""
        gm = _graphs.fresh(problem)
        if self.real:
            examples = duplicate([problem.values[name] for name in problem.inputs])
            # what runs a graph of AOTAutograd has set torch up so that it cannot trace
            with ThreadPoolExecutor(1) as elsewhere:
                function = elsewhere.submit(self._compile, gm, examples).result()
        else:
            function = self._compile(gm, [problem.examples[name] for name in problem.inputs])

        def run(inputs: list[Any]) -> list[Any]:
            boxed = getattr(function, "_boxed_call", False) and not self.real
            with torch.no_grad():
                return flat(function(list(inputs)) if boxed else function(*inputs))

        return run

    def _compile(self, gm: fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        with _torch_aot.compile_lock(), self.surroundings(), torch.set_grad_enabled(not self.real):
            return self.compiler(gm, examples)


class WrongResultError(Exception):
    """A compiled graph gives another number of results than the graph."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a trial has shown.

    Attributes:
        raised: What the compiler or the compiled graph has raised; nothing was compared then.
        results: What differs of the results, by the node that makes each.
        inputs: What differs of the inputs afterwards, by name.
        exact: The values in float64 of what differs, by the same names.
        writers: The nodes that write each input, by the input's name.
        excused: What :func:`torch.testing.assert_close` refuses of the results, and float64 allows.
    """

    raised: Exception | None = None
    results: dict[str, Mismatch] = field(default_factory=dict)
    inputs: dict[str, Mismatch] = field(default_factory=dict)
    exact: dict[str, Any] = field(default_factory=dict)
    writers: dict[str, list[fx.Node]] = field(default_factory=dict)
    excused: set[str] = field(default_factory=set)

    @property
    def ok(self) -> bool:
        """Whether all agrees."""
        return self.raised is None and not self.results and not self.inputs

    @property
    def first(self) -> Mismatch:
        """One of the differences."""
        return next(iter((self.results or self.inputs).values()))


class Trials:
    """Runs trials of parts of one graph.

    Args:
        compiling: How parts are compiled.
        judge: Tells what agrees.
        state: The random state that each trial begins with.
    """

    def __init__(self, compiling: Compiling, judge: Judge, state: RandomState) -> None:
        self.compiling = compiling
        self.judge = judge
        self.state = state

    def run(
        self,
        problem: Problem,
        *,
        state: RandomState | None = None,
        reference: tuple[Reference, Run] | None = None,
    ) -> Outcome:
        """Compare.

        Args:
            problem: What to run.
            state: The random state to begin with instead.
            reference: What the reference gave, if it has run.
        """
        state = state or self.state
        interpreter, expected = reference or self.reference(problem, state)
        if self.judge.reference == "float64":
            expected = self._with_exact(problem, state, expected)
        values = [problem.values[name] for name in problem.inputs]
        inputs = duplicate(values)
        try:
            compiled = self.compiling.compiled(problem)
            state.restore()
            outputs = compiled(inputs)
            if len(outputs) != len(expected.outputs):
                raise WrongResultError(  # noqa: TRY301
                    f"{len(outputs)} results instead of {len(expected.outputs)}"
                )
        except Exception as error:
            return Outcome(raised=error, writers=interpreter.writers)
        seen = Run(outputs=outputs, inputs=inputs)
        outcome = self._compared(problem, interpreter, expected, seen)
        if not outcome.ok and self.judge.reference == "eager":
            exact = self._with_exact(problem, state, expected)
            outcome = self._compared(problem, interpreter, exact, seen)
        return outcome

    def _with_exact(self, problem: Problem, state: RandomState, run: Run) -> Run:
        """``run`` with values in float64, unless eager does not give the same again.

        Then the difference to float64 is no rounding error.
        """
        _, again = self.reference(problem, state, exact=True)
        for node, one, other in zip(problem.shown, again.outputs, run.outputs, strict=True):
            if not any_value(node) and not identical(one, other):
                return run
        return replace(run, exact_outputs=again.exact_outputs, exact_inputs=again.exact_inputs)

    def reference(
        self, problem: Problem, state: RandomState | None = None, *, exact: bool = False
    ) -> tuple[Reference, Run]:
        """What the reference gives."""
        (state or self.state).restore()
        interpreter = Reference(problem.gm, exact=exact)
        values = [problem.values[name] for name in problem.inputs]
        return interpreter, interpreter.start(duplicate(values))

    def _compared(
        self, problem: Problem, interpreter: Reference, expected: Run, seen: Run
    ) -> Outcome:
        outcome = Outcome(writers=interpreter.writers)
        exact = expected.exact_outputs or [None] * len(expected.outputs)
        for node, one, other, true in zip(
            problem.shown, expected.outputs, seen.outputs, exact, strict=True
        ):
            name = "output" if node is None else node.name
            if name in outcome.results:
                continue
            recorded = None if node is None else node.meta.get("val")
            found = self._check(one, other, true, recorded)
            if found is None:
                if true is not None and not any_value(node) and not _is_close(one, other):
                    outcome.excused.add(name)
                continue
            if found.what in ("values", "nan") and any_value(node):
                continue
            outcome.results[name] = found
            outcome.exact[name] = true
        exact = expected.exact_inputs or [None] * len(expected.inputs)
        for name, one, other, true in zip(
            problem.inputs, expected.inputs, seen.inputs, exact, strict=True
        ):
            found = self._check(one, other, true, None)
            if found is not None:
                outcome.inputs[name] = found
                outcome.exact[name] = true
        homes = [_homes(problem.inputs, run.inputs) for run in (expected, seen)]
        for node, one, other in zip(problem.shown, expected.outputs, seen.outputs, strict=True):
            home = _home(other, homes[1])
            if home not in outcome.inputs:  # else it is a write, which also explains this
                found = _shared(_home(one, homes[0]), home)
                if found is not None:
                    outcome.results.setdefault("output" if node is None else node.name, found)
        return outcome

    def _check(self, expected: Any, seen: Any, exact: Any, recorded: Any) -> Mismatch | None:
        judged_exactly = self.judge.reference == "float64"
        found = self.judge.check(
            expected, seen, exact=exact if judged_exactly else None, recorded=recorded
        )
        if found is None or not self.judge.arbitrated:
            return found
        return self.judge.check(expected, seen, exact=exact, recorded=recorded)


def _homes(names: Sequence[str], inputs: Sequence[Any]) -> dict[int, str]:
    return {
        _torch_debug.storage_key(value): name
        for name, value in zip(names, inputs, strict=True)
        if isinstance(value, torch.Tensor) and value.layout is torch.strided
    }


def _home(value: Any, homes: Mapping[int, str]) -> str | None:
    """The input in whose memory a result is."""
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    return homes.get(_torch_debug.storage_key(value))


def _shared(expected: str | None, seen: str | None) -> Mismatch | None:
    if seen is None or seen == expected:  # a copy where eager has a view does no harm
        return None
    own = "memory of its own" if expected is None else f"the memory of {expected!r}"
    return Mismatch(what="aliasing", expected=own, seen=f"the memory of {seen!r}")


def _is_close(expected: Any, seen: Any) -> bool:
    if not isinstance(expected, torch.Tensor) or not isinstance(seen, torch.Tensor):
        return True
    return bool(Judge(reference="eager").close(expected, seen).all())


def any_value(node: fx.Node | None) -> bool:
    """Whether an output may be anything, since it is memory that nobody has written."""
    return node is not None and _torch_compare.is_uninitialized(node)
