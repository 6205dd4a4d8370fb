"""``GraphModuleMachine``: random walks that compare a graph module class with ``fx.GraphModule``.

The machine keeps two modules over equal graphs, one plain and one of the class under test, and
does the same to both: edits, recompiles, calls, copies, pickles, scripts, threads. After each step
graphs, state and the stale flag must be as expected and both modules must give the same results
and mutate the same things. What is comparable when is explained in :mod:`._pair`.

Checking must not look at code where the step did not: a machine that calls the module after each
step never has a stale module. While stale, the module is therefore interpreted instead of called.

Steps are in two files, this one (changing and calling) and :mod:`._observers` (everybody else).
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition
from torch import fx, nn

from lazyfx_core._graph_module import LazyGraphModule
from lazyfx_core.errors import InvalidGraphError

from ._case import GraphCase, clone_inputs, copy_graph
from ._edits import Edit, InvalidEdit, apply_edit, broken, edits, invalid_edits
from ._graphs import graph_cases
from ._observers import ObserverSteps, comparable, step
from ._pair import Pair, assert_same_outcome, gives_the_same_every_time, is_stale, run, run_unseeded

if TYPE_CHECKING:
    from collections.abc import Callable

_THREADS = 4
_LOOKS: dict[str, Callable[[Any], object]] = {
    "call": lambda gm: gm(),
    "forward": lambda gm: gm.forward,
    "class forward": lambda gm: type(gm).forward,
    "code": lambda gm: gm.code,
    "text": str,
}


class GraphModuleMachine(ObserverSteps):
    """Compares :attr:`module_class` with ``torch.fx.GraphModule``, step by step.

    Subclass it to test a class of your own; the module is built as
    ``module_class(root, graph, class_name)``, and the class must be importable by name, since
    pickles name it. If it is no ``LazyGraphModule``, what is special to lazy modules is not
    checked. A step that does not fit is switched off by setting its name to None in the subclass.

    Attributes:
        module_class: The class under test.
        cases: What the modules are built from. Any strategy of :class:`GraphCase`.
        executed: How often each step ran, of this machine class, since it was defined.

    Not thread-safe: seeds torch's random numbers and silences warnings while it compares.

    Example:
        >>> from hypothesis import settings
        >>> from hypothesis.stateful import run_state_machine_as_test
        >>> class SmallGraphs(GraphModuleMachine):
        ...     module_class = LazyGraphModule  # or a subclass of yours
        ...     cases = graph_cases(max_nodes=4, higher_order=False)
        >>> quick = settings(max_examples=2, stateful_step_count=5, deadline=None, database=None)
        >>> run_state_machine_as_test(SmallGraphs, settings=quick)
        >>> SmallGraphs.executed.total() > 0
        True

        In a test file, ``TestSmallGraphs = SmallGraphs.TestCase`` lets pytest run it.
    """

    module_class: ClassVar[type[fx.GraphModule]] = LazyGraphModule
    cases: ClassVar[st.SearchStrategy[GraphCase]] = graph_cases()

    @initialize(data=st.data())
    def build(self, data: st.DataObject) -> None:
        """Build both modules."""
        self.pair = Pair(data.draw(self.cases, label="case"), self.module_class)
        self.saved: tuple[Any, Any] | None = None
        self.added = 0

    # --- after each step ----------------------------------------------------------------------

    @invariant()
    def state_is_the_same(self) -> None:
        """Graphs, parameters, buffers, training flags, owners and the stale flag."""
        if hasattr(self, "pair"):
            self.pair.assert_same_state()

    @invariant()
    def results_are_the_same(self) -> None:
        """Results, mutated inputs and mutated buffers, without looking at a stale module."""
        if hasattr(self, "pair"):
            self.pair.assert_same_results()

    def teardown(self) -> None:
        """At the end of every walk: all children fresh, both called once more."""
        if hasattr(self, "pair"):
            self.pair.recompile()
            self.pair.assert_same_calls(self.pair.plain, self.pair.tested, "the last call")

    # --- editing ------------------------------------------------------------------------------

    @step(edit=edits(), place=st.integers(0, 3))
    def edit_without_recompile(self, edit: Edit, place: int) -> None:
        """Change the graph of the module or of one inside, and do not tell it."""
        self.pair.edit(edit, place)

    @step(several=st.lists(edits(), min_size=1, max_size=3), place=st.integers(0, 3))
    def edit_and_recompile(self, several: list[Edit], place: int) -> None:
        """Change the graph and recompile after each change."""
        for edit in several:
            self.pair.edit(edit, place)
            self.pair.recompile()

    @step()
    def recompile(self) -> None:
        """Recompile, whether anything changed or not."""
        self.pair.recompile()

    @step(edit=edits())
    def replace_the_graph(self, edit: Edit) -> None:
        """Assign another graph: an edited copy of the one there is."""
        if self.pair.child_edited:
            self.pair.recompile()
        for gm in (self.pair.plain, self.pair.tested):
            graph = copy_graph(gm.graph)
            apply_edit(graph, edit)
            gm.graph = graph
        self.pair.mark()  # the nodes that copied metadata refers to are the old ones
        self.pair.recompiled()

    @step(edit=invalid_edits(), looks=st.lists(st.sampled_from(sorted(_LOOKS)), min_size=1))
    def break_and_mend(self, edit: InvalidEdit, looks: list[str]) -> None:
        """Whatever looks at an invalid graph is told so, and the module can be mended."""
        if not self.pair.is_lazy:
            return
        with broken(self.pair.tested.graph, edit) as what:
            self.pair.tested.recompile()
            for look in looks:
                outcome = run(lambda look=look: _LOOKS[look](self.pair.tested))
                told = isinstance(outcome.error, InvalidGraphError)
                if not told:
                    raise AssertionError(
                        f"{what}, but {look} gave {outcome.error!r} instead of InvalidGraphError"
                    ) from outcome.error
                if not is_stale(self.pair.tested):
                    raise AssertionError(f"{what}, but after {look} the module counts as fresh")
        self.pair.recompile()

    # --- modules inside -----------------------------------------------------------------------

    @step(used=st.booleans())
    def add_a_submodule(self, used: bool) -> None:
        """Add a module, and perhaps let the output use it."""
        self.added += 1
        for gm in (self.pair.plain, self.pair.tested):
            name = f"block.added_{self.added}" if self.added % 2 else f"added_{self.added}"
            gm.add_submodule(name, nn.Hardtanh())
            output = next(iter(reversed(gm.graph.nodes)))
            tensors = [n for n in output.all_input_nodes if n.op in ("placeholder", "call_method")]
            if used and tensors:
                with gm.graph.inserting_before(output):
                    call = gm.graph.call_module(name, (tensors[0],))
                output.replace_input_with(tensors[0], call)
        self.pair.recompile()

    @step()
    def delete_unused_submodules(self) -> None:
        """Remove every module that the graph does not call."""
        for gm in (self.pair.plain, self.pair.tested):
            gm.delete_all_unused_submodules()

    @step(mode=st.booleans())
    def set_training(self, mode: bool) -> None:
        """``train()`` or ``eval()``."""
        self.pair.plain.train(mode)
        self.pair.tested.train(mode)

    # --- calling ------------------------------------------------------------------------------

    @step(times=st.integers(1, 2))
    @comparable
    def call(self, times: int) -> None:
        """Call, once or twice in a row."""
        for _ in range(times):
            self.pair.assert_same_calls(self.pair.plain, self.pair.tested, "calling")
            self.pair.looked()

    @step(through_class=st.booleans())
    @comparable
    def call_forward(self, through_class: bool) -> None:
        """Call ``forward`` of the module, or that of its class."""
        plain, tested = self.pair.plain, self.pair.tested
        if through_class:
            self.pair.assert_same_calls(
                lambda *inputs: type(plain).forward(plain, *inputs),
                lambda *inputs: type(tested).forward(tested, *inputs),
                "forward of the class",
            )
        else:
            self.pair.assert_same_calls(
                lambda *inputs: plain.forward(*inputs),
                lambda *inputs: tested.forward(*inputs),
                "forward",
            )
        self.pair.looked()

    @step()
    @comparable
    def save_forward(self) -> None:
        """Keep ``forward``, which goes on doing what the graph said now."""
        self.saved = (self.pair.plain.forward, self.pair.tested.forward)
        self.pair.looked()

    @precondition(lambda self: self.saved is not None)
    @step()
    @comparable
    def call_saved_forward(self) -> None:
        """Call what was kept, however often the module was recompiled since."""
        if self.saved is not None:
            self.pair.assert_same_calls(*self.saved, "a saved forward")

    @step()
    @comparable
    def call_from_threads(self) -> None:
        """The first look from several threads at once; calls too, if they may race."""
        plain, tested, inputs = self.pair.plain, self.pair.tested, self.pair.inputs
        calls = gives_the_same_every_time(plain, inputs)
        expected = run(plain, inputs) if calls else run(lambda: plain.code)
        barrier = threading.Barrier(_THREADS)
        outcomes: list[Any] = [None] * _THREADS

        def body(index: int) -> None:
            arguments = clone_inputs(inputs) if calls else ()
            barrier.wait()
            outcomes[index] = run_unseeded(tested if calls else lambda: tested.code, arguments)

        threads = [threading.Thread(target=body, args=(index,)) for index in range(_THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for outcome in outcomes:
            assert_same_outcome(expected, outcome, "a look from several threads")
        self.pair.looked()
