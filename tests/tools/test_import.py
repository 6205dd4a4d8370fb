"""Importing the package loads no compile stack."""

import subprocess
import sys

PROGRAM = """
import sys
import torch, torch.fx
before = set(sys.modules)
import lazyfx_tools
loaded = set(sys.modules) - before
compilers = ("torch._inductor", "torch._dynamo", "torch._functorch", "functorch", "sympy")
heavy = sorted(name for name in loaded if name.startswith(compilers))
assert not heavy, heavy
"""


def test_importing_loads_no_compile_stack():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_there_and_sorted():
    import lazyfx_tools

    def constants_then_classes(name):  # as ruff has it
        return (not name.isupper(), not name[0].isupper(), name)

    names = lazyfx_tools.__all__
    assert names == sorted(names, key=constants_then_classes)
    assert len(set(names)) == len(names)
    for name in lazyfx_tools.__all__:
        assert getattr(lazyfx_tools, name) is not None
