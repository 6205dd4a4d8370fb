"""The seam to torch's profiler: what a run allocates and frees, one after the other.

=====================================================  =====================================
private name                                           used for
=====================================================  =====================================
``torch.autograd.profiler.profile.kineto_results``     events with the bytes they allocate
=====================================================  =====================================
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ._memory_data import Usage
from .errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable

_MARK = "lazyfx: between forward and backward"


def allocations(
    first: Callable[[], Any], second: Callable[[Any], Any], device: torch.device
) -> Usage:
    """Run ``second(first())``, and count what the device's allocator does meanwhile.

    Memory that was allocated before does not count, and neither does that of compiled kernels
    which do not ask torch for it (stack buffers of inductor on CPU, cuDNN workspaces).

    Raises:
        SeamError: This torch's profiler gives no such events.
    """
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.synchronize(device)
    with torch.autograd.profiler.profile(
        use_kineto=False, profile_memory=True, use_device="cuda" if cuda else None
    ) as profile:
        between = first()
        with torch.profiler.record_function(_MARK):
            pass
        second(between)
        if cuda:
            torch.cuda.synchronize(device)
    events: Any = getattr(profile.kineto_results, "events", None)
    if events is None:
        raise SeamError(
            f"torch {torch.__version__}'s profiler has no kineto_results.events, which "
            "memory_report relies on; use memory_report(..., measure=False)"
        )
    times: list[float] = []
    sizes: list[int] = []
    total, middle, start = 0, 0, None
    for event in sorted(events(), key=lambda one: one.start_ns()):
        start = event.start_ns() if start is None else start
        if event.name() == _MARK:
            middle = len(times)
        elif event.name() == "[memory]" and _is_on(event, device):
            total += event.nbytes()
            times.append((event.start_ns() - start) / 1e6)
            sizes.append(total)
    return Usage(milliseconds=tuple(times), nbytes=tuple(sizes), middle=middle)


def _is_on(event: Any, device: torch.device) -> bool:
    return str(event.device_type()).rpartition(".")[2].lower() == device.type
