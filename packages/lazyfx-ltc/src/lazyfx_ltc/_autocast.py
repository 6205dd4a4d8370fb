"""Capture under autocast: the casts become part of the graph.

The lazy backend does not follow autocast. So the model is traced under it first, on fake tensors of
the real device, where autocast writes its casts down as operators; what is captured is that graph.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from ._decompose import decompositions
from ._state import bind_state
from ._structure import flatten
from ._subject import Subject
from ._torch_tracing import make_fx
from .errors import CaptureError, LtcError


def traced_under_autocast(subject: Subject, dtype: torch.dtype | None) -> Subject:
    """The same call of a graph that holds the casts.

    All sources of ``subject`` are arguments of it, with the same numbers; what tracing took for a
    constant follows, as tensors of the traced model.

    Args:
        subject: What is captured.
        dtype: What autocast computes in around the model; None if it is off there.

    Raises:
        CaptureError: The model cannot be traced.
    """
    sources = subject.sources

    def run(*tensors: torch.Tensor) -> Any:
        # No cache of casts: it would outlive this trace, with traced tensors in it.
        with torch.autocast(
            subject.device, dtype=dtype, enabled=dtype is not None, cache_enabled=False
        ):
            return subject.runner(tensors).call(*subject.arguments(tensors))

    try:
        with torch.set_grad_enabled(subject.grad):
            traced = make_fx(run, decompositions())(*map(_without_gradient, sources))
    except LtcError:
        raise
    except Exception as error:
        raise CaptureError(
            f"the model cannot be traced under autocast ({type(error).__name__}: {error}); trace"
            " it with make_fx in the autocast block, and capture the result outside"
        ) from error
    leaves, structure = flatten((tuple(sources), {}))
    constants = bind_state(traced, traced.graph).tensors
    return dataclasses.replace(
        subject,
        model=traced,
        graph=traced.graph,
        structure=structure,
        leaves=tuple(leaves),
        own=tuple(binding.read() for binding in constants),
        own_names=tuple(binding.name for binding in constants),
    )


def _without_gradient(source: torch.Tensor) -> torch.Tensor:
    detached = source.detach()
    if isinstance(source, nn.Parameter):
        return nn.Parameter(detached, requires_grad=False)
    return detached
