"""Models of the transformers package at their smallest, and MiniLM with its own weights.

Each takes plain tensors and returns a dict of tensors. Masks are additive and four-dimensional,
since a mask of zeros and ones makes transformers look at its values, which cannot be traced.
"""

from __future__ import annotations

import functools
import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

DEMO = Path(__file__).parents[3] / "docs" / "demo" / "minilm.py"


def additive(mask: Tensor) -> Tensor:
    """0 where ``mask`` (batch, keys) is 1, the lowest float elsewhere: (batch, 1, 1, keys)."""
    return (1.0 - mask[:, None, None, :].float()) * torch.finfo(torch.float32).min


def causal(length: int, device: torch.device) -> Tensor:
    """The lowest float above the diagonal, of shape (1, 1, length, length)."""
    full = torch.full((length, length), torch.finfo(torch.float32).min, device=device)
    return full.triu(1)[None, None]


class Bert(nn.Module):
    """Masked language modeling; ``attention`` is "eager" or "sdpa"."""

    def __init__(self, attention: str) -> None:
        super().__init__()
        from transformers import BertConfig, BertForMaskedLM

        config = BertConfig(
            vocab_size=64,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=32,
            initializer_range=0.1,
            attn_implementation=attention,
        )
        self.model = BertForMaskedLM(config)

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor) -> dict[str, Tensor]:
        out = self.model.bert(input_ids=ids, attention_mask=additive(mask), token_type_ids=types)
        hidden = out.last_hidden_state
        return {"logits": self.model.cls(hidden), "hidden": hidden}


class Gpt2(nn.Module):
    def __init__(self, attention: str) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=64,
            n_positions=32,
            n_embd=32,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=0,
            initializer_range=0.1,
            attn_implementation=attention,
        )
        self.model = GPT2LMHeadModel(config)

    def forward(self, ids: Tensor) -> dict[str, Tensor]:
        length = ids.shape[1]
        out = self.model(
            input_ids=ids,
            attention_mask=causal(length, ids.device),
            position_ids=torch.arange(length, device=ids.device)[None],
            use_cache=False,
        )
        return {"logits": out.logits}


class T5(nn.Module):
    """Encoder and decoder, with the gated GELU of T5 1.1 and tied embeddings."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=64,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=2,
            num_decoder_layers=2,
            num_heads=4,
            relative_attention_num_buckets=8,
            relative_attention_max_distance=16,
            feed_forward_proj="gated-gelu",
            decoder_start_token_id=0,
        )
        self.model = T5ForConditionalGeneration(config)

    def forward(self, ids: Tensor, mask: Tensor, target: Tensor) -> dict[str, Tensor]:
        encoded = self.model.encoder(input_ids=ids, attention_mask=additive(mask))
        out = self.model(
            encoder_outputs=(encoded.last_hidden_state,),
            attention_mask=additive(mask),
            decoder_input_ids=target,
            decoder_attention_mask=causal(target.shape[1], target.device),
            use_cache=False,
        )
        return {"logits": out.logits, "encoded": encoded.last_hidden_state}


class Whisper(nn.Module):
    """The encoder of Whisper over a log-mel spectrogram, with a classifier behind it."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import WhisperConfig, WhisperForAudioClassification

        config = WhisperConfig(
            vocab_size=32,
            num_mel_bins=16,
            d_model=32,
            encoder_layers=2,
            encoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_layers=1,
            decoder_attention_heads=4,
            decoder_ffn_dim=64,
            max_source_positions=24,
            max_target_positions=8,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            decoder_start_token_id=1,
            num_labels=6,
            classifier_proj_size=16,
            dropout=0.1,
            init_std=0.1,
        )
        self.model = WhisperForAudioClassification(config)

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"logits": self.model(input_features=features).logits}


# MiniLM, by the loader of the demo.


@functools.cache
def _demo() -> Any:
    name = "ltc_zoo_minilm"
    spec = importlib.util.spec_from_file_location(name, DEMO)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def minilm() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        encoder, _ = _demo().load_encoder()
    assert isinstance(encoder, nn.Module)
    return encoder.train()


@functools.cache
def _tokens() -> tuple[Tensor, Tensor]:
    demo = _demo()
    spec = importlib.util.find_spec(demo.PACKAGE)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    ids, mask = demo.tokenize(folder, demo.SENTENCES)
    return ids, mask


def minilm_inputs(seed: int, sentences: int = 2) -> tuple[Tensor, Tensor]:
    """Ids and mask of so many of the demo's sentences, all padded to the longest of them all."""
    ids, mask = _tokens()
    picked = torch.randperm(len(ids), generator=torch.Generator().manual_seed(seed))[:sentences]
    return ids[picked], mask[picked]
