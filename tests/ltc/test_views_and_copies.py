"""What gives a view and what gives a copy depends on strides, which the lazy device does not know.

Only writes tell the two apart, so every model here writes to a result, or to what it came from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn

import lazyfx_ltc as ltc

X = torch.arange(12.0).reshape(3, 4)


def written(result: torch.Tensor) -> torch.Tensor:
    return result.mul_(2)


COPIES_OR_VIEWS: dict[str, Callable[[torch.Tensor], Any]] = {
    "reshape that copies": lambda x: written(x.t().reshape(-1)),
    "reshape that does not": lambda x: written(x.reshape(-1)),
    "reshape of the operator": lambda x: written(torch.ops.aten.reshape.default(x.t(), [-1])),
    "reshape of an expanded one": lambda x: written(x.expand(2, 3, 4).reshape(-1)),
    "reshape_as": lambda x: written(x.t().reshape_as(x)),
    "contiguous": lambda x: written(x.t().contiguous()),
    "contiguous already": lambda x: written(x.contiguous()),
    "flatten": lambda x: written(x.t().flatten()),
    "nn.Flatten": lambda x: written(nn.Flatten()(x.unsqueeze(0).transpose(1, 2))),
    "ravel": lambda x: written(x.t().ravel()),
    "channels last": lambda x: written(x.view(1, 3, 2, 2).to(memory_format=torch.channels_last)),
    "channels last already": lambda x: written(
        (x.view(1, 3, 2, 2) + 1)
        .to(memory_format=torch.channels_last)
        .to(memory_format=torch.channels_last)
    ),
    "to its device": lambda x: written(x.to(x.device)),
    "to a device by name": lambda x: written(x.to(x.device.type)),
    "its own dtype": lambda x: written(x.float()),
    "another dtype": lambda x: written(x.double()),
    "chunks": lambda x: written(x.t().chunk(2)[0]),
    "einsum": lambda x: written(torch.einsum("ij->ji", x)),
    "dropout in eval mode": lambda x: written(F.dropout(x, training=False)),
    "in place functions": lambda x: F.relu(x.t().reshape(-1).neg_(), inplace=True),
    "setitem": lambda x: x.t().contiguous().view(-1).index_fill_(0, torch.tensor([0]), 7.0),
}


@pytest.mark.parametrize("source", ["argument", "made", "written first"])
@pytest.mark.parametrize("name", COPIES_OR_VIEWS)
def test_a_write_reaches_what_it_reaches_in_eager(
    name: str, source: str, device: torch.device
) -> None:
    change = COPIES_OR_VIEWS[name]

    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        base = x + 1 if source == "made" else x
        if source == "written first":
            base.add_(1)
        result = change(base)
        return base + 1, result * 1

    expected_input, seen_input = X.to(device), X.to(device)
    expected = model(expected_input.clone())
    compiled = ltc.compile(model, fallback="error")
    with torch.no_grad():
        seen = compiled(seen_input.clone())
        model(expected_input)
        compiled(seen_input)
    torch.testing.assert_close(seen, expected, check_stride=True)
    torch.testing.assert_close(seen_input, expected_input)


def test_a_write_after_the_copy_does_not_reach_the_copy() -> None:
    def model(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        copied, viewed = x.t().reshape(-1), x.reshape(-1)
        x.mul_(3)
        return copied + 0, viewed + 0

    expected, compiled = model(X.clone()), ltc.compile(model, fallback="error")
    with torch.no_grad():
        torch.testing.assert_close(compiled(X.clone()), expected)


@pytest.mark.parametrize("fallback", ["error", "partition"])
def test_a_traced_activation_in_place_behind_a_reshape(fallback: Any) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act = nn.ReLU(inplace=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x.transpose(0, 1)
            return self.act(y.reshape(-1)).sum() + y.sum()

    x = torch.randn(3, 4)
    compiled = ltc.extract_compiled_graph(fx.symbolic_trace(Net()), (x,), fallback=fallback)
    torch.testing.assert_close(compiled(x.clone()), Net()(x.clone()))


def test_a_buffer_is_counted_up_through_to() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("steps", torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.steps.to(x.device).add_(1)
            return x * self.steps

    model = Counting()
    compiled = ltc.compile(model, fallback="error")
    with torch.no_grad():
        assert [compiled(torch.ones(1)).item() for _ in range(3)] == [1.0, 2.0, 3.0]
    assert model.steps.item() == 3


def test_what_aliases_in_one_place_only_is_refused() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return F.channel_shuffle(x.view(1, 3, 2, 2), 1).mul_(2)

    with torch.no_grad(), pytest.raises(ltc.CaptureError, match=r"channel_shuffle.*clone\(\)"):
        ltc.compile(model, fallback="error")(X.clone())


def test_a_stack_of_one_is_not_run_by_static_runtime() -> None:
    """Its kernel writes past the end of the result if the one is not contiguous."""
    model = fx.symbolic_trace(lambda x: torch.stack([(x + 1)[:, :2]]).mean(0))
    x = torch.randn(64, 16)
    compiled = ltc.extract_compiled_graph(model, (x,))
    for _ in range(50):
        torch.testing.assert_close(compiled(x), model(x))


def test_forward_mode_is_refused() -> None:
    from torch.autograd import forward_ad

    def model(x: torch.Tensor) -> torch.Tensor:
        return (x.sin() * 2).tanh()

    x, tangent = torch.randn(3), torch.randn(3)
    traced = ltc.extract_compiled_graph(fx.symbolic_trace(model), (x,))
    compiled = ltc.compile(model)
    with torch.no_grad():
        for _ in range(40):
            traced(x)
            compiled(x)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, tangent)
            expected = forward_ad.unpack_dual(model(dual)).tangent
            assert torch.equal(forward_ad.unpack_dual(compiled(dual)).tangent, expected)
            with pytest.raises(ltc.LtcError, match="forward mode"):
                traced(dual)


def test_forward_mode_inside_a_model_is_refused() -> None:
    def model(x: torch.Tensor) -> torch.Tensor:
        return torch.func.jvp(torch.sin, (x,), (x,))[1]

    with torch.no_grad(), pytest.raises(ltc.CaptureError, match="forward-mode differentiation"):
        ltc.compile(model, fallback="error")(torch.randn(3))


def test_attention_under_a_mask_follows_the_path_that_eager_takes() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x = torch.randn(2, 3, 8)
    mask = torch.tensor([[False, False, True], [True, True, True]])
    compiled = ltc.compile(layer, fallback="error")
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), layer(x))
        with pytest.raises(ltc.CaptureError, match="set_fastpath_enabled"):
            compiled(x, src_key_padding_mask=mask)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            expected = layer(x, src_key_padding_mask=mask)
            seen = compiled(x, src_key_padding_mask=mask)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    torch.testing.assert_close(seen, expected, equal_nan=True)
