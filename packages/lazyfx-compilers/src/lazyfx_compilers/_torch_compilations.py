"""The seam that sees every compilation that goes through AOTAutograd, whatever the backend.

================================================================  ==================================
private name                                                      used for
================================================================  ==================================
``torch._functorch.aot_autograd.aot_stage2_compile``              gets the compilers (after torch
                                                                  2.6)
``torch._functorch.aot_autograd.create_aot_dispatcher_function``  gets them, too (before torch 2.9)
``torch._functorch.config.enable_autograd_cache``                 a hit shows no graph
``torch._functorch.config._config``                               whether that setting is the
                                                                  process's
================================================================  ==================================

The function is replaced while at least one :func:`watching` block is open, in any thread; what the
replacement does is decided by a context variable, so that compilations of other threads are let
through untouched.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import functools
import importlib
import inspect
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ._torch_aot import attribute
from .errors import SeamError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MODULE = "torch._functorch.aot_autograd"
_CONFIG = "torch._functorch.config"
_CACHE = "enable_autograd_cache"
_watchers: contextvars.ContextVar[tuple[Watcher, ...]] = contextvars.ContextVar(
    "lazyfx_compilations", default=()
)


class Watcher(NamedTuple):
    """What to put around the functions of a compilation."""

    partition: Callable[[Callable[..., Any]], Callable[..., Any]]
    forward: Callable[[Callable[..., Any]], Callable[..., Any]]
    backward: Callable[[Callable[..., Any]], Callable[..., Any]]


@contextlib.contextmanager
def watching(watcher: Watcher) -> Iterator[None]:
    """Have what is compiled in this thread or task go through ``watcher``.

    Raises:
        SeamError: This torch compiles in another way.
    """
    with _patch, _cache_is_off():
        token = _watchers.set((*_watchers.get(), watcher))
        try:
            yield
        finally:
            _watchers.reset(token)


def _cache_is_off() -> contextlib.AbstractContextManager[Any]:
    config = importlib.import_module(_CONFIG)
    entry = getattr(config, "_config", {}).get(_CACHE)
    if isinstance(getattr(entry, "user_override", None), contextvars.ContextVar):
        patch = attribute(_CONFIG, "patch")
        return patch(**{_CACHE: False})  # type: ignore[no-any-return]
    return _global_setting


class _GlobalSetting:
    """The cache off for the whole process, as long as anybody needs it.

    In older torch settings are of the process, and blocks of two threads that each put back
    what they found would leave it off.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._before = True

    def __enter__(self) -> None:
        config: Any = importlib.import_module(_CONFIG)
        with self._lock:
            if self._users == 0:
                self._before = getattr(config, _CACHE)
                setattr(config, _CACHE, False)
            self._users += 1

    def __exit__(self, *_exception: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                setattr(importlib.import_module(_CONFIG), _CACHE, self._before)


_global_setting = _GlobalSetting()


class _Patch:
    """The replacement of torch's function, while anybody needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._name = ""
        self._original: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._install()
            self._users += 1

    def __exit__(self, *_exception: object) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                setattr(importlib.import_module(_MODULE), self._name, self._original)
                self._original = None

    def _install(self) -> None:
        module = importlib.import_module(_MODULE)
        for name, wrap, needed in (
            ("aot_stage2_compile", _around_stage2, {"partition_fn", "fw_compiler"}),
            ("aot_stage2_compile", _around_state, {"aot_state"}),  # up to torch 2.9
            ("create_aot_dispatcher_function", _around_dispatcher, {"aot_config"}),
        ):
            original = getattr(module, name, None)
            if original is not None and needed <= set(inspect.signature(original).parameters):
                self._name, self._original = name, original
                setattr(module, name, wrap(original))
                return
        raise SeamError(
            f"torch {torch.__version__} has neither {_MODULE}.aot_stage2_compile nor "
            "create_aot_dispatcher_function as lazyfx-compilers knows them; use a release of "
            "lazyfx-compilers that knows this torch, or give graph_dumper_aot's dumper as the "
            "backend"
        )


_patch = _Patch()


def _around_stage2(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def aot_stage2_compile(*args: Any, **kwargs: Any) -> Any:
        watchers = _watchers.get()
        if not watchers:
            return original(*args, **kwargs)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        _wrap(bound.arguments, watchers)
        return original(*bound.args, **bound.kwargs)

    return aot_stage2_compile


def _around_state(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def aot_stage2_compile(*args: Any, **kwargs: Any) -> Any:
        watchers = _watchers.get()
        state = signature.bind(*args, **kwargs).arguments["aot_state"]
        config = state.aot_config
        if not watchers or config.is_export:
            return original(*args, **kwargs)
        state.aot_config = _wrapped(config, watchers)
        try:
            return original(*args, **kwargs)
        finally:
            state.aot_config = config

    return aot_stage2_compile


def _around_dispatcher(original: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def create_aot_dispatcher_function(*args: Any, **kwargs: Any) -> Any:
        watchers = _watchers.get()
        bound = signature.bind(*args, **kwargs)
        config = bound.arguments["aot_config"]
        if not watchers or config.is_export:
            return original(*args, **kwargs)
        bound.arguments["aot_config"] = _wrapped(config, watchers)
        return original(*bound.args, **bound.kwargs)

    return create_aot_dispatcher_function


_COMPILERS = ("partition_fn", "fw_compiler", "bw_compiler", "inference_compiler")


def _wrapped(config: Any, watchers: tuple[Watcher, ...]) -> Any:
    """A copy of AOTAutograd's configuration whose functions go through ``watchers``."""
    functions = {name: getattr(config, name) for name in _COMPILERS}
    _wrap(functions, watchers)
    return dataclasses.replace(config, **functions)


def _wrap(functions: dict[str, Any], watchers: tuple[Watcher, ...]) -> None:
    """Put ``watchers`` around the functions of one compilation, which are looked up by name."""
    forward = functions["fw_compiler"]
    backward = functions.get("bw_compiler") or forward
    inference = functions.get("inference_compiler") or forward
    partition = functions["partition_fn"]
    for watcher in watchers:
        partition = watcher.partition(partition)
        forward, inference = watcher.forward(forward), watcher.forward(inference)
        backward = watcher.backward(backward)
    functions.update(
        partition_fn=partition,
        fw_compiler=forward,
        bw_compiler=backward,
        inference_compiler=inference,
    )
