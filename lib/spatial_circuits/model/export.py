"""Export: one of our models as stock diffusers saves it, and pipelines of any shape with random
weights, on which tools can be tried where a pretrained one would be too large."""
import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from torch.nn.init import normal_
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from ..text.encoders import complete_record
from .pipeline import Model

_KINDS = {"alpha": PixArtAlphaPipeline, "sigma": PixArtSigmaPipeline}
SOLVERS = {"dpm": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler,
           "ddim": DDIMScheduler, "heun": HeunDiscreteScheduler}
_PIECES = ("▁", "▁a", "▁red", "▁blue", "▁dog", "▁cat", "▁circle", "▁square", "▁is", "▁above",
           "▁below", "▁on", "▁the", "▁left", "▁right", "▁of", "▁to", "s",
           *"abcdefghijklmnopqrstuvwxyz")


def random_pipeline(kind: str = "sigma", scheduler: str = "dpm", size: int = 32, layers: int = 3,
                    heads: int = 2, head_dim: int = 8, out_channels: int = 8, seed: int = 0,
                    **config) -> DiffusionPipeline:
    """A pipeline with random weights that draws pictures of 8 * size px a side, in which text moves
    the output: a tiny T5 and VAE around a PixArt transformer of the shape asked for.

    kind: alpha or sigma; scheduler of SOLVERS; config as of PixArtTransformer2DModel. Raises
    ValueError for another kind or scheduler.
    """
    for name, known in ((kind, _KINDS), (scheduler, SOLVERS)):
        if name not in known:
            raise ValueError(f"{name!r} is unknown; choose from {', '.join(known)}")
    torch.manual_seed(seed)
    coder = T5EncoderModel(T5Config(
        vocab_size=3 + len(_PIECES), d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2,
        feed_forward_proj="gated-gelu", dropout_rate=0.0))
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4, sample_size=8 * size, scaling_factor=0.13025)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, num_layers=layers,
        cross_attention_dim=heads * head_dim, out_channels=out_channels, sample_size=size,
        caption_channels=16, **config)
    for block in transformer.transformer_blocks:
        normal_(block.attn2.to_out[0].weight, std=0.3)
    pipe = _KINDS[kind](_tokenizer(), coder, vae, transformer, SOLVERS[scheduler]())
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _tokenizer() -> T5Tokenizer:
    """A T5 tokenizer of a few words and all letters."""
    scored = [(piece, -1.0 if len(piece) > 1 else -8.0) for piece in _PIECES]
    return T5Tokenizer(vocab=[("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *scored],
                       extra_ids=0)


def save_pipeline(model: Model, folder: str | Path) -> Path:
    """Write one of our models as stock diffusers does, as a PixArtAlphaPipeline.

    The statistics of its VAE go into its 1 x 1 convolutions; the text encoder's name into
    text.json, since diffusers has no such encoders.
    """
    vae, folder = model.vae.model, Path(folder)
    plain = {"latents_mean": None, "latents_std": None, "shift_factor": None,
             "scaling_factor": 1.0}
    copied = AutoencoderKL.from_config({**vae.config, **plain})
    copied.load_state_dict(vae.state_dict())
    mean, std = model.vae.mean.flatten(), model.vae.std.flatten()
    with torch.no_grad():
        copied.post_quant_conv.bias += copied.post_quant_conv.weight[:, :, 0, 0] @ mean
        copied.post_quant_conv.weight *= std[:, None, None]
    pipe = PixArtAlphaPipeline(None, None, copied, model.transformer, model.scheduler)
    pipe.save_pretrained(folder)
    (folder / "text.json").write_text(json.dumps(complete_record(model.text)[0]))
    return folder
