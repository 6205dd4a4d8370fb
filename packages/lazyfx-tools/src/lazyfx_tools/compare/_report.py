"""What a comparison has found, as data and as text."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from lazyfx_tools.errors import DivergenceError

if TYPE_CHECKING:
    from ._values import ErrorSizes, What

Phase = Literal["forward", "backward", "inference"]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputStatistics:
    """One value that a node takes, as the reference has it.

    Attributes:
        name: The node that made it.
        dtype: As text; the type's name if it is no tensor.
        shape: Its size.
        minimum: The least finite value; None if there is none, or it is no tensor of numbers.
        maximum: The greatest finite value.
        mean: Of the finite values.
        nans: How many elements are not a number.
        infinities: How many elements are infinite.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    minimum: float | None
    maximum: float | None
    mean: float | None
    nans: int
    infinities: int

    def __str__(self) -> str:
        text = f"{self.name}: {self.dtype} {list(self.shape)}"
        if self.minimum is not None:
            text += f", {self.minimum:.4g} to {self.maximum:.4g}, mean {self.mean:.4g}"
        text += f", {self.nans} nan" if self.nans else ""
        return text + (f", {self.infinities} inf" if self.infinities else "")


def statistics(name: str, value: Any) -> InputStatistics:
    """Describe a value; a node's input."""
    minimum = maximum = mean = None
    nans = infinities = 0
    shape: tuple[int, ...] = ()
    dtype = type(value).__name__
    if isinstance(value, torch.Tensor):
        dtype, shape = str(value.dtype).removeprefix("torch."), tuple(value.shape)
        plain = value.detach()
        plain = plain.abs() if plain.is_complex() else plain
        if plain.layout is torch.strided:
            numbers = plain.to(torch.float64)
            nans, infinities = int(numbers.isnan().sum()), int(numbers.isinf().sum())
            finite = numbers[torch.isfinite(numbers)]
            if finite.numel():
                minimum, maximum = float(finite.min()), float(finite.max())
                mean = float(finite.mean())
    elif isinstance(value, (bool, int, float)):
        minimum = maximum = mean = float(value)
    return InputStatistics(
        name=name,
        dtype=dtype,
        shape=shape,
        minimum=minimum,
        maximum=maximum,
        mean=mean,
        nans=nans,
        infinities=infinities,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Divergence:
    """The first node of a graph that a compiler gets wrong.

    Attributes:
        phase: Of its graph.
        graph: The number of the graph, in the order in which graphs ran.
        node: Its name.
        target: What it runs, as text.
        user_line: The line of the user's code it comes from, or None.
        what: ``"values"``; ``"nan"``: one side has a NaN or infinity where the other has none;
            ``"dtype"``, ``"size"``, ``"strides"``, ``"device"``, ``"layout"``; ``"kind"``: no
            tensor or one of another class, or another number of results; ``"aliasing"``: a result
            is in the memory of an input, where the reference's is not; ``"mutation"``: memory that
            the node should write has not the right content, or it writes what it should not;
            ``"raised"``: the compiler or what it made has raised.
        expected: The reference's dtype, size, ...; None for values.
        seen: What the compiled graph has; the exception's text for ``"raised"``.
        errors: How far values are apart; None for other kinds.
        inputs: What the node takes.
        alone: Whether the node is wrong, too, when it is compiled by itself and is given what the
            reference has. If not, the compiler gets it wrong in its surroundings (fused with its
            neighbors), or smaller errors have added up.
        deterministic: Whether the compiled graph gives the same value each time.
        also: How many more nodes differ, most often because they follow from this one.
        error: The exception for ``"raised"``.
    """

    phase: Phase
    graph: int
    node: str
    target: str
    user_line: str | None
    what: What
    expected: Any = None
    seen: Any = None
    errors: ErrorSizes | None = None
    inputs: tuple[InputStatistics, ...] = ()
    alone: bool = True
    deterministic: bool = True
    also: int = 0
    error: Exception | None = None

    def __str__(self) -> str:
        lines = [f"{self.phase} graph {self.graph}: node {self.node!r} ({self.target})"]
        if self.user_line:
            lines.append(f"  {self.user_line}")
        lines += [f"  {line}" for line in self._what_lines()]
        if not self.deterministic:
            lines.append("  the compiled graph gives another value each time")
        lines.append(f"  {self._where()}")
        if self.inputs:
            lines += ["  takes", *(f"    {one}" for one in self.inputs)]
        return "\n".join(lines)

    def _what_lines(self) -> list[str]:
        if self.what == "raised":
            return [f"raises {type(self.error).__name__}: {_first_line(self.seen)}"]
        errors = self.errors
        if errors is None:
            return [f"{self.what}: expected {self.expected}, seen {self.seen}"]
        place = f"[{', '.join(map(str, errors.position))}]" if errors.position else "the only one"
        ulps = "" if errors.ulps is None else f", {errors.ulps} ulps"
        lines = [
            f"{self.what}: {errors.differing} of {errors.elements} elements differ, by up to "
            f"{_short(errors.max_abs)} (relative {_short(errors.max_rel)}{ulps})",
            f"worst at {place}: expected {errors.expected!r}, seen {errors.seen!r}",
        ]
        if errors.reference_error is not None:
            own = _short(errors.reference_error)
            lines.append(f"eager's own error there, against float64: up to {own}")
        return lines

    def _where(self) -> str:
        rest = f"; {self.also} more nodes differ" if self.also else ""
        if self.alone:
            return f"it is wrong by itself, too, on the reference's inputs{rest}"
        return f"by itself it is right: wrong among its neighbors, or errors add up{rest}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedGraph:
    """One graph, and what was found in it.

    Attributes:
        number: In the order in which graphs ran.
        phase: What it is for.
        nodes: How many operators it has.
        divergence: The first node that is wrong, if there is one.
        redrawn: Random operators for which the compiler draws other numbers than eager: the rest
            was compared with eager's.
        nondeterministic: Operators of which eager gives another value each time: the rest was
            compared with those of one run.
        unseen: Why nothing inside the graph was looked at, where only its results were.
    """

    number: int
    phase: Phase
    nodes: int
    divergence: Divergence | None
    redrawn: tuple[str, ...] = ()
    nondeterministic: tuple[str, ...] = ()
    unseen: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What ``compare_compiled`` has found: ``print`` it, or read its fields.

    Attributes:
        name: Of the function or module.
        compiler: What compiled it.
        reference: What it was held against.
        graphs: All graphs, in the order in which they ran.
    """

    name: str
    compiler: str
    reference: Literal["eager", "float64"]
    graphs: tuple[ComparedGraph, ...]

    @property
    def agrees(self) -> bool:
        """Whether no node is wrong."""
        return not self.divergences

    @property
    def divergence(self) -> Divergence | None:
        """The first wrong node of the graph that ran first."""
        return next(iter(self.divergences), None)

    @property
    def divergences(self) -> tuple[Divergence, ...]:
        """The first wrong node of each graph that has one.

        Each graph is given the reference's values, so none of them follows from another.
        """
        return tuple(one.divergence for one in self.graphs if one.divergence is not None)

    @property
    def redrawn(self) -> tuple[str, ...]:
        """Random operators for which the compiler draws other numbers than eager."""
        return tuple(name for graph in self.graphs for name in graph.redrawn)

    @property
    def nondeterministic(self) -> tuple[str, ...]:
        """Operators of which eager gives another value each time."""
        return tuple(name for graph in self.graphs for name in graph.nondeterministic)

    def raise_if_diverged(self) -> None:
        """Raise :class:`DivergenceError` with this report as its text unless all agrees."""
        if self.divergence is not None:
            error = DivergenceError(str(self))
            error.comparison = self
            raise error

    def __str__(self) -> str:
        nodes = sum(one.nodes for one in self.graphs)
        title = f"{self.name}, compiled with {self.compiler}, held against {self.reference}"
        seen = f"{len(self.graphs)} graphs, {nodes} operators"
        if self.agrees:
            lines = [f"{title}: agrees ({seen})"]
        else:
            wrong = len(self.divergences)
            lines = [f"{title}: {wrong} of {len(self.graphs)} graphs wrong ({nodes} operators)"]
            lines += [part for one in self.divergences for part in ("", str(one))]
            lines.append("")
        for graph in self.graphs:
            where = f"{graph.phase} graph {graph.number}"
            if graph.redrawn:
                names = ", ".join(graph.redrawn)
                lines.append(f"{where}: draws other random numbers than eager in {names}")
            if graph.nondeterministic:
                names = ", ".join(graph.nondeterministic)
                lines.append(f"{where}: eager itself differs from run to run in {names}")
            if graph.unseen:
                lines.append(f"{where}: only its results were compared: {graph.unseen}")
        return "\n".join(lines).rstrip()


def _short(value: float) -> str:
    return f"{value:.3g}" if math.isfinite(value) else "infinity"


def _first_line(text: Any) -> str:
    return next((line for line in str(text).splitlines() if line.strip()), "")
