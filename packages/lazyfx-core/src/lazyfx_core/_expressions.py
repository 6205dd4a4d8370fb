"""Symbolic expressions as a table of rows, so that reading one evaluates nothing.

``sympy.sympify`` and ``srepr`` go through ``eval``, and sympy's own pickles call constructors that
simplify: a stranger's expression could run code, or run for ever. Here an expression is a row
``[head, argument, …]`` whose arguments are the numbers of *earlier* rows, equal expressions are one
row, and rows are put together without evaluation (:mod:`lazyfx_core._torch_sympy` knows how). So
there can be no cycle, what comes back is the expression that was stored and not one that sympy
finds simpler, and the time is linear.

A shared row can stand for a tree that is exponentially larger, and later uses of an expression do
expand, print and evaluate it. Each row therefore has a price (:class:`Cost`), counted as if nothing
were shared, and one over the limits is refused, by the writer as well as by the reader.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import _torch_sympy
from ._torch_sympy import Unstorable
from .errors import GraphFormatError

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_DEPTH = 500
"""The deepest expression that is stored or read."""
MAX_SIZE = 100_000
"""The largest: operators, symbols and numbers, shared ones counted every time."""
MAX_BITS = 1 << 20
"""The longest integer that any expression can come to with symbols of 64 bits."""
MAX_TERMS = 1000
"""The most terms a product or power of sums can have when it is multiplied out."""
MAX_EXPONENT = 1000
"""The largest exponent; where it is an expression, what it may come to if its symbols are 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What an expression comes to.

    Attributes:
        size: Operators, symbols and numbers.
        depth: Levels.
        terms: Terms when it is multiplied out.
        bits: Bits of its value if all symbols have 64 bits.
        constant: Bits of its value if all symbols are 1.
    """

    size: int = 1
    depth: int = 1
    terms: int = 1
    bits: int = 64
    constant: int = 1

    def why_too_much(self) -> str | None:
        """Which limit this is over, in words; None if it is over none."""
        if self.depth > MAX_DEPTH:
            return f"it is nested more than {MAX_DEPTH} deep"
        if self.size > MAX_SIZE:
            return f"it has more than {MAX_SIZE} parts"
        if self.terms > MAX_SIZE:
            return f"multiplied out it has more than {MAX_TERMS} terms"
        return f"its value may have more than {MAX_BITS} bits" if self.bits > MAX_BITS else None


class Expressions:
    """A table of expressions that grows at its end; the same for the writer and the reader.

    Attributes:
        rows: The JSON; owned by whoever added it, not to be changed.
        built: The sympy object of each row.

    Not thread-safe. Keeps its expressions alive.
    """

    def __init__(self) -> None:
        self.rows: list[list[Any]] = []
        self.built: list[Any] = []
        self._costs: list[Cost] = []
        self._index: dict[tuple[type, Any], int] = {}
        self._by_parts: dict[Any, int] = {}

    def add(self, row: Any) -> Any:
        """Append one row and return its expression.

        Raises:
            GraphFormatError: It is no row, refers to a later one, or is over a limit.
        """
        where = f"expression {len(self.rows)}"
        if type(row) is not list or not row or type(row[0]) is not str:
            raise GraphFormatError(f"{where}: expected a list that begins with a name: {row!r:.80}")
        head, *rest = row
        build = _torch_sympy.atoms().get(head)
        try:
            if build is not None:
                expression = build(rest)
                cost = _cost_of_atom(expression)
            else:
                arguments = [self.at(index) for index in rest]
                expression = _torch_sympy.join(head, arguments)
                cost = _cost(head, arguments, [self._costs[index] for index in rest])
            key = (type(expression), expression)
            hash(key)  # sympy keeps it: hashing a deep expression later would recurse
        except GraphFormatError as error:
            raise type(error)(f"{where}: {error}") from error
        except (ArithmeticError, AttributeError, RecursionError, TypeError, ValueError) as error:
            raise GraphFormatError(f"{where}: {head!r:.80} cannot be made: {error}") from error
        reason = cost.why_too_much()
        if reason is None and self._index.setdefault(key, len(self.rows)) != len(self.rows):
            reason = f"it repeats expression {self._index[key]}"
        if reason is not None:
            raise GraphFormatError(f"{where}: {reason}")
        self.rows.append(row)
        self.built.append(expression)
        self._costs.append(cost)
        return expression

    def at(self, index: Any) -> Any:
        """The expression of a row.

        Raises:
            GraphFormatError: There is no such row yet.
        """
        if type(index) is not int or not 0 <= index < len(self.built):
            raise GraphFormatError(
                f"expression {index!r:.80} does not exist here; there are {len(self.built)}"
            )
        return self.built[index]

    def index(self, expression: Any) -> int:
        """The number of the row of ``expression``, which is appended if it is new.

        Raises:
            Unstorable: It is of a kind that is not stored, or over a limit.
        """
        # sympy compares slowly: most expressions are new objects made of the same parts.
        parts = expression.args
        alike = (type(expression), parts or expression, tuple(map(type, parts)))
        found = self._by_parts.get(alike)
        if found is None:
            found = self._by_parts[alike] = self._find_or_add(expression)
        return found

    def _find_or_add(self, expression: Any) -> int:
        found = self._index.get((type(expression), expression))
        if found is not None:
            return found
        ready: list[tuple[Any, bool]] = [(expression, False)]
        while ready:
            current, has_arguments = ready.pop()
            key = (type(current), current)
            if key in self._index:
                continue
            if not has_arguments:
                ready.append((current, True))
                ready.extend((argument, False) for argument in current.args)
                continue
            try:
                row = _torch_sympy.row(current, lambda part: self._index[type(part), part])
                rebuilt = self.add(row)
            except (GraphFormatError, Unstorable) as error:
                raise Unstorable(f"in the expression {expression!s:.80}: {error}") from error
            if type(rebuilt) is not type(current) or rebuilt != current:
                raise Unstorable(f"the expression {current!s:.80} would not come back the same")
        return self._index[type(expression), expression]

    def check_replacements(self, replacements: Mapping[Any, Any]) -> None:
        """Make sure that replacing symbols in any expression here comes to an end, and to a size.

        Args:
            replacements: Symbols and the expressions put for them; all of them of this table.

        Raises:
            GraphFormatError: A symbol is replaced by something it is part of, or a row is over a
                limit once everything is replaced.
        """
        row_of = {expression: index for index, expression in enumerate(self.built)}
        instead = {row_of[symbol]: row_of[by] for symbol, by in replacements.items()}
        costs: dict[int, Cost | None] = {}
        ready = list(range(len(self.rows)))
        while ready:
            index = ready.pop()
            if costs.get(index) is not None:
                continue
            head, *rest = self.rows[index]
            parts = (
                [instead[index]]
                if index in instead
                else []
                if head in _torch_sympy.atoms()
                else rest
            )
            missing = [part for part in parts if costs.get(part) is None]
            if missing:
                if any(part in costs for part in missing) or index in missing:
                    raise GraphFormatError(f"the symbol {self.built[index]} is replaced by itself")
                costs[index] = None  # being worked on
                ready.append(index)
                ready.extend(missing)
                continue
            known = [cost for part in parts if (cost := costs[part]) is not None]
            if index in instead:
                cost = known[0]
            elif parts:
                cost = _cost(head, [self.built[part] for part in parts], known)
            else:
                cost = self._costs[index]
            reason = cost.why_too_much()
            if reason is not None:
                raise GraphFormatError(f"expression {index}, with symbols replaced: {reason}")
            costs[index] = cost


def _cost(head: str, arguments: list[Any], costs: list[Cost]) -> Cost:
    size = 1 + sum(cost.size for cost in costs)
    depth = 1 + max((cost.depth for cost in costs), default=0)
    terms = 1
    bits = max((cost.bits for cost in costs), default=1)
    constant = max((cost.constant for cost in costs), default=1)
    if head == "Add":
        terms = sum(cost.terms for cost in costs)
        bits += len(costs).bit_length()
        constant += len(costs).bit_length()
    elif head == "Mul":
        terms = _multiplied_out([cost.terms for cost in costs if cost.terms > 1])
        bits = sum(cost.bits for cost in costs)
        constant = sum(cost.constant for cost in costs)
    elif head in ("Pow", "torch.PowByNatural", "torch.FloatPow"):
        times = _times(head, arguments[1], costs[1])
        terms = _multiplied_out([costs[0].terms] * times) if costs[0].terms > 1 else 1
        bits = costs[0].bits * times
        constant = costs[0].constant * times
    elif head in ("torch.LShift", "torch.RShift"):
        times = _times(head, arguments[1], costs[1])
        bits, constant = costs[0].bits + times, costs[0].constant + times
    return Cost(size=size, depth=depth, terms=terms, bits=bits, constant=constant)


def _multiplied_out(sums: list[int]) -> int:
    """Terms of a product of sums; a single sum may be as long as any expression."""
    terms = sums[0] if sums else 1
    for more in sums[1:]:
        terms *= more
        if terms > MAX_TERMS:
            return MAX_SIZE + 1
    return terms


def _times(head: str, exponent: Any, cost: Cost) -> int:
    """How often something is multiplied with itself, at least.

    torch's own powers of what turns out to be two integers stop at the largest 64-bit integer.
    sympy's do not, and torch makes none whose exponent is not a number.
    """
    if exponent.is_Number and exponent.is_finite:
        within = -MAX_EXPONENT <= exponent <= MAX_EXPONENT
        if not within or (exponent.is_Rational and exponent.q > MAX_EXPONENT):
            raise GraphFormatError(f"the exponent {exponent!s:.80} is beyond {MAX_EXPONENT}")
        return max(1, int(abs(exponent)))
    if head == "Pow":
        raise GraphFormatError(f"the exponent {exponent!s:.80} is not a number")
    if cost.constant > MAX_EXPONENT.bit_length():
        raise GraphFormatError(f"the exponent {exponent!s:.80} holds numbers beyond {MAX_EXPONENT}")
    return 1 << cost.constant


def _cost_of_atom(expression: Any) -> Cost:
    if expression.is_Symbol:
        return Cost()
    if expression.is_Rational:
        bits = max(1, int(expression.p).bit_length())
        return Cost(bits=bits, constant=bits)
    if expression.is_Float:
        bits = max(1, int(abs(expression)).bit_length())
        return Cost(bits=bits, constant=bits)
    return Cost()
