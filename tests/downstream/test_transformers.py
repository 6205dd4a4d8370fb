"""Models of transformers, trained through every backend by its name, against eager.

Three steps of AdamW from the same weights, batches and random state. Losses agree to one part in
10,000 and parameters to 2e-5, where the three steps move each by up to 3e-3: operators are the
same, decompositions are not, and AdamW with its usual eps would blow a gradient that is zero but
for rounding (those of key biases) up to a whole step.
"""

import copy

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from lazyfx_compilers import find_dumps, load_dump

# Dynamo itself looks at ``.grad`` of what it is given after a break in the graph, as there is one
# before transformers' loss of language models; torch warns about that whatever the backend.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

BACKENDS = {
    "lazyfx_nop": None,
    "lazyfx_debug": None,
    "lazyfx_ts": None,
    "lazyfx_fusion": {"codegen": "ts"},
    "lazyfx_ltc": None,
    "lazyfx_dump": None,
    "peephole": {"debug": True},
}


def bert(dropout, layers=2):
    config = BertConfig(
        vocab_size=97,
        hidden_size=32,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


def gpt2(dropout, layers=2):
    config = GPT2Config(
        vocab_size=97,
        n_positions=32,
        n_embd=32,
        n_layer=layers,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        use_cache=False,
    )
    return GPT2LMHeadModel(config)


def batch(model, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, 97, (3, 16), generator=generator)
    if isinstance(model, GPT2LMHeadModel):
        return {"input_ids": tokens, "labels": tokens}
    mask = torch.ones_like(tokens)
    mask[1, 11:] = 0
    return {"input_ids": tokens, "attention_mask": mask, "labels": torch.tensor([0, 1, 1])}


def train(model, called):
    """Three steps; the losses. ``called`` is the model or what was compiled of it."""
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)
    losses = []
    for step in range(3):
        torch.manual_seed(step)
        loss = called(**batch(model, step)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
    return torch.stack(losses)


def assert_trains_as_eager(make, backend, options):
    torch.manual_seed(0)
    eager = make()
    model = copy.deepcopy(eager)
    before = copy.deepcopy(eager.state_dict())
    expected = train(eager, eager)
    counters.clear()
    seen = train(model, torch.compile(model, backend=backend, options=options))
    assert counters["stats"]["unique_graphs"] >= 1
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=0)
    moved = 0
    for name, parameter in eager.named_parameters():
        difference = (model.get_parameter(name) - parameter).abs().max().item()
        assert difference <= 2e-5, name
        moved += not torch.equal(parameter, before[name])
    assert moved > 15  # else nothing was trained, and everything agrees


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dropout", [0.0, 0.1], ids=["plain", "dropout"])
@pytest.mark.parametrize("make", [bert, gpt2])
def test_three_steps_of_training_are_those_of_eager(make, dropout, backend, tmp_path):
    options = BACKENDS[backend]
    if backend == "lazyfx_dump":
        options = {"folder": str(tmp_path)}
    assert_trains_as_eager(lambda: make(dropout), backend, options)
    if backend == "lazyfx_dump":
        (dump,) = find_dumps(tmp_path)
        assert {graph.phase for graph in load_dump(dump)} >= {"forward", "backward"}


@pytest.mark.parametrize("make", [bert, gpt2])
def test_three_steps_through_inductor_are_those_of_eager(make):
    assert_trains_as_eager(lambda: make(0.0, layers=1), "lazyfx_fusion", None)
