"""A compiler that shows each graph and then runs it as it is."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, TextIO, overload

from ._types import FxCompiler, require_graph
from .nop import nop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx


@overload
def print_compile(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]: ...


@overload
def print_compile(*, stream: TextIO | None = None, label: str = "") -> FxCompiler: ...


def print_compile(
    gm: Any = None,
    example_inputs: Sequence[Any] = (),
    /,
    *,
    stream: TextIO | None = None,
    label: str = "",
) -> Any:
    """Print the readable code of ``gm``, shapes included, and run it as it is.

    A compiler by itself, ``print_compile(gm, example_inputs)``; without a graph,
    ``print_compile(stream=..., label=...)`` makes one.

    Args:
        gm: Shown and kept, not copied, not changed. Showing generates no code for the module.
        example_inputs: Not looked at.
        stream: Where to print; ``None`` means ``sys.stdout`` at the time of printing.
        label: Printed on a line of its own before each graph, if not empty.

    Raises:
        NotCompilableError: ``gm`` is not a ``torch.fx.GraphModule``.
        InvalidGraphError: The graph is wrong; names the node.
    """

    def compiler(gm: fx.GraphModule, example_inputs: Sequence[Any], /) -> Callable[..., Any]:
        checked = require_graph(gm, "print_compile")
        out = sys.stdout if stream is None else stream
        if label:
            out.write(f"# {label}\n")
        out.write(checked.print_readable(print_output=False) + "\n")
        return nop(gm, example_inputs)

    return compiler if gm is None else compiler(gm, example_inputs)
