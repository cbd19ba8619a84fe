# %% [markdown]
# # 1. Dataset
#
# <aside class="margin">
#
# The task is that of [Wang, Fan and Pan (2026)](bibliography.md#wang2026circuit), whose study this book repeats
# and extends. What differs from theirs is said where it matters.
#
# </aside>
#
# **What does a model have to know to place two objects as it is told?** As little as we can arrange: a few flat
# shapes, two colours, and a sentence that says where the first object lies as seen from the second. Everything else is
# held constant, so that whatever a network learns about *above* or *left of* it learned from these sentences.
#
# This chapter draws the pictures, writes the captions, and measures the two properties that decide how later scores
# are read: how often each relation occurs, and how often the two objects cover each other.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 0
scale: str = "full"  # smoke | full

# %%
import tempfile
import time
from pathlib import Path

import pandas as pd
import torch
from IPython.display import Markdown
from tqdm import tqdm

from spatial_circuits.book.data_figures import PRESET_COLORS, density, separations
from spatial_circuits.book.figures import Captioned, bars, grid
from spatial_circuits.book.verdict import verdict
from spatial_circuits.claims.claims import folder_of, history
from spatial_circuits.data.captions import (
    PHRASE_RELATION,
    PHRASES,
    all_captions,
    captions,
)
from spatial_circuits.data.render import BACKGROUND, Scene, export, render
from spatial_circuits.data.scenes import (
    ALIGN,
    COLORS,
    GAP,
    JITTER,
    RADIUS,
    RELATIONS,
    SHAPES,
    SIZE,
    sample_scenes,
)

count = {"smoke": 400, "full": 20_000}[scale]

# %% [markdown]
# ## A scene and its caption
#
# A scene is a handful of small integers: two shapes, two colours, two positions, a relation, a phrase for it, and for
# each object whether its colour is spoken. It draws itself and says its caption.

# %%
scene = Scene(sample_scenes(torch.tensor([7]), seed))
print(scene.caption)
scene

# %% tags=["remove-input"]
Markdown(f"""The picture is {SIZE} pixels wide. There are {len(SHAPES)} shapes
({", ".join(SHAPES)}), of radius {RADIUS} pixels, and {len(COLORS)} colours on a grey
ground; the two objects of a scene never share a shape or a colour. Edges are
anti-aliased, which the paper's are not. A sentence always names both shapes; each
colour word is kept or dropped by the toss of a coin, so that the model cannot do
without either kind of word. With {len(RELATIONS)} relations in {len(PHRASES)} wordings,
this makes {len(set(all_captions())):,} different captions.""")

# %%
scenes = sample_scenes(torch.arange(15), seed)
Captioned(grid(render(scenes), captions(scenes), columns=5),
                "The first scenes of the stream, each under its caption. Colours are "
                "spoken in some captions only.")

# %%
named = [RELATIONS[r].replace("_", " ") for r in PHRASE_RELATION]
wordings = pd.DataFrame({"relation": named, "phrase": PHRASES})
wordings.groupby("relation", sort=False)["phrase"].agg(" · ".join).to_frame()

# %% [markdown]
# ## The rule behind the word
#
# Let $(X_k, Y_k)$ be the centroid of object $k$, with $Y_k$ pointing down, and count an axis as aligned when the objects
# differ by no more than a threshold $\tau$ along it:
#
# $$ r = \bigl(s(X_1 - X_2),\; s(Y_1 - Y_2)\bigr), \qquad s(\Delta) = \operatorname{sign}(\Delta)\,[\,|\Delta| > \tau\,]. $$
#
# $(0, -)$ is *above*, $(-, -)$ is *upper left*, and so on. From here two **presets** part ways.
#
# * `paper` draws both positions freely and names the relation that results, as the authors do. Few random pairs are
#   aligned, so most relations are diagonal, and nothing keeps the objects from covering each other. (One thing is not
#   theirs: they place a triangle by a point above its centroid, we place every shape by its centroid.)
# * `clean`, the default of this book, draws the relation first, each equally often. Along an axis that the relation
#   names the objects keep a minimum distance; along the other they are aligned up to a small jitter.

# %%
presets = {name: sample_scenes(torch.arange(count), seed, name)
           for name in ("clean", "paper")}
share = pd.DataFrame({name: torch.bincount(s.relation, minlength=8).numpy() / count
                      for name, s in presets.items()}, index=RELATIONS)
error = 1.96 * (share * (1 - share) / count) ** 0.5
Captioned(bars(share, share - error, share + error, "share of the scenes",
                           PRESET_COLORS),
                "How often each relation occurs, with 95 % intervals. Clean: all "
                "alike. Paper: mostly diagonal.")

# %% tags=["nbval-check-output"]
share.round(4)

# %% tags=["remove-input"]
diagonal = share.iloc[4:].sum()
Markdown(f"""The threshold is {ALIGN} pixels. In the paper's distribution
{diagonal["paper"]:.1%} of {count:,} scenes are diagonal, and each of the other four
relations appears in about {share["paper"].iloc[:4].mean():.1%}; in the clean one the
diagonals take {diagonal["clean"]:.1%}. A model trained on the former meets *left of* a
good deal less often than a phrase such as *to the upper left of*, and a single accuracy
over both hides it.""")

# %% [markdown]
# ## How far apart, and how often one on the other
#
# Whether objects overlap can be counted in the pictures: draw the same two shapes once far apart and once in place, and
# compare how many pixels are painted.

# %%
def painted(scenes):
    """Pixels that are not background, per scene [B]."""
    drawn = (render(scenes[i:i + 500], antialias=False)
             for i in range(0, len(scenes), 500))
    return torch.cat([(x != BACKGROUND).any(1).sum((1, 2)) for x in drawn])

apart = torch.tensor([[32, 32], [96, 96]])  # [object, axis] px
some = {name: s[:count // 5] for name, s in presets.items()}
hidden = {name: painted(s.replace(xy=apart.expand_as(s.xy))) - painted(s)
          for name, s in some.items()}
overlap = pd.Series({name: (h > 0).double().mean().item()
                     for name, h in hidden.items()})

# %%
Captioned(separations(presets),
                "Distances of the two centroids. Left: along an axis that the relation "
                "names, clean scenes keep a gap. Right: along an axis that it does not "
                "name, they are nearly aligned.")

# %% tags=["remove-input"]
half = 1.96 * (overlap["paper"] * (1 - overlap["paper"]) / len(some["paper"])) ** 0.5
Markdown(f"""With the paper's preset {overlap["paper"]:.1%} (± {half:.1%}) of the
pictures have overlapping objects, with the clean one {overlap["clean"]:.1%}: there the
objects lie at least {GAP} pixels apart along each named axis, and within {JITTER} along
the other, well inside the threshold of {ALIGN}. This matters beyond taste. A detector
cannot recognise a shape that is half hidden, so that **even the training pictures of
the paper fail a part of its test**, and a trained model can look perfect while it fails
as often as they do. Chapter 5 measures that ceiling.""")

# %%
Captioned(density(presets),
                "Where object 1 and object 2 lie, by relation; darker is more "
                "frequent. Clean scenes of a cardinal relation use the whole width of "
                "the axis they do not name.")

# %%
def guessed(scenes, side=16):
    """Share of the scenes whose relation is the most frequent of object 1's cell."""
    cell = (scenes.xy[:, 0] // side * torch.tensor([1, SIZE // side])).sum(1)  # [B]
    counts = torch.bincount(cell * 8 + scenes.relation, minlength=8 * 64).view(-1, 8)
    return counts.max(1)[0].sum().item() / len(scenes)

alone = {name: guessed(s) for name, s in presets.items()}

# %% tags=["remove-input"]
Markdown(f"""The place of one object hints at the relation without settling it: what is
*above* something cannot lie at the bottom. Knowing only in which of 8 × 8 cells object
1 lies, the best guess is right in {alone["clean"]:.0%} of the clean scenes and
{alone["paper"]:.0%} of the paper's, where guessing the most frequent relation gives
{share["clean"].max():.0%} and {share["paper"].max():.0%}. The rest takes both places
together.""")

# %% [markdown]
# ## A stream, not a set of files
#
# Scene number $n$ of stream *seed* is a pure function of the two: its random numbers come from a hash of
# $(\textit{seed}, n)$ and not from a generator that has to be wound forward. The stream is endless, can be entered
# anywhere, and is the same for every batch size.

# %%
whole = sample_scenes(torch.arange(1000), seed)
part = sample_scenes(torch.arange(700, 710), seed)
other = sample_scenes(torch.arange(1000), seed + 1)
same = (torch.equal(render(whole[700:710]), render(part))
        and captions(whole[700:710]) == captions(part))
shared = (whole.xy == other.xy).all(2).all(1).float().mean().item()

# %%
start = time.perf_counter()
for first in tqdm(range(0, count // 2, 200)):
    batch = sample_scenes(torch.arange(first, first + 200), seed)
    render(batch), captions(batch)
speed = count // 2 / (time.perf_counter() - start)

# %% tags=["remove-input"]
log = [r for r in history(folder_of(model)) if "images_per_s" in r]
pace = pd.Series([r["images_per_s"] for r in log]).median()
Markdown(f"""Another seed gives other scenes: {shared:.1%} of the first thousand have
their objects at the same places. On {torch.get_num_threads()} thread(s) this run drew
and captioned **{speed:,.0f} images per second**; the training of `{model}` took in
{pace:,.0f}, by its log.""")

# %% tags=["remove-input"]
verdict({"Scenes 700 to 709, drawn alone and drawn within a thousand, are the same to "
         "the last pixel and letter": same})

# %% [markdown]
# Nothing has to be stored, but it can be: `export` writes pictures and a `metadata.jsonl` that other tools read, for instance
# `datasets.load_dataset("imagefolder", data_dir=...)`. From a shell: `spatial-circuits export FOLDER --count 1000`.

# %%
with tempfile.TemporaryDirectory() as folder:
    written = export(sample_scenes(torch.arange(3), seed), Path(folder, "scenes"))
    print(*sorted(p.name for p in written.iterdir()), sep="\n")
    print((written / "metadata.jsonl").read_text())

# %% tags=["remove-input"]
seen = max((r["images"] for r in log), default=0)
Markdown(f"""## What was established

* The task is small and fully specified: {len(set(all_captions())):,} captions,
  {len(RELATIONS)} relations, one rule with a threshold of {ALIGN} pixels. `{model}` has
  seen {seen:,} pictures by its log.
* In the paper's distribution {diagonal["paper"]:.0%} of the relations are diagonal and
  {overlap["paper"]:.0%} of the pictures overlap. The clean preset has neither property;
  this book trains on it and says so wherever a score is compared with the paper's.
* The stream is a function of seed and index alone: endless, resumable, and never
  stored.

What this chapter does not show: that a model needs the sentence at all. Pictures alone
could teach it what scenes look like. Chapter 4 compares the loss under a right and a
wrong caption.""")

# %% [markdown]
# ## Exercise
#
# Tell the same scenes from the other side: what is object 2 becomes object 1. Does every scene then show the opposite
# relation, under the rule of this chapter and not just by name?
#
# :::{admonition} Solution
# :class: dropdown
#
# ```python
# from spatial_circuits.data.scenes import REVERSE, relation_of
#
# scenes = sample_scenes(torch.arange(count), seed)
# turned = relation_of(scenes.xy.flip(1))  # the two objects change places in the list
# assert torch.equal(turned, REVERSE[scenes.relation])
# ```
#
# Yes, for all of them: the rule takes differences of places, so that exchanging the objects changes both signs and leaves
# what is aligned aligned. A sentence and its converse with the opposite word describe one picture.
# :::
