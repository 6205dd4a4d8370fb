"""The files of a dump: what their JSON looks like, and the one place that checks it when read.

::

    {folder}/{name}/                    one per process; a name that is taken gets "-2", "-3", ...
        index.json                      every graph: phase, compilation, node and operator counts
        index.md                        the same, to be read
        replay.py                       runs all graphs again
        000_joint_0-0/                  000 is the compilation, one number for all its graphs; 0-0
        000_forward_0-0/                is Dynamo's compile id 0/0, if there was one
            graph.safetensors           the graph itself, an archive of lazyfx_core.save_graph
            graph.py                    readable code with shapes, strides, devices, user lines
            inputs.json                 a description of each input
            inputs.safetensors          values of the inputs (example_inputs="data")
            outputs.json                descriptions of the outputs, and of the inputs afterwards
            outputs.safetensors         their values, as far as the run made or changed them
            replay.py                   runs this graph again
        000_backward_0-0/
        001_inference_1-0/

A process that is one of several has its rank in the name: ``{name}_rank1``.

Every JSON file is an object with ``format`` (``lazyfx.index``, ``lazyfx.inputs``,
``lazyfx.outputs``) and ``version``; a reader takes its own version and older ones, ignores fields
it does not know, and refuses the rest. No file is a pickle, and reading one executes nothing. A
folder may be moved: paths inside it are relative.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfx_compilers.errors import DumpFormatError

VERSION = 1
INDEX = "index.json"
OVERVIEW = "index.md"
GRAPH = "graph.safetensors"
CODE = "graph.py"
INPUTS = "inputs.json"
DATA = "inputs.safetensors"
OUTPUTS = "outputs.json"
RESULTS = "outputs.safetensors"
REPLAY = "replay.py"

_MAX_BYTES = 1 << 30  # a larger JSON file is not one of ours


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """A value inside a JSON file, and where it stands, so that an error can say so."""

    file: Path
    path: str
    value: Any

    def wrong(self, expected: str) -> DumpFormatError:
        """The error that says what this field should have been."""
        shown = repr(self.value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return DumpFormatError(
            f"{self.file}: field {self.path or 'the whole file'} is {shown}; expected {expected}; "
            "dump the graph again, or repair the file"
        )

    def get(self, key: str, *default: Any) -> Field:
        """The field of an object; without a default it has to be there."""
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        path = f"{self.path}.{key}" if self.path else key
        if key not in self.value and not default:
            raise DumpFormatError(
                f"{self.file}: field {path} is missing; dump the graph again, or repair the file"
            )
        return Field(file=self.file, path=path, value=self.value.get(key, *default))

    def items(self) -> list[Field]:
        """The elements of an array."""
        if not isinstance(self.value, list):
            raise self.wrong("an array")
        return [
            Field(file=self.file, path=f"{self.path}[{i}]", value=each)
            for i, each in enumerate(self.value)
        ]

    def text(self) -> str:
        """A string."""
        if not isinstance(self.value, str):
            raise self.wrong("a string")
        return self.value

    def integer(self, *, least: int = -(1 << 63)) -> int:
        """An integer that fits 64 bits; ``True`` is none."""
        if type(self.value) is not int or not least <= self.value < 1 << 63:
            raise self.wrong(f"an integer{'' if least < 0 else f', at least {least}'}")
        return self.value

    def boolean(self) -> bool:
        """``true`` or ``false``."""
        if not isinstance(self.value, bool):
            raise self.wrong("true or false")
        return self.value

    def integers(self, *, least: int) -> tuple[int, ...]:
        """An array of integers."""
        return tuple(each.integer(least=least) for each in self.items())

    def number(self) -> float:
        """A float; those that JSON does not have are the strings ``nan``, ``inf``, ``-inf``."""
        if self.value in ("nan", "inf", "-inf"):
            return float(self.value)
        if type(self.value) not in (int, float):
            raise self.wrong("a number, 'nan', 'inf' or '-inf'")
        try:
            return float(self.value)
        except OverflowError:
            raise self.wrong("a number that a float can hold") from None


def encode_float(value: float) -> float | str:
    """A float as strict JSON has it; :meth:`Field.number` reads it back."""
    return value if math.isfinite(value) else str(value)


def to_json(kind: str, content: dict[str, Any]) -> str:
    """The text of a file of the dump; each element of a list stands on a line of its own."""
    document = {"format": f"lazyfx.{kind}", "version": VERSION, **content}
    lines = [f"{json.dumps(key)}: {_lines(value)}" for key, value in document.items()]
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(value: Any) -> str:
    if not isinstance(value, list) or not value:
        return json.dumps(value, allow_nan=False)
    return "[\n " + ",\n ".join(json.dumps(each, allow_nan=False) for each in value) + "\n]"


def require_regular(file: Path) -> None:
    """Check that reading ``file`` comes to an end; what is not there is told by whoever reads it.

    Raises:
        DumpFormatError: It is a pipe or a device.
    """
    if any(is_odd(file) for is_odd in (Path.is_fifo, Path.is_char_device, Path.is_socket)):
        raise DumpFormatError(f"{file}: a pipe or a device; expected a file; dump the graph again")


def read_json(file: Path, kind: str) -> Field:
    """Read a file of the dump and check what it says it is.

    Raises:
        DumpFormatError: It cannot be read, is not JSON, is of another kind or too new.
    """
    require_regular(file)
    try:
        if file.stat().st_size > _MAX_BYTES:
            raise DumpFormatError(f"{file}: larger than {_MAX_BYTES} bytes; expected a dump's file")
        document = json.loads(
            file.read_bytes().decode("utf-8"), parse_constant=_no_constant, parse_float=_finite
        )
    except OSError as error:
        raise DumpFormatError(
            f"{file}: cannot be read ({error.strerror or error}); pass a folder that "
            "graph_dumper_aot wrote, or a file in it"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DumpFormatError(
            f"{file}: not JSON, or cut short ({error}); dump the graph again"
        ) from error
    root = Field(file=file, path="", value=document)
    found = root.get("format")
    if found.value != f"lazyfx.{kind}":
        raise found.wrong(f"'lazyfx.{kind}'")
    version = root.get("version").integer(least=1)
    if version > VERSION:
        raise DumpFormatError(
            f"{file}: field version is {version}; this lazyfx-compilers reads up to {VERSION}; "
            "read it with a newer lazyfx-compilers"
        )
    return root


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is more than a float can hold")
    return value


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
