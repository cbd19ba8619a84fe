"""Graphs: the model as ONNX, opened at every cross-attention head, for a page without Python.

Weights that fp16 holds exactly, as those of saved models, lie beside the graph in fp16 and are
widened before use, so that nothing is lost.
"""
import contextlib
import io
import tempfile
import warnings
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL, PixArtTransformer2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..model.transformer import predict
from ..model.vae import VAE
from ..text.contextual import PretrainedEncoder

TRANSFORMER_INPUTS = ("latents", "timestep", "text", "mask", "scale", "mean", "added")
TRANSFORMER_OUTPUTS = ("prediction", "patterns")
WEIGHTS = "weights"      # the file in which a graph looks for its weights


class Graph(NamedTuple):
    """A network as ONNX: its structure, and the weights that it finds, in fp32, in a file."""
    onnx: bytes
    weights: np.ndarray      # [n] fp16


class _OpenHead:
    """Cross-attention whose heads can be scaled towards a mean, and whose pattern is kept."""

    def __init__(self, shared: dict[str, Any], layer: int):
        self.shared, self.layer = shared, layer

    def __call__(self, attn: Attention, hidden_states: Tensor,
                 encoder_hidden_states: Tensor | None = None,
                 attention_mask: Tensor | None = None, **rest) -> Tensor:
        made = (attn.to_q(hidden_states), attn.to_k(encoder_hidden_states),
                attn.to_v(encoder_hidden_states))
        query, key, value = (x.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for x in made)
        scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5      # [B, H, N, T]
        pattern = (scores + self.shared["bias"]).softmax(-1)
        scale = self.shared["scale"][:, self.layer, :, None, None]
        output = scale * (pattern @ value) + (1 - scale) * self.shared["mean"][:, self.layer]
        self.shared["patterns"].append(pattern)
        return attn.to_out[0](output.transpose(1, 2).flatten(2))


class OpenTransformer(nn.Module):
    """The transformer with TRANSFORMER_INPUTS and TRANSFORMER_OUTPUTS.

    latents [B, 4, 16, 16], timestep [B], text [B, T, D], mask [B, T] float (0 hides a token), scale
    [B, L, H] of each cross-attention head's output towards mean [B, L, H, N, d] (1 is as it is; 0
    puts the mean in its place, zeros for zero ablation), added [B, N, D] to the residual stream
    before `layer` -> prediction [B, 4, 16, 16], patterns [B, L, H, N, T]. The model given is
    changed: use a copy.
    """

    def __init__(self, model: PixArtTransformer2DModel, layer: int = 0):
        super().__init__()
        self.model = model
        self.shared: dict[str, Any] = {}
        for at, block in enumerate(model.transformer_blocks):
            block.attn2.set_processor(_OpenHead(self.shared, at))
        model.transformer_blocks[layer].register_forward_pre_hook(
            lambda module, args: (args[0] + self.shared["added"], *args[1:]))

    def forward(self, latents: Tensor, timestep: Tensor, text: Tensor, mask: Tensor, scale: Tensor,
                mean: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        self.shared.update(scale=scale, mean=mean, added=added, patterns=[],
                           bias=(1 - mask[:, None, None]) * -10_000.0)
        prediction = predict(self.model, latents, timestep, text, mask)
        return prediction, torch.stack(self.shared["patterns"], 1)


class _Decoder(nn.Module):
    """Standardised latents [B, 4, 16, 16] -> pictures [B, 3, 128, 128], 0..255, not rounded."""

    def __init__(self, model: AutoencoderKL, mean: Tensor, std: Tensor):
        super().__init__()
        self.model, self.mean, self.std = model, mean, std

    def forward(self, latents: Tensor) -> Tensor:
        picture = self.model.decode(latents * self.std + self.mean, return_dict=False)[0]
        return ((picture + 1) * 127.5).clamp(0, 255)


class _Encoder(nn.Module):
    """Token numbers [B, T] without pads -> embeddings [B, T, D]."""

    def __init__(self, model: nn.Module, mean: Tensor, scale: Tensor):
        super().__init__()
        self.model, self.mean, self.scale = model, mean, scale

    def forward(self, ids: Tensor) -> Tensor:
        states = self.model(input_ids=ids).last_hidden_state.float()
        return (states - self.mean) * self.scale


def transformer_graph(model: PixArtTransformer2DModel, text_dim: int, layer: int = 0) -> Graph:
    """`OpenTransformer` of a copy of the model as ONNX, batch and tokens of any number; what is
    added to the residual stream is added before `layer`."""
    blocks, heads = len(model.transformer_blocks), model.config.num_attention_heads
    size, places = model.config.sample_size, (model.config.sample_size // 2) ** 2
    dim, rows, tokens = model.config.attention_head_dim, 3, 9                 # of the example
    example = (torch.zeros(rows, model.config.in_channels, size, size), torch.zeros(rows),
               torch.zeros(rows, tokens, text_dim), torch.ones(rows, tokens),
               torch.ones(rows, blocks, heads), torch.zeros(rows, blocks, heads, places, dim),
               torch.zeros(rows, places, model.inner_dim))
    free = [(0, 1) if name in ("text", "mask") else (0,) for name in TRANSFORMER_INPUTS]
    return _exported(OpenTransformer(deepcopy(model).float(), layer), example, TRANSFORMER_INPUTS,
                     TRANSFORMER_OUTPUTS, free)


def decoder_graph(vae: VAE) -> Graph:
    """A VAE's decoder as ONNX: standardised latents [B, 4, 16, 16] -> pictures [B, 3, 128, 128] in
    0..255, not rounded."""
    model = deepcopy(vae.model).float().to(memory_format=torch.contiguous_format)
    return _exported(_Decoder(model, vae.mean, vae.std), (torch.zeros(3, 4, 16, 16),),
                     ("latents",), ("pictures",), [(0,)])


def encoder_graph(encoder: PretrainedEncoder) -> Graph:
    """A contextual encoder as ONNX: token numbers [B, T] without pads -> embeddings [B, T, D]."""
    ids = torch.ones(3, 9, dtype=torch.long)
    return _exported(_Encoder(encoder.model, encoder.mean, encoder.scale), (ids,), ("ids",),
                     ("embeddings",), [(0, 1)])


def _exported(module: nn.Module, example: tuple[Tensor, ...], inputs: Sequence[str],
              outputs: Sequence[str], free: Sequence[tuple[int, ...]]) -> Graph:
    """The module as ONNX; `free` names the axes of each input that may have any length."""
    import onnx
    dims = tuple(dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in free)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder, \
            contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module.eval(), example, dynamo=True, dynamic_shapes=dims,
                                    input_names=list(inputs), output_names=list(outputs),
                                    verbose=False)
        program.save(Path(folder, "model.onnx"), external_data=False)
        model = onnx.load(Path(folder, "model.onnx"))
    _drop_idle_squeezes(model.graph)
    weights = _outsource(model.graph)
    return Graph(model.SerializeToString(), weights)


def _drop_idle_squeezes(graph: Any) -> None:
    """torch's squeeze of a dimension that is not 1 does nothing; ONNX's would fail."""
    from onnx import numpy_helper
    axes = {w.name: numpy_helper.to_array(w) for w in graph.initializer}
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim]
              for v in [*graph.value_info, *graph.input]}
    for node in graph.node:
        known = shapes.get(node.input[0]) if node.op_type == "Squeeze" else None
        if known and len(node.input) == 2 and any(known[i] > 1 for i in axes[node.input[1]].flat):
            node.op_type = "Identity"
            del node.input[1:]


def _outsource(graph: Any) -> np.ndarray:
    """Take the weights that fp16 holds exactly out of the graph; it then finds them, in fp32, in
    the file WEIGHTS."""
    from onnx import TensorProto, numpy_helper
    parts, start = [np.zeros(0, np.float16)], 0
    for weight in graph.initializer:
        if weight.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(weight)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < 64 or (half.astype(np.float32) != values).any():
            continue
        parts.append(half.ravel())
        weight.ClearField("raw_data")
        weight.data_location = TensorProto.EXTERNAL
        for key, said in (("location", WEIGHTS), ("offset", start), ("length", values.nbytes)):
            weight.external_data.add(key=key, value=str(said))
        start += values.nbytes
    return np.concatenate(parts)
