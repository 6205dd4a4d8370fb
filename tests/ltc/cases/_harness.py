"""Cases against eager, each in a process of its own: a crash is a failure, not the end of the run.

A case is a function without arguments. It returns if lazyfx-ltc does what eager does, raises
:class:`Refused` if a call was refused before anything was written, and something else otherwise.
:func:`case` makes one of a model and its arguments; what it compares is all that eager shows.

``python _harness.py`` is the parent of the processes: it imports torch once, never touches the lazy
backend, and forks for each case that it is asked for.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import importlib
import importlib.util
import json
import logging
import os
import re
import select
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lazyfx_ltc as ltc
from lazyfx_core.errors import LazyFxError

FOLDER = Path(__file__).parent
TIMEOUT = 60.0


@dataclass(frozen=True)
class Case:
    """``refused``: the reason, as a regular expression, if refusing is the right outcome."""

    run: Callable[[], None]
    refused: str | None = None


class Refused(Exception):
    """lazyfx-ltc said no, in so many words, and nothing was written."""


# What is captured.

_LIBRARY = torch.library.Library("lazyfx_ltc_cases", "DEF")
_LIBRARY.define("scaled(Tensor x, float by) -> (Tensor, float)")
_LIBRARY.impl("scaled", lambda x, by: (x * by, by), "CompositeExplicitAutograd")
_LIBRARY.define("named(Tensor x, str name) -> Tensor")
_LIBRARY.impl("named", lambda x, name: x + len(name), "CompositeExplicitAutograd")


def scaled(x: torch.Tensor, by: float = 2.0) -> torch.Tensor:
    """By an operator that no program can call: it returns a number."""
    return torch.ops.lazyfx_ltc_cases.scaled(x, by)[0]


def named(x: torch.Tensor, name: str = 'a"b') -> torch.Tensor:
    """By an operator with an argument that the notation of programs has no word for."""
    return torch.ops.lazyfx_ltc_cases.named(x, name)


class Function(nn.Module):
    """Python that runs at each call, a leaf of the graph."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = [function]

    def forward(self, *args: Any) -> Any:
        return self.function[0](*args)


def python(function: Callable[..., Any], count: int = 1) -> fx.GraphModule:
    """A graph that calls ``function`` with its ``count`` arguments, and returns what it returns."""
    graph = fx.Graph()
    places = [graph.placeholder(f"arg{index}") for index in range(count)]
    graph.output(graph.call_module("inner", tuple(places)))
    return fx.GraphModule({"inner": Function(function)}, graph)


# What is compared.


def leaves_of(value: Any, found: list[torch.Tensor]) -> Any:
    """Append the tensors of a value; return all the rest of it, in a form that can be compared."""
    if isinstance(value, torch.Tensor):
        found.append(value)
        return torch.Tensor
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        inner = [getattr(value, one.name, "missing") for one in dataclasses.fields(value)]
        return type(value), [leaves_of(one, found) for one in inner]
    if isinstance(value, dict):
        return type(value), [(key, leaves_of(one, found)) for key, one in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [leaves_of(one, found) for one in value]
    return type(value), repr(value)


def tensors_of(value: Any) -> list[torch.Tensor]:
    found: list[torch.Tensor] = []
    leaves_of(value, found)
    return found


def state_of(model: Any) -> list[torch.Tensor]:
    """Parameters, buffers and plain tensors of a model, ties included, in order."""
    if not isinstance(model, nn.Module):
        return []
    found: list[torch.Tensor] = []
    for _, module in sorted(model.named_modules(remove_duplicate=False)):
        for table in (module._parameters, module._buffers, vars(module)):
            for _, value in sorted(table.items()):
                if isinstance(value, torch.Tensor):
                    found.append(value)
    return found


def _memory(tensor: torch.Tensor) -> Any:
    if tensor.layout is not torch.strided or not tensor.numel() or tensor.device.type == "meta":
        return id(tensor)
    return tensor.untyped_storage().data_ptr()


def _first_of(keys: Sequence[Any]) -> list[int]:
    first: dict[Any, int] = {}
    return [first.setdefault(key, index) for index, key in enumerate(keys)]


def same_values(ours: torch.Tensor, theirs: torch.Tensor, exact: bool) -> None:
    """``exact``: to the bit, the sign of zeros included."""
    options = {"rtol": 0.0, "atol": 0.0} if exact else {}
    torch.testing.assert_close(ours, theirs, equal_nan=True, **options)
    if exact and ours.is_floating_point():
        numbers = ~theirs.isnan()
        assert torch.equal(ours.signbit() & numbers, theirs.signbit() & numbers), "sign of zero"


def same(ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], exact: bool = False) -> None:
    """Look, values, identity and sharing of two lists of tensors."""
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        seen, wanted = (
            (
                *(type(t), t.dtype, t.device, t.shape, t.stride()),
                *(t.requires_grad, t.is_leaf, t.is_inference()),
            )
            for t in (one, other)
        )
        assert seen == wanted, f"tensor {index}: expected {wanted}, seen {seen}"
        try:
            same_values(one, other, exact)
        except AssertionError as error:
            raise AssertionError(f"tensor {index}: {error}") from None
    for what, key in (("identity", id), ("shared memory", _memory)):
        seen_by, wanted_by = (_first_of([key(t) for t in one]) for one in (ours, theirs))
        assert seen_by == wanted_by, f"{what}: expected {wanted_by}, seen {seen_by}"


def _touch(tensor: torch.Tensor) -> str:
    """Write to a tensor; what eager says if it cannot be written."""
    try:
        with torch.no_grad():
            if tensor.dtype == torch.bool:
                tensor.logical_not_()
            else:
                tensor.add_(1)
    except RuntimeError as error:
        return str(error).split(".")[0]
    return ""


def writes_show_alike(
    ours: Sequence[torch.Tensor], theirs: Sequence[torch.Tensor], count: int, exact: bool
) -> None:
    """Write to each of the first ``count`` tensors, and see where it shows."""
    for index in range(count):
        said, wanted = _touch(ours[index]), _touch(theirs[index])
        assert said == wanted, f"writing to output {index}: expected {wanted!r}, seen {said!r}"
        try:
            for one, other in zip(ours, theirs, strict=True):
                same_values(one, other, exact)
        except AssertionError as error:
            raise AssertionError(f"after writing to output {index}: {error}") from None


# New values of the same kind.


def renewed(example: Any, seed: int) -> Any:
    """A deep copy with other values; memory that is shared stays shared."""
    copied = copy.deepcopy(example)
    done = set()
    generator = torch.Generator().manual_seed(seed)
    for tensor in tensors_of(copied):
        plain = tensor.layout is torch.strided and not (tensor.is_quantized or tensor.is_nested)
        if not seed or not plain or tensor.device.type != "cpu" or _memory(tensor) in done:
            continue
        done.add(_memory(tensor))
        with torch.no_grad(), torch.inference_mode(tensor.is_inference()):
            memory = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
            order = torch.randperm(memory.numel(), generator=generator)
            values = memory[order]
            if tensor.is_floating_point() or tensor.is_complex():
                values = values * (1 + seed / 4)
            elif memory.numel() == 1:
                values = ~values if tensor.dtype == torch.bool else values + seed
            memory.copy_(values)
    return copied


# A model and its arguments, against eager.


def traced(model: Any, how: str, args: Any, kwargs: Any) -> fx.GraphModule:
    if isinstance(model, fx.GraphModule):
        return model
    if how == "symbolic":
        return fx.symbolic_trace(model)
    if how == "leaf":
        root = nn.Sequential(model)
        return fx.GraphModule(root, _Leaves().trace(root))
    table = ltc.decompositions() if how == "decomposed" else None
    with torch.no_grad():
        return make_fx(model, decomposition_table=table)(*copy.deepcopy(args))


class _Leaves(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


class Pair:
    """A model captured, and the same model in eager."""

    def __init__(
        self,
        model: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None = None,
        *,
        how: str = "symbolic",
        exact: bool = False,
        mode: Callable[[], Any] = torch.no_grad,
        capture_mode: Callable[[], Any] | None = None,
        examples: Any = None,
        eager: Any = None,
        max_captures: int = 8,
    ) -> None:
        self.exact = exact
        self.mode = mode
        kwargs = kwargs or {}
        self.gm = traced(model, how, args, kwargs)
        self.eager = copy.deepcopy(self.gm) if eager is None else eager
        if capture_mode is None:
            # What runs python may ask for the grad mode, so it is captured in that of the calls.
            asks = any(node.op == "call_module" for node in self.gm.graph.nodes)
            capture_mode = mode if asks else contextlib.nullcontext
        given = (args, kwargs) if examples is None else examples
        before = copy.deepcopy(given) if examples is None else given
        state = copy.deepcopy(state_of(self.gm))
        random = torch.get_rng_state()
        graph = str(self.gm.graph)
        self.compiled: ltc.CompiledGraph
        options: dict[str, Any] = {"max_captures": max_captures}
        try:
            with capture_mode():
                self.compiled = ltc.extract_compiled_graph(self.gm, given[0], given[1], **options)
                self.strict = ltc.extract_compiled_graph(
                    self.gm, given[0], given[1], on_mismatch="error", **options
                )
        except LazyFxError as error:
            self._untouched(given, before, state, random)
            raise Refused(f"{type(error).__name__}: {error}") from error
        if examples is None:
            self._untouched(given, before, state, random)
        assert str(self.gm.graph) == graph

    def _untouched(self, given: Any, before: Any, state: Any, random: torch.Tensor) -> None:
        assert torch.equal(torch.get_rng_state(), random), "the random state moved"
        for now, then in (
            (tensors_of(given), tensors_of(before)),
            (state_of(self.gm), state),
        ):
            for one, other in zip(now, then, strict=True):
                if one is not other and type(one) in (torch.Tensor, nn.Parameter):
                    assert one.shape == other.shape
                    assert one.stride() == other.stride()
                    if one.layout is torch.strided and one.device.type == "cpu":
                        same_values(one, other, exact=not one.is_quantized)

    def both(
        self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, seed: int = 0
    ) -> tuple[Any, Any]:
        """Call both with equal arguments, compare all that shows; (ours, theirs)."""
        theirs_in = (args, kwargs or {})
        ours_in, before = copy.deepcopy(theirs_in), copy.deepcopy(theirs_in)
        state = copy.deepcopy(state_of(self.gm))
        torch.manual_seed(seed)
        random = torch.get_rng_state()
        with self.mode():
            try:
                got = self.compiled(*ours_in[0], **ours_in[1])
            except LazyFxError as error:
                self._untouched(ours_in, before, state, random)
                raise Refused(f"{type(error).__name__}: {error}") from error
            after = torch.get_rng_state()
            torch.manual_seed(seed)
            want = self.eager(*theirs_in[0], **theirs_in[1])
            assert torch.equal(after, torch.get_rng_state()), "the random state afterwards"
            ours_found: list[torch.Tensor] = []
            theirs_found: list[torch.Tensor] = []
            seen, wanted = leaves_of(got, ours_found), leaves_of(want, theirs_found)
            assert seen == wanted, f"structure: expected {wanted}, seen {seen}"
            count = len(ours_found)
            ours = [*ours_found, *tensors_of(ours_in), *state_of(self.gm)]
            model = self.eager if isinstance(self.eager, fx.GraphModule) else None
            theirs = [*theirs_found, *tensors_of(theirs_in), *state_of(model or self.gm)]
            if model is None:  # a plain function: only what it returns and writes
                split = len(ours) - len(state_of(self.gm))
                ours, theirs = ours[:split], theirs[:split]
            same(ours, theirs, self.exact)
            if model is None and state_of(self.gm):
                return got, want
            writes_show_alike(ours, theirs, count, self.exact)
        return got, want

    def refuses(
        self, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, reason: str = ""
    ) -> None:
        """The strict one raises a GuardError with this reason, and nothing is written."""
        given = (args, kwargs or {})
        before, state = copy.deepcopy(given), copy.deepcopy(state_of(self.gm))
        random = torch.get_rng_state()
        try:
            with self.mode():
                self.strict(*given[0], **given[1])
        except ltc.GuardError as error:
            said = str(error)
        else:
            said = "a result"
        assert re.search(reason, said), f"expected a GuardError ({reason}), seen {said}"
        self._untouched(given, before, state, random)


def agree(
    model: Any,
    *args: Any,
    kwargs: dict[str, Any] | None = None,
    others: Sequence[tuple[Any, ...]] = (),
    between: Callable[[Any], None] | None = None,
    calls: int = 3,
    captures: int | None = None,
    **options: Any,
) -> None:
    """Three calls with new values, calls of other kinds, and the first kind again, against eager.

    ``others``: for each other kind ``(reason, args)`` or ``(reason, args, kwargs)``.
    ``between`` changes the model between calls, ours and eager's.
    """
    model = model() if isinstance(model, type) else model
    pair = Pair(copy.deepcopy(model), args, kwargs, **options)
    for seed in range(calls):
        new_args, new_kwargs = renewed((args, kwargs or {}), seed)
        pair.both(new_args, new_kwargs, seed)
        if between is not None:
            for one in (pair.gm, pair.eager):
                torch.manual_seed(seed)
                between(one)
    for reason, *given in others:
        pair.refuses(*copy.deepcopy(given), reason=reason)
        for seed in range(2):
            pair.both(*renewed(given, seed), seed=seed)
    if others:
        pair.both(*renewed((args, kwargs or {}), 4), seed=4)
    if between is None:
        expected = 1 + len(others) if captures is None else captures
        seen = pair.compiled.captures
        assert seen == expected, f"captures: expected {expected}, seen {seen}"


def case(model: Any, *args: Any, refused: str | None = None, **options: Any) -> Case:
    """A case of :func:`agree`; the model may be a module class, which is then instantiated."""

    def run() -> None:
        torch.manual_seed(0)
        agree(model, *args, **options)

    return Case(run=run, refused=refused)


def add(table: dict[str, Case], name: str, refused: str | None = None) -> Callable[..., Any]:
    """Decorator: a case that is written out."""

    def keep(run: Callable[[], None]) -> Callable[[], None]:
        assert name not in table, name
        table[name] = Case(run=run, refused=refused)
        return run

    return keep


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """What the block raises on purpose is a refusal."""
    try:
        yield
    except LazyFxError as error:
        raise Refused(f"{type(error).__name__}: {error}") from error


# The table, and the processes.


def load(path: Path) -> dict[str, Case]:
    """The cases of a file, named after it."""
    name = f"ltc_cases_{path.stem}"
    module: Any = sys.modules.get(name)
    if module is None:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return {f"{path.stem}: {one}": found for one, found in module.CASES.items()}


def load_all() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for path in sorted(FOLDER.glob("[!_]*.py")):
        found.update(load(path))
    return found


def outcome(one: Case) -> dict[str, str]:
    """Run a case here: ``agrees``, ``refused`` or ``wrong``, and why."""
    try:
        one.run()
    except Refused as error:
        reason = str(error)
        if one.refused is None:
            return {"outcome": "wrong", "why": f"refused, and it is not listed: {reason}"}
        if not re.search(one.refused, reason, re.DOTALL):
            return {"outcome": "wrong", "why": f"expected {one.refused!r}, refused: {reason}"}
        return {"outcome": "refused", "why": reason}
    except BaseException:
        return {"outcome": "wrong", "why": traceback.format_exc()}
    if one.refused is not None:
        return {"outcome": "wrong", "why": "it agrees with eager, but is listed as refused"}
    return {"outcome": "agrees", "why": ""}


def alone(one: Case, timeout: float = TIMEOUT) -> dict[str, str]:
    """Run a case in a fork: its outcome, or ``crashed`` or ``hung``."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reading)
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*torch.jit.*")
        # AOTAutograd looks at the gradient of each of its inputs.
        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not")
        torch.set_num_threads(1)
        logging.getLogger("lazyfx_ltc").setLevel(logging.ERROR)
        with os.fdopen(writing, "w") as pipe:
            json.dump(outcome(one), pipe)
        os._exit(0)
    os.close(writing)
    said = b""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        while True:
            if not select.select([pipe], [], [], timeout)[0]:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                return {"outcome": "hung", "why": f"no answer within {timeout} s"}
            chunk = pipe.read(65536)
            if not chunk:
                break
            said += chunk
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status < 0:
        return {"outcome": "crashed", "why": f"ended by {signal.Signals(-status).name}"}
    if status or not said:
        return {"outcome": "crashed", "why": f"exit code {status}, without an answer"}
    answer: dict[str, str] = json.loads(said)
    return answer


class Parent:
    """The process that forks for each case; what it forks has only one thread."""

    def __init__(self) -> None:
        self._process = self._start()

    @staticmethod
    def _start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
        )

    def run(self, name: str, timeout: float = TIMEOUT) -> dict[str, str]:
        """The outcome of a case of the tables."""
        if self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps((name, timeout)), file=self._process.stdin, flush=True)
        said = self._process.stdout.readline()
        if not said:
            return {"outcome": "crashed", "why": "and the process that started it, too"}
        answer: dict[str, str] = json.loads(said)
        return answer

    def close(self) -> None:
        self._process.communicate()


def _warm() -> None:
    """Import now what each of the children would import: it takes a second."""
    make_fx(lambda a: a + 1, tracing_mode="fake")(torch.ones(1))
    for name in ("torch._dynamo", "torch._functorch.aot_autograd", "torch._inductor.decomposition"):
        importlib.import_module(name)


def _serve() -> None:
    _warm()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what cases print is not an answer
    module = sys.modules["_harness"] = sys.modules["__main__"]
    assert module is not None
    found = load_all() | load(FOLDER / "_defective.py")
    gc.freeze()  # a collection in a child would copy all that it shares with this process
    for line in sys.stdin:
        name, timeout = json.loads(line)
        print(json.dumps(alone(found[name], timeout)), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
