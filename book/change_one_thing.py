# ---
# jupyter:
#   spatial_circuits:
#     folds: false
# ---

# %% [markdown]
# # Change one thing
#
# **What must be touched to add a word, an encoder, an edit?** One place each. The examples below are run with the book and by its
# tests.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 1
scale: str = "full"  # smoke | full

# %%
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import torch

import spatial_circuits
from spatial_circuits.analyses.ablation import ablate
from spatial_circuits.analyses.heads import heads_of
from spatial_circuits.book.figures import Captioned, grid, lines
from spatial_circuits.data.metrics import prompt_set, score
from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.edits import Edit
from spatial_circuits.model.store import load, load_vae
from spatial_circuits.text.batch import TextBatch
from spatial_circuits.text.encoders import ENCODERS, encoder
from spatial_circuits.text.random_tokens import RandomTokenEncoder
from spatial_circuits.training.loop import train
from spatial_circuits.training.recipe import RECIPES, override_recipe

net = load(model).fast()
prompts = prompt_set("264")[:22 if scale == "full" else 4]

# %% [markdown]
# ## A word for a relation
#
# A relation is a name and a direction in `data/scenes.py`, and its phrases are in `data/captions.py`. The eight directions of the plane are all there;
# a wording more is one phrase more, and its count. So that this page leaves the library alone, the change is made in a copy of it:

# %%
changes = {"data/captions.py": ('"above": ("above", "directly above", "higher than")',
                                '"above": ("above", "directly above", "higher than", '
                                '"over")'),
           "data/scenes.py": ("PHRASES_PER_RELATION = torch.tensor([3, 3,",
                              "PHRASES_PER_RELATION = torch.tensor([4, 3,")}
use = """
import torch
from spatial_circuits.data.captions import captions
from spatial_circuits.data.scenes import RELATIONS, sample_scenes
from spatial_circuits.text.encoders import encoder
drawn = sample_scenes(torch.arange(2000))
told = captions(drawn)
new = [i for i, t in enumerate(told) if " is over " in t]
print(told[new[0]], "|", f"{len(new)} of {len(told)} captions", "|",
      RELATIONS[drawn.relation[new[0]]], "|",
      encoder("rte").encode([told[new[0]]]).roles[0])
"""
with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder, "spatial_circuits")
    shutil.copytree(Path(spatial_circuits.__file__).parent, copy,
                    ignore=shutil.ignore_patterns("pretrained", "__pycache__"))
    for file, (old, new) in changes.items():
        assert old in (copy / file).read_text()
        (copy / file).write_text((copy / file).read_text().replace(old, new))
    said = subprocess.run([sys.executable, "-c", use], env={"PYTHONPATH": folder},
                          capture_output=True, text=True, check=True).stdout
print(said)

# %% [markdown]
# Scenes, captions, the parser, the roles of tokens and the vocabulary know the word at once. A model has to be trained with it:
# `make train`. A relation of another kind, such as *inside*, also needs a rule for its positions (`sample_scenes` in `data/scenes.py`)
# and a test for pictures (`score` in `data/metrics.py`).
#
# ## A text encoder
#
# Anything with `dim` and `encode` is one. Here is one whose tokens see their left neighbour, a little context by hand:

# %%
class Neighbours(RandomTokenEncoder):
    """Random token embeddings, each plus half of the one before it."""

    def encode(self, prompts: list[str]) -> TextBatch:
        batch = super().encode(prompts)
        left = batch.embeddings[:, :-1].clone()
        batch.embeddings[:, 1:] += 0.5 * left * batch.mask[:, 1:, None]
        return batch

ENCODERS["neighbours"] = Neighbours
coder = encoder("neighbours")
short = {"steps": 2, "batch": 8, "cache": 64, "warmup": 1, "compile": False,
         "seed": seed}
with tempfile.TemporaryDirectory() as folder:
    recipe = override_recipe(RECIPES["biased"], short)
    trained = train(recipe, coder, load_vae(), Path(folder, "run"))
plain, near = (encoder(n).encode(["red square is above blue circle"])
               for n in ("rte", "neighbours"))
distance = (near.embeddings[0] - plain.embeddings[0]).norm(dim=1)
moved = pd.DataFrame({"token": plain.tokens[0], "moved by": distance.tolist()})
moved.set_index("token").T.round(2)

# %% [markdown]
# It trains (two steps here), and all chapters work on the result: roles, masking and variance partition ask only for `encode`.
#
# ## An edit
#
# An edit changes one stage of attention for the heads, samples, steps and CFG branch that it is told. This one scales what a head writes:

# %%
class Scale(Edit):
    """Multiply the outputs of heads by a factor, one a sample."""
    per_sample = ("where", "steps", "factor")

    def __init__(self, factor: torch.Tensor, where, branch: str = "cond", **scope):
        super().__init__(where, branch=branch, **scope)
        self.factor = factor

    def act(self, call, active: torch.Tensor) -> None:
        factor = self.factor.to(call.output)[call.sample, None, None, None]
        scaled = call.output * factor
        call.output = torch.where(active[..., None, None], scaled, call.output)

heads = [(layer, head) for layer, head in heads_of(net) if layer == 1]
factors = [0.0, 0.5, 1.0, 1.5, 2.0]
told = [p for p in prompts for _ in factors]
seeds = [seed * 1_000_000 + i for i in range(len(prompts)) for _ in factors]
with hooked(net.transformer, Scale(torch.tensor(factors * len(prompts)), heads)):
    images = net.images(told, seeds)
scored = score(images, told).assign(factor=factors * len(prompts))
scored = scored.groupby("factor")[["shape", "color", "loose"]].mean()
Captioned(lines(scored, "factor", "share of pictures", ylim=(0, 1.05), height=2.2),
          f"All heads of layer 1 scaled: {len(prompts)} prompts, one picture each, all "
          "factors in one batch.")

# %% [markdown]
# At factor 1 nothing is changed, at factor 0 it is zero ablation:

# %%
zero = ablate(net, prompts, {"layer 1": heads}, seed=seed)
loose = zero.groupby("condition")["loose"].mean()
assert loose["layer 1"] == scored.loc[0.0, "loose"]
assert loose["intact"] == scored.loc[1.0, "loose"]
titles = [f"factor {f:g}" for f in factors]
Captioned(grid(images[:len(factors)], titles, columns=len(factors)),
          f"\"{prompts[0]}\", one seed.")

# %% [markdown]
# ## What was established
#
# A word is two lines, an encoder one method, an edit one method; sweeps, scores and figures are the library's. The assertion above is
# the test: a new edit should agree with an old one where their meanings meet.
