"""Eager torch is the oracle: ``agrees`` runs both on equal data and compares all that shows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import fx
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import lazyfx_ltc as ltc


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """A process has one lazy session: with ``--device cuda``, skip what is not about that one."""
    if config.getoption("--device") == "cpu":
        return
    for item in items:
        concerned = {"device", "alone"}.intersection(getattr(item, "fixturenames", ()))
        if Path(__file__).parent in item.path.parents and not concerned:
            item.add_marker(pytest.mark.skip(reason="for a lazy session on the CPU"))


@pytest.fixture(scope="session", autouse=True)
def _lazy_session_there(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--device") != "cpu":
        ltc.initialize(request.config.getoption("--device"))


def _like(example: torch.Tensor, seed: int) -> torch.Tensor:
    """New values in the memory layout of the example."""
    generator = torch.Generator().manual_seed(seed)
    if example.dtype == torch.bool:
        values = torch.rand(example.shape, generator=generator) > 0.5
    elif example.dtype.is_floating_point or example.dtype.is_complex:
        values = torch.randn(example.shape, generator=generator).to(example.dtype)
    else:
        values = torch.randint(0, 3, example.shape, generator=generator).to(example.dtype)
    placed = torch.empty_strided(
        example.shape, example.stride(), dtype=example.dtype, device=example.device
    )
    return placed.copy_(values)


def _random_state(device: torch.device) -> torch.Tensor:
    """The state of the generator that a model on the device draws from."""
    if device.type == "cpu":
        return torch.get_rng_state()
    return torch.get_device_module(device).get_rng_state(device)


def _close(like: torch.Tensor) -> dict[str, float]:
    """How close results have to be: cuDNN has kernels that eager chooses and a program does not."""
    single = like.dtype in (torch.float32, torch.complex64)
    return {"rtol": 1e-4, "atol": 1e-4} if like.is_cuda and single else {}


def _traced(model: Any) -> fx.GraphModule:
    try:
        return fx.symbolic_trace(model)
    except TypeError as error:
        skip_what_fx_cannot_trace(str(error))
        raise


@cache
def _fx_traces_sizes_and_devices() -> bool:
    try:
        fx.symbolic_trace(lambda a: torch.ones(a.shape[0], device=a.device))
    except TypeError:
        return False
    return True


def skip_what_fx_cannot_trace(why: str) -> None:
    """Skip if tracing failed by what torch.fx learnt after 2.6: proxies in ``torch.ones`` etc."""
    refused = r"(must be|invalid combination of arguments).*\b(Proxy|Attribute)\b"
    if re.search(refused, why, re.DOTALL) and not _fx_traces_sizes_and_devices():
        pytest.skip(
            "torch.fx of 2.6 cannot trace torch.ones and others of a tensor's size or device"
        )


@pytest.fixture(scope="session")
def traced() -> Callable[[Any], fx.GraphModule]:
    """``fx.symbolic_trace``; skips what this torch cannot trace."""
    return _traced


@pytest.fixture(scope="session")
def skip_untraceable() -> Callable[[str], None]:
    """Skips a test of which the text of an error says that this torch cannot trace the model."""
    return skip_what_fx_cannot_trace


@pytest.fixture(scope="session")
def below_autograd_is_whole() -> bool:
    """Whether composite operators of lazy tensors arrive whole below autograd, or taken apart."""
    ltc.initialize()
    lazy = torch.ones(2, 4).to("lazy")
    with pytest.raises(_Arrived) as arrived, _Stop(), torch._C._AutoDispatchBelowAutograd():
        torch.nn.functional.group_norm(lazy, 2)
    return str(arrived.value) == "aten.group_norm.default"


class _Arrived(Exception):
    """Names the operator that was met first."""


class _Stop(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise _Arrived(str(func))


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _sharing(tensors: list[torch.Tensor]) -> list[int]:
    """For each tensor the first one that it shares memory with."""
    first: dict[int, int] = {}
    return [
        first.setdefault(_address(tensor), index) if tensor.numel() else index
        for index, tensor in enumerate(tensors)
    ]


def _same_objects(values: list[Any]) -> list[int]:
    first: dict[int, int] = {}
    return [first.setdefault(id(value), index) for index, value in enumerate(values)]


def compare(got: Any, want: Any, got_args: list[Any], want_args: list[Any]) -> None:
    got_leaves, got_structure = pytree.tree_flatten(got)
    want_leaves, want_structure = pytree.tree_flatten(want)
    assert got_structure == want_structure
    for ours, theirs in zip([*got_leaves, *got_args], [*want_leaves, *want_args], strict=True):
        assert type(ours) is type(theirs)
        if isinstance(theirs, torch.Tensor):
            assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
            assert ours.stride() == theirs.stride()
            torch.testing.assert_close(ours, theirs, equal_nan=True, **_close(theirs))
        else:
            assert ours == theirs
    both = [
        [x for x in (*leaves, *args) if isinstance(x, torch.Tensor)]
        for leaves, args in ((got_leaves, got_args), (want_leaves, want_args))
    ]
    assert _same_objects(both[0]) == _same_objects(both[1])
    assert _sharing(both[0]) == _sharing(both[1])


@pytest.fixture
def agrees(device: torch.device) -> Callable[..., ltc.CompiledGraph]:
    """Extract, then call three times with new values, against eager; returns the extracted.

    Model and examples are moved to the device first.
    """

    def check(model: Any, *given: torch.Tensor) -> ltc.CompiledGraph:
        gm = model if isinstance(model, fx.GraphModule) else _traced(model)
        gm.to(device)
        examples = [one.to(device) for one in given]
        untouched = [example.clone() for example in examples]
        torch.manual_seed(0)
        before = _random_state(device)
        compiled = ltc.extract_compiled_graph(gm, examples)
        assert torch.equal(before, _random_state(device))
        for example, copy in zip(examples, untouched, strict=True):
            assert torch.equal(example, copy)
        for seed in range(3):
            ours = [_like(example, seed + 7 * i) for i, example in enumerate(examples)]
            theirs = [_like(example, seed + 7 * i) for i, example in enumerate(examples)]
            with torch.no_grad():
                torch.manual_seed(seed)
                want = gm(*theirs)
                eager_state = _random_state(device)
                torch.manual_seed(seed)
                got = compiled(*ours)
            assert torch.equal(_random_state(device), eager_state)
            compare(got, want, ours, theirs)
        return compiled

    return check


@pytest.fixture(scope="session")
def strange() -> Iterator[Any]:
    """Operators that no program can call: they return a number, or take text it cannot write."""
    library = torch.library.Library("lazyfx_ltc_tests", "DEF")
    library.define("scaled(Tensor x) -> (Tensor, float)")
    library.impl("scaled", lambda x: (x * 2, 2.0), "CompositeExplicitAutograd")
    library.define("named(Tensor x, str name) -> Tensor")
    library.impl("named", lambda x, name: x + len(name), "CompositeExplicitAutograd")
    library.define("drawn(Tensor x) -> (Tensor, float)", tags=(torch.Tag.nondeterministic_seeded,))
    library.impl("drawn", lambda x: (torch.rand_like(x), 1.0), "CompositeExplicitAutograd")
    yield torch.ops.lazyfx_ltc_tests
    library._destroy()


@pytest.fixture
def alone() -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run python code in a process of its own, for what may end the process or needs a new one."""

    def run(code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )

    return run


@pytest.fixture
def at_once() -> Callable[..., None]:
    """Run each function on its own thread, started together; raises what one of them raised."""

    def run(*functions: Callable[[], None]) -> None:
        start = Barrier(len(functions))

        def started(function: Callable[[], None]) -> None:
            start.wait()
            function()

        with ThreadPoolExecutor(len(functions)) as pool:
            for future in [pool.submit(started, function) for function in functions]:
                future.result()

    return run
