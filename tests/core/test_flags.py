"""Which class is built where: use, skip, threads, tasks, blocks that end in any order."""

import asyncio
import contextlib
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


# --- generators -----------------------------------------------------------------------------------


def now():
    return get_graph_module_cls()


def test_a_suspended_generator_does_not_show_its_setting_to_its_caller():
    def steps():
        with use_lazy_graph_module(True):
            yield now()
            yield now()
        yield now()

    generator = steps()
    assert next(generator) is LazyGraphModule
    assert now() is fx.GraphModule
    assert next(generator) is LazyGraphModule
    assert now() is fx.GraphModule
    assert next(generator) is fx.GraphModule
    assert [cls for cls in steps() if now() is fx.GraphModule] == [
        LazyGraphModule,
        LazyGraphModule,
        fx.GraphModule,
    ]


def test_the_reference_leaks_out_of_a_generator():
    def steps():
        with torchs._use_lazy_graph_module(True):
            yield

    generator = steps()
    next(generator)
    assert torchs._get_graph_module_cls() is torchs._LazyGraphModule
    generator.close()


def test_what_a_running_generator_calls_sees_its_setting():
    def trace():
        return fx.symbolic_trace(lambda x: torch.sin(x))

    def steps():
        with use_lazy_graph_module(True):
            yield trace()
            yield from ([trace()] for _ in range(1))

    first, second = steps()
    assert isinstance(first, LazyGraphModule)
    assert isinstance(second[0], LazyGraphModule)


def test_two_interleaved_generators_keep_their_own_settings():
    def steps(lazy):
        with use_lazy_graph_module(lazy):
            for _ in range(3):
                yield now()

    assert list(zip(steps(True), steps(False), strict=True)) == (
        [(LazyGraphModule, fx.GraphModule)] * 3
    )
    assert now() is fx.GraphModule


def test_a_dropped_generator_leaves_nothing_in_force():
    def steps():
        with use_lazy_graph_module(True):
            yield

    generator = steps()
    next(generator)
    del generator
    with torchs._use_lazy_graph_module(True):
        assert now() is torchs._LazyGraphModule


def test_a_generator_that_is_a_context_manager_sets_it_for_its_caller():
    @contextlib.contextmanager
    def lazily():
        with use_lazy_graph_module(True):
            yield

    class Wrapped:
        def __enter__(self):
            self.inner = use_lazy_graph_module(True)
            self.inner.__enter__()

        def __exit__(self, *error):
            self.inner.__exit__(*error)

    with lazily():
        assert now() is LazyGraphModule
    with Wrapped():
        assert now() is LazyGraphModule
    with contextlib.ExitStack() as stack:
        stack.enter_context(lazily())
        assert now() is LazyGraphModule
    assert now() is fx.GraphModule

    def steps():
        with lazily(), Wrapped():
            yield now()

    generator = steps()
    assert next(generator) is LazyGraphModule
    assert now() is fx.GraphModule


@pytest.fixture
def _lazily():
    with use_lazy_graph_module(True):
        yield


@pytest.mark.usefixtures("_lazily")
def test_a_fixture_sets_it_for_its_test():
    assert now() is LazyGraphModule


def test_an_asynchronous_generator_does_not_show_its_setting_either():
    async def steps():
        with use_lazy_graph_module(True):
            yield now()
            await asyncio.sleep(0)
            yield now()

    @contextlib.asynccontextmanager
    async def lazily():
        with use_lazy_graph_module(True):
            yield

    async def main():
        seen = [(cls, now()) async for cls in steps()]
        async with lazily():
            return seen, now()

    seen, inside = asyncio.run(main())
    assert seen == [(LazyGraphModule, fx.GraphModule)] * 2
    assert inside is LazyGraphModule


# --- everywhere ---------------------------------------------------------------------------------


def test_everywhere_is_a_part_of_the_innermost_setting():
    graph = fx.symbolic_trace(lambda x: torch.sin(x)).graph

    def is_lazy():
        return isinstance(fx.GraphModule({}, graph), LazyGraphModule)

    with use_lazy_graph_module(True, everywhere=True):
        assert is_lazy()
        with use_lazy_graph_module(True):
            assert not is_lazy()
            assert now() is LazyGraphModule
        with force_skip_lazy_graph_module():
            assert not is_lazy()
        with torchs._force_skip_lazy_graph_module():
            assert not is_lazy()
        assert is_lazy()
    assert not is_lazy()


def test_everywhere_without_laziness_is_refused():
    with pytest.raises(ValueError, match="everywhere"):
        use_lazy_graph_module(False, everywhere=True)
    with pytest.raises(TypeError, match="everywhere"):
        use_lazy_graph_module(True, everywhere=1)
    assert repr(use_lazy_graph_module(True, everywhere=True)) == (
        "use_lazy_graph_module(True, everywhere=True)"
    )


def test_a_coroutine_function_can_be_decorated():
    @use_lazy_graph_module(True)
    async def build():
        await asyncio.sleep(0)
        return fx.symbolic_trace(lambda x: x + 1)

    assert isinstance(asyncio.run(build()), LazyGraphModule)
    assert get_graph_module_cls() is not LazyGraphModule


def test_a_generator_function_can_be_decorated():
    @use_lazy_graph_module(True)
    def build():
        sent = yield get_graph_module_cls()
        yield sent, get_graph_module_cls()

    running = build()
    assert next(running) is LazyGraphModule
    assert get_graph_module_cls() is not LazyGraphModule
    assert running.send("sent") == ("sent", LazyGraphModule)


def test_an_async_generator_function_is_refused_with_what_to_do():
    async def build():
        yield 1

    with pytest.raises(TypeError, match=r"async generator .*build.*inside"):
        use_lazy_graph_module(True)(build)


def test_one_setting_entered_by_a_generator_and_its_caller_is_left_by_each():
    setting = use_lazy_graph_module(True)

    def inner():
        with setting:
            yield
            yield

    running = inner()
    next(running)
    with setting:
        running.close()
        assert get_graph_module_cls() is LazyGraphModule
    assert get_graph_module_cls() is not LazyGraphModule

    running = inner()
    next(running)
    setting.__enter__()
    next(running)
    setting.__exit__(None, None, None)
    assert get_graph_module_cls() is not LazyGraphModule
    running.close()


def test_a_context_manager_class_around_a_generator_sets_the_flag_for_its_caller():
    def body():
        with use_lazy_graph_module(True):
            yield

    class Own:
        def __enter__(self):
            self.body = body()
            next(self.body)

        def __exit__(self, *_):
            next(self.body, None)

    with Own():
        assert get_graph_module_cls() is LazyGraphModule
    assert get_graph_module_cls() is not LazyGraphModule
