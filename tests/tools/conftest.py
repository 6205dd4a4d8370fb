"""What every test of the tools starts from."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()


@pytest.fixture
def many_gpus(monkeypatch):
    """Tensors can be described as on any GPU; torch would begin to use one that it can."""
    monkeypatch.setattr("torch._subclasses.fake_tensor.init_gpu_context", lambda device: None)
