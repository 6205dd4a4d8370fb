"""The table of names: what a stored graph may name, and what a stranger's graph may call."""

import builtins
import functools
import importlib
import io
import math
import operator
import os
import pickle
import subprocess
import sys
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx, nn
from torch._higher_order_ops.auto_functionalize import auto_functionalized
from torch._ops import _higher_order_ops
from torch.utils.checkpoint import CheckpointPolicy

from lazyfx_core import _names
from lazyfx_core._names import (
    all_names,
    find,
    name_of,
    why_not_arguments,
    why_not_callable,
    why_not_target,
    why_not_value,
)
from lazyfx_core._torch_graph import operator_name
from lazyfx_core._torch_names import find_operator_safely, tensor_methods

GRAPH = fx.Graph()
X = GRAPH.placeholder("x")
ops = torch.ops


# ---------------------------------------------------------------------------------- the table


def test_every_name_finds_its_object_and_every_object_is_found_by_its_preferred_name():
    count = 0
    for namespace, name, value in all_names():
        assert value is not None
        assert find(namespace, name) is value, (namespace, name)
        preferred = name_of(value)
        assert preferred is not None, (namespace, name)
        assert find(*preferred) is value, (namespace, name, preferred)
        count += 1
    print(f"{count} names of {len({id(value) for *_, value in all_names()})} objects")
    assert count > 3000


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (torch.sin, ("torch", "sin")),
        (torch.zeros, ("torch", "zeros")),
        (torch.einsum, ("torch", "einsum")),
        (torch._VF.einsum, ("torch.extra", "torch._C._VariableFunctions.einsum")),
        (torch.sym_max, ("torch", "sym_max")),
        (torch._check, ("torch", "_check")),
        (torch._assert, ("torch", "_assert")),
        (torch._foreach_add_, ("torch", "_foreach_add_")),
        (F.conv2d, ("torch", "conv2d")),
        (F.relu, ("torch.nn.functional", "relu")),
        (F.linear, ("torch.nn.functional", "linear")),
        (F.max_pool2d, ("torch.nn.functional", "max_pool2d")),
        (F._max_pool2d, ("torch.nn.functional", "_max_pool2d")),
        (F.scaled_dot_product_attention, ("torch.nn.functional", "scaled_dot_product_attention")),
        (torch._C._nn.pad, ("torch.extra", "torch._C._nn.pad")),
        (torch.special.erf, ("torch.special", "erf")),
        (torch.linalg.norm, ("torch.linalg", "norm")),
        (torch.fft.rfft, ("torch.fft", "rfft")),
        (torch.nested.nested_tensor, ("torch.nested", "nested_tensor")),
        (torch.Tensor.add, ("torch.Tensor", "add")),
        (torch.Tensor.split, ("torch.Tensor", "split")),
        (torch.Tensor.__getitem__, ("torch.Tensor", "__getitem__")),
        (operator.iadd, ("operator", "iadd")),
        (operator.is_, ("operator", "is_")),
        (operator.__add__, ("operator", "add")),
        (math.sqrt, ("math", "sqrt")),
        (getattr, ("builtins", "getattr")),
        (int, ("builtins", "int")),
        (type(None), ("types", "NoneType")),
        (torch.Tensor, ("torch", "Tensor")),
        (torch.dtype, ("torch", "dtype")),
        (torch.SymInt, ("torch", "SymInt")),
        (torch.return_types.max, ("torch.return_types", "max")),
        (nn.Parameter, ("torch.nn", "Parameter")),
        (nn.Module, ("torch.nn", "Module")),
        (nn.Linear, ("torch.nn", "Linear")),
        (
            nn.modules.linear.NonDynamicallyQuantizableLinear,
            ("torch.nn.modules", "linear.NonDynamicallyQuantizableLinear"),
        ),
        (torch._C._set_grad_enabled, ("torch.extra", "torch._C._set_grad_enabled")),
        (
            torch.amp.autocast_mode._enter_autocast,
            ("torch.extra", "torch.amp.autocast_mode._enter_autocast"),
        ),
        (
            torch._C._functorch._add_batch_dim,
            ("torch.extra", "torch._C._functorch._add_batch_dim"),
        ),
    ],
)
def test_what_tracers_emit_has_the_name_a_person_would_write(value, name):
    assert name_of(value) == name
    assert find(*name) is value


@pytest.mark.parametrize(
    "value",
    [
        *(eval, exec, open, __import__, compile, setattr, delattr, globals, vars, input, print),
        *(type, locals, dir, breakpoint, memoryview, super, classmethod, property, map, filter),
        *(torch.load, torch.save, torch.from_file, torch.frombuffer, torch.hub.load),
        *(torch.compile, torch.jit.load, torch.jit.script, torch.ops.load_library, torch.vmap),
        *(torch.set_default_dtype, torch.set_default_device, torch.manual_seed, torch.cond),
        *(torch.classes.load_library, torch.import_ir_module, torch.fork, torch.parse_ir),
        *(torch.Tensor.apply_, torch.Tensor.map_, torch.Tensor.map2_, torch.Tensor.register_hook),
        *(torch.Tensor.module_load, torch.Tensor.share_memory_, torch.Tensor.untyped_storage),
        *(torch.Tensor.__reduce_ex__, torch.Tensor.__setstate__, torch.Tensor.backward),
        *(torch.Tensor.as_subclass, torch.Tensor._make_subclass, torch.Tensor.data_ptr),
        *(torch.lobpcg, F.triplet_margin_with_distance_loss, torch.sparse.as_sparse_gradcheck),
        *(operator.attrgetter, operator.itemgetter, operator.methodcaller),
        *(functools.reduce, functools.partial, os.system, subprocess.Popen, pickle.loads),
        *(importlib.import_module, io.open, types.FunctionType, types.CodeType, torch),
    ],
)
def test_what_reaches_files_code_or_the_process_is_not_in_the_table(value):
    assert name_of(value) is None


def test_nothing_in_the_table_has_a_name_that_tells_of_files_or_code():
    telling = {"file", "load", "save", "open", "exec", "eval", "import", "hook", "blob", "pickle"}
    found = [
        f"{namespace}.{name}"
        for namespace, name, _ in all_names()
        if telling & set(name.lower().replace(".", "_").split("_"))
    ]
    assert found == []


def test_operators_are_not_in_the_table():
    for value in (ops.aten.add.Tensor, ops.aten.add, _higher_order_ops["cond"], ops.aten, ops):
        assert name_of(value) is None


class Hostile:
    """Raises at everything that can be asked of an object."""

    __hash__ = None

    def __eq__(self, other):
        raise SystemExit

    def __bool__(self):
        raise SystemExit

    def __getattribute__(self, name):
        raise SystemExit


def test_asking_for_a_name_calls_nothing_of_the_object():
    assert name_of(Hostile()) is None
    assert find("torch", Hostile()) is None
    assert find(Hostile(), "sin") is None


def test_what_is_no_function_or_class_has_no_name():
    for value in ([], {}, 0, True, None, "torch", torch.ones(2), torch.float32, lambda x: x, ...):
        assert name_of(value) is None


def test_an_object_that_equals_a_function_does_not_take_its_name():
    class Same:
        def __eq__(self, other):
            return True

        def __hash__(self):
            return hash(torch.sin)

    assert name_of(Same()) is None


def test_a_function_in_the_place_of_torchs_own_gets_no_name(monkeypatch):
    original = F.relu

    @functools.wraps(original)
    def relu(x, inplace=False):
        return x

    monkeypatch.setattr(F, "relu", relu)
    monkeypatch.setattr(torch.Tensor, "split", relu)
    monkeypatch.setattr(nn, "Linear", type("Linear", (nn.Linear,), {"__module__": "mine"}))
    monkeypatch.setattr(_names, "_table", None)
    assert name_of(relu) is None
    assert find("torch.nn.functional", "relu") is None
    assert find("torch.Tensor", "split") is None
    assert name_of(nn.Linear) is None
    assert name_of(nn.Linear.__base__) == ("torch.nn.modules", "linear.Linear")


def test_making_the_table_imports_nothing(monkeypatch):
    monkeypatch.setattr(_names, "_table", None)
    monkeypatch.setattr(_names, "_policy", None)
    before = set(sys.modules)
    assert find("torch", "sin") is torch.sin
    assert why_not_callable("call_method", "add", (X,), {}) is None
    assert set(sys.modules) == before


def test_threads_that_make_the_table_together_agree(monkeypatch):
    monkeypatch.setattr(_names, "_table", None)
    barrier, answers = threading.Barrier(8), []

    def ask():
        barrier.wait()
        answers.append([name_of(torch.sin), find("torch", "cos"), name_of(nn.Linear)])

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [[("torch", "sin"), torch.cos, ("torch.nn", "Linear")]] * 8


HOSTILE_NAMES = [
    *(
        "",
        ".",
        "..",
        "__class__",
        "__globals__",
        "sin.__self__",
        "sin\0",
        "\0",
        "\ud800",
        "a" * 10**6,
    ),
    *("load", "save", "hub.load", "ops.load_library", "_C", "nn", "os", "sys", "os.system"),
    *("__import__", "eval", "exec", "open", "print", "globals", "attrgetter", "call"),
    *("torch.load", "torch._C._initExtension", "torch.hub.load", "builtins.eval", "apply_"),
    *("__reduce_ex__", "__init__", "__dict__", "__getattribute__", "linear.torch", "linear.F"),
]
NAMESPACES = sorted({namespace for namespace, *_ in all_names()})


@pytest.mark.parametrize("namespace", [*NAMESPACES, "", "os", "torch.hub", "builtins\0", "sys"])
def test_hostile_names_find_nothing(namespace):
    for name in HOSTILE_NAMES:
        assert find(namespace, name) is None, name


@pytest.mark.parametrize("odd", [None, 0, [], {}, ("torch",), b"torch"])
def test_names_that_are_no_text_find_nothing(odd):
    assert find(odd, "sin") is None
    assert find("torch", odd) is None


@given(st.sampled_from(NAMESPACES) | st.text(), st.sampled_from(HOSTILE_NAMES) | st.text())
@settings(deadline=None, max_examples=500)
def test_whatever_is_found_is_in_the_table(namespace, name):
    found = find(namespace, name)
    assert found is None or find(*name_of(found)) is found


# ---------------------------------------------------------------------------------- operators


def overloads():
    """All registered operators that can be looked up as overloads, by name."""
    for qualified in torch._C._dispatch_get_all_op_names():
        name, _, overload = qualified.partition(".")
        yield f"{name.replace('::', '.')}.{overload or 'default'}"


def test_all_operators_are_found_by_the_name_they_are_stored_under():
    count = 0
    for name in overloads():
        found = find_operator_safely("overload", name)
        if found is None:  # registered for a backend, with no schema
            with pytest.raises((AttributeError, RuntimeError)):
                functools.reduce(getattr, name.split("."), torch.ops)
            continue
        assert operator_name(found) == ("overload", name)
        packet = name.rpartition(".")[0]
        assert operator_name(find_operator_safely("packet", packet)) == ("packet", packet)
        count += 1
    print(count, "overloads")
    assert count > 2500


def test_higher_order_operators_are_found_by_the_name_they_are_stored_under():
    for value in _higher_order_ops.values():
        assert find_operator_safely(*operator_name(value)) is value


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(
            (kind, name)
            for kind in ("overload", "packet", "higher_order")
            for name in HOSTILE_NAMES
        ),
        *(("overload", "aten.add"), ("overload", "aten.add.Tensor.x"), ("overload", "aten.add.op")),
        *(("overload", "aten.add.__class__"), ("overload", "aten.__class__.x"), ("packet", "aten")),
        *(("overload", "aten.add.nosuch"), ("packet", "aten.nosuch"), ("packet", "nosuch.nosuch")),
        *(("overload", "aten.add._dir"), ("overload", "aten.name.join"), ("packet", "aten.name")),
        *(("packet", "aten.add.Tensor"), ("packet", "higher_order.cond"), ("packet", "aten.add\0")),
        *(("overload", "aten.add.Tensor\n"), ("overload", "aten.add."), ("overload", "aten.ädd.x")),
        *(("overload", "nosuch_ns.a.b"), ("overload", "loaded_libraries.add.x"), ("x", "aten.add")),
        *(("packet", "load_library.x"), ("packet", "__dict__.x"), ("packet", "_dir.append")),
        *(("higher_order", "cond"), ("higher_order", "x.cond"), ("higher_order", "higher_order.x")),
        *(("higher_order", "higher_order.cond.x"), ("higher_order", "higher_order.__class__")),
    ],
    ids=lambda value: value[:40].encode("ascii", "replace").decode().replace("\0", "NUL"),
)
def test_hostile_operator_names_find_nothing_and_leave_nothing_behind(kind, name):
    before, modules = set(vars(torch.ops)), set(sys.modules)
    assert find_operator_safely(kind, name) is None
    assert set(vars(torch.ops)) == before
    assert set(sys.modules) == modules


@given(st.sampled_from(["overload", "packet", "higher_order"]), st.text(max_size=30))
@settings(deadline=None, max_examples=300)
def test_an_operator_that_is_found_has_the_name_that_was_asked_for(kind, name):
    for asked in (name, f"aten.{name}", f"aten.add.{name}", f"{name}.add.Tensor"):
        before = set(vars(torch.ops))
        found = find_operator_safely(kind, asked)
        assert found is None or operator_name(found) == (kind, asked)
        assert found is not None or set(vars(torch.ops)) == before


# -------------------------------------------------------------------- what strangers may call


REFUSED = [
    ("call_function", torch.load, ("f",), {}, "torch.serialization.load is not in the table"),
    ("call_function", torch.from_file, ("f",), {}, "from_file"),
    ("call_function", eval, ("1",), {}, "builtins.eval is not in the table"),
    ("call_function", operator.attrgetter, ("x",), {}, "operator.attrgetter is not in the table"),
    ("call_function", functools.partial(print), (), {}, "print"),
    ("call_function", lambda x: x, (X,), {}, "<lambda>"),
    ("call_function", torch.hub.load, (), {}, "torch.hub.load is not in the table"),
    ("call_function", torch.Tensor.apply_, (X, len), {}, "apply_"),
    ("call_function", "torch.sin", (X,), {}, "'torch.sin' is not in the table"),
    ("call_function", nn.Linear, (1, 1), {}, "torch.nn.Linear is a class that graphs have no"),
    ("call_function", object, (), {}, "builtins.object is a class"),
    ("call_function", torch.dtype, (), {}, "torch.dtype is a class"),
    ("call_function", ops.aten.from_file.default, ("f",), {}, "aten.from_file.default opens files"),
    ("call_function", ops.aten.from_file, ("f",), {}, "operator aten.from_file opens files"),
    ("call_function", ops.aten.save, (X, "f"), {}, "operator aten.save writes files"),
    ("call_function", ops.prim.Print, (X,), {}, "prim.Print belongs to the TorchScript"),
    (
        "call_function",
        ops.aten._reshape_alias.default,
        (X, [9], [1]),
        {},
        "aten._reshape_alias.default reaches past the end",
    ),
    ("call_function", getattr, (X, "__class__"), {}, "getattr of '__class__'"),
    ("call_function", getattr, (X, "grad_fn"), {}, "getattr of 'grad_fn'"),
    ("call_function", getattr, (X, "apply_"), {}, "getattr of 'apply_'"),
    ("call_function", getattr, (X, "_base"), {}, "getattr of '_base'"),
    ("call_function", getattr, (X, X), {}, "an attribute that the graph spells out, not x"),
    ("call_function", getattr, (X,), {}, "getattr takes an object, an attribute"),
    ("call_function", getattr, (X, "shape"), {"a": 1}, "getattr takes an object, an attribute"),
    (
        "call_function",
        sorted,
        ([X],),
        {"key": getattr},
        "argument of builtins.sorted: builtins.getat",
    ),
    ("call_function", max, ([X],), {"key": eval}, "builtins.max: builtins.eval is not in the"),
    (
        "call_function",
        _higher_order_ops["cond"],
        (X, [{"a": (getattr,)}]),
        {},
        "argument of higher_order.cond: builtins.getattr may be called with a fixed",
    ),
    (
        "call_function",
        torch.sin,
        (slice(None, None, [ops.aten.from_file.default]),),
        {},
        "argument of torch.sin: the operator aten.from_file.default opens files",
    ),
    ("call_method", "apply_", (X, len), {}, "'apply_' is not in the list of harmless methods"),
    ("call_method", "add", (X, [exec]), {}, "argument of 'add': builtins.exec is not in the table"),
    ("call_method", None, (X,), {}, "None is not in the list"),
    *(
        ("call_method", name, (X,), {}, f"{name!r} is not in the list of harmless methods")
        for name in (
            *("map_", "map2_", "register_hook", "backward", "module_load", "share_memory_"),
            *(
                "storage",
                "untyped_storage",
                "data_ptr",
                "as_subclass",
                "__reduce_ex__",
                "__class__",
            ),
            *(
                "__init__",
                "__setstate__",
                "__getattribute__",
                "__dlpack__",
                "__array__",
                "__call__",
            ),
            *("_make_subclass", "__torch_function__", "tofile", "dump", "format", "", "no such"),
            *("__subclasses__", "__new__", "__import__", "load_state_dict", "register_buffer"),
            *("apply", "sort\0", "__deepcopy__", "__format__", "eval", "open", "setdefault"),
        )
    ),
]


@pytest.mark.parametrize(("op", "target", "args", "kwargs", "fragment"), REFUSED)
def test_a_refusal_names_the_target(op, target, args, kwargs, fragment):
    reason = why_not_callable(op, target, args, kwargs)
    assert reason is not None
    assert fragment in reason


@pytest.mark.parametrize(
    ("op", "target", "args", "kwargs"),
    [
        ("placeholder", "x", (), {}),
        ("get_attr", "weight", (), {}),
        ("call_module", "linear", (X,), {}),
        ("output", "output", ((X,),), {}),
        ("call_function", torch.add, (X, X), {"alpha": 2}),
        ("call_function", operator.iadd, (X, 1), {}),
        ("call_function", operator.setitem, (X, slice(None), 1), {}),
        ("call_function", torch.cat, ([X, X],), {"dim": 0}),
        ("call_function", torch.zeros, ((X, 2),), {"dtype": torch.float32, "device": "cpu"}),
        ("call_function", ops.aten.add.Tensor, (X, X), {}),
        ("call_function", ops.aten.add, (X, X), {}),
        ("call_function", ops.prim.device.default, (X,), {}),
        ("call_function", _higher_order_ops["cond"], (X, X, X, (X,)), {}),
        ("call_function", auto_functionalized, (ops.aten.add_.Tensor,), {}),
        ("call_function", getattr, (X, "shape"), {}),
        ("call_function", getattr, (X, "values"), {}),
        ("call_function", getattr, (X, "eigenvalues"), {}),
        ("call_function", getattr, (X, "T", None), {}),
        ("call_function", sorted, ([X, 1],), {"key": len}),
        ("call_function", isinstance, (X, (torch.Tensor, int)), {}),
        ("call_function", tuple, ([X],), {}),
        ("call_function", torch.Size, ([X],), {}),
        ("call_function", torch.return_types.max, ([X, X],), {}),
        ("call_function", torch.Tensor.add, (X, X), {}),
        ("call_method", "add_", (X, 1), {}),
        ("call_method", "__getitem__", (X, 0), {}),
        ("call_method", "__iadd__", (X, 0), {}),
        ("call_method", "size", (X,), {}),
        ("call_method", "items", (X,), {}),
        ("call_method", "to", (X, torch.float16), {}),
    ],
)
def test_what_tracers_emit_is_allowed(op, target, args, kwargs):
    assert why_not_callable(op, target, args, kwargs) is None


def test_a_list_that_contains_itself_does_not_hang():
    loop = [X]
    loop.append(loop)
    assert why_not_callable("call_function", torch.cat, (loop,), {}) is None


def test_values_that_share_parts_are_looked_through_once():
    for wrap in (lambda v: slice(v, v, v), lambda v: (v, v, v), lambda v: {"a": v, "b": v}):
        shared = [1.5]
        for _ in range(200):
            shared = wrap(shared)
        assert why_not_callable("call_function", torch.cat, (shared,), {}) is None


def test_very_deep_arguments_do_not_overflow_the_stack():
    deep = [getattr]
    for _ in range(100_000):
        deep = [deep]
    assert "getattr" in why_not_callable("call_function", torch.cat, (deep,), {})


@pytest.mark.parametrize(
    "value",
    [
        1,
        "eval",
        None,
        X,
        torch.float32,
        torch.ones(1),
        len,
        nn.Linear,
        ops.aten.add,
        [len],
        fx.Tracer,
    ],
)
def test_values_that_nobody_can_misuse_may_be_held(value):
    assert why_not_value(value) is None


@pytest.mark.parametrize(
    ("value", "fragment"),
    [
        (getattr, "builtins.getattr may be called with a fixed attribute, but not handed on"),
        ([{"a": (getattr,)}], "builtins.getattr may be called"),
        (torch.return_types.max((1, getattr)), "builtins.getattr may be called"),
        (eval, "builtins.eval is not in the table"),
        (os.system, "system is not in the table"),
        (ops.aten.from_file, "aten.from_file opens files"),
        (nn.Linear(1, 1), "Linear(in_features=1"),
        (X.args.__len__, "is not in the table"),
    ],
)
def test_values_that_can_be_misused_may_not_be_held(value, fragment):
    assert fragment in why_not_value(value)


def test_what_a_target_alone_decides_can_be_remembered_and_the_rest_is_asked_for_each_node():
    cond = _higher_order_ops["cond"]
    for target, args in (
        (getattr, (X, "__class__")),
        (cond, (X, getattr)),
        (torch.sin, ([len, eval],)),
    ):
        assert why_not_target("call_function", target) is None
        assert why_not_arguments(target, args, {}) is not None


def test_arguments_of_every_kind_of_node_are_looked_at():
    for op, target in (("placeholder", "x"), ("output", "output"), ("call_module", "linear")):
        assert f"argument of {target!r}: builtins.getattr" in why_not_callable(
            op, target, (getattr,), {}
        )
        assert why_not_callable(op, target, (X, None, [1.5]), {"a": (X,)}) is None


def test_a_function_that_the_caller_trusts_may_be_an_argument():
    def mine(x):
        return x

    assert "mine is not in the table" in why_not_arguments(torch.sin, ([mine],), {"a": mine})
    assert why_not_arguments(torch.sin, ([mine],), {"a": mine}, {id(mine)}) is None
    assert why_not_arguments(getattr, (X, "__class__"), {}, {id(getattr)}) is None
    assert why_not_value([mine], {id(mine)}) is None


@pytest.mark.parametrize(
    "value",
    [
        *(torch.float16, torch.device("cpu"), torch.strided, torch.channels_last, torch.Size([1])),
        *(..., range(3), 1j, b"x", float("nan"), torch.ones(1), {1, 2}, slice(X, None)),
        *({"a": [X, (X,)]}, torch.return_types.max((1, 2)), CheckpointPolicy.MUST_SAVE),
        *(int, torch.Tensor, torch.add, ops.aten.add),
    ],
    ids=lambda value: type(value).__name__,
)
def test_values_with_a_known_text_may_be_arguments(value):
    assert why_not_arguments("f", (value,), {}) is None
    assert why_not_arguments("f", (X,), {"a": [value]}) is None


class Text:
    def __repr__(self):
        return "print('this runs')"


class TextOfText(str):
    __repr__ = Text.__repr__


@pytest.mark.parametrize("value", [Text(), TextOfText(), object(), torch.Generator(), GRAPH])
def test_values_whose_text_torch_would_write_into_code_may_not_be_arguments(value):
    for args in ((value,), ([X, (value,)],), ({"a": value},), (slice(value),), ({value: 1},)):
        reason = why_not_arguments("f", args, {})
        assert f"argument of 'f': torch would write the text of a {type(value).__name__}" in reason


def test_of_all_aten_operators_those_are_refused_that_do_more_than_compute():
    refused = {
        name.split(".")[1]
        for name in overloads()
        if name.startswith("aten.") and (found := find_operator_safely("overload", name))
        if why_not_callable("call_function", found, (), {}) is not None
    }
    assert refused == {"from_file", "_print", "_reshape_alias", "_reshape_alias_copy"}


def test_an_operator_of_another_library_is_allowed_unless_its_name_tells_of_files():
    with torch.library._scoped_library("lazyfx_test_names", "DEF") as library:
        library.define("scale(Tensor x) -> Tensor")
        library.define("read_file(str path) -> Tensor")
        ours = torch.ops.lazyfx_test_names
        assert why_not_callable("call_function", ours.scale.default, (X,), {}) is None
        reason = why_not_callable("call_function", ours.read_file.default, ("f",), {})
        assert "lazyfx_test_names.read_file.default may touch files" in reason
        assert "'file'" in reason


def test_the_higher_order_operators_that_run_other_code_are_refused():
    importlib.import_module("torch._higher_order_ops.triton_kernel_wrap")
    refused = {
        name
        for name, value in _higher_order_ops.items()
        if why_not_callable("call_function", value, (), {}) is not None
    }
    assert {"triton_kernel_wrapper_mutation", "call_torchbind", "custom_function_call"} <= refused
    assert not refused & {
        "cond",
        "while_loop",
        "scan",
        "out_dtype",
        "flex_attention",
        "with_effects",
    }


def test_methods_that_are_allowed_exist_and_are_public_or_operators_of_the_language():
    for name in tensor_methods():
        assert callable(getattr(torch.Tensor, name))
        assert name[0] != "_" or (name[:2] == name[-2:] == "__")
    assert len(tensor_methods()) > 550


# ---------------------------------------------------------------------------------- real graphs


def without_gradients(x):
    with torch.no_grad():
        y = x.sin()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = y @ x.T
    with torch.inference_mode():
        w = x * 2
    return z, w.max(1).values, torch.einsum("ij,kj->ik", x, x)


def transforms(x):
    per_sample = torch.vmap(torch.func.grad(lambda a: (a.sin() * a).sum()))(x)
    return per_sample, torch.func.jvp(torch.sin, (x,), (x,))


def in_place(x):
    y = x.clone()
    y += 1
    y[0] = 3
    return y.mul_(2).split(2), torch.topk(y, 2).indices, F.max_pool1d(y, 2), F.pad(y, (1, 1))


def checkpointed(x):
    return torch.utils.checkpoint.checkpoint(
        lambda y: F.scaled_dot_product_attention(y, y, y), x[None], use_reentrant=False
    )


def nodes_of(gm):
    return [
        node
        for module in gm.modules()
        if isinstance(module, fx.GraphModule)
        for node in module.graph.nodes
    ]


@pytest.mark.parametrize("function", [without_gradients, transforms, in_place, checkpointed])
def test_what_dynamo_puts_in_graphs_is_in_the_table_and_allowed(function):
    seen = []

    def backend(gm, example_inputs):
        seen.extend(nodes_of(gm))
        return gm

    torch._dynamo.reset()
    torch.compile(function, backend=backend)(torch.randn(4, 8))
    torch._dynamo.reset()
    assert len(seen) > 3
    for node in seen:
        assert why_not_callable(node.op, node.target, node.args, node.kwargs) is None, node
        if node.op != "call_function":
            continue
        operator_ = operator_name(node.target)
        if operator_ is None:
            assert find(*name_of(node.target)) is node.target, node
        else:
            assert find_operator_safely(*operator_) is node.target, node


def test_what_symbolic_tracing_puts_in_graphs_is_in_the_table_and_allowed():
    class Net(nn.Module):
        def forward(self, x):
            y = F.relu(F.max_pool2d(x, 2)) + F.interpolate(x, scale_factor=0.5)
            y = torch.flatten(y, 1).softmax(-1)
            return (
                y.view(y.size(0), -1),
                y.max(1).values,
                y.shape[0] + math.pi,
                -y,
                abs(y),
                y[0, 1:],
            )

    nodes = nodes_of(fx.symbolic_trace(Net()))
    assert builtins.getattr in {node.target for node in nodes}
    for node in nodes:
        assert why_not_callable(node.op, node.target, node.args, node.kwargs) is None, node
        if node.op == "call_function":
            assert find(*name_of(node.target)) is node.target, node
