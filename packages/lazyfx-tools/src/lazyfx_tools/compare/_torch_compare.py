"""The seam of the comparison: what torch keeps to itself about compiling and about operators.

==================================================  ================================================
private name                                        used for
==================================================  ================================================
``torch._guards``                                   compiling part of a graph as the whole was: the
                                                    tracing context
``torch._subclasses.fake_tensor.FakeTensorMode``    the same
``torch.utils._python_dispatch``                    the same: the stack of modes
``torch._dynamo.config``                            no graph may be left out of a comparison: the
                                                    limit of recompiles
``torch._functorch.config``                         inputs are looked at afterwards: donated buffers
``torch._inductor.config``                          its cache mixes up backwards that do and do not
                                                    donate
``torch._dynamo.backends.registry.lookup_backend``  compilers by name
``torch._dynamo.backends.common.aot_autograd``      graphs that write to their inputs
``torch._ops.OpOverload``, ``OpOverload._schema``   which arguments an operator writes, which
                                                    results it leaves unwritten
==================================================  ================================================
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import operator
import types
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch._ops import OpOverload

from lazyfx_compilers import _torch_randomness
from lazyfx_compilers._torch_aot import attribute, operator_packet
from lazyfx_compilers.errors import UnknownOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import fx

_GRAPHS = 256
_UNINITIALIZED = (
    *("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"),
    *("empty_permuted",),
)
_NEVER_WRITTEN = frozenset({"unused", "debug_attn_mask"})
_WRITTEN_BY_DROPOUT = frozenset({"philox_seed", "philox_offset", "rng_state"})


# --- compiling -------------------------------------------------------------------------------


def surroundings(*, bare: bool) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """What AOTAutograd has set up around a compiler that it calls now, to be entered again.

    Args:
        bare: Nothing of it instead.
    """
    if bare:
        return contextlib.nullcontext
    guards = importlib.import_module("torch._guards")
    context = attribute("torch._guards", "TracingContext").try_get()
    stack = attribute("torch.utils._python_dispatch", "_get_current_dispatch_mode_stack")()
    kind = attribute("torch._subclasses.fake_tensor", "FakeTensorMode")
    fake = next((mode for mode in stack if isinstance(mode, kind)), None)

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        with contextlib.ExitStack() as entered:
            if context is not None:
                entered.enter_context(guards.tracing(context))
            if fake is not None:
                entered.enter_context(fake)
            yield

    return again


@contextlib.contextmanager
def settings(*, inductor: bool) -> Iterator[None]:
    """Torch's settings for a comparison.

    Dynamo does not give up on a function that the user has compiled often before. A backward does
    not write over what the forward has saved: its inputs are looked at afterwards. Inductor's cache
    of graphs is left alone: its key does not tell the two kinds of backward apart.
    """
    dynamo = importlib.import_module("torch._dynamo.config")
    aot = importlib.import_module("torch._functorch.config")
    names = ("recompile_limit", "cache_size_limit")  # the older name is an alias where both are
    name = next((one for one in names if hasattr(dynamo, one)), None)
    with contextlib.ExitStack() as entered:
        if name is not None:
            entered.enter_context(dynamo.patch({name: max(_GRAPHS, getattr(dynamo, name))}))
        if hasattr(aot, "donated_buffer"):
            entered.enter_context(aot.patch(donated_buffer=False))
        if inductor:
            cached = importlib.import_module("torch._inductor.config")
            entered.enter_context(cached.patch(fx_graph_cache=False, fx_graph_remote_cache=False))
        entered.enter_context(warnings.catch_warnings())
        # Dynamo looks at the .grad of what one graph hands to the next
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a")
        yield


def compile_dynamo_graph(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    compilers: Mapping[str, Callable[..., Any]],
    partition: Callable[..., Any],
    decompositions: Mapping[Any, Callable[..., Any]],
) -> Callable[..., Any]:
    """Compile Dynamo's graph through AOTAutograd, writes to inputs left in the graphs."""
    aot_autograd = attribute("torch._dynamo.backends.common", "aot_autograd")
    return aot_autograd(  # type: ignore[no-any-return]
        fw_compiler=compilers["forward"],
        bw_compiler=compilers["backward"],
        inference_compiler=compilers["inference"],
        partition_fn=partition,
        decompositions=dict(decompositions),
        keep_inference_input_mutations=True,
    )(gm, example_inputs)


def never_compiled_before(function: Callable[..., Any]) -> Callable[..., Any]:
    """What does as ``function`` does, and Dynamo has no cache for: that belongs to a code object.

    A function is copied and not called by another one: what Dynamo traces into has to be in a
    module that can be imported, and not every function is.
    """
    if not isinstance(function, types.FunctionType):
        called = function

        def function(*args: Any, **kwargs: Any) -> Any:
            return called(*args, **kwargs)

    copied = types.FunctionType(
        function.__code__.replace(),
        function.__globals__,
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    copied.__dict__.update(function.__dict__)
    return copied


def registered_backend(name: str) -> Callable[..., Any]:
    """A backend of ``torch.compile`` by its name.

    Raises:
        UnknownOptionError: There is none of that name.
    """
    try:
        return attribute("torch._dynamo.backends.registry", "lookup_backend")(name)  # type: ignore[no-any-return]
    except Exception as error:
        if type(error).__name__ != "InvalidBackend":
            raise
        raise UnknownOptionError(
            f"compiler={name!r}: expected 'inductor', the name of a torch.compile backend "
            "(torch.compiler.list_backends() lists them), or a compiler "
            "(gm, example_inputs) -> callable"
        ) from error


# --- operators -------------------------------------------------------------------------------


def written_arguments(node: fx.Node) -> list[fx.Node]:
    """The values that a node writes to, as its operator's schema says."""
    target = node.target
    if not isinstance(target, OpOverload):
        return []
    found: list[Any] = []
    for place, argument in enumerate(target._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            given: Any = node.kwargs.get(argument.name)
            if place < len(node.args):
                given = node.args[place]
            found += given if isinstance(given, (list, tuple)) else [given]
    return [one for one in found if hasattr(one, "op")]


@functools.cache
def _uninitialized() -> frozenset[Any]:
    names = (name for name in _UNINITIALIZED if hasattr(torch.ops.aten, name))
    return frozenset(getattr(torch.ops.aten, name) for name in names)


def is_uninitialized(node: fx.Node) -> bool:
    """Whether a node gives memory that nobody has written yet, so that any value is right."""
    if node.target is operator.getitem:
        source: Any = node.args[0]
        return hasattr(source, "op") and node.args[1] in unwritten_results(source)
    return operator_packet(node.target) in _uninitialized()


def unwritten_results(node: fx.Node) -> frozenset[int]:
    """The places of the results that an operator allocates and does not write.

    Those are in CUDA's attention the state of the generator where no dropout draws from it, and a
    mask for debugging (``flash_api.cpp``, ``attention_backward.cu``).
    """
    schema = node.target._schema if isinstance(node.target, OpOverload) else None
    if schema is None or not any(one.name == "dropout_p" for one in schema.arguments):
        return frozenset()
    names = (
        _NEVER_WRITTEN if _torch_randomness.draws(node) else _NEVER_WRITTEN | _WRITTEN_BY_DROPOUT
    )
    return frozenset(place for place, one in enumerate(schema.returns) if one.name in names)
