"""Weights: what heads do, read off the weights alone. No picture is sampled; every score is one batched product.

QK circuit of a cross-attention head (paper, section on the relation head): the query of image token i from the bare
position embedding P_i, the key of a text token from its embedding e through the caption MLP,

    M_i(e) = (W_q P_i + b_q) . (W_k MLP(e) + b_k) / sqrt(d)

is the attention logit that the token gets from that place before any image exists. PixArt's cross-attention reads the
residual stream without a norm, so this is the model's own first-layer logit, minus what the noise adds.
OV circuit: W_o (W_v MLP(e) + b_v) is what a head writes where it attends to that token.
"""
import copy
from itertools import product
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from .text import Encoder

# words that name a side, with the direction (x right, y down) they name
DIRECTIONS = {"above": (0, -1), "higher": (0, -1), "up": (0, -1), "upper": (0, -1), "below": (0, 1), "lower": (0, 1),
              "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


def positions(model: nn.Module) -> Tensor:
    """The fixed position embedding of the image tokens [N, D], row by row from the upper left."""
    return model.pos_embed.pos_embed[0].float()


@torch.no_grad()
def captioned(model: nn.Module, embeddings: Tensor) -> Tensor:
    """Text embeddings [..., T] after the caption MLP, as every layer's keys and values read them [..., D]."""
    return model.caption_projection(embeddings.to(model.device, model.dtype)).float()


def _per_head(layer: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """A projection's weight [H, d, D] and bias [H, d]."""
    bias = torch.zeros(layer.out_features, device=layer.weight.device) if layer.bias is None else layer.bias
    return layer.weight.float().view(heads, -1, layer.in_features), bias.float().view(heads, -1)


def cross(model: nn.Module) -> dict[str, Tensor]:
    """Cross-attention weights of all layers and heads: q, k, v [L, H, d, D], their biases bq, bk, bv [L, H, d], and
    o [L, H, D, d], the slice of the output projection that each head's output goes through."""
    blocks = model.transformer_blocks
    if any(block.attn2 is None for block in blocks):
        raise ValueError("the model has no cross-attention in some block")
    heads, out = blocks[0].attn2.heads, {}
    for name in "qkv":
        pairs = [_per_head(getattr(block.attn2, f"to_{name}"), heads) for block in blocks]
        out[name], out["b" + name] = (torch.stack(x).detach() for x in zip(*pairs))
    outs = [block.attn2.to_out[0].weight.detach().float() for block in blocks]
    out["o"] = torch.stack([w.view(w.shape[0], heads, -1).transpose(0, 1) for w in outs])
    return out


def queries(model: nn.Module, stream: Tensor | None = None) -> Tensor:
    """Queries [L, H, N, d] of the residual stream [N, D]; by default of the bare position embedding."""
    w = cross(model)
    x = positions(model) if stream is None else stream.float()
    return torch.einsum("nD,lhdD->lhnd", x, w["q"]) + w["bq"][:, :, None]


def qk_maps(model: nn.Module, vectors: Tensor, stream: Tensor | None = None) -> Tensor:
    """Attention logits M [L, H, R, 8, 8] of all heads for R text vectors [R, D] after the caption MLP."""
    w = cross(model)
    keys = torch.einsum("rD,lhdD->lhrd", vectors, w["k"]) + w["bk"][:, :, None]
    maps = keys @ queries(model, stream).transpose(-1, -2) * w["k"].shape[2] ** -0.5
    side = round(maps.shape[-1] ** 0.5)
    return maps.unflatten(-1, (side, side))


def ov(model: nn.Module, vectors: Tensor) -> Tensor:
    """What each head writes into the residual stream where it attends to each of R text vectors: [L, H, R, D]."""
    w = cross(model)
    values = torch.einsum("rD,lhdD->lhrd", vectors, w["v"]) + w["bv"][:, :, None]
    return values @ w["o"].transpose(-1, -2)


def composed(model: nn.Module, writes: Tensor, keys: Tensor) -> Tensor:
    """QK composition: by how much a vector in the stream [R, D] moves each head's logit for K text vectors [K, D].

    [L, H, R, K]: (W_q write) . (W_k key) / sqrt(d), centred over the keys, since a shift of all logits does nothing.
    """
    w = cross(model)
    q = torch.einsum("rD,lhdD->lhrd", writes, w["q"])
    k = torch.einsum("kD,lhdD->lhkd", keys, w["k"])
    logits = q @ (k - k.mean(2, keepdim=True)).transpose(-1, -2)
    return logits * w["k"].shape[2] ** -0.5


def shape_keys(model: nn.Module, encoder: Encoder, prompts: list[str]) -> Tensor:
    """[P, 2, D]: the vectors, after the caption MLP, of each prompt's first and second shape word."""
    text = encoder.encode(prompts)
    mask = torch.tensor([[[r == role for r in row] for role in ("shape1", "shape2")] for row in text.roles]).float()
    vectors = captioned(model, text.embeddings.to(model.device))
    return mask.to(vectors.device) @ vectors / mask.sum(-1, keepdim=True).to(vectors.device)


def written(model: nn.Module, vectors: Tensor, pattern: Tensor, head: tuple[int, int]) -> Tensor:
    """What a head writes at every place [B, N, D], given text vectors [B, T, D] and its pattern [B, N, T]."""
    return pattern.float() @ ov(model, vectors.flatten(0, 1))[head].unflatten(0, vectors.shape[:2])


def reading(model: nn.Module, writes: Tensor, keys: Tensor, head: tuple[int, int]) -> Tensor:
    """By how much writes [B, N, D] move a later head's logit for the first of two keys [B, 2, D] against the second:
    [B, N], by the straight path through the residual stream."""
    w = cross(model)
    k = (keys[:, 0] - keys[:, 1]) @ w["k"][head].T                                           # [B, d]
    return (writes @ w["q"][head].T @ k[..., None])[..., 0] * k.shape[-1] ** -0.5


def spectra(model: nn.Module) -> dict[str, Tensor]:
    """Singular values [L, H, d] of each head's QK form W_q^T W_k and OV map W_o W_v, both D x D of rank d."""
    w = cross(model)
    return {"QK": torch.linalg.svdvals(w["q"].transpose(-1, -2) @ w["k"])[..., :w["k"].shape[2]],
            "OV": torch.linalg.svdvals(w["o"] @ w["v"])[..., :w["k"].shape[2]]}


def templates(directions: Tensor, side: int = 8) -> Tensor:
    """Ideal ramps [R, side, side] that rise toward directions [R, 2] (x right, y down), each of mean 0 and norm 1."""
    axis = torch.linspace(-1, 1, side)
    ramp = directions[:, 0, None, None] * axis + directions[:, 1, None, None] * axis[:, None]
    return ramp / ramp.flatten(1).norm(dim=1)[:, None, None]


def ramps(maps: Tensor, directions: Tensor, center: bool = True) -> dict[str, Tensor]:
    """How well maps [..., R, S, S] fit the ramps of their directions [R, 2]: cosine, projection, energy, each [..., R].

    After the paper: A = M minus its mean over the grid, projection <A, T>, energy |A|, cosine their ratio. In float32.
    `center` first subtracts, with every direction weighing the same, the mean over R: what all words share (the key's
    bias, a filler's map) is no ramp. A positive sign points to the side that the word names.
    """
    maps, directions = maps.float(), directions.float()
    if center:
        unique, group = directions.unique(dim=0, return_inverse=True)
        means = torch.stack([maps[..., group == g, :, :].mean(-3) for g in range(len(unique))], -3)
        maps = maps - means.mean(-3, keepdim=True)
    maps = maps - maps.mean((-1, -2), keepdim=True)
    projection = (maps * templates(directions, maps.shape[-1]).to(maps.device)).sum((-1, -2))
    energy = maps.flatten(-2).norm(dim=-1)
    return {"cosine": projection / energy.clamp_min(1e-12), "projection": projection, "energy": energy}


def words(model: nn.Module, encoder: Encoder, prompts: list[str]) -> dict[str, Tensor]:
    """The mean vector [D], after the caption MLP, of every word that occurs in the prompts, over its occurrences."""
    text = encoder.encode(prompts)
    vectors = captioned(model, text.embeddings.to(model.device))                            # [B, T, D]
    found: dict[str, list[Tensor]] = {}
    for row, tokens, mask in zip(vectors, text.tokens, text.mask):
        for vector, token in zip(row[mask], tokens):
            found.setdefault(token, []).append(vector)
    return {word: torch.stack(v).mean(0) for word, v in found.items()}


def screen(model: nn.Module, encoder: Encoder, prompts: list[str]) -> pd.DataFrame:
    """All heads by the ramps that direction words draw on the bare position embedding; milliseconds, no sampling.

    Rows (head, word): name, layer, head, word, cosine, projection, energy, centred over directions (see `ramps`); and as a
    null `control`: the mean over all other words of their projection on the ramp that fits them best. Raises ValueError
    if the prompts hold fewer than two direction words.
    """
    vectors = words(model, encoder, prompts)
    said = [w for w in DIRECTIONS if w in vectors]
    if len(said) < 2:
        raise ValueError(f"the prompts hold {len(said)} direction words; give prompts with at least two of {', '.join(DIRECTIONS)}")
    directions = torch.tensor([DIRECTIONS[w] for w in said])
    maps = qk_maps(model, torch.stack([vectors[w] for w in said]))                          # [L, H, R, 8, 8]
    found, (layers, heads) = ramps(maps, directions), maps.shape[:2]
    rest = qk_maps(model, torch.stack([v for w, v in vectors.items() if w not in DIRECTIONS]))
    rest = rest - rest.mean(2, keepdim=True)
    fits = torch.stack([ramps(rest, d.expand(rest.shape[2], 2), center=False)["projection"] for d in directions.unique(dim=0)])
    control = fits.amax(0).mean(-1)                                                         # [L, H]
    rows = [(f"L{i}H{j}", i, j, word, *(float(found[k][i, j, r]) for k in found), float(control[i, j]))
            for i, j, (r, word) in product(range(layers), range(heads), enumerate(said))]
    return pd.DataFrame(rows, columns=["name", "layer", "head", "word", *found, "control"])


def snapshots(model: nn.Module, folder: Path) -> dict[int, nn.Module]:
    """A copy of the model for each snapshot of its training, by step: cross-attention and caption MLP of that step.

    Only weight-space scores make sense on it: all other weights are those of the finished model. Raises ValueError if
    there are none.
    """
    files = sorted(Path(folder).glob("snapshots/*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no snapshots of its training; train with --evaluate-every to keep some")
    out = {}
    for file in files:
        out[int(file.stem)] = copy.deepcopy(model)
        out[int(file.stem)].load_state_dict({k: v.float() for k, v in load_file(file).items()}, strict=False)
    return out
