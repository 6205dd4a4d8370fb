"""The seam to sympy: one expression as a row ``[head, argument, …]``, put together as it was.

=============================================  =====================================================
``["Symbol", "s0", {"integer": true}]``        a name that is an identifier; what is assumed of it
``["Integer", 5]``, ``["Rational", 1, 2]``     an integer beyond 63 bits is text, ``"0x…"``
``["Float", 0, 3, -1, 53]``                    sign, mantissa, exponent of two, bits of precision
``["true"]``, ``["oo"]``, ``["int_oo"]`` …     what sympy has only one of
``["Add", 3, 4]``, ``["torch.Mod", 3, 4]`` …   a class of sympy's or of torch's, and other rows
=============================================  =====================================================

Names have to be identifiers, because torch writes them into code. No constructor here evaluates or
simplifies, except that ``Max`` and ``Min`` sort their arguments.

=====================================  ========================================================
private name                           used for
=====================================  ========================================================
``torch.utils._sympy.functions``       the classes of functions that shapes are made of
``torch.utils._sympy.numbers``         integer infinity
``Symbol._assumptions_orig``           the assumptions a symbol was made with
``Add._from_args``, ``And._argset``    putting together without evaluation
``Float._mpf_``, ``Float._prec``       the exact value of a floating point number
=====================================  ========================================================
"""

from __future__ import annotations

import functools
import importlib
import keyword
import re
from typing import TYPE_CHECKING, Any

from .errors import GraphFormatError, NotInThisTorchError

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_NUMBER_BITS = 4096
_SMALL_INT = 1 << 63
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}\Z")
_ASSUMPTIONS = frozenset(
    {
        *("algebraic", "antihermitian", "commutative", "complex", "composite", "even", "finite"),
        *("extended_negative", "extended_nonnegative", "extended_nonpositive", "extended_nonzero"),
        *("extended_positive", "extended_real", "hermitian", "imaginary", "infinite", "integer"),
        *("irrational", "negative", "noninteger", "nonnegative", "nonpositive", "nonzero", "odd"),
        *("positive", "prime", "rational", "real", "transcendental", "zero"),
    }
)
_HEXADECIMAL = re.compile(r"-?0x[0-9a-f]{1,1024}\Z")


class Unstorable(Exception):
    """A value cannot be stored; the text says what it is and why."""


def int_to_json(value: int) -> int | str:
    """An integer as JSON that every reader of JSON can hold."""
    return value if -_SMALL_INT < value < _SMALL_INT else hex(value)


def int_from_json(value: Any) -> int:
    """The integer that :func:`int_to_json` wrote.

    Raises:
        GraphFormatError: It is none, or longer than 4096 bits.
    """
    if type(value) is str and _HEXADECIMAL.match(value):
        value = int(value, 16)
    if type(value) is not int or value.bit_length() > _MAX_NUMBER_BITS:
        raise GraphFormatError(
            f"expected an integer of up to {_MAX_NUMBER_BITS} bits, found {_short(value)}"
        )
    return value


def _short(value: Any) -> str:
    if type(value) is int and value.bit_length() > _MAX_NUMBER_BITS:
        return f"one of {value.bit_length()} bits"
    return f"{value!r:.80}"


def is_value_of(kind: str, expression: Any) -> bool:
    """Whether a symbolic ``"int"``, ``"float"`` or ``"bool"`` can have this expression."""
    sympy = load_sympy()
    return isinstance(expression, sympy.logic.boolalg.Boolean if kind == "bool" else sympy.Expr)


def row(expression: Any, index: Callable[[Any], int]) -> list[Any]:
    """The row of ``expression``.

    Args:
        expression: Any sympy object.
        index: Gives the number of the row of an argument.

    Raises:
        Unstorable: There is no row for objects of this class, or a symbol has an odd name.
    """
    sympy = load_sympy()
    kind = type(expression)
    if kind is sympy.Symbol:
        assumptions = getattr(expression, "_assumptions_orig", None)
        if assumptions is None:
            assumptions = expression.assumptions0
        kept = {name: value for name, value in sorted(assumptions.items()) if value is not None}
        if not _is_symbol_name(expression.name):
            raise Unstorable(f"the symbol {expression.name!r:.80} is not called by an identifier")
        return ["Symbol", expression.name, kept]
    if expression.is_Integer:
        return ["Integer", int_to_json(int(expression))]
    if expression.is_Rational:
        return ["Rational", int_to_json(int(expression.p)), int_to_json(int(expression.q))]
    if expression.is_Float:
        sign, mantissa, exponent, _ = expression._mpf_
        return [
            *("Float", int(sign), int_to_json(int(mantissa)), int(exponent)),
            int(expression._prec),
        ]
    head = _single_heads().get(expression) or _head_of_class().get(kind)
    if head is None:
        raise Unstorable(f"{expression!s:.80} is of class {kind.__name__}")
    return [head, *map(index, expression.args)]


def _is_symbol_name(name: Any) -> bool:
    return type(name) is str and _NAME.match(name) is not None and not keyword.iskeyword(name)


def join(head: str, arguments: list[Any]) -> Any:
    """The operator or function ``head`` applied to ``arguments``, unevaluated.

    Raises:
        GraphFormatError: This torch has no ``head``, or it does not take such arguments.
    """
    found = _classes().get(head)
    if found is None:
        kind = NotInThisTorchError if head.startswith("torch.") else GraphFormatError
        raise kind(f"{head!r:.80} is not an operator or function that this torch has")
    cls, build = found
    sympy = load_sympy()
    pair = sympy.functions.elementary.piecewise.ExprCondPair
    boolean = sympy.logic.boolalg.Boolean
    kinds: list[Any] = [sympy.Expr] * len(arguments)
    if cls in (sympy.And, sympy.Or, sympy.Not):
        kinds = [boolean] * len(arguments)
    elif cls is sympy.Piecewise:
        kinds = [pair] * len(arguments)
    elif head == "torch.Where":
        kinds[:1] = [boolean]
    elif cls is pair:
        kinds[1:] = [boolean]
    elif cls in (sympy.Eq, sympy.Ne) and not all(
        isinstance(argument, sympy.Expr) for argument in arguments
    ):
        kinds = [boolean] * len(arguments)
    for number, (argument, kind) in enumerate(zip(arguments, kinds, strict=True)):
        if not isinstance(argument, kind):
            raise GraphFormatError(
                f"argument {number} of {head} is a {kind.__name__}, found {argument!s:.80}"
            )
    made = build(cls, arguments)
    if type(made) is not cls:
        raise GraphFormatError(f"{head} of {len(arguments)} arguments is not one")
    return made


@functools.cache
def load_sympy() -> Any:
    """The module ``sympy``, which has no types, and is not needed before there are expressions."""
    return importlib.import_module("sympy")


@functools.cache
def _classes() -> dict[str, tuple[Any, Callable[[Any, list[Any]], Any]]]:
    """What each head stands for, and how it is put together without being evaluated."""
    from torch.utils._sympy import functions

    sympy = load_sympy()
    table: dict[str, tuple[Any, Callable[[Any, list[Any]], Any]]] = {
        "Add": (sympy.Add, _join_terms),
        "Mul": (sympy.Mul, _join_terms),
        "And": (sympy.And, _join_lattice),
        "Or": (sympy.Or, _join_lattice),
        "Piecewise": (sympy.Piecewise, _join_plain),
        "ExprCondPair": (sympy.functions.elementary.piecewise.ExprCondPair, _join_two),
    }
    for name in ("Eq", "Ne", "Lt", "Le", "Gt", "Ge"):
        table[name] = (getattr(sympy, name), _join_two)
    for name in (*("Pow", "Not", "Mod", "Max", "Min", "Abs", "sign", "floor", "ceiling", "log"),):
        table[name] = (getattr(sympy, name), _join_unevaluated)
    for name, cls in vars(functions).items():
        is_own = isinstance(cls, type) and cls.__module__ == functions.__name__
        if is_own and issubclass(cls, sympy.Basic) and name not in ("CeilDiv", "MinMaxBase"):
            table[f"torch.{name}"] = (cls, _join_unevaluated)
    return table


@functools.cache
def _head_of_class() -> dict[Any, str]:
    return {cls: head for head, (cls, _) in _classes().items()}


@functools.cache
def _singles() -> dict[str, Any]:
    from torch.utils._sympy.numbers import int_oo

    sympy = load_sympy()
    return {
        "true": sympy.true,
        "false": sympy.false,
        "oo": sympy.oo,
        "-oo": -sympy.oo,
        "zoo": sympy.zoo,
        "nan": sympy.nan,
        "int_oo": int_oo,
        "-int_oo": -int_oo,
        "pi": sympy.pi,
        "E": sympy.E,
        "I": sympy.I,
    }


@functools.cache
def _single_heads() -> dict[Any, str]:
    return {value: head for head, value in _singles().items()}


@functools.cache
def atoms() -> dict[str, Callable[[list[Any]], Any]]:
    """The heads of rows that refer to no others, and what makes an expression of the rest."""

    def single(value: Any) -> Callable[[list[Any]], Any]:
        def build(rest: list[Any]) -> Any:
            _take(rest, 0)
            return value

        return build

    return {
        **{head: single(value) for head, value in _singles().items()},
        "Symbol": _build_symbol,
        "Integer": lambda rest: load_sympy().Integer(int_from_json(*_take(rest, 1))),
        "Rational": _build_rational,
        "Float": _build_float,
    }


def _take(rest: list[Any], count: int) -> list[Any]:
    if len(rest) != count:
        raise GraphFormatError(f"expected {count} values, found {len(rest)}")
    return rest


def _build_symbol(rest: list[Any]) -> Any:
    name, assumptions = _take(rest, 2)
    if not _is_symbol_name(name):
        raise GraphFormatError(f"the symbol {name!r:.80} is not called by an identifier")
    if type(assumptions) is not dict:
        raise GraphFormatError(f"assumptions are an object, found {assumptions!r:.80}")
    for key, value in assumptions.items():
        if (
            key not in _ASSUMPTIONS
            or type(value) is not bool
            or (key == "commutative" and not value)
        ):
            raise GraphFormatError(f"{key!r:.80}: {value!r:.80} is not assumed of a symbol {name}")
    return load_sympy().Symbol(name, **assumptions)


def _build_rational(rest: list[Any]) -> Any:
    numerator, denominator = (int_from_json(value) for value in _take(rest, 2))
    made = load_sympy().Rational(numerator, denominator) if denominator > 1 else None
    if made is None or made.q != denominator:
        raise GraphFormatError(f"{rest!r:.80} is not a fraction in its lowest terms")
    return made


def _build_float(rest: list[Any]) -> Any:
    sign, mantissa, exponent, precision = _take(rest, 4)
    mantissa = int_from_json(mantissa)
    if (
        sign not in (0, 1)
        or mantissa < 0
        or type(exponent) is not int
        or abs(exponent) > 1 << 15
        or type(precision) is not int
        or not 1 <= precision <= _MAX_NUMBER_BITS
    ):
        raise GraphFormatError(f"{rest!r:.80} is not a floating point number")
    parts = (sign, mantissa, exponent, mantissa.bit_length())
    made = load_sympy().Float(parts if mantissa else 0, precision=precision)
    if made._mpf_ != parts:
        raise GraphFormatError(f"{rest!r:.80} is not a floating point number in its lowest terms")
    return made


def _join_terms(cls: Any, arguments: list[Any]) -> Any:
    if len(arguments) < 2:
        raise GraphFormatError(f"{cls.__name__} has at least two arguments")
    return cls._from_args(arguments, is_commutative=True)


def _join_lattice(cls: Any, arguments: list[Any]) -> Any:
    if len(set(arguments)) < 2 or len(set(arguments)) != len(arguments):
        raise GraphFormatError(f"{cls.__name__} has at least two different arguments")
    made = _join_plain(cls, arguments)
    made._argset = frozenset(arguments)
    return made


def _join_two(cls: Any, arguments: list[Any]) -> Any:
    return _join_plain(cls, _take(arguments, 2))


def _join_plain(cls: Any, arguments: list[Any]) -> Any:
    if not arguments:
        raise GraphFormatError(f"{cls.__name__} has at least one argument")
    return load_sympy().Basic.__new__(cls, *arguments)


def _join_unevaluated(cls: Any, arguments: list[Any]) -> Any:
    return cls(*arguments, evaluate=False)
