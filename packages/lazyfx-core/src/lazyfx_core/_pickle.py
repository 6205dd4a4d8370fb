"""``pickle``, ``torch.save`` and ``copyreg``: a thin user of :mod:`lazyfx_core._serialize`.

A pickled lazy module holds its attributes as ``nn.Module`` pickles them, and its graph as one
compressed document plus the Python objects that JSON cannot say (functions of the user's own,
constants of unknown types), which the pickler stores by its own rules. Loading copies the document
and stops: the graph is built when somebody looks at it, and no code is generated before that
either. Class, class name and laziness come back whatever the flags say at load time.

A graph that a stranger could have sent (see :mod:`lazyfx_core._untrusted`) is held to those rules
when it is read, too: only the presence of :class:`Unchecked` among the globals of a pickle lifts
them, and ``torch.load(weights_only=True)`` refuses that class.

:func:`restore_module`, :func:`restore_plain_module`, :class:`StoredGraph` and :class:`Unchecked`
are named in every pickle ever written: they keep their places, names and arguments.
"""

from __future__ import annotations

import base64
import contextlib
import io
import pickle
import sys
import typing
import weakref
import zlib
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ._collector import BYTES_OF_A_NODE, collector_paused
from ._decode import Decoder
from ._instance_class import user_class
from ._meta import DroppedMeta, current_options, read_meta, warn_of_left_out
from ._serialize import (
    FORMAT,
    GraphReader,
    GraphWriter,
    cannot_store,
    from_json,
    may_come_from_a_stranger,
    to_json,
)
from ._torch_codegen import is_spec
from ._torch_fx import GENERATED_FIELDS, new_plain_module, set_graph
from ._torch_symbolic import Unstorable, is_fake_value
from ._untrusted import check_attributes_exist, check_class_name, check_value
from .errors import GraphFormatError, LazyFxError, NotInThisTorchError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.package import PackageExporter

    from ._graph_module import LazyGraphModule

# Bytes of a document, once decompressed: what a short one may grow to, and the longest.
_SMALL, _EXPANSION, _LARGEST = 16 << 20, 64, 1 << 30
_TABLES = frozenset({"_parameters", "_buffers", "_modules", "training"})
_REBUILT = ("_graph", *GENERATED_FIELDS)


class Unchecked:
    """Stands in a pickle whose graph may call anything, as Python pickles may.

    A pickle without it is read under the rules for strangers, and ``weights_only=True`` refuses
    it; so a file cannot have both.
    """


class StoredGraph:
    """What a pickle holds of a graph module besides its attributes.

    Args:
        format: Version of the rest.
        attributes: JSON of the attributes that pickle cannot be trusted with, by name.
        size: Bytes of the document before compression.
        document: The graph, as :mod:`lazyfx_core._serialize` writes it: JSON, compressed; in
            base64 where the pickle protocol has no bytes.
        objects: Python objects that the JSON refers to.
        unchecked: :class:`Unchecked`, or None if the rules for strangers hold.
    """

    __slots__ = ("attributes", "document", "format", "objects", "size", "unchecked")

    def __init__(
        self,
        format: int,
        attributes: str,
        size: int,
        document: bytes | str,
        objects: tuple[Any, ...],
        unchecked: type[Unchecked] | None,
    ) -> None:
        self.format = format
        self.attributes = attributes
        self.size = size
        self.document = document
        self.objects = objects
        self.unchecked = unchecked

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        document = self.document
        if protocol < 3 and isinstance(document, bytes):
            document = base64.b64encode(document).decode()
        fields = (self.format, self.attributes, self.size, document, self.objects, self.unchecked)
        return StoredGraph, fields


def reduce_module(gm: LazyGraphModule) -> tuple[Any, ...]:
    """The reduction of ``gm`` for the pickle protocol. Generates nothing, changes nothing.

    Raises:
        SerializationError: A node holds what cannot be stored; names node and field.
    """
    return restore_module, module_state(gm)


def module_state(
    gm: fx.GraphModule,
) -> tuple[type[fx.GraphModule], str, dict[str, Any], StoredGraph]:
    """Class, class name, attributes and stored graph of ``gm``: all that a pickle holds."""
    cls, class_name = user_class(type(gm)), type(gm).__name__
    held = dict(vars(gm))
    attributes: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for name, value in held.items():
        if name in _REBUILT:
            attributes[name] = None  # keeps its place: torch hashes dictionaries in their order
        elif name in ("meta", "_tracer_cls") or is_spec(value) or is_fake_value(value):
            attributes[name] = None
            ours[name] = value
        else:
            attributes[name] = value
    attributes["_modules"] = _storable_children(held["_modules"])
    options = current_options()
    dropped = DroppedMeta(class_name=class_name, strict=options.strict)
    objects = _Objects()
    writer = GraphWriter(
        objects.add,
        other_in_meta=objects.add_if_it_pickles,
        dropped=dropped if options.meta else None,
    )
    encoded: dict[str, Any] = {}
    for name, value in ours.items():
        try:
            encoded[name] = (
                writer.meta(value, "the module") if name == "meta" else writer.encode(value)
            )
        except (Unstorable, RecursionError) as error:
            raise cannot_store(f"{class_name}.{name}", error) from error
    uses_tables, before = writer.uses_tables, to_json(encoded, class_name)
    graph = gm.graph
    text = to_json(writer.graph(graph), class_name)
    # A container that a node holds as well has moved to a table meanwhile.
    uses_tables = uses_tables or to_json(encoded, class_name) != before
    head = {"uses_tables": uses_tables, "values": encoded}
    unchecked = None if may_come_from_a_stranger(gm) else Unchecked
    dropped.warn(_callers_level())
    stored = StoredGraph(
        FORMAT,
        to_json(head, class_name).decode(),
        len(text),
        zlib.compress(text, 1),
        tuple(objects.kept),
        unchecked,
    )
    return cls, class_name, attributes, stored


def restore_module(
    cls: type[LazyGraphModule], class_name: str, attributes: dict[str, Any], stored: StoredGraph
) -> LazyGraphModule:
    """Build the module that :func:`module_state` describes; it is stale, its graph not built yet.

    Raises:
        GraphFormatError: What is stored is not what this version writes.
    """
    from ._graph_module import adopt_stored

    _check_arguments(cls, class_name, attributes, stored)
    gm = cls.__new__(cls)
    with _refusals():
        graph = _restore_state(gm, attributes, stored)
    adopt_stored(gm, graph, class_name)
    return gm


def restore_plain_module(
    cls: type[fx.GraphModule], class_name: str, attributes: dict[str, Any], stored: StoredGraph
) -> fx.GraphModule:
    """The same for a plain ``fx.GraphModule`` inside of a lazy one: graph and code are made now."""
    _check_arguments(cls, class_name, attributes, stored)
    gm = new_plain_module(cls)
    with _refusals():
        graph = _restore_state(gm, attributes, stored)
    type(gm).__name__ = class_name
    set_graph(gm, graph.build(gm))
    return gm


def allow_in_weights_only_load(*also: Any) -> None:
    """Let ``torch.load(weights_only=True)``, the default, read pickles of lazy graph modules.

    Adds to torch's list of safe globals, for the whole process, what such a pickle names: a
    function that rebuilds the module from data, the data, and the classes of graph modules. A file
    read that way can only hold graphs that call torch's own operators and functions; one whose
    graph calls anything else is refused by ``torch.load``.

    Args:
        also: Classes and functions of your own, or of ``torch.nn``, that your modules hold, as
            ``torch.serialization.add_safe_globals`` takes them.

    Example:
        >>> import io, torch
        >>> from torch import fx
        >>> from lazyfx_core import LazyGraphModule, allow_in_weights_only_load
        >>> allow_in_weights_only_load(torch.nn.Linear)
        >>> gm = LazyGraphModule.from_graphmodule(fx.symbolic_trace(torch.nn.Linear(2, 1)))
        >>> file = io.BytesIO()
        >>> torch.save(gm, file)
        >>> _ = file.seek(0)
        >>> torch.load(file, weights_only=True).needs_recompile
        True
    """
    import lazyfx_core

    torch.serialization.add_safe_globals(
        [
            *(restore_module, restore_plain_module, StoredGraph),
            *(lazyfx_core.LazyGraphModule, fx.GraphModule, nn.Module),
            *also,
        ]
    )


class DeferredGraph:
    """A stored graph that has not been built. ``build`` may be called once more if it failed."""

    __slots__ = ("_reader", "stored")

    def __init__(self, stored: StoredGraph) -> None:
        self.stored = stored
        self._reader: GraphReader | None = None

    def reader(self) -> GraphReader:
        """The reader of the document; the document is opened when first asked for."""
        if self._reader is None:
            stored = self.stored
            self._reader = GraphReader(
                _open(stored), objects=stored.objects, trusted=stored.unchecked is Unchecked
            )
        return self._reader

    def build(self, module: fx.GraphModule) -> fx.Graph:
        """The graph, for ``module``, which holds the attributes it refers to.

        Raises:
            GraphFormatError: It cannot be built on this torch; names node and field.
        """
        reader, self._reader = self.reader(), None
        graph = reader.graph()
        warn_of_left_out(reader.decode.left_out, type(module).__name__, _callers_level())
        if self.stored.unchecked is not Unchecked:
            check_attributes_exist(module, graph)
        return graph


def _restore_state(
    gm: fx.GraphModule, attributes: dict[str, Any], stored: StoredGraph
) -> DeferredGraph:
    if stored.format != FORMAT:
        raise GraphFormatError(
            f"the stored graph has format {stored.format!r:.80}, this lazyfx-core reads {FORMAT}; "
            "load it with a newer lazyfx-core"
        )
    graph = DeferredGraph(stored)
    head = from_json(stored.attributes, "the stored attributes")
    values = head.get("values") if type(head) is dict else None
    if type(values) is not dict:
        raise GraphFormatError(f"stored attributes are an object, found {head!r:.80}")
    if head.get("uses_tables"):
        decode = graph.reader().decode
    else:
        decode = Decoder(nodes=[], objects=stored.objects)
    for name, value in values.items():
        if name not in attributes:
            raise GraphFormatError(f"attribute {name!r:.80} is not one of the module")
        if name == "meta":
            attributes[name] = {} if value is None else read_meta(value, decode)
            continue
        try:
            attributes[name] = decode(value)
        except NotInThisTorchError as error:
            decode.left_out.setdefault(name, str(error))
            del attributes[name]
            continue
        if stored.unchecked is not Unchecked and name != "_tracer_cls":
            check_value(name, attributes[name], frozenset())
    if not head.get("uses_tables"):  # else the graph says it
        warn_of_left_out(decode.left_out, type(gm).__name__, _callers_level())
    gm.__setstate__(attributes)  # type: ignore[no-untyped-call]
    return graph


def _check_arguments(cls: Any, class_name: Any, attributes: Any, stored: Any) -> None:
    if not (isinstance(cls, type) and issubclass(cls, fx.GraphModule)):
        raise GraphFormatError(f"expected a class of graph modules, found {cls!r:.80}")
    for value, kind in ((class_name, str), (attributes, dict), (stored, StoredGraph)):
        if not isinstance(value, kind):
            raise GraphFormatError(f"expected a {kind.__name__}, found {value!r:.80}")
    if not isinstance(stored.objects, tuple):
        raise GraphFormatError(f"the stored objects are a tuple, found {stored.objects!r:.80}")
    missing = _TABLES - attributes.keys()
    if missing:
        raise GraphFormatError(f"the attributes lack {sorted(missing)}")
    if stored.unchecked is not Unchecked:
        check_class_name(class_name)


@contextlib.contextmanager
def _refusals() -> Iterator[None]:
    """Turn whatever a damaged pickle makes constructors raise into an error of ours."""
    try:
        yield
    except (LazyFxError, Warning):
        raise
    except Exception as error:
        raise GraphFormatError(
            f"the stored attributes: {type(error).__name__}: {error!s:.200}"
        ) from error


def _open(stored: StoredGraph) -> Any:
    """The document, decompressed no further than its writer said, and parsed."""
    document, size = stored.document, stored.size
    known = len(document) if isinstance(document, (bytes, str)) else 0
    if type(size) is not int or not 0 <= size <= min(_LARGEST, _SMALL + _EXPANSION * known):
        raise GraphFormatError(f"a document of {size!r:.80} bytes is too large")
    try:
        if isinstance(document, str):
            document = base64.b64decode(document, validate=True)
        text = zlib.decompressobj().decompress(document, size + 1)
    except (zlib.error, ValueError, TypeError) as error:
        raise GraphFormatError(f"the stored graph is damaged: {error}") from error
    if len(text) != size:
        raise GraphFormatError(f"the stored graph is damaged: it should have {size} bytes")
    with collector_paused(size // BYTES_OF_A_NODE):
        return from_json(text, "the stored graph")


class _WithoutNodes(pickle.Pickler):
    """Refuses what would take a graph along: nodes of it would come back as those of a copy."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, (fx.Node, fx.Graph, fx.GraphModule)):
            raise Unstorable(f"it holds a {type(obj).__name__} inside of an object")
        return NotImplemented


class _Objects:
    """The Python objects that a document refers to."""

    def __init__(self) -> None:
        self.kept: list[Any] = []
        self._index: dict[int, Any] = {}

    def add(self, value: Any) -> Any:
        """JSON that stands for ``value``, which the pickler will store by its own rules."""
        found = self._index.get(id(value))
        if found is None:
            if callable(value) and not is_importable(value):
                raise Unstorable(
                    f"{value!r:.200} cannot be found again as "
                    f"{getattr(value, '__module__', None)}.{value.__qualname__}; move it to the "
                    "top level of an importable module"
                )
            found = self._index[id(value)] = {"object": len(self.kept)}
            self.kept.append(value)
        return found

    def add_if_it_pickles(self, value: Any) -> Any:
        """The same for metadata, of which nothing is known and which must not make storing fail."""
        if id(value) not in self._index:
            kind = type(value).__name__
            try:
                with io.BytesIO() as file:
                    _WithoutNodes(file).dump(value)
                    if not isinstance(value, (type, nn.Module)):
                        pickle.loads(file.getvalue())
            except Unstorable:
                raise
            except Exception as error:
                reason = f"{kind} does not pickle ({type(error).__name__})"
                raise Unstorable(reason) from error
        return self.add(value)


def is_importable(value: Any) -> bool:
    """Whether pickle finds ``value`` again by its name; what has no name pickles by value."""
    if typing.get_origin(value) is not None:
        return True  # List[int] and friends answer with the name of what they are made of
    qualified = getattr(value, "__qualname__", None)
    module = sys.modules.get(getattr(value, "__module__", None) or "")
    if qualified is None or module is None:
        return True  # builtins of torch.Tensor and friends: pickle has its own ways to name them
    if "<locals>" in qualified or "<lambda>" in qualified:
        return False
    found: Any = module
    for atom in qualified.split("."):
        found = getattr(found, atom, None)
    return found is value or found is None


class _PlainModule:
    """Stands for a plain ``fx.GraphModule`` while a lazy one that holds it is being pickled.

    torch pickles the plain one by its source, which loses what tracing cannot see.
    """

    __slots__ = ("__weakref__", "_gm")

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return restore_plain_module, module_state(self._gm)

    def __reduce_package__(self, exporter: PackageExporter) -> tuple[Any, ...]:
        from ._package import reduce_plain_module

        return reduce_plain_module(self._gm, exporter)


# Pickle stores once what it meets twice, so a module must have the same stand-in everywhere. A
# stand-in keeps alive what its key is the id of, and lives as long as a pickler remembers it.
_stand_ins: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


def _storable_children(modules: dict[str, Any]) -> dict[str, Any]:
    """``modules`` with plain graph modules, at any depth, replaced by what stores their graphs."""
    changed = {}
    for name, child in modules.items():
        if isinstance(child, nn.Module):
            storable = _storable(child)
            if storable is not child:
                changed[name] = storable
    return {**modules, **changed} if changed else modules


def _storable(module: nn.Module) -> Any:
    cls = type(module)
    if isinstance(module, fx.GraphModule):
        if cls.__reduce__ is not fx.GraphModule.__reduce__:
            return module
        found = _stand_ins.get(id(module))
        if not isinstance(found, _PlainModule):
            found = _stand_ins[id(module)] = _PlainModule(module)
        return found
    pickles_as_usual = (
        cls.__reduce_ex__ is object.__reduce_ex__
        and cls.__reduce__ is object.__reduce__
        and getattr(cls, "__getstate__", None)
        in (getattr(object, "__getstate__", None), getattr(nn.Module, "__getstate__", None))
    )
    if not pickles_as_usual or not module._modules:
        return module
    children = _storable_children(module._modules)
    if children is module._modules:
        return module
    key = id(module._parameters)  # the twin holds the same dictionary
    twin = _stand_ins.get(key)
    if twin is None or type(twin) is not cls:
        twin = _stand_ins[key] = cls.__new__(cls)
    # Another pickler may have made it, before the module changed.
    vars(twin).clear()
    vars(twin).update(vars(module), _modules=children)
    return twin


def _callers_level() -> int:
    """How far up the stack, seen from whoever calls ``warn``, neither lazyfx nor torch is."""
    level, frame = 3, sys._getframe(2)
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in ("lazyfx_core", "torch", "pickle"):
            break
        frame, level = frame.f_back, level + 1  # type: ignore[assignment]
    return level
