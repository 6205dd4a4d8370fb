"""Checks that read the elements of tensors: NaN and inf, and writes that nobody counts.

They cost a pass over each tensor, and on a GPU a synchronization for each node.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from . import _metadata, _torch_checks
from ._metadata import Difference

# what they return was never written
_UNINITIALIZED = ("empty", "new_empty", "resize_")


class Elements:
    """What was in the tensors that a node takes, before it runs.

    Args:
        checks: The names of the checks that are on.
        nodes: The nodes that it takes.
        arguments: Its arguments, for the numbers among them: what a number brings in
            (``masked_fill(mask, -inf)``), the node does not make.
        watched: Those of ``nodes`` that it must not write to; they can be looked at afterwards.
        env: The values.
    """

    __slots__ = ("_bytes", "_env", "_kinds", "_others", "_watched")

    def __init__(
        self,
        checks: frozenset[str],
        nodes: Sequence[fx.Node],
        arguments: Any,
        watched: Sequence[fx.Node],
        env: Mapping[fx.Node, Any],
    ) -> None:
        self._watched, self._env = watched, env
        self._others = [node for node in nodes if node not in watched]
        numbers = [each for each in _metadata.leaves(arguments) if isinstance(each, float)]
        self._kinds = [
            kind
            for kind in ("nan", "inf")
            if kind in checks
            and not any(map(_IN_NUMBERS[kind], numbers))
            and not any(_count(kind, each) for each in self._tensors(self._others))
        ]
        self._bytes = {
            node: _bytes(env[node])
            for node in watched
            if "writes" in checks and _torch_checks.is_plain(env[node])
        }

    def accept(self, result: Any) -> bool:
        """Whether all is well; ``False`` may mean that it takes a closer look."""
        if self._bytes:
            return False
        return not self._kinds or all(map(_is_finite, self._made(result)))

    def differences(self, result: Any) -> Iterator[Difference]:
        """What is wrong with them and with the result, after the node has run."""
        for node, before in self._bytes.items():
            if not torch.equal(before, _bytes(self._env[node])) and not self._is_shared(node):
                yield Difference(
                    check="writes",
                    checked=f"content of argument {node.name!r}",
                    expected="that it is only read",
                    seen="another than before",
                    said_by="its schema or tracing says",
                )
        for kind in self._kinds:
            for tensor in self._made(result):
                count = _count(kind, tensor)
                if count and not any(_count(kind, each) for each in self._tensors(self._watched)):
                    yield Difference(
                        check=kind,
                        checked=f"number of {'NaN' if kind == 'nan' else 'inf'}",
                        expected="none, for its inputs have none",
                        seen=f"{count} in {tensor.numel()}",
                        said_by="expected is",
                    )
                    break

    def _made(self, result: Any) -> Iterator[torch.Tensor]:
        """What the node may have made: its result, and what it may have written."""
        yield from _dense(result)
        yield from self._tensors(self._others)

    def _tensors(self, nodes: Iterable[fx.Node]) -> Iterator[torch.Tensor]:
        for node in nodes:
            yield from _dense(self._env[node])

    def _is_shared(self, node: fx.Node) -> bool:
        others = (self._env[one] for one in self._others)
        return any(_torch_checks.shares_any(self._env[node], one) for one in others)


def makes_values(node: fx.Node) -> bool:
    """Whether a node computes what it returns: not an input, and not memory as it was found."""
    if node.op not in ("call_function", "call_method", "call_module"):
        return False
    return not _torch_checks.base_name(node.target).startswith(_UNINITIALIZED)


_IN_NUMBERS = {"nan": math.isnan, "inf": math.isinf}
_IN_TENSORS = {"nan": torch.isnan, "inf": torch.isinf}


def _dense(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in a value that can hold NaN and whose elements can be read."""
    for each in (value,) if isinstance(value, torch.Tensor) else _metadata.leaves(value):
        if (
            _torch_checks.is_plain(each)
            and (each.is_floating_point() or each.is_complex())
            and each.device.type != "meta"
            and each.numel()
        ):
            yield each.detach()


def _is_finite(tensor: torch.Tensor) -> bool:
    """Whether all is finite; ``False`` may also mean that the sum is too large."""
    wide = torch.float32 if tensor.element_size() < 4 else tensor.dtype
    return cmath.isfinite(tensor.sum(dtype=wide).item())


def _count(kind: str, tensor: torch.Tensor) -> int:
    wide = tensor.to(torch.float32) if tensor.element_size() == 1 else tensor  # float8 lacks isinf
    return int(_IN_TENSORS[kind](wide).sum())


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        plain = torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
        flat = plain.resolve_neg().detach().clone(memory_format=torch.contiguous_format)
        return flat.view(-1).view(torch.uint8)
