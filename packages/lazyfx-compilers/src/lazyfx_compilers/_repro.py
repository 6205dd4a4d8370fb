"""The folder of a program that shows a fault, and the first run of that program.

::

    repro.py                the graph node by node, what to look for, what it takes to do so
    graph.py                the graph as readable code
    inputs.json             a description of each input
    inputs.safetensors      their values; without it they are random
    constants.json, constants.safetensors       the tensors that the graph holds

The program needs torch alone to build and run the graph, and the compiler's package to compile it.
Nothing is a pickle. The folder may be moved.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from . import _torch_standalone
from ._script import Script, add_function
from .dump._graphs import readable_code
from .dump._schema import CODE, DATA, INPUTS, to_json
from .dump._specs import OpaqueSpec, describe_inputs, encode_spec
from .dump._storages import storage_contents
from .errors import ReproError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import fx

_TEMPLATE = '''"""Builds one graph, runs it, and {purpose}.

Written by {writer} under torch {torch}. Exit status: 0, no fault;
1, the fault is there; 125, it cannot be told (so `git bisect run` can use it). `--device cpu` runs
everything on another device.
"""

{first}{imports}
# --- the graph, and what is looked for ----------------------------------------------------------


{functions}

{note}FAULT = {fault}

# --- the rest is the same in every program ------------------------------------------------------

{rest}


if __name__ == "__main__":
    main({build}, FAULT, {recorded!r}, __file__)
'''


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """What a program did when it ran in a fresh process.

    Attributes:
        status: Its exit status; ``None`` if it did not end in time.
        output: The end of what it printed.
    """

    status: int | None
    output: str

    @property
    def shows_fault(self) -> bool:
        """Whether it found the fault."""
        return self.status == _torch_standalone.THERE

    def __str__(self) -> str:
        """What happened, in a few words."""
        lines = [line for line in self.output.splitlines() if line.strip()]
        last = lines[-1] if lines else "no output"
        match self.status:
            case None:
                return "does not end by itself"
            case _torch_standalone.GONE:
                return "shows no fault"
            case _torch_standalone.THERE:
                found = [line for line in lines if line.startswith("the fault is there")]
                return f"shows the fault ({found[-1]})" if found else f"fails ({last})"
            case _torch_standalone.CANNOT_TELL:
                return f"cannot tell ({last})"
        return f"dies with status {self.status} ({last})"


def importable_name(function: Callable[..., Any]) -> str | None:
    """``module:name`` that a fresh process can import ``function`` by, if there is one."""
    module = str(getattr(function, "__module__", ""))
    name = str(getattr(function, "__qualname__", ""))
    for candidate in (module.partition(".")[0], module):
        try:
            found: Any = importlib.import_module(candidate)
        except (ImportError, ValueError):
            continue
        for atom in name.split("."):
            found = getattr(found, atom, None)
        if found is function and candidate != "__main__":
            return f"{candidate}:{name}"
    return None


def place_of(name: str) -> list[str]:
    """Where a fresh process finds the module of ``module:name``, unless it is installed."""
    module = name.partition(":")[0]
    file = getattr(sys.modules.get(module), "__file__", None)
    if file is None or ":" not in name:
        return []
    path = Path(file).absolute()
    levels = module.count(".") + (path.name == "__init__.py")
    root = path.parents[levels]
    installed = [Path(sysconfig.get_path(key)) for key in ("stdlib", "purelib", "platlib")]
    return [] if root in installed else [str(root)]


def write_repro(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    parent: str | os.PathLike[str] | None,
    fault: Mapping[str, Any],
    *,
    writer: str,
    data: bool,
    note: str = "",
) -> Path:
    """Write the program into a new folder and return the path of its ``repro.py``.

    Args:
        gm: Read only.
        inputs: Described; stored as well if ``data``, and then real.
        parent: Where the new folder is made; ``None`` makes a temporary one.
        fault: What :func:`lazyfx_compilers._torch_standalone.find_fault` takes.
        writer: Who writes it, for messages.
        data: Store the values of the inputs.
        note: Text to stand beside the fault, as a comment.

    Raises:
        ReproError: Something cannot be written as Python, names the node; or the folder cannot be
            written.
    """
    names = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    script = Script()
    build = add_function(script, gm)
    constants = [f"constant_{i}" for i in range(len(script.constants))]
    files = {
        "repro.py": _program(script, build, gm, fault, writer, note).encode(),
        CODE: readable_code(gm).encode(),
        **_values(writer, INPUTS, DATA if data else None, names, inputs),
        **_values(writer, "constants.json", "constants.safetensors", constants, script.constants),
    }
    try:
        return _write(files, parent) / "repro.py"
    except OSError as error:
        raise ReproError(
            f"{writer}(folder={None if parent is None else str(parent)!r}): cannot be written "
            f"({error}); give it a folder that can"
        ) from error


def run_fresh(script: Path, *arguments: str, timeout: float = 600) -> FirstRun:
    """Run a program in a process of its own, in its folder.

    Args:
        script: The program.
        *arguments: For it.
        timeout: Seconds after which it, and what it started, is ended.
    """
    command = [sys.executable or "python", str(script), *arguments]
    # a file and not a pipe: what the process has started may outlive it and hold a pipe open
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command,
            cwd=script.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that it can be ended with what it started
        )
        status = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            try:
                status = process.wait(timeout)
            finally:
                with contextlib.suppress(OSError):
                    if hasattr(os, "killpg"):
                        os.killpg(process.pid, signal.SIGKILL)
                process.kill()
                process.wait()
        output.seek(0)
        text = output.read().decode(errors="replace")
    return FirstRun(status=status, output=text[-4000:])


def announcement(script: Path, *, verify: bool) -> str:
    """The path of a program, and what it did when it ran for the first time, which is now."""
    if not verify:
        return f"{script} (it has not run yet)"
    first = run_fresh(script)
    text = f"{script} (in a fresh process it {first})"
    told = first.status in (_torch_standalone.GONE, _torch_standalone.THERE)
    return text if told else f"{text}; the end of its output:\n{first.output[-2000:]}"


def _program(
    script: Script,
    build: str,
    gm: fx.GraphModule,
    fault: Mapping[str, Any],
    writer: str,
    note: str,
) -> str:
    lines = [f"import {module}" for module in sorted(script.imports - {"torch"})]
    lines += [
        f"# operators of {namespace!r} come from another library: import it here"
        for namespace in sorted(script.foreign)
    ]
    purposes = {
        "any": "holds what {} makes of it against it",
        "raises": "looks whether {} fails",
        "differs": "looks whether what {} makes of it gives other results",
        "crashes": "looks whether {} takes the process down",
        "predicate": "asks {}",
    }
    keys = [key for key in ("val", "example_value") if any(key in n.meta for n in gm.graph.nodes)]
    source = inspect.getsource(_torch_standalone)
    first, mark, rest = source[source.index("from __future__") :].partition("GONE, THERE")
    entries = "".join(f"    {key!r}: {value!r},\n" for key, value in fault.items())
    return _TEMPLATE.format(
        purpose=purposes[fault["kind"]].format(fault["compiler"] or "its reader"),
        writer=writer,
        torch=torch.__version__,
        first=first.rstrip() + "\n",
        rest=(mark + rest).rstrip(),
        imports="".join(f"{line}\n" for line in lines),
        functions="\n\n".join(script.functions),
        note="".join(f"# {line}".rstrip() + "\n" for line in note.splitlines()),
        fault=f"{{\n{entries}}}",
        build=build,
        recorded=keys[0] if keys else None,
    )


def _values(
    writer: str, description: str, data: str | None, names: Sequence[str], values: Sequence[Any]
) -> dict[str, bytes]:
    specs = describe_inputs(names, values)
    for spec in specs:
        if isinstance(spec, OpaqueSpec):
            raise ReproError(
                f"{writer}: the input {spec.name!r} is a {spec.description}, which cannot be made "
                "from a description; expected strided tensors and Python values"
            )
    content = {"inputs": [encode_spec(spec) for spec in specs]}
    files = {description: to_json("inputs", content).encode()}
    if data is not None:
        files[data] = _safetensors(storage_contents(specs, values))
    return files


def _safetensors(rows: Mapping[str, torch.Tensor]) -> bytes:
    """Rows of bytes in the format of safetensors, which need not be installed for this."""
    header: dict[str, Any] = {}
    end = 0
    for name, row in rows.items():
        header[name] = {
            "dtype": "U8",
            "shape": [row.numel()],
            "data_offsets": [end, end + row.numel()],
        }
        end += row.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *_contents(rows.values())])


def _contents(rows: Iterable[torch.Tensor]) -> list[bytes]:
    return [ctypes.string_at(row.data_ptr(), row.numel()) for row in rows if row.numel()]


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
