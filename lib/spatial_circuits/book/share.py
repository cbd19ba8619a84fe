"""Share: a denoising as a short film, the picture beside the map of a relation head."""
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ..analyses.heads import Head, check_heads, head_name
from ..analyses.weight_maps import screen_words
from ..data.captions import PHRASES, parse
from ..data.metrics import prompt_set
from ..files import writing
from ..hooks.readers import Patterns
from ..hooks.run import run
from ..model.pipeline import Model
from ..model.sampler import STEPS
from ..text.counterparts import relations_said
from ..text.roles import role_mask
from .figures import rgb
from .recording import decoded

FILMS = (".gif", ".webp")       # by the ending of the file's name
_SIDE, _EDGE, _LINE = 256, 16, 20    # px: a panel, the room around it, a line of text


def strongest_ramp(model: Model, prompt: str) -> Head:
    """The head (layer, head) whose logits, from the weights alone, form the largest ramp for a word
    of the prompt's relation. Raises ValueError for a prompt without one."""
    relations_said([prompt])
    screen = screen_words(model.transformer, model.encoder, prompt_set("264"))
    said = screen[screen["word"].isin(PHRASES[parse(prompt).phrase or 0].split())]
    row = screen.loc[said["projection"].abs().idxmax()]
    return int(row["layer"]), int(row["head"])


def film(model: Model, prompt: str, seed: int = 0, head: Head | None = None,
         steps: int = STEPS) -> list[Image.Image]:
    """A frame a step, 560 px wide: the picture that the step expects at the end, and where a head
    (by default that of `strongest_ramp`) looks at the words of the relation.

    Raises ValueError, before sampling, for a prompt without a relation or one that cannot be
    encoded, and for a head that does not exist.
    """
    words = role_mask(model.encoder, [prompt], "relation")[0]                        # [T]
    head = head or strongest_ramp(model, prompt)
    check_heads(model, [head])
    reader = Patterns([head])
    guesses: list[Tensor] = []
    run(model, [prompt], [seed], reader, steps=steps,
        on_guess=lambda i, latents: guesses.append(latents.cpu()))
    pictures = decoded(model, torch.cat(guesses))                                    # [steps, ...]
    maps = reader.maps[head][0][..., words.to(model.device)].sum(-1).cpu()           # [steps, N]
    side = round(maps.shape[-1] ** 0.5)
    said = f"{head_name(*head)} looks at the relation"
    return [_frame(prompt, picture, seen.view(side, side), f"step {i} of {steps}", said)
            for i, (picture, seen) in enumerate(zip(pictures, maps), 1)]


def save_film(frames: Sequence[Image.Image], path: Path, pause: int = 220,
              hold: int = 2000) -> Path:
    """Write frames as an endless GIF or WebP, by the name's ending; `pause` and, for the last
    frame, `hold` in ms. Raises ValueError for another ending."""
    if path.suffix.lower() not in FILMS:
        raise ValueError(f"{path} must end in {' or '.join(FILMS)}")
    times = [pause] * (len(frames) - 1) + [hold]
    with writing(path) as partial:
        frames[0].save(partial, format=path.suffix[1:], save_all=True, loop=0, duration=times,
                       append_images=frames[1:])
    return path


def _frame(title: str, picture: Tensor, seen: Tensor, left: str, right: str) -> Image.Image:
    """Two panels under a title, each over its line of text; picture uint8 [3, H, W], seen [h, w]
    in 0..1."""
    lines = textwrap.wrap(title, 62)
    top = _EDGE + _LINE * len(lines) + _EDGE // 2
    size = (2 * _SIDE + 3 * _EDGE, top + _SIDE + _EDGE // 2 + _LINE + _EDGE)
    frame = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(frame), ImageFont.load_default(16)
    for i, line in enumerate(lines):
        draw.text((_EDGE, _EDGE + _LINE * i), line, "black", font)
    panels = (picture.permute(1, 2, 0).numpy(), rgb(seen.float().numpy()))
    for x, pixels, said in zip((_EDGE, 2 * _EDGE + _SIDE), panels, (left, right)):
        panel = Image.fromarray(np.ascontiguousarray(pixels))
        frame.paste(panel.resize((_SIDE, _SIDE), Image.Resampling.NEAREST), (x, top))
        draw.text((x, top + _SIDE + _EDGE // 2), said, "black", font)
    return frame
