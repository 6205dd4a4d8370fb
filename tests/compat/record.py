"""Writes into ``docs/compat.json`` which private names the installed torch has.

``python tests/compat/record.py``, in the environment of each release, and ``python docs/seams.py``
then, which writes the page. Needs torch, and nothing of lazyfx.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.util
import inspect
import json
import platform
import re
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).parents[2]


def load_seams() -> Any:
    """The program that reads the seams, ``docs/seams.py``; it is no package."""
    spec = importlib.util.spec_from_file_location("seams", ROOT / "docs" / "seams.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def _marks_constants() -> bool:
    return hasattr(torch.compiler.assume_constant_result(lambda: None), "_dynamo_marked_constant")


def _asks_for_boxed_calls() -> bool:
    make = importlib.import_module("functorch.compile").make_boxed_func
    return hasattr(make(lambda: None), "_boxed_call")


def _knows_parameters_by_a_mark() -> bool:
    class Marked(torch.Tensor):
        pass

    tensor = torch.ones(1).as_subclass(Marked)
    tensor._is_param = True
    return isinstance(tensor, nn.Parameter)


def _asks_whether_modules_are_dynamic() -> bool:
    guard = importlib.import_module("torch._dynamo.mutation_guard")
    module, answer = nn.Module(), object()
    module.torchdynamo_force_dynamic = answer
    return guard.is_dynamic_nn_module(module, False) is answer


# Marks on the objects of others: torch has no such attribute, it sets it or asks for it.
_MARKS = {
    "types.FunctionType._boxed_call": _asks_for_boxed_calls,
    "types.FunctionType._dynamo_marked_constant": _marks_constants,
    "torch.Tensor._is_param": _knows_parameters_by_a_mark,
    "torch.nn.Module.torchdynamo_force_dynamic": _asks_whether_modules_are_dynamic,
}


def exists(name: str) -> bool:
    """Whether the installed torch has this name.

    An attribute of a class may be there, or be one that the class, or one that it inherits from,
    declares or assigns.
    """
    if name in _MARKS:
        return _MARKS[name]()
    parts = name.split(".")
    found, rest = None, parts
    for end in range(len(parts), 0, -1):
        try:
            found, rest = importlib.import_module(".".join(parts[:end])), parts[end:]
            break
        except ImportError:
            continue
    if found is None:
        return False
    for part in rest:
        if hasattr(found, part):
            found = getattr(found, part)
        elif isinstance(found, type):
            return part == rest[-1] and any(_assigns(one, part) for one in found.__mro__)
        else:
            return False
    return True


def _assigns(cls: type, attribute: str) -> bool:
    if attribute in inspect.get_annotations(cls):
        return True
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # it is written in C
        return False
    return re.search(rf"\b\w+\.{attribute}\b\s*(:[^=\n]*)?=(?!=)", source) is not None


def main() -> None:
    """Look at every name, and put the release that is installed into the file."""
    seams = load_seams()
    names = sorted({use.name for use in seams.uses()})
    recorded = seams.record()
    recorded[torch.__version__.partition("+")[0]] = {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "names": {name: exists(name) for name in names},
    }
    ordered = {version: recorded[version] for version in sorted(recorded, key=seams.release)}
    seams.RECORD.write_text(json.dumps(ordered, indent=1) + "\n")
    missing = [name for name in names if not exists(name)]
    sys.stdout.write(f"torch {torch.__version__}: {len(names)} names, not there: {missing}\n")


if __name__ == "__main__":
    main()
