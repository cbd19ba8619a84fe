"""Explorer: recordings as interactive figures that need no kernel and no network: one piece of HTML with all of its data.

Attention is kept in whole percents, deflated as changes from step to step and from the intact run; pictures are WebP strips.
"""
import base64
import io
import json
import zlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files

import matplotlib
import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from .captions import parse
from .injection import restated
from .metrics import score
from .plots import ROLE_COLORS
from .plots_heads import COLORS
from .recording import SAID, Bench, Change, Recording, ramps, record
from .scenes import RELATIONS, REVERSE
from .synopsis import role_table
from .weights import captioned, reading, shape_keys, written

KINDS = ("explorer", "circuit")
STAGES = ("words", "relation heads look", "they leave a tag", "object heads read it", "picture")


def percents(attention: Tensor) -> np.ndarray:
    """Attention in 0..1 as whole percents, uint8: what the figures show."""
    return (attention.float() * 100).round().byte().numpy()


def packed(values: np.ndarray) -> str:
    """uint8 [P, C, steps, ...] as text: differences along the steps, and those from the first condition, deflated."""
    steps = np.diff(values, axis=2, prepend=np.zeros_like(values[:, :, :1]))
    steps[:, 1:] -= steps[:, :1].copy()
    return _text(zlib.compress(steps.tobytes(), 9))


def unpacked(text: str, shape: Sequence[int]) -> np.ndarray:
    """What `packed` packed."""
    steps = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(shape).copy()
    steps[:, 1:] += steps[:, :1]
    return np.cumsum(steps, axis=2, dtype=np.uint8)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def strip(pictures: Tensor, quality: int = 60) -> str:
    """Pictures uint8 [n, 3, H, W] side by side as one WebP, base64."""
    buffer = io.BytesIO()
    Image.fromarray(torch.cat(list(pictures), 2).permute(1, 2, 0).numpy()).save(buffer, "webp", quality=quality, method=6)
    return _text(buffer.getvalue())


def _colours() -> list[str]:
    """The two colour maps as 256 RGB triples each, base64."""
    grid = np.linspace(0, 1, 256)
    return [_text((matplotlib.colormaps[name](grid)[:, :3] * 255).round().astype(np.uint8).tobytes()) for name in ("viridis", "PuOr_r")]


def outcome(row: pd.Series) -> str:
    """A scored picture in words."""
    if not row["unique_binding"]:
        return "an object is missing or doubled"
    dx, dy = round(row["dx"]), round(row["dy"])
    return (f"object 1 is {abs(dx)} px {'left' if dx < 0 else 'right'} of and {abs(dy)} px {'above' if dy < 0 else 'below'} object 2, "
            f"{'as told' if row['loose'] else 'not as told'}")


def survey(bench: Bench, prompts: Sequence[str], heads: dict[str, Sequence[tuple[int, int]]], seed: int = 1) -> list[Recording]:
    """Every prompt intact, without each of the named heads, and with the opposite relation written in: one recording a prompt."""
    return [record(bench, [p], {name: Change(off=h) for name, h in heads.items()} |
                   {"opposite relation written in": Change(relation=int(REVERSE[parse(p).relation]))}, [seed * 1_000_000 + i])
            for i, p in enumerate(prompts)]


def explorer(bench: Bench, recordings: Sequence[Recording], members: dict[str, str]) -> dict:
    """The data of the explorer: one prompt a recording, all under the same conditions; `members` names the roles of heads."""
    net, first = bench.model, recordings[0]
    attention = percents(torch.cat([r.attention for r in recordings]))                        # [P, C, S, L, H, R, 8, 8]
    drawn = ramps(net, [r.prompts[0] for r in recordings]).nan_to_num()                       # [P, L, H, R, 8, 8]
    unit, prompts, strips = float(drawn.abs().max()) / 127, [], []
    for r in recordings:
        pictures = net.vae.decode(r.guesses[0].flatten(0, 1)).unflatten(0, r.guesses.shape[1:3])
        told, finals = r.prompts[0], net.vae.decode(r.latents[0])
        against = [restated(told, int(REVERSE[parse(told).relation])) if c == first.conditions[-1] else told for c in r.conditions]
        scored = score(finals, against)
        prompts.append({"text": told, "tokens": r.tokens[0], "roles": r.roles[0],
                        "outcomes": [outcome(row) + (f": {text}" if text != told else "") for (_, row), text in zip(scored.iterrows(), against)]})
        strips.append([strip(p) for p in pictures])
    best = attention[:, 0].mean((0, 1, -1, -2))[..., SAID.index("relation")]                  # [L, H]
    return {"kind": "explorer", "shape": list(attention.shape[:6]), "attention": packed(attention), "strips": strips, "prompts": prompts,
            "ramps": _text(zlib.compress((drawn / unit).round().to(torch.int8).numpy().tobytes(), 9)), "rampUnit": unit,
            "roles": list(SAID), "role": SAID.index("relation"), "head": int(best.argmax()), "conditions": first.conditions, "members": members,
            "memberColours": COLORS, "roleColours": ROLE_COLORS, "colours": _colours()}


def _map(label: str, values: Tensor, signed: bool = False, unit: str = "", top: float | None = None) -> dict:
    """A map [8, 8] or [64] with its scale, rounded to what is shown."""
    top = top or max(float(values.abs().max()), 1e-6)
    digits = 0 if unit == " %" else 2
    top = round(top, digits) or 10 ** -digits
    return {"label": label, "values": [round(float(v), digits) for v in values.flatten()], "low": -top if signed else 0, "high": top, "unit": unit}


@torch.no_grad()
def mechanism(bench: Bench, prompts: Sequence[str], heads: dict[str, list[str]], reads: str, title: str, seed: int = 1) -> dict:
    """One model's way from the words to the picture, stage by stage, for each prompt (see `STAGES`).

    heads: names and places by role, {"relation": [(l, h), ...], "object": [...]}; reads: the role of the token from which the
    relation is read. Tags are measured at the first step, along the straight path through the residual stream.
    """
    net, runs = bench.model, []
    name = lambda h: f"L{h[0]}H{h[1]}"
    recording = record(bench, prompts, {}, [seed * 1_000_000 + i for i in range(len(prompts))])
    drawn, keys = ramps(net, prompts), shape_keys(net.transformer, net.encoder, list(prompts)).cpu()
    text = net.encoder.encode(list(prompts))
    vectors, held = captioned(net.transformer, text.embeddings.to(net.transformer.device)).cpu(), role_table(text.roles)
    said = {"relation": "the relation word", "shape2": "the second shape's word"}[reads]
    for i, prompt in enumerate(prompts):
        seen, k = recording.attention[i, 0].float(), SAID.index(reads)                        # [S, L, H, R, 8, 8]
        looks = [_map(f"{name(h)} by place alone", drawn[i][h][k], True) for h in heads["relation"]]
        looks += [_map(f"{name(h)} at step 1, attention to {said}", 100 * seen[0][h][k], unit=" %") for h in heads["relation"]]
        tags = []
        for reader in heads["object"]:
            for h in (h for h in heads["relation"] if h[0] < reader[0]):
                pattern = seen[0][h][k].flatten()[None, :, None] * held[i, :, SAID.index(reads)] / held[i, :, SAID.index(reads)].sum()
                write = written(net.transformer, vectors[i:i + 1], pattern, h)[0]             # what it takes from that word, [N, D]
                tags.append(_map(f"{name(h)} for {name(reader)}: logit of shape 1 minus shape 2",
                                 reading(net.transformer, (write - write.mean(0))[None], keys[i:i + 1], reader)[0], True))
        last = seen.shape[0] - 1
        reads_out = [_map(f"{name(h)} at step {s + 1}, attention to {role}", 100 * seen[s][h][SAID.index(role)], unit=" %")
                     for h in heads["object"] for s in (0, last) for role in ("shape1", "shape2")]
        steps = sorted({s for s in (0, 1, 2, 4) if s < last} | {last})
        pictures = net.vae.decode(recording.guesses[i, 0, steps])
        member = {r: ", ".join(map(name, h)) or "none" for r, h in heads.items()}
        stages = [
            {"roles": [reads], "maps": [], "text": f"The sentence becomes one vector a token. This model reads the relation from {said}."},
            {"roles": [reads], "maps": looks, "text": f"Relation heads: {member['relation']}. A patch's place, compared with {said}, decides how much it "
             "looks there: first the logit from place alone, before there is any picture, then the attention at the first step."},
            {"roles": [reads], "maps": tags, "text": "Where they look, the relation heads write a vector: a tag. The maps show what the tag does to the later "
             "head's choice between the two shapes: orange places will be told shape 1, purple places shape 2." if tags else
             "No relation head lies below an object head: there is no tag to read, the relation is used where it is found."},
            {"roles": ["shape1", "shape2"], "maps": reads_out, "text": f"Object heads: {member['object']}. Marked places look at the word of their shape: "
             "at the first step, where little but the tag is there, and at the last."},
            {"roles": list(SAID), "maps": [{"label": f"step {s + 1}"} for s in steps], "strip": strip(pictures),
             "text": "The picture that the model expects, at some of its steps."}]
        runs.append({"text": prompt, "tokens": recording.tokens[i], "roles": recording.roles[i], "stages": stages})
    return {"title": title, "runs": runs}


def circuit(models: Sequence[dict]) -> dict:
    """The data of the circuit figure: `mechanism` of one or more models on the same prompts."""
    return {"kind": "circuit", "models": list(models), "stages": list(STAGES), "roleColours": ROLE_COLORS, "colours": _colours()}


class Figure:
    """An interactive figure of the book as self-contained HTML, with a caption and a text for readers who do not see it."""

    def __init__(self, data: dict, caption: str, alt: str):
        if data.get("kind") not in KINDS:
            raise ValueError(f"kind {data.get('kind')!r} is unknown; choose from {', '.join(KINDS)}")
        self.data, self.caption, self.alt = data, caption, alt

    def _repr_html_(self) -> str:
        style, script = ((files("spatial_circuits") / "assets" / f).read_text() for f in ("figures.css", "figures.js"))
        data = json.dumps(self.data, separators=(",", ":")).replace("</", "<\\/")
        return (f'<figure><style>{style}</style><div class="sc" role="group" aria-label="{escape(self.alt)}">'
                f'<script type="application/json">{data}</script></div><figcaption>{escape(self.caption)}</figcaption>'
                f'<script>{script}</script></figure>')

    def __repr__(self) -> str:
        return f"Interactive figure: {self.alt}"
