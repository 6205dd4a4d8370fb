"""Writes ``docs/seams.md``: every private name of torch that lazyfx uses, from the sources.

``python docs/seams.py`` reads the seams (``packages/*/src/**/_torch_*.py``) and imports nothing. A
test says when the page is not what this gives.

**Which names there are** is read off the code: imports, dotted attributes, and texts given to the
lookups below (``import_module("torch._guards")``). ``x._cdata`` says nothing about what ``x`` is,
and some names stand in tables of texts; of those the docstring of the seam tells the owner.

**What a name is used for** is said by the table in the docstring of the seam, whose first column
holds names in double backquotes. A row is about a name if its parts stand in the name one after
another, so that ``graph_module._copy_attr`` will do for ``torch.fx.graph_module._copy_attr`` and
``torch.utils._pytree`` for all that is in it; ``*`` stands for any part of one. Of several rows the
one counts that reaches farthest into the name, of those the one without a star. A name that some
release of torch does not have says so: ``(after torch 2.6)`` is not in 2.6, and is in those that we
test of the later ones; ``(before torch 2.9)`` is the other way around.

**Private attributes** of objects that torch hands out (``node._args``) are used where the object
is, not only in seams. ``ATTRIBUTES`` has them; a test looks whether the code uses others.

**Which releases have it** is in ``docs/compat.json``, which ``tests/compat/record.py`` writes.
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import sys
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "seams.md"
RECORD = ROOT / "docs" / "compat.json"

ROOTS = ("torch", "functorch", "sympy")
# Modules without an underscore that torch's documentation does not describe.
UNDOCUMENTED = (
    *("functorch", "torch.fx.experimental", "torch.fx.graph", "torch.fx.graph_module"),
    *("torch.fx.node", "torch.fx.passes", "torch.fx.traceback", "torch.utils.flop_counter"),
)
# How the docstrings call the owners of attributes.
OWNERS = {
    "Add": "sympy.Add",
    "And": "sympy.And",
    "CodeGen": "torch.fx.graph.CodeGen",
    "FakeTensor": "torch._subclasses.fake_tensor.FakeTensor",
    "Float": "sympy.Float",
    "Graph": "torch.fx.Graph",
    "GraphModule": "torch.fx.GraphModule",
    "HigherOrderOperator": "torch._ops.HigherOrderOperator",
    "Module": "torch.nn.Module",
    "NodeSource": "torch.fx.traceback.NodeSource",
    "OpOverload": "torch._ops.OpOverload",
    "OpOverloadPacket": "torch._ops.OpOverloadPacket",
    "ShapeEnv": "torch.fx.experimental.symbolic_shapes.ShapeEnv",
    "SymInt": "torch.SymInt",
    "SymNode": "torch.fx.experimental.sym_node.SymNode",
    "Symbol": "sympy.Symbol",
    "Tensor": "torch.Tensor",
    "TreeSpec": "torch.utils._pytree.TreeSpec",
    "UntypedStorage": "torch.UntypedStorage",
    "_Namespace": "torch.fx.graph._Namespace",
    "function": "types.FunctionType",
}
# Private attributes that are used outside of seams, by what they are attributes of.
ATTRIBUTES = {
    "torch.nn.Module": (
        *("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_apply"),
        *("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"),
        *("_state_dict_hooks", "_state_dict_pre_hooks", "_load_from_state_dict"),
        *("_load_state_dict_pre_hooks", "_load_state_dict_post_hooks"),
    ),
    "torch.fx.GraphModule": ("_graph", "_code", "_lineno_map", "_prologue_start"),
    "torch.fx.Graph": ("_codegen", "_tracer_cls", "_tracer_extras"),
    "torch.fx.Node": ("_args", "_kwargs", "_repr_fn", "_pretty_print_target"),
    "torch.Tensor": ("_version",),
    "torch.UntypedStorage": ("_cdata",),
    "torch.ops.aten.sin.default": ("_schema", "_name"),
    "torch.compile(function)": ("_torchdynamo_orig_callable",),
    "AOTAutograd's functions": ("_boxed_call",),
}
# Functions that are given a name as text, and the name they lead to.
LOOKUPS = {
    "import_module": "{0}",
    "_module": "{0}",
    "modules.get": "{0}",
    "attribute": "{0}.{1}",
    "_is_of": "{0}.{1}",
    "_private": "torch._C.{0}",
    "_functionalization": "torch.{0}",
}
# Python's own names that begin with an underscore.
PYTHONS = frozenset({"_fields", "_replace", "_getframe"})
# What is done with a private name, not a part of it.
DONE = frozenset({"get", "items", "patch", "update", "values"})

_TEXT = re.compile(r"``([^`]+)``")
_SPAN = re.compile(r"\((after|before) torch (\d+\.\d+)\)")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Use:
    """A private name, the seam that uses it, and what for."""

    name: str
    seam: str
    purpose: str

    def expected_in(self, version: str) -> bool | None:
        """Whether the seam says that this release of torch has the name; None if it cannot tell."""
        span = _SPAN.search(self.purpose)
        if span is None:
            return True
        here, limit = release(version), release(span[2])
        tested = [release(one) for one in torches()]
        if span[1] == "after":
            first = min(one for one in tested if one > limit)
            return False if here <= limit else True if here >= first else None
        last = max(one for one in tested if one < limit)
        return False if here >= limit else True if here <= last else None


class UndocumentedNameError(Exception):
    """The table of a seam does not agree with its code; says which name, and where."""


def uses() -> list[Use]:
    """Every private name that a seam uses, by name.

    Raises:
        UndocumentedNameError: A table lacks a name that the code uses, or has one that it does not.
    """
    found = [use for seam in seams() for use in uses_of(seam)]
    return sorted(found, key=lambda use: (use.name.lower(), use.name, use.seam))


def attributes() -> dict[str, dict[str, list[str]]]:
    """``ATTRIBUTES`` with the modules, other than seams, in which each is used."""
    said = {_module(path): set(_said(path)) for path in others()}
    return {
        owner: {name: [module for module in said if name in said[module]] for name in names}
        for owner, names in ATTRIBUTES.items()
    }


def others() -> list[Path]:
    """The modules that are no seams."""
    return sorted(set(ROOT.glob("packages/*/src/**/*.py")) - set(seams()))


def _said(path: Path) -> Iterator[str]:
    """Names of attributes, looked up of what is not ``self`` or given as text."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) not in ("self", "cls"):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts[3:])


def seams() -> list[Path]:
    """The modules that may use private names of torch."""
    return sorted(ROOT.glob("packages/*/src/**/_torch_*.py"))


def uses_of(seam: Path) -> Iterator[Use]:
    """The private names that one seam uses."""
    where = _module(seam)
    tree = ast.parse(seam.read_text())
    rows = list(_rows(ast.get_docstring(tree) or ""))
    reader = _Reader()
    reader.visit(tree)
    said = [full for row, _ in rows if (full := _full(row)) is not None]
    names = [name for name in reader.names() if not _is_only_on_the_way(name, said)]
    purposes: dict[str, str] = {}
    texts, idle = dict(rows), {row for row, _ in rows}
    for name in names:
        about = [(reach, "*" not in row, row) for row, _ in rows if (reach := _reach(row, name))]
        if not about:
            raise UndocumentedNameError(
                f"{where} uses {name}; say in the table of its docstring what for"
            )
        purposes[name] = texts[max(about)[2]]
        idle -= {row for _, _, row in about}
    owned = {full.rpartition(".")[2] for full in said}
    for attribute in sorted(reader.attributes - owned):
        if not any(name.endswith(f".{attribute}") for name in names):
            raise UndocumentedNameError(
                f"{where} uses the attribute {attribute} of something; say in the table of its "
                f"docstring of what (``Owner.{attribute}``), and what for"
            )
    for row, text in rows:
        if row not in idle:
            continue
        full = _full(row)
        if full is None or full.rpartition(".")[2] not in reader.words:
            raise UndocumentedNameError(
                f"{where}: its docstring says what {row} is used for, but it does not occur"
            )
        purposes[full] = text
    for name in sorted(purposes):
        yield Use(name=name, seam=where, purpose=purposes[name])


def _rows(docstring: str) -> Iterator[tuple[str, str]]:
    """Names and purposes of the table whose heading is "private name"."""
    _, heading, table = docstring.partition("\nprivate name ")
    if not heading:
        return
    column = table.index("used for") + len("private name ")
    rows: list[tuple[str, str]] = []
    for line in table.splitlines()[2:]:
        if line.startswith("=="):
            break
        names, purpose = line[:column].strip(), line[column:].strip()
        if names:
            rows.append((names, purpose))
        else:  # the purpose goes on
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} {purpose}")
    before = ""
    for names, purpose in rows:
        if purpose == "the same":
            purpose = before
        elif purpose.startswith("the same"):
            purpose = _SPAN.sub("", before).rstrip() + purpose.removeprefix("the same")
        before = purpose
        for name in _TEXT.findall(names):
            yield name, purpose


def _full(row: str) -> str | None:
    """The whole name that a row says by itself."""
    first, _, rest = row.partition(".")
    if "*" in row:
        return None
    if first in ROOTS:
        return row
    return f"{OWNERS[first]}.{rest}" if first in OWNERS and rest else None


def _reach(row: str, name: str) -> int:
    """How many parts of a name end with what a row says; 0 if it is not about the name."""
    parts, said = name.split("."), (_full(row) or row).split(".")
    ends = range(len(said), len(parts) + 1)
    return max(
        (end for end in ends if all(map(fnmatchcase, parts[end - len(said) :], said))), default=0
    )


def release(version: str) -> tuple[int, ...]:
    """Major and minor number of a version of torch."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


class _Reader(ast.NodeVisitor):
    """Follows names to what they stand for: aliases of imports, results of lookups, texts."""

    def __init__(self) -> None:
        self._found: set[str] = set()
        self._scope: dict[str, str] = {}
        self._texts: dict[str, str] = {}
        self.attributes: set[str] = set()
        """Private attributes of what is not known."""
        self.words: set[str] = set()
        """Everything that is said in code: identifiers, and words of texts."""

    def names(self) -> list[str]:
        """Private names, without the modules that others are in."""
        private = {name for name in map(_without_ends, self._found) if _is_private(name)}
        return sorted(name for name in private if not _is_only_on_the_way(name, private))

    # --- what a name stands for ----------------------------------------------------------------

    def _text(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        return self._texts.get(node.id) if isinstance(node, ast.Name) else None

    def _resolve(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return self._scope.get(node.id)
        if isinstance(node, ast.Attribute):
            owner = self._resolve(node.value)
            return owner and f"{owner}.{node.attr}"
        if not isinstance(node, ast.Call):
            return None
        called = ast.unparse(node.func)
        if called in ("getattr", "hasattr", "setattr"):
            owner, name = self._resolve(node.args[0]), self._text(node.args[1])
            return owner and name and f"{owner}.{name}"
        for lookup, form in LOOKUPS.items():
            if called == lookup or called.endswith(f".{lookup}"):
                texts = [self._text(one) for one in node.args[: form.count("{")]]
                name = None if None in texts else form.format(*texts)
                return name if name and name.partition(".")[0] in ROOTS else None
        return None

    # --- statements ----------------------------------------------------------------------------

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            if alias.name.partition(".")[0] in ROOTS:
                self._found.add(alias.name)
                first = alias.name.partition(".")[0]
                self._scope[alias.asname or first] = alias.name if alias.asname else first

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            name = f"{node.module}.{alias.name}"
            if node.level == 0 and name.partition(".")[0] in ROOTS:
                self._found.add(name)
                self._scope[alias.asname or alias.name] = name
            else:
                self._scope[alias.asname or alias.name] = "ours"

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":  # types are no use
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer, self._scope = self._scope, dict(self._scope)
        given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        for argument in given:
            self._scope.pop(argument.arg, None)
            if argument.arg in ("self", "cls"):
                self._scope[argument.arg] = "ours"
        self._visit_all(
            [*node.decorator_list, *node.args.defaults, *filter(None, node.args.kw_defaults)]
        )
        self._visit_all(node.body)
        self._scope = outer

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._assign(target, node.value)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)
            self._assign(node.target, node.value)

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.words.add(target.id)
            name, text = self._resolve(value), self._text(value)
            if name is None:
                self._scope.pop(target.id, None)
            else:
                self._scope[target.id] = name
            if text is not None:
                self._texts[target.id] = text
        else:
            self.visit(target)

    # --- expressions ---------------------------------------------------------------------------

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.words.add(node.attr)
        name = self._resolve(node)
        if name is not None:
            self._found.add(name)
            self._visit_calls(node.value)
            return
        self._note_attribute(node.attr)
        self.visit(node.value)

    def _note_attribute(self, name: str) -> None:
        if name[:1] == "_" and name[:2] != "__" and name not in PYTHONS:
            self.attributes.add(name)

    def _visit_calls(self, node: ast.expr) -> None:
        """What a name is looked up with, without the parts of the name itself."""
        while isinstance(node, ast.Attribute):
            self.words.add(node.attr)
            node = node.value
        if isinstance(node, ast.Call):
            self.visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        name = self._resolve(node)
        if name is not None:
            self._found.add(name)
        elif ast.unparse(node.func) in ("getattr", "hasattr"):
            self._note_attribute(self._text(node.args[1]) or "")
        self.generic_visit(node)

    def visit_Name(self, node: ast.Name) -> None:
        self.words.add(node.id)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.words.update(re.findall(r"\w+", node.value))

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # docstrings say it, too
            self.visit(node.value)

    def _visit_all(self, nodes: Iterable[ast.AST]) -> None:
        for node in nodes:
            self.visit(node)


def _is_only_on_the_way(name: str, others: Iterable[str]) -> bool:
    """Whether a name is a module that others are in; a class counts although its methods do."""
    return name.rpartition(".")[2].strip("_").islower() and any(
        other.startswith(f"{name}.") for other in others
    )


def _without_ends(name: str) -> str:
    while (last := name.rpartition(".")[2]) in DONE or last[:2] == "__":
        name = name.rpartition(".")[0]
    return name


def _is_private(name: str) -> bool:
    first, *parts = name.split(".")
    return (
        name != "torch._C"
        and first in ROOTS
        and (
            any(part[0] == "_" and part[:2] != "__" for part in parts)
            or any(name.startswith(f"{module}.") or name == module for module in UNDOCUMENTED)
        )
    )


# --- the page ----------------------------------------------------------------------------------


def torches() -> list[str]:
    """The releases of torch that ``nox -s matrix`` runs the tests on."""
    for node in ast.parse((ROOT / "noxfile.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "TORCHES":
            return sorted(ast.literal_eval(node.value), key=release)
    raise LookupError("noxfile.py has no list TORCHES")


def record() -> dict[str, Any]:
    """What was found in each release of torch; oldest first."""
    found = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    return dict(sorted(found.items(), key=lambda item: release(item[0])))


def page() -> str:
    """The text of ``docs/seams.md``."""
    recorded, asked = record(), torches()
    lines = [
        "# Seams",
        "",
        "<!-- Written by docs/seams.py; do not edit. -->",
        "",
        "lazyfx is made of private names of torch, and torch may move any of them. So they are",
        "imported in modules called `_torch_*.py` only, and here is every one, with the first and",
        "the last release of torch in which it was looked for and found. A test looks for each in",
        "the torch that is installed. `python docs/seams.py` writes this page from the sources;",
        "another test says when it is not what they give. Attributes of objects, which are used",
        "where the object is, are [at the end](#attributes).",
        "",
        "| torch | looked at | Python |",
        "|---|---|---|",
    ]
    for version in sorted({*recorded, *asked}, key=release):
        entry = recorded.get(version)
        looked = f"{entry['date']} | {entry['python']}" if entry else "not yet |"
        lines.append(f"| {version} | {looked} |")
    lines += ["", "| private name | used in | for | torch, first and last |", "|---|---|---|---|"]
    together: dict[str, list[Use]] = {}
    for use in uses():
        together.setdefault(use.name, []).append(use)
    for name, group in together.items():
        modules = ", ".join(f"`{use.seam}`" for use in group)
        purposes = "; ".join(dict.fromkeys(use.purpose.replace("``", "`") for use in group))
        lines.append(f"| `{name}` | {modules} | {purposes} | {_span(name, recorded)} |")
    lines += ["", "## Attributes", "", "| of | attribute | used in |", "|---|---|---|"]
    for owner, names in attributes().items():
        for name, modules in names.items():
            listed = ", ".join(f"`{module}`" for module in modules)
            lines.append(f"| `{owner}` | `{name}` | {listed} |")
    return "\n".join(lines) + "\n"


def _span(name: str, recorded: dict[str, Any]) -> str:
    having = [version for version, entry in recorded.items() if entry["names"].get(name)]
    if not having:
        return "not found yet"
    return having[0] if len(having) == 1 else f"{having[0]} to {having[-1]}"


if __name__ == "__main__":
    PAGE.write_text(page())
    sys.stdout.write(f"{PAGE.relative_to(ROOT)}: {len({use.name for use in uses()})} names\n")
