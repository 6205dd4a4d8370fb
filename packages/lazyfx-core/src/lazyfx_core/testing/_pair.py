"""A plain graph module and one under test, and what is known about the two.

**When looking is meaningful.** After an edit without ``recompile()`` a plain module, and a lazy
one that is fresh, go on running the code they have: they can be compared. A lazy module that is
*stale* when the edit is made has no code yet; its next look generates from the edited graph, while
the plain module runs the code of the last ``recompile()``. Both are right, ``fx`` asks for a
``recompile()`` after an edit, but they differ. The pair notes it (:attr:`Pair.diverged`), and until
the next ``recompile()`` only what works on the graph itself is compared.

**What behaving alike means.** The same call gives the same :class:`Outcome` on both: results, and
what became of the inputs. An exception is an outcome too: where the plain module raises, the other
must raise the same type with the same text.
"""

from __future__ import annotations

import math
import re
import traceback
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from lazyfx_core._graph_module import LazyGraphModule

from ._case import GraphCase, clone_inputs, graph_modules
from ._diff import assert_graphs_equal
from ._edits import Edit, apply_edit
from ._torch_values import same_elements, tensor_facts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_NUMBERED = re.compile(r"0x[0-9a-f]+|<eval_with_key>\.\d+|___torch_mangle_\d+\.?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One run.

    Attributes:
        value: What was returned; None if something was raised.
        error: What was raised, or None.
        inputs: The inputs after the run.
    """

    value: Any
    error: Exception | None
    inputs: tuple[Any, ...]


def run(function: Callable[..., Any], inputs: tuple[Any, ...] = ()) -> Outcome:
    """Call ``function`` on clones of ``inputs`` with torch's random numbers at a fixed seed.

    Those of CUDA are once CUDA is in use: a function that starts it should be called once before.
    Leaves the global random state as it was and drops warnings. Not for several threads at once:
    both are global.
    """
    clones = clone_inputs(inputs)
    with own_random_state(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seed_everything_in_use()
        return run_unseeded(function, clones)


def seed_everything_in_use() -> None:
    """Seed torch's global generators with 0; what CUDA was given before it is used stays."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(0)


@contextmanager
def own_random_state() -> Iterator[None]:
    """Put the states of torch's global generators back, those of CUDA too.

    CUDA is not set up for that: if it was first used inside, its generators begin afterwards where
    ``torch.manual_seed`` has them begin.
    """
    cpu, *cuda = _random_state()
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        elif torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            torch.cuda.manual_seed_all(torch.initial_seed())


def _random_state() -> list[torch.Tensor]:
    """The state of the CPU's generator, and of those of CUDA if it is in use."""
    used = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if used else ())]


def run_unseeded(function: Callable[..., Any], inputs: tuple[Any, ...]) -> Outcome:
    """Call ``function`` on ``inputs`` themselves and touch no global state."""
    try:
        return Outcome(value=function(*inputs), error=None, inputs=inputs)
    except Exception as error:
        # torch 2.6 crashes if what a failed script holds is freed in another thread.
        traceback.clear_frames(error.__traceback__)
        return Outcome(value=None, error=error, inputs=inputs)


def assert_same_outcome(
    expected: Outcome, seen: Outcome, what: str, *, messages: bool = True
) -> None:
    """Raise unless two runs agree in results or exception, and in what became of the inputs.

    Args:
        expected: The run of the plain module.
        seen: The run of the module under test.
        what: Says in the message what was run.
        messages: Whether the texts of exceptions must agree, save for addresses and numbers that
            torch counts up.

    Raises:
        AssertionError: They differ. An unexpected exception is the ``__cause__``.
    """
    if type(expected.error) is not type(seen.error):
        raise AssertionError(
            f"{what}: the plain module {_ended(expected)}, the one under test {_ended(seen)}"
        ) from (seen.error or expected.error)
    if messages and _text(expected.error) != _text(seen.error):
        raise AssertionError(
            f"{what}: the plain module raised {_text(expected.error)!r}, the one under test "
            f"{_text(seen.error)!r}"
        ) from seen.error
    difference = value_difference(expected.value, seen.value, "result") or value_difference(
        expected.inputs, seen.inputs, "inputs after the call"
    )
    if difference:
        raise AssertionError(f"{what}: {difference}")


def value_difference(expected: Any, seen: Any, where: str) -> str:
    """Where two nested values differ, as text; empty if they are equal. ``nan`` equals ``nan``."""
    if type(expected) is not type(seen):
        return f"{where} should be a {type(expected).__name__}, is a {type(seen).__name__}"
    if isinstance(expected, torch.Tensor):
        return _tensor_difference(expected, seen, where)
    if isinstance(expected, dict):
        if list(expected) != list(seen):
            return f"{where} should have the keys {list(expected)}, has {list(seen)}"
        pairs = [(expected[key], seen[key], f"{where}[{key!r}]") for key in expected]
    elif isinstance(expected, (list, tuple)):
        if len(expected) != len(seen):
            return f"{where} should have {len(expected)} items, has {len(seen)}"
        pairs = [
            (*both, f"{where}[{i}]") for i, both in enumerate(zip(expected, seen, strict=True))
        ]
    else:
        both_nan = isinstance(expected, float) and math.isnan(expected) and math.isnan(seen)
        return (
            "" if both_nan or expected == seen else f"{where} should be {expected!r}, is {seen!r}"
        )
    return next(filter(None, (value_difference(*pair) for pair in pairs)), "")


def _tensor_difference(expected: torch.Tensor, seen: torch.Tensor, where: str) -> str:
    for field in ("dtype", "shape", "device", "requires_grad"):
        values = getattr(expected, field), getattr(seen, field)
        if values[0] != values[1]:
            return f"{where}.{field} should be {values[0]}, is {values[1]}"
    if torch.allclose(expected, seen, equal_nan=True):
        return ""
    return f"{where} should be {expected.tolist()}, is {seen.tolist()}"


def _ended(outcome: Outcome) -> str:
    if outcome.error is None:
        return "returned"
    return f"raised {type(outcome.error).__name__}: {_text(outcome.error)}"


def _text(error: Exception | None) -> str:
    return _NUMBERED.sub("#", str(error))


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
    with own_random_state():
        random_state = _random_state()
        outcomes = [run_unseeded(gm, clone_inputs(inputs)) for _ in range(2)]
        unchanged = all(map(torch.equal, random_state, _random_state()))
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
