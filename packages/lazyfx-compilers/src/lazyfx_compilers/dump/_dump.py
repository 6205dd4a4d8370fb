"""Reading a dump: ``load_dump``, and what it gives."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

import lazyfx_core
from lazyfx_compilers.errors import DumpFormatError

from ._inputs import get_inputs, make_values, read_inputs_spec
from ._replay import Replay, node_times, replay_graph, run_graph
from ._schema import CODE, DATA, GRAPH, INDEX, INPUTS, OUTPUTS, Field, read_json, require_regular
from ._specs import UNKNOWN, OpaqueSpec, describe_inputs

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from lazyfx_compilers._types import FxCompiler

    from ._specs import InputSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpedGraph:
    """One graph of a dump. Nothing but its line in the index is read before it is asked for.

    Attributes:
        id: The name of its folder.
        phase: ``"joint"``, ``"forward"``, ``"backward"`` or ``"inference"``.
        compilation: The same number for all graphs of one compilation.
        compile_id: Dynamo's id of that compilation, such as ``"0/1"``; ``None`` without Dynamo.
        folder: Where its files are.
        nodes: How many nodes it has.
        ops: How often each target is called, the most frequent first.
        not_stored: Why there is no archive of it; ``None`` where there is one.
        environment: Versions and machine, as the dump has it.
    """

    id: str
    phase: str
    compilation: int
    compile_id: str | None
    folder: Path
    nodes: int
    ops: dict[str, int]
    not_stored: str | None
    _halves: tuple[Path, ...] = field(repr=False)
    environment: Mapping[str, Any] = field(repr=False)
    _allow: tuple[Any, ...] = field(repr=False)

    @property
    def has_data(self) -> bool:
        """Whether the values of the inputs at the first run are there."""
        return (self.folder / DATA).exists()

    @property
    def has_outputs(self) -> bool:
        """Whether the values of the outputs at the first run are there."""
        return (self.folder / OUTPUTS).exists()

    @property
    def code(self) -> str:
        """Readable code with shapes, strides, devices and the user's lines. Text, never run.

        Raises:
            DumpFormatError: The file is missing or not text.
        """
        file = self.folder / CODE
        require_regular(file)
        try:
            return file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise DumpFormatError(
                f"{file}: cannot be read ({error}); dump the graph again"
            ) from error

    @property
    def specs(self) -> tuple[InputSpec, ...]:
        """Descriptions of the inputs; without a file for them, what the graph recorded.

        Raises:
            DumpFormatError: Names the file and the field.
        """
        if (self.folder / INPUTS).exists():
            return read_inputs_spec(self.folder)
        placeholders = [n for n in self.module().graph.nodes if n.op == "placeholder"]
        return describe_inputs(
            [node.name for node in placeholders],
            [node.meta.get("val", UNKNOWN) for node in placeholders],
        )

    def module(self, *, device: str | torch.device | None = None) -> fx.GraphModule:
        """The graph, read anew from its archive; nothing of it is run or imported.

        Args:
            device: Where its constants go and its factories make tensors, instead of the recorded
                devices.

        Raises:
            DumpFormatError: The archive is missing, damaged, too new, or refers to a function that
                is neither torch's nor in ``allow``; names the file and the node.
        """
        file = self.folder / GRAPH
        if self.not_stored is not None:
            raise DumpFormatError(
                f"{self.folder}: the graph could not be stored: {self.not_stored}"
            )
        require_regular(file)
        try:
            gm = lazyfx_core.load_graph(file, allow=self._allow, map_location=device, warn=False)
        except OSError as error:
            raise DumpFormatError(
                f"{file}: cannot be read ({error.strerror or error}); dump the graph again"
            ) from error
        except lazyfx_core.GraphFormatError as error:
            raise DumpFormatError(f"{file}: {error}") from error
        return gm if device is None else _moved(gm, torch.device(device))

    def inputs(
        self,
        *,
        seed: int | None = 0,
        data: bool | None = None,
        device: str | None = None,
        max_bytes: int | None = None,
    ) -> list[Any]:
        """Inputs to run it with, new ones at each call.

        Args:
            seed: For random ones; see :func:`get_inputs` for what they are.
            data: Recorded values or random ones; ``None``: the recorded ones if they are there,
                for a joint graph, which never runs, those of its forward and backward.
            device: Instead of the recorded devices.
            max_bytes: Refuse descriptions that ask for more; by default, than this machine has.

        Raises:
            DumpFormatError: Names the file and the field.
        """
        if data is None and self.phase == "joint":
            halves = self._inputs_of_halves(device)
            if halves is not None:
                return halves
        wanted = self.has_data if data is None else data
        if not wanted and not (self.folder / INPUTS).exists():
            file, specs = self.folder / GRAPH, self.specs
            for spec in specs:
                if isinstance(spec, OpaqueSpec):
                    raise DumpFormatError(
                        f"{file}: input {spec.name!r} is a {spec.description}: expected what it can"
                        " be made from (another torch may have described it); pass inputs of your"
                        " own, or dump with example_inputs='spec'"
                    )
            return make_values(specs, file, seed=seed, device=device, max_bytes=max_bytes)
        return get_inputs(self.folder, seed=seed, data=wanted, device=device, max_bytes=max_bytes)

    def _inputs_of_halves(self, device: str | None) -> list[Any] | None:
        if len(self._halves) != 2 or not all((each / DATA).exists() for each in self._halves):
            return None
        found: dict[str, Any] = {}
        for half in self._halves:
            values = get_inputs(half, data=True, device=device)
            for spec, value in zip(read_inputs_spec(half), values, strict=True):
                # the forward's first: what it saved may be a copy, in another order of memory
                found.setdefault(spec.name, value)
        names = [spec.name for spec in self.specs]
        return [found[name] for name in names] if found.keys() >= set(names) else None

    def run(
        self,
        inputs: Sequence[Any] | None = None,
        *,
        seed: int = 0,
        compiler: FxCompiler | None = None,
        device: str | None = None,
    ) -> Any:
        """Run it and give its outputs, under the random state of the first run if it is recorded.

        Args:
            inputs: By default what :meth:`inputs` gives. The graph may change them.
            seed: For random inputs, and for random numbers where no state is recorded.
            compiler: Compile it with this first.
            device: Run it there.

        Raises:
            DumpFormatError: Something cannot be read; names the file and the field.
            Exception: Whatever running or compiling the graph raises.
        """
        return run_graph(self, inputs, seed=seed, compiler=compiler, device=device)

    def times(
        self, *, seed: int = 0, repeat: int = 3, device: str | None = None
    ) -> dict[str, float]:
        """Seconds that each node takes, by name: the best of ``repeat`` runs, node by node.

        Args:
            seed: See :meth:`run`.
            repeat: How often it is run.
            device: Run it there.

        Raises:
            DumpFormatError: Something cannot be read; names the file and the field.
            Exception: Whatever running the graph raises.
        """
        return node_times(self, seed=seed, repeat=repeat, device=device)

    def replay(
        self,
        *,
        seed: int = 0,
        repeat: int = 0,
        compiler: FxCompiler | None = None,
        device: str | None = None,
    ) -> Replay:
        """Run it again and hold the results against the recorded ones.

        Without recorded outputs the graph as it is stands in for them if there is a ``compiler``;
        without both it is only run. The recorded number of threads and the other settings of torch
        that decide about bits are set meanwhile, process-wide.

        Args:
            seed: See :meth:`run`.
            repeat: Run it this many times more and take the time.
            compiler: Compile it with this first.
            device: Run it there.

        Raises:
            DumpFormatError: Something cannot be read; names the file and the field.
            Exception: Whatever running or compiling the graph raises.
        """
        return replay_graph(self, seed=seed, repeat=repeat, compiler=compiler, device=device)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dump:
    """What one process has written, in the order it was written.

    Attributes:
        name: As the user gave it.
        folder: Where it is.
        rank: The process's rank if it was one of several.
        environment: Versions and machine: ``torch``, ``python``, ``system``, ``cpu``, ...
        graphs: Its graphs.
    """

    name: str
    folder: Path
    rank: int | None
    environment: dict[str, Any]
    graphs: tuple[DumpedGraph, ...]

    def __getitem__(self, identity: str) -> DumpedGraph:
        """The graph with this ``id``.

        Raises:
            KeyError: There is none; lists those there are.
        """
        for graph in self.graphs:
            if graph.id == identity:
                return graph
        known = ", ".join(graph.id for graph in self.graphs[:20]) or "none"
        raise KeyError(f"no graph {identity!r} in {self.folder}; there are: {known}")

    def __iter__(self) -> Iterator[DumpedGraph]:
        return iter(self.graphs)

    def __len__(self) -> int:
        return len(self.graphs)


def load_dump(
    path: str | os.PathLike[str], *, allow: Iterable[Callable[..., Any] | type | str] = ()
) -> Dump:
    """Read the index of a dump; its graphs are read when they are asked for. Executes nothing.

    Args:
        path: The folder of a dump (``GraphDumper.path``), or the ``index.json`` in it.
        allow: Functions and classes outside of torch that its graphs may refer to. Custom
            operators need none, but the library that registers them has to be imported.

    Raises:
        DumpFormatError: The index is missing, damaged or too new; names the file and the field.
    """
    given = Path(path)
    file = given / INDEX if given.is_dir() else given
    root = read_json(file, "index")
    environment = root.get("environment")
    if not isinstance(environment.value, dict):
        raise environment.wrong("an object")
    environment.get("torch").text()
    rank = root.get("rank", None)
    allowed = tuple(allow)
    entries = root.get("graphs").items()
    graphs = [_entry(each, file.parent, environment.value, allowed) for each in entries]
    if len({graph.id for graph in graphs}) != len(graphs):
        raise root.get("graphs").wrong("graphs with ids of their own")
    halves: dict[int, list[Path]] = {}
    for phase in ("forward", "backward"):
        for graph in graphs:
            if graph.phase == phase:
                halves.setdefault(graph.compilation, []).append(graph.folder)
    return Dump(
        name=root.get("name").text(),
        folder=file.parent,
        rank=None if rank.value is None else rank.integer(least=0),
        environment=environment.value,
        graphs=tuple(
            replace(graph, _halves=tuple(halves.get(graph.compilation, ())))
            if graph.phase == "joint"
            else graph
            for graph in graphs
        ),
    )


def find_dumps(folder: str | os.PathLike[str]) -> list[Path]:
    """The folders of all dumps at or below ``folder``, sorted: one per process and name."""
    return sorted(file.parent for file in Path(folder).rglob(INDEX))


def _entry(
    entry: Field, parent: Path, environment: Mapping[str, Any], allow: tuple[Any, ...]
) -> DumpedGraph:
    identity = entry.get("id")
    name = identity.text()
    if Path(name).name != name or name in ("", ".", "..") or "\\" in name or "\0" in name:
        raise identity.wrong("the name of a folder beside the index")
    ops = entry.get("ops")
    if not isinstance(ops.value, dict):
        raise ops.wrong("an object")
    compile_id, not_stored = entry.get("compile_id", None), entry.get("not_stored", None)
    return DumpedGraph(
        id=name,
        phase=entry.get("phase").text(),
        compilation=entry.get("compilation").integer(least=0),
        compile_id=None if compile_id.value is None else compile_id.text(),
        folder=parent / name,
        nodes=entry.get("nodes").integer(least=0),
        ops={key: ops.get(key).integer(least=0) for key in ops.value},
        not_stored=None if not_stored.value is None else not_stored.text(),
        _halves=(),
        environment=environment,
        _allow=allow,
    )


def _moved(gm: fx.GraphModule, device: torch.device) -> fx.GraphModule:
    """``gm``, changed so that nothing in it names another device."""

    def move(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for module in gm.modules():
        if isinstance(module, fx.GraphModule):
            for node in module.graph.nodes:
                node.args = fx.node.map_aggregate(node.args, move)
                node.kwargs = fx.node.map_aggregate(node.kwargs, move)
            module.recompile()
    return gm
