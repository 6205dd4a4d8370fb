"""From a graph that shows a fault to a small one that still does.

Rounds of: fewer calls, fewer outputs, calls replaced by what they read, inputs that become one,
smaller sizes; until a round finds nothing smaller. Each step only takes what is smaller by
:meth:`Case.measure`, so the search ends.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

import lazyfx_core
from lazyfx_compilers._torch_standalone import copied, seed
from lazyfx_tools.compare._reference import RandomState

from ._case import Case, Fact, changes_inputs, facts, is_getitem, is_random, part
from ._sizes import smaller_sizes
from ._subset import smallest, without_single

log = logging.getLogger("lazyfx_tools.minify")

Predicate = Callable[[fx.GraphModule, list[Any]], bool]
_ROUNDS = 5
_OFTEN = 3  # how often a predicate is asked that does not always say the same


class OutOfBudgetError(Exception):
    """No more tries, or no more time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where a search stands: how often the predicate was asked, and the smallest graph so far."""

    tries: int
    nodes: int
    inputs: int


class Search:
    """The smallest case so far, and what finds smaller ones.

    Attributes:
        case: The smallest case for which the predicate held.
        tries: How often the predicate was asked.
        failed: How often it raised.
        failure: What it raised first.
        flaky: Ask several times.
    """

    def __init__(
        self,
        case: Case,
        predicate: Predicate,
        *,
        max_tries: int,
        deadline: float,
        progress: Callable[[Progress], None],
    ) -> None:
        self.case = case
        self.tries = 0
        self.failed = 0
        self.failure: Exception | None = None
        self.flaky = False
        self._predicate = predicate
        self._max_tries = max_tries
        self._deadline = deadline
        self._progress = progress
        self._known: dict[Any, bool] = {}
        self._edits = 0  # after an edit, values of the same name are others

    def ask(self, case: Case) -> bool:
        """What the predicate says of copies of a case; what it raises goes through."""
        self.tries += 1
        calls, inputs, _, _ = self.case.measure()
        self._progress(Progress(tries=self.tries, nodes=calls, inputs=inputs))
        with seeded():
            return bool(self._predicate(copy.deepcopy(case.gm), copied(case.inputs)))

    def accepts(self, case: Case | None) -> bool:
        """Whether the predicate holds for a case, which then is the smallest if it is smaller."""
        if case is None:
            return False
        key = _key(case, self._edits)
        held = self._known.get(key) if key is not None else None
        if held is None:
            held = self._ask_often(case)
            if key is not None:
                self._known[key] = held
        if held and case.measure() < self.case.measure():
            self.case = case
            log.debug("try %d: nodes, inputs, outputs, bytes: %s", self.tries, case.measure())
        return held

    def run(self) -> bool:
        """Search; returns whether it came to an end before its budget did."""
        try:
            self._fewer_calls(first=True)
            for number in range(_ROUNDS):
                before = self.case.measure()
                if number:
                    self._fewer_calls(first=False)
                self._fewer_outputs()
                self._bypass()
                self._fewer_inputs()
                self._smaller_sizes()
                if self.case.measure() == before:
                    return True
        except OutOfBudgetError:
            return False
        return True

    def _ask_often(self, case: Case) -> bool:
        for _ in range(_OFTEN if self.flaky else 1):
            if self.tries >= self._max_tries or time.monotonic() > self._deadline:
                raise OutOfBudgetError
            try:
                if self.ask(case):
                    return True
            except Exception as error:
                self.failed += 1
                self.failure = self.failure or error
        return False

    def _fewer_calls(self, *, first: bool) -> None:
        case = self.case
        known = facts(case)
        units = _units(case, known)

        def holds(chosen: Sequence[tuple[fx.Node, ...]]) -> bool:
            kept = {node for unit in chosen for node in unit}
            return self.accepts(part(case, known, kept))

        if not first:
            without_single(units, holds)
            return
        calm = [unit for unit in units if not any(is_random(node) for node in unit)]
        if calm and len(calm) < len(units) and holds(calm):
            units = calm  # what draws random numbers may differ for reasons of its own
        smallest(units, holds)

    def _fewer_outputs(self) -> None:
        case = self.case
        known = facts(case)
        outputs = case.outputs()
        free = [node for node in outputs if len(node.users) > 1 or is_getitem(node)]

        def holds(chosen: Sequence[fx.Node]) -> bool:
            kept = [node for node in outputs if node not in free or node in chosen]
            unread = {n for n in free if n not in kept and is_getitem(n) and len(n.users) == 1}
            calls = {node for node in case.calls() if node not in unread}
            if not kept or _leaves_dead(calls, kept):
                return False
            return self.accepts(part(case, known, calls, outputs=kept))

        if len(outputs) > 1 and free:
            left = smallest(free, holds)
            if len(left) == 1 and len(outputs) > len(free):
                holds([])

    def _bypass(self) -> None:
        done: set[str] = set()
        again = True
        while again:
            again = False
            case = self.case
            known = facts(case)
            for node in reversed(case.calls()):
                if node.name in done:
                    continue
                done.add(node.name)
                if any(self._replace(case, known, node, one) for one in node.all_input_nodes):
                    again = True
                    break

    def _fewer_inputs(self) -> None:
        done: set[str] = set()
        again = True
        while again:
            again = False
            case = self.case
            known = facts(case)
            inputs = case.placeholders()
            for i, node in reversed(list(enumerate(inputs))):
                value = case.inputs[i]
                if node.name in done:
                    continue
                done.add(node.name)
                tensor = isinstance(value, torch.Tensor)
                others: list[Any] = [
                    one for one in inputs[:i] if tensor and known[one] == known[node]
                ][:1]
                if type(value) in (int, float, bool):
                    others = [value]
                if any(self._replace(case, known, node, one) for one in others):
                    again = True
                    break

    def _replace(self, case: Case, known: dict[fx.Node, Fact], node: fx.Node, by: Any) -> bool:
        if isinstance(by, fx.Node) and (known[by] != known[node] or known[node].kind != "tensor"):
            return False
        if (
            isinstance(by, fx.Node)
            and "int" in str(known[node].description[0])
            and (not str(known[node].description[3]).startswith("cpu"))
        ):
            return False  # an index out of bounds ends all work on an accelerator
        calls = {one for one in case.calls() if one is not node}
        return self._edits_to(part(case, known, calls, replaced={node: by}))

    def _smaller_sizes(self) -> None:
        again = True
        while again:
            again = any(self._edits_to(case) for case in smaller_sizes(self.case))

    def _edits_to(self, case: Case | None) -> bool:
        accepted = self.accepts(case)
        self._edits += accepted
        return accepted


class seeded:
    """The same random numbers inside each time; outside nothing has happened."""

    def __enter__(self) -> None:
        self._before = RandomState.now()
        seed()

    def __exit__(self, *error: Any) -> None:
        self._before.restore()


def _units(case: Case, known: dict[fx.Node, Fact]) -> list[tuple[fx.Node, ...]]:
    """Calls, each with what takes values out of the list it gives, or takes what is no tensor.

    So a context that is entered is also left.
    """
    units: dict[fx.Node, list[fx.Node]] = {}
    owner: dict[fx.Node, fx.Node] = {}
    for node in case.calls():
        owner[node] = node
        for source in node.all_input_nodes:
            listed = is_getitem(node) and known[source].kind == "list"
            if source in owner and (listed or known[source].kind == "other"):
                owner[node] = owner[source]
                break
        units.setdefault(owner[node], []).append(node)
    return [tuple(unit) for unit in units.values()]


def _leaves_dead(calls: Collection[fx.Node], outputs: Collection[fx.Node]) -> bool:
    return any(
        node not in outputs
        and not changes_inputs(node)
        and not any(user in calls for user in node.users)
        for node in calls
    )


def _key(case: Case, edits: int) -> Any:
    """Equal for cases that are the same: names tell where in the first graph a value comes from."""
    try:
        text = lazyfx_core.graph_hash(case.gm, names=True)
    except lazyfx_core.LazyFxError:
        return None  # something in it has no stable name
    shapes = [
        (one.shape, one.stride())
        if isinstance(one, torch.Tensor) and one.layout is torch.strided
        else repr(one)[:200]
        for one in case.inputs
    ]
    return edits, text, tuple(shapes)
