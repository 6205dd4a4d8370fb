"""A shape environment as JSON: what is known about the symbols in the sizes of fake tensors.

Stored are the settings, and of the symbols everything that decides what a comparison of two sizes
comes to or what a new symbol will be called: hints, ranges, replacements, divisibility, guards,
runtime asserts, duck shaping, the order of unbacked symbols, the counters. Not stored are caches,
stacks, and what translation validation keeps. Empty entries are left out.

Names of sources end up in Python that torch generates for guards and *evaluates*. Only names made
of variables, attributes, literal items and the four size methods come back as they were; another is
replaced by the name of its symbol, which makes such code fail instead of meaning something else.

A field that the reading torch does not know is left out (2.6 has no unbacked inputs, for one); an
entry that no torch writes is an error.

====================================================  ========================================
private name                                          used for
====================================================  ========================================
``symbolic_shapes.ShapeEnv``                          and its attributes: see the tables below
``ShapeEnv._update_version_counter``                  to start its caches anew
``ShapeEnv._replacements_version_counter``            the same (after torch 2.11)
``ShapeEnv._init``                                    its settings
``symbolic_shapes.RuntimeAssert``                     entries of its attributes
``symbolic_shapes.ValueRangesSLoc``                   the same
``torch._guards.ShapeGuard``, ``torch._guards.SLoc``  the same
``torch.utils._traceback.CapturedTraceback``          the same: where they came from
``torch._dynamo.source``                              names of sources
``torch.utils._sympy.value_ranges``                   ranges
====================================================  ========================================
"""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
from typing import TYPE_CHECKING, Any

from ._torch_sympy import Unstorable, int_from_json, int_to_json, load_sympy
from .errors import GraphFormatError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from ._expressions import Expressions

# entry, how keys and values are written, the attribute by its newest name first
_MAPS = (
    ("hints", "symbol", "number", ("backed_var_to_val", "var_to_val")),
    (
        *("unbacked_hints", "symbol", "number"),
        ("real_tensor_prop_unbacked_vals", "unbacked_var_to_val"),
    ),
    ("oblivious_hints", "symbol", "number", ("oblivious_var_to_val",)),
    ("hint_overrides", "symbol", "int", ("var_to_hint_override",)),
    ("replacements", "symbol", "expression", ("replacements",)),
    ("renamings", "symbol", "symbol", ("unbacked_renamings",)),
    ("order", "symbol", "int", ("unbacked_alloc_order",)),
    ("axioms", "boolean", "boolean", ("axioms",)),
    ("duck", "plain", "expression", ("val_to_var",)),
    ("shape_ids", "text", "expression", ("_shape_id_to_unbacked_symbol",)),
    ("source_symbols", "source", "expression", ("source_to_var",)),
)
# entry, how items are written, the attribute
_SETS = (
    ("divisible", "expression", "divisible"),
    ("size_like", "symbol", "size_like"),
    ("unbacked_inputs", "symbol", "unbacked_inputs"),
)
_LISTS = (
    ("pending", "symbol", "pending_fresh_unbacked_symbols"),
    ("ignorable", "symbol", "ignorable_fresh_unbacked_symbols"),
)
_FLAGS = ("frozen", "runtime_asserts_frozen")
_COUNTERS = (("u", "unbacked_symint_counter"), ("zuf", "unbacked_symfloat_counter"))
_OTHER = ("settings", "ranges", "sources", "exclusions", "asserts", "guards", "counters")
_SETTINGS = frozenset(
    {
        *("allow_scalar_outputs", "allow_dynamic_output_shape_ops", "assume_static_by_default"),
        *("specialize_zero_one", "duck_shape", "prefer_deferred_runtime_asserts_over_guards"),
        *("allow_complex_guards_as_runtime_asserts", "trace_asserts"),
    }
)
_SOURCE = re.compile(
    r"""[A-Za-z_]\w*(?:\.(?:size|stride|storage_offset|item)\(\)|\.[A-Za-z_]\w*"""
    r"""|\[-?\d+\]|\['[^'\\\n]*'\]|\["[^"\\\n]*"\])*\Z""",
    re.ASCII,
)
_BACKED_NAME = re.compile(r"(?:s|zf)(\d{1,9})\Z", re.ASCII)
_MAX_COUNTER = 1 << 31


def write_shape_env(env: Any, table: Expressions) -> dict[str, Any]:
    """The JSON of ``env``; its expressions are appended to ``table``.

    Raises:
        Unstorable: It holds an expression that is not stored.
    """
    code = _Writer(table)
    data: dict[str, Any] = {"settings": _settings(env)}
    for entry, key, value, names in _MAPS:
        found = _attribute(env, names, {})
        pairs = [
            [code.write(key, k), code.write(value, v)]
            for k, v in found.items()
            if _is_writable(key, k)
        ]
        data[entry] = pairs
    for entry, kind, name in _SETS:
        ordered = sorted(getattr(env, name, ()), key=str)
        data[entry] = [code.write(kind, item) for item in ordered]
    for entry, kind, name in _LISTS:
        data[entry] = [code.write(kind, item) for item in getattr(env, name, ())]
    data["ranges"] = [
        [code.write("symbol", s), code.write("bound", r.lower), code.write("bound", r.upper)]
        for s, r in env.var_to_range.items()
    ]
    data["sources"] = [
        [code.write("symbol", s), [[_name(source), source.is_ephemeral()] for source in sources]]
        for s, sources in env.var_to_sources.items()
    ]
    data["exclusions"] = [
        [code.write("symbol", s), code.write("int", value)]
        for s, value in getattr(env, "exclusion_constraints", ())
    ]
    data["asserts"] = [
        [
            None if symbol is None else code.write("symbol", symbol),
            [[code.write("boolean", one.expr), str(one.msg)] for one in asserts],
        ]
        for symbol, asserts in env.deferred_runtime_asserts.items()
    ]
    data["guards"] = [
        [code.write("boolean", guard.expr), bool(getattr(guard, "size_oblivious", False))]
        for guard in env.guards
    ]
    data["counters"] = [
        count if type(count) is int else 0
        for count in (getattr(env, name, 0) for _, name in _COUNTERS)
    ]
    for name in _FLAGS:
        data[name] = bool(getattr(env, name))
    try:
        table.check_replacements(env.replacements)
    except GraphFormatError as error:
        raise Unstorable(f"its shape environment cannot be stored: {error}") from error
    return {entry: value for entry, value in data.items() if value}


def write_settings(env: Any) -> dict[str, Any]:
    """The JSON of an environment with the settings of ``env`` that knows nothing yet."""
    return {"settings": _settings(env)}


def read_shape_env(data: Any, table: Expressions) -> Any:
    """A new ``ShapeEnv`` that knows what the stored one knew.

    Args:
        data: What :func:`write_shape_env` wrote.
        table: The expressions it refers to.

    Raises:
        GraphFormatError: It wrote something else.
    """
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    if type(data) is not dict:
        raise GraphFormatError(f"a shape environment is an object, found {data!r:.80}")
    known = {*_OTHER, *_FLAGS, *(row[0] for row in (*_MAPS, *_SETS, *_LISTS))}
    if not known.issuperset(data):
        raise GraphFormatError(f"a shape environment has no {sorted(set(data) - known)[:5]!r:.200}")
    code = _Reader(table)
    make: Any = ShapeEnv
    env: Any = make(**_read_settings(data.get("settings", {})))
    for entry, key, value, names in _MAPS:
        pairs = [code.row(pair, entry, 2) for pair in code.rows(data, entry)]
        found = {code.read(key, k, entry): code.read(value, v, entry) for k, v in pairs}
        _attribute(env, names, {}).update(found)
        if entry == "replacements":
            table.check_replacements(found)
    for entry, kind, name in _SETS:
        items = [code.read(kind, item, entry) for item in code.rows(data, entry)]
        getattr(env, name, set()).update(items)
    for entry, kind, name in _LISTS:
        items = [code.read(kind, item, entry) for item in code.rows(data, entry)]
        getattr(env, name, []).extend(items)
    for row in code.rows(data, "exclusions"):
        symbol, excluded = code.row(row, "exclusions", 2)
        pair = (code.read("symbol", symbol, "exclusions"), code.read("int", excluded, "exclusions"))
        getattr(env, "exclusion_constraints", []).append(pair)
    _restore_symbols(env, code, data)
    _restore_conditions(env, code, data)
    _restore_counters(env, code, data)
    for name in _FLAGS:
        setattr(env, name, _bool(data.get(name, False), name))
    env._update_version_counter()
    if hasattr(env, "_replacements_version_counter"):
        env._replacements_version_counter = len(env.replacements)
    return env


@contextlib.contextmanager
def without_replacements(env: Any) -> Iterator[None]:
    """Let symbols of ``env`` stand for themselves in this block, and add no guards.

    A tensor that was made before ``s0`` was found to be 3 has the size ``s0``. Made anew it would
    have the size 3, which is as true and not the same.
    """
    counter = "_replacements_version_counter"
    replacements, version = env.replacements, getattr(env, counter, None)
    with env.suppress_guards():
        if not replacements:
            yield
            return
        env.replacements = {}
        if version is not None:
            setattr(env, counter, 0)
        env._update_version_counter()
        try:
            yield
        finally:
            env.replacements = replacements
            if version is not None:
                setattr(env, counter, version)
            env._update_version_counter()


class _Writer:
    """Writes single values; ``kind`` says what is expected."""

    def __init__(self, table: Expressions) -> None:
        self._table = table

    def write(self, kind: str, value: Any) -> Any:
        if kind in ("text", "source"):
            return str(value)
        if kind == "int":
            return int_to_json(int(value))
        if kind == "plain":
            return int_to_json(value) if type(value) is int else ["float", float(value).hex()]
        index = self._table.index(value)
        reason = _why_not(kind, value)
        if reason is not None:
            raise Unstorable(f"its shape environment cannot be stored: {reason}")
        return index


class _Reader:
    """Reads what :class:`_Writer` wrote, and complains about anything else."""

    def __init__(self, table: Expressions) -> None:
        self._table = table

    def read(self, kind: str, data: Any, entry: str) -> Any:
        try:
            return self._read(kind, data)
        except GraphFormatError as error:
            raise GraphFormatError(f"shape environment, {entry}: {error}") from error

    def _read(self, kind: str, data: Any) -> Any:
        if kind in ("text", "source"):
            if type(data) is not str or (kind == "source" and _SOURCE.match(data) is None):
                raise GraphFormatError(f"{data!r:.80} is not the name of a {kind}")
            return data
        if kind == "int":
            return int_from_json(data)
        if kind == "plain":
            return _plain(data)
        value = self._table.at(data)
        reason = _why_not(kind, value)
        if reason is not None:
            raise GraphFormatError(reason)
        return value

    def rows(self, data: Any, entry: str) -> list[Any]:
        return self.row(data.get(entry, []), entry, None)

    def row(self, data: Any, entry: str, length: int | None) -> list[Any]:
        if type(data) is not list or (length is not None and len(data) != length):
            of = "" if length is None else f" of {length}"
            raise GraphFormatError(
                f"shape environment, {entry}: expected a list{of}, found {data!r:.80}"
            )
        return data


def _why_not(kind: str, value: Any) -> str | None:
    sympy = load_sympy()
    boolean = sympy.logic.boolalg
    kinds: dict[str, Any] = {
        "symbol": sympy.Symbol,
        "number": (sympy.Integer, sympy.Float),
        "bound": (sympy.Number, boolean.BooleanAtom),
        "boolean": boolean.Boolean,
        "expression": sympy.Basic,
    }
    return None if isinstance(value, kinds[kind]) else f"{value!s:.80} is not a {kind}"


def _plain(data: Any) -> int | float:
    if type(data) is list and len(data) == 2 and data[0] == "float" and type(data[1]) is str:
        try:
            return float.fromhex(data[1])
        except (ValueError, OverflowError) as error:
            raise GraphFormatError(f"not a float in hexadecimal: {data[1]!r:.80}") from error
    return int_from_json(data)


def _bool(value: Any, entry: str) -> bool:
    if type(value) is not bool:
        raise GraphFormatError(
            f"shape environment, {entry}: expected true or false, found {value!r:.80}"
        )
    return value


def _is_writable(kind: str, key: Any) -> bool:
    if kind == "source":
        return _SOURCE.match(key) is not None
    # Sizes of nested tensors are keys of the duck table too; such tensors are not stored.
    return kind != "plain" or type(key) in (int, float)


def _attribute(env: Any, names: Iterable[str], default: Any) -> Any:
    return next((getattr(env, name) for name in names if hasattr(env, name)), default)


def _settings(env: Any) -> dict[str, bool]:
    settings = env.settings
    found = ((name, getattr(settings, name, None)) for name in settings.__dataclass_fields__)
    return {name: value for name, value in found if type(value) is bool}


def _read_settings(data: Any) -> dict[str, bool]:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    if type(data) is not dict:
        raise GraphFormatError(f"shape environment, settings: expected an object: {data!r:.80}")
    here = inspect.signature(ShapeEnv._init).parameters
    for name, value in data.items():
        _bool(value, f"setting {name!r:.80}")
        if name not in _SETTINGS and here.get(name) is None:
            raise GraphFormatError(f"shape environment, settings: there is no {name!r:.80}")
    return {name: value for name, value in data.items() if name in here}


def _name(source: Any) -> str:
    name = source.name
    return str(name() if callable(name) else name)


def _restore_symbols(env: Any, code: _Reader, data: Any) -> None:
    from torch._dynamo.source import ConstantSource, EphemeralSource
    from torch._guards import SLoc
    from torch.fx.experimental.symbolic_shapes import ValueRangesSLoc
    from torch.utils._sympy.value_ranges import ValueRangeError, ValueRanges
    from torch.utils._traceback import CapturedTraceback

    here = SLoc("restored by lazyfx", None)
    extract: Any = CapturedTraceback.extract
    stack = extract()
    for row in code.rows(data, "ranges"):
        symbol, *bounds = code.row(row, "ranges", 3)
        symbol = code.read("symbol", symbol, "ranges")
        lower, upper = (code.read("bound", bound, "ranges") for bound in bounds)
        try:
            env.var_to_range[symbol] = ValueRanges(lower, upper)
        except (ValueRangeError, TypeError, AssertionError, AttributeError) as error:
            raise GraphFormatError(f"{symbol!s} has no range: {error}") from error
        env.var_to_range_sloc[symbol] = ValueRangesSLoc(here, here)
        env.var_to_stack[symbol] = stack
    for row in code.rows(data, "sources"):
        symbol, names = code.row(row, "sources", 2)
        symbol = code.read("symbol", symbol, "sources")
        sources: list[Any] = []
        for item in code.row(names, "sources", None):
            name, is_ephemeral = code.row(item, "sources", 2)
            name = code.read("text", name, "sources")
            if _bool(is_ephemeral, "sources"):
                sources.append(EphemeralSource(name))
            else:
                sources.append(ConstantSource(name if _SOURCE.match(name) else symbol.name))
        env.var_to_sources[symbol] = sources
    if hasattr(env, "name_to_symbol"):
        env.name_to_symbol.update({symbol.name: symbol for symbol in env.var_to_range})


def _restore_conditions(env: Any, code: _Reader, data: Any) -> None:
    from torch._guards import ShapeGuard, SLoc
    from torch.fx.experimental.symbolic_shapes import RuntimeAssert
    from torch.utils._traceback import CapturedTraceback

    make_guard: Any = ShapeGuard
    extract: Any = CapturedTraceback.extract
    stack = extract()
    for row in code.rows(data, "guards"):
        expression, is_oblivious = code.row(row, "guards", 2)
        fields = {
            "expr": code.read("boolean", expression, "guards"),
            "sloc": SLoc("restored by lazyfx", None),
            "size_oblivious": _bool(is_oblivious, "guards"),
        }
        kept = {name: value for name, value in fields.items() if name in ShapeGuard._fields}
        env.guards.append(make_guard(**kept))
    for row in code.rows(data, "asserts"):
        symbol, items = code.row(row, "asserts", 2)
        key = None if symbol is None else code.read("symbol", symbol, "asserts")
        asserts = env.deferred_runtime_asserts.setdefault(key, [])
        for item in code.row(items, "asserts", None):
            expression, message = code.row(item, "asserts", 2)
            asserts.append(
                RuntimeAssert(
                    code.read("boolean", expression, "asserts"),
                    code.read("text", message, "asserts"),
                    stack,
                )
            )
            env.num_deferred_runtime_asserts += 1


def _restore_counters(env: Any, code: _Reader, data: Any) -> None:
    """Make sure that no symbol that exists will be made a second time."""
    stored = code.row(data.get("counters", [0, 0]), "counters", 2)
    values = _attribute(env, ("backed_var_to_val", "var_to_val"), {})
    names = [symbol.name for symbol in {**env.var_to_range, **values}]
    for (prefix, attribute), count in zip(_COUNTERS, stored, strict=True):
        if type(count) is not int or not 0 <= count < _MAX_COUNTER:
            raise GraphFormatError(f"shape environment, counters: {count!r:.80} is not a count")
        pattern = re.compile(rf"{prefix}(\d{{1,9}})\Z", re.ASCII)
        used = (int(match[1]) for name in names if (match := pattern.match(name)))
        start = max(count, 1 + max(used, default=-1))
        is_plain = type(getattr(env, attribute)) is int
        setattr(env, attribute, start if is_plain else itertools.count(start))
    numbers = {int(match[1]) for name in names if (match := _BACKED_NAME.match(name))}
    if hasattr(env, "unique_ids"):
        env.unique_ids.update(numbers)
        return
    # torch calls the next symbol by how many there are, while a newer one, which may have written
    # this, numbers them by a hash: fill up until there are more than the highest number so far.
    sympy = load_sympy()
    highest = max((number for number in numbers if number < 10_000), default=-1)
    for number in range(len(values), highest + 1):
        values[sympy.Symbol(f"_unused{number}", integer=True)] = sympy.Integer(0)
