"""Two dumps side by side: which graphs stand for each other, and what differs around them."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lazyfx_compilers.dump import Dump, DumpedGraph, ScalarSpec, TensorSpec, load_dump
from lazyfx_compilers.errors import DumpFormatError, UnknownOptionError

from ._compare import compare_graphs
from ._data import FieldChange, plain_data

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from lazyfx_compilers.dump import InputSpec

    from ._data import GraphDiff

_ALIKE = 0.5  # of the calls of two graphs, so that they may stand for each other
_OF_THE_PROCESS = ("process", "started")
_COMPARED = ("dtype", "device", "shape", "stride", "storage_offset", "requires_grad")
_ROWS = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphPair:
    """Two dumped graphs that stand for each other.

    Attributes:
        old: The ``id`` of the old one.
        new: The ``id`` of the new one.
        diff: How they differ; ``None`` if one of them could not be read.
        inputs: What differs in the descriptions of their inputs, named by the new input.
        problem: Why one could not be read, or ``None``.
    """

    old: str
    new: str
    diff: GraphDiff | None
    inputs: tuple[FieldChange, ...] = ()
    problem: str | None = None

    @property
    def identical(self) -> bool:
        """Whether graphs and inputs were read and are the same."""
        return self.diff is not None and self.diff.identical and not self.inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpDiff:
    """How a new dump differs from an old one. ``str()`` of it is a short text.

    Attributes:
        old: The old dump's folder, or graph.
        new: The new one's.
        environment: What was different around them: versions, machine, rank.
        graphs: Graphs that stand for each other.
        added: Ids of graphs that only the new one has.
        removed: Ids of graphs that only the old one has.
    """

    old: str
    new: str
    environment: tuple[FieldChange, ...]
    graphs: tuple[GraphPair, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether graphs and inputs are the same; the environment does not count."""
        return not self.added and not self.removed and all(each.identical for each in self.graphs)

    def to_data(self) -> dict[str, Any]:
        """The fields and ``identical`` as dictionaries, lists, strings and numbers."""
        return plain_data(self)  # type: ignore[no-any-return]

    def to_json(self) -> str:
        """:meth:`to_data` as strict JSON."""
        return json.dumps(self.to_data(), allow_nan=False)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self, rows: int = _ROWS) -> Iterator[str]:
        """The text, line by line.

        Args:
            rows: How many nodes of each kind are named.
        """
        yield f"{self.old} -> {self.new}: {'identical' if self.identical else 'different'}"
        for each in self.environment:
            yield f"environment: {each.field} {each.old} -> {each.new}"
        for pair in self.graphs:
            title = pair.old if pair.old == pair.new else f"{pair.old} -> {pair.new}"
            if pair.diff is None:
                yield f"{title}: {pair.problem}"
                continue
            found = pair.diff.lines(rows)
            yield f"{title}: {next(found)}"
            yield from found
            for field in pair.inputs[:rows]:
                yield f"  input {field.field}: {field.old} -> {field.new}"
            if len(pair.inputs) > rows:
                yield f"    ... and {len(pair.inputs) - rows} more"
        for word, ids in (("removed", self.removed), ("added", self.added)):
            yield from (f"{identity}: {word}" for identity in ids)


def diff_dumps(
    a: Dump | DumpedGraph | str | os.PathLike[str],
    b: Dump | DumpedGraph | str | os.PathLike[str],
    *,
    allow: Iterable[Callable[..., Any] | type | str] = (),
    values: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> DumpDiff:
    """How dump ``b`` differs from dump ``a``, graph by graph, as :func:`diff_graphs` has it.

    Two single graphs are compared whatever they are: a joint graph and its forward, the same graph
    of two ranks. Of two dumps, graphs stand for each other if compilation and phase agree and they
    call much the same; what is left, if the phase agrees and they call much the same.

    Args:
        a: The old one: a dump, one of its graphs, or the folder of either.
        b: The new one, of the same kind.
        allow: Functions and classes outside of torch that graphs in folders may refer to.
        values: Whether contents of the tensors that the graphs hold count.
        progress: Called before each pair with its number and how many there are.

    Raises:
        DumpFormatError: A folder is no dump; names file and field. A graph that cannot be read is
            reported in its pair instead.
        UnknownOptionError: A dump was given with a graph, or something else than those.
    """
    allowed = tuple(allow)
    one, other = (_opened(each, name, allowed) for each, name in ((a, "a"), (b, "b")))
    if isinstance(one, DumpedGraph) != isinstance(other, DumpedGraph):
        raise UnknownOptionError(
            f"diff_dumps(a, b): expected two dumps or two graphs, got {_kind(one)} and "
            f"{_kind(other)}; pick a graph of the dump: dump[{_first_id(one, other)!r}]"
        )
    if isinstance(one, DumpedGraph) and isinstance(other, DumpedGraph):
        mine, theirs = (one,), (other,)
        pairs = [(one, other)]
        titles = [str(one.folder), str(other.folder)]
        around = _changes(one.environment, other.environment)
    else:
        assert isinstance(one, Dump)
        assert isinstance(other, Dump)
        mine, theirs = one.graphs, other.graphs  # type: ignore[assignment]
        pairs = _paired(mine, theirs)
        titles = [str(one.folder), str(other.folder)]
        around = [
            *_changes({"rank": one.rank}, {"rank": other.rank}),
            *_changes(one.environment, other.environment),
        ]
    found = []
    for number, pair in enumerate(pairs):
        if progress is not None:
            progress(number, len(pairs))
        found.append(_compared(*pair, values=values))
    taken = {x.id for x, _ in pairs}, {y.id for _, y in pairs}
    return DumpDiff(
        old=titles[0],
        new=titles[1],
        environment=tuple(around),
        graphs=tuple(found),
        added=tuple(each.id for each in theirs if each.id not in taken[1]),
        removed=tuple(each.id for each in mine if each.id not in taken[0]),
    )


def open_dump(
    path: str | os.PathLike[str], *, allow: Iterable[Callable[..., Any] | type | str] = ()
) -> Dump | DumpedGraph:
    """The dump, or the one graph of a dump, that a path leads to.

    Raises:
        DumpFormatError: Neither is there.
    """
    given = Path(path)
    if not (given / "index.json").exists() and (given.parent / "index.json").is_file():
        if given.name == "index.json":
            return load_dump(given.parent, allow=allow)
        dump = load_dump(given.parent, allow=allow)
        try:
            return dump[given.name]
        except KeyError as error:
            raise DumpFormatError(str(error.args[0])) from None
    return load_dump(given, allow=allow)


def _opened(given: Any, name: str, allow: tuple[Any, ...]) -> Dump | DumpedGraph:
    if isinstance(given, (Dump, DumpedGraph)):
        return given
    if isinstance(given, (str, Path)) or hasattr(given, "__fspath__"):
        return open_dump(given, allow=allow)
    raise UnknownOptionError(
        f"diff_dumps({name}={given!r}): expected a dump, one of its graphs, or a folder; compare "
        "graph modules with diff_graphs"
    )


def _kind(value: Dump | DumpedGraph) -> str:
    return "a dump" if isinstance(value, Dump) else "a graph"


def _first_id(*given: Dump | DumpedGraph) -> str:
    ids = [each.graphs[0].id for each in given if isinstance(each, Dump) and each.graphs]
    return ids[0] if ids else "..."


def _paired(
    mine: Sequence[DumpedGraph], theirs: Sequence[DumpedGraph]
) -> list[tuple[DumpedGraph, DumpedGraph]]:
    places: dict[tuple[str, int], list[DumpedGraph]] = {}
    for each in theirs:
        places.setdefault((each.phase, each.compilation), []).append(each)
    found: dict[str, DumpedGraph] = {}
    for each in mine:
        there = places.get((each.phase, each.compilation))
        if there and _likeness(each, there[0]) >= _ALIKE:
            found[each.id] = there.pop(0)
    taken = {each.id for each in found.values()}
    for each in mine:
        if each.id in found:
            continue
        left = [one for one in theirs if one.phase == each.phase and one.id not in taken]
        best = max(left, key=lambda one: _likeness(each, one), default=None)
        if best is not None and _likeness(each, best) >= _ALIKE:
            found[each.id] = best
            taken.add(best.id)
    return [(each, found[each.id]) for each in mine if each.id in found]


def _likeness(one: DumpedGraph, other: DumpedGraph) -> float:
    """How much of what two graphs call is the same, by the index alone: from 0 to 1."""
    mine, theirs = Counter(one.ops), Counter(other.ops)
    total = mine.total() + theirs.total()
    return 2 * (mine & theirs).total() / total if total else 1.0


def _compared(one: DumpedGraph, other: DumpedGraph, *, values: bool) -> GraphPair:
    try:
        diff = compare_graphs(one.module(), other.module(), values=values)
        inputs = tuple(_input_changes(one.specs, other.specs, dict(diff.matched)))
    except DumpFormatError as error:
        return GraphPair(old=one.id, new=other.id, diff=None, problem=str(error))
    return GraphPair(old=one.id, new=other.id, diff=diff, inputs=inputs)


def _input_changes(
    mine: Sequence[InputSpec], theirs: Sequence[InputSpec], names: Mapping[str, str]
) -> Iterator[FieldChange]:
    """Differences of inputs that stand for each other; those that do not are added or removed."""
    there = {spec.name: spec for spec in theirs}
    owners = _owners(mine), _owners(theirs)
    # as in the graphs, which of several accelerators counts only where several are used
    lone = all(
        len({spec.device for spec in specs if isinstance(spec, TensorSpec)} - {"cpu"}) == 1
        for specs in (mine, theirs)
    )
    for spec in mine:
        other = there.get(names.get(spec.name, ""))
        if other is not None:
            for field, before, after in _spec_changes(spec, other, lone):
                yield FieldChange(field=f"{other.name} {field}", old=str(before), new=str(after))
            shared = owners[0][spec.name], owners[1][other.name]
            if names.get(shared[0]) != shared[1]:
                yield FieldChange(field=f"{other.name} memory of", old=shared[0], new=shared[1])


def _owners(specs: Sequence[InputSpec]) -> dict[str, str]:
    """For each input the first one that is in the same memory: often itself."""
    first: dict[int, str] = {}
    return {
        spec.name: first.setdefault(spec.storage, spec.name)
        if isinstance(spec, TensorSpec)
        else spec.name
        for spec in specs
    }


def _spec_changes(one: InputSpec, other: InputSpec, lone: bool) -> Iterator[tuple[str, Any, Any]]:
    if type(one) is not type(other):
        yield "kind", type(one).__name__, type(other).__name__
    elif isinstance(one, TensorSpec) and isinstance(other, TensorSpec):
        # sizes and strides of symbolic shapes are only what the symbols stood for that time
        symbolic = one.shape_expr is not None and other.shape_expr is not None
        for field in _COMPARED:
            before, after = getattr(one, field), getattr(other, field)
            if field in ("shape", "stride") and symbolic:
                before, after = len(before), len(after)
            if field == "device" and lone:
                before, after = before.partition(":")[0], after.partition(":")[0]
            if before != after:
                yield field, before, after
    elif isinstance(one, ScalarSpec) and isinstance(other, ScalarSpec):
        symbolic = one.expr is not None and other.expr is not None
        if not symbolic and (type(one.value), repr(one.value)) != (
            type(other.value),
            repr(other.value),
        ):
            yield "value", one.value, other.value
    elif one != dataclasses.replace(other, name=one.name):
        yield "description", one, other


def _changes(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[FieldChange]:
    return [
        FieldChange(field=key, old=str(one.get(key)), new=str(other.get(key)))
        for key in {**one, **other}
        if key not in _OF_THE_PROCESS and one.get(key) != other.get(key)
    ]
