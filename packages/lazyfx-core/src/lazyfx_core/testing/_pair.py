"""A plain graph module and one under test, and what is known about the two.

**When looking is meaningful.** After an edit without ``recompile()`` a plain module, and a lazy
one that is fresh, go on running the code they have: they can be compared. A lazy module that is
*stale* when the edit is made has no code yet; its next look generates from the edited graph, while
the plain module runs the code of the last ``recompile()``. Both are right, ``fx`` asks for a
``recompile()`` after an edit, but they differ. The pair notes it (:attr:`Pair.diverged`), and until
the next ``recompile()`` only what works on the graph itself is compared.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from lazyfx_core._graph_module import LazyGraphModule

from ._case import GraphCase, clone_inputs, graph_modules
from ._diff import assert_graphs_equal
from ._edits import Edit, apply_edit
from ._outcome import Outcome, assert_same_outcome, run, run_unseeded, value_difference
from ._torch_values import same_elements, tensor_facts


class Pair:
    """Two modules over equal graphs with equal state, changed alike.

    Args:
        case: What to build both from; copied.
        cls: The class under test.
    """

    def __init__(self, case: GraphCase, cls: type[fx.GraphModule]) -> None:
        self.plain: fx.GraphModule = case.plain()
        self.tested: fx.GraphModule = case.build(cls)
        self.inputs = case.fresh_inputs()
        self.is_lazy = isinstance(self.tested, LazyGraphModule)
        self.stale = True
        """Whether the module under test, if it is lazy, should be stale now."""
        self.diverged = False
        """Whether a graph was edited whose module was stale, and not recompiled since."""
        self.child_edited = False
        """Whether the graph of a graph module inside was edited and not recompiled since."""
        self.mark()

    # --- changing both ------------------------------------------------------------------------

    def edit(self, edit: Edit, place: int = 0) -> str:
        """Apply ``edit`` to the graphs of the module, or of one inside, and tell nobody.

        Args:
            edit: What to do.
            place: 0 for the modules themselves; else which graph module inside, counted round.
        """
        plain = list(graph_modules(self.plain))[::-1]
        tested = list(graph_modules(self.tested))[::-1]
        index = place % len(plain)
        done = [apply_edit(both[index][1].graph, edit) for both in (plain, tested)]
        if done[0] != done[1]:
            raise AssertionError(f"one edit did {done[0]!r} to one, {done[1]!r} to the other")
        if done[0]:
            self.diverged |= is_stale(tested[index][1])
            self.child_edited |= index > 0
        return done[0]

    def recompile(self) -> None:
        """``recompile()`` on both; on graph modules inside first, if one of them was edited.

        (Whether ``fx.GraphModule.recompile`` reaches them differs between torch releases.)
        """
        for gm in (self.plain, self.tested):
            if self.child_edited:
                for _, child in graph_modules(gm):
                    child.recompile()
            gm.recompile()
        self.recompiled()

    def recompiled(self) -> None:
        """Note that both were recompiled."""
        self.stale = True
        self.diverged = self.child_edited = False

    def looked(self) -> None:
        """Note that the code of both was looked at."""
        self.stale = False

    def settle(self) -> None:
        """Take the flag as it is, after something that may look or not."""
        if self.is_lazy:
            self.stale = is_stale(self.tested)

    def mark(self) -> None:
        """Put metadata on both, and on the nodes there are now, for copies to keep."""
        for gm in (self.plain, self.tested):
            _mark(gm)

    # --- comparing ----------------------------------------------------------------------------

    def both(self, function: Any, what: str, *, messages: bool = True) -> tuple[Outcome, Outcome]:
        """Run ``function(module)`` on each and compare exceptions only; returns both outcomes."""
        outcomes = run(lambda: function(self.plain)), run(lambda: function(self.tested))
        expected, seen = (Outcome(value=None, error=o.error, inputs=()) for o in outcomes)
        assert_same_outcome(expected, seen, what, messages=messages)
        return outcomes

    def assert_same_value(self, function: Any, what: str) -> None:
        """``function(module)`` gives equal values for both, or raises alike."""
        expected, seen = self.both(function, what)
        difference = value_difference(expected.value, seen.value, what)
        if difference:
            raise AssertionError(difference)

    def assert_same_calls(self, plain: Any, tested: Any, what: str) -> None:
        """Calling ``plain`` and ``tested`` on the inputs gives the same outcome."""
        assert_same_outcome(run(plain, self.inputs), run(tested, self.inputs), what)

    def assert_same_state(self) -> None:
        """Graphs, metadata, parameters, buffers and flags agree; nothing is looked at.

        Raises:
            AssertionError: They do not.
        """
        assert_same_state(self.plain, self.tested, "state")
        if self.is_lazy and is_stale(self.tested) != self.stale:
            raise AssertionError(
                f"the module should be {_word(self.stale)}, is {_word(not self.stale)}"
            )

    def assert_same_results(self) -> None:
        """Both give the same results now, without looking at the code of a stale module.

        A stale module is interpreted, node by node.
        """
        if self.diverged:
            return
        if self.stale and self.is_lazy:
            runners = [fx.Interpreter(gm).run for gm in (self.plain, self.tested)]
            assert_same_outcome(
                # The plain module's code may be older than its graph, its graph never is.
                run(runners[0], self.inputs),
                run(runners[1], self.inputs),
                "interpreting the graph",
                messages=False,
            )
        else:
            self.assert_same_calls(self.plain, self.tested, "calling")


def assert_same_state(plain: fx.GraphModule, tested: fx.GraphModule, what: str) -> None:
    """Graphs, metadata, parameters, buffers and flags of two modules agree.

    Raises:
        AssertionError: They do not.
    """
    assert_graphs_equal(plain, tested, meta=True)
    difference = value_difference(_state(plain), _state(tested), what)
    if difference:
        raise AssertionError(difference)


def assert_same_tensors(before: fx.GraphModule, after: fx.GraphModule, what: str) -> None:
    """Parameters and buffers that two modules both have are the same, to the last bit.

    :func:`assert_same_state` allows for rounding; a copy must not round.

    Raises:
        AssertionError: They are not.
    """
    tensors = [dict([*gm.named_parameters(), *gm.named_buffers()]) for gm in (before, after)]
    for name, expected in tensors[0].items():
        seen = tensors[1].get(name, expected)
        if tensor_facts(expected) != tensor_facts(seen) or not same_elements(expected, seen):
            raise AssertionError(f"{name} of {what} should be {expected}, is {seen}")


def is_stale(gm: fx.GraphModule) -> bool:
    """Whether ``gm`` is lazy and will generate when it is looked at. Does not look."""
    return isinstance(gm, LazyGraphModule) and gm.needs_recompile


def gives_the_same_every_time(gm: fx.GraphModule, inputs: tuple[Any, ...]) -> bool:
    """Whether calls neither move buffers nor draw random numbers, so that threads may race.

    Calls ``gm`` twice and puts buffers and the random state back.
    """
    tensors = [*gm.buffers(), *gm.parameters()]
    before = [tensor.detach().clone() for tensor in tensors]
    with torch.random.fork_rng(devices=[]):
        random_state = torch.get_rng_state()
        outcomes = [run_unseeded(gm, clone_inputs(inputs)) for _ in range(2)]
        unchanged = torch.equal(random_state, torch.get_rng_state())
    for tensor, old in zip(tensors, before, strict=True):
        if value_difference(old, tensor.detach(), ""):
            unchanged = False
            with torch.no_grad():
                tensor.copy_(old)
    return unchanged and not value_difference(outcomes[0].value, outcomes[1].value, "")


def _state(gm: fx.GraphModule) -> dict[str, Any]:
    return {
        "parameters": dict(gm.named_parameters()),
        "buffers": dict(gm.named_buffers()),
        "saved": list(gm.state_dict()),
        "training": {name: module.training for name, module in gm.named_modules()},
        "owners": {name: m.graph.owning_module is m for name, m in graph_modules(gm)},
    }


def _mark(gm: fx.GraphModule) -> None:
    """Metadata of every kind that plain copies keep: plain, nested, and nodes in ``node.meta``.

    Every second node gets some, and refers to the node before it. ``gm.meta`` holds no node: the
    deep copy of a plain module then holds a copy of that node which is in no graph.
    """
    for name, child in graph_modules(gm):
        child.meta["lazyfx_testing"] = {"name": name, "nested": [[-0.0, None], {"a": (1, [True])}]}
        before: list[fx.Node] = []
        for index, node in enumerate(child.graph.nodes):
            node.meta.pop("lazyfx_testing", None)  # it may refer to a node that is gone
            if index % 2 or node.op == "output":
                node.meta["lazyfx_testing"] = {"index": index, "nested": [2.5, ("b", before[-1:])]}
            before.append(node)


def _word(stale: bool) -> str:
    return "stale" if stale else "fresh"
