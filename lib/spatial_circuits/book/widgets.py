"""Widgets: the explorer for JupyterLab. Compose a prompt, look inside, change something, watch.

    from spatial_circuits.book.widgets import Explorer
    Explorer("rte")

What it shows is a `recording.Recording`; this module only has the controls. While a picture is
drawn they are disabled. What cannot be drawn is explained above the pictures until it is mended,
and the pictures stay those of the last request that could be drawn, under its name.
"""
import io
from collections.abc import Callable
from dataclasses import dataclass
from html import escape

import ipywidgets as w
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..analyses.heads import head_name, heads_of, parse_head
from ..claims.population import circuit_heads
from ..data.captions import COLORS, PHRASES, SHAPES, parse
from ..data.metrics import score
from ..data.scenes import RELATIONS
from ..live.contents import Workbench
from ..model import store
from ..model.sampler import STEPS
from ..text.counterparts import restated
from .explorer import outcome
from .figures import rgb
from .recording import SAID, Change, Recording, decoded, record, role_ramps

KEEP = "as it is"
PICTURE_SIZE = 160  # px of a picture or map on the screen
VIEWS = ("intact", "attention", "changed", "its attention", "by place alone")
_PLACES = [("into the residual stream", "stream"), ("into the relation word", "relation"),
         ("into shape 2's word", "shape2")]
WRAP = {"flex_flow": "row wrap"}


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG of PICTURE_SIZE px, its cells enlarged, not smoothed."""
    buffer, size = io.BytesIO(), (PICTURE_SIZE, PICTURE_SIZE)
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(buffer, "png")
    return buffer.getvalue()


def coloured(values: Tensor, top: float, signed: bool = False) -> np.ndarray:
    """A map [8, 8] in the book's colours, uint8 [8, 8, 3]: from 0 to `top`, or -top to top."""
    shown = values.float().cpu().numpy() / max(top, 1e-6)
    return rgb((shown + 1) / 2 if signed else shown, signed)


@dataclass
class Drawn:
    """What is on the screen: what was asked for, and what came of it."""
    request: tuple                # model, prompt, seed, change
    bench: Workbench
    recording: Recording
    ramps: Tensor                 # [L, H, R, 8, 8]
    outcomes: list[str]           # [C] in words, empty where the prompt does not say


class Explorer(w.VBox):
    """Controls and views over one prompt; `recording` holds what is shown, the intact run first.

    A control that alters the run draws again (about a second); layer, head, word and step only
    look elsewhere in it. `model` is a shipped model or a folder, `device` where it computes.
    """

    def __init__(self, model: str = "rte", prompt: str = "red square is above blue circle",
                 seed: int = 1, device: str | torch.device = "cpu"):
        self.benches: dict[str, Workbench] = {}
        self.device = device
        self.drawn: Drawn | None = None
        self._offered: Workbench | None = None     # whose heads the controls offer
        names = list(dict.fromkeys([model, *store.names()]))
        self.model = w.Dropdown(options=names, value=model, description="model")
        options = (["", *COLORS], SHAPES, PHRASES, ["", *COLORS], SHAPES)
        self.parts = [w.Dropdown(options=o, layout={"width": "auto"}) for o in options]
        self.prompt = w.Text(value=prompt, description="prompt", continuous_update=False,
                             layout={"width": "32rem"})
        self.seed = w.IntText(value=seed, description="seed", continuous_update=False)
        self.layer, self.head = w.Dropdown(description="layer"), w.Dropdown(description="head")
        self.role = w.Dropdown(options=SAID, value="relation", description="word")
        self.step = w.IntSlider(min=0, max=STEPS - 1, value=STEPS - 1, description="step")
        self.off = w.SelectMultiple(description="heads off", rows=6)
        self.hidden = w.SelectMultiple(options=SAID, description="hide words", rows=6)
        self.relation = w.Dropdown(options=[KEEP, *RELATIONS], description="relation")
        self.site = w.Dropdown(options=_PLACES, description="written")
        self.scale = w.FloatSlider(value=1.0, min=0.0, max=4.0, step=0.25, description="times",
                                   continuous_update=False)
        self.message = w.HTML()
        size, width = {"width": PICTURE_SIZE, "height": PICTURE_SIZE}, f"{PICTURE_SIZE}px"
        self.views = {k: w.Image(format="png", **size) for k in VIEWS}
        self.captions = {k: w.HTML(layout={"width": width}) for k in VIEWS}
        runs = [self.seed, self.off, self.hidden, self.relation, self.site, self.scale]
        looks = [self.layer, self.head, self.role, self.step]
        self.controls = [self.model, *self.parts, self.prompt, *runs, *looks]
        written = w.VBox([self.relation, self.site, self.scale])
        shown = [w.VBox([self.views[k], self.captions[k]]) for k in VIEWS]
        rows = [[self.model, self.seed], self.parts, [self.prompt],
                [self.off, self.hidden, written], looks, [self.message], shown]
        super().__init__([w.HBox(row, layout=WRAP) for row in rows])
        self._listening = True
        self._update(self._follow_prompt)
        self._observe([self.prompt], self._follow_prompt)
        self._observe(self.parts, self._compose)
        self._observe([self.model, *runs, *looks], lambda: None)

    @property
    def recording(self) -> Recording | None:
        """What is shown: the intact run, then the changed one."""
        return None if self.drawn is None else self.drawn.recording

    def _observe(self, controls: list[w.Widget], act: Callable[[], None]) -> None:
        def changed(_) -> None:
            if self._listening:
                self._update(act)
        for control in controls:
            control.observe(changed, names="value")

    def _update(self, act: Callable[[], None]) -> None:
        """Act, draw what is asked for and show it, with all controls disabled meanwhile.

        The controls come back whatever happens. An error becomes the message, and stays it as
        long as what is asked for cannot be drawn.
        """
        self._listening = False
        for control in self.controls:
            control.disabled = True
        self.message.value, message = "drawing ...", ""
        try:
            act()
            asked = None
            while asked != (asked := [control.value for control in self.controls]):
                message = self._answer()           # again if asked anew while it was drawn
        finally:
            self.message.value = message
            for control in self.controls:
                control.disabled = False
            self._listening = True

    def _answer(self) -> str:
        """Draw and show what is asked for; returns what is wrong with it, if anything."""
        errors = []
        for act in (self._draw, self._look):
            try:
                act()
            except (ValueError, OSError) as error:
                errors.append(f"<b>{escape(str(error))}</b>")
        if errors and self.drawn and self.drawn.request != self._request():
            errors.append(f"Shown is still: {escape(self.drawn.request[1])}")
        return "<br>".join(errors)

    def bench(self) -> Workbench:
        """The model at hand with what its changes need; loaded once. ValueError if it cannot be."""
        name = self.model.value
        if name not in self.benches:
            try:
                net = store.load(name).to(self.device).fast()
                heads = circuit_heads(net.folder)
            except Exception as error:             # whatever a broken folder holds
                raise ValueError(f"model {name}: {error}") from error
            self.benches[name] = Workbench(net, heads.get("relation", ()),
                                            readers=heads.get("object", ()))
        return self.benches[name]

    def _follow_prompt(self) -> None:
        """Set the menus to what the prompt says; a part that it does not say stays."""
        said = parse(self.prompt.value)
        one, shape, phrase, two, other = self.parts
        for part, words, index in ((shape, SHAPES, said.shape[0]), (phrase, PHRASES, said.phrase),
                                   (other, SHAPES, said.shape[1])):
            if index is not None:
                part.value = words[index]
        for part, index in ((one, said.color[0]), (two, said.color[1])):
            part.value = "" if index is None else COLORS[index]

    def _compose(self) -> None:
        one, shape, phrase, two, other = (p.value for p in self.parts)
        self.prompt.value = " ".join(f"{one} {shape} is {phrase} {two} {other}".split())

    def change(self) -> Change:
        """What the controls ask for."""
        told = self.relation.value
        relation = None if told == KEEP else RELATIONS.index(told)
        off = tuple(parse_head(h) for h in self.off.value)
        return Change(off, tuple(self.hidden.value), relation, self.site.value, self.scale.value)

    def _request(self) -> tuple:
        return self.model.value, self.prompt.value, self.seed.value, self.change()

    def _draw(self) -> None:
        """Record what is asked for, unless it is what is drawn."""
        bench = self.bench()
        if self._offered is not bench:
            self._offer(bench)
        request = _, prompt, seed, change = self._request()
        if not 0 <= seed < 2 ** 31:
            raise ValueError(f"seed is {seed}; give a whole number from 0 to {2 ** 31 - 1}")
        if self.drawn and self.drawn.request == request:
            return
        changes = {"changed": change} if change != Change() else {}
        recording = record(bench, [prompt], changes, [seed])
        ramps = role_ramps(bench.model, [prompt])[0]
        finals = decoded(bench.model, recording.latents[0])
        self.drawn = Drawn(request, bench, recording, ramps, _scored(finals, prompt, change))

    def _offer(self, bench: Workbench) -> None:
        """Offer the heads of another model; what is chosen stays as far as it has it."""
        self._offered, heads = bench, heads_of(bench.model)
        self.off.value = ()
        self.off.options = [head_name(*h) for h in heads]
        for control, last in ((self.layer, heads[-1][0]), (self.head, heads[-1][1])):
            kept = min(control.value or 0, last)
            control.options = range(last + 1)
            control.value = kept

    def _look(self) -> None:
        """Show the step, head and word that the controls name, from what is drawn."""
        if self.drawn is None:
            return
        r, ramps, outcomes = self.drawn.recording, self.drawn.ramps, self.drawn.outcomes
        step, last = self.step.value, len(outcomes) - 1
        layer, head = (min(c.value, n - 1) for c, n in zip((self.layer, self.head), ramps.shape))
        if self.role.value not in r.roles[0]:
            held = ", ".join(dict.fromkeys(x for x in r.roles[0] if x in SAID))
            raise ValueError(f"the prompt {r.prompts[0]!r} holds no {self.role.value}; choose from "
                             f"{held}")
        role = SAID.index(self.role.value)
        images = decoded(self.drawn.bench.model, r.guesses[0, [0, last], step])
        intact, changed = images.permute(0, 2, 3, 1).numpy()
        seen = r.attention[0, [0, last], step, layer, head, role].float()
        ramp = ramps[layer, head, role]
        word = " ".join(t for t, x in zip(r.tokens[0], r.roles[0]) if x == self.role.value)
        top, limit = float(seen.max()), float(ramp.abs().max())
        name = head_name(layer, head)
        looks = [f'{name} to "{escape(word)}", up to {float(x.max()):.0%}' for x in seen]
        after = f"changed, step {step}<br>{outcomes[last]}" if last else "changed: nothing yet"
        shown = ((intact, f"intact, step {step}<br>{outcomes[0]}"),
                 (coloured(seen[0], top), looks[0]), (changed, after),
                 (coloured(seen[1], top), looks[1]),
                 (coloured(ramp, limit, signed=True),
                  f"{name}: logit by place alone, up to {limit:.1f}"))
        for key, (pixels, text) in zip(VIEWS, shown):
            self.views[key].value, self.captions[key].value = png(pixels), text


def _scored(finals: Tensor, prompt: str, change: Change) -> list[str]:
    """What became of each picture [C, 3, H, W], as far as the prompt says what it should be."""
    said = parse(prompt)
    if None in said.shape or said.relation is None:
        return [""] * len(finals)
    changed = prompt if change.relation is None else restated(prompt, change.relation)
    return [outcome(row) for _, row in score(finals, [prompt, changed][:len(finals)]).iterrows()]
