"""Options and fixtures that every test folder shares. Imports none of the packages."""

import itertools
import json
import os
import subprocess
import sys

import pytest
import torch

# Nobody who imports a package pays for these before they are used.
_HEAVY = (
    *("torch._inductor", "torch._dynamo", "torch._functorch", "torch._lazy", "torch.utils._sympy"),
    *("functorch", "sympy", "networkx", "numpy", "safetensors", "matplotlib", "click"),
    *("hypothesis", "transformers"),
)
_IMPORT = """
import json, sys
import torch
from torch.fx import _lazy_graph_module as torchs
chooser, before = torchs._get_graph_module_cls, set(sys.modules)
package = __import__(sys.argv[1])
for name in package.__all__:  # some are imported when they are first asked for
    getattr(package, name)
loaded = sorted(set(sys.modules) - before)
patched = torchs._get_graph_module_cls is not chooser
try:
    lazy = str(torch.empty(1, device="lazy").device)
except NotImplementedError:  # no backend has registered its kernels
    lazy = None
print(json.dumps({"loaded": loaded, "patched": patched, "lazy": lazy}))
"""


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
    if config.getoption("--device") == "cuda":
        # Read when CUDA starts, here and in child processes: products are of whole float32
        # numbers, as on the CPU, and the same each time.
        os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="long form: run with --slow"))


@pytest.hookimpl(tryfirst=True)  # before pytest's own, which leaves out what a mark says
def pytest_runtest_setup(item: pytest.Item) -> None:
    # docs/compatibility.py counts on a GPU what put tensors there
    if {"device", "cuda"}.intersection(getattr(item, "fixturenames", ())):
        item.user_properties.append(("device", item.config.getoption("--device")))


@pytest.fixture(scope="session")
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """For what the CPU cannot show."""
    if device.type != "cuda":
        pytest.skip("needs --device cuda")
    return device


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


@pytest.fixture
def assert_imports_quietly():
    """A fresh process imports a package after torch: no heavy module, no patch, no backend."""

    def check(package):
        done = subprocess.run(
            [sys.executable, "-c", _IMPORT, package], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr
        seen = json.loads(done.stdout)
        assert package in seen["loaded"]
        loaded = [f"{name}." for name in seen["loaded"]]
        heavy = [each for each in _HEAVY if any(name.startswith(f"{each}.") for name in loaded)]
        assert not heavy, f"importing {package} loads {heavy}"
        assert not seen["patched"], f"importing {package} patches torch.fx"
        assert seen["lazy"] is None, f"importing {package} initializes the lazy backend"

    return check
