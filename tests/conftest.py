"""Options and fixtures that every test folder shares. Imports none of the packages."""

import itertools
import os

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", default="cpu", choices=["cpu", "cuda"], help="where models run")
    parser.addoption("--slow", action="store_true", help="run the long forms too")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)  # pytest-xdist uses the cores; two levels of threads only fight
    if config.getoption("--device") == "cuda" and not torch.cuda.is_available():
        message = "no NVIDIA GPU here"
        if os.environ.get("LAZYFX_REQUIRE_CUDA") == "1":
            raise pytest.UsageError(message + ", and LAZYFX_REQUIRE_CUDA=1 asks for one")
        pytest.exit(message, returncode=0)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="long form: run with --slow"))


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def most_bytes_at_a_time():
    """The most bytes that a call has allocated at a time, counted by torch's profiler."""

    def count(run):
        with torch.autograd.profiler.profile(use_kineto=False, profile_memory=True) as profile:
            run()
        events = sorted(profile.kineto_results.events(), key=lambda one: one.start_ns())
        changes = [one.nbytes() for one in events if one.name() == "[memory]"]
        return max(itertools.accumulate(changes))

    return count
