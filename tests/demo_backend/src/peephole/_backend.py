"""The backend: AOTAutograd makes graphs of operators, passes make them simpler, ``nop`` runs them.

AOTAutograd is asked for by Dynamo's own name for it, the one that torch's guide to custom backends
gives. All that is taken from lazyfx is public.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import fx, nn

from lazyfx_compilers import (
    FxCompiler,
    UnknownOptionError,
    budget_partitioner,
    debug_nop,
    memory_efficient_fusion,
    nop,
    ts_compile,
)

from ._cache import GraphCache
from ._passes import optimize

_OPTIONS = ("cache", "codegen", "debug")
_CODEGENS: dict[str, FxCompiler] = {"nop": nop, "ts": ts_compile}


def peephole(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """Compile a graph of Dynamo, for inference and training.

    Args:
        gm: The graph.
        example_inputs: Its inputs.
        mode: There are none.
        options: ``cache``: a folder, or a :class:`GraphCache`, to keep optimized graphs in.
            ``codegen``: ``"nop"`` (the default) or ``"ts"``. ``debug``: check each node's result
            against what was traced; then ``codegen`` does not matter.

    Raises:
        UnknownOptionError: A mode or an option is not known.
    """
    from torch._dynamo.backends.common import aot_autograd

    if mode not in (None, "default"):
        raise UnknownOptionError(f"backend 'peephole' has no modes, got mode={mode!r}")
    unknown = sorted(set(options or ()) - set(_OPTIONS))
    if unknown:
        raise UnknownOptionError(
            f"backend 'peephole' got the unknown option {unknown[0]!r}; "
            f"it takes {', '.join(_OPTIONS)}"
        )
    backend = aot_autograd(
        fw_compiler=_compiler(**(options or {})), partition_fn=budget_partitioner()
    )
    return backend(gm, example_inputs)


def fuse(function: Callable[..., Any] | nn.Module, **options: Any) -> Any:
    """``function`` with forward and backward compiled, without Dynamo; options as above."""
    return memory_efficient_fusion(function, codegen=_compiler(**options))


def _compiler(
    *,
    cache: GraphCache | str | os.PathLike[str] | None = None,
    codegen: str = "nop",
    debug: bool = False,
) -> FxCompiler:
    if codegen not in _CODEGENS:
        raise UnknownOptionError(
            f"codegen={codegen!r}: expected one of {', '.join(sorted(_CODEGENS))}"
        )
    generate = debug_nop if debug else _CODEGENS[codegen]
    kept = GraphCache(cache) if isinstance(cache, (str, os.PathLike)) else cache

    def compile_graph(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]:
        simpler = optimize(gm) if kept is None else kept.get(gm, example_inputs, optimize)
        return generate(simpler, example_inputs)

    return compile_graph
