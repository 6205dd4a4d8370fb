"""Which family an operator belongs to: what a node is colored by."""

from __future__ import annotations

import re
from typing import Any

import torch

FAMILIES = (
    "input",
    "constant",
    "matrix product",
    "attention",
    "normalization",
    "reduction",
    "pointwise",
    "view",
    "copy or index",
    "random",
    "communication",
    "control flow",
    "module",
    "other",
    "output",
)
"""Every family, in the order in which a legend lists them."""

_OF_KINDS = {
    "placeholder": "input",
    "get_attr": "constant",
    "output": "output",
    "call_module": "module",
}

# By name, since tags differ from one torch to the next and Python's functions have none. The first
# that matches counts; a leading or trailing underscore and "_backward" are no part of a name.
_NAMES = {
    "attention": r"(\w+_)?scaled_dot_product\w*|(flash|flex|efficient)_attention\w*",
    "matrix product": (
        r"(\w+_)?(mm|bmm|mv)|add(mm|bmm|mv|r)|baddbmm|i?matmul|linear|bilinear|dot|vdot|inner|outer"
        r"|einsum|tensordot|(\w+_)?conv(olution)?(_transpose)?([123]d)?\w*"
    ),
    "normalization": r"(\w+_)?(layer|batch|group|instance|rms)_norm\w*|(\w+_)?softmax(_data)?",
    "random": (
        r"(\w+_)?dropout\w*|bernoulli|rand\w*|normal|uniform|log_normal|exponential|geometric"
        r"|cauchy|poisson|multinomial|philox\w*|rng\w*"
    ),
    "communication": (
        r"all_reduce\w*|all_gather\w*|reduce_scatter\w*|all_to_all\w*|broadcast|wait_tensor|barrier"
        r"|isend|irecv"
    ),
    "control flow": (
        r"cond|while_loop|scan|associative_scan|map(_impl)?|invoke_subgraph|tag_activation\w*"
        r"|wrap\w*|run_\w*rng_state|autograd_function_apply|checkpoint\w*"
    ),
    "reduction": (
        r"sum|mean|prod|amax|amin|max|min|argmax|argmin|any|all|(std|var)(_mean)?|(\w+_)?norm"
        r"|cum(sum|prod)|logsumexp|\w+_loss\w*|cross_entropy\w*|(\w+_)?pool\w*|sort|topk"
        r"|(count_)?nonzero"
    ),
    "view": (
        r"(un)?safe_view|view\w*|reshape\w*|(un)?squeeze|expand(_as)?|permute|transpose|t|numpy_T"
        r"|slice|select|split\w*|chunk|unbind|narrow|as_strided|alias|detach|diagonal|(un)?flatten"
        r"|unfold|movedim|swapaxes|getitem|getattr|lift_fresh\w*|real|imag|sym_\w+|size|contiguous"
    ),
    "copy or index": (
        r"clone|copy|to|to_copy|type_as|cat|concat|stack|gather|scatter\w*|index\w*|embedding\w*"
        r"|repeat\w*|tile|\w*pad|roll|flip|fill|(full|zeros|ones|empty)\w*|new_\w+|arange|eye"
        r"|linspace|scalar_tensor|tril|triu|(slice|select)_scatter|masked_select|one_hot"
        r"|convert_element_type|device_put|float|half|bfloat16|double|long|int|bool|setitem"
    ),
    "pointwise": (
        r"i?add|i?sub|rsub|i?mul|multiply|div|i?truediv|floor\w*|ceil|round|remainder|i?pow|neg|abs"
        r"|exp2?|expm1|log(2|10|1p)?|r?sqrt|a?(sin|cos|tan)h?|sigmoid|relu6?|gelu|silu|mish|elu"
        r"|leaky_relu|hard\w+|softplus|erfc?|sign|clamp\w*|where|masked_fill|maximum|minimum|eq|ne"
        r"|lt|le|gt|ge|(logical|bitwise)_\w+|and|or|xor|not|invert|reciprocal|square|addc(mul|div)"
        r"|lerp|threshold|isnan|isinf|atan2"
    ),
}
_PATTERNS = [
    (re.compile(rf"_*(?:{names})(?:_backward\w*)?_*", re.ASCII), family)
    for family, names in _NAMES.items()
]
_LONGEST = 100  # name that is looked at; patterns take time


def family(kind: str, target: Any) -> str:
    """One of :data:`FAMILIES`.

    Args:
        kind: A node's ``op``.
        target: Its target.
    """
    if kind in _OF_KINDS:
        return _OF_KINDS[kind]
    packet = getattr(target, "overloadpacket", target)
    name = packet if isinstance(packet, str) else str(getattr(packet, "__name__", ""))
    short = name.rpartition(".")[2]
    if len(short) <= _LONGEST:
        for pattern, found in _PATTERNS:
            if pattern.fullmatch(short):
                return found
    return "pointwise" if torch.Tag.pointwise in getattr(target, "tags", ()) else "other"
