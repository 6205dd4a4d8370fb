"""``dump_graphs``: dump what any backend compiles, inductor included."""

from __future__ import annotations

import functools
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from ._dumper import GraphDumper, make_dumper

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from torch import fx

    from ._dumper import ExampleInputs


# the blocks that are open in this thread or task, of all instances: one may be open in several
_open: ContextVar[tuple[tuple[dump_graphs, Any], ...]] = ContextVar("lazyfx_dumps", default=())


class dump_graphs:
    """Dump every graph that is compiled inside the block, by whatever backend.

    ::

        with dump_graphs("bert", "dumps", example_inputs="data") as dumper:
            compiled(x).sum().backward()      # torch.compile(model), the first call
        print(dumper.path)

    Seen is what AOTAutograd hands to a backend in this thread or asyncio task: joint, forward,
    backward and inference graphs of ``torch.compile``, ``aot_function`` and ``aot_module``. Code
    that was compiled before is not compiled again (``torch.compiler.reset()`` forgets it), and what
    torch's AOTAutograd cache holds is compiled anew inside the block. A backward that is compiled
    after the block still belongs to it.

    What the graphs compute is the backend's as before. With ``"data"``, and for graphs with integer
    inputs with ``"spec"``, compiled functions are wrapped to see their first run.

    Args:
        name: See :func:`graph_dumper_aot`.
        folder: See :func:`graph_dumper_aot`.
        example_inputs: See :func:`graph_dumper_aot`.
        enabled: ``False`` does nothing, imports nothing and gives ``None``.

    Raises:
        UnknownOptionError: A name, folder or option of another type or value.
        MissingDependencyError: ``example_inputs="data"`` without safetensors.
        SeamError: On entering, if this torch compiles in another way.

    A block may be entered again, also inside itself; all of them go into one folder.
    """

    __slots__ = ("_dumper",)

    def __init__(
        self,
        name: str,
        folder: str | os.PathLike[str] | None = None,
        *,
        example_inputs: ExampleInputs = "spec",
        enabled: bool = True,
    ) -> None:
        self._dumper = make_dumper("dump_graphs", name, folder, example_inputs) if enabled else None

    def __enter__(self) -> GraphDumper | None:
        if self._dumper is not None:
            from lazyfx_compilers._torch_compilations import watching

            block = watching(_watcher(self._dumper))
            block.__enter__()
            _open.set((*_open.get(), (self, block)))
        return self._dumper

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._dumper is not None:
            blocks = _open.get()
            place = max(i for i, (owner, _) in enumerate(blocks) if owner is self)
            _open.set(blocks[:place] + blocks[place + 1 :])
            blocks[place][1].__exit__(kind, error, trace)


def _watcher(dumper: GraphDumper) -> Any:
    from lazyfx_compilers._torch_compilations import Watcher

    def partition(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def dumping(joint: fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> Any:
            return dumper.dump_and_partition(joint, inputs, original, **settings)

        return dumping

    def forward(original: Callable[..., Any]) -> Callable[..., Any]:
        def dumping(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
            return dumper.dump_and_compile(gm, inputs, original)

        return dumping

    def backward(original: Callable[..., Any]) -> Callable[..., Any]:
        def dumping(gm: fx.GraphModule, inputs: Sequence[Any]) -> Any:
            return dumper.dump_and_compile(gm, inputs, original, phase="backward")

        return dumping

    return Watcher(partition=partition, forward=forward, backward=backward)
