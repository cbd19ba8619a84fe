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
from IPython.display import Markdown

import spatial_circuits
from spatial_circuits import text
from spatial_circuits.ablation import ablate, effects
from spatial_circuits.edits import Edit
from spatial_circuits.hooks import hooked
from spatial_circuits.metrics import prompt_set, score
from spatial_circuits.plots import Captioned, grid, lines
from spatial_circuits.pretrained import load, load_vae
from spatial_circuits.recipe import RECIPES, override
from spatial_circuits.train import train

net = load(model).fast()
prompts = prompt_set("264")[:22 if scale == "full" else 4]

# %% [markdown]
# ## A word for a relation
#
# A relation is a name and a direction in `scenes`, and its phrases are in `captions`. The eight directions of the plane are all there;
# a wording more is one phrase more, and its count. So that this page leaves the library alone, the change is made in a copy of it:

# %%
changes = {"captions.py": ('"above": ("above", "directly above", "higher than")', '"above": ("above", "directly above", "higher than", "over")'),
           "scenes.py": ("PHRASES_PER_RELATION = torch.tensor([3, 3, 2, 2,", "PHRASES_PER_RELATION = torch.tensor([4, 3, 2, 2,")}
use = """
import torch
from spatial_circuits import captions, scenes, text
drawn = scenes.sample(torch.arange(2000))
told = captions.captions(drawn)
new = [i for i, t in enumerate(told) if " is over " in t]
print(told[new[0]], "|", f"{len(new)} of {len(told)} captions", "|", scenes.RELATIONS[drawn.relation[new[0]]], "|",
      text.encoder("rte").encode([told[new[0]]]).roles[0])
"""
with tempfile.TemporaryDirectory() as folder:
    copy = Path(folder, "spatial_circuits")
    shutil.copytree(Path(spatial_circuits.__file__).parent, copy, ignore=shutil.ignore_patterns("pretrained", "__pycache__"))
    for file, (old, new) in changes.items():
        assert old in (copy / file).read_text()
        (copy / file).write_text((copy / file).read_text().replace(old, new))
    said = subprocess.run([sys.executable, "-c", use], env={"PYTHONPATH": folder}, capture_output=True, text=True, check=True).stdout
print(said)

# %% [markdown]
# Scenes, captions, the parser, the roles of tokens and the vocabulary know the word at once. A model has to be trained with it:
# `make train`. A relation of another kind, such as *inside*, also needs a rule for its positions (`scenes.sample`) and a test for
# pictures (`metrics.score`).
#
# ## A text encoder
#
# Anything with `dim` and `encode` is one. Here is one whose tokens see their left neighbour, a little context by hand:

# %%
class Neighbours(text.RandomTokenEncoder):
    """Random token embeddings, each plus half of the one before it."""

    def encode(self, prompts: list[str]) -> text.TextBatch:
        batch = super().encode(prompts)
        batch.embeddings[:, 1:] += 0.5 * batch.embeddings[:, :-1].clone() * batch.mask[:, 1:, None]
        return batch

text.ENCODERS["neighbours"] = Neighbours
coder = text.encoder("neighbours")
with tempfile.TemporaryDirectory() as folder:
    recipe = override(RECIPES["fast"], {"steps": 2, "batch": 8, "cache": 64, "warmup": 1, "compile": False, "seed": seed})
    trained = train(recipe, coder, load_vae(), Path(folder, "run"))
plain, near = (text.encoder(n).encode(["red square is above blue circle"]).embeddings[0] for n in ("rte", "neighbours"))
moved = pd.DataFrame({"token": text.encoder("rte").encode(["red square is above blue circle"]).tokens[0], "moved by": (near - plain).norm(dim=1).tolist()})
moved.set_index("token").T.round(2)

# %% [markdown]
# It trains (two steps here), and all chapters work on the result: roles, masking and variance partition ask only for `encode`.
#
# ## An edit
#
# An edit changes one stage of attention for the heads, samples, steps and half that it is told. This one scales what a head writes:

# %%
class Scale(Edit):
    """Multiply the outputs of heads by a factor, one a sample."""
    per_sample = ("where", "steps", "factor")

    def __init__(self, factor: torch.Tensor, where, half: str = "cond", **scope):
        super().__init__(where, half=half, **scope)
        self.factor = factor

    def act(self, call, active: torch.Tensor) -> None:
        scaled = call.output * self.factor[call.sample].to(call.output.dtype)[:, None, None, None]
        call.output = torch.where(active[..., None, None], scaled, call.output)

heads = [(1, h) for h in range(net.transformer.transformer_blocks[1].attn2.heads)]    # all of layer 1
factors = [0.0, 0.5, 1.0, 1.5, 2.0]
told, seeds = [p for p in prompts for _ in factors], [seed * 1_000_000 + i for i in range(len(prompts)) for _ in factors]
with hooked(net.transformer, Scale(torch.tensor(factors * len(prompts)), heads)):
    images = net.images(told, seeds)
scored = score(images, told).assign(factor=factors * len(prompts)).groupby("factor")[["shape", "color", "loose"]].mean()
Captioned(lines(scored, "factor", "share of pictures", ylim=(0, 1.05), height=2.2),
          f"All heads of layer 1 scaled: {len(prompts)} prompts, one picture each, all factors in one batch.")

# %% [markdown]
# At factor 1 nothing is changed, at factor 0 it is zero ablation:

# %%
zero = ablate(net, prompts, {"layer 1": heads}, seed=seed)
same = zero.query("condition == 'layer 1'")["loose"].mean() == scored.loc[0.0, "loose"], zero.query("condition == 'intact'")["loose"].mean() == scored.loc[1.0, "loose"]
assert all(same)
Captioned(grid(images[:len(factors)], [f"factor {f:g}" for f in factors], columns=len(factors)), f"\"{prompts[0]}\", one seed.")

# %% [markdown]
# ## What was established
#
# A word is two lines, an encoder one method, an edit one method; sweeps, scores and figures are the library's. The assertion above is
# the test: a new edit should agree with an old one where their meanings meet.
