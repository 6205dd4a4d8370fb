"""The ``torch.compile`` backends of this package, as the entry points name them.

Each is a plain function ``fn(gm, example_inputs, *, mode=None, options=None)``. Options and modes
nobody knows are refused by name: a typo must not silently compile something else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import UnknownOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import fx

    Compiled = Callable[..., Any]


def lazyfx_nop(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Run the graph as it is. No options."""
    from ._nop import nop

    known_options("lazyfx_nop", mode, options, ())
    return nop(gm, example_inputs)


def lazyfx_print(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Print the graph and run it as it is. Options: ``stream``, ``label``."""
    from .printing import print_compile

    taken = known_options("lazyfx_print", mode, options, ("label", "stream"))
    return print_compile(**taken)(gm, example_inputs)


def lazyfx_ts(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Compile forward and backward with TorchScript. No options."""
    from .torchscript import ts_compile

    known_options("lazyfx_ts", mode, options, ())
    return ts_compile(gm, example_inputs)


def lazyfx_fusion(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """What ``memory_efficient_fusion`` does, under Dynamo.

    Options: ``codegen``, ``budget``, ``fallback``.
    """
    from . import _torch_aot
    from ._types import require_graph
    from .fusion import make_recipe

    taken = known_options("lazyfx_fusion", mode, options, ("budget", "codegen", "fallback"))
    recipe = make_recipe(
        taken.get("codegen", "inductor"),
        budget=taken.get("budget"),
        fallback=taken.get("fallback"),
        dynamic=None,
        overrides={},
    )
    return _torch_aot.compile_dynamo_graph(
        require_graph(gm, "lazyfx_fusion"),
        example_inputs,
        fw_compiler=recipe.fw_compiler,
        bw_compiler=recipe.bw_compiler,
        inference_compiler=recipe.inference_compiler,
        partition_fn=recipe.partition_fn,
        decompositions=recipe.decompositions,
    )


def lazyfx_debug(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Check every node's result against what tracing recorded.

    Options: ``checks``, ``action``, ``ignore``.
    """
    from .debug import debug_nop

    taken = known_options("lazyfx_debug", mode, options, ("action", "checks", "ignore"))
    return debug_nop(**taken)(gm, example_inputs)


def lazyfx_dump(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """Write joint, forward and backward graphs to a folder and run them as they are.

    Options: ``name``, ``folder`` (default: a fresh temporary folder, logged), ``example_inputs``
    (``"spec"``, ``"data"`` or ``"none"``).
    """
    from .dump import dump_backend

    taken = known_options("lazyfx_dump", mode, options, ("example_inputs", "folder", "name"))
    return dump_backend(gm, example_inputs, **taken)


def known_options(
    backend: str, mode: str | None, options: Mapping[str, Any] | None, known: Sequence[str]
) -> dict[str, Any]:
    """``options`` as a dictionary, if every one of them is known.

    Raises:
        UnknownOptionError: A mode was given, or an option that is not in ``known``.
    """
    if mode not in (None, "default"):
        raise UnknownOptionError(
            f"backend {backend!r} has no modes, got mode={mode!r}; leave it out"
        )
    for name in options or {}:
        if name not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise UnknownOptionError(
                f"backend {backend!r} got the unknown option {name!r}; {takes}"
            )
    return dict(options or {})
