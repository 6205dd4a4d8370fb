"""Random numbers: eager's stream in the forward, and never other ones in the backward."""

import pytest
import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from functorch.compile import min_cut_rematerialization_partition
from torch.torch_version import TorchVersion
from torch.utils.checkpoint import checkpoint

from lazyfx_compilers import (
    UnsafeRecomputationError,
    memory_efficient_fusion,
    memory_report,
    nop,
    ts_compile,
)


def drawn_like(x):
    return torch.rand(x.shape, device=x.device)


RANDOM = {
    "dropout": lambda x: F.dropout(x.sin().exp(), 0.5),
    "bernoulli": lambda x: torch.bernoulli(torch.full_like(x, 0.5)) * x.sin().exp(),
    "rand": lambda x: drawn_like(x) * x.sin().exp(),
    "randn_like": lambda x: torch.randn_like(x) * x.sin().exp(),
    "normal_": lambda x: torch.empty_like(x).normal_() * x.sin().exp(),
    "rrelu": lambda x: F.rrelu(x.sin(), training=True).exp(),
}
SETTINGS = {
    "a budget of .5": {"activation_memory_budget": 0.5},
    "a budget of 0": {"activation_memory_budget": 0},
    "aggressive": {"aggressive_recomputation": True},
    "no allow-list": {
        "ban_recompute_not_in_allowlist": False,
        "ban_recompute_used_far_apart": False,
        "ban_recompute_long_fusible_chains": False,
        "ban_recompute_materialized_backward": False,
        "ban_recompute_reductions": False,
    },
}


def output_and_gradient(function, x):
    torch.manual_seed(0)
    out = function(x)
    return out.detach(), torch.autograd.grad(out.sum(), x)[0], torch.rand(1, device=x.device)


@pytest.mark.parametrize("codegen", ["inductor", "ts", nop], ids=["inductor", "ts", "nop"])
@pytest.mark.parametrize("name", RANDOM)
def test_the_numbers_are_eagers(name, codegen, device):
    if name == "rrelu" and codegen == "inductor" and TorchVersion(torch.__version__) < (2, 12):
        pytest.skip("up to torch 2.11 inductor draws rrelu in its own way, fallback_random or not")
    x = torch.randn(100, device=device, requires_grad=True)
    fused = memory_efficient_fusion(RANDOM[name], codegen=codegen)
    expected = output_and_gradient(RANDOM[name], x)
    for _ in range(2):
        torch.testing.assert_close(output_and_gradient(fused, x), expected)


@pytest.mark.filterwarnings("ignore::lazyfx_compilers.BudgetWarning")
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("name", RANDOM)
def test_they_are_never_drawn_again_in_the_backward(name, setting, device):
    x = torch.randn(200, device=device, requires_grad=True)
    expected = output_and_gradient(RANDOM[name], x)
    torch.compiler.reset()
    ways = [
        memory_efficient_fusion(RANDOM[name], codegen=nop),
        torch.compile(RANDOM[name], backend="lazyfx_fusion", options={"codegen": nop}),
        torch.compile(RANDOM[name], backend=ts_compile),
    ]
    for run in ways:
        with functorch_config.patch(SETTINGS[setting]):
            torch.testing.assert_close(output_and_gradient(run, x), expected)


@pytest.mark.filterwarnings("ignore::lazyfx_compilers.BudgetWarning")
def test_the_references_gradients_are_wrong_where_ours_are_right():
    from functorch.compile import memory_efficient_fusion as theirs
    from torch._functorch.compilers import nop as their_nop

    x = torch.randn(200, requires_grad=True)
    f = RANDOM["bernoulli"]
    with functorch_config.patch(SETTINGS["a budget of 0"]):
        run = theirs(f, fw_compiler=their_nop, bw_compiler=their_nop)
        _, grad, _ = output_and_gradient(run, x)
        _, right, _ = output_and_gradient(f, x)
        assert not torch.allclose(grad, right)
        _, ours, _ = output_and_gradient(memory_efficient_fusion(f, codegen=nop), x)
        torch.testing.assert_close(ours, right)


def test_a_partitioner_that_draws_again_is_refused_whatever_it_calls_its_nodes():
    def renaming(joint, joint_inputs, **settings):
        with functorch_config.patch(SETTINGS["a budget of 0"]):
            from functorch.compile import min_cut_rematerialization_partition

            forward, backward = min_cut_rematerialization_partition(joint, joint_inputs, **settings)
        for node in backward.graph.nodes:
            if node.op == "call_function":
                node.name = f"renamed_{node.name}"
        backward.recompile()
        return forward, backward

    fused = memory_efficient_fusion(RANDOM["bernoulli"], codegen=nop, partition_fn=renaming)
    with pytest.raises(UnsafeRecomputationError, match="the partitioner that was given"):
        fused(torch.randn(200, requires_grad=True))


@pytest.mark.parametrize("codegen", ["inductor", nop], ids=["inductor", "nop"])
@pytest.mark.parametrize("under_dynamo", [False, True])
def test_checkpointed_blocks_use_the_forwards_mask(codegen, under_dynamo, device):
    def block(x):
        return F.dropout(x.sin(), 0.5).exp()

    def f(x):
        return checkpoint(block, x, use_reentrant=False) * 2

    if under_dynamo:
        run = torch.compile(f, backend="lazyfx_fusion", options={"codegen": codegen})
    else:
        run = memory_efficient_fusion(f, codegen=codegen)
    x = torch.randn(200, device=device, requires_grad=True)
    out = run(x)
    mask = ((out - 2).abs() > 1e-6) * 2.0
    expected = 2 * torch.exp(mask * x.sin())
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(
        torch.autograd.grad(out.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0]
    )


@pytest.mark.filterwarnings("ignore::lazyfx_compilers.BudgetWarning")
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_attention_is_computed_again_if_it_drops_nothing(dropout, device):
    x = torch.randn(2, 2, 8, 4, device=device, requires_grad=True)

    def attention(x):
        if not dropout:
            return F.scaled_dot_product_attention(x.sin(), x.cos(), x.exp())
        return F.dropout(x @ x.transpose(-1, -2), dropout) @ x.exp()

    report = memory_report(attention, x, codegen=nop, budget=0, measure=False)
    kept = [one.why for one in report.saved if one.nbytes]
    if dropout:
        assert kept == ["random: drawn again it would be another"]
    else:
        assert kept == []
        assert any("scaled_dot_product" in one.target for one in report.recomputed)
    fused = memory_efficient_fusion(attention, codegen=nop, budget=0)
    torch.testing.assert_close(output_and_gradient(fused, x), output_and_gradient(attention, x))


TWO_DRAWS = {
    "normal_": lambda x: x * torch.empty_like(x).normal_() * torch.empty_like(x).normal_(),
    "exponential_": lambda x: x.clone().exponential_() - x.clone().exponential_() * x,
    "rrelu": lambda x: F.rrelu(-x, training=True) * F.rrelu(-x, training=True),
    "rand": lambda x: drawn_like(x) * drawn_like(x) * x,
    "dropout": lambda x: F.dropout(x, 0.5) * F.dropout(x, 0.5),
}


@pytest.mark.parametrize("codegen", ["ts", nop], ids=["ts", "nop"])
@pytest.mark.parametrize("name", TWO_DRAWS)
def test_two_draws_alike_are_two_draws(name, codegen, device):
    x = torch.rand(50, device=device).add(0.5).requires_grad_()
    fused = memory_efficient_fusion(TWO_DRAWS[name], codegen=codegen)
    expected = output_and_gradient(TWO_DRAWS[name], x)
    torch.testing.assert_close(output_and_gradient(fused, x), expected)


def test_a_partitioner_that_merges_draws_is_refused():
    def merging(joint, inputs, **settings):
        first, second = (node for node in joint.graph.nodes if "normal" in str(node.target))
        second.replace_all_uses_with(first)
        joint.graph.erase_node(second)
        return min_cut_rematerialization_partition(joint, inputs, **settings)

    fused = memory_efficient_fusion(TWO_DRAWS["normal_"], codegen=nop, partitioner=merging)
    with pytest.raises(UnsafeRecomputationError, match="merged it with another draw"):
        fused(torch.rand(50, requires_grad=True))


@pytest.mark.parametrize("name", TWO_DRAWS)
def test_torchs_partitioner_as_the_users_own_is_right_or_refused(name):
    """It merges draws of in-place operators up to torch 2.13."""
    fused = memory_efficient_fusion(
        TWO_DRAWS[name], codegen=nop, partitioner=min_cut_rematerialization_partition
    )
    x = torch.rand(50).add(0.5).requires_grad_()
    expected = output_and_gradient(TWO_DRAWS[name], x)
    try:
        seen = output_and_gradient(fused, x)
    except UnsafeRecomputationError as error:
        assert "merged it with another draw" in str(error)  # noqa: PT017
    else:
        torch.testing.assert_close(seen, expected)
