"""Widgets: the explorer for JupyterLab. Compose a prompt, look inside, change something, watch the picture change.

    from spatial_circuits.widgets import Explorer
    Explorer("rte")

What it shows is a `recording.Recording`; this module only has the controls. While a picture is drawn they are disabled; after
an error they come back, with the error in words above the pictures.
"""
import io
from collections.abc import Callable
from html import escape

import ipywidgets as w
import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

from . import claims, pretrained
from .ablation import heads_of, name
from .captions import COLORS, PHRASES, SHAPES, parse
from .explorer import outcome
from .injection import restated
from .metrics import score
from .recording import SAID, SITES, Bench, Change, Recording, ramps, record
from .sample import STEPS
from .scenes import RELATIONS
from .study import head

KEEP = "as it is"
SIZE = 160  # px of a picture or map on the screen


def png(pixels: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as a PNG of SIZE px, its cells enlarged, not smoothed."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.NEAREST).save(buffer, "png")
    return buffer.getvalue()


def coloured(values: Tensor, top: float, signed: bool = False) -> np.ndarray:
    """A map [8, 8] in the book's colours, uint8 [8, 8, 3]; `top` is the brightest, for signed maps -top the other end."""
    shown = values.float().numpy() / max(top, 1e-6)
    return (matplotlib.colormaps["PuOr_r" if signed else "viridis"]((shown + 1) / 2 if signed else shown)[..., :3] * 255).round().astype(np.uint8)


class Explorer(w.VBox):
    """Controls and views over one prompt. `recording` holds what is shown: the intact run, then the changed one.

    A control that alters the run draws again (about a second); layer, head, word and step only look elsewhere in it.
    """

    def __init__(self, model: str = "rte", prompt: str = "red square is above blue circle", seed: int = 1):
        self.benches: dict[str, Bench] = {}
        self.recording: Recording | None = None
        self._asked = None
        self.model = w.Dropdown(options=pretrained.names() if model in pretrained.names() else [model, *pretrained.names()], value=model, description="model")
        said = parse(prompt)
        self.parts = [w.Dropdown(options=o, value=v, layout={"width": "auto"}) for o, v in (
            (["", *COLORS], _named(COLORS, said.color[0])), (SHAPES, _named(SHAPES, said.shape[0], SHAPES[0])),
            (PHRASES, _named(PHRASES, said.phrase, PHRASES[0])), (["", *COLORS], _named(COLORS, said.color[1])),
            (SHAPES, _named(SHAPES, said.shape[1], SHAPES[1])))]
        self.prompt = w.Text(value=prompt, description="prompt", continuous_update=False, layout={"width": "32rem"})
        self.seed = w.BoundedIntText(value=seed, min=0, max=2**31 - 1, description="seed")
        self.layer, self.head = w.Dropdown(description="layer"), w.Dropdown(description="head")
        self.role = w.Dropdown(options=SAID, value="relation", description="word")
        self.step = w.IntSlider(min=1, max=STEPS, value=STEPS, description="step")
        self.off = w.SelectMultiple(description="heads off", rows=6)
        self.hidden = w.SelectMultiple(options=SAID, description="hide words", rows=6)
        self.relation = w.Dropdown(options=[KEEP, *RELATIONS], description="relation")
        self.site = w.Dropdown(options=[("into the picture's stream", "stream"), ("into the relation word", "relation"),
                                        ("into shape 2's word", "shape2")], description="written")
        self.scale = w.FloatSlider(value=1.0, min=0.0, max=4.0, step=0.25, description="times", continuous_update=False)
        self.message = w.HTML()
        self.views = {k: w.Image(format="png", width=SIZE, height=SIZE) for k in ("intact", "attention", "changed", "its attention", "by place alone")}
        self.captions = {k: w.HTML(layout={"width": f"{SIZE}px"}) for k in self.views}
        self.runs = [self.prompt, self.seed, self.off, self.hidden, self.relation, self.site, self.scale]
        self.looks = [self.layer, self.head, self.role, self.step]
        self.controls = [self.model, *self.parts, *self.runs, *self.looks]
        row = lambda *items: w.HBox(items, layout={"flex_flow": "row wrap"})
        super().__init__([row(self.model, self.seed), row(*self.parts), self.prompt, row(self.off, self.hidden, w.VBox([self.relation, self.site, self.scale])),
                          row(self.layer, self.head, self.role, self.step), self.message,
                          row(*(w.VBox([self.views[k], self.captions[k]]) for k in self.views))])
        self._listening = True
        self._working(self._take_model)
        for controls, act in (([self.model], self._take_model), (self.parts, self._compose), (self.runs, self._run), (self.looks, self._look)):
            for control in controls:
                control.observe(lambda _, act=act: self._listening and self._working(act), names="value")

    def _working(self, act: Callable[[], None]) -> None:
        """Do something with all controls disabled; they come back whatever happens, and an error becomes the message."""
        self._listening = False
        for control in self.controls:
            control.disabled = True
        self.message.value = "drawing ..."
        try:
            act()
            self.message.value = ""
        except (ValueError, OSError) as error:
            self.message.value = f"<b>{escape(str(error))}</b>"
        finally:
            for control in self.controls:
                control.disabled = False
            self._listening = True

    def bench(self) -> Bench:
        """The model at hand with what its changes need; loaded once."""
        if self.model.value not in self.benches:
            net = pretrained.load(self.model.value).fast()
            tables = claims.read(net.folder)
            members = tables.get("circuit", {}).get("circuit", {})
            self.benches[self.model.value] = Bench(net, [head(h) for h in members.get("relation", [])])
        return self.benches[self.model.value]

    def _take_model(self) -> None:
        net = self.bench().model
        layers, heads = 1 + heads_of(net)[-1][0], 1 + heads_of(net)[-1][1]
        self.off.value = ()
        self.off.options = [name(*h) for h in heads_of(net)]
        for control, count in ((self.layer, layers), (self.head, heads)):
            kept = min(control.value or 0, count - 1)
            control.options = range(count)
            control.value = kept
        self._run()

    def _compose(self) -> None:
        one, shape, phrase, two, other = (p.value for p in self.parts)
        self.prompt.value = " ".join(f"{one} {shape} is {phrase} {two} {other}".split())
        self._run()

    def change(self) -> Change:
        """What the controls ask for."""
        relation = None if self.relation.value == KEEP else RELATIONS.index(self.relation.value)
        return Change([head(h) for h in self.off.value], tuple(self.hidden.value), relation, self.site.value, self.scale.value)

    def _run(self) -> None:
        asked = (self.model.value, self.prompt.value, self.seed.value, change := self.change())
        if repr(asked) != self._asked:
            self.recording = record(self.bench(), [self.prompt.value], {"changed": change} if change != Change() else {}, [self.seed.value])
            self._asked = repr(asked)
            self._ramps = ramps(self.bench().model, [self.prompt.value])[0]                   # [L, H, R, 8, 8]
            self._outcomes = self._scored()
        self._look()

    def _scored(self) -> list[str]:
        """What became of each picture, as far as the prompt says what it should be."""
        said, prompt = parse(self.prompt.value), self.prompt.value
        finals = self.bench().model.vae.decode(self.recording.latents[0])
        if None in said.shape or said.relation is None:
            return [""] * len(finals)
        change = self.change()
        against = [prompt, prompt if change.relation is None else restated(prompt, change.relation)][:len(finals)]
        return [outcome(row) for _, row in score(finals, against).iterrows()]

    def _look(self) -> None:
        """Show the step, head and word that the controls name, from the recording at hand."""
        r, step, at = self.recording, self.step.value - 1, (self.layer.value, self.head.value)
        if r is None:
            return
        if self.role.value not in r.roles[0]:
            raise ValueError(f"the prompt {r.prompts[0]!r} holds no {self.role.value}; choose from {', '.join(dict.fromkeys(x for x in r.roles[0] if x in SAID))}")
        role, last = SAID.index(self.role.value), len(r.conditions) - 1
        pictures = self.bench().model.vae.decode(r.guesses[0, [0, last], step]).permute(0, 2, 3, 1).numpy()
        seen = r.attention[0, [0, last], step, at[0], at[1], role].float()                    # [2, 8, 8]
        ramp, word = self._ramps[at[0], at[1], role], " ".join(t for t, x in zip(r.tokens[0], r.roles[0]) if x == self.role.value)
        top, limit = float(seen.max()), float(ramp.abs().max())
        shown = (pictures[0], coloured(seen[0], top), pictures[1], coloured(seen[1], top), coloured(ramp, limit, signed=True))
        says = [f"intact, step {step + 1}<br>{self._outcomes[0]}", f"{name(*at)} to \"{escape(word)}\", up to {float(seen[0].max()):.0%}",
                f"changed, step {step + 1}<br>{self._outcomes[last]}" if last else "changed: nothing yet",
                f"{name(*at)} to \"{escape(word)}\", up to {float(seen[1].max()):.0%}", f"{name(*at)}: logit by place alone, up to {limit:.1f}"]
        for key, pixels, text in zip(self.views, shown, says):
            self.views[key].value, self.captions[key].value = png(pixels), text


def _named(words: tuple[str, ...], index: int | None, otherwise: str = "") -> str:
    return otherwise if index is None else words[index]
