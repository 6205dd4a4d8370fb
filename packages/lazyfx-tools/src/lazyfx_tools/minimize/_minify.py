"""``minify``: the search, the program, and what is said about them."""

from __future__ import annotations

import copy
import inspect
import logging
import sys
import textwrap
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from lazyfx_compilers import _torch_aot
from lazyfx_compilers._repro import run_fresh, write_repro
from lazyfx_compilers._torch_standalone import copied
from lazyfx_compilers._types import require_graph
from lazyfx_compilers.errors import NotCompilableError, ReproError
from lazyfx_tools.compare._compiled import require_arguments
from lazyfx_tools.errors import FaultNotFoundError

from ._case import Case, drop_unwritten_outputs
from ._faults import Fault, settings
from ._search import Progress, Search, seeded
from ._trace import graphs_of

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from ._search import Predicate


log = logging.getLogger("lazyfx_tools.minify")


@dataclass(frozen=True, slots=True, kw_only=True)
class Minified:
    """What :func:`minify` has found. ``print`` it for a summary.

    Attributes:
        graph: The smallest graph for which the predicate held; the caller's to keep.
        inputs: Its inputs.
        nodes_before: Calls in the graph that was given, or traced.
        nodes_after: Calls in ``graph``.
        inputs_before: How many inputs the graph had.
        bytes_before: Bytes of inputs and constants, memory that they share once.
        bytes_after: The same of ``graph``.
        tries: How often the predicate was asked.
        failed_tries: How often it raised, which counted as no.
        first_failure: What it raised first, as text.
        complete: Whether the search ended by itself, and not at ``max_tries`` or ``timeout``.
        flaky: Whether the predicate, asked twice about the same, said both yes and no.
        script: The program; ``None`` if it could not be written.
        verified: Whether the program showed the fault in a fresh process.
        verification: What it did there, or why it did not run.
    """

    graph: fx.GraphModule
    inputs: list[Any]
    nodes_before: int
    nodes_after: int
    inputs_before: int
    bytes_before: int
    bytes_after: int
    tries: int
    failed_tries: int
    first_failure: str | None
    complete: bool
    flaky: bool
    script: Path | None
    verified: bool
    verification: str

    @property
    def folder(self) -> Path | None:
        """Where the program and its data are."""
        return None if self.script is None else self.script.parent

    def __str__(self) -> str:
        """The sizes before and after, and whether the program shows the fault."""
        ended = "" if self.complete else ", out of tries or time"
        lines = [
            f"{self.nodes_before} nodes -> {self.nodes_after}, "
            f"{self.inputs_before} inputs -> {len(self.inputs)}, "
            f"{self.bytes_before} bytes -> {self.bytes_after}; {self.tries} tries{ended}",
            f"{self.script or 'no program'}: {self.verification}",
        ]
        if self.failed_tries:
            lines.append(f"the predicate raised {self.failed_tries} times: {self.first_failure}")
        if self.flaky:
            lines.append("the predicate does not always say the same of the same graph")
        return "\n".join(lines)


def minify(
    fn_or_graph: Callable[..., Any],
    args: Sequence[Any],
    predicate: Predicate,
    *,
    folder: str | os.PathLike[str] | None = None,
    verify: bool = True,
    max_tries: int = 1000,
    timeout: float | None = None,
    progress: Callable[[Progress], None] | None = None,
    decompositions: Mapping[Any, Any] | None = None,
) -> Minified:
    """Find a small graph that shows a fault and write a program that shows it.

    Calls are cut away, with values that the whole graph computes as inputs instead; then outputs,
    calls that can be replaced by what they read, inputs that can be one, and sizes. Where a fault
    needs ``k`` calls out of ``n``, that takes about ``2 k log2(n / k)`` tries. Several threads
    must not do it at a time: it seeds the random state while it runs, and puts it back.

    Args:
        fn_or_graph: A graph module, ATen's or any other, not changed. Or a function or module:
            it is called once under ``torch.compile``, with its effects, and its ATen graphs, those
            of the backward too, are looked at in turn; the first that shows the fault is taken.
        args: Real inputs; copied, not changed (but by the one call of a function).
        predicate: ``predicate(gm, inputs)`` says whether the fault is there. It gets copies, which
            it may change, and the same random state each time. What it raises counts as no.
            One of :func:`raises`, :func:`differs`, :func:`crashes`, or a function; a program can
            only ask a function at the top level of an importable module, for any other it has the
            source as a comment and cannot tell.
        folder: Where the folder ``000``, ``001``, ... of the program is made; never overwrites.
            ``None`` makes a temporary one.
        verify: Run the program once in a fresh process.
        max_tries: Ask the predicate at most that often.
        timeout: Seconds after which no more tries are made; one that hangs is not interrupted.
        progress: Called at each try. By default, and if standard error is a terminal, a line there
            shows how far it is.
        decompositions: For the graphs of a function: what the compiler wants written out
            (for ``compile_fx_inner``: ``torch._inductor.decomposition.select_decomp_table()``).

    Returns:
        The smallest graph found, with its program. What did not work (a program that cannot be
        written, or does not show the fault) is said in it and logged as a warning: the search is
        not lost.

    Raises:
        FaultNotFoundError: The predicate does not hold for what was given, or raises.
        NotCompilableError: ``fn_or_graph`` cannot be called, or ``args`` is no sequence.
        InvalidGraphError: The graph is wrong; names the node.
    """
    require_arguments(args, "minify(args)")
    line = _ProgressLine()
    shown = progress or line.show
    deadline = float("inf") if timeout is None else time.monotonic() + timeout
    cases = _cases(fn_or_graph, args, decompositions)
    try:
        with seeded():
            search = _begin(
                cases,
                lambda case: Search(
                    case, predicate, max_tries=max_tries, deadline=deadline, progress=shown
                ),
                predicate,
            )
            first = search.case
            complete = search.run()
    finally:
        line.clear()
    return _finished(first, search, predicate, complete=complete, folder=folder, verify=verify)


def _cases(
    fn_or_graph: Any, args: Sequence[Any], decompositions: Mapping[Any, Any] | None
) -> list[tuple[str, Case]]:
    if isinstance(fn_or_graph, fx.GraphModule):
        return [("the graph", _case(require_graph(fn_or_graph, "minify"), args))]
    if not callable(fn_or_graph):
        raise NotCompilableError(
            f"minify(fn_or_graph) takes a graph module, a function or a module, got "
            f"{type(fn_or_graph).__qualname__}"
        )
    seen = graphs_of(fn_or_graph, args, decompositions)
    return [(f"graph {one.name}", one.case) for one in seen if one.case is not None]


def _case(gm: fx.GraphModule, args: Sequence[Any]) -> Case:
    """The graph with flat inputs, all of them given."""
    gm = copy.deepcopy(gm)
    inputs = list(gm.graph.process_inputs(*args))
    if type(gm.graph._codegen) is not fx.graph.CodeGen:
        gm.graph.set_codegen(fx.graph.CodeGen())
        gm.recompile()
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    inputs += [node.args[0] for node in placeholders[len(inputs) :] if node.args]
    if len(inputs) != len(placeholders):
        raise NotCompilableError(
            f"minify(args): the graph takes {len(placeholders)} inputs "
            f"({', '.join(node.name for node in placeholders[:8])}), got {len(args)}; give it as "
            "many"
        )
    for node, value in zip(placeholders, inputs, strict=True):
        if _torch_aot.is_fake(value):
            raise NotCompilableError(
                f"minify(args): the input {node.name!r} is a fake tensor, which has no values; "
                "give it a real one"
            )
    drop_unwritten_outputs(gm)
    return Case(gm=gm, inputs=tuple(copied(inputs)))


def _begin(
    cases: Sequence[tuple[str, Case]], search: Callable[[Case], Search], predicate: Any
) -> Search:
    """A search from the first case that shows the fault."""
    said = []
    raised: Exception | None = None
    for name, case in cases:
        begun = search(case)
        try:
            if not begun.ask(case):
                said.append(f"{name}: it does not hold")
                continue
        except Exception as error:
            raised = error
            said.append(f"{name}: it raises {type(error).__name__}: {error}")
            continue
        try:
            begun.flaky = not begun.ask(case)
        except Exception:
            begun.flaky = True
        return begun
    raise FaultNotFoundError(
        f"minify(predicate={predicate!r}): there is no fault to begin with "
        f"({'; '.join(said) or 'no graph was compiled and run'}); check the predicate with the "
        "graph and inputs that show it"
    ) from raised


def _finished(
    first: Case,
    search: Search,
    predicate: Any,
    *,
    complete: bool,
    folder: str | os.PathLike[str] | None,
    verify: bool,
) -> Minified:
    case = search.case
    script, verified, verification = _program(case, predicate, folder, verify=verify)
    failure = search.failure
    result = Minified(
        graph=case.gm,
        inputs=copied(case.inputs),
        nodes_before=len(first.calls()),
        nodes_after=len(case.calls()),
        inputs_before=len(first.inputs),
        bytes_before=first.nbytes(),
        bytes_after=case.nbytes(),
        tries=search.tries,
        failed_tries=search.failed,
        first_failure=None if failure is None else f"{type(failure).__name__}: {failure}",
        complete=complete,
        flaky=search.flaky,
        script=script,
        verified=verified,
        verification=verification,
    )
    log.log(logging.INFO if verified or not verify else logging.WARNING, "minify: %s", result)
    return result


def _program(
    case: Case, predicate: Any, folder: str | os.PathLike[str] | None, *, verify: bool
) -> tuple[Path | None, bool, str]:
    """The program, whether it shows the fault, and what it did."""
    fault = settings(predicate)
    try:
        script = write_repro(
            case.gm,
            case.inputs,
            folder,
            fault,
            writer="minify",
            data=True,
            note=_source(predicate) if fault["compiler"] is None else "",
        )
    except ReproError as error:
        return None, False, f"not written: {error}"
    if not verify:
        return script, False, "it has not run yet"
    ran = run_fresh(script)
    if ran.shows_fault:
        return script, True, f"in a fresh process it {ran}"
    output = textwrap.indent(ran.output[-2000:].rstrip(), "    ")
    said = f"in a fresh process it does not show the fault, it {ran}; the end of its output:"
    return script, False, f"{said}\n{output}"


def _source(predicate: Any) -> str:
    function: Any = predicate.compiler if isinstance(predicate, Fault) else predicate
    what = "compiler" if isinstance(predicate, Fault) else "predicate"
    try:
        return f"the {what} was:\n{textwrap.dedent(inspect.getsource(function))}"
    except (OSError, TypeError):
        return f"the {what} was {function!r}"


class _ProgressLine:
    """One line on standard error that is written again and again, if that is a terminal."""

    def __init__(self) -> None:
        self._width = 0

    def show(self, at: Progress) -> None:
        if sys.stderr is None or not sys.stderr.isatty():
            return
        text = f"minify: try {at.tries}, {at.nodes} nodes, {at.inputs} inputs"
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def clear(self) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
