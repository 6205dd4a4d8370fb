"""Importing the package does nothing that anybody could notice."""

import subprocess
import sys

PROGRAM = """
import sys
import torch, torch.fx
before = set(sys.modules)
from torch.fx import _lazy_graph_module as torchs
original = torchs._get_graph_module_cls
import lazyfx_core
assert torchs._get_graph_module_cls is original
loaded = {name for name in set(sys.modules) - before}
compilers = ("torch._inductor", "torch._dynamo", "torch._functorch", "sympy")
heavy = [name for name in loaded if name.startswith(compilers)]
assert not heavy, heavy
print(lazyfx_core.__version__)
"""


def test_importing_patches_nothing_and_loads_no_compiler():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_every_public_name_is_there_and_sorted():
    import lazyfx_core

    assert lazyfx_core.__all__ == sorted(lazyfx_core.__all__)
    for name in lazyfx_core.__all__:
        assert getattr(lazyfx_core, name) is not None
