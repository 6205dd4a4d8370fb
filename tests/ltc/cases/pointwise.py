"""Element by element: numbers, dtypes and their promotion, zero-dimensional tensors, odd values."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from _harness import Case, case

X = torch.linspace(-2, 3, 12).reshape(3, 4)
Y = torch.linspace(0.5, 4, 12).reshape(3, 4)
HALF = X.half()
BRAIN = X.bfloat16()
INTS = torch.arange(-3, 9).reshape(3, 4)
BOOLS = X > 0
BYTES = torch.arange(12, dtype=torch.uint8).reshape(3, 4)
COMPLEX = torch.complex(X, Y)
TWO = torch.tensor(2.0)
ODD = torch.tensor([math.inf, -math.inf, math.nan, -0.0, 0.0, 1e-42, 3.4e38, -1.0])


def chain(a: Any) -> Any:
    return (a * 0.1 + 0.3) / 7 - 2


def numbers_of_each_kind(a: Any) -> Any:
    return a + 1, a * 0.5, a * True, 3 - a, 1 / (a + 10), a % 3, -a, a**2


CASES: dict[str, Case] = {
    "python numbers, float": case(numbers_of_each_kind, Y),
    "python numbers, double": case(numbers_of_each_kind, Y.double()),
    "python numbers, half": case(numbers_of_each_kind, Y.half()),
    "python numbers, bfloat16": case(numbers_of_each_kind, Y.bfloat16()),
    "python numbers, int64": case(numbers_of_each_kind, INTS.abs()),
    "python numbers, int32": case(numbers_of_each_kind, INTS.abs().int()),
    "python numbers, uint8": case(lambda a: (a + 1, a * 0.5, 3 - a, a * 2), BYTES),
    "python numbers, complex": case(lambda a: (a + 1, a * 0.5, 3 - a, a * 2j, a / 2), COMPLEX),
    "bool becomes what eager makes of it": case(lambda a: (a * 2, a + 0.5, a & True, a + a), BOOLS),
    "a float chain in half": case(chain, HALF),
    "a float chain in bfloat16": case(chain, BRAIN),
    "a float chain in double, exact": case(chain, X.double(), exact=True),
    "int tensor and float tensor": case(lambda a, b: (a + b, b - a, a * b), INTS, X),
    "half tensor and bfloat16 tensor": case(lambda a, b: a + b, HALF, BRAIN),
    "int tensor and zero-dimensional float": case(lambda a, b: (a * b, b - a), INTS, TWO),
    "half tensor and zero-dimensional double": case(
        lambda a, b: (a * b, b - a), HALF, torch.tensor(0.3, dtype=torch.float64)
    ),
    "zero-dimensional int and float": case(lambda a, b: a * b + a, torch.tensor(3), TWO),
    "two equal zero-dimensional arguments": case(
        lambda a, b, c: (a - 2 * b, b - 3 * a, c * a), TWO, torch.tensor(2.0), X
    ),
    "equal zero-dimensional arguments, one result zero-dimensional": case(
        lambda a, b: (a / (b + 1)).sqrt(), TWO, torch.tensor(2.0)
    ),
    "one-element arguments": case(
        lambda a, b: a - b * 3, torch.tensor([2.0]), torch.tensor([[2.0]])
    ),
    "a zero-dimensional constant": case(lambda a: a * torch.tensor(0.5), INTS),
    "a zero-dimensional integer constant": case(lambda a: a * torch.tensor(3), X),
    "a one-element constant": case(lambda a: a - torch.tensor([0.25]), X),
    "a zero-dimensional bool constant": case(lambda a: a * torch.tensor(True), INTS),
    "a zero-dimensional nan constant": case(lambda a: a * torch.tensor(math.nan), X),
    "equal constants": case(
        lambda a: (a * torch.tensor(2.0) + torch.tensor(2.0)) / torch.tensor([2.0]), X
    ),
    "a complex constant": case(lambda a: a * torch.tensor(1 + 2j), X),
    "infinities, nan and minus zero": case(lambda a: (a + 0.0, a * -1, -a, a * 1), ODD, exact=True),
    "infinities, nan and minus zero compared": case(
        lambda a: (a == a, a > 0, a <= 0, a != 0, a.abs()), ODD, exact=True
    ),
    "minus zero as a number": case(lambda a: (a * -0.0, a + -0.0), ODD, exact=True),
    "infinite numbers": case(
        lambda a: (a.clamp(-math.inf, 2.0), a.masked_fill(a > 0, -math.inf)), X
    ),
    "tiny numbers": case(lambda a: (a * 1e-40, a * 1e300, a + 5e-324), X.double(), exact=True),
    "large integers": case(lambda a: (a + 2**53 + 1, a * (2**62), a - 2**63), INTS, exact=True),
    "clamp, minimum, maximum": case(
        lambda a, b: (a.clamp(0, 1), a.clamp(min=0.5), torch.minimum(a, b), torch.maximum(a, b)),
        X,
        Y,
    ),
    "alpha": case(
        lambda a, b: (torch.add(a, b, alpha=3), torch.sub(a, b, alpha=0.5), torch.rsub(a, 1)),
        X,
        Y,
    ),
    "rounding modes": case(
        lambda a, b: (
            torch.div(a, 3, rounding_mode="floor"),
            torch.div(a, b, rounding_mode="trunc"),
            torch.remainder(a, 2),
        ),
        X,
        Y,
    ),
    "activations": case(
        lambda a: (a.relu(), a.sigmoid(), a.tanh(), F.gelu(a), F.silu(a), F.softplus(a)), X
    ),
    "more activations": case(
        lambda a: (F.leaky_relu(a, 0.2), F.hardtanh(a), F.hardsigmoid(a), F.elu(a)),
        X,
        how="decomposed",
    ),
    "powers": case(lambda a: (a**2, a**0.5, a**-1, a.rsqrt(), a.exp(), a.log()), Y),
    "trigonometry": case(lambda a: (a.sin(), a.cos()), X),
    "where by masks": case(lambda a, b: a.masked_fill(a > 0, 1.5) + b.masked_fill(b < 1, 0), X, Y),
    "where": case(lambda a, b: torch.where(a > 0, a, b), X, Y),
    "where, decomposed": case(lambda a, b: torch.where(a > 0, a, b), X, Y, how="decomposed"),
    "where of a nan, decomposed": case(
        lambda a: torch.where(a == a, a, a * 0 + 1), ODD[3:], how="decomposed", exact=True
    ),
    "comparisons of mixed dtypes": case(lambda a, b: (a > b, a == b, b <= a), INTS, X),
    "logic": case(lambda a, b: (a & b, a | b), BOOLS, Y > 2),
    "exclusive or": case(lambda a, b: a ^ b, BOOLS, Y > 2),
    "floor division of tensors": case(lambda a: a // 2, INTS),
    "a number to a power": case(lambda a: 2**a, X),
    "signs": case(lambda a: a.sign(), ODD),
    "floor division, decomposed": case(lambda a: a // 2, INTS, how="decomposed"),
    "fmod, decomposed": case(
        lambda a: torch.fmod(a, 2), INTS, how="decomposed", refused="captured program: prims::fmod"
    ),
    "conversions": case(
        lambda a: (a.to(torch.int32), a.half().float(), a.bool(), a.long(), a.to(torch.complex64)),
        X,
    ),
    "conversion to and from bytes": case(lambda a: (a.float() / 255, a.long() - 7), BYTES),
    "an accumulation in another dtype": case(
        lambda a: (a.sum(dtype=torch.float64), a.float().mean()), HALF
    ),
    "complex arithmetic": case(lambda a, b: (a * b, a + 1, a - b), COMPLEX, COMPLEX * 2),
    "type promotion of results written": case(lambda a, b: a.add_(b), X.double(), X),
    "lerp and addcmul": case(
        lambda a, b: (a.addcmul(a, b, value=0.5), a.addcdiv(a, b, value=2)), X, Y
    ),
    "nothing but a number": case(lambda a: 3, X),
}
