"""Writing one graph to a folder of its own; every file appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import tempfile
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from lazyfx_compilers import _torch_aot

from ._inputs import DATA, INPUTS, safetensors_missing
from ._schema import FORMAT, describe_inputs, dumps

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import fx


def claim_folder(parent: Path, stem: str) -> Path:
    """Make a folder that did not exist: ``stem``, or the first free of ``stem_2`` and so on."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        number += 1
        folder = parent / (stem if number == 1 else f"{stem}_{number}")
        try:
            folder.mkdir()  # atomic: two processes never get the same one
        except FileExistsError:
            if not folder.is_dir():
                raise
            continue
        return folder


def claim_number(parent: Path) -> Path:
    """Make the folder ``000``, ``001``, … that comes after all that are there."""
    parent.mkdir(parents=True, exist_ok=True)
    taken = [int(entry.name) for entry in parent.iterdir() if entry.name.isdigit()]
    number = max(taken, default=-1) + 1
    while True:
        folder = parent / f"{number:03d}"
        try:
            folder.mkdir()
        except FileExistsError:
            number += 1
            continue
        return folder


def safe_name(name: str) -> str:
    """``name`` as a single path component on any system; never empty, never ``..``."""
    cleaned = re.sub(r"[^A-Za-z0-9_\-]+", "_", name).strip("_")
    return cleaned[:100] or "graph"


def write_graph(folder: Path, gm: fx.GraphModule, inputs: Sequence[Any]) -> None:
    """Write code, structure and input descriptions of ``gm``; reads only.

    Raises:
        OSError: A file cannot be written; those before it stay.
    """
    placeholders = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    write_text(folder / "graph.py", gm.print_readable(print_output=False) + "\n")
    write_text(folder / "graph.json", json.dumps(_structure(gm), indent=1) + "\n")
    write_text(folder / INPUTS, dumps(describe_inputs(placeholders, inputs)))


def write_data(folder: Path, inputs: Sequence[Any]) -> None:
    """Write the values of the tensors among ``inputs``, keyed by position.

    Raises:
        MissingDependencyError: safetensors is not installed.
        OSError: The file cannot be written.
    """
    try:
        from safetensors.torch import save
    except ImportError:
        raise safetensors_missing() from None
    leaves, _ = _torch_aot.tree_flatten(list(inputs))
    values = {
        str(i): leaf.detach().to("cpu").contiguous().clone()
        for i, leaf in enumerate(leaves)
        if isinstance(leaf, torch.Tensor) and not _torch_aot.is_fake(leaf)
    }
    write_bytes(folder / DATA, save(values))


def write_index(root: Path) -> None:
    """Rewrite ``root/index.json`` from what is there; safe to do from several processes."""
    graphs = []
    for file in sorted(root.glob("*/*/graph.json")):
        try:
            document = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue  # another process is writing it and will index it
        graphs.append(
            {
                "compilation": file.parent.parent.name,
                "phase": file.parent.name,
                "folder": file.parent.relative_to(root).as_posix(),
                "nodes": len(document["nodes"]),
                "ops": document["ops"],
            }
        )
    index = {"format": FORMAT, "kind": "lazyfx.index", "graphs": graphs}
    write_text(root / "index.json", json.dumps(index, indent=1) + "\n")


def _structure(gm: fx.GraphModule) -> dict[str, Any]:
    nodes = [
        {
            "name": node.name,
            "op": node.op,
            "target": node._pretty_print_target(node.target),
            "args": [str(argument) for argument in node.args],
            "kwargs": {key: str(value) for key, value in node.kwargs.items()},
            "inputs": [source.name for source in node.all_input_nodes],
            "from": (node.meta.get("stack_trace") or "").strip().splitlines()[-2:],
        }
        for node in gm.graph.nodes
    ]
    ops = Counter(n["target"] for n in nodes if n["op"].startswith("call_"))
    return {
        "format": FORMAT,
        "kind": "lazyfx.graph",
        "torch": torch.__version__,
        "ops": dict(ops.most_common()),
        "nodes": nodes,
    }


def write_text(file: Path, text: str) -> None:
    """Write a file atomically."""
    write_bytes(file, text.encode("utf-8"))


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file atomically: a crash leaves the old file or the new one."""
    descriptor, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except BaseException:
        os.unlink(temporary)
        raise
