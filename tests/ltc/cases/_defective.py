"""Cases that must fail, each in one way: what the runner must see, and how it must say it."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import torch
from _harness import Case, Pair, Refused, agree
from torch import fx, nn

X = torch.arange(12.0).view(3, 4)
CASES: dict[str, Case] = {}
WANTED: dict[str, tuple[str, str]] = {}


def fails(
    name: str, run: Callable[[], Any], outcome: str, why: str, refused: str | None = None
) -> None:
    CASES[name] = Case(run=run, refused=refused)
    WANTED[f"_defective: {name}"] = outcome, why


def unlike(
    name: str, why: str, ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any
) -> None:
    """What is captured does other things than what it is compared with."""
    given = args or (X,)

    def run() -> None:
        pair = Pair(ours, given)
        pair.eager = fx.symbolic_trace(theirs)
        pair.both(given)

    fails(name, run, "wrong", why)


class Counts(nn.Module):
    def __init__(self, step: int) -> None:
        super().__init__()
        self.step = step
        self.register_buffer("count", torch.tensor(0))

    def forward(self, x: Any) -> Any:
        self.count.add_(self.step)
        return x + 1


def miscount() -> None:
    pair = Pair(Counts(1), (X,), how="leaf")
    pair.eager = Pair(Counts(2), (X,), how="leaf").gm
    pair.both((X,))


def refuse() -> None:
    raise Refused("GuardError: not today")


def write_and_refuse() -> None:
    pair = Pair(lambda a: a + 1, (X,))

    def spoils(a: torch.Tensor) -> None:
        a.add_(1)
        pair.strict(a.double())

    pair.compiled = spoils  # type: ignore[assignment]
    pair.both((X,))


fails("a crash", lambda: ctypes.string_at(0), "crashed", "ended by SIGSEGV")
fails("an abort", os.abort, "crashed", "ended by SIGABRT")
fails("an exit", lambda: os._exit(3), "crashed", "exit code 3")
fails("an exit without an error", lambda: os._exit(0), "crashed", "exit code 0, without")
fails("a case that hangs", signal.pause, "hung", "no answer within")
fails("a refusal nobody listed", refuse, "wrong", "it is not listed: GuardError: not today")
fails("a refusal for another reason", refuse, "wrong", "expected 'tomorrow'", "tomorrow")
fails("a refusal that is listed", refuse, "refused", "not today", "not today")
fails("a refusal after a write", write_and_refuse, "wrong", "AssertionError")
fails(
    "no refusal where one is listed",
    lambda: agree(lambda a: a + 1, X),
    "wrong",
    "listed as refused",
    "not today",
)
fails("a state that stays", miscount, "wrong", "not equal")
fails("agreement", lambda: agree(lambda a: a + 1, X), "agrees", "")
unlike("wrong numbers", "not close", lambda a: a + 1, lambda a: a + 2)
unlike("a wrong dtype", "tensor 0: expected", lambda a: a + 1, lambda a: (a + 1).double())
unlike("a wrong shape", "tensor 0: expected", lambda a: a + 1, lambda a: (a + 1)[None])
unlike("wrong strides", "tensor 0: expected", lambda a: a.t() + 1, lambda a: a.t().contiguous() + 1)
unlike("a tuple for a list", "structure", lambda a: (a + 1,), lambda a: [a + 1])
unlike("another number", "structure", lambda a: (a + 1, 0.0), lambda a: (a + 1, -0.0))
unlike("a copy for the input", "identity", lambda a: a.clone(), lambda a: a)
unlike("a copy for a view", "shared memory", lambda a: a[1:].clone(), lambda a: a[1:])
unlike(
    "a copy for the same result", "identity", lambda a: (a + 1, a + 1), lambda a: ((b := a + 1), b)
)
unlike("a write that is lost", "not close", lambda a: (a + 1).sum(), lambda a: a.add_(1).sum())
unlike("a view elsewhere", "after writing", lambda a: a[:2], lambda a: a[1:], torch.ones(3, 4))
unlike("a draw too few", "random state", lambda a: a * 2, lambda a: (torch.rand_like(a), a * 2)[1])
unlike("other draws", "random state", lambda a: torch.rand_like(a), lambda a: torch.randn_like(a))
unlike(
    "a lost requires_grad",
    "tensor 0: expected",
    lambda a: a.detach(),
    lambda a: a,
    X.clone().requires_grad_(),
)
