"""Faults that can be looked for: what a compiler does to a graph that it should not.

Each is a predicate for ``minify``, and can be written into a program that looks for the same.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazyfx_compilers import _torch_standalone
from lazyfx_compilers._repro import FirstRun, importable_name, place_of, run_fresh, write_repro
from lazyfx_compilers.errors import ReproError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import fx

    from lazyfx_compilers._types import FxCompiler


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """A predicate: ``fault(gm, inputs)`` tells whether a compiler does it to this graph.

    Changes neither the graph nor the inputs. Raises where it cannot be told: the graph itself
    fails, or something else than what is looked for does.

    Attributes:
        kind: ``"raises"``, ``"differs"`` or ``"crashes"``.
        compiler: What compiles, or its name: ``"module:name"``, or a backend of ``torch.compile``.
        match: What the text of the exception matches (``re.search``).
        rtol: Relative tolerance; ``None`` for the dtype's (``torch.testing.assert_close``).
        atol: Absolute tolerance, likewise.
    """

    kind: str
    compiler: FxCompiler | str
    match: str | None = None
    rtol: float | None = None
    atol: float | None = None

    def __call__(self, gm: fx.GraphModule, inputs: Sequence[Any], /) -> bool:
        """Whether the compiler does it to this graph with these inputs."""
        if self.kind == "crashes":
            return _dies(self, gm, inputs)
        named = self.compiler
        compiler = _torch_standalone.find_compiler(named) if isinstance(named, str) else named
        if self.kind == "raises":
            return _torch_standalone.find_error(compiler, gm, inputs, self.match) is not None
        difference = _torch_standalone.find_difference(compiler, gm, inputs, self.rtol, self.atol)
        return difference is not None


def raises(compiler: FxCompiler | str, *, match: str | None = None) -> Fault:
    """Compiling the graph, or running what was compiled, raises, while the graph itself runs.

    Args:
        compiler: A function, or its name ``"module:name"``, or a backend of ``torch.compile``. A
            program can only show what it can import by name.
        match: A pattern (``re.search``) for ``"TypeName: message"``. Without it any exception
            counts, so that a search may end at another fault than it began with.
    """
    return Fault(kind="raises", compiler=compiler, match=match)


def differs(
    compiler: FxCompiler | str, *, rtol: float | None = None, atol: float | None = None
) -> Fault:
    """The compiled graph gives other results than the graph, or leaves its inputs otherwise.

    Both start from the same inputs and the same random state; NaNs are equal.

    Args:
        compiler: See :func:`raises`.
        rtol: Relative tolerance; ``None`` for the dtype's.
        atol: Absolute tolerance, likewise.
    """
    return Fault(kind="differs", compiler=compiler, rtol=rtol, atol=atol)


def crashes(compiler: FxCompiler | str) -> Fault:
    """The process ends while the graph is compiled, or what was compiled runs.

    Each question costs a process of its own, that is some seconds.

    Args:
        compiler: See :func:`raises`; must have a name that can be imported.

    Raises:
        ReproError: It has none.
    """
    fault = Fault(kind="crashes", compiler=compiler)
    if settings(fault)["compiler"] is None:
        raise ReproError(
            f"crashes({compiler!r}): expected a function at the top level of an importable module, "
            "since another process has to import it; move it there"
        )
    return fault


def diagnose(compiler: FxCompiler | str, gm: fx.GraphModule, inputs: Sequence[Any]) -> Fault | None:
    """What ``compiler`` does to this graph that it should not; ``None`` if nothing was found.

    Looks in a process of its own, so that a compiler that ends it does no harm here.

    Args:
        compiler: See :func:`crashes`.
        gm: Read only.
        inputs: Real; read only.

    Raises:
        ReproError: It cannot be told: no program can be made, or it does not run; says why.
    """
    whole = settings(Fault(kind="any", compiler=compiler))
    if whole["compiler"] is None:
        raise ReproError(
            f"diagnose({compiler!r}): expected a function at the top level of an importable "
            "module, or its name 'module:name'; move it there"
        )
    first = _look(whole, gm, inputs, "diagnose")
    found = re.search(r"^the fault is there: (\w+): (.*)", first.output, re.MULTILINE)
    if found is not None and found[1] == "raises":
        return raises(compiler, match=_pattern(found[2]))
    if found is not None:
        return differs(compiler)
    if first.status == _torch_standalone.GONE:
        return None
    if first.status in (None, _torch_standalone.CANNOT_TELL, _torch_standalone.THERE):
        raise ReproError(f"diagnose: the program {first}; its output ends:\n{first.output}")
    return Fault(kind="crashes", compiler=compiler)


def settings(predicate: Callable[..., Any]) -> dict[str, Any]:
    """What a program looks for; if it cannot, ``"compiler"`` is ``None`` and ``"why"`` says why."""
    fault = predicate if isinstance(predicate, Fault) else None
    function: Any = fault.compiler if fault else predicate
    name = function if isinstance(function, str) else importable_name(function)
    found: dict[str, Any] = {
        "kind": fault.kind if fault else "predicate",
        "compiler": name,
        "places": place_of(name or ""),
    }
    if name is None:
        found["why"] = (
            f"{getattr(function, '__qualname__', function)!s} has no name that another process can "
            "import; move it to the top level of a module"
        )
    for key in ("match", "rtol", "atol"):
        value = getattr(fault, key, None)
        if value is not None:
            found[key] = value
    return found


def _dies(fault: Fault, gm: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    first = _look(settings(fault), gm, inputs, "crashes", "--child")
    finished = re.search("^finished: (.*)", first.output, re.MULTILINE)
    if first.status is None or (finished is not None and finished[1] == "cannot tell"):
        raise ReproError(f"crashes: the program {first}; its output ends:\n{first.output}")
    return finished is None


def _look(
    fault: dict[str, Any], gm: fx.GraphModule, inputs: Sequence[Any], writer: str, *arguments: str
) -> FirstRun:
    script = write_repro(gm, inputs, None, fault, writer=writer, data=True)
    try:
        return run_fresh(script, *arguments)
    finally:
        shutil.rmtree(script.parent, ignore_errors=True)


def _pattern(text: str) -> str:
    """Matches an error like this one: numbers and names in it may be others."""
    parts = re.split(r"(\d+|'[^']*')", text[:120])
    varying = [".*?" if i % 2 else re.escape(part) for i, part in enumerate(parts)]
    return "^" + "".join(varying).removesuffix(".*?")
