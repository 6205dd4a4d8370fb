"""Training on two processes is the same as eager, in every way of wrapping a model."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("distributed_training.py")

pytestmark = [
    pytest.mark.once,
    pytest.mark.skipif(
        not (torch.distributed.is_available() and torch.distributed.is_gloo_available()),
        reason="this torch has no torch.distributed with gloo",
    ),
]


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
    for name, way in ways.items():
        word = "refused" if way.refused else "same within"
        assert said[name].startswith((word, "left out")), name
