"""Compilers with one fault each, and predicates, that a fresh process can import by name."""

import os
import signal

import torch
from torch import fx

aten = torch.ops.aten


def calls(gm, target):
    """The nodes that call ``target``."""
    return [node for node in gm.graph.nodes if node.target is target]


def adds_to_gelu(gm, inputs):
    """Makes each gelu too large, unless FIXED is set."""
    if "FIXED" in os.environ:
        return gm
    for node in calls(gm, aten.gelu.default):
        with gm.graph.inserting_after(node):
            more = gm.graph.call_function(aten.add.Tensor, (node, 0.01))
        node.replace_all_uses_with(more, lambda user, more=more: user is not more)
    gm.recompile()
    return gm


def adds_to_gelu_and_draws_otherwise(gm, inputs):
    """As before; besides, its random numbers are not the graph's, which is no fault."""
    compiled = adds_to_gelu(gm, inputs)

    def run(*args):
        torch.manual_seed(123)
        return compiled(*args)

    return run


def refuses_gelu_backward(gm, inputs):
    """Raises at the backward of gelu, and something else at layer norm alone."""
    if found := calls(gm, aten.gelu_backward.default):
        raise NotImplementedError(f"cannot lower node {found[0].name!r}")
    return gm


def needs_both(gm, inputs):
    """Raises at a gelu; at one without a matrix product it raises something else."""
    if calls(gm, aten.gelu.default):
        wanted = calls(gm, aten.addmm.default)
        raise RuntimeError("gelu of a product" if wanted else "something else")
    return gm


def dies_at_gelu(gm, inputs):
    """Takes the process down, unless it is the one in ALIVE."""
    if calls(gm, aten.gelu.default) and os.environ.get("ALIVE") != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    return gm


def leaves_at_gelu(gm, inputs):
    """Ends the process without a signal."""
    if calls(gm, aten.gelu.default):
        os._exit(0)
    return gm


def forgets_writes(gm, inputs):
    """Writes into copies of its inputs."""
    return lambda *args: gm(*[arg.clone() for arg in args])


def wants_no_stride(gm, inputs):
    """Raises where an input does not lie as it would when fresh, with its place in memory."""
    for one in inputs:
        if isinstance(one, torch.Tensor) and not one.is_contiguous() and one.storage_offset():
            raise ValueError(f"strides {one.stride()} at {one.storage_offset()}")
    return gm


def wants_no_numbers(gm, inputs):
    """Raises where an input is a number."""
    if any(isinstance(one, int) for one in inputs):
        raise ValueError("an input is a number")
    return gm


def wants_no_sharing(gm, inputs):
    """Raises where two inputs share memory."""
    places = [one.untyped_storage().data_ptr() for one in inputs]
    if len(set(places)) < len(places):
        raise ValueError("inputs share memory")
    return gm


def wants_no_graphs_in_graphs(gm, inputs):
    """Raises at the call of a graph that has a sine in it."""
    for node in gm.graph.nodes:
        child = getattr(gm, str(node.target), None) if node.op == "get_attr" else None
        if isinstance(child, fx.GraphModule) and calls(child, aten.sin.default):
            raise ValueError("a graph in a graph")
    return gm


def wants_no_large_constant(gm, inputs):
    """Raises where the graph holds a tensor with a seven in it."""
    for node in gm.graph.nodes:
        if node.op == "get_attr" and 7.0 in getattr(gm, node.target).tolist():
            raise ValueError("a seven")
    return gm


def has_gelu(gm, inputs):
    """Whether the graph has one."""
    return bool(calls(gm, aten.gelu.default))


def softmax_into_product(gm, inputs):
    """Whether a softmax reaches a matrix product through two more nodes."""

    def reached(node, depth):
        return any(
            (depth == 2 and one.target is aten._softmax.default)
            or (depth < 2 and reached(one, depth + 1))
            for one in node.all_input_nodes
        )

    return any(reached(node, 0) for node in calls(gm, aten.bmm.default))
