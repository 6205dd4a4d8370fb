"""A graph as plain data: what is stored instead of source code that would be traced again.

Tracing generated source loses what tracing cannot see: ``a += b`` comes back as ``a + b`` (the
loaded module no longer mutates), ``is`` vanishes, unused nodes, names and metadata are gone. Here
every node is stored as it is and created again as it was. One document serves every door (pickle,
``torch.save``, ``torch.package``, the safe archive); values in it are written in the alphabet of
:mod:`lazyfx_core._encode`::

    {"nodes": [[op, target, name, args, kwargs, type], …],   trailing kwargs and type may be absent
     "targets": […],                                         what call_function nodes refer to
     "codegen": {…}, "tracer": …, "tracer_extras": …, "class": …,
     "meta": [{key: value} | null, …],                       one per node; absent if all are empty
     "texts": …, "shared": …, "again": …, "fakes": …}        tables that values refer to

Arguments refer to earlier nodes only, so a document cannot describe a cycle.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from torch import fx

from ._collector import collector_paused
from ._decode import Decoder
from ._encode import Encoder
from ._meta import MetaWriter, read_meta
from ._torch_codegen import describe_codegen, rebuild_codegen
from ._torch_graph import graph_parts, node_adder, node_count
from ._torch_symbolic import Unstorable
from ._untrusted import NodeCheck, check_attributes_exist, check_codegen
from .errors import GraphFormatError, LazyFxError, NotInThisTorchError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._meta import DroppedMeta
    from ._torch_symbolic import FakeReader, FakeWriter

FORMAT = 1
"""Version of the document; a reader refuses what is newer than itself."""

_OPS = frozenset(("placeholder", "get_attr", "call_function", "call_method", "call_module"))
_OPS |= {"output"}


class GraphWriter:
    """Writes one module's graph, and values that share its tables. Not thread-safe.

    Args:
        other: Stores a value that JSON cannot say and returns what stands for it, or raises
            ``Unstorable``.
        other_in_meta: The same for metadata; by default ``other``.
        dropped: Takes note of metadata that cannot be stored. None: leave all metadata out.
        fakes: Gives a writer of fake values for several graphs, whose environment the caller
            stores.
    """

    def __init__(
        self,
        other: Callable[[Any], Any],
        *,
        other_in_meta: Callable[[Any], Any] | None = None,
        dropped: DroppedMeta | None,
        fakes: Callable[[], FakeWriter] | None = None,
    ) -> None:
        self._nodes: dict[fx.Node, Any] = {}
        self.encode = Encoder(other, self._nodes, fakes)
        self._meta = None
        if dropped is not None:
            self._meta = MetaWriter(self.encode, other_in_meta or other, dropped)

    @property
    def uses_tables(self) -> bool:
        """Whether anything written so far refers to a table of the document."""
        return bool(self.tables())

    def meta(self, meta: dict[Any, Any], where: str) -> dict[str, Any] | None:
        """JSON of a ``meta`` dictionary; None if nothing of it is stored."""
        return None if self._meta is None else self._meta(meta, where)

    def graph(self, graph: fx.Graph) -> dict[str, Any]:
        """The document of ``graph``, ready for ``json.dumps``. Reads only; generates no code.

        Raises:
            SerializationError: A node holds what cannot be stored; names node and field.
        """
        with collector_paused(node_count(graph)):
            document = {**self._rows(graph), **self._around(graph)}
            if self._meta is not None:
                column = [
                    self.meta(n.meta, f"node {n.name!r}") if n.meta else None for n in graph.nodes
                ]
                if any(column):
                    document["meta"] = column
            return {**document, **self.tables()}

    def tables(self) -> dict[str, Any]:
        """The tables that everything written so far refers to; empty ones are left out."""
        encode = self.encode
        found = {
            "texts": encode.texts,
            "shared": encode.shared,
            "again": encode.again,
            "fakes": encode.environment(),
        }
        return {name: table for name, table in found.items() if table}

    def _rows(self, graph: fx.Graph) -> dict[str, Any]:
        encode, nodes = self.encode, self._nodes
        targets: list[Any] = []
        index_of: dict[int, int] = {}
        rows: list[list[Any]] = []
        for node in graph.nodes:
            field = "target"
            try:
                op, target = node.op, node.target
                if op == "call_function":
                    index = index_of.get(id(target))
                    if index is None:
                        encoded = encode(target)
                        index = index_of[id(target)] = len(targets)
                        targets.append(encoded)
                    target = index
                field = "args"
                args = [nodes[a] if type(a) is fx.Node else encode(a) for a in node.args]
                row: list[Any] = [op, target, node.name, args]
                field = "kwargs"
                kwargs = node.kwargs
                if kwargs:
                    row.append({key: encode(value) for key, value in kwargs.items()})
                if node.type is not None:
                    field = "type"
                    if not kwargs:
                        row.append({})
                    row.append(encode(node.type))
            except (Unstorable, RecursionError, KeyError) as error:
                raise cannot_store(f"node {node.name!r}, {field}", error) from error
            nodes[node] = {"node": len(rows)}
            rows.append(row)
        return {"nodes": rows, "targets": targets}

    def _around(self, graph: fx.Graph) -> dict[str, Any]:
        """What a graph holds besides its nodes; what is as usual is left out."""
        codegen, tracer_cls, tracer_extras = graph_parts(graph)
        parts: dict[str, Any] = {}
        for field, value in (
            ("codegen", codegen),
            ("tracer", tracer_cls),
            ("tracer_extras", tracer_extras),
            ("class", None if type(graph) is fx.Graph else type(graph)),
        ):
            try:
                if field == "codegen":
                    parts[field] = describe_codegen(codegen, self.encode)
                elif value is not None:
                    parts[field] = self.encode(value)
            except (Unstorable, RecursionError) as error:
                raise cannot_store(f"the graph's {field}", error) from error
        return parts


class GraphReader:
    """Reads what a :class:`GraphWriter` wrote. Not thread-safe.

    Args:
        document: What :meth:`GraphWriter.graph` made, after ``json.loads``.
        objects: What ``{"object": i}`` refers to.
        other: Decoders for kinds of values that only the caller knows.
        find_name: See :class:`~lazyfx_core._decode.Decoder`.
        trusted: Whether whoever wrote the document may make the graph call anything. Otherwise
            every node is held against :mod:`lazyfx_core._untrusted`.
        allowed: Functions that may be called all the same.
        fakes: Gives a reader of fake values for several graphs; by default one for this document.

    Raises:
        GraphFormatError: The document is not an object.
    """

    def __init__(
        self,
        document: Any,
        *,
        objects: tuple[Any, ...] = (),
        other: dict[str, Callable[[Any], Any]] | None = None,
        find_name: Callable[[str], Any] | None = None,
        trusted: bool,
        allowed: frozenset[Any] = frozenset(),
        fakes: Callable[[], FakeReader] | None = None,
    ) -> None:
        if type(document) is not dict:
            raise GraphFormatError(f"a graph is an object, found {document!r:.80}")
        self._document = document
        self._trusted = trusted
        self._allowed = allowed
        self._created: list[fx.Node] = []
        self.decode = Decoder(
            nodes=self._created,
            texts=self._table("texts"),
            shared=self._table("shared"),
            again=self._table("again"),
            environment=document.get("fakes"),
            objects=objects,
            other=other,
            find_name=find_name,
            fakes=fakes,
            trusted=trusted,
        )

    def graph(self) -> fx.Graph:
        """Create the graph, node by node, without tracing anything. Call it once.

        Raises:
            GraphFormatError: The document is not what this version writes, or this torch lacks an
                operator; names node and field.
        """
        with collector_paused(len(self._table("nodes"))):
            return self._read()

    def _read(self) -> fx.Graph:
        where = "the graph"
        try:
            graph = self._empty_graph()
            targets: dict[Any, Any] = {}
            add, decode, created = node_adder(graph), self.decode, self._created
            check = None if self._trusted else NodeCheck(self._allowed)
            seen: set[str] = set()
            for index, row in enumerate(self._table("nodes")):
                where = f"node {index}"
                op, target, name, args, kwargs, type_ = _row(row, seen)
                where = f"node {name!r:.200}"
                if op == "call_function":
                    if target not in targets:
                        targets[target] = self._target(target)
                    target = targets[target]
                values = decode.arguments(args)
                named = {key: decode(item) for key, item in kwargs.items()} if kwargs else {}
                type_ = type_ if type_ is None else decode(type_)
                if check is not None:
                    check(op, target, values, named, name, type_)
                created.append(add(op, target, values, named, name, type_))
            where = "metadata"
            for node, row in self._meta_rows():
                where = f"metadata of node {node.name!r:.200}"
                node.meta = read_meta(row, decode)
        except RecursionError as error:
            raise GraphFormatError(f"{where}: nested too deep") from error
        except GraphFormatError as error:
            raise type(error)(f"{where}: {error}") from error
        except LazyFxError:
            raise
        except Exception as error:  # whatever a constructor of torch makes of hostile data
            raise GraphFormatError(f"{where}: {type(error).__name__}: {error}") from error
        return graph

    def _empty_graph(self) -> fx.Graph:
        """A graph of the class and with the code generator that the document names."""
        document, decode = self._document, self.decode
        tracer_cls = None
        try:
            tracer_cls = decode(document.get("tracer"))
        except NotInThisTorchError as error:
            decode.left_out.setdefault("tracer", str(error))
        if not isinstance(tracer_cls, type) or not issubclass(tracer_cls, fx.Tracer):
            tracer_cls = None  # by now it has a name, but its module is not loaded
        cls = decode(document["class"]) if "class" in document else fx.Graph
        if not (isinstance(cls, type) and issubclass(cls, fx.Graph)):
            raise GraphFormatError(f"{cls!r:.80} is no class of graphs")
        graph: fx.Graph = cls.__new__(cls)
        extras = decode(document.get("tracer_extras"))
        fx.Graph.__init__(graph, tracer_cls=tracer_cls, tracer_extras=extras)
        codegen = rebuild_codegen(document.get("codegen"), decode)
        if not self._trusted:
            check_codegen(codegen, self._allowed)
        graph.set_codegen(codegen)
        return graph

    def _target(self, index: Any) -> Any:
        """What ``call_function`` nodes with this index call."""
        data = self._table("targets")
        if type(index) is not int or not 0 <= index < len(data):
            raise GraphFormatError(f"target {index!r:.80} does not exist; there are {len(data)}")
        target = self.decode(data[index])
        if not callable(target):
            raise GraphFormatError(f"target {target!r:.80} cannot be called")
        return target

    def _meta_rows(self) -> Iterator[tuple[fx.Node, Any]]:
        if "meta" not in self._document:
            return
        rows = self._table("meta")
        if len(rows) != len(self._created):
            raise GraphFormatError(f"{len(rows)} rows for {len(self._created)} nodes")
        for node, row in zip(self._created, rows, strict=True):
            if row is not None:
                yield node, row

    def _table(self, name: str) -> list[Any]:
        table = self._document.get(name, [])
        if type(table) is not list:
            raise GraphFormatError(f"{name!r} is a list, found {table!r:.80}")
        return table


def _row(row: Any, seen: set[str]) -> tuple[str, Any, str, list[Any], dict[str, Any] | None, Any]:
    """The six fields of a stored node, those that are absent filled in."""
    if type(row) is not list or not 4 <= len(row) <= 6:
        raise GraphFormatError(f"a node is a list of four to six fields, found {row!r:.80}")
    op, target, name, args, *rest = row
    kwargs = rest[0] if rest else None
    if type(op) is not str or op not in _OPS:
        raise GraphFormatError(f"op {op!r:.80} is none of {sorted(_OPS)}")
    if type(name) is not str or not name:
        raise GraphFormatError(f"the name is text, found {name!r:.80}")
    if type(args) is not list or (kwargs is not None and type(kwargs) is not dict):
        raise GraphFormatError(f"args and kwargs of {name!r:.80} are a list and an object")
    if name in seen:
        raise GraphFormatError(f"node {name!r:.200}: another node has the same name")
    if op != "call_function" and type(target) is not str:
        raise GraphFormatError(f"node {name!r:.200}: the target of {op} is not {target!r:.80}")
    seen.add(name)
    return op, target, name, args, kwargs, rest[1] if len(rest) > 1 else None


def may_come_from_a_stranger(gm: fx.GraphModule) -> bool:
    """Whether a reader that trusts nobody would read the graph of ``gm``."""
    graph = gm.graph
    try:
        check_attributes_exist(gm, graph)
        check_codegen(graph_parts(graph)[0])
        check = NodeCheck()
        for node in graph.nodes:
            check(node.op, node.target, node.args, node.kwargs, node.name, node.type)
    except GraphFormatError:
        return False
    return True


def to_json(data: Any, what: str) -> bytes:
    """JSON text of ``data``, as short as it gets.

    Raises:
        SerializationError: ``data`` is nested too deep; names ``what``.
    """
    try:
        return json.dumps(
            data, separators=(",", ":"), check_circular=False, allow_nan=False
        ).encode()
    except RecursionError as error:
        raise SerializationError(f"{what}: nested too deep to be stored") from error


def from_json(text: str | bytes, what: str) -> Any:
    """What ``text`` says.

    Raises:
        GraphFormatError: It is no JSON; names ``what``.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError, TypeError) as error:
        raise GraphFormatError(f"{what}: not JSON, or nested too deep: {error}") from error


def cannot_store(where: str, error: Exception) -> SerializationError:
    """The error that says where ``error`` happened and what it means."""
    reason = str(error)
    if isinstance(error, RecursionError):
        reason = "it is nested too deep, or contains itself"
    elif isinstance(error, KeyError):
        reason = f"it refers to {error.args[0]!r}, which is not a node before it in this graph"
    return SerializationError(f"{where}: cannot be stored: {reason}")
