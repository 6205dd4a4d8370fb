"""What a node's value is, as text and bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from lazyfx_compilers import _torch_aot, _torch_debug

_LEAVES = 16  # of one value that are described; the rest is counted
_MOST_BYTES = 2**63 - 1  # sizes are hints, their product may be anything
_TEXT = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A value; of several tensors the texts are joined by ``"; "``, and the bytes added up.

    ``nbytes`` is None where there is no tensor.
    """

    shape: str = ""
    stride: str = ""
    dtype: str = ""
    device: str = ""
    nbytes: int | None = None


_NOTHING = Described()


class Describer:
    """Describes values; remembers symbolic sizes, which are slow to print."""

    def __init__(self) -> None:
        self._known: dict[Any, tuple[str, int]] = {}

    def describe(self, node: fx.Node) -> Described:
        """The value that tracing recorded for a node, of AOTAutograd or of Dynamo."""
        value = node.meta.get("val", node.meta.get("example_value"))
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if value is None:
            return _NOTHING
        if isinstance(value, (list, tuple, dict)):
            return self._several(value)
        if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            return Described(shape=self._extent(value)[0], dtype=type(value).__name__)
        return Described(dtype=type(value).__name__)

    def _several(self, value: Any) -> Described:
        leaves, _ = _torch_aot.tree_flatten(value)
        all_tensors = [one for one in leaves if isinstance(one, torch.Tensor)]
        parts = [self._tensor(one) for one in all_tensors[:_LEAVES]]
        if not parts:
            return Described(dtype=type(value).__name__)
        more = len(all_tensors) - len(parts)
        end = [f"and {more} more"] if more else []
        counted = sum(self._tensor(one).nbytes or 0 for one in all_tensors)
        return Described(
            shape="; ".join([one.shape for one in parts] + end),
            stride="; ".join(one.stride for one in parts),
            dtype="; ".join(_unless_same([one.dtype for one in parts])),
            device="; ".join(_unless_same([one.device for one in parts])),
            nbytes=min(counted, _MOST_BYTES),
        )

    def _tensor(self, value: torch.Tensor) -> Described:
        dtype, device = str(value.dtype).removeprefix("torch."), str(value.device)
        try:
            sizes = [self._extent(size) for size in value.shape]
        except RuntimeError:  # nested tensors of C++ have none
            return Described(dtype=dtype, device=device, shape=f"? {value.layout}")
        shape = f"[{', '.join([text for text, _ in sizes])}]"
        if value.layout is not torch.strided:
            kind = str(value.layout).removeprefix("torch.")
            return Described(dtype=dtype, device=device, shape=f"{shape} {kind}")
        nbytes = value.dtype.itemsize
        for _, size in sizes:
            nbytes *= size
        stride = ", ".join([self._extent(step)[0] for step in value.stride()])
        return Described(
            shape=shape,
            stride=f"[{stride}]",
            dtype=dtype,
            device=device,
            nbytes=max(0, min(nbytes, _MOST_BYTES)),
        )

    def _extent(self, size: Any) -> tuple[str, int]:
        """A size as text, and the number it stood for while tracing."""
        if type(size) is int:
            return str(size), size
        key = _torch_debug.expression(size)
        found = self._known.get(key) if key is not None else None
        if found is None:
            found = (cut(str(size), 200), _torch_aot.hint(size))
            if key is not None:
                self._known[key] = found
        return found


def _unless_same(texts: list[str]) -> list[str]:
    return texts[:1] if len(set(texts)) == 1 else texts


# --- arguments -------------------------------------------------------------------------------


def call_text(node: fx.Node) -> str:
    """A node's arguments as in code, cut where they are long; runs no code but ``repr``."""
    parts = [_argument(each) for each in node.args]
    parts += [f"{key}={_argument(each)}" for key, each in node.kwargs.items()]
    return cut(", ".join(parts), _TEXT)


def _argument(value: Any) -> str:
    if isinstance(value, fx.Node):
        return value.name
    if type(value) in (bool, float, type(None)):
        return repr(value)
    if isinstance(value, tuple):
        inside = ", ".join([_argument(each) for each in value])
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, list):
        return f"[{', '.join([_argument(each) for each in value])}]"
    if isinstance(value, dict):
        return f"{{{', '.join([f'{k!r}: {_argument(v)}' for k, v in value.items()])}}}"
    if isinstance(value, slice):
        start, stop, step = (_argument(one) for one in (value.start, value.stop, value.step))
        return f"slice({start}, {stop}, {step})"
    if isinstance(value, str):
        return repr(cut(value, _TEXT))
    return shown(value)


def shown(value: Any) -> str:
    """``repr``, cut where it is long, or the type of what cannot be shown."""
    try:
        return cut(repr(value), _TEXT)
    except Exception:  # anybody's __repr__: a page about a graph must not fail for it
        return f"<{type(value).__name__}>"


def cut(text: str, most: int) -> str:
    """``text``, or its beginning with a note how much is left out."""
    if len(text) <= most:
        return text
    return f"{text[:most]}… ({len(text) - most} more characters)"
