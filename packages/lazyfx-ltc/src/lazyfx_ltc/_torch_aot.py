"""The seam to AOTAutograd, as ``torch.compile`` backends use it. Imported at the first compile.

==============================================  ====================================================
private name                                    used for
==============================================  ====================================================
``torch._dynamo.backends.common.aot_autograd``  compiling the forward and the backward of a Dynamo
                                                graph
``torch._dynamo.convert_frame.compile_lock``    compiling one thing at a time
``functorch.compile.make_boxed_func``           handing over inputs in a list that is emptied
``function._boxed_call``                        the same
==============================================  ====================================================
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from lazyfx_core.errors import SeamError


def compile_with_autograd(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    compiler: Callable[[fx.GraphModule, Sequence[Any]], Callable[..., Any]],
) -> Callable[..., Any]:
    """A graph of Dynamo as forward and backward graphs of operators, each given to ``compiler``."""
    try:
        common = importlib.import_module("torch._dynamo.backends.common")
        aot_autograd = common.aot_autograd
        boxed = importlib.import_module("functorch.compile").make_boxed_func
        # AOTAutograd patches the process while it traces, and compiles a backward graph when, and
        # where, it first runs: not while another thread compiles.
        lock = importlib.import_module("torch._dynamo.convert_frame").compile_lock
    except (ImportError, AttributeError) as error:
        raise SeamError(
            f"torch {torch.__version__} has no torch._dynamo.backends.common.aot_autograd, which"
            " the backend relies on"
        ) from error

    def compiled(graph: fx.GraphModule, examples: Sequence[Any]) -> Callable[..., Any]:
        with lock:
            made = compiler(graph, examples)
        return made if getattr(made, "_boxed_call", False) else boxed(made)

    whole: Callable[..., Any] = aot_autograd(
        fw_compiler=compiled, bw_compiler=compiled, inference_compiler=compiled
    )(gm, example_inputs)
    return whole
