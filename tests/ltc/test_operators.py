"""Every operator that torch describes for its own tests, captured and held against eager.

torch's table has some 600 of them, with sample inputs. Each agrees with eager, or is listed here
with the reason for which it is refused. The long form (``--slow``) takes more samples, and complex
numbers, integers and bools too.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils import _pytree as pytree

import lazyfx_ltc as ltc

pytest.importorskip("expecttest", reason="torch's table of operators needs expecttest")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.testing._internal.common_methods_invocations import op_db

READS = r"reads the value of a tensor"
CONJUGATE = r"conjugate"
REINTERPRETS = r"reinterprets its memory"
NUMBER = r"the recorded graph does not run"  # a complex or bool number the backend made a tensor
REFUSED_FOR: dict[str, str] = {
    READS: """argwhere bincount cholesky_inverse combinations item linalg.cholesky linalg.cond
        linalg.det linalg.inv linalg.ldl_factor linalg.lstsq linalg.lu_factor linalg.matrix_power
        linalg.solve linalg.tensorinv linalg.tensorsolve masked_select nn.functional.ctc_loss
        nonzero repeat_interleave unique unique_consecutive""",
    REINTERPRETS: "H T mH mT conj imag real view_as_complex view_as_real",
    CONJUGATE: "fft.ifft fft.ihfft fft.ihfft2 fft.ihfftn linalg.lu_solve linalg.svd svd",
    NUMBER: "addmm baddbmm constant_pad_nd nn.functional.pad",
    "as_strided": "as_strided as_strided_copy",
    "Empty output_sizes is not supported": "index_select",  # of nothing, by the lazy backend
    r"linalg_pinv\.atol_rtol_tensor": "linalg.pinv",
    "updates statistics": "nn.functional.instance_norm",
    r"layout torch\.sparse_coo": "to_sparse",
}
REFUSED = {name: reason for reason, names in REFUSED_FOR.items() for name in names.split()}
LONG = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.complex64, torch.bool)
NAMES = sorted({op.name for op in op_db})


@cache
def table() -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for op in op_db:
        found.setdefault(op.name, []).append(op)
    return found


def calls_of(
    op: Any, dtypes: Sequence[torch.dtype], most: int
) -> Iterator[tuple[Callable[..., Any], list[torch.Tensor]]]:
    """An operator's samples as functions of tensors, and the tensors."""
    for dtype in dtypes:
        if dtype not in op.supported_dtypes("cpu"):
            continue
        for count, sample in enumerate(op.sample_inputs("cpu", dtype)):
            if count == most:
                break
            leaves, spec = pytree.tree_flatten((sample.input, sample.args, sample.kwargs))
            places = [n for n, leaf in enumerate(leaves) if isinstance(leaf, torch.Tensor)]

            def call(
                *tensors: Any, leaves: Any = leaves, spec: Any = spec, at: Any = places
            ) -> Any:
                given = list(leaves)
                for place, tensor in zip(at, tensors, strict=True):
                    given[place] = tensor
                first, args, kwargs = pytree.tree_unflatten(given, spec)
                return op(first, *args, **kwargs)

            yield call, [leaves[place].detach() for place in places]


def traced(call: Callable[..., Any], tensors: list[torch.Tensor]) -> Any:
    """The call as a graph; None if torch cannot trace it, or does not get eager's result."""
    try:
        graph = make_fx(call)(*clones(tensors))
        torch.manual_seed(1)
        want = call(*clones(tensors))
        torch.manual_seed(1)
        torch.testing.assert_close(graph(*clones(tensors)), want, equal_nan=True)
    except Exception:  # whatever tracing raises, and what it gets wrong
        return None
    return graph


def clones(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    return [one.clone() for one in tensors]


def check(op: Any, call: Callable[..., Any], tensors: list[torch.Tensor]) -> bool:
    """Whether a call could be traced at all; if so, it agrees with eager or is listed."""
    graph = traced(call, tensors)
    if graph is None:
        return False
    refused = ""
    try:
        compiled = ltc.extract_compiled_graph(graph, clones(tensors))
    except ltc.LtcError as error:
        refused = str(error)
    if refused:
        assert re.search(REFUSED.get(op.name, "not listed"), refused), f"{op.full_name}: {refused}"
        return True
    torch.manual_seed(1)
    want = call(*clones(tensors))
    torch.manual_seed(1)
    got = compiled(*clones(tensors))
    if not any(word in op.name for word in ("empty", "new_empty")):
        torch.testing.assert_close(got, want, equal_nan=True)
    return True


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore")
def test_an_operator_agrees_with_eager_or_is_listed(
    name: str, request: pytest.FixtureRequest
) -> None:
    slow = request.config.getoption("--slow")
    dtypes, most = (LONG, 6) if slow else ((torch.float32, torch.int64), 1)
    with torch.no_grad():
        for op in table()[name]:
            for call, tensors in calls_of(op, dtypes, most):
                check(op, call, tensors)


@pytest.mark.filterwarnings("ignore")
def test_nearly_every_operator_is_captured() -> None:
    """That the test above is not empty: few operators cannot be traced."""
    tried, captured = 0, 0
    with torch.no_grad():
        for name in NAMES[::7]:
            for call, tensors in calls_of(table()[name][0], (torch.float32,), 1):
                tried += 1
                captured += name not in REFUSED and traced(call, tensors) is not None
    assert tried >= 50
    assert captured >= 0.8 * tried
