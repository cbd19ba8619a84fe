"""Explorer: recordings as interactive figures that need no kernel and no network: one piece of HTML
with all of its data.

Attention is kept in whole percents, deflated as changes from step to step and from the intact run;
pictures are WebP strips.
"""
import base64
import io
import json
from collections.abc import Sequence
from html import escape
from importlib.resources import files

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor

from ..analyses.heads import head_name
from ..analyses.weight_maps import head_writes, logit_shift, project_captions, shape_keys
from ..data.captions import parse
from ..data.metrics import score
from ..data.scenes import REVERSE
from ..hooks.core import Heads
from ..live.contents import Workbench, packed_bytes
from ..text.counterparts import restated
from ..text.roles import role_table
from .figures import ROLE_COLORS, rgb
from .head_figures import CIRCUIT_COLORS
from .recording import SAID, Change, Recording, decoded, record, role_ramps

_KINDS = ("explorer", "circuit", "live")
CIRCUIT_STAGES = ("words", "relation heads look", "they leave a tag", "object heads read it",
                  "picture")
READ_FROM = {"relation": "the relation word", "shape2": "the second shape's word"}


def percents(attention: Tensor) -> np.ndarray:
    """Attention in 0..1 as whole percents, uint8: what the figures show."""
    return (attention.float() * 100).round().byte().cpu().numpy()


def packed(values: np.ndarray) -> str:
    """uint8 [P, C, steps, ...] as text: steps less the step before, conditions less the first,
    deflated."""
    steps = np.diff(values, axis=2, prepend=np.zeros_like(values[:, :, :1]))
    steps[:, 1:] -= steps[:, :1].copy()
    return packed_bytes(steps.tobytes())


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def strip(frames: Tensor, quality: int = 60) -> str:
    """Pictures uint8 [n, 3, H, W] side by side as one WebP, base64."""
    buffer = io.BytesIO()
    image = Image.fromarray(torch.cat(list(frames), 2).permute(1, 2, 0).cpu().numpy())
    image.save(buffer, "webp", quality=quality, method=6)
    return _text(buffer.getvalue())


def _colour_maps() -> list[str]:
    """The two colour maps as 256 RGB triples each, base64."""
    return [_text(rgb(np.linspace(0, 1, 256), signed).tobytes()) for signed in (False, True)]


def outcome(row: pd.Series) -> str:
    """A picture in words: a row of `metrics.score`."""
    if not row["unique_binding"]:
        return "an object is missing or doubled"
    dx, dy = round(row["dx"]), round(row["dy"])
    side, level = "left" if dx < 0 else "right", "above" if dy < 0 else "below"
    told = "as told" if row["loose"] else "not as told"
    return f"object 1 is {abs(dx)} px {side} of and {abs(dy)} px {level} object 2, {told}"


def compare_circuits(bench: Workbench, prompts: Sequence[str], heads: dict[str, Heads],
                     seed: int = 1) -> list[Recording]:
    """A recording a prompt: intact, without each of the named sets of heads, and with the opposite
    relation written in; all from the noise of `seed`, as in the live model."""
    off = {name: Change(off=h) for name, h in heads.items()}
    out = []
    for prompt in prompts:
        opposite = Change(relation=int(REVERSE[parse(prompt).relation]))
        changes = off | {"opposite relation written in": opposite}
        out.append(record(bench, [prompt], changes, [seed]))
    return out


def _outcomes(recording: Recording, finals: Tensor) -> list[str]:
    """What became of a recording's pictures [C, 3, H, W]; the last shows the opposite relation."""
    told, last = recording.prompts[0], recording.conditions[-1]
    reversed_told = restated(told, int(REVERSE[parse(told).relation]))
    against = [reversed_told if c == last else told for c in recording.conditions]
    scored = score(finals, against).iterrows()
    return [outcome(row) + (f": {text}" if text != told else "")
            for (_, row), text in zip(scored, against)]


def explorer(bench: Workbench, recordings: Sequence[Recording], members: dict[str, str]) -> dict:
    """The data of the explorer from the recordings of `compare_circuits`; `members` names the
    roles of heads."""
    first = recordings[0]
    attention = percents(torch.cat([r.attention for r in recordings]))   # [P, C, S, L, H, R, 8, 8]
    ramps = role_ramps(bench.model, [r.prompts[0] for r in recordings]).nan_to_num()
    unit = float(ramps.abs().max()) / 127
    prompts, strips = [], []
    for r in recordings:
        prompts.append({"text": r.prompts[0], "tokens": r.tokens[0], "roles": r.roles[0],
                        "outcomes": _outcomes(r, decoded(bench.model, r.latents[0]))})
        strips.append([strip(frames) for frames in decoded(bench.model, r.guesses[0])])
    role = SAID.index("relation")
    looks = attention[:, 0].mean((0, 1, -1, -2))[..., role]              # [L, H]
    return {"kind": "explorer", "shape": list(attention.shape[:6]), "attention": packed(attention),
            "strips": strips, "prompts": prompts,
            "ramps": packed_bytes((ramps / unit).round().to(torch.int8).numpy().tobytes()),
            "rampUnit": unit, "roles": list(SAID), "role": role, "head": int(looks.argmax()),
            "conditions": first.conditions, "members": members, "memberColours": CIRCUIT_COLORS,
            "roleColours": ROLE_COLORS, "colours": _colour_maps()}


def _map(label: str, values: Tensor, signed: bool = False, percent: bool = False) -> dict:
    """A map [8, 8] or [64] with its scale, rounded to what is shown; attention in percents."""
    digits, values = (0, 100 * values) if percent else (2, values)
    top = round(max(float(values.abs().max()), 1e-6), digits) or 10 ** -digits
    return {"label": label, "values": [round(v, digits) for v in values.flatten().tolist()],
            "low": -top if signed else 0, "high": top, "unit": " %" if percent else ""}


def _tags(bench: Workbench, recording: Recording, heads: dict[str, Heads],
          reads: str) -> list[list[dict]]:
    """What the relation heads' writes do to the object heads' choice of shape 1 against shape 2:
    for each prompt maps along the straight path, at the first step."""
    model, net = bench.model, bench.model.transformer
    text = model.encoder.encode(recording.prompts)
    vectors = project_captions(net, text.embeddings.to(net.device))                      # [P, T, D]
    keys = shape_keys(net, model.encoder, recording.prompts)                             # [P, 2, D]
    role = SAID.index(reads)
    weight = role_table(text.roles)[..., role]
    weight = (weight / weight.sum(1, keepdim=True)).to(net.device)                       # [P, T]
    out: list[list[dict]] = []
    for i in range(len(recording.prompts)):
        seen, maps = recording.attention[i, 0, 0, :, :, role].float().to(net.device), []
        for reader, writer in ((r, w) for r in heads["object"] for w in heads["relation"]):
            if writer[0] < reader[0]:
                pattern = seen[writer].flatten()[None, :, None] * weight[i]              # [1, N, T]
                write = head_writes(net, vectors[i:i + 1], pattern, writer)
                write = write - write.mean(1, keepdim=True)
                shift = logit_shift(net, write, keys[i:i + 1], reader)[0].cpu()
                label = f"{head_name(*writer)} for {head_name(*reader)}"
                maps.append(_map(f"{label}: logit of shape 1 minus shape 2", shift, signed=True))
        out.append(maps)
    return out


@torch.no_grad()
def mechanism(bench: Workbench, prompts: Sequence[str], heads: dict[str, Heads], reads: str,
              title: str, seed: int = 1) -> dict:
    """One model's way from the words to the picture, for each prompt, in CIRCUIT_STAGES, from the
    noise of `seed`.

    heads: (layer, head) by role, "relation" and "object" among them. reads: the role of the token
    from which the relation is read. Raises ValueError for another role than READ_FROM has.
    """
    if reads not in READ_FROM:
        raise ValueError(f"role {reads!r} is unknown; choose from {', '.join(READ_FROM)}")
    recording = record(bench, prompts, {}, [seed] * len(prompts))
    ramps, tags = role_ramps(bench.model, prompts), _tags(bench, recording, heads, reads)
    member = {role: ", ".join(head_name(*h) for h in hs) or "none" for role, hs in heads.items()}
    k, said, last = SAID.index(reads), READ_FROM[reads], recording.guesses.shape[2] - 1
    steps = sorted({s for s in (0, 1, 2, 4) if s < last} | {last})
    runs = []
    for i, prompt in enumerate(prompts):
        seen = recording.attention[i, 0].float()                                # [S, L, H, R, 8, 8]
        looks = [_map(f"{head_name(*h)} by place alone", ramps[i][h][k], signed=True)
                 for h in heads["relation"]]
        looks += [_map(f"{head_name(*h)} at step 0, attention to {said}", seen[0][h][k],
                       percent=True) for h in heads["relation"]]
        reading = [_map(f"{head_name(*h)} at step {s}, attention to {role}",
                        seen[s][h][SAID.index(role)], percent=True)
                   for h in heads["object"] for s in (0, last) for role in ("shape1", "shape2")]
        stages = [
            {"roles": [reads], "maps": [], "text": "The sentence becomes one vector a token. This "
             f"model reads the relation from {said}."},
            {"roles": [reads], "maps": looks, "text": f"Relation heads: {member['relation']}. A "
             f"patch's place, compared with {said}, decides how much it looks there: first the "
             "logit from place alone, before there is any picture, then the attention at the first "
             "step."},
            {"roles": [reads], "maps": tags[i], "text": "Where they look, the relation heads write "
             "a vector: a tag. The maps show what the tag does to the later head's choice between "
             "the two shapes: orange places will be told shape 1, purple places shape 2."
             if tags[i] else "No relation head lies below an object head: there is no tag to read, "
             "the relation is used where it is found."},
            {"roles": ["shape1", "shape2"], "maps": reading, "text": "Object heads: "
             f"{member['object']}. Marked places look at the word of their shape: at the first "
             "step, where little but the tag is there, and at the last."},
            {"roles": list(SAID), "maps": [{"label": f"step {s}"} for s in steps],
             "strip": strip(decoded(bench.model, recording.guesses[i, 0, steps])),
             "text": "The picture that the model expects, at some of its steps."}]
        runs.append({"text": prompt, "tokens": recording.tokens[i], "roles": recording.roles[i],
                     "stages": stages})
    return {"title": title, "runs": runs}


def circuit_figure(models: Sequence[dict], seconds: float = 4.0) -> dict:
    """The data of the circuit figure: `mechanism` of one or more models on the same prompts; it
    plays at so many seconds a stage. Raises ValueError unless they are more than 0."""
    if not seconds > 0:
        raise ValueError(f"{seconds} seconds a stage; give more than 0")
    return {"kind": "circuit", "models": list(models), "stages": list(CIRCUIT_STAGES),
            "seconds": seconds,
            "roleColours": ROLE_COLORS, "colours": _colour_maps()}


class Figure:
    """An interactive figure as self-contained HTML, with a caption and a text for readers who do
    not see it. Raises ValueError for data of an unknown kind."""

    def __init__(self, data: dict, caption: str, alt: str):
        if data.get("kind") not in _KINDS:
            kinds = ", ".join(_KINDS)
            raise ValueError(f"kind {data.get('kind')!r} is unknown; choose from {kinds}")
        self.data, self.caption, self.alt = data, caption, alt

    def _repr_html_(self) -> str:
        assets = files("spatial_circuits.book") / "assets"
        style, script = ((assets / f).read_text() for f in ("figures.css", "figures.js"))
        data = json.dumps(self.data, separators=(",", ":")).replace("</", "<\\/")
        return (f'<figure><style>{style}</style>'
                f'<div class="sc" role="group" aria-label="{escape(self.alt)}">'
                f'<script type="application/json">{data}</script></div>'
                f'<figcaption>{escape(self.caption)}</figcaption>'
                f'<script>{script}</script></figure>')

    def __repr__(self) -> str:
        return f"Interactive figure: {self.alt}"


class LiveModel(Figure):
    """A model that runs in the page: its controls, and a button that loads it.

    What it loads lies in _static/live of the built pages (see `live.bundle`), or in `base`, a
    folder beside the page, with a slash at its end. `prompt` and `seed` are those of the first
    picture.
    """

    def __init__(self, prompt: str = "red square is above blue circle", seed: int = 1,
                 base: str | None = None):
        data = {"kind": "live", "prompt": prompt, "seed": seed, "roleColours": ROLE_COLORS,
                "memberColours": CIRCUIT_COLORS, "colours": _colour_maps()[:1]}
        super().__init__(data if base is None else {**data, "base": base},
                         "The model itself, at work in this page. Nothing is loaded before you ask "
                         "for it, and nothing leaves your machine. Pictures are those that Python "
                         "draws from the same sentence and seed.",
                         "Live model: type a sentence, change the model, watch the picture")
