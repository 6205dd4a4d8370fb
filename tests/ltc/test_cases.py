"""Every case of ``cases/`` against eager, each in a process of its own.

A case agrees with eager, or it is listed as refused and the reason is the one it lists.
"""

from __future__ import annotations

import importlib.util
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


def _load_harness() -> Any:
    name = "_harness"  # the tables import it by this name
    if name not in sys.modules:
        path = Path(__file__).parent / "cases" / "_harness.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


harness = _load_harness()
TABLE = harness.load_all()
harness.load(Path(__file__).parent / "cases" / "_defective.py")
DEFECTIVE: Any = sys.modules["ltc_cases__defective"]


@pytest.fixture(scope="module")
def parent() -> Iterator[Any]:
    started = harness.Parent()
    yield started
    started.close()


@pytest.mark.parametrize("name", TABLE)
def test_a_case_agrees_with_eager_or_is_refused_as_listed(
    name: str, parent: Any, skip_untraceable: Callable[[str], None]
) -> None:
    seen = parent.run(name)
    wanted = "agrees" if TABLE[name].refused is None else "refused"
    if seen["outcome"] != wanted:
        skip_untraceable(seen["why"])
        if "Can't convert UInt64 to a Python object" in seen["why"]:
            pytest.skip("fake tensors of torch 2.6 cannot hold integers above 2**63 - 1")
    assert seen["outcome"] == wanted, f"{seen['outcome']}: {seen['why']}"
    if wanted == "refused":
        print(f"{name}: {seen['why']}")


def test_there_are_enough_cases_in_every_theme() -> None:
    themes = Counter(name.partition(":")[0] for name in TABLE)
    assert len(TABLE) >= 250
    assert min(themes.values()) >= 8, themes


def test_importing_the_tables_does_not_start_the_lazy_backend(alone: Any) -> None:
    folder = Path(__file__).parent
    code = (
        "import importlib.util, sys\n"
        f"spec = importlib.util.spec_from_file_location('t', {str(folder / 'test_cases.py')!r})\n"
        "module = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(module)\n"
        "from lazyfx_ltc import _session\n"
        "assert module.TABLE and not _session._session\n"
    )
    done = alone(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", DEFECTIVE.WANTED)
def test_the_runner_sees_what_is_wrong(name: str, parent: Any) -> None:
    outcome, why = DEFECTIVE.WANTED[name]
    seen = parent.run(name, timeout=2.0 if outcome == "hung" else harness.TIMEOUT)
    assert seen["outcome"] == outcome, seen
    assert why in seen["why"]
