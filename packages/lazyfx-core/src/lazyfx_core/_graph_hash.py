"""A content hash of graphs: the key that a graph cache needs.

Two graph modules have the same hash if their graphs do the same with their inputs, node by node:
the same operators, arguments and edges in the same order, the same signature structure, attributes
of the same kind in the same places. Names of nodes, paths of attributes and metadata do not count
unless asked for, values of parameters neither: a cache of compiled code is keyed by shapes.

The hash is SHA-256 over canonical JSON (the document of :mod:`lazyfx_core._serialize`, reduced to
what counts), so it is the same in every process and on every torch that calls the operators by the
same names.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from ._meta import DroppedMeta
from ._module_tree import by_name
from ._serialize import GraphWriter, cannot_store
from ._structure import describe
from ._torch_symbolic import Unstorable, is_fake_value
from .errors import InvalidGraphError, NotAGraphModuleError

if TYPE_CHECKING:
    from collections.abc import Iterator

_VERSION = 1
_NO_CONFIGURATION = frozenset(vars(nn.Module()))


def graph_hash(
    gm: fx.GraphModule,
    *,
    names: bool = False,
    meta: bool = False,
    values: bool = False,
) -> str:
    """A hash of what ``gm`` computes, equal across processes for equal graphs.

    Args:
        gm: A graph module, lazy or plain. Read only; no code is generated.
        names: Let names of nodes, parameters of ``forward`` and paths of attributes count.
        meta: Let ``node.meta`` count, as far as it can be stored.
        values: Let the contents of parameters, buffers and constants count, not only their dtype,
            shape, strides, device and whether they require gradients.

    Returns:
        64 hexadecimal digits.

    Raises:
        NotAGraphModuleError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: A node refers to an attribute that ``gm`` does not have.
        SerializationError: A node refers to something without a stable name, such as a lambda.

    Example:
        >>> import torch
        >>> from torch import fx
        >>> one = fx.symbolic_trace(lambda x: torch.sin(x) + 1)
        >>> two = fx.symbolic_trace(lambda y: torch.sin(y) + 1)
        >>> graph_hash(one) == graph_hash(two)
        True
        >>> graph_hash(one) == graph_hash(fx.symbolic_trace(lambda x: torch.sin(x) + 2))
        False
    """
    if not isinstance(gm, fx.GraphModule):
        raise NotAGraphModuleError(
            f"graph_hash(gm) takes a graph module, not its graph; got {describe(gm)}"
        )
    return _Hasher(names=names, meta=meta, values=values).module(gm)


class _Hasher:
    """One call of :func:`graph_hash`; remembers what it met, so that sharing counts."""

    def __init__(self, *, names: bool, meta: bool, values: bool) -> None:
        self._names = names
        self._meta = meta
        self._values = values
        self._met: dict[int, int] = {}
        self._storages: dict[int, int] = {}
        self._kept: list[Any] = []

    def module(self, gm: fx.GraphModule) -> str:
        dropped = DroppedMeta(class_name=type(gm).__name__, strict=False)
        writer = GraphWriter(self._other, dropped=dropped if self._meta else None)
        document = writer.graph(gm.graph)
        rows = document["nodes"]
        for node, row in zip(gm.graph.nodes, rows, strict=True):
            if len(row) > 4:
                row[4] = dict(sorted(row[4].items()))  # the order of dictionaries counts elsewhere
            if node.op in ("get_attr", "call_module"):
                row.append(self._attribute(gm, node))
            if not self._names:
                row[2] = None
                if node.op == "placeholder":
                    row[1] = "*" * (len(node.target) - len(node.target.lstrip("*")))
                elif node.op in ("get_attr", "call_module"):
                    row[1] = None
        if not self._names:
            document["codegen"].pop("orig_args", None)
        for unimportant in ("tracer", "tracer_extras"):
            document.pop(unimportant, None)
        if "meta" in document:
            document["meta"] = [row and dict(sorted(row.items())) for row in document["meta"]]
        text = json.dumps([_VERSION, document], separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def _attribute(self, gm: fx.GraphModule, node: fx.Node) -> Any:
        found: Any = gm
        try:
            for atom in str(node.target).split("."):
                found = getattr(found, atom)
        except AttributeError as error:
            raise InvalidGraphError(
                f"node {node.name!r} refers to {node.target!r}, which {type(gm).__name__!r} does "
                "not have"
            ) from error
        try:
            return self._describe(found)
        except Unstorable as error:
            raise cannot_store(f"node {node.name!r}, attribute {node.target!r}", error) from error

    def _describe(self, value: Any) -> Any:
        """What counts of an attribute: its kind, and which of those met before it is."""
        if id(value) in self._met:
            return ["again", self._met[id(value)]]
        self._met[id(value)] = len(self._met)
        self._kept.append(value)  # so that no other object gets its id
        if isinstance(value, fx.GraphModule):
            return ["graph", self.module(value)]
        if isinstance(value, nn.Module):
            return ["module", by_name(type(value)), value.training, self._sorted(value)]
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        writer = GraphWriter(self._other, dropped=None)
        return ["value", writer.encode(value), writer.tables()]

    def _sorted(self, module: nn.Module) -> list[Any]:
        return sorted(self._contents(module), key=lambda item: item[0])

    def _contents(self, module: nn.Module) -> Iterator[tuple[str, Any]]:
        """Parameters, buffers, children and configuration of a module that is called as a whole."""
        for table in ("_parameters", "_buffers", "_modules"):
            for name, value in vars(module)[table].items():
                yield f"{table}.{name}", None if value is None else self._describe(value)
        for name, value in vars(module).items():
            if name in _NO_CONFIGURATION:
                if name.endswith("hooks") and value:
                    raise Unstorable(f"the module has {name.strip('_')}, which are code")
            elif not name.startswith("_"):
                yield (
                    name,
                    self._describe(value) if isinstance(value, nn.Module) else self._plain(value),
                )

    def _plain(self, value: Any) -> Any:
        writer = GraphWriter(self._other, dropped=None)
        return [writer.encode(value), writer.tables()]

    def _tensor(self, tensor: torch.Tensor) -> Any:
        described = [
            "tensor",
            *(str(tensor.dtype), str(tensor.layout), str(tensor.device), tensor.requires_grad),
            [str(size) for size in tensor.shape],
            isinstance(tensor, nn.Parameter),
        ]
        if tensor.layout is torch.strided:
            described.append([str(stride) for stride in tensor.stride()])
            described += self._memory(tensor)
        described.append([tensor.is_conj(), tensor.is_neg()])
        if self._values and not is_fake_value(tensor) and tensor.device.type != "meta":
            if tensor.layout is not torch.strided or tensor.is_quantized:
                raise Unstorable(f"values of a tensor of layout {tensor.layout} cannot be hashed")
            plain = tensor.detach().cpu().resolve_conj().resolve_neg()
            data = plain.contiguous().reshape(-1).view(torch.uint8)
            content = bytearray(len(data))
            if content:
                torch.frombuffer(content, dtype=torch.uint8).copy_(data)
            described.append(hashlib.sha256(content).hexdigest())
        return described

    def _memory(self, tensor: torch.Tensor) -> list[Any]:
        """Which of the storages met before it is on, and where: a write would show there."""
        storage = tensor.untyped_storage()
        index = self._storages.get(storage._cdata)
        if index is None:
            self._storages[storage._cdata] = len(self._storages)
            self._kept.append(storage)
            return []
        return [["memory", index, str(tensor.storage_offset())]]

    def _other(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return {"constant": self._describe(value)}
        if isinstance(value, nn.Module):
            return {"constant": self._describe(value)}
        return by_name(value)
