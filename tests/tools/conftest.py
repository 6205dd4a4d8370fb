"""What every test of the tools starts from."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()
