"""What a repro needs: the text of this file, from the first import on, is part of ``repro.py``.

So it needs torch alone, and whatever it says holds in the process that searches for a fault and in
the one that shows it. Nothing happens at import. Of torch's private names it uses
``torch._neg_view``, ``UntypedStorage._cdata`` and ``torch.fx.passes.fake_tensor_prop``.

====================================  ===================================================
private name                          used for
====================================  ===================================================
``torch._neg_view``                   restoring the negative bit of an input
``UntypedStorage._cdata``             which tensors share storage
``torch.fx.passes.fake_tensor_prop``  metadata of a graph that was built by hand
``function._boxed_call``              whether a compiled graph takes its inputs in a list
====================================  ===================================================
"""

from __future__ import annotations

import argparse
import copy
import importlib
import json
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

GONE, THERE, CANNOT_TELL = 0, 1, 125  # exit statuses, as `git bisect run` takes them
OVERRIDE: list[str] = []  # the device that --device asks for


class CannotTell(Exception):
    """The graph itself does not run here, or the compiler is missing."""


# --- values -----------------------------------------------------------------------------------


def device(name: str) -> torch.device:
    """The device of this name, or the one that was asked for."""
    return torch.device(OVERRIDE[-1] if OVERRIDE else name)


def read_safetensors(file: Path) -> dict[str, torch.Tensor]:
    """The bytes under each name: a length, a header in JSON, then the bytes."""
    content = bytearray(file.read_bytes())
    begin = 8 + int.from_bytes(content[:8], "little")
    found = {}
    for name, entry in json.loads(content[8:begin]).items():
        if name != "__metadata__":
            start, stop = entry["data_offsets"]
            row = torch.empty(0, dtype=torch.uint8)
            if stop > start:
                row = torch.frombuffer(
                    content, dtype=torch.uint8, count=stop - start, offset=begin + start
                )
            found[name] = row
    return found


def make_values(folder: Path, name: str) -> list[Any]:
    """What ``name.json`` describes: with the bytes of ``name.safetensors``, or with random ones.

    Sizes, strides, offsets, dtypes and the sharing of storage are as described. Random floats lie
    in [0, 1), random integers within the range that was seen, or are 0 and 1.
    """
    specs = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["inputs"]
    data = folder / f"{name}.safetensors"
    recorded = read_safetensors(data) if data.is_file() else None
    generator = torch.Generator().manual_seed(0)
    spans: dict[int, tuple[int, int]] = {}
    for spec in specs:
        if spec["kind"] == "tensor":
            start, stop = span(spec)
            least, most = spans.get(spec["storage"], (start, stop))
            spans[spec["storage"]] = min(least, start), max(most, stop)
    storages: dict[int, torch.Tensor] = {}
    values: list[Any] = []
    for spec in specs:
        if spec["kind"] == "complex":
            values.append(complex(*map(float, spec["value"])))
        elif spec["kind"] == "float":
            values.append(float(spec["value"]))
        elif spec["kind"] != "tensor":
            values.append(spec["value"])
        else:
            number = spec["storage"]
            if number not in storages:
                start, stop = spans[number]
                if recorded is None:
                    row = random_bytes(spec, stop, generator)
                else:
                    row = torch.zeros(stop, dtype=torch.uint8)
                    row[start:] = recorded[f"storage_{number}"]
                storages[number] = row.to(device(spec["device"]))
            value = view_of(
                storages[number],
                getattr(torch, spec["dtype"]),
                spec["storage_offset"],
                spec["shape"],
                spec["stride"],
                conj=spec.get("conj", False),
                neg=spec.get("neg", False),
            )
            values.append(value.requires_grad_(spec["requires_grad"]))
    return values


def span(spec: dict[str, Any]) -> tuple[int, int]:
    """First byte of the storage that a described tensor uses, and the one after the last."""
    size = getattr(torch, spec["dtype"]).itemsize
    steps = [(n - 1) * step for n, step in zip(spec["shape"], spec["stride"], strict=True)]
    count = 0 if 0 in spec["shape"] else 1 + sum(steps)
    return spec["storage_offset"] * size, (spec["storage_offset"] + count) * size


def view_of(
    row: torch.Tensor,
    dtype: torch.dtype,
    offset: int,
    shape: Sequence[int],
    stride: Sequence[int],
    *,
    conj: bool,
    neg: bool,
) -> torch.Tensor:
    """A tensor that lies in a row of bytes."""
    tensor = torch.empty(0, dtype=dtype, device=row.device)
    tensor.set_(row.untyped_storage(), offset, tuple(shape), tuple(stride))
    tensor = torch._neg_view(tensor) if neg else tensor
    return tensor.conj() if conj else tensor


def random_bytes(spec: dict[str, Any], size: int, generator: torch.Generator) -> torch.Tensor:
    """A row of bytes that are values of the described dtype."""
    dtype = getattr(torch, spec["dtype"])
    count = -(-size // dtype.itemsize)
    if dtype.is_complex:
        part = {4: torch.float16, 8: torch.float32, 16: torch.float64}[dtype.itemsize]
        values = torch.rand(2 * count, generator=generator).to(part)
    elif dtype.is_floating_point:
        values = torch.rand(count, generator=generator).to(dtype)
    else:
        least, greatest = spec.get("range") or (0, 1)
        beyond = min(greatest, (1 << 63) - 2) + 1
        values = torch.randint(least, beyond, (count,), generator=generator).to(dtype)
    return values.view(torch.uint8)[:size].clone()


def copied(values: Sequence[Any]) -> list[Any]:
    """Copies with the same sizes, strides, offsets and sharing; only tensors are copied."""
    rows: dict[int, tuple[torch.Tensor, int]] = {}
    for value in values:
        if isinstance(value, torch.Tensor) and value.layout is torch.strided:
            key, extent = value.untyped_storage()._cdata, int(value.storage_offset())
            if value.numel():
                steps = zip(value.shape, value.stride(), strict=True)
                extent += 1 + sum((n - 1) * step for n, step in steps)
            stop = max(extent * value.dtype.itemsize, rows.get(key, (value, 0))[1])
            rows[key] = value, stop
    new: dict[int, torch.Tensor] = {}
    found: list[Any] = []
    for value in values:
        if not isinstance(value, torch.Tensor):
            found.append(value)
            continue
        if value.layout is not torch.strided:
            found.append(value.detach().clone().requires_grad_(value.requires_grad))
            continue
        key = value.untyped_storage()._cdata
        if key not in new:
            row = torch.empty(0, dtype=torch.uint8, device=value.device)
            new[key] = row.set_(value.untyped_storage(), 0, (rows[key][1],), (1,)).clone()
        tensor = view_of(
            new[key],
            value.dtype,
            int(value.storage_offset()),
            value.shape,
            value.stride(),
            conj=value.is_conj(),
            neg=value.is_neg(),
        )
        found.append(tensor.requires_grad_(value.requires_grad))
    return found


# --- running ----------------------------------------------------------------------------------


def find_compiler(name: str) -> Callable[..., Any]:
    """The function that ``module:name`` is, or the backend of ``torch.compile`` of this name."""
    module, colon, path = name.partition(":")
    if not colon:

        def compile_with_backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
            torch.compiler.reset()
            return torch.compile(gm, backend=name)

        return compile_with_backend
    found: Any = importlib.import_module(module)
    for atom in path.split("."):
        if not hasattr(found, atom):
            raise ImportError(f"{module} has no {path}")
        found = getattr(found, atom)
    return found  # type: ignore[no-any-return]


def seed() -> None:
    """Seed torch's global generators with 0; what CUDA was given before it is used stays."""
    torch.default_generator.manual_seed(0)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(0)


def run(function: Callable[..., Any], inputs: list[Any]) -> list[Any]:
    """The tensors and numbers that come out, always from the same random state.

    That of CUDA is the same as soon as CUDA is in use; the call itself may be what starts it.
    """
    seed()
    with torch.no_grad():
        boxed = getattr(function, "_boxed_call", False)
        return list(leaves(function(inputs) if boxed else function(*inputs)))


def leaves(value: Any) -> Iterator[Any]:
    """What stands in nested containers."""
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, (tuple, list)):
        for each in value:
            yield from leaves(each)
    else:
        yield value


def annotate(gm: fx.GraphModule, inputs: Sequence[Any], key: str | None) -> str | None:
    """Record fake results in ``node.meta[key]``, as tracing did; compilers may look at them.

    Returns:
        Why that was not possible, if it was not.
    """
    if key is None:
        return None
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    try:
        FakeTensorProp(gm).propagate(*inputs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    for node in gm.graph.nodes:
        if key != "val" and "val" in node.meta:
            node.meta[key] = node.meta.pop("val")
    return None


# --- faults -----------------------------------------------------------------------------------


def run_eagerly(gm: fx.GraphModule, inputs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """What the graph returns, and its inputs afterwards."""
    given, in_use = copied(inputs), torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    try:
        results = run(gm, list(given))
        if torch.cuda.is_initialized() == in_use:  # type: ignore[no-untyped-call]
            return results, given
        given = copied(inputs)  # once more: now it can be seeded
        return run(gm, list(given)), given
    except Exception as error:
        raise CannotTell(f"the graph itself fails: {type(error).__name__}: {error}") from error


def find_error(
    compiler: Callable[..., Any], gm: fx.GraphModule, inputs: Sequence[Any], match: str | None
) -> str | None:
    """How compiling, or running what was compiled, fails; ``None`` if it does not.

    Args:
        compiler: What may fail.
        gm: Runs without it.
        inputs: Not changed.
        match: A pattern to be found in the error; one without it is another fault, and raised.
    """
    run_eagerly(gm, inputs)
    try:
        with torch.no_grad():
            compiled = compiler(copy.deepcopy(gm), copied(inputs))
        run(compiled, copied(inputs))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        if match is not None and not re.search(match, text):
            raise
        return text
    return None


def find_difference(
    compiler: Callable[..., Any],
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    rtol: float | None,
    atol: float | None,
) -> str | None:
    """How the compiled graph's results, or its inputs afterwards, are not the graph's own."""
    expected, expected_inputs = run_eagerly(gm, inputs)
    with torch.no_grad():
        compiled = compiler(copy.deepcopy(gm), copied(inputs))
    given = copied(inputs)
    actual = run(compiled, list(given))
    if len(actual) != len(expected):
        return f"{len(actual)} outputs instead of {len(expected)}"
    pairs = [(f"output {i}", *pair) for i, pair in enumerate(zip(actual, expected, strict=True))]
    pairs += [
        (f"input {i} afterwards", *pair)
        for i, pair in enumerate(zip(given, expected_inputs, strict=True))
    ]
    for name, one, other in pairs:
        if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
            try:
                torch.testing.assert_close(
                    one.detach(), other.detach(), rtol=rtol, atol=atol, equal_nan=True
                )
            except AssertionError as error:
                return f"{name}: {error}"
        elif type(one) is not type(other) or (one != other and not (one != one and other != other)):
            return f"{name}: {one!r} instead of {other!r}"
    return None


def find_fault(
    gm: fx.GraphModule, inputs: Sequence[Any], fault: dict[str, Any]
) -> tuple[str, str] | None:
    """What is wrong, as its kind and the details; ``None`` if nothing is.

    Raises:
        CannotTell: The graph does not run, or the compiler or predicate is missing.
        Exception: What the compiler raises where that is not what is looked for.
    """
    kind = fault["kind"]
    if fault["compiler"] is None:
        raise CannotTell(fault["why"])
    try:
        named = find_compiler(fault["compiler"])
    except ImportError as error:
        raise CannotTell(f"not compiled, the compiler is missing: {error}") from error
    if kind == "predicate":
        found = named(gm, copied(inputs))
        return ("holds", f"{fault['compiler']} says so") if found else None
    if kind in ("any", "raises"):
        error_text = find_error(named, gm, inputs, fault.get("match"))
        if error_text is not None or kind == "raises":
            return None if error_text is None else ("raises", error_text)
    difference = find_difference(named, gm, inputs, fault.get("rtol"), fault.get("atol"))
    return None if difference is None else ("differs", difference)


def main(build: Callable[..., Any], fault: dict[str, Any], recorded: str | None, home: str) -> None:
    """Build the graph, look for the fault, and exit: 0 it is gone, 1 it is there, 125 cannot tell.

    Args:
        build: Makes the graph from the constants.
        fault: What is looked for.
        recorded: Where the nodes' recorded results go.
        home: The file of this program.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", help="run there instead of where the graph was found")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    OVERRIDE.extend([options.device] if options.device else [])
    for place in fault.get("places", ()):
        sys.path.append(place)
    if fault["kind"] == "crashes" and not options.child:
        command = [sys.executable, home, "--child", *sys.argv[1:]]
        with tempfile.TemporaryFile("w+") as output:  # workers it leaves would hold a pipe open
            status = subprocess.call(command, stdout=output)
            output.seek(0)
            text = output.read()
        finished = re.search("^finished: (.*)", text, re.MULTILINE)
        if finished is None:
            say("the fault is there", "crashes", f"the process dies with status {status}")
            raise SystemExit(THERE)
        sys.stdout.write(text)
        raise SystemExit(CANNOT_TELL if finished[1] == "cannot tell" else GONE)
    folder = Path(home).resolve().parent
    try:
        inputs = make_values(folder, "inputs")
        gm = build(make_values(folder, "constants"))
        outputs, _ = run_eagerly(gm, inputs)
        say("the graph runs", "outputs", len(outputs))
        failed = annotate(gm, copied(inputs), recorded)
        if failed is not None:
            say("the nodes have no recorded results", failed)
        found = find_fault(gm, inputs, {**fault, "kind": "any"} if options.child else fault)
    except CannotTell as error:
        say("finished", "cannot tell") if options.child else say(error)
        raise SystemExit(CANNOT_TELL) from None
    except Exception as error:
        traceback.print_exc()
        say("finished" if options.child else "another fault", f"{type(error).__name__}: {error}")
        raise SystemExit(CANNOT_TELL) from None
    if options.child:
        say("finished", "the process is alive")
    elif found is None:
        say("no fault", "the compiled graph agrees with the graph")
    else:
        say("the fault is there", *found)
    raise SystemExit(GONE if found is None else THERE)


def say(*parts: object) -> None:
    """Print at once: a compiler may take the process down, and its output with it."""
    print(*parts, sep=": ", flush=True)  # noqa: T201
