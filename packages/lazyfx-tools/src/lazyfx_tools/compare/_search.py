"""Finding the first node that a compiler gets wrong.

The whole graph is compiled and compared, and then the graph with every value in it as a result. If
all agrees, that is all. Otherwise:

1. Operators of which eager differs from run to run, and random operators for which the compiler
   draws other numbers, become inputs with the reference's values; they themselves are compared by
   description and distribution.
2. Where compiling or running raises, the shortest beginning of the graph that raises is looked for
   by bisection; what is wrong before its last node is to blame, or that node.
3. Of the values that differ, the first one whose node is wrong as well when it is compiled by
   itself is to blame.
   Where no value differs, but some are only excused by the error that eager has collected on the
   way there, the first of these are looked at by themselves too.
4. If there is none, and the results of the whole graph are right, rounding has added up: no node is
   to blame. If they are wrong, it is the node that has written an input, the first value that
   differs, or the later node that has written to it; or, before that, a node whose error is within
   eager's tolerance, if all is right without it.
5. If no value differs while all are visible, but the results of the graph do, the shortest
   beginning of the graph that differs is looked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from lazyfx_compilers import _torch_randomness

from ._graphs import alone, cut, exposing, items, lifted, operator_of
from ._noise import same_distribution
from ._reference import duplicate
from ._trial import Trials, any_value
from ._values import Judge, identical

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from ._graphs import Problem
    from ._reference import Reference, Run
    from ._trial import Outcome
    from ._values import Mismatch

_MOST_ALONE = 32
_MOST_ROUNDS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Culprit:
    """The node to blame, by name in the graph that was searched.

    Attributes:
        node: Which node.
        mismatch: What differs; None if it raises.
        exact: What it should be, in float64.
        raised: What was raised.
        alone: Whether it is wrong when compiled by itself.
        also: How many more values differ.
    """

    node: fx.Node
    mismatch: Mismatch | None = None
    exact: Any = None
    raised: Exception | None = None
    alone: bool = True
    also: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What a search has found."""

    culprit: Culprit | None = None
    redrawn: tuple[str, ...] = ()
    unstable: tuple[str, ...] = ()
    unseen: str | None = None


class Search:
    """The search in one graph.

    Args:
        problem: The graph and its inputs.
        trials: Runs parts of it.
    """

    def __init__(self, problem: Problem, trials: Trials) -> None:
        self._problem = problem
        self._trials = trials
        self.values: Mapping[str, Any] = environment(problem, trials)

    def run(
        self,
        reference: tuple[Reference, Run] | None = None,
        *,
        every_node: bool = True,
        check_determinism: bool = False,
    ) -> Finding:
        """Search.

        Args:
            reference: What the reference gave for the graph, if it has run.
            every_node: Look inside even if the results of the graph are right.
            check_determinism: Look for operators that differ from run to run even if nothing else
                differs.
        """
        problem, trials = self._problem, self._trials
        whole = trials.run(problem, reference=reference)
        if whole.ok and not every_node and not check_determinism:
            return Finding()
        inside = trials.run(exposing(problem))
        if whole.ok and inside.ok and not check_determinism:
            return Finding(culprit=self._excused(inside))
        if whole.ok and inside.raised is not None:
            return Finding(unseen=f"with more results, {_said(inside.raised)}")
        if whole.ok and not every_node:
            return Finding(unstable=tuple(self._unstable()))
        unstable = self._unstable()
        wrong, redrawn = self._redrawn(whole, inside, unstable)
        operators = [*unstable, *redrawn]
        if operators:
            problem = lifted(problem, operators, self.values)
            whole, inside = trials.run(problem), trials.run(exposing(problem))
        part = Search._of(problem, trials, self.values)
        found = [one for one in (wrong, part._culprit(whole, inside)) if one is not None]
        order = {node.name: place for place, node in enumerate(self._problem.gm.graph.nodes)}
        found.sort(key=lambda one: order.get(one.node.name, len(order)))
        return Finding(
            culprit=found[0] if found else None,
            redrawn=tuple(redrawn),
            unstable=tuple(unstable),
        )

    @staticmethod
    def _of(problem: Problem, trials: Trials, values: Mapping[str, Any]) -> Search:
        made = Search.__new__(Search)
        made._problem, made._trials, made.values = problem, trials, values
        return made

    # --- what differs anyway -----------------------------------------------------------------

    def _unstable(self) -> list[str]:
        """Operators of which eager differs from run to run, though what they take does not."""
        found: list[str] = []
        for _ in range(_MOST_ROUNDS):
            problem = lifted(self._problem, found, self.values) if found else self._problem
            shown = exposing(problem)
            runs = [self._trials.reference(shown)[1].outputs for _ in range(2)]
            noisy = {
                node
                for node, one, other in zip(shown.shown, *runs, strict=True)
                if node is not None and not identical(one, other) and not _unwritten_item(node)
            }
            roots = [
                operator_of(node).name
                for node in noisy
                if not any(one in noisy for one in operator_of(node).all_input_nodes)
            ]
            if not roots:
                break
            found += dict.fromkeys(roots)
        return found

    def _redrawn(
        self, whole: Outcome, inside: Outcome, unstable: Sequence[str]
    ) -> tuple[Culprit | None, list[str]]:
        """The random operators, if the compiler draws other numbers; one that draws wrong ones."""
        random = {
            node.name: node
            for node in self._problem.steps
            if _torch_randomness.draws(node) or node.name in unstable
        }
        differing: dict[str, Mismatch] = {}
        for node in self._problem.steps:
            if node.name in inside.results and operator_of(node).name in random:
                differing.setdefault(operator_of(node).name, inside.results[node.name])
        hidden = inside.ok and not whole.ok  # drawn in another order if not all is visible
        if not differing and not hidden:
            return None, []
        states = self._trials.reference(self._problem)[0].states
        for name in differing:
            node = random[name]
            mismatch = same_distribution(
                alone(self._problem, node, self.values), self._trials, states.get(name)
            )
            if mismatch is not None:
                return self._blamed(node, mismatch, also=len(inside.results) - 1), list(random)
        return None, [name for name in random if name not in unstable]

    # --- what is wrong -----------------------------------------------------------------------

    def _culprit(self, whole: Outcome, inside: Outcome) -> Culprit | None:
        if inside.raised is not None:
            return None if whole.ok else self._raising(inside.raised)
        found = self._wrong_alone(inside)
        if found is not None or whole.ok:
            return found
        if not inside.ok:
            return self._wrong_together(inside)
        return self._hidden(whole)

    def _raising(self, error: Exception) -> Culprit | None:
        """Where compiling or running raises even with all values visible."""
        steps = self._problem.steps
        place = _first(
            steps, lambda node: self._trials.run(exposing(self._problem, node)).raised is not None
        )
        node = operator_of(steps[place])
        before = self._before(node)
        if before is not None:
            part = exposing(self._problem, before)
            found = Search._of(part, self._trials, self.values).run().culprit
            if found is not None:
                return found
        here = self._trials.run(exposing(self._problem, node)).raised or error
        by_itself = self._trials.run(alone(self._problem, node, self.values)).raised
        return Culprit(node=node, raised=by_itself or here, alone=by_itself is not None)

    def _before(self, node: fx.Node) -> fx.Node | None:
        earlier = [one for one in self._problem.steps if one < node]
        return earlier[-1] if earlier else None

    def _wrong_alone(self, inside: Outcome) -> Culprit | None:
        for node, mismatch, exact in self._differing(inside)[:_MOST_ALONE]:
            outcome = self._trials.run(alone(self._problem, node, self.values))
            if outcome.raised is not None or outcome.ok:
                continue
            found = mismatch or outcome.first
            if outcome.inputs and not outcome.results:
                found = _as_mutation(found)
            also = len(inside.results) + len(inside.inputs) - 1
            return Culprit(node=node, mismatch=found, exact=exact, also=also)
        return None

    def _excused(self, inside: Outcome) -> Culprit | None:
        """The first node that is wrong by itself, of those that only eager's own error excused.

        Behind a value in bfloat16 that error is bfloat16's, in float32 as well.
        """
        nodes = [one for one in self._problem.steps if one.name in inside.excused]
        differing = {operator_of(one) for one in nodes}
        roots = [
            one
            for one in self._problem.steps
            if one in differing
            and not any(operator_of(each) in differing for each in one.all_input_nodes)
        ]
        for node in roots[:_MOST_ALONE]:
            outcome = self._trials.run(alone(self._problem, node, self.values))
            if outcome.results:
                name, mismatch = next(iter(outcome.results.items()))
                exact = outcome.exact.get(name)
                return Culprit(node=node, mismatch=mismatch, exact=exact, also=len(nodes) - 1)
        return None

    def _differing(self, inside: Outcome) -> list[tuple[fx.Node, Mismatch, Any]]:
        """The operators whose results differ, or that write an input that does, in order."""
        found: dict[fx.Node, tuple[Mismatch, Any]] = {}
        nodes = {node.name: node for node in self._problem.gm.graph.nodes}
        for name, mismatch in inside.results.items():
            node = operator_of(nodes[name])
            if node.op not in ("placeholder", "output"):
                found.setdefault(node, (mismatch, inside.exact.get(name)))
        for name, mismatch in inside.inputs.items():
            writers = {one.name for one in inside.writers.get(name, ())}
            for writer in writers:
                found.setdefault(nodes[writer], (_as_mutation(mismatch), inside.exact.get(name)))
        return [(node, *found[node]) for node in nodes.values() if node in found]

    def _wrong_together(self, inside: Outcome) -> Culprit:
        """No node is wrong by itself, but together they are."""
        steps = self._problem.steps
        also = len(inside.results) + len(inside.inputs) - 1
        results = self._differing(inside)
        writing = self._writing(inside)
        if writing is not None and (not results or writing.node < results[0][0]):
            return replace(writing, also=also)
        small = self._too_small_to_see(results[0][0])
        if small is not None:
            return replace(small, also=also)
        node, mismatch, exact = results[0]
        names = {one.name for one in (node, *items(node))}

        def differs(upto: fx.Node) -> bool:
            outcome = self._trials.run(exposing(self._problem, upto))
            return outcome.raised is not None or bool(names & outcome.results.keys())

        if mismatch.what != "mutation" and not differs(node):  # it was right, and written later
            later = [one for one in steps if node < one]
            if later:
                node = operator_of(later[_first(later, differs)])
                mismatch = _as_mutation(mismatch)
        return Culprit(node=node, mismatch=mismatch, exact=exact, alone=False, also=also)

    def _too_small_to_see(self, differing: fx.Node) -> Culprit | None:
        """A node before ``differing`` whose error, within eager's tolerance, makes that differ.

        A missing epsilon, say, before the root that magnifies it.
        """
        if not self._trials.judge.arbitrated:
            return None
        strict = Trials(self._trials.compiling, Judge(reference="float64"), self._trials.state)
        search = Search._of(self._problem, strict, self.values)
        found = search._wrong_alone(strict.run(exposing(self._problem)))
        if found is None or not found.node < differing:
            return None
        mended = exposing(lifted(self._problem, [found.node.name], self.values))
        outcome = self._trials.run(mended)
        still = outcome.raised is not None or differing.name in outcome.results
        return None if still else found

    def _writing(self, inside: Outcome) -> Culprit | None:
        """The first node that writes an input which nobody should write."""
        steps = self._problem.steps
        found = next((one for one in inside.inputs.items() if not inside.writers.get(one[0])), None)
        if found is None:
            return None
        name, mismatch = found

        def writes(part: Problem) -> bool:
            return name in self._trials.run(part).inputs

        node = operator_of(steps[_first(steps, lambda node: writes(exposing(self._problem, node)))])
        return Culprit(
            node=node,
            mismatch=_as_mutation(mismatch),
            exact=inside.exact.get(name),
            alone=writes(alone(self._problem, node, self.values)),
        )

    def _hidden(self, whole: Outcome) -> Culprit:
        """All values are right while they are visible, but not those of the whole graph."""
        steps = self._problem.steps
        place = _first(steps, lambda node: not self._trials.run(cut(self._problem, node)).ok)
        node = operator_of(steps[place])
        part = cut(self._problem, node)
        outcome = self._trials.run(part)
        if outcome.ok:  # it takes all of the graph
            outcome, part = whole, self._problem
        if outcome.raised is not None:
            return Culprit(node=node, raised=outcome.raised, alone=False)
        found = Search._of(part, self._trials, self.values)._differing(outcome)
        also = len(outcome.results) + len(outcome.inputs) - 1
        if found:
            first, mismatch, exact = found[0]
            return Culprit(node=first, mismatch=mismatch, exact=exact, alone=False, also=also)
        return Culprit(node=node, mismatch=outcome.first, alone=False, also=also)

    def _blamed(self, node: fx.Node, mismatch: Mismatch, also: int) -> Culprit:
        return Culprit(node=node, mismatch=mismatch, also=also)

    def gives_the_same_again(self, name: str) -> bool:
        """Whether the compiled graph gives the same value of a node twice."""
        shown = exposing(self._problem)
        try:
            run = self._trials.compiling.compiled(shown)
            runs = []
            for _ in range(2):
                self._trials.state.restore()
                runs.append(run(duplicate([shown.values[one] for one in shown.inputs])))
        except Exception:  # it was blamed for raising, or cannot be run with more results
            return True
        return all(
            identical(one, other)
            for node, one, other in zip(shown.shown, *runs, strict=False)
            if node is not None and operator_of(node).name == name and not _unwritten_item(node)
        )


def environment(problem: Problem, trials: Trials) -> dict[str, Any]:
    """What the reference has for every node, inputs as they are before the run."""
    trials.state.restore()
    interpreter = fx.Interpreter(problem.gm, garbage_collect_values=False)
    with torch.no_grad():
        interpreter.run(*duplicate([problem.values[name] for name in problem.inputs]))
    found = {node.name: value for node, value in interpreter.env.items()}
    return {**found, **problem.values}


def _first(steps: Sequence[fx.Node], is_bad: Callable[[fx.Node], bool]) -> int:
    """The place of the first node for which it is bad, if it is bad at the last one."""
    low, high = 0, len(steps) - 1
    while low < high:
        middle = (low + high) // 2
        if is_bad(steps[middle]):
            high = middle
        else:
            low = middle + 1
    return low


def _unwritten_item(node: fx.Node) -> bool:
    """Whether a node takes what an operator has not written, which says nothing about either."""
    return operator_of(node) is not node and any_value(node)


def _as_mutation(mismatch: Mismatch) -> Mismatch:
    return replace(mismatch, what="mutation")


def _said(error: Exception) -> str:
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text}"
