"""Costs: what a forward of a PixArt transformer takes and what an analysis of it keeps, counted.

Pure arithmetic from a transformer's config and the size of a picture, after the module's layers
(diffusers' `PixArtTransformer2DModel`). An operation is a multiplication or an addition in a matrix
product, convolution or attention, as torch.utils.flop_counter counts; the rest is small beside it.
"""
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..data.captions import ROLES
from ..data.scenes import RELATIONS
from ..model.pipeline import Model
from ..model.sampler import STEPS

READER_KINDS = ("words", "places", "pattern")
_TIME = 256       # channels of diffusers' sinusoidal time embedding


@dataclass(frozen=True)
class Sizes:
    """A transformer and the picture it draws: all that the counts hang on.

    layers, heads, head_dim: of the attention. places: image tokens N. tokens: text tokens T, pads
    included. patch, channels, outputs: side in latents and channels of a patch. text: dimensions of
    the text encoder. conditions: whether size and aspect ratio enter. element: bytes of a number.
    """
    layers: int
    heads: int
    head_dim: int
    places: int
    tokens: int
    patch: int
    channels: int
    outputs: int
    text: int
    conditions: bool
    element: int = 4

    @property
    def width(self) -> int:
        """Dimensions D of the residual stream."""
        return self.heads * self.head_dim


def sizes_of_config(config: Mapping[str, Any], tokens: int, height: int | None = None,
                    width: int | None = None, element: int = 4) -> Sizes:
    """Sizes from a transformer's config. height, width: of the latents, its `sample_size` by
    default; tokens: of a prompt; element: bytes of a number (2 in bf16 and fp16).

    Raises ValueError for latents that its patches do not fill.
    """
    patch, side = config["patch_size"], config["sample_size"]
    high, wide = height or side, width or side
    if high % patch or wide % patch:
        raise ValueError(f"latents of {high} x {wide} are not filled by patches of {patch}; "
                         f"choose multiples of {patch}")
    conditions = config.get("use_additional_conditions")
    return Sizes(config["num_layers"], config["num_attention_heads"], config["attention_head_dim"],
                 (high // patch) * (wide // patch), tokens, patch, config["in_channels"],
                 config["out_channels"] or config["in_channels"], config["caption_channels"],
                 side == 128 if conditions is None else conditions, element)


def sizes_of(model: Model, height: int | None = None, width: int | None = None) -> Sizes:
    """Sizes of a loaded model, in its precision, with the tokens of its text encoder."""
    tokens = model.encoder.encode([""]).mask.shape[1]
    config = {**model.transformer.config,
              "use_additional_conditions": model.transformer.use_additional_conditions}
    element = next(model.transformer.parameters()).element_size()
    return sizes_of_config(config, tokens, height, width, element)


def model_bytes(model: Model) -> dict[str, int]:
    """Bytes of a loaded model's weights, transformer, VAE and text encoder, and of the decoding of
    one picture."""
    encoder: dict[str, Tensor] = getattr(model.encoder, "tensors", dict)()
    parts = {"transformer": model.transformer.state_dict(), "VAE": model.vae.tensors(),
             "text encoder": encoder}
    found = {name: sum(x.numel() * x.element_size() for x in tensors.values())
             for name, tensors in parts.items()}
    config, side = model.vae.model.config, model.transformer.config["sample_size"]
    channels = config["block_out_channels"]
    pixels = (side * 2 ** (len(channels) - 1)) ** 2
    element = next(model.vae.model.parameters()).element_size()
    return {**found, "decoding": decoder_bytes(channels, pixels, element)}


def parameters(s: Sizes) -> int:
    """How many weights the transformer has."""
    d, third = s.width, s.width // 3
    patches = s.channels * s.patch ** 2 * d + d
    times = _TIME * d + d + d * d + d + 6 * (d * d + d)
    if s.conditions:
        times += 2 * (_TIME * third + third + third * third + third)
    text = s.text * d + d + d * d + d
    block = 8 * (d * d + d) + (4 * d * d + 4 * d) + (4 * d * d + d) + 6 * d
    last = 2 * d + (d + 1) * s.patch ** 2 * s.outputs
    return patches + times + text + s.layers * block + last


def forward_operations(s: Sizes, rows: int = 2) -> dict[str, int]:
    """Operations of one forward of `rows` rows (samples x branches), by part."""
    d, n, t, third = s.width, s.places, s.tokens, s.width // 3
    times = _TIME * d + 7 * d * d
    if s.conditions:
        times += 3 * (_TIME * third + third * third)             # height, width, aspect ratio
    inside = n * d * (s.channels + s.outputs) * s.patch ** 2
    each = {"self-attention": s.layers * (4 * n * d * d + 2 * n * n * d),
            "cross-attention": s.layers * (2 * n * d * d + 2 * t * d * d + 2 * n * t * d),
            "MLP": s.layers * 8 * n * d * d,
            "text, time and patches": times + inside + t * (s.text * d + d * d)}
    return {part: 2 * rows * count for part, count in each.items()}


def reading_operations(s: Sizes, reader: str, rows: int = 2, layers: int | None = None) -> int:
    """Operations that a reader at `layers` (all) adds to a forward of two branches.

    words: attention to groups of tokens (`heatmap`), by the attention kernel once more. places: the
    same for all roles, summed over three places (`placed_synopsis`). pattern: whole patterns.
    Raises ValueError for another reader.
    """
    if reader not in READER_KINDS:
        raise ValueError(f"reader {reader!r} is unknown; choose from {', '.join(READER_KINDS)}")
    n, t, depth = s.places, s.tokens, s.layers if layers is None else layers
    groups = {"words": 1, "places": len(ROLES), "pattern": 0}[reader]
    scores = 2 * rows * n * t * s.width
    seen = scores if groups <= s.head_dim else 2 * rows * n * t * groups * s.heads
    if reader == "pattern":
        return depth * scores
    summed = 2 * (rows // 2) * s.heads * 3 * n * groups if reader == "places" else 0
    return depth * (scores + seen + summed)


def weight_bytes(s: Sizes) -> int:
    """Bytes of the transformer's weights."""
    return parameters(s) * s.element


def activation_bytes(s: Sizes, rows: int = 2, reader: str | None = None) -> int:
    """Bytes at hand at the fullest moment of a forward, weights aside: in the MLP, whose hidden
    layer is there thrice around its nonlinearity; or where a whole pattern is made."""
    stream = rows * s.places * s.width * s.element
    text = rows * s.tokens * (s.width + s.text) * s.element
    pattern = 3 * rows * s.heads * s.places * s.tokens * s.element
    return text + max(12 * stream, 5 * stream + (pattern if reader == "pattern" else 0))


def decoder_bytes(channels: Sequence[int], pixels: int, element: int = 4) -> int:
    """Bytes at hand at the fullest moment of an AutoencoderKL's decoder, in its last block at full
    size. channels: its `block_out_channels`, at least two; pixels: of the batch."""
    return max(5 * channels[0], 3 * channels[1]) * pixels * element


def kept_bytes(s: Sizes, steps: int = STEPS, samples: int = 1) -> dict[str, int]:
    """Bytes that readers keep over `steps` forwards of one batch of samples.

    pattern: one layer's patterns at hand, both branches. patterns: one head, every step, float32.
    mean outputs: all heads (mean ablation). heatmap: all heads, one word. roles: all heads and
    roles, every step (the book's synopsis). places: the same summed over three places.
    """
    heads = s.layers * s.heads
    every = 2 * steps * heads * len(ROLES)
    return {"pattern": 2 * samples * s.heads * s.places * s.tokens * s.element,
            "patterns": 4 * samples * steps * s.places * s.tokens,
            "mean outputs": 4 * 2 * steps * s.layers * s.places * s.width,
            "heatmap": 4 * samples * heads * s.places,
            "roles": 2 * samples * every * s.places,
            "places": 4 * samples * heads * 3 * len(ROLES)}


@dataclass(frozen=True)
class Estimate:
    """What an analysis will take: forwards (of two rows: a picture in both branches, or two of one
    branch), operations, and bytes beside the weights at its fullest moment."""
    analysis: str
    forwards: int
    operations: int
    memory: int


def estimates(s: Sizes, pictures: int, chunk: int = 4, steps: int = STEPS, batch: int = 16,
              words: int = 32) -> list[Estimate]:
    """A heat map; for so many pictures, one of each prompt, synopsis, ablation and patching of
    every head alone, and injection at one scale, as `heatmap`, `placed_synopsis`,
    `placed_ablation`, `patched_predictions` and `placed_injection` make them; and `screen_layers`
    for prompts of so many words. `chunk` pictures or `batch` rows at a time; the decoding of
    pictures aside.

    At most: injection draws no text twice. Raises ValueError for less than one picture, chunk,
    step or word, or a batch below 3.
    """
    if min(pictures, chunk, steps, words, batch - 2) < 1:
        raise ValueError(f"pictures is {pictures}, chunk {chunk}, steps {steps}, words {words}, "
                         f"batch {batch}; each must be at least 1, batch 3")
    one, at_once = sum(forward_operations(s).values()), min(chunk, pictures)
    kept, full = kept_bytes(s, steps, at_once), activation_bytes(s, 2 * at_once)
    seen, places = (reading_operations(s, reader) for reader in ("words", "places"))
    heads, stream = s.layers * s.heads, 4 * s.places * s.width                  # in float32
    alone = (1 + heads) * steps * pictures
    pairs = -(-2 * s.heads // (batch - 2))        # batches of a layer, a clean pair in each
    patched = (2 + s.layers * (s.heads + pairs)) * steps * pictures
    rows = min(batch, 2 + 2 * s.heads)
    written = 5 * steps * pictures                # two to take means of, three to score
    vectors = 2 * len(RELATIONS) + 3 * at_once    # means of both halves, and what is added
    layer = 2 * s.width * (s.width * (2 * s.places + words) + words * s.places)
    text = 2 * s.tokens * (s.text + s.width) * s.width
    maps = 4 * s.heads * words * s.places
    return [
        Estimate("heatmap", steps, steps * (one + seen),
                 activation_bytes(s) + kept_bytes(s, steps)["heatmap"]),
        Estimate("synopsis", 2 * steps * pictures, steps * pictures * (2 * one + places),
                 full + kept["places"]),
        Estimate("ablate", alone, alone * one, full),
        Estimate("patch", patched, patched * one, activation_bytes(s, rows)),
        Estimate("inject", written, written * one, full + vectors * stream),
        Estimate("screen", 0, (s.layers + 1) * layer + pictures * text,
                 32 * s.width ** 2 + 3 * stream + 4 * maps)]
