"""What differs between nodes that stand for each other, and the whole of a comparison."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from lazyfx_compilers._messages import user_line

from ._data import (
    FieldChange,
    GraphDiff,
    NodeChange,
    NodeSummary,
    Rewiring,
    SubgraphDiff,
    op_counts,
)
from ._facts import Symbols, differences, tensor_facts
from ._match import match
from ._nodes import Row, Side, attribute
from ._sources import module_settings, module_text
from ._torch_effects import moved

if TYPE_CHECKING:
    from collections.abc import Iterator


def compare_graphs(
    old: fx.GraphModule,
    new: fx.GraphModule,
    *,
    values: bool,
    met: frozenset[tuple[int, int]] = frozenset(),
) -> GraphDiff:
    """The whole comparison of two graphs and of those inside; see :func:`.diff.diff_graphs`.

    Args:
        old: The old graph.
        new: The new graph.
        values: Whether the contents of tensors count.
        met: Pairs of graphs that are being compared already, by ``id``.
    """
    return _Comparison(old, new, values, met | {(id(old), id(new))}).result()


class _Comparison:
    def __init__(
        self, old: fx.GraphModule, new: fx.GraphModule, values: bool, met: frozenset[Any]
    ) -> None:
        self._old, self._new = Side(old), Side(new)
        self._matching = match(self._old, self._new)
        self._values = values
        self._met = met
        self._symbols = Symbols()
        self._told: set[str] = set()  # attributes whose differences have been said

    def result(self) -> GraphDiff:
        old, new = self._old, self._new
        inputs = {each: None for each in new.placeholders if self._matching.old_of[each] >= 0}
        pairs = self._matching.pairs()
        facts = {  # those of inputs first: they pair the symbols
            j: self._result_fields(self._matching.old_of[j], j)
            for j in [*inputs, *(j for _, j in pairs if j not in inputs)]
        }
        changed: list[NodeChange] = []
        inherited: list[NodeChange] = []
        rewired: list[Rewiring] = []
        unlike: set[int] = set()  # new rows whose result may be another one
        for i, j in pairs:
            rewirings = self._rewirings(i, j)
            own = self._own_fields(i, j)
            rewired += rewirings
            if own or facts[j]:
                unlike.add(j)
                sources = [source for _, _, source in new.rows[j].slots]
                follows = not own and (
                    bool(rewirings) or any(source in unlike for source in sources)
                )
                change = self._change(i, j, (*own, *facts[j]))
                (inherited if follows else changed).append(change)
        listed = {new.name(j): new.place[j] for _, j in pairs}
        changed.sort(key=lambda change: listed[change.new])
        inherited.sort(key=lambda change: listed[change.new])
        rewired.sort(key=lambda each: listed[each.new])
        return GraphDiff(
            old_nodes=len(old),
            new_nodes=len(new),
            matched=tuple(
                (old.name(i), new.name(j))
                for i, j in sorted(pairs, key=lambda pair: new.place[pair[1]])
            ),
            added=_summaries(new, self._matching.old_of),
            removed=_summaries(old, self._matching.new_of),
            changed=tuple(changed),
            inherited=tuple(inherited),
            rewired=tuple(rewired),
            moved=tuple((old.name(i), new.name(j)) for i, j in moved(self._matching)),
            ops=op_counts(*([_counted(row) for row in side.rows] for side in (old, new))),
            signature=tuple(_signature(old.gm.graph, new.gm.graph)),
            inside=tuple(self._inside()),
        )

    def _change(self, i: int, j: int, fields: tuple[FieldChange, ...]) -> NodeChange:
        return NodeChange(
            old=self._old.name(i),
            new=self._new.name(j),
            target=self._old.rows[i].target,
            fields=fields,
            user_line=user_line(self._new.rows[j].node),
        )

    def _result_fields(self, i: int, j: int) -> tuple[FieldChange, ...]:
        old = self._old.facts.get(self._old.rows[i].node)
        new = self._new.facts.get(self._new.rows[j].node)
        if old is None or new is None:
            return ()
        return tuple(differences(old, new, self._symbols))

    def _own_fields(self, i: int, j: int) -> tuple[FieldChange, ...]:
        return (*self._target_fields(i, j), *self._argument_fields(i, j), *self._held(i, j))

    def _target_fields(self, i: int, j: int) -> Iterator[FieldChange]:
        one, other = self._old.rows[i], self._new.rows[j]
        if one.kind != other.kind:
            texts = [
                row.target if one.target != other.target else f"{row.target} ({row.node.op})"
                for row in (one, other)
            ]
            yield FieldChange(field="target", old=texts[0], new=texts[1])

    def _argument_fields(self, i: int, j: int) -> Iterator[FieldChange]:
        one, other = self._old.rows[i], self._new.rows[j]
        for place in {**one.arguments, **other.arguments}:
            before, after = one.arguments.get(place), other.arguments.get(place)
            if before is not None and after is not None and before.template == after.template:
                if all(map(self._symbols.same, before.symbols, after.symbols)):
                    continue
                texts = [str(list(each.symbols)) for each in (before, after)]
            elif one.node.op == "output" and before is not None and after is not None:
                texts = self._result_texts(i, j)
            else:
                texts = [self._old.text(before), self._new.text(after)]
            field = "results" if one.node.op == "output" else place
            yield FieldChange(field=field, old=texts[0], new=texts[1])

    def _result_texts(self, i: int, j: int) -> list[str]:
        """Results of two graphs that do not return as many: those that the other does not have."""
        mine = [source for _, _, source in self._old.rows[i].slots]
        theirs = [source for _, _, source in self._new.rows[j].slots]
        there = {*mine}, {*theirs}
        gone = [self._old.name(p) for p in mine if self._matching.new_of[p] not in there[1]]
        come = [self._new.name(q) for q in theirs if self._matching.old_of[q] not in there[0]]
        if not gone and not come:
            return [self._old.line(i), self._new.line(j)]
        return [
            f"{len(mine)} results{', among them ' if gone else ''}{', '.join(gone)}",
            f"{len(theirs)} results{', among them ' if come else ''}{', '.join(come)}",
        ]

    def _rewirings(self, i: int, j: int) -> list[Rewiring]:
        one, other = self._old.rows[i], self._new.rows[j]
        found = []
        for place in one.arguments.keys() & other.arguments.keys():
            before, after = one.arguments[place], other.arguments[place]
            if len(before.nodes) != len(after.nodes):
                continue  # told as a changed argument
            for p, q in zip(before.nodes, after.nodes, strict=True):
                if self._matching.new_of[p] != q:
                    found.append(
                        Rewiring(
                            old=one.node.name,
                            new=other.node.name,
                            argument=place,
                            old_input=self._old.name(p),
                            new_input=self._new.name(q),
                        )
                    )
        return sorted(found, key=lambda each: each.argument)

    # --- attributes ----------------------------------------------------------------------------

    def _held(self, i: int, j: int) -> Iterator[FieldChange]:
        """Differences of the tensor or module that both nodes refer to, said once."""
        one, other = self._old.rows[i].node, self._new.rows[j].node
        if one.op != other.op or one.op not in ("get_attr", "call_module"):
            return
        path, counterpart = str(one.target), str(other.target)
        if self._matching.attributes.get(path) != counterpart:
            yield FieldChange(field="attribute", old=path, new=counterpart)
        elif path not in self._told:
            self._told.add(path)
            mine, theirs = attribute(self._old.gm, path), attribute(self._new.gm, counterpart)
            yield from self._holdings(mine, theirs, "")

    def _holdings(self, one: Any, other: Any, prefix: str) -> Iterator[FieldChange]:
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            found = list(differences((tensor_facts(one),), (tensor_facts(other),), self._symbols))
            for each in found:
                yield FieldChange(field=prefix + each.field, old=each.old, new=each.new)
            if self._values and not found:
                yield from _value_fields(one, other, prefix)
        elif isinstance(one, fx.GraphModule) and isinstance(other, fx.GraphModule):
            return  # compared as graphs
        else:
            texts = module_text(one), module_text(other)
            if type(one) is not type(other) or texts[0] != texts[1]:
                yield FieldChange(field=f"{prefix}module", old=texts[0], new=texts[1])
            else:
                yield from self._settings(one, other, prefix)
            if isinstance(one, nn.Module) and isinstance(other, nn.Module):
                yield from self._contents(one, other, prefix)

    def _settings(self, one: Any, other: Any, prefix: str) -> Iterator[FieldChange]:
        """What the texts of two modules do not tell."""
        mine, theirs = module_settings(one), module_settings(other)
        for name in {**mine, **theirs}:
            texts = [each.get(name, "(not there)") for each in (mine, theirs)]
            if texts[0] != texts[1]:
                yield FieldChange(field=f"{prefix}{name}", old=texts[0], new=texts[1])

    def _contents(self, one: nn.Module, other: nn.Module, prefix: str) -> Iterator[FieldChange]:
        mine, theirs = (dict([*m.named_parameters(), *m.named_buffers()]) for m in (one, other))
        for name in {**mine, **theirs}:
            if name in mine and name in theirs:
                yield from self._holdings(mine[name], theirs[name], f"{prefix}{name} ")
            else:
                there = [str(tensor_facts(m[name])) if name in m else "" for m in (mine, theirs)]
                yield FieldChange(field=f"{prefix}{name}", old=there[0], new=there[1])

    def _inside(self) -> Iterator[SubgraphDiff]:
        used = {
            str(self._old.rows[i].node.target)
            for i, _ in self._matching.pairs()
            if self._old.rows[i].node.op in ("get_attr", "call_module")
        }
        for path, counterpart in self._matching.attributes.items():
            one, other = attribute(self._old.gm, path), attribute(self._new.gm, counterpart)
            if path not in used or (id(one), id(other)) in self._met:
                continue
            if isinstance(one, fx.GraphModule) and isinstance(other, fx.GraphModule):
                diff = compare_graphs(
                    one, other, values=self._values, met=self._met | {(id(one), id(other))}
                )
                if not diff.identical:
                    yield SubgraphDiff(old=path, new=counterpart, diff=diff)


def _counted(row: Row) -> str:
    return row.target if row.node.op in ("call_function", "call_method") else row.node.op


def describe_nodes(gm: fx.GraphModule) -> tuple[NodeSummary, ...]:
    """Every node of a graph as a line of code with what was recorded about it, in order."""
    side = Side(gm)
    return _summaries(side, [-1] * len(side))


def _summaries(side: Side, matches: list[int]) -> tuple[NodeSummary, ...]:
    found = [row for row, match in enumerate(matches) if match < 0]
    found.sort(key=side.place.__getitem__)
    return tuple(
        NodeSummary(
            name=side.name(row),
            op=side.rows[row].node.op,
            target=side.rows[row].target,
            text=side.line(row),
            result=", ".join(str(each) for each in side.facts.get(side.rows[row].node, ())),
            user_line=user_line(side.rows[row].node),
        )
        for row in found
    )


def _value_fields(one: torch.Tensor, other: torch.Tensor, prefix: str) -> Iterator[FieldChange]:
    """Whether two tensors of one form hold the same; what has no data is not compared."""
    plain = (torch.Tensor, nn.Parameter)
    if one is other or type(one) not in plain or type(other) not in plain:
        return
    if "meta" in (one.device.type, other.device.type):
        return
    if one.layout is not torch.strided:
        yield from _sparse_fields(one, other, prefix)
        return
    if one.is_quantized or other.is_quantized:
        left, right = one.dequantize(), other.dequantize()
    else:
        left, right = (each.detach().resolve_conj().resolve_neg().cpu() for each in (one, other))
    try:
        unequal = (left != right) & ~((left != left) & (right != right))
    except RuntimeError:  # packed formats, which some releases of torch cannot compare
        rows = (*left.shape, left.dtype.itemsize)
        held = [each.reshape(-1).view(torch.uint8).reshape(rows) for each in (left, right)]
        unequal = (held[0] != held[1]).any(-1)
    if left.dtype in _SIGNED_ZEROS:
        unequal |= (left == 0) & (right == 0) & (left.signbit() != right.signbit())
    count = int(unequal.sum())
    if count:
        where = tuple(int(each) for each in unequal.nonzero()[0])
        at = f" at {list(where)}" if where else ""
        yield FieldChange(
            field=f"{prefix}value",
            old=f"{_number(left[where])}{at}",
            new=f"{_number(right[where])} (and {count - 1} of {left.numel()} more)"
            if count > 1
            else f"{_number(right[where])}",
        )


_SIGNED_ZEROS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def _number(element: torch.Tensor) -> str:
    try:
        return str(element.item())
    except RuntimeError:  # torch has no numbers for packed formats
        return f"bits {element.reshape(1).view(torch.uint8).tolist()}"


def _sparse_fields(one: torch.Tensor, other: torch.Tensor, prefix: str) -> Iterator[FieldChange]:
    try:
        left, right = (each.detach().to_sparse().coalesce().cpu() for each in (one, other))
    except RuntimeError:  # a layout that torch does not convert
        return
    if left.indices().shape != right.indices().shape or bool(
        (left.indices() != right.indices()).any()
    ):
        texts = [f"{each.indices().shape[1]} elements" for each in (left, right)]
        yield FieldChange(field=f"{prefix}places", old=texts[0], new=texts[1])
    else:
        yield from _value_fields(left.values(), right.values(), prefix)


def _signature(old: fx.Graph, new: fx.Graph) -> Iterator[FieldChange]:
    """How inputs and results are nested."""
    specs = [getattr(graph._codegen, "pytree_info", None) for graph in (old, new)]
    for field in ("in_spec", "out_spec"):
        texts = [" ".join(str(getattr(each, field, None)).split()) for each in specs]
        if texts[0] != texts[1]:
            yield FieldChange(field=field, old=texts[0], new=texts[1])
