"""One lazy backend a process, initialized once, for one device type.

torch's backend reads ``LTC_TS_CUDA`` when it is registered, and cannot be registered again: a
second registration raises and leaves it half done. So the choice between cpu and cuda is made once
a process, by the first :func:`initialize` (explicit, or by the first extraction, which takes what
``LTC_TS_CUDA`` says, or else cpu). A backend that somebody else registered is taken as it is.

Before the session is used, a small graph is captured and replayed to see that this torch orders
graph inputs as ``_torch_lazy.py`` assumes. Thread-safe.
"""

from __future__ import annotations

import os
import threading
from contextvars import ContextVar

import torch

from . import _torch_lazy
from ._torch_tracing import without_modes
from .errors import SessionError

_VARIABLE = "LTC_TS_CUDA"
_DEVICES = ("cpu", "cuda")
LOCK = threading.RLock()
"""Held while the backend is initialized and while a model is recorded."""
CAPTURING: ContextVar[bool] = ContextVar("lazyfx_ltc_capturing", default=False)
"""Whether this thread (or task) is about to capture a model: its code runs for that alone."""

_session: dict[str, str] = {}  # "device" once the session exists


def initialize(device: str | None = None) -> str:
    """Initialize torch's lazy backend, once a process; later calls only check.

    Args:
        device: ``"cpu"`` or ``"cuda"``. None takes the session there is, or else the
            environment's ``LTC_TS_CUDA`` (cuda if it is set and not ``0``), or else cpu.

    Returns:
        The session's device type.

    Raises:
        SessionError: The device is unknown, CUDA is not to be had, the process already has a
            session on the other device, or this torch's lazy backend does not work as expected.
    """
    if device is not None and device not in _DEVICES:
        raise SessionError(f"device: expected 'cpu' or 'cuda', seen {device!r}")
    with LOCK:
        current = _session.get("device")
        if current is None:
            with without_modes(), torch.inference_mode(False), torch.no_grad():
                current = _start(device)
                _self_test(current)
            _session["device"] = current
        if device is not None and device != current:
            raise SessionError(
                f"device: expected {current!r}, seen {device!r}: this process's lazy backend"
                f" already runs on {current}, and torch allows one device type a process; call"
                f" initialize({device!r}) first thing in a new process"
            )
        return current


def _start(device: str | None) -> str:
    if _torch_lazy.backend_is_registered():
        return _torch_lazy.backend_device()
    if device is None:
        device = "cuda" if os.environ.get(_VARIABLE, "0") not in ("", "0") else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise SessionError(
            "device: 'cuda' was asked for (by initialize or LTC_TS_CUDA), but this torch"
            f" ({torch.__version__}) sees no CUDA device; use 'cpu', or install a CUDA build of"
            " torch on a machine with an NVIDIA GPU"
        )
    before = os.environ.get(_VARIABLE)
    try:
        if device == "cuda":
            os.environ[_VARIABLE] = "1"
        else:
            os.environ.pop(_VARIABLE, None)
        _torch_lazy.register_backend()
    except RuntimeError as error:
        raise SessionError(
            f"torch's lazy backend cannot be initialized: {error}; this torch build"
            f" ({torch.__version__}) may lack it: install an official one, 2.6 to 2.15"
        ) from error
    finally:
        if before is None:
            os.environ.pop(_VARIABLE, None)
        else:
            os.environ[_VARIABLE] = before
    return _torch_lazy.backend_device()


def _self_test(device: str) -> None:
    """Check the order of graph inputs on graphs where every wrong order gives other numbers."""
    real = [torch.tensor([2.0, 3.0], device=device) * (10**power) for power in range(3)]
    a, b, c = (tensor.to("lazy") for tensor in real)
    for roots in ([c - b, a / c], [b / a, a - c, b], [(c / b) - a]):
        ids, values = _torch_lazy.device_data(roots)
        text = _torch_lazy.backend_text(roots)
        if text.partition("):")[0].count(" : Tensor") != len(ids):
            raise _unexpected("the number of graph inputs")
        known = {
            _torch_lazy.tensor_id(lazy): value for lazy, value in zip((a, b, c), real, strict=True)
        }
        if any(
            one in known and not torch.equal(value, known[one])
            for one, value in zip(ids, values, strict=True)
        ):
            raise _unexpected("the order of graph inputs")


def _unexpected(what: str) -> SessionError:
    return SessionError(
        f"torch {torch.__version__}: {what} of a lazy graph is not as lazyfx-ltc expects; this"
        " torch release is not supported: install torch 2.6 to 2.15"
    )
