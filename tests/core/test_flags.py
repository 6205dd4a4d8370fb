"""Which class is built where: use, skip, threads, tasks, blocks that end in any order."""

import asyncio
import contextvars
import threading

import pytest
import torch
from torch import fx
from torch.fx import _lazy_graph_module as torchs

from lazyfx_core import (
    LazyGraphModule,
    force_skip_lazy_graph_module,
    get_graph_module_cls,
    use_lazy_graph_module,
)


def test_unset_means_torch_decides():
    assert get_graph_module_cls() is fx.GraphModule
    with torchs._use_lazy_graph_module(True):
        assert get_graph_module_cls() is torchs._LazyGraphModule


def test_the_innermost_use_decides_over_torch():
    with use_lazy_graph_module(True):
        assert get_graph_module_cls() is LazyGraphModule
        with use_lazy_graph_module(False):
            assert get_graph_module_cls() is fx.GraphModule
            with torchs._use_lazy_graph_module(True):
                assert get_graph_module_cls() is fx.GraphModule
        assert get_graph_module_cls() is LazyGraphModule
        with torchs._use_lazy_graph_module(False):
            assert get_graph_module_cls() is LazyGraphModule
    assert get_graph_module_cls() is fx.GraphModule


def test_skip_wins_whichever_was_entered_first():
    with use_lazy_graph_module(True), force_skip_lazy_graph_module():
        assert get_graph_module_cls() is fx.GraphModule
    with force_skip_lazy_graph_module(), use_lazy_graph_module(True):
        assert get_graph_module_cls() is fx.GraphModule
    with use_lazy_graph_module(True), torchs._force_skip_lazy_graph_module():
        assert get_graph_module_cls() is fx.GraphModule


def test_skip_reaches_torch_where_torch_would_be_lazy():
    with torchs._use_lazy_graph_module(True), force_skip_lazy_graph_module():
        gm = fx.symbolic_trace(lambda x: torch.sin(x))
    assert not isinstance(gm, (LazyGraphModule, torchs._LazyGraphModule))


def test_an_exception_leaves_no_flag_behind():
    with pytest.raises(ZeroDivisionError), use_lazy_graph_module(True):
        raise ZeroDivisionError
    assert get_graph_module_cls() is fx.GraphModule


def test_blocks_may_end_in_any_order():
    first, second = use_lazy_graph_module(True), use_lazy_graph_module(False)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert get_graph_module_cls() is fx.GraphModule
    second.__exit__(None, None, None)
    with torchs._use_lazy_graph_module(True):
        assert get_graph_module_cls() is torchs._LazyGraphModule


def test_a_setting_may_be_entered_again_while_entered():
    setting = use_lazy_graph_module(True)
    with setting:
        with setting:
            assert get_graph_module_cls() is LazyGraphModule
        assert get_graph_module_cls() is LazyGraphModule
    assert get_graph_module_cls() is fx.GraphModule


def test_settings_are_decorators_too():
    @use_lazy_graph_module(True)
    def trace():
        return fx.symbolic_trace(lambda x: torch.sin(x))

    assert isinstance(trace(), LazyGraphModule)
    assert get_graph_module_cls() is fx.GraphModule


def test_a_thread_does_not_see_the_setting_of_another():
    seen = []
    with use_lazy_graph_module(True):
        thread = threading.Thread(
            target=contextvars.Context().run, args=(lambda: seen.append(get_graph_module_cls()),)
        )
        thread.start()
        thread.join()
    assert seen == [fx.GraphModule]


def test_asyncio_tasks_do_not_see_each_other():
    async def lazy(entered, leave):
        with use_lazy_graph_module(True):
            entered.set()
            await leave.wait()
            return get_graph_module_cls()

    async def other(entered, leave):
        await entered.wait()
        seen = get_graph_module_cls()
        leave.set()
        return seen

    async def main():
        entered, leave = asyncio.Event(), asyncio.Event()
        return await asyncio.gather(lazy(entered, leave), other(entered, leave))

    assert asyncio.run(main()) == [LazyGraphModule, fx.GraphModule]


def test_a_setting_can_be_left_in_another_context_than_it_was_entered_in():
    setting = use_lazy_graph_module(True)
    contextvars.copy_context().run(setting.__enter__)
    setting.__exit__(None, None, None)
    assert get_graph_module_cls() is fx.GraphModule


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_only_true_and_false_are_taken(wrong):
    with pytest.raises(TypeError, match=r"should_use.*True or False"):
        use_lazy_graph_module(wrong)
