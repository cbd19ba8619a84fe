"""Weights: what heads do, read off the weights alone. No picture is sampled.

QK circuit of a cross-attention head (paper, section on the relation head): the query of image token
i from the bare position embedding P_i, the key of a text token from its embedding e through the
caption MLP,

    M_i(e) = (W_q P_i + b_q) . (W_k MLP(e) + b_k) / sqrt(d)

is the attention logit that the token gets from there before any image exists. PixArt's
cross-attention reads the residual stream without a norm, so this is the model's own first-layer
logit, minus what the noise adds. OV circuit: W_o (W_v MLP(e) + b_v) is what a head writes where it
attends to that token (Elhage et al. 2021, A Mathematical Framework for Transformer Circuits).

`model` is a transformer here, on any device; tensors may lie on any device, results are on the CPU.
"""
import copy
import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from diffusers import PixArtTransformer2DModel as Transformer
from diffusers.models.embeddings import get_2d_sincos_pos_embed
from safetensors.torch import load_file
from torch import Tensor, nn

from ..text.batch import Encoder, TextBatch
from ..text.roles import of_role
from .heads import head_name

# words that name a side, with the direction (x right, y down) they name
DIRECTIONS = {"above": (0, -1), "higher": (0, -1), "up": (0, -1), "upper": (0, -1),
              "below": (0, 1), "lower": (0, 1), "down": (0, 1), "left": (-1, 0), "right": (1, 0)}


def token_grid(model: Transformer) -> tuple[int, int]:
    """Rows and columns of the model's image tokens at the size that it was made for."""
    return model.pos_embed.height, model.pos_embed.width


def positions(model: Transformer, size: tuple[int, int] | None = None) -> Tensor:
    """The fixed position embedding of the image tokens [N, D], row by row from the upper left.

    `size`: rows and columns of image tokens, by default the model's own.
    """
    embed = model.pos_embed
    if size in (None, token_grid(model)):
        return embed.pos_embed[0].float().cpu()
    return get_2d_sincos_pos_embed(
        embed.pos_embed.shape[-1], size, base_size=embed.base_size,
        interpolation_scale=embed.interpolation_scale, output_type="pt").float()


@torch.no_grad()
def project_captions(model: Transformer, embeddings: Tensor) -> Tensor:
    """Text embeddings [..., T] after the caption MLP, as all keys and values read them [..., D]."""
    return model.caption_projection(embeddings.to(model.device, model.dtype)).float().cpu()


def _per_head(layer: nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """A projection's weight [H, d, D] and bias [H, d]."""
    weight = layer.weight.detach().float().cpu()
    bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias.detach().float().cpu()
    return weight.view(heads, -1, layer.in_features), bias.view(heads, -1)


def cross_weights(model: Transformer) -> dict[str, Tensor]:
    """Cross-attention weights of all heads: q, k, v [L, H, d, D], biases bq, bk, bv [L, H, d], and
    o [L, H, D, d], the slice of the output projection that each head's output goes through.

    Raises ValueError for a model with a block without cross-attention.
    """
    blocks = model.transformer_blocks
    if any(block.attn2 is None for block in blocks):
        raise ValueError("the model has no cross-attention in some block")
    heads, out = blocks[0].attn2.heads, {}
    for name in "qkv":
        pairs = [_per_head(getattr(block.attn2, f"to_{name}"), heads) for block in blocks]
        out[name], out["b" + name] = (torch.stack(x) for x in zip(*pairs))
    outs = [block.attn2.to_out[0].weight.detach().float().cpu() for block in blocks]
    out["o"] = torch.stack([w.view(w.shape[0], heads, -1).transpose(0, 1) for w in outs])
    return out


def queries(model: Transformer, stream: Tensor | None = None) -> Tensor:
    """Queries [L, H, N, d] of the residual stream [N, D]; by default of the position embedding."""
    w = cross_weights(model)
    x = positions(model) if stream is None else stream.float().cpu()
    return torch.einsum("nD,lhdD->lhnd", x, w["q"]) + w["bq"][:, :, None]


def qk_maps(model: Transformer, vectors: Tensor, stream: Tensor | None = None,
            size: tuple[int, int] | None = None) -> Tensor:
    """Attention logits M [L, H, R, rows, columns] of all heads for R text vectors [R, D].

    vectors: after the caption MLP. stream [N, D]: the residual stream, by default the bare position
    embedding. size: rows and columns of image tokens, by default the model's own.
    Raises ValueError for a stream of another number of image tokens.
    """
    w, size = cross_weights(model), size or token_grid(model)
    x = positions(model, size) if stream is None else stream
    if len(x) != size[0] * size[1]:
        raise ValueError(f"a stream of {len(x)} image tokens is no grid of {size[0]} x {size[1]}")
    keys = torch.einsum("rD,lhdD->lhrd", vectors.cpu(), w["k"]) + w["bk"][:, :, None]
    maps = keys @ queries(model, x).transpose(-1, -2) * w["k"].shape[2] ** -0.5
    return maps.unflatten(-1, size)


def ov(model: Transformer, vectors: Tensor) -> Tensor:
    """What each head writes where it attends to each of R text vectors [R, D]: [L, H, R, D]."""
    w = cross_weights(model)
    values = torch.einsum("rD,lhdD->lhrd", vectors.cpu(), w["v"]) + w["bv"][:, :, None]
    return values @ w["o"].transpose(-1, -2)


def qk_composition(model: Transformer, writes: Tensor, keys: Tensor) -> Tensor:
    """By how much a vector in the stream [R, D] moves each head's logit for K text vectors [K, D].

    [L, H, R, K]: (W_q write) . (W_k key) / sqrt(d), centred over the keys, since a shift of all
    logits does nothing.
    """
    w = cross_weights(model)
    q = torch.einsum("rD,lhdD->lhrd", writes.cpu(), w["q"])
    k = torch.einsum("kD,lhdD->lhkd", keys.cpu(), w["k"])
    logits = q @ (k - k.mean(2, keepdim=True)).transpose(-1, -2)
    return logits * w["k"].shape[2] ** -0.5


def _projected(model: Transformer, text: TextBatch) -> TextBatch:
    """The batch with its embeddings after the caption MLP, on the CPU."""
    vectors = project_captions(model, text.embeddings)
    return TextBatch(vectors, text.mask.cpu(), text.tokens, text.roles)


def shape_keys(model: Transformer, encoder: Encoder, prompts: Sequence[str]) -> Tensor:
    """[P, 2, D]: the vectors, after the caption MLP, of each prompt's first and second shape word.

    Raises ValueError for a prompt without both.
    """
    text = _projected(model, encoder.encode(list(prompts)))
    return torch.stack([of_role(text, role) for role in ("shape1", "shape2")], 1)


def head_writes(model: Transformer, vectors: Tensor, pattern: Tensor,
                head: tuple[int, int]) -> Tensor:
    """What a head writes at every image token [B, N, D], from text vectors [B, T, D] and its
    attention pattern [B, N, T]."""
    values = ov(model, vectors.flatten(0, 1))[head].unflatten(0, vectors.shape[:2])
    return pattern.float().cpu() @ values


def logit_shift(model: Transformer, writes: Tensor, keys: Tensor,
                head: tuple[int, int]) -> Tensor:
    """By how much writes [B, N, D] move a later head's logit for the first of two keys [B, 2, D]
    against the second: [B, N], by the straight path through the residual stream."""
    w, keys = cross_weights(model), keys.cpu()
    k = (keys[:, 0] - keys[:, 1]) @ w["k"][head].T                                       # [B, d]
    return (writes.cpu() @ w["q"][head].T @ k[..., None])[..., 0] * k.shape[-1] ** -0.5


def spectra(model: Transformer) -> dict[str, Tensor]:
    """Singular values [L, H, d] of each head's QK form W_q^T W_k and OV map W_o W_v, both D x D."""
    w = cross_weights(model)
    maps = {"QK": w["q"].transpose(-1, -2) @ w["k"], "OV": w["o"] @ w["v"]}
    return {name: torch.linalg.svdvals(m)[..., :w["k"].shape[2]] for name, m in maps.items()}


def templates(directions: Tensor, size: Sequence[int]) -> Tensor:
    """Ideal ramps [R, rows, columns] that rise toward directions [R, 2] (x right, y down), each of
    mean 0 and norm 1."""
    y, x = (torch.linspace(-1, 1, n) for n in size)
    ramp = directions[:, 0, None, None] * x + directions[:, 1, None, None] * y[:, None]
    return ramp / ramp.flatten(1).norm(dim=1)[:, None, None]


def ramps(maps: Tensor, directions: Tensor, center: bool = True) -> dict[str, Tensor]:
    """How well maps [..., R, rows, columns] fit the ramps of their directions [R, 2]: cosine,
    projection, energy, each [..., R].

    After the paper: A = M minus its mean over the grid, projection <A, T>, energy |A|, cosine their
    ratio. In float32. `center` first subtracts, with every direction weighing the same, the mean
    over R: what all words share (the key's bias, a filler's map) is no ramp. A positive sign points
    to the side that the word names.
    """
    maps, directions = maps.float().cpu(), directions.float().cpu()
    if center:
        unique, group = directions.unique(dim=0, return_inverse=True)
        means = [maps[..., group == g, :, :].mean(-3) for g in range(len(unique))]
        maps = maps - torch.stack(means, -3).mean(-3, keepdim=True)
    maps = maps - maps.mean((-1, -2), keepdim=True)
    projection = (maps * templates(directions, maps.shape[-2:])).sum((-1, -2))
    energy = maps.flatten(-2).norm(dim=-1)
    cosine = projection / energy.clamp_min(1e-12)
    return {"cosine": cosine, "projection": projection, "energy": energy}


def token_words(prompt: str, tokens: Sequence[str]) -> list[tuple[str, list[int]]]:
    """The words of a prompt, lower case, each with the positions of its tokens, in order.

    For any tokenizer: the marks of WordPiece, SentencePiece, byte-level BPE and CLIP are taken off,
    and what is left is sought in the prompt. A special token is a word of its own.
    """
    said = list(re.finditer(r"\w+", prompt.lower()))
    groups: dict[object, tuple[str, list[int]]] = {}
    at = 0
    for i, token in enumerate(tokens):
        piece = re.sub(r"^(##|▁|Ġ)|</w>$", "", token).lower()
        start = prompt.lower().find(piece, at) if piece else -1
        word = next((m for m in said if m.start() <= start < m.end()), None)
        if start >= 0:
            at = start + len(piece)
        key, name = (i, token) if word is None else (word.span(), word[0])
        groups.setdefault(key, (name, []))[1].append(i)
    return list(groups.values())


def words(model: Transformer, encoder: Encoder, prompts: Sequence[str]) -> dict[str, Tensor]:
    """The mean vector [D], after the caption MLP, of every word (lower case) of the prompts, over
    its occurrences; of a word of several tokens, their mean. Special tokens count, pads do not.
    """
    text = _projected(model, encoder.encode(list(prompts)))
    found: dict[str, list[Tensor]] = {}
    for prompt, vectors, tokens, mask in zip(prompts, text.embeddings, text.tokens, text.mask):
        kept = [t for t, m in zip(tokens, mask.tolist()) if m]
        for word, at in token_words(prompt, kept):
            found.setdefault(word, []).append(vectors[mask][at].mean(0))
    return {word: torch.stack(v).mean(0) for word, v in found.items()}


def screen_words(model: Transformer, encoder: Encoder, prompts: Sequence[str]) -> pd.DataFrame:
    """All heads by the ramps that direction words draw on the bare position embedding.

    Rows (head, word): name, layer, head, word, cosine, projection, energy, centred over directions
    (see `ramps`); and as a null `control`: the mean over all other words of their projection on the
    ramp that fits them best. Raises ValueError if the words found name fewer than two sides.
    """
    vectors = words(model, encoder, prompts) if prompts else {}
    said = [w for w in DIRECTIONS if w in vectors]
    if len({DIRECTIONS[w] for w in said}) < 2:
        read = " ".join(encoder.encode(list(prompts[:1])).tokens[0]) if prompts else "nothing"
        raise ValueError(f"the prompts hold {len(said)} direction words; give prompts with at "
                         f"least two of {', '.join(DIRECTIONS)}, for different sides "
                         f"(the tokenizer of {type(encoder).__name__} reads: {read})")
    directions = torch.tensor([DIRECTIONS[w] for w in said])
    maps = qk_maps(model, torch.stack([vectors[w] for w in said]))     # [L, H, R, rows, columns]
    found, (layers, heads) = ramps(maps, directions), maps.shape[:2]
    rest = qk_maps(model, torch.stack([v for w, v in vectors.items() if w not in DIRECTIONS]))
    rest = rest - rest.mean(2, keepdim=True)
    fits = [ramps(rest, d.expand(rest.shape[2], 2), center=False)["projection"]
            for d in directions.unique(dim=0)]
    control = torch.stack(fits).amax(0).mean(-1)                                          # [L, H]
    rows = [(head_name(i, j), i, j, word, *(float(v[i, j, r]) for v in found.values()),
             float(control[i, j]))
            for i in range(layers) for j in range(heads) for r, word in enumerate(said)]
    return pd.DataFrame(rows, columns=["name", "layer", "head", "word", *found, "control"])


def snapshots(model: Transformer, folder: Path) -> dict[int, Transformer]:
    """A copy of the model for each snapshot of its training, by step: cross-attention and caption
    MLP of that step. Only weight-space scores make sense on it: all else is the finished model's.

    Raises ValueError if there are none.
    """
    files = sorted(Path(folder).glob("snapshots/*.safetensors"))
    if not files:
        raise ValueError(f"{folder} holds no snapshots of its training; "
                         "train with --evaluate-every to keep some")
    out = {}
    for file in files:
        out[int(file.stem)] = copy.deepcopy(model)
        weights = {k: v.float() for k, v in load_file(file).items()}
        out[int(file.stem)].load_state_dict(weights, strict=False)
    return out
