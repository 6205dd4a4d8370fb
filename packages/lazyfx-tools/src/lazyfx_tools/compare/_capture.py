"""The graphs of a call, each compared when it first runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazyfx_compilers import _messages, _torch_debug
from lazyfx_compilers._types import boxed

from . import _graphs, _torch_compare, _values
from ._reference import RandomState, Reference, duplicate
from ._report import ComparedGraph, Divergence, Phase, statistics
from ._search import Search
from ._trial import Compiling, Trials

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

    from lazyfx_compilers._types import FxCompiler

    from ._search import Culprit
    from ._values import Judge


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How graphs are made and compiled.

    Attributes:
        compilers: For ``"forward"``, ``"backward"`` and ``"inference"``.
        partition: Divides a joint graph.
        decompositions: Operators taken apart while tracing.
        real: Whether the compilers are backends of ``torch.compile``: these want real inputs, and
            to be called by themselves.
    """

    compilers: Mapping[Phase, FxCompiler]
    partition: Callable[..., Any]
    decompositions: Mapping[Any, Callable[..., Any]]
    real: bool = False


class Capture:
    """A backend for Dynamo that runs the reference, and compares what a compiler makes with it.

    Attributes:
        graphs: What was found, in the order in which graphs first ran.
    """

    def __init__(
        self, recipe: Recipe, judge: Judge, *, every_node: bool, check_determinism: bool
    ) -> None:
        self.graphs: list[ComparedGraph] = []
        self._recipe = recipe
        self._judge = judge
        self._every_node = every_node
        self._check_determinism = check_determinism

    def backend(self, gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
        """Take a graph of Dynamo's."""
        phases: tuple[Phase, ...] = ("forward", "backward", "inference")
        return _torch_compare.compile_dynamo_graph(
            gm,
            example_inputs,
            compilers={phase: self._comparer(phase) for phase in phases},
            partition=self._recipe.partition,
            decompositions=self._recipe.decompositions,
        )

    def _comparer(self, phase: Phase) -> Callable[..., Any]:
        def take(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
            run = self.comparing(phase, gm, example_inputs)
            return boxed(run, "compare_compiled")

        return take

    def comparing(
        self, phase: Phase, gm: fx.GraphModule, example_inputs: Sequence[Any]
    ) -> Callable[[list[Any]], list[Any]]:
        """What runs a graph as the reference does, and compares it the first time.

        Args:
            phase: What the graph is for.
            gm: Copied.
            example_inputs: To compile with.

        Returns:
            A function of a list, which it empties, that gives flat results.
        """
        # only now: some of what a compiler looks at is gone when the graph runs
        compiling = Compiling(
            compiler=self._recipe.compilers[phase],
            surroundings=_torch_compare.surroundings(bare=self._recipe.real),
            real=self._recipe.real,
        )
        given = _graphs.whole(gm, list(example_inputs), list(example_inputs))
        kept, examples = _graphs.fresh(given), list(example_inputs)
        compared = False

        def run(inputs: list[Any]) -> list[Any]:
            nonlocal compared
            values = list(inputs)
            inputs.clear()
            if compared:
                return Reference(kept).start(values).outputs
            compared = True
            problem = _graphs.whole(kept, duplicate(values), examples)
            return self._compare(phase, compiling, problem, values)

        return run

    def _compare(
        self,
        phase: Phase,
        compiling: Compiling,
        problem: _graphs.Problem,
        values: list[Any],
    ) -> list[Any]:
        before = RandomState.now()
        interpreter = Reference(problem.gm)
        run = interpreter.start(values)
        after = RandomState.now()
        number = len(self.graphs)
        try:
            search = Search(problem, Trials(compiling, self._judge, before))
            found = search.run(
                (interpreter, run),
                every_node=self._every_node,
                check_determinism=self._check_determinism,
            )
            divergence = None
            if found.culprit is not None:
                divergence = self._divergence(found.culprit, search, phase, number)
        finally:
            after.restore()
        self.graphs.append(
            ComparedGraph(
                number=number,
                phase=phase,
                nodes=len(problem.steps),
                divergence=divergence,
                redrawn=found.redrawn,
                nondeterministic=found.unstable,
                unseen=found.unseen,
            )
        )
        return run.outputs

    def _divergence(
        self, culprit: Culprit, search: Search, phase: Phase, number: int
    ) -> Divergence:
        node, mismatch = culprit.node, culprit.mismatch
        about: dict[str, Any] = {"what": "raised", "seen": str(culprit.raised)}
        if mismatch is not None:
            errors = _values.error_sizes(self._judge, mismatch, culprit.exact)
            about = {"what": mismatch.what, "errors": errors}
            if errors is None:
                about |= {"expected": mismatch.expected, "seen": mismatch.seen}
        return Divergence(
            phase=phase,
            graph=number,
            node=node.name,
            target=_torch_debug.target_text(node.target),
            user_line=_user_line(node),
            inputs=tuple(
                statistics(one.name, search.values.get(one.name)) for one in node.all_input_nodes
            ),
            alone=culprit.alone,
            deterministic=mismatch is None or search.gives_the_same_again(node.name),
            also=max(culprit.also, 0),
            error=culprit.raised,
            **about,
        )


def _user_line(node: fx.Node) -> str | None:
    """The user's line; a write that AOTAutograd has put at the end has that of what it writes."""
    sources = (node, *reversed(node.all_input_nodes))
    return next((line for one in sources if (line := _messages.user_line(one))), None)
