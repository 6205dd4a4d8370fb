"""Fake tensors, symbolic numbers and shape environments, written as JSON and read back."""

import copy
import json
import operator
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sympy
import torch
from torch import fx, nn
from torch._dynamo.source import ConstantSource
from torch._functorch.aot_autograd import aot_module
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import (
    DimDynamic,
    ShapeEnv,
    StatelessSymbolicContext,
    guard_bool,
)
from torch.utils._pytree import tree_leaves
from torch.utils._sympy import functions
from torch.utils._sympy.numbers import int_oo

from lazyfx_core._expressions import Expressions
from lazyfx_core._torch_symbolic import FakeReader, FakeWriter, Unstorable, is_fake_value
from lazyfx_core.errors import GraphFormatError

S0, S1 = sympy.symbols("s0 s1", positive=True, integer=True)
U0 = sympy.Symbol("u0", integer=True)
ZF0 = sympy.Symbol("zf0", real=True)


def there_and_back(values: list[Any]) -> tuple[list[Any], FakeReader]:
    writer = FakeWriter()
    described = [writer.describe(value) for value in values]
    described, environment = json.loads(json.dumps([described, writer.environment()]))
    reader = FakeReader(environment)
    return [reader.build(one) for one in described], reader


def values_of(gm: fx.GraphModule) -> list[Any]:
    metas = [node.meta.get(key) for node in gm.graph.nodes for key in ("val", "example_value")]
    return [value for value in tree_leaves(metas) if is_fake_value(value)]


def looks(value: Any) -> Any:
    """All that is promised to survive of one value."""
    if isinstance(value, FakeTensor):
        return (
            *(value.dtype, value.device, value.requires_grad, isinstance(value, nn.Parameter)),
            [looks(size) for size in value.size()],
            [looks(stride) for stride in value.stride()],
            looks(value.storage_offset()),
            looks(value.untyped_storage().nbytes()),
            *(value.is_conj(), value.is_neg()),
        )
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        node = value.node
        return type(value), node._expr, node.expr, node._hint, node.constant
    return value


def knowledge(env: ShapeEnv) -> dict[str, Any]:
    """What a shape environment knows, by the names of every release of torch."""
    names = (
        *("replacements", "divisible", "size_like", "unbacked_renamings", "unbacked_inputs"),
        *("var_to_range", "unbacked_alloc_order", "axioms", "val_to_var", "settings", "frozen"),
        *("runtime_asserts_frozen", "unique_ids", "num_deferred_runtime_asserts"),
        *("pending_fresh_unbacked_symbols", "var_to_hint_override", "name_to_symbol"),
        *("exclusion_constraints", "source_to_var"),
    )
    known = {name: getattr(env, name) for name in names if name in vars(env)}
    known["hints"] = vars(env).get("backed_var_to_val") or vars(env).get("var_to_val")
    counters = ("unbacked_symint_counter", "unbacked_symfloat_counter")
    known["counters"] = [str(getattr(env, name)) for name in counters]
    known["guards"] = [guard.expr for guard in env.guards]
    known["sources"] = {
        symbol: [name() if callable(name := source.name) else name for source in sources]
        for symbol, sources in env.var_to_sources.items()
    }
    known["asserts"] = {
        symbol: [(one.expr, one.msg) for one in asserts]
        for symbol, asserts in env.deferred_runtime_asserts.items()
    }
    return known


def check_same(values: list[Any]) -> tuple[list[Any], FakeReader]:
    """Write and read ``values``; compare what came back, who shares storage, what is known."""
    guards = [len(env.guards) for env in envs_of(values)]
    found, reader = there_and_back(values)
    assert [looks(value) for value in found] == [looks(value) for value in values]
    assert [len(env.guards) for env in envs_of(values)] == guards
    pairs = [
        (one.untyped_storage()._cdata, other.untyped_storage()._cdata)
        for one, other in zip(values, found, strict=True)
        if isinstance(one, FakeTensor)
    ]
    assert len(set(pairs)) == len({one for one, _ in pairs}) == len({two for _, two in pairs})
    assert all(
        value.fake_mode is reader.fake_mode for value in found if hasattr(value, "fake_mode")
    )
    numbers = [value for value in values if isinstance(value, (torch.SymInt, torch.SymFloat))]
    sizes = [size for value in values if isinstance(value, FakeTensor) for size in value.size()]
    symbolic = [one for one in (*numbers, *sizes) if isinstance(one, torch.SymInt)]
    if symbolic:
        assert knowledge(reader.fake_mode.shape_env) == knowledge(symbolic[0].node.shape_env)
    return found, reader


def envs_of(values: list[Any]) -> list[ShapeEnv]:
    modes = [value.fake_mode for value in values if isinstance(value, FakeTensor)]
    return [mode.shape_env for mode in modes if mode.shape_env is not None]


def symbolic_mode(*shapes: tuple[int, ...]) -> list[FakeTensor]:
    """Fake tensors of one mode, all of their sizes symbols."""
    mode = FakeTensorMode(shape_env=ShapeEnv())
    return [
        mode.from_tensor(
            torch.empty(shape),
            source=ConstantSource(f"input{index}"),
            symbolic_context=StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK] * len(shape)),
        )
        for index, shape in enumerate(shapes)
    ]


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.linear = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.convs(x).mean((2, 3)))


class Ragged(nn.Module):
    """Sizes that depend on values, comparisons, views, a conjugate."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[Any, ...]:
        count = mask.sum().item()
        torch._check(count >= 0)
        torch._check(count < 100)
        where = mask.nonzero()
        rows = x.t()[1:].contiguous()
        if rows.shape[0] > 3:
            rows = rows * 2
        return (
            *(x.view(-1)[:6] + count, where.t(), torch.zeros(count, 4), rows, x.t()),
            *(rows.shape[0] // 2, x.sum().item() * 0.5, torch.complex(x, x).conj().imag),
        )


def trace_make_fx(tracing_mode: str) -> list[Any]:
    net = Net()
    parameters = dict(net.named_parameters())

    def call(x: torch.Tensor) -> Any:
        return torch.func.functional_call(net, parameters, (x,))

    gm = make_fx(call, tracing_mode=tracing_mode, _allow_non_fake_inputs=True)(
        torch.randn(5, 3, 8, 8)
    )
    return values_of(gm)


def trace_ragged() -> list[Any]:
    gm = make_fx(Ragged(), tracing_mode="symbolic")(torch.randn(5, 7), torch.tensor([1, 0, 2]))
    return values_of(gm)


def trace_export() -> list[Any]:
    batch, width = (
        torch.export.Dim("batch", min=2, max=64),
        torch.export.Dim("width", min=4, max=64),
    )
    exported = torch.export.export(
        Net(), (torch.randn(5, 3, 8, 8),), dynamic_shapes={"x": {0: batch, 3: width}}
    )
    return values_of(exported.graph_module)


def trace_aot() -> list[Any]:
    graphs: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    model = aot_module(Net(), fw_compiler=keep, bw_compiler=keep, dynamic=True)
    model(torch.randn(5, 3, 8, 8)).sum().backward()
    return [value for gm in graphs for value in values_of(gm)]


def trace_dynamo() -> list[Any]:
    graphs: list[fx.GraphModule] = []

    def keep(gm: fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(gm)
        return gm.forward

    def function(x: torch.Tensor, scale: float) -> torch.Tensor:
        y = x.reshape(-1, x.shape[0]) * scale
        return y[1:] + x.shape[1] if x.shape[1] > 4 else y

    torch._dynamo.reset()
    torch.compile(function, backend=keep, dynamic=True)(torch.randn(5, 10), 2.5)
    torch._dynamo.reset()
    return [value for gm in graphs for value in values_of(gm)]


TRACES: dict[str, Callable[[], list[Any]]] = {
    "fake make_fx": lambda: trace_make_fx("fake"),
    "symbolic make_fx": lambda: trace_make_fx("symbolic"),
    "make_fx with unbacked sizes": trace_ragged,
    "export with dynamic dims": trace_export,
    "AOTAutograd, forward and backward": trace_aot,
    "Dynamo": trace_dynamo,
}


@pytest.mark.filterwarnings("ignore")  # what tracers warn of differs between torch releases
@pytest.mark.parametrize("trace", TRACES.values(), ids=TRACES.keys())
def test_every_value_of_a_traced_graph_comes_back(trace: Callable[[], list[Any]]) -> None:
    values = trace()
    assert len(values) >= 5
    check_same(values)


@pytest.mark.filterwarnings("ignore")
def test_what_came_back_is_written_as_the_original_was() -> None:
    values = trace_ragged()
    first, second = FakeWriter(), FakeWriter()
    described = [first.describe(value) for value in values]
    reader = FakeReader(json.loads(json.dumps(first.environment())))
    found = [reader.build(one) for one in described]
    assert [second.describe(value) for value in found] == described
    assert second.environment() == first.environment()


def test_guards_of_what_came_back_are_printed_as_those_of_the_original() -> None:
    values = symbolic_mode((4, 6), (4, 7))
    assert values[0].shape[1] * 2 > 10
    assert values[0].shape[1] != values[1].shape[1]
    found, reader = there_and_back(values)
    texts = [
        env.produce_guards_expression([size for value in of for size in value.shape])
        for env, of in (
            (values[0].fake_mode.shape_env, values),
            (reader.fake_mode.shape_env, found),
        )
    ]
    assert texts[0] == texts[1]
    assert "10" in texts[0] or "6" in texts[0]


def test_the_same_tensor_comes_back_as_one_object() -> None:
    with FakeTensorMode():
        one, other = torch.empty(3), torch.empty(3)
    found, _ = there_and_back([one, other, one])
    assert found[0] is found[2]
    assert found[0] is not found[1]


def test_tensors_that_share_a_storage_share_one_again() -> None:
    with FakeTensorMode():
        base = torch.empty(4, 6)
        views = [base, base[1:], base.t(), base.view(torch.int32), base[:, ::2], base.detach()]
        values = [*views, torch.empty(4, 6)]
    found, _ = check_same(values)
    assert len({value.untyped_storage()._cdata for value in found}) == 2


def test_symbolic_tensors_that_share_a_storage_share_one_again() -> None:
    (base,) = symbolic_mode((4, 6))
    with base.fake_mode:
        values = [base, base[1:], base.t(), base.view(torch.int32), base.detach(), base.clone()]
    check_same(values)
    check_same(values[::-1])


def test_a_symbolic_view_of_a_static_buffer_shares_its_storage() -> None:
    (x,) = symbolic_mode((4, 6))
    with x.fake_mode:
        buffer = torch.empty(100)
        mask = torch.empty(9, dtype=torch.bool).nonzero()
        values = [buffer[: x.shape[0]], buffer, buffer[: mask.shape[0]], mask]
    check_same(values)
    check_same(values[::-1])


def test_a_storage_that_was_resized_keeps_its_size() -> None:
    with FakeTensorMode():
        freed, longer = torch.empty(4), torch.empty(2)
    view = freed[1:]
    freed.untyped_storage().resize_(0)
    longer.untyped_storage().resize_(64)
    check_same([freed, view, longer])


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(2, 3, 4, 5, memory_format=torch.channels_last),
        lambda: torch.empty_strided((2, 3), (7, 2), dtype=torch.bfloat16),
        lambda: torch.empty(3).expand(2, 3),
        lambda: torch.empty((), dtype=torch.bool),
        lambda: torch.empty(0, 3, dtype=torch.complex64),
        lambda: torch.empty(3, requires_grad=True),
        lambda: torch.empty(3, requires_grad=True) * 2,
        lambda: nn.Parameter(torch.empty(3)),
        lambda: nn.Parameter(torch.empty(3), requires_grad=False),
        lambda: torch.empty(3, dtype=torch.complex64).conj(),
        lambda: torch.empty(3, dtype=torch.complex64).conj().imag,
        lambda: torch.empty(3, dtype=torch.float8_e4m3fn),
        lambda: torch.empty(3, dtype=torch.uint16)[1:],
    ],
)
def test_layout_and_flags_of_a_tensor_survive(make: Callable[[], torch.Tensor]) -> None:
    with FakeTensorMode():
        value = make()
    (found,), _ = check_same([value])
    assert found.is_contiguous() == value.is_contiguous()
    assert found.is_leaf


@pytest.mark.parametrize("device", ["cuda:0", "cuda:7", "meta", "mps:0"])
def test_a_tensor_keeps_a_device_that_is_not_here(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # where there is a GPU, torch would begin to use the eighth of them
    monkeypatch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda device: None)
    mode = FakeTensorMode()
    value = FakeTensor(mode, torch.empty(2, 3, device="meta"), torch.device("cpu"))
    value.__dict__["_fake_device" if "_fake_device" in vars(value) else "fake_device"] = (
        torch.device(device)
    )
    (found,), reader = there_and_back([value])
    assert found.device == torch.device(device)
    with reader.fake_mode:
        assert (found.t() + 1).device == torch.device(device)


def test_only_the_first_device_of_a_kind_is_initialized(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int | None] = []
    name = "torch._subclasses.fake_tensor.init_gpu_context"
    monkeypatch.setattr(name, lambda device: seen.append(device.index))
    layouts = [["float32", f"cuda:{index}", [2], [1], 0, 8, 0] for index in (0, 3)]
    found = read_all({"layouts": layouts, "tensors": [0, 1]}, [["tensor", 0], ["tensor", 1]])
    assert [value.device.index for value in found] == [0, 3]
    assert set(seen) == {0}


def test_settings_of_the_mode_survive() -> None:
    for allow in (True, False):
        mode = FakeTensorMode(allow_non_fake_inputs=allow, allow_fallback_kernels=not allow)
        _, reader = there_and_back([mode.from_tensor(torch.empty(2))])
        assert reader.fake_mode.allow_non_fake_inputs is allow
        assert reader.fake_mode.allow_fallback_kernels is not allow
        assert reader.fake_mode.static_shapes
        assert reader.fake_mode.shape_env is None


def test_a_mode_with_symbols_allows_data_dependent_sizes_even_if_no_value_has_any() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv(specialize_zero_one=False), static_shapes=True)
    (found,), reader = there_and_back([mode.from_tensor(torch.empty(2))])
    with reader.fake_mode:
        assert found.nonzero().shape[0].node.expr == U0
    assert not reader.fake_mode.shape_env.specialize_zero_one
    assert reader.fake_mode.static_shapes


def test_values_of_several_modes_come_back_in_one() -> None:
    values = [FakeTensorMode().from_tensor(torch.empty(2)) for _ in range(2)]
    found, reader = there_and_back(values)
    assert found[0].fake_mode is found[1].fake_mode is reader.fake_mode


def test_a_mode_and_a_shape_environment_are_values_themselves() -> None:
    (x,) = symbolic_mode((4, 6))
    mode = x.fake_mode
    assert is_fake_value(mode)
    assert is_fake_value(mode.shape_env)
    (found, found_mode, found_env), reader = there_and_back([x, mode, mode.shape_env])
    assert found_mode is reader.fake_mode is found.fake_mode
    assert found_env is found_mode.shape_env


def test_what_is_not_fake_is_left_to_others() -> None:
    others: list[Any] = [1, 2.5, "x", None, torch.empty(2), torch.empty(2, device="meta"), S0.func]
    assert not any(map(is_fake_value, others))
    assert all(map(is_fake_value, [S0, sympy.true, *symbolic_mode((4, 6))]))


# Use of what came back


def test_operations_on_what_came_back_give_the_shapes_they_gave_before() -> None:
    values = symbolic_mode((4, 6), (4, 6), (6, 5))
    found, reader = check_same(values)

    def run(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> list[torch.Tensor]:
        return [a + b, a.view(-1), a @ c, torch.cat([a, b]), a[1:].contiguous(), a.t().sum(0)]

    with values[0].fake_mode:
        before = run(*values)
    with reader.fake_mode:
        after = run(*found)
    assert [looks(value) for value in after] == [looks(value) for value in before]


def test_comparisons_come_to_what_they_came_to_and_guard_in_the_new_environment() -> None:
    values = symbolic_mode((4, 6), (4, 7))
    found, reader = there_and_back(values)
    old, new = values[0].fake_mode.shape_env, reader.fake_mode.shape_env
    assert found[0].shape[0] == found[1].shape[0]
    assert found[0].shape[1] != found[1].shape[1]
    assert found[0].shape[1] * 2 > 10
    assert len(old.guards) == 0
    assert values[0].shape[0] == values[1].shape[0]
    assert values[0].shape[1] != values[1].shape[1]
    assert values[0].shape[1] * 2 > 10
    assert [guard.expr for guard in new.guards] == [guard.expr for guard in old.guards]


def test_what_was_learned_before_is_known_after() -> None:
    a, b = symbolic_mode((4, 6), (5, 7))
    assert a.shape[0] * 2 == 8  # specializes
    assert a.shape[1] % 3 == 0
    assert b.shape[0] > 4
    found, reader = check_same([a, b, a.shape[0], a.shape[1] * 2])
    env = reader.fake_mode.shape_env
    guards = len(env.guards)
    assert found[0].shape[0] == 4
    assert found[0].shape[1] % 3 == 0
    assert found[1].shape[0] > 4
    assert len(env.guards) == guards


def test_new_symbols_do_not_take_the_names_of_old_ones() -> None:
    values = symbolic_mode((4, 6), (5, 7))
    with values[0].fake_mode:
        values += [values[0].nonzero(), torch.empty((), dtype=torch.int64).item()]
    _, reader = check_same(values)
    mode = reader.fake_mode
    known = {symbol.name for symbol in mode.shape_env.var_to_range}
    old = values[0].fake_mode
    for using in (old, mode):
        fresh = using.from_tensor(
            torch.empty(11, 5, 12),
            source=ConstantSource("fresh"),
            symbolic_context=StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK] * 3),
        )
        with using:
            unbacked = fresh.nonzero().shape[0]
        names = [str(size) for size in (*fresh.shape, unbacked)]
        assert names[1] == str(values[1].shape[0])  # duck shaping: 5 is known
        assert not known.intersection([names[0], names[2], names[3]])
        assert names[3] == "u2"


def test_unbacked_sizes_can_be_constrained_and_used() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    with mode:
        count = torch.empty((), dtype=torch.int64).item()
        torch._check(count >= 2)
        rows = torch.empty(count, 3)
    (count, rows), reader = check_same([count, rows])
    assert guard_bool(count >= 2)
    torch._check(count < 50)
    assert guard_bool(count < 50)
    with reader.fake_mode:
        assert (rows.t() @ rows).shape == (3, 3)
        assert rows.sum(1).shape[0].node.expr == count.node.expr
    assert len(reader.fake_mode.shape_env.deferred_runtime_asserts) == 1


def test_numbers_of_every_kind_come_back() -> None:
    (x,) = symbolic_mode((4, 6))
    a, b = x.shape
    values = [a, a + b, a * 2.5, a / b, a < b, torch.sym_not(a < b), torch.sym_max(a, b), a // 3]
    values += [torch.sym_ite(a < b, a, b), torch.sym_sqrt(a), a**2, a % 3, -a, a * b - 7]
    found, _ = check_same(values)
    assert [type(value) for value in found] == [type(value) for value in values]
    assert [guard_bool(one == two.node._hint) for one, two in zip(found, values, strict=True)]


def test_sizes_are_read_under_whatever_modes_are_active() -> None:
    values = symbolic_mode((4, 6))
    with values[0].fake_mode:
        values += [torch.empty(3), torch.empty(4)[1:], torch.empty(3, requires_grad=True)]
    writer = FakeWriter()
    described = [writer.describe(value) for value in values]
    environment = writer.environment()
    for context in (
        torch.inference_mode(),
        torch.no_grad(),
        FakeTensorMode(),
        torch.device("meta"),
        torch._C.DisableTorchFunctionSubclass(),
    ):
        with context:
            reader = FakeReader(environment)
            found = [reader.build(one) for one in described]
        assert [looks(value) for value in found] == [looks(value) for value in values]
        assert not any(value.is_inference() for value in found)


# Expressions

EXPRESSIONS: list[Any] = [
    *(S0, S0 + 1, S0 * S1 - 3 * U0, S0**-2, sympy.sqrt(2), sympy.sqrt(S0), sympy.Abs(U0)),
    *(sympy.Integer(0), sympy.Integer(-(2**70)), sympy.Rational(-3, 7), sympy.Float(0.1)),
    *(sympy.Float(0), sympy.Float(-1e300), sympy.Float("1.234", 30), sympy.Float(5e-324)),
    *(sympy.oo, -sympy.oo, int_oo, -int_oo, sympy.nan, sympy.pi, sympy.true, sympy.false),
    *(sympy.Eq(S0, S1), sympy.Ne(U0, 0), U0 < 3, U0 <= S0, U0 > 2, U0 >= 1),
    *(sympy.And(U0 > 2, S0 < 9), sympy.Or(U0 > 2, sympy.Eq(S0, U0))),
    *(~sympy.And(U0 > 2, S0 < 9), sympy.Piecewise((S0, U0 > 2), (S1, True))),
    *(sympy.Max(S0, U0), sympy.floor(S0 / 2), sympy.ceiling(S0 / 2), sympy.Mod(U0, 3)),
    *(functions.FloorDiv(S0 * 2 + 1, 3), functions.ModularIndexing(S0, 2, S1)),
    *(functions.Mod(S0, S1), functions.PythonMod(U0, 3), functions.CleanDiv(S0, S1)),
    *(functions.Where(U0 > 3, S0, S1), functions.Max(S0, U0 + 1, S1), functions.Min(S0, U0)),
    *(functions.PowByNatural(S0, S1), functions.FloatPow(ZF0, 2.5), functions.ToFloat(S0)),
    *(functions.FloatTrueDiv(ZF0, sympy.Float(2)), functions.IntTrueDiv(S0, S1)),
    *(functions.TruncToInt(ZF0), functions.TruncToFloat(ZF0), functions.RoundToInt(ZF0)),
    *(functions.CeilToInt(ZF0), functions.FloorToInt(ZF0), functions.RoundDecimal(ZF0, 2)),
    *(functions.Identity(S0 + 1), functions.OpaqueUnaryFn_sqrt(ZF0)),
    *(functions.OpaqueUnaryFn_log(ZF0), functions.BitwiseFn_bitwise_and(S0, S1)),
    functions.IsNonOverlappingAndDenseIndicator(S0, S1, U0, S0),
    sympy.Add(S0, S0, S1, evaluate=False),
    sympy.Symbol("odd_one", odd=True, positive=True),
]


def parts_of(expression: Any) -> list[Any]:
    # Not preorder_traversal(): it walks And and Or in the order of a set.
    return [type(expression), expression, *map(parts_of, expression.args)]


def test_expressions_come_back_part_by_part_and_evaluate_to_the_same() -> None:
    found, _ = there_and_back(EXPRESSIONS)
    numbers = {S0: sympy.Integer(6), S1: sympy.Integer(4), U0: sympy.Integer(5)}
    numbers[ZF0] = sympy.Float(2.5)
    for one, other in zip(EXPRESSIONS, found, strict=True):
        assert type(one) is type(other)
        assert one == other
        assert hash(one) == hash(other)
        assert parts_of(one) == parts_of(other)
        assert one.xreplace(numbers) == other.xreplace(numbers) or one is sympy.nan


def test_equal_parts_of_expressions_are_written_once() -> None:
    table = Expressions()
    whole = functions.FloorDiv(S0 + 1, S1)
    assert table.index(whole * 2) == table.index(whole * 2)
    table.index(whole + 7)
    assert len([row for row in table.rows if row[0] == "torch.FloorDiv"]) == 1


def test_a_long_sum_of_symbols_is_stored_and_not_sorted_anew() -> None:
    total = sum(sympy.Symbol(f"u{i}", integer=True) for i in range(1000))
    (found,), _ = there_and_back([total])
    assert found.args == total.args


# What cannot be stored


def test_a_second_shape_environment_is_refused() -> None:
    (one,), (other,) = symbolic_mode((4, 6)), symbolic_mode((4, 6))
    writer = FakeWriter()
    writer.describe(one)
    with pytest.raises(Unstorable, match="second shape environment"):
        writer.describe(other)
    with pytest.raises(Unstorable, match="second shape environment"):
        writer.describe(other.shape[0])
    writer.describe(one.shape[1])
    check_same([one])


class Sub(torch.Tensor):
    pass


def unstorable() -> Iterator[tuple[str, str, Any]]:
    mode = FakeTensorMode()
    eye = torch.eye(3)
    yield "sparse", "torch.sparse_coo", mode.from_tensor(eye.to_sparse())
    yield "csr", "torch.sparse_csr", mode.from_tensor(eye.to_sparse_csr())
    yield "subclass", "Sub", eye.as_subclass(Sub)
    yield "dummy", "Dummy", sympy.Dummy("x")
    yield "strange name", "a b", sympy.Symbol("a b")
    yield "keyword", "'if'", sympy.Symbol("if")
    yield "class", "Derivative", sympy.Derivative(S0, S0, evaluate=False)
    yield "not commutative", "commutative", sympy.Symbol("q", commutative=False)
    yield "big exponent", "exponent", sympy.Pow(S0, 10**6, evaluate=False)
    yield "big integer", "4096 bits", sympy.Integer(1 << 5000)


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("case", range(10))
def test_what_cannot_be_stored_is_named(case: int) -> None:
    with torch.no_grad():
        _, message, value = list(unstorable())[case]
    with pytest.raises(Unstorable, match=message):
        FakeWriter().describe(value)


def test_a_nested_integer_is_refused_by_its_kind() -> None:
    nested = torch.nested.nested_tensor([torch.randn(2), torch.randn(3)], layout=torch.jagged)
    with pytest.raises(Unstorable, match="NestedIntNode"):
        FakeWriter().describe(nested.shape[1])


def test_sources_that_are_more_than_names_come_back_as_the_symbol() -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    value = mode.from_tensor(
        torch.empty(4),
        source=ConstantSource("__import__('os').system('true')"),
        symbolic_context=StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DUCK]),
    )
    (found,), reader = there_and_back([value])
    (symbol,) = found.shape[0].node.expr.free_symbols
    env = reader.fake_mode.shape_env
    (source,) = env.var_to_sources[symbol]
    assert (source.name() if callable(source.name) else source.name) == symbol.name
    assert "import" not in str(vars(env)["source_to_var"])


# What a stranger may have written


def read_all(environment: dict[str, Any], described: list[Any]) -> list[Any]:
    reader = FakeReader(environment)
    return [reader.build(one) for one in described]


def ragged_environment() -> tuple[dict[str, Any], list[Any]]:
    values = symbolic_mode((4, 6), (4, 6))
    with values[0].fake_mode:
        values += [values[0].t()[1:], values[0].nonzero(), torch.empty(3), torch.empty(6)[2:]]
        values += [values[3].shape[0], values[0].shape[0] * 0.5, values[0].shape[0] < 3]
        assert values[0].shape[1] == 6
        torch._check(values[6] < 50)
    writer = FakeWriter()
    described = [writer.describe(value) for value in values]
    environment, described = json.loads(json.dumps([writer.environment(), described]))
    return environment, described


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["Integer", 5], ["Eval", 0]], "Eval"),
        ([[]], "list that begins"),
        (["Add"], "list that begins"),
        ([[5]], "list that begins"),
        ([["Add", 0, 1]], "expression 0 does not exist"),
        ([["true"], ["Not", True]], "True"),
        ([["true", 1]], "0 values"),
        ([["Integer", "5"]], "integer"),
        ([["Integer", 1 << 5000]], "4096 bits"),
        ([["Integer", "0x" + "f" * 2000]], "4096 bits"),
        ([["Integer", True]], "integer"),
        ([["Rational", 1, 0]], "fraction"),
        ([["Rational", 2, 4]], "fraction"),
        ([["Float", 0, 2, 0, 53]], "floating"),
        ([["Float", 0, 1, 10**9, 53]], "floating"),
        ([["Float", 0, 1, 0, 10**9]], "floating"),
        ([["Symbol", "a b", {}]], "a b"),
        ([["Symbol", "lambda", {}]], "lambda"),
        ([["Symbol", "x" * 300, {}]], "xxx"),
        ([["Symbol", "x", {"shiny": True}]], "shiny"),
        ([["Symbol", "x", {"positive": True, "negative": True}]], "Symbol"),
        ([["Symbol", "x", {"positive": 1}]], "positive"),
        ([["Symbol", "x", []]], "assumptions"),
        ([["Integer", 5], ["Integer", 5]], "repeats expression 0"),
        ([["Integer", 5], ["Add", 0]], "two arguments"),
        ([["true"], ["Integer", 5], ["Add", 0, 1]], "argument 0 of Add"),
        ([["Integer", 5], ["Integer", 6], ["And", 0, 1]], "argument 0 of And"),
        ([["true"], ["And", 0, 0]], "different arguments"),
        ([["Integer", 5], ["Eq", 0]], "expected 2 values"),
        ([["Integer", 5], ["torch.FloorDiv", 0]], "FloorDiv"),
        ([["Integer", 5], ["torch.Max", 0]], "Max of 1"),
        ([["Integer", 5], ["Piecewise", 0]], "ExprCondPair"),
        ([["Integer", 10], ["Integer", 10**9], ["Pow", 0, 1]], "exponent 1000000000"),
        ([["Float", 0, 5, 1, 53], ["Float", 0, 1, 99, 53], ["torch.FloatPow", 0, 1]], "exponent"),
        ([["Symbol", "x", {}], ["Integer", 2], ["Pow", 1, 0]], "exponent x is not a number"),
        ([["oo"], ["Integer", 2], ["Pow", 1, 0]], "exponent oo is not a number"),
        (
            [
                *(["Symbol", "x", {}], ["Integer", 10**12], ["Integer", -1], ["Mul", 2, 0]),
                *(["Add", 0, 3, 1], ["torch.PowByNatural", 0, 4]),
            ],
            "holds numbers beyond 1000",
        ),
    ],
)
def test_a_row_that_is_no_expression_is_refused(rows: list[Any], message: str) -> None:
    with pytest.raises(GraphFormatError, match=message):
        read_all({"expressions": rows}, [["expression", len(rows) - 1]])


def test_expressions_that_would_explode_are_refused() -> None:
    x: list[Any] = [["Symbol", "s0", {"integer": True}], ["Integer", 1], ["Integer", 900]]
    deep = x + [["torch.FloorDiv", 0, 1]] + [["torch.FloorDiv", n, 1] for n in range(3, 600)]
    wide = [*x, ["torch.Mod", 0, 1]] + [["torch.Mod", n, n] for n in range(3, 40)]
    sums = [*x, ["Add", 0, 1]] + [["Mul", n, n] for n in range(3, 40)]
    powers = [*x, ["Pow", 0, 2]] + [["Pow", n, 2] for n in range(3, 12)]
    for rows, message in ((deep, "deep"), (wide, "parts"), (sums, "terms"), (powers, "bits")):
        with pytest.raises(GraphFormatError, match=message):
            read_all({"expressions": rows}, [["expression", 0]])


@pytest.mark.parametrize(
    ("replacements", "message"),
    [
        ([[0, 0]], "replaced by itself"),
        ([[0, 3]], "replaced by itself"),
        ([[0, 1], [1, 0]], "replaced by itself"),
        ([[0, 4]], None),
        ([[2, 3]], "is not a symbol"),
        ([[0, 99]], "does not exist"),
        ([[0]], "list of 2"),
        ({"0": 1}, "expected a list"),
    ],
)
def test_replacements_that_never_end_are_refused(replacements: Any, message: str | None) -> None:
    integer = {"integer": True}
    rows = [["Symbol", "s0", integer], ["Symbol", "s1", integer], ["Integer", 2], ["Add", 0, 2]]
    rows += [["Add", 1, 2]]
    environment = {"expressions": rows, "shapes": {"replacements": replacements}}
    if message is None:
        assert FakeReader(environment).fake_mode.shape_env.replacements
        return
    with pytest.raises(GraphFormatError, match=message):
        FakeReader(environment).fake_mode


def test_a_chain_of_replacements_that_doubles_is_refused() -> None:
    integer = {"integer": True}
    rows: list[Any] = [["Symbol", f"s{n}", integer] for n in range(40)]
    rows += [["torch.Mod", n, n] for n in range(40)]
    pairs = [[n + 1, 40 + n] for n in range(39)]
    with pytest.raises(GraphFormatError, match="with symbols replaced"):
        FakeReader({"expressions": rows, "shapes": {"replacements": pairs}}).fake_mode


def put(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    *where, last = [int(part) if part.isdigit() else part for part in path.split(".")]

    def change(environment: dict[str, Any]) -> None:
        found: Any = environment
        for part in where:
            found = found[part]
        found[last] = value

    return change


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("tables", [], "tables"),
        ("tensors", {}, "tensors"),
        ("tensors.0", "x", "'x'"),
        ("tensors.0", 99, "99"),
        ("tensors.0", [0, None], "None"),
        ("layouts.0", 5, "layout 0"),
        ("layouts.0.0", "float33", "float33"),
        ("layouts.0.0", "__name__", "__name__"),
        ("layouts.0.1", "abacus:1", "abacus"),
        ("layouts.0.1", None, "None"),
        ("layouts.0.2", [1, 2, 3], "one length"),
        ("layouts.0.2", [-1, 2], "-1"),
        ("layouts.0.2", [1 << 63, 2], "is not a length"),
        ("layouts.0.2", [True, 2], "True"),
        ("layouts.0.2", [[99], 2], "99"),
        ("layouts.0.2", [[-1], 2], "-1"),
        ("layouts.0.3", [2.5, 1], "2.5"),
        ("layouts.0.4", -3, "-3"),
        ("layouts.0.5", "4", "'4'"),
        ("layouts.0.6", 16, "16"),
        ("numbers.0", [], "number 0"),
        ("numbers.0.0", "complex", "complex"),
        ("numbers.0.1", 10**6, "1000000"),
        ("numbers.0.0", "bool", "number 0: .* is not of kind bool"),
        ("numbers.0.2", 2.5, "2.5"),
        ("numbers.0.2", True, "True"),
        ("numbers.0.2", ["float", "abc"], "abc"),
        ("mode.allow_non_fake_inputs", 1, "allow_non_fake_inputs"),
        ("mode.shape_env", True, "shape_env"),
        ("shapes", [], "shape environment"),
        ("shapes.surprise", [], "surprise"),
        ("shapes.settings", [], "settings"),
        ("shapes.settings.duck_shape", "yes", "duck_shape"),
        ("shapes.settings.nothing", True, "nothing"),
        ("shapes.counters", [0], "counters"),
        ("shapes.counters", [-1, 0], "counters"),
        ("shapes.counters", [1 << 40, 0], "counters"),
        ("shapes.frozen", 1, "frozen"),
        ("shapes.hints.0", [0], "hints"),
        ("shapes.hints.0", [1, 0], "hints"),
        ("shapes.ranges.0", [0, 1, 0], "ranges"),
        ("shapes.sources.0", [0, "abc"], "sources"),
        ("shapes.guards.0", [0, None], "guards"),
        ("shapes.guards.0", [1, False], "guards.*is not a boolean"),
        ("shapes.asserts.0", [None, [[0]]], "asserts"),
        ("shapes.source_symbols", [["f(1)", 0]], "f\\(1\\)"),
        ("shapes.duck", [["x", 0]], "'x'"),
    ],
)
def test_damaged_tables_are_refused_by_name(path: str, value: Any, message: str) -> None:
    environment, described = ragged_environment()
    put(path, value)(environment)
    with pytest.raises(GraphFormatError, match=message):
        read_all(environment, described)


@pytest.mark.parametrize("environment", [None, [], "x", {5: 1}, {"mode": None}, {"tensors": 3}])
def test_an_environment_that_is_none_is_refused(environment: Any) -> None:
    with pytest.raises(GraphFormatError, match="fake values"):
        FakeReader(environment)


@pytest.mark.parametrize(
    "described",
    [
        *(None, [], ["tensor"], ["tensor", -1], ["tensor", True], ["tensor", 99], ["tensor", "0"]),
        *(["number", 99], ["expression", None], ["code", 0], [["tensor"], 0], {"tensor": 0}),
        *(["mode", 1], ["shapes", 3], ["number", [0]], ["tensor", [0]], ["tensor", 1.0]),
    ],
)
def test_a_description_of_nothing_is_refused(described: Any) -> None:
    environment, _ = ragged_environment()
    with pytest.raises(GraphFormatError):
        FakeReader(environment).build(described)


def test_one_storage_of_two_sizes_is_refused() -> None:
    layouts = [["float32", "cpu", [n], [1], 0, 4 * n, 0] for n in (3, 5)]
    with pytest.raises(GraphFormatError, match="storage 0 has two sizes, 12 and 20"):
        read_all({"layouts": layouts, "tensors": [[0, 0], [1, 0]]}, [["tensor", 0], ["tensor", 1]])


def test_enormous_tensors_cost_nothing_or_are_refused() -> None:
    fits = ["float32", "cpu", [1 << 40, 1 << 20], [1 << 20, 1], 0, 1 << 62, 0]
    (found,) = read_all({"layouts": [fits], "tensors": [0]}, [["tensor", 0]])
    assert found.shape == (1 << 40, 1 << 20)
    overflows = ["float32", "cpu", [1 << 40, 1 << 40], [1 << 40, 1], 0, 0, 0]
    with pytest.raises(GraphFormatError, match="tensor 0: torch refuses it"):
        read_all({"layouts": [overflows], "tensors": [0]}, [["tensor", 0]])


def test_a_parameter_that_cannot_require_grad_is_refused() -> None:
    layout = ["int64", "cpu", [2], [1], 0, 16, 3]
    with pytest.raises(GraphFormatError, match="torch refuses it"):
        read_all({"layouts": [layout], "tensors": [0]}, [["tensor", 0]])


def paths(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = enumerate(data) if type(data) is list else data.items() if type(data) is dict else ()
    for key, item in items:
        yield (*path, key)
        yield from paths(item, (*path, key))


def test_random_damage_is_refused_or_harmless_and_never_anything_else() -> None:
    environment, described = ragged_environment()
    chance = random.Random(4)
    everywhere = list(paths(environment))
    junk: list[Any] = [
        *(None, True, 0, 1, -1, 7, 40, 1 << 40, 1 << 63, 1 << 5000, 0.5, float("inf"), "", "x"),
        *("int", "bool", "Add", "Pow", "torch.Mod", "Eq", "And", "oo", "qint8", "meta", "0xff"),
        *([], [0], [0, 1], [[0]], {}, {"integer": True}, ["Integer", 3], ["Pow", 0, 1]),
    ]
    refused = 0
    for _ in range(600):
        damaged = copy.deepcopy(environment)
        *where, last = chance.choice(everywhere)
        found = damaged
        for key in where:
            found = found[key]
        match chance.randrange(4):
            case 0:
                del found[last]
            case 1:
                source = operator.getitem(everywhere, chance.randrange(len(everywhere)))
                value: Any = environment
                for key in source:
                    value = value[key]
                found[last] = copy.deepcopy(value)
            case _:
                found[last] = chance.choice(junk)
        try:
            read_all(damaged, described)
        except GraphFormatError:
            refused += 1
    assert refused > 200
