# ---
# jupyter:
#   spatial_circuits:
#     folds: false
# ---

# %% [markdown]
# # A tour in fifteen minutes
#
# **What can be done with a model here, and in how few lines?** Eight steps, each with what it shows: load, draw, score, read
# the attention, <a href="#switch-heads-off">switch heads off</a>, exchange a word, write a relation in, plot. Everything is an
# ordinary function of the [library](reference.md); the chapters do the same with more prompts, controls and intervals. A figure
# here is an example and not yet evidence.
#
# To run it: `make lab` opens this page in JupyterLab ([how to](how_to.md)). Without a kernel: the
# <a href="18_explorer.html#figure-2">explorer</a> switches heads off in this browser.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 3
scale: str = "full"  # smoke | full

# %% tags=["hide-input"]
import pandas as pd
from IPython.display import Markdown

from spatial_circuits.analyses.ablation import ablate
from spatial_circuits.analyses.arithmetic import interchange_token
from spatial_circuits.analyses.heads import head_name, heads_of, listed
from spatial_circuits.analyses.injection import relation_vectors, steer
from spatial_circuits.analyses.weight_maps import screen_words
from spatial_circuits.book.figures import Captioned, grid, lines
from spatial_circuits.book.head_figures import attention_rows
from spatial_circuits.book.verdict import verdict
from spatial_circuits.book.ways import heads_by_role
from spatial_circuits.data.metrics import prompt_set, score
from spatial_circuits.data.scenes import RELATIONS, REVERSE
from spatial_circuits.hooks.attach import hooked
from spatial_circuits.hooks.edits import Ablate, AddResidual
from spatial_circuits.hooks.readers import Patterns
from spatial_circuits.model.store import load
from spatial_circuits.text.counterparts import counterpart, relations_said, restated

# %% [markdown]
# ## 1. Load
#
# Models ship with the package and are loaded by name; a folder that `spatial-circuits train` has written will do as well. The
# transformer is a stock PixArt of diffusers.

# %%
net = load(model)
size = sum(p.numel() for p in net.transformer.parameters())
print(f"{net.name}: text encoder {net.text['name']}, {size / 1e6:.1f} million "
      f"parameters, {len(heads_of(net))} heads of cross-attention")

# %% [markdown]
# ## 2. Draw
#
# A picture depends on its prompt and its seed alone. It takes 14 steps from noise, each with the prompt and without it.

# %%
prompts = ["red square is above blue circle", "blue triangle is left of red circle",
           "red circle is to the lower right of blue square",
           "blue square is below red triangle"]
images = net.images(prompts, [seed + i for i in range(4)])  # uint8 [4, 3, 128, 128]
Captioned(grid(images, prompts, 4), f"Four prompts drawn by {net.name}.")

# %% [markdown]
# ## 3. Score
#
# A detector finds shapes, colours and places in the pixels. *Loose* is the relation, apart by 5 pixels or more; *unique
# binding* both objects, each once. `dx` and `dy` lead from object 2 to object 1, in pixels, down being positive.

# %%
score(images, prompts)[["unique_binding", "loose", "dx", "dy"]].round(1)

# %% [markdown]
# ## 4. Find a head, and read its attention
#
# From the weights alone: which head's logits for a direction word form a ramp over the picture? (*Projection*: how strong a
# ramp, in logits; [chapter 7](07_relation_head.ipynb).) The first on the list is then watched at work: a reader keeps its
# attention at every step. Steps count from 0.

# %%
screen = screen_words(net.transformer, net.encoder, prompt_set("264"))
screen["strength"] = screen["projection"].abs()
best = screen.sort_values("strength", ascending=False).drop_duplicates("name").head(3)
best[["name", "word", "cosine", "projection"]].round(2).set_index("name")

# %%
heads = [(int(row.layer), int(row.head)) for row in best.itertuples()]
told, reader = prompts[0], Patterns(heads[:1])
with hooked(net.transformer, reader):
    picture = net.images([told], [seed])
words = list(net.encoder.encode([told]).tokens[0])
attention = reader.maps[heads[0]][0]  # [steps, place, token]

# %%
steps = [0, 2, 4, 8, 13]
rows = {w: attention[steps, :, words.index(w)].unflatten(-1, (8, 8))
        for w in ("above", "square", "circle")}
Captioned(attention_rows(rows, [f"step {s}" for s in steps], "attention", picture[0]),
          f"Where {head_name(*heads[0])} looks at three words of \"{told}\" while the "
          "picture forms, and the picture.")

# %% [markdown]
# ## 5. Switch heads off
#
# `ablate` draws every prompt with and without the heads that it is given, from the same noise, and scores the pictures: the
# first head alone, then all three of the table. Below, a few prompts as pictures; there the heads write zero.

# %%
some = prompt_set("264")[:12 if scale == "full" else 3]
off = {head_name(*heads[0]): heads[:1], "all three": heads}
without = ablate(net, some, off, seed=seed)
without = without.groupby("condition", sort=False)[["shape", "unique_binding", "loose"]]
without.mean().round(2)

# %%
shown = some[:4]
first = net.images(shown, [seed] * len(shown))
with hooked(net.transformer, Ablate(heads)):  # zero in place of what they say
    silent = net.images(shown, [seed] * len(shown))
titles = ["intact"] * len(shown) + ["all three off"] * len(shown)
Captioned(grid([*first, *silent], titles, len(shown)),
          "Prompts with and without the three heads, from the same noise: "
          f"{'; '.join(shown)}.")

# %% tags=["remove-input"]
left = without.mean()["loose"]
Markdown(f"""
Without {head_name(*heads[0])} the relation is right in {left.iloc[1]:.2f} of the
pictures, without {listed(heads)} in {left.iloc[2]:.2f}; intact in {left.iloc[0]:.2f}.
One head may cover for another: [chapter 9](09_ablation.ipynb).
""")

# %% [markdown]
# ## 6. Exchange a word
#
# Take one token's embedding from the opposite prompt and leave all else: which word turns the objects round? The table gives
# the share of pictures that show the *opposite* relation: in the row `own` every token is the prompt's own, in the row `grafted`
# that of the column is the opposite prompt's.

# %%
opposite = [counterpart(p, "relation") for p in some]
turned = pd.DataFrame({role: interchange_token(net, some, opposite, role, seed=seed)
                       .groupby("condition", sort=False)["loose"].mean()
                       for role in ("relation", "shape2")})
turned.round(2)

# %% tags=["remove-input"]
by_word, by_shape = turned.loc["grafted", ["relation", "shape2"]]
verdict({f"{net.name} reads the relation rather from its own word than from the second "
         "shape's, by 0.2 of the pictures or more": by_word >= by_shape + 0.2,
         "Rather from the second shape's word than from its own":
         by_shape >= by_word + 0.2})

# %% [markdown]
# Which it is depends on the text encoder, and on the luck of a training run: [chapter 13](13_which_token.ipynb), [chapter
# 17](17_population.ipynb).

# %% [markdown]
# ## 7. Write a relation in
#
# What do the three heads write for each relation? Take the mean over prompts, and add the difference of two relations to the
# residual stream where the object head of [chapter 8](08_object_head.ipynb) reads it, while the prompt goes on saying "above".

# %%
balanced = prompt_set("264")[:22]  # every phrase once
vectors = relation_vectors(net, balanced, heads).mean(1)  # over steps: [8, place, D]
wanted = [RELATIONS.index(r) for r in ("above", "below", "left", "right")]
own = relations_said([told])[0]
change = vectors[wanted] - vectors[own]  # zero for the relation that is said
reads = min(layer for layer, _ in heads_by_role(model, net)["object"])
with hooked(net.transformer, AddResidual(change, layer=reads)):
    injected = net.images([told] * 4, [seed] * 4)
titles = ["intact" if r == own else f"written in: {RELATIONS[r]}" for r in wanted]
Captioned(grid(injected, titles, 4),
          f"\"{told}\" with one seed; the difference of two relations is added once.")

# %% tags=["hide-input"]
right = score(injected, [restated(told, r) for r in wanted])["loose"]
shown = [RELATIONS[r] for r, ok in zip(wanted, right) if ok and r != own]
Markdown(f"""
Obeyed here, of the {len(wanted) - 1} that the prompt does not say:
{', '.join(shown) or 'none'}. What else is written in may end in a mixture
of two pictures; how often, for all pairs of relations, is in [chapter
10](10_injection.ipynb).
""")

# %% [markdown]
# ## 8. Plot
#
# How much does it take? `steer` does the same for many prompts and doses, with a vector turned at random as the control.

# %%
doses = [0, 0.5, 1, 1.5, 2] if scale == "full" else [0, 2]
few = some[:8]
targets = [int(REVERSE[r]) for r in relations_said(few)]
frame = steer(net, few, targets, vectors, doses, layer=reads, seed=seed)
curve = frame.pivot_table("loose", "scale", "vector", aggfunc="mean")
Captioned(lines(curve, "dose", "opposite relation obeyed", ylim=(-0.02, 1.02)),
          f"Share of pictures that show the relation written in, the opposite of what "
          f"the prompt says: {len(few)} prompts, one picture each.")

# %% [markdown]
# ## What was established
#
# Little, and that is the point: a few prompts, one seed, no intervals. What these numbers are with enough of both, and with
# controls, is in the chapters. What you can now do:
#
# * look at single pictures in the [explorer](18_explorer.ipynb);
# * [change one thing](change_one_thing.ipynb): a word, an encoder, an edit;
# * run the whole book about your own model: [how to](how_to.md);
# * try the exercises at the ends of the chapters; each has a hidden solution that runs.
