"""A compiler that shows each graph and then runs it as it is."""

from __future__ import annotations

import itertools
import sys
from typing import TYPE_CHECKING, Any, TextIO, overload

from . import _torch_aot
from ._nop import nop
from ._types import FxCompiler, require_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx


@overload
def print_compile(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]: ...


@overload
def print_compile(*, stream: TextIO | None = None, label: str = "") -> FxCompiler: ...


def print_compile(
    gm: Any = ...,
    example_inputs: Sequence[Any] = (),
    /,
    *,
    stream: TextIO | None = None,
    label: str = "",
) -> Any:
    """Print the readable code of ``gm``, shapes included, and run it as it is.

    A compiler by itself, ``print_compile(gm, example_inputs)``; without a graph,
    ``print_compile(stream=..., label=...)`` makes one. Before each graph stands a line with its
    name, its phase (``forward``, ``backward``, ``inference``, ``dynamo``) and a number, which
    counts the graphs that this compiler was given::

        # my model: forward, graph 0

    Args:
        gm: Shown and kept, not copied, not changed. Showing generates no code for the module.
        example_inputs: Not looked at.
        stream: Where to print; ``None`` means ``sys.stdout`` at the time of printing.
        label: The name; if empty, that of the module's class.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: The graph is wrong; names the node.
    """
    numbers = _numbers if gm is not ... else itertools.count()

    def compiler(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]:
        checked = require_graph(gm, "print_compile")
        out = sys.stdout if stream is None else stream
        name = label or type(checked).__name__
        code = checked.print_readable(print_output=False)
        # in one piece: several threads may compile
        out.write(f"# {name}: {_torch_aot.phase(checked)}, graph {next(numbers)}\n{code}\n")
        return nop(gm, example_inputs)

    return compiler if gm is ... else compiler(gm, example_inputs)


_numbers = itertools.count()  # of graphs given to print_compile itself
