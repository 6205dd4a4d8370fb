"""Tests of the built wheels, as somebody has them who installs them: ``nox -s downstream``.

Nothing is imported from the sources of the packages. Where the demonstration backend is not
installed, as in the session ``tests``, there is nothing to collect here.
"""

import importlib.util
from pathlib import Path

import pytest
import torch

if importlib.util.find_spec("peephole") is None:
    collect_ignore_glob = ["test_*.py"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True, scope="session")
def _only_what_is_installed():
    for name in ("core", "ltc", "compilers", "tools"):
        origin = Path(importlib.util.find_spec(f"lazyfx_{name}").origin)
        assert not origin.is_relative_to(ROOT / "packages"), f"{origin} is a source"


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()
