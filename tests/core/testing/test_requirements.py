"""hypothesis is optional, and whoever lacks it is told what to install."""

import subprocess
import sys

import pytest

import lazyfx_core.testing

WITHOUT = """
import sys
sys.modules["hypothesis"] = None
import lazyfx_core
try:
    import lazyfx_core.testing
except lazyfx_core.MissingDependencyError as error:
    print(error.dependency, "|", error.command, "|", error)
"""
QUIET = """
import sys
import torch, torch.fx
before = set(sys.modules)
import lazyfx_core
assert "hypothesis" not in sys.modules and "lazyfx_core.testing" not in sys.modules
import lazyfx_core.testing
heavy = ("torch._inductor", "torch._dynamo", "torch._functorch", "sympy")
loaded = [name for name in set(sys.modules) - before if name.startswith(heavy)]
assert not loaded, loaded
"""


def test_without_hypothesis_the_import_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, command, message = done.stdout.strip().split(" | ")
    assert name == "hypothesis"
    assert command == "python -m pip install 'lazyfx-core[testing]'"
    assert message.startswith("lazyfx_core.testing needs 'hypothesis'")


def test_the_core_does_not_import_it_and_importing_it_loads_no_compiler():
    done = subprocess.run([sys.executable, "-c", QUIET], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_sorted():
    assert lazyfx_core.testing.__all__ == sorted(lazyfx_core.testing.__all__)
    for name in lazyfx_core.testing.__all__:
        assert getattr(lazyfx_core.testing, name).__doc__, name


@pytest.mark.parametrize("name", ["graph_cases", "edits", "invalid_edits"])
def test_strategies_are_functions_that_return_strategies(name):
    from hypothesis.strategies import SearchStrategy

    assert isinstance(getattr(lazyfx_core.testing, name)(), SearchStrategy)
