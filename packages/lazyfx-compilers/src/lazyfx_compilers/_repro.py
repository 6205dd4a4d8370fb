"""A program that reproduces one compilation: the graph as code, inputs by description.

The folder holds ``repro.py``, ``inputs.json`` (see :mod:`lazyfx_compilers.dump`) and, if the graph
holds tensors, ``constants.pt`` (plain tensors, loaded with ``weights_only=True``). It may be moved.
"""

from __future__ import annotations

import importlib
import tempfile
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from . import _torch_aot
from .dump._inputs import INPUTS
from .dump._schema import describe_inputs, dumps
from .dump._writer import claim_number, write_text
from .errors import NotCompilableError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence

_TEMPLATE = '''"""Reproduces one compilation; written by lazyfx_compilers.debug_compile.

Runs the graph as it is, then compiled, and compares. Needs torch and lazyfx-compilers.
"""

from pathlib import Path

import torch
from torch import fx, nn
from lazyfx_compilers import get_inputs
{compiler}
{imports}

HERE = Path(__file__).parent

{classes}

def main():
    graph = Graph()
    constants = HERE / "constants.pt"
    if constants.exists():
        for name, value in torch.load(constants, weights_only=True).items():
            owner, _, attribute = name.rpartition(".")
            setattr(graph.get_submodule(owner), attribute, value)
    torch.manual_seed(0)
    with torch.no_grad():
        expected = graph(*get_inputs(HERE, seed=0))
    inputs = get_inputs(HERE, seed=0)
    compiled = compiler(fx.symbolic_trace(graph), inputs)
    torch.manual_seed(0)
    with torch.no_grad():
        result = compiled(list(inputs))
    torch.testing.assert_close(list(result), list(expected), equal_nan=True)
    print("compiled and uncompiled agree")


if __name__ == "__main__":
    main()
'''


def import_line(compiler: Callable[..., Any]) -> str:
    """The import statement that finds ``compiler`` again.

    Raises:
        NotCompilableError: It is not at the top level of an importable module.
    """
    module, name = getattr(compiler, "__module__", ""), getattr(compiler, "__qualname__", "")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except (ImportError, ValueError):
        found = None
    if found is not compiler or module == "__main__":
        raise NotCompilableError(
            f"debug_compile(compiler={compiler!r}): expected a function at the top level of an "
            "importable module, so that the program can import it; move it there"
        )
    return f"from {module} import {name} as compiler"


def write_repro(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    parent: str | os.PathLike[str] | None,
    compiler: str,
) -> Path:
    """Write the program into a new folder below ``parent`` and return its path.

    Raises:
        NotCompilableError: The graph calls something that cannot be imported, or holds an
            attribute that is neither a tensor nor a graph; names it.
        OSError: Something cannot be written.
    """
    imports: set[str] = set()
    classes: list[str] = []
    _class_source(gm, "Graph", imports, classes)
    text = _TEMPLATE.format(
        compiler=compiler, imports="\n".join(sorted(imports)), classes="\n\n".join(classes)
    )
    placeholders = [node.name for node in gm.graph.nodes if node.op == "placeholder"]
    base = Path(parent) if parent is not None else Path(tempfile.mkdtemp(prefix="lazyfx-repro-"))
    folder = claim_number(base.absolute())
    constants = dict(_constants(gm, ""))
    if constants:
        with _torch_aot.outside_fake_mode():
            torch.save(constants, folder / "constants.pt")
    write_text(folder / INPUTS, dumps(describe_inputs(placeholders, example_inputs)))
    write_text(folder / "repro.py", text)
    return folder / "repro.py"


def _class_source(gm: fx.GraphModule, name: str, imports: set[str], classes: list[str]) -> None:
    children = []
    for child_name, child in gm.named_children():
        if not isinstance(child, fx.GraphModule):
            raise NotCompilableError(
                f"debug_compile: the graph holds the module {child_name!r} "
                f"({type(child).__qualname__}); expected graph modules only: trace through it"
            )
        child_class = f"{name}_{child_name}"
        _class_source(child, child_class, imports, classes)
        children.append(f"self.{child_name} = {child_class}()")
    code = gm.graph.python_code("self")
    imports.update(_import_of(key, value) for key, value in code.globals.items())
    init = "\n".join(["super().__init__()", *children])
    body = "def __init__(self):\n" + textwrap.indent(init, "    ") + "\n\n" + code.src.strip()
    classes.append(f"class {name}(nn.Module):\n" + textwrap.indent(body, "    "))


_BUILTIN_IMPORTS = {
    "inf": "from math import inf",
    "nan": "from math import nan",
    "NoneType": "NoneType = type(None)",
    "torch": "import torch",
    "device": "from torch import device",
    "fx_pytree": "import torch.fx._pytree as fx_pytree",
    "pytree": "import torch.utils._pytree as pytree",
}


def _import_of(name: str, value: Any) -> str:
    if name in _BUILTIN_IMPORTS:
        return _BUILTIN_IMPORTS[name]
    module, qualified = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module is None or qualified is None or "<" in qualified:
        raise NotCompilableError(
            f"debug_compile: the graph calls {value!r}, which cannot be imported by name; move it "
            "to the top level of a module"
        )
    return f"from {module} import {qualified.partition('.')[0]} as {name}"


def _constants(module: nn.Module, prefix: str) -> list[tuple[str, torch.Tensor]]:
    found = [
        (prefix + name, value.detach())
        for name, value in [
            *module._parameters.items(),
            *module._buffers.items(),
            *vars(module).items(),
        ]
        if isinstance(value, torch.Tensor)
    ]
    for name, child in module.named_children():
        found += _constants(child, f"{prefix}{name}.")
    return found
