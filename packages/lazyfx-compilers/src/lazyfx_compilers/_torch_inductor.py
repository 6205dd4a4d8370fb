"""The seam to inductor: torch's code generator as a compiler for AOTAutograd graphs.

============================================================  ======================================
private name                                                  used for
============================================================  ======================================
``torch._inductor.compile_fx.compile_fx_inner``               compiling one graph
``torch._inductor.compile_fx._recursive_joint_graph_passes``  what the code generator relies on
``torch._inductor.config``                                    eager's random stream, no layout
                                                              changes
``torch._inductor.decomposition``                             operators taken apart while tracing
``torch._guards.detect_fake_mode``                            the mode the passes trace replacements
                                                              in
``torch.utils._pytree``                                       finding that mode among the inputs
============================================================  ======================================
"""

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any, Literal

import torch.utils._pytree as pytree
from torch import fx

from ._torch_aot import attribute
from ._torch_callers import of_values_only
from .errors import CodegenError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from ._torch_aot import Partitioner


@contextlib.contextmanager
def _inductor_settings() -> Iterator[None]:
    config = importlib.import_module("torch._inductor.config")
    # fallback_random: dropout draws what eager draws. layout_optimization: the joint graph was
    # traced with eager's strides, and the backward was compiled against them.
    with config.patch(fallback_random=True, layout_optimization=False):
        yield


def decompositions() -> dict[Any, Callable[..., Any]]:
    """The decompositions that inductor's code generator expects to have been applied."""
    with _inductor_settings():
        return dict(attribute("torch._inductor.decomposition", "select_decomp_table")())


def compiler(phase: Literal["forward", "backward", "inference"]) -> Callable[..., Any]:
    """An AOTAutograd compiler that generates code with inductor.

    It compiles the graph module it is given in place, as AOTAutograd's compilers may.
    """
    inner = attribute("torch._inductor.compile_fx", "compile_fx_inner")

    def compile_with_inductor(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        with _inductor_settings(), _named_failure():
            if phase == "inference":  # no partitioner was there to run the passes
                gm = _run_joint_passes(gm)
            output = next(node for node in reversed(gm.graph.nodes) if node.op == "output")
            # Every result keeps the strides it was traced with: the user's results because eager
            # has them, those saved for the backward because it was traced with them.
            output.meta["user_visible_output_idxs"] = [
                index
                for index, result in enumerate(pytree.tree_leaves(output.args))
                if isinstance(result, fx.Node)
            ]
            compiled = inner(
                gm,
                list(example_inputs),
                is_backward=phase == "backward",
                is_inference=phase == "inference",
            )
        return of_values_only(compiled, phase)

    return compile_with_inductor


def with_joint_passes(partition: Partitioner) -> Partitioner:
    """``partition`` after inductor's passes over the joint graph, which its codegen relies on."""

    def run_passes_and_partition(
        joint: fx.GraphModule, joint_inputs: Sequence[Any], **settings: Any
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        with _inductor_settings(), _graphs_fake_mode(joint):
            with _named_failure():
                prepared = _run_joint_passes(joint)
            return partition(prepared, joint_inputs, **settings)

    return run_passes_and_partition


def _run_joint_passes(gm: fx.GraphModule) -> fx.GraphModule:
    passes = attribute("torch._inductor.compile_fx", "_recursive_joint_graph_passes")
    with _graphs_fake_mode(gm):
        return passes(gm) or gm  # releases before 2.8 change it in place and return nothing


@contextlib.contextmanager
def _named_failure() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise CodegenError(
            f"inductor cannot compile this graph: {type(error).__name__}: {reason}; use "
            "codegen='ts' or another compiler, for example codegen=lazyfx_compilers.nop"
        ) from error


@contextlib.contextmanager
def _graphs_fake_mode(gm: fx.GraphModule) -> Iterator[None]:
    """The fake mode that the graph was traced in: the passes trace replacements with it."""
    values = [node.meta["val"] for node in gm.graph.nodes if "val" in node.meta]
    mode = attribute("torch._guards", "detect_fake_mode")(values)
    with mode if mode is not None else contextlib.nullcontext():
        yield
