"""The two halves of a partition, written anew for another choice of what is saved."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import fx

from . import _liveness, _torch_partition
from ._recompute import Choice, Halves, Joint, dropout_mask, has_place


def rebuilt(joint: Joint, choice: Choice) -> Halves:
    """The two halves for a choice."""
    forward = joint.halves.forward
    places = {value: index for index, value in enumerate(joint.kept)}
    saved = sorted(
        choice.saved,
        key=lambda value: (
            _goes_last(joint.nodes[value]),
            places.get(value, len(places)),
            value,
        ),
    )
    tensors = [value for value in saved if _liveness.is_tensor(joint.nodes[value])]
    sizes = [value for value in saved if not _liveness.is_tensor(joint.nodes[value])]
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for node in joint.nodes[: joint.count]:
        made[node.name] = graph.node_copy(node, lambda one: made[one.name])
    output = next(iter(reversed(forward.graph.nodes)))
    results = [made[one.name] if isinstance(one, fx.Node) else one for one in joint.returned]
    kept = [made[joint.nodes[value].name] for value in (*tensors, *sizes)]
    meta = _torch_partition.output_meta(
        output,
        len(results),
        [joint.nodes[value] for value in tensors],
        [joint.nodes[value] for value in sizes],
    )
    graph.output((*results, *kept)).meta.update(meta)
    # what was made for the backward alone, and is not saved any more
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output") or has_place(node))
    return Halves(
        forward=_torch_partition.graph_module((forward,), graph),
        backward=_backward(joint, choice, (*sizes, *tensors)),
        results=joint.halves.results,
        written=joint.halves.written,
    )


def _backward(joint: Joint, choice: Choice, saved: Collection[int]) -> fx.GraphModule:
    backward = joint.halves.backward
    graph = fx.Graph()
    inputs = {node.name: node for node in _liveness.inputs(backward.graph)}
    taken: dict[int, fx.Node] = {}
    for value in saved:
        name = joint.nodes[value].name
        taken[value] = graph.placeholder(name)
        taken[value].meta.update(inputs.get(name, joint.nodes[value]).meta)
    for value in joint.tangents:
        taken[value] = graph.node_copy(joint.nodes[value])
    steps: list[fx.Node] = []
    for value, sources in joint.backward(choice):
        if value in taken:
            steps.append(taken[value])
            continue
        node = joint.own.get(value, joint.nodes[value])
        read = {
            joint.nodes[one].name: steps[step]
            for one, step in zip(joint.sources[value], sources, strict=True)
        }
        steps.append(_copied(graph, node, read))
    for node in graph.nodes:
        if node.op in ("call_function", "get_attr"):
            node.meta["autograd_backward"] = True
    graph.eliminate_dead_code()
    return _torch_partition.graph_module((backward, joint.halves.forward), graph)


def _copied(graph: fx.Graph, node: fx.Node, made: Mapping[str, fx.Node]) -> fx.Node:
    pair = dropout_mask(node)
    if pair is None:
        return graph.node_copy(node, lambda one: made[one.name])
    mask, source = (made[one.name] for one in pair)
    probability = node.args[0].args[1]  # type: ignore[union-attr]
    scale = 0.0 if probability == 1 else 1.0 / (1.0 - probability)  # type: ignore[operator]
    chosen = graph.call_function(torch.ops.aten.mul.Tensor, (source, mask))
    scaled = graph.call_function(torch.ops.aten.mul.Tensor, (chosen, scale))
    for one in (chosen, scaled):
        one.meta.update(node.meta)
    return scaled


def _goes_last(node: fx.Node) -> bool:
    """Whether torch wants a saved tensor behind the others."""
    return bool(node.meta.get("saved_tensor_with_no_vc_check", False))
