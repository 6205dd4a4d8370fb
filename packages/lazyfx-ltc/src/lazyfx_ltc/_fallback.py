"""Operators that the lazy backend cannot lower.

When torch's lazy backend meets an operator it has no kernel for, it runs everything up to there,
computes the operator eagerly and goes on from the result: the value of that one run becomes a
constant of the graph. Capture refuses before that happens (``_record.py`` asks :func:`lowers`);
what only shows inside a composite operator is found by the backend's counters, read as a
difference, never reset: they belong to the process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from . import _torch_lazy

_TRIES = 3
_TRANSPARENT = ("CompositeImplicitAutograd", "CompositeExplicitAutograd")


def lowers(op: str) -> bool:
    """Whether the backend captures a call of ``op`` (``"aten::add.Tensor"``), itself or in parts.

    Asks for the functional form, as the backend sees it: ``aten::t_copy``, not ``aten::t``.
    """
    if _torch_lazy.has_kernel(op, "Lazy"):
        return True
    if not op.startswith("aten::") or op.split(".")[0].endswith("_copy"):
        # prims have no lazy form; a copy's composite calls the view, which becomes the copy again
        return False
    return any(_torch_lazy.has_kernel(op, key) for key in _TRANSPARENT)


def calls_that_leave(call: Callable[[], Any], op: str, device: str = "cpu") -> tuple[Any, set[str]]:
    """What a call of an operator returns, and the operators in it that leave the graph.

    Only a composite operator has any. The counters belong to the process, so another thread may
    have moved them: an operator counts if it is there each time the call is repeated.

    Args:
        call: The call.
        op: The operator's name.
        device: The session's device type: its random state is as it was afterwards, too.
    """
    if not is_composite(op):
        return call(), set()
    result, left = None, None
    random_states = {kind: _generators(kind).get_rng_state() for kind in {"cpu", device}}
    for _ in range(_TRIES):
        before = fallback_counts()
        result = call()
        seen = {one.split("=")[0] for one in get_fallback_ops(since=before)}
        left = seen if left is None else left & seen
        if not left:
            return result, set()
    # What left the graph was computed, and may have drawn.
    for kind, state in random_states.items():
        _generators(kind).set_rng_state(state)
    return result, left or set()


def _generators(device: str) -> Any:
    """Where a device type's random state is got and set."""
    return torch if device == "cpu" else torch.get_device_module(device)


# What is known without a call: these give back what they are given, and count nothing.
_native: dict[str, bool] = {"aten::lift": True, "aten::lift_fresh": True}


def native_result(call: Callable[[], Any], op: str) -> tuple[Any, bool]:
    """What a call of an operator with a lazy kernel returns, and whether that can be trusted.

    Some of these kernels are no kernels: they take the operator apart, and torch gets it wrong
    (``pixel_shuffle`` gives memory that nobody has written). A true one counts its calls under its
    own name, whichever thread makes them.
    """
    known = _native.get(op)
    if known is not None:
        return (call(), True) if known else (None, False)
    before = _own_counts(op)
    result = call()
    _native[op] = _own_counts(op) > before
    return result, _native[op]


def _own_counts(op: str) -> int:
    name = op.partition("::")[2].partition(".")[0]
    counts = _torch_lazy.counters()
    return sum(counts.get(f"lazy::{name}{suffix}", 0) for suffix in ("", "_symint"))


def is_composite(op: str) -> bool:
    """Whether the backend gets ``op`` in parts, any of which it may lack a kernel for."""
    return not _torch_lazy.has_kernel(op, "Lazy")


def get_fallback_ops(since: Mapping[str, int] | None = None) -> list[str]:
    """Operators that left the lazy graph in this process, as ``"aten::name=count"``.

    Args:
        since: What :func:`lazyfx_ltc.fallback_counts` gave earlier; only what came after it is
            reported. Without it, everything since the backend was initialized or torch's metrics
            were reset.
    """
    before = since or {}
    return [
        f"{name}={count - before.get(name, 0)}"
        for name, count in fallback_counts().items()
        if count > before.get(name, 0)
    ]


def fallback_counts() -> dict[str, int]:
    """A snapshot for :func:`get_fallback_ops`; counters of the whole process."""
    return {name: n for name, n in _torch_lazy.counters().items() if "aten::" in name and n > 0}
