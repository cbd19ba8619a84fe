"""DiT: diffusers' PixArtTransformer2DModel in the paper's sizes, with the paper's initialisation.

16 x 16 latents in 2 x 2 patches give 8 x 8 = 64 image tokens with a fixed 2-D sinusoidal position
embedding. Text enters through cross-attention alone, which reads the raw residual stream. The
module stays stock diffusers throughout.
"""
from copy import deepcopy
from math import sqrt

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn
from torch.nn.functional import pad

from ..data.scenes import GRID

SIZES = {  # depth, heads, head dimension; all but the first three are the paper's
    "tiny": (6, 4, 32), "shallow": (3, 4, 32), "toy": (3, 2, 32),
    "nano": (3, 3, 64), "micro": (6, 3, 64), "mini": (6, 6, 64), "B": (12, 12, 64),
}




def build_transformer(preset: str, text_dim: int, seed: int = 0) -> PixArtTransformer2DModel:
    """A fresh model of that size that reads text of `text_dim` dimensions.

    Depends on `seed` alone. Raises ValueError for an unknown preset.
    """
    if preset not in SIZES:
        raise ValueError(f"model size {preset!r} is unknown; choose from {', '.join(SIZES)}")
    depth, heads, head_dim = SIZES[preset]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = PixArtTransformer2DModel(
            num_attention_heads=heads, attention_head_dim=head_dim, num_layers=depth,
            cross_attention_dim=heads * head_dim, in_channels=4, out_channels=4,
            sample_size=2 * GRID, patch_size=2, caption_channels=text_dim,
            interpolation_scale=1, use_additional_conditions=False)
        _initialise(model)
    return model


def _initialise(model: PixArtTransformer2DModel) -> None:
    """The paper's initialisation but for the caption MLP, Xavier too (theirs: normal, .02).

    Xavier on every linear layer, zero bias; normal(.02) for the time embedding; zero for each
    cross-attention output and the last layer, so that the model starts silent and blind to text.
    """
    for module in model.modules():
        if isinstance(module, (nn.Linear, nn.Conv2d)):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    embedder = model.adaln_single.emb.timestep_embedder
    for layer in (embedder.linear_1, embedder.linear_2, model.adaln_single.linear):
        nn.init.normal_(layer.weight, std=0.02)
    blocks = model.transformer_blocks
    for table in [model.scale_shift_table, *(block.scale_shift_table for block in blocks)]:
        nn.init.normal_(table, std=1 / sqrt(model.inner_dim))
    for layer in [model.proj_out, *(block.attn2.to_out[0] for block in blocks)]:
        nn.init.zeros_(layer.weight)


def predict(model: nn.Module, latents: Tensor, timestep: Tensor, text: Tensor,
            mask: Tensor) -> Tensor:
    """One forward, all on the model's device.

    latents [B, 4, 16, 16], timestep [B] in 0..1000, text [B, T, D], mask [B, T] -> [B, 4, 16, 16].
    """
    return model(latents, encoder_hidden_states=text, timestep=timestep,
                 encoder_attention_mask=mask.to(text.dtype), return_dict=False,
                 added_cond_kwargs={"resolution": None, "aspect_ratio": None})[0]


def padded(query: Tensor, key: Tensor, value: Tensor,
           mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Attention's inputs with keys padded to a multiple of 16, the padding masked.

    Only in bf16 on CPUs, where that is four times as fast; unchanged otherwise. query [B, H, N, d],
    key, value [B, H, T, d], mask [B, H or 1, N or 1, T] or None.
    """
    more = -key.shape[-2] % 16
    if not more or key.dtype != torch.bfloat16 or key.device.type != "cpu":
        return query, key, value, mask
    if mask is None:
        mask = key.new_zeros(1, 1, 1, key.shape[-2])
    key, value = (pad(x, (0, 0, 0, more)) for x in (key, value))
    return query, key, value, pad(mask, (0, more), value=-10_000.0)


class PaddedProcessor(AttnProcessor2_0):
    """diffusers' processor for cross-attention, with the text padded as `padded` does."""

    def __call__(self, attn, hidden_states: Tensor, encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, **rest) -> Tensor:
        if encoder_hidden_states is not None and attention_mask is not None:
            more = -encoder_hidden_states.shape[1] % 16
            encoder_hidden_states = pad(encoder_hidden_states, (0, 0, 0, more))
            attention_mask = pad(attention_mask, (0, more), value=-10_000.0)
        return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, **rest)


def bf16_copy(model: PixArtTransformer2DModel) -> PixArtTransformer2DModel:
    """A copy for sampling in bf16 on CPUs.

    Its GELU is the exact one in place of the tanh approximation, since torch computes it five times
    as fast and the two differ by less (5e-4) than bf16 resolves.
    """
    copy = deepcopy(model).bfloat16()
    for block in copy.transformer_blocks:
        block.ff.net[0].approximate = "none"
        block.attn2.set_processor(PaddedProcessor())
    return copy
