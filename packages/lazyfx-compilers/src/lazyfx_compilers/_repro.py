"""The folder of a program that reproduces one compilation.

The program needs torch alone to build and run the graph, and the compiler's package to compile it.
It loads no pickle: inputs are made from ``inputs.json``, constants are raw bytes. The folder may
be moved.
"""

from __future__ import annotations

import importlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._script import Script, add_function
from .dump._graphs import readable_code
from .dump._schema import CODE, INPUTS, to_json
from .dump._specs import OpaqueSpec, describe_inputs, encode_spec
from .errors import ReproError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

    from torch import fx

_TEMPLATE = '''"""Builds one graph, runs it, compiles it with {name}, and compares.

Written by lazyfx_compilers.debug_compile under torch {torch}. Run it with Python; it exits with an
error if compiling fails or the results differ.
"""

import json
from pathlib import Path

import torch
from torch import fx
{imports}
HERE = Path(__file__).resolve().parent


def constant(file, dtype, shape, stride, device):
    """A tensor whose values stand in a file."""
    tensor = torch.empty_strided(shape, stride, dtype=dtype)
    content = bytearray((HERE / file).read_bytes())
    if content:
        tensor.copy_(torch.frombuffer(content, dtype=torch.uint8).view(dtype).reshape(shape))
    return tensor.to(device)


{functions}

def make_inputs():
    """Random inputs with the sizes, strides, dtypes and sharing that inputs.json tells."""
    generator = torch.Generator().manual_seed(0)
    specs = json.loads((HERE / "inputs.json").read_text(encoding="utf-8"))["inputs"]
    sizes, storages, inputs = {{}}, {{}}, []
    for spec in specs:
        if spec["kind"] == "tensor":
            steps = [(n - 1) * step for n, step in zip(spec["shape"], spec["stride"])]
            count = 0 if 0 in spec["shape"] else spec["storage_offset"] + 1 + sum(steps)
            size = count * getattr(torch, spec["dtype"]).itemsize
            sizes[spec["storage"]] = max(size, sizes.get(spec["storage"], 0))
    for spec in specs:
        if spec["kind"] == "complex":
            inputs.append(complex(*map(float, spec["value"])))
        elif spec["kind"] == "float":
            inputs.append(float(spec["value"]))
        elif spec["kind"] != "tensor":
            inputs.append(spec["value"])
        else:
            dtype, number = getattr(torch, spec["dtype"]), spec["storage"]
            if number not in storages:
                values = random_bytes(dtype, sizes[number], spec.get("range"), generator)
                storages[number] = values.to(spec["device"])
            tensor = torch.empty(0, dtype=dtype, device=spec["device"]).set_(
                storages[number].untyped_storage(),
                spec["storage_offset"],
                spec["shape"],
                spec["stride"],
            )
            tensor = torch._neg_view(tensor) if spec.get("neg") else tensor
            tensor = tensor.conj() if spec.get("conj") else tensor
            inputs.append(tensor.requires_grad_(spec["requires_grad"]))
    return inputs


def random_bytes(dtype, size, limits, generator):
    """Bytes of random values: floats in [0, 1), integers within limits or 0 and 1."""
    count = -(-size // dtype.itemsize)
    if dtype.is_complex:
        part = {{4: torch.float16, 8: torch.float32, 16: torch.float64}}[dtype.itemsize]
        values = torch.rand(2 * count, generator=generator).to(part)
    elif dtype.is_floating_point:
        values = torch.rand(count, generator=generator).to(dtype)
    else:
        least, greatest = limits or (0, 1)
        values = torch.randint(
            least, min(greatest, (1 << 63) - 2) + 1, (count,), generator=generator
        ).to(dtype)
    return values.view(torch.uint8)[:size]


def run(function, inputs):
    """The tensors and numbers that come out."""
    torch.manual_seed(0)
    with torch.no_grad():
        boxed = getattr(function, "_boxed_call", False)
        return leaves(function(inputs) if boxed else function(*inputs))


def leaves(value):
    """The leaves of nested tuples and lists."""
    if isinstance(value, (tuple, list)):
        return [leaf for each in value for leaf in leaves(each)]
    return [value]


def main():
    """Run, compile, compare."""
    expected = run({build}(), make_inputs())
    print(f"the graph runs; outputs: {{len(expected)}}")
    try:
        from {module} import {name}
    except ImportError as error:
        print(f"not compiled, the compiler is missing: {{error}}")
        return
    compiled = {name}({build}(), make_inputs())
    actual = run(compiled, make_inputs())
    if len(actual) != len(expected):
        raise SystemExit(f"compiled: {{len(actual)}} outputs instead of {{len(expected)}}")
    for i, (one, other) in enumerate(zip(actual, expected)):
        if isinstance(other, torch.Tensor):
            torch.testing.assert_close(
                one, other, equal_nan=True, msg=lambda text: f"output {{i}}: {{text}}"
            )
        elif one != other:
            raise SystemExit(f"output {{i}}: {{one!r}} instead of {{other!r}}")
    print("the compiled graph agrees with the graph")


if __name__ == "__main__":
    main()
'''


def compiler_name(compiler: Callable[..., Any]) -> tuple[str, str]:
    """Module and name that a script imports ``compiler`` by.

    Raises:
        ReproError: There is none.
    """
    module = str(getattr(compiler, "__module__", ""))
    name = str(getattr(compiler, "__qualname__", ""))
    for candidate in (module.partition(".")[0], module):
        try:
            found = getattr(importlib.import_module(candidate), name, None)
        except (ImportError, ValueError):
            continue
        if found is compiler and candidate != "__main__":
            return candidate, name
    raise ReproError(
        f"debug_compile(compiler={compiler!r}): expected a function at the top level of an "
        "importable module, so that the program can import it; move it there"
    )


def write_repro(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    parent: str | os.PathLike[str] | None,
    compiler: tuple[str, str],
) -> Path:
    """Write the program into a new folder and return the path of its ``repro.py``.

    Args:
        gm: Read only.
        example_inputs: Described, not stored.
        parent: Where the new folder is made; ``None`` makes a temporary one.
        compiler: Module and name, see :func:`compiler_name`.

    Raises:
        ReproError: Something cannot be written as Python, names the node; or the folder cannot be
            written.
    """
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    specs = describe_inputs(names, example_inputs)
    for spec in specs:
        if isinstance(spec, OpaqueSpec):
            raise ReproError(
                f"debug_compile: the input {spec.name!r} is a {spec.description}, which cannot be "
                "made from a description; expected strided tensors and Python values"
            )
    script = Script()
    text = _program(script, add_function(script, gm), compiler)
    files = {
        "repro.py": text.encode(),
        CODE: readable_code(gm).encode(),
        INPUTS: to_json("inputs", {"inputs": [encode_spec(spec) for spec in specs]}).encode(),
        **script.constants,
    }
    try:
        return _write(files, parent) / "repro.py"
    except OSError as error:
        raise ReproError(
            f"debug_compile(folder={None if parent is None else str(parent)!r}): cannot be written "
            f"({error}); give it a folder that can"
        ) from error


def _program(script: Script, build: str, compiler: tuple[str, str]) -> str:
    import torch

    lines = [f"import {module}" for module in sorted(script.imports - {"torch"})]
    lines += [
        f"# operators of {namespace!r} come from another library: import it here"
        for namespace in sorted(script.foreign)
    ]
    return _TEMPLATE.format(
        module=compiler[0],
        name=compiler[1],
        torch=torch.__version__,
        imports="".join(f"{line}\n" for line in lines),
        functions="\n\n".join(script.functions),
        build=build,
    )


def _write(files: dict[str, bytes], parent: str | os.PathLike[str] | None) -> Path:
    if parent is None:
        folder = Path(tempfile.mkdtemp(prefix="lazyfx_repro_"))
    else:
        folder = _claim_number(Path(parent).absolute())
    try:
        for name, content in files.items():
            (folder / name).write_bytes(content)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


def _claim_number(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        folder = parent / f"{number:03d}"
        try:
            folder.mkdir()  # atomic: no two processes get the same one
        except FileExistsError:
            number += 1
            continue
        return folder
