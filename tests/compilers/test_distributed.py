"""Training on two processes is the same as eager, in every way of wrapping a model."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.torch_version import TorchVersion

SCRIPT = Path(__file__).with_name("distributed_training.py")

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch has no torch.distributed with gloo",
    ),
]


# What eager training cannot do on the CPU in an old release: FSDP2 at all, or in bfloat16.
RELEASE = TorchVersion(torch.__version__)
OLD = ["FSDP2"] if RELEASE < (2, 7) else ["FSDP2 of fused blocks in bfloat16"]
OLD = OLD if RELEASE < (2, 12) else []


def test_every_way_of_wrapping_a_model_trains_like_eager_or_is_refused():
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    result = subprocess.run(
        [*launch, str(SCRIPT)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    said = dict(line.rsplit(": ", 1) for line in result.stdout.splitlines() if ": " in line)
    ways = runpy.run_path(str(SCRIPT))["WAYS"]
    assert result.returncode == 0, result.stdout + result.stderr[-4000:]
    assert said.keys() >= ways.keys()
    left_out = {name for name in ways if said[name].startswith("left out")}
    assert left_out == {name for name in ways if any(one in name for one in OLD)}
    for name, way in ways.items():
        if name not in left_out:
            assert said[name].startswith("refused" if way.refused else "same within"), name
