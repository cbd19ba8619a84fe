# %% [markdown]
# # Any PixArt
#
# **As shown here, this page runs on a tiny pipeline with random weights, built while it runs; nothing is concluded
# from it about any model.** With `-p model=FOLDER_OR_HUB_NAME` the same cells study a pretrained PixArt.
#
# **Can the questions of this book be put to a PixArt that was not trained here, and do the tools tell the truth
# there?** The transformers of this book are stock PixArts of diffusers, and `load` opens any pipeline around one. The
# pipeline itself is called, so that pictures stay those of diffusers bit by bit. The last part opens `rte` once
# more, exported by stock diffusers, and compares its synopsis with [chapter 6](06_synopsis.ipynb).

# %% tags=["parameters"]
model: str = "random"
seed: int = 0
scale: str = "full"  # smoke | full
locator: str = "detector"

# %%
import json
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from diffusers.utils.logging import disable_progress_bar
from IPython.display import Markdown

from spatial_circuits.analyses import costs
from spatial_circuits.analyses.edit_files import EditSpec, save_edits, under_edits
from spatial_circuits.analyses.heads import heads_of, layers_and_heads
from spatial_circuits.analyses.heatmap import heatmap
from spatial_circuits.analyses.locate import by_mask, named_locator
from spatial_circuits.analyses.placed import (
    placed_ablation,
    placed_effects,
    placed_synopsis,
)
from spatial_circuits.analyses.self_check import self_check
from spatial_circuits.analyses.synopsis import ranking, smallest_p, synopsis
from spatial_circuits.book.figures import Captioned, grid
from spatial_circuits.book.head_figures import attention_rows
from spatial_circuits.book.records import Records
from spatial_circuits.book.verdict import verdict
from spatial_circuits.cli import main
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.export import random_pipeline, save_pipeline
from spatial_circuits.model.store import is_pipeline, load

disable_progress_bar()
full, cuda = scale == "full", torch.cuda.is_available()
scratch = tempfile.TemporaryDirectory()
folder = Path(scratch.name)

# %% [markdown]
# ## Load, and check
#
# `self_check` draws one picture twice, without and with a reader on every head of cross-attention. It compares the
# pictures bit by bit, and the patterns that readers see, times the values, with what diffusers' attention kernel
# gives.

# %%
name = model
if model == "random":
    name = folder / "random-pixart"
    random_pipeline(scheduler="euler", seed=seed).save_pretrained(name)
half = cuda and is_pipeline(name)
net = load(name, dtype="float16" if half else None).to("cuda" if cuda else "cpu")
steps = 4 if model == "random" else 14
checked = self_check(net)
s = costs.sizes_of(net)
Markdown(f"""
{net.name}: {s.layers} layers of {s.heads} heads, {s.places} image tokens, {s.tokens}
text tokens, {costs.parameters(s):,} weights in the transformer. The patterns differ
from the kernel by {checked.pattern_error:.0e} of the largest output, at most
{checked.tolerance:.0e} being allowed.
""")

# %%
verdict({"Pictures with readers are bit-identical": checked.bit_identical})

# %% [markdown]
# ## Where every head looks at a word
#
# For a word, which may be several tokens, each head has one map over the picture:
#
# $$\text{map}_i = \text{mean over steps of} \sum_{j \in \text{word}} A_{ij},$$
#
# with $A_{ij}$ the attention of image token $i$ to text token $j$. It is summed while the model runs: one number a
# head and place is kept. Three lines:

# %%
told = "red square is above blue circle"
found = heatmap(net, told, "above", seed=seed, steps=steps)
shown = torch.stack([found.picture, found.overlay()])

# %%
Captioned(grid(shown, ["the picture", "mean of all heads' maps over it"], 2),
          f"A picture for \"{told}\" by {net.name}, and where its heads look at the "
          f"word \"above\", tokens {' '.join(found.tokens)}.",
          "A picture, and the same with a glow where attention to the word is highest.")

# %%
layers, width = layers_and_heads(net)
rows = {f"L{i}": maps for i, maps in enumerate(found.maps.chunk(layers))}
Captioned(attention_rows(rows, [f"H{i}" for i in range(width)], "attention"),
          f"Attention to \"above\" of each of {layers * width} heads, a row a layer.",
          "A grid of maps, layers down and heads across.")

# %% [markdown]
# ## The synopsis, for any two things
#
# Prompts are read by `text.parser`; places come from a *locator*: our detector, a zero-shot detector of
# transformers, colours, or a mask. Each picture is drawn twice, the second time with attention summed over its
# places. Scores are those of [chapter 6](06_synopsis.ipynb). Bonferroni multiplies $p$ by the number of heads, which
# for the 448 of a PixArt-XL leaves nothing to find with 2,000 shuffles. So each head is compared with the largest
# (Westfall and Young's step-down max statistic):
#
# $$p = \text{share of shuffles in which the best head left reaches what this one has in truth.}$$

# %%
halves = torch.zeros(2, 8, 8, dtype=torch.bool)
halves[0, :4] = halves[1, 4:] = True
locate = by_mask(halves) if model == "random" else named_locator(locator)
where = "a mask by hand, halves" if model == "random" else locator
prompts = prompt_set("264")[::33] if full else prompt_set("264")[:2]
heads = placed_synopsis(net, prompts, locate, 2 if full else 1, seed + 1, steps=steps)
best = heads.groupby("score", sort=False).head(3)
best.set_index(["score", "name"])[["mean", "low", "high", "p", "images"]].round(3)

# %%
sure = {score: list(t["name"][t["p"] < 0.05]) for score, t in heads.groupby("score")}
Markdown(f"""
With {len(prompts)} prompts and places from {where}: heads with p below .05 are
{', '.join(sure['relation']) or 'none'} for the relation and
{', '.join(sure['object']) or 'none'} for the shapes. The smallest p that 2,000 shuffles
could show for 448 heads is {smallest_p(448):.2f} by Bonferroni; by the max statistic of
999 shuffles it is {1 / 1000:.3f}, for however many heads. A small p says that a head
tells the words apart, not that it matters: a head with random weights may, since words
are different vectors.
""")

# %% [markdown]
# ## Without a head
#
# Zero ablation of the best relation head, and of all heads: are both things found, and placed as the prompt says?

# %%
row = heads[heads["score"] == "relation"].iloc[0]
best_head = (int(row["layer"]), int(row["head"]))
sets = {row["name"]: [best_head], "all heads": heads_of(net)}
frame = placed_ablation(net, prompts, sets, locate, seed=seed + 1, steps=steps)
effects = placed_effects(frame)
effects[["mean", "low", "high", "change", "n_prompts"]].round(2)

# %%
seen = effects.loc[("intact", "found"), "mean"]
Markdown(f"Both things are found in {seen:.0%} of the intact model's pictures.")

# %% [markdown]
# A mask finds both things whatever the picture: then the table shows that the analysis runs, and its zeros mean nothing.

# %% [markdown]
# ## An intervention as a file
#
# Heads that do not see a word, kept as JSON, and applied by a command as by Python:
#
# ```bash
# spatial-circuits heatmap --model FOLDER --prompt "red square is above blue circle" --word above --edit edit.json
# ```

# %%
edit = EditSpec("hide", [row["name"]], ["above"])
save_edits(folder / "edit.json", [edit])
print(json.dumps(json.loads((folder / "edit.json").read_text())))

# %%
line = ["heatmap", "--model", str(name), "--prompt", told, "--word", "above", "--seed",
        str(seed), "--edit", str(folder / "edit.json"), "--out", str(folder / "maps")]
with redirect_stdout(StringIO()):
    status = main([*line, *(["--dtype", "fp16"] if half else [])])
by_command = torch.from_numpy(np.load(folder / "maps" / "maps.npy"))
edited = heatmap(under_edits(net, [edit]), told, "above", seed=seed)
plain = heatmap(net, told, "above", seed=seed)
turned = (edited.picture.int() - plain.picture.int()).abs()
number = heads_of(net).index(best_head)
Markdown(f"""
The command ended with status {status}; its maps differ from those of Python by
{float((by_command - edited.maps).abs().max()):.1e}. Attention of {row['name']} to the
word was {float(plain.maps[number].mean()):.4f} on average and is
{float(edited.maps[number].mean()):.4f}; pixels change by
{float(turned.float().mean()):.2f} of 255.
""")

# %% [markdown]
# ## Our own model through the same door
#
# `rte` is saved by stock diffusers (`save_pretrained`; its VAE's statistics go into the VAE's own convolutions) and
# opened as a pipeline. If the door is true, latents are equal bit by bit, and the synopsis gives the numbers of
# chapter 6, which were recorded from the model of this library.

# %%
ours = load("rte")
door = load(save_pipeline(ours, folder / "rte"))
told_four = prompt_set("96")[:4]
pairs = [m.latents(told_four, [0, 1, 2, 3], batch=4) for m in (ours, door)]
equal = torch.equal(*pairs)
small = [synopsis(m, told_four, 1, seed + 1, batch=4).share for m in (ours, door)]
straight = float((small[0] - small[1]).abs().max())
some, per_prompt = (prompt_set("96"), 4) if full else (prompt_set("96")[:6], 1)
six = Records("06_synopsis")(synopsis, ours.fast(), some, per_prompt, seed + 1)
records = Records("any_pixart")
again = records(synopsis, door, some, per_prompt, seed + 1, batch=32, live=2)

# %%
def by_head(result) -> pd.DataFrame:
    """A ranking by score and head."""
    return ranking(result).set_index(["score", "name"])[["mean", "p"]]

both = pd.concat({"chapter 6": by_head(six), "door": by_head(again)}, axis=1)
both.columns = [", ".join(pair[::-1]) for pair in both.columns]
both.groupby("score", sort=False).head(4).round(4)

# %%
gap = float((both["mean, chapter 6"] - both["mean, door"]).abs().max())
lead = [both[f"mean, {way}"].groupby("score").idxmax().tolist()
        for way in ("chapter 6", "door")]
alike = gap < 0.01 and lead[0] == lead[1]
Markdown(f"""
Run side by side in fp32, the synopsis of one picture of each of four prompts differs by
{straight:.1e} at most. Over all {len(both)} scores the numbers differ by {gap:.4f} at
most from those that chapter 6 has on record. {int(six.images.sum())} pictures count
there, {int(again.images.sum())} here. (Chapter 6 draws in bf16 where the processor has
it, which changes a few pictures; the door draws in fp32.)
""")

# %%
verdict({"Side by side, latents of four prompts are equal bit by bit": equal,
         "The numbers are those of chapter 6: within .01, and the same heads lead":
         alike})

# %%
records.report()

# %% [markdown]
# ## What the real one takes
#
# A pretrained PixArt does not fit on the machine that made this page. What it takes can be counted: operations of a
# forward from the transformer's config (`analyses.costs`, tested against PyTorch's own counter), bytes of weights in
# fp16, and the fullest moment of an analysis. The configs below are those that were published; the text encoder is
# T5-v1.1-XXL.

# %%
XL = {"num_layers": 28, "num_attention_heads": 16, "attention_head_dim": 72,
      "patch_size": 2, "in_channels": 4, "out_channels": 8, "caption_channels": 4096,
      "use_additional_conditions": False}
KNOWN = {"PixArt-XL-2-512x512": (64, 120), "PixArt-Sigma-XL-2-1024-MS": (128, 300)}
wide, inner, vocabulary, deep = 4096, 10240, 32128, 24  # T5-v1.1-XXL's encoder
t5 = vocabulary * wide + deep * (4 * wide ** 2 + 3 * wide * inner)
vae_channels, pictures = (128, 256, 512, 512), 96
table = []
for title, (side, tokens) in KNOWN.items():
    real = costs.sizes_of_config({**XL, "sample_size": side}, tokens, element=2)
    weights = costs.weight_bytes(real) + 2 * t5
    decoding = costs.decoder_bytes(vae_channels, (8 * side) ** 2, 2)
    for one in costs.estimates(real, pictures):
        fullest = (weights + max(one.memory, decoding)) / 1e9
        hours = {f"hours at {rate} T/s": f"{one.operations / rate / 1e12 / 3600:.3g}"
                 for rate in (5, 50, 200)}
        table.append({"model": title, "analysis": one.analysis, "GB": f"{fullest:.1f}",
                      "forwards": f"{one.forwards:,}", **hours})
pd.DataFrame(table).set_index(["model", "analysis"])

# %% [markdown]
# Expected by counting, not measured: 14 steps, 96 pictures of a prompt each (one for the heat map), four at a time;
# *T/s* are trillions of operations a second that a device really does, a part of what its maker names. Text encoder
# and decoder run beside this and are left out of the time. `ablate` and `patch` are of all 448 heads, each alone,
# `patch` in both directions and at every step (`--heads` names a few, `--every 3` takes a third of the steps);
# `inject` is at one scale, half of what it draws being for the means; `screen` runs no forward.
#
# ### What was measured
#
# `tests/benchmarks/big_pixart.py` builds a pipeline of PixArt-Sigma's shape with random weights, with a text encoder
# and a decoder that are tiny, and runs each analysis in a process of its own: one step, and as few prompts as fill a
# batch of its usual size, by which the fullest moment is reached. What it found is in `pixart_costs.json`.

# %%
taken = json.loads(Path("pixart_costs.json").read_text())
measured = pd.DataFrame(taken["memory"]).set_index("analysis")
measured["itself"] = measured["beside the weights"] - measured["libraries"]
columns = ["peak", "weights", "libraries", "itself", "estimate"]
gigabytes = measured[columns] / 1e9
gigabytes.round(2)

# %%
beside = float(measured["beside the weights"].max()) / 1e9
slower, foretold = taken["speed"]["ratio"][1], taken["speed"]["ratio counted"]
within = beside <= 8 and slower <= 1.25
Markdown(f"""
{taken["layers"]} layers of {taken["heads"]} heads of {taken["head_dim"]},
{taken["places"]:,} image tokens, {taken["tokens"]} text tokens, {taken["dtype"]}, by
{taken["threads"]} thread of {taken["processor"]}; all in GB. *peak* is all memory of
the process; of it are *weights* those of the pipeline, *libraries* Python and PyTorch,
and *itself* what is left. *estimate* is what `costs` foretells of that: the tensors,
without what their kernels take for themselves. *decoding* is a decoder of the usual
channels, a picture at a time. A step with readers on every head took {slower:.2f} times
the processor time of the bare pipeline's ({foretold:.2f} by operations).

The fullest moment of all has {beside:.1f} GB beside the weights, libraries among it.
""")

# %% [markdown]
# With a GPU that has the memory:
#
# ```bash
# NAME=PixArt-alpha/PixArt-XL-2-512x512
# spatial-circuits check --model $NAME --dtype fp16 --pictures 96      # measures the rate, says memory and hours
# spatial-circuits heatmap --model $NAME --dtype fp16 --prompt "a cup is above a dog" --word above --out maps
# spatial-circuits synopsis --model $NAME --dtype fp16 --prompts-file prompts.txt \
#   --locator model:google/owlvit-base-patch32 --chunks chunks/synopsis --json synopsis.json
# spatial-circuits ablate --model $NAME --dtype fp16 --prompts-file prompts.txt --heads L12H3 L13H0 \
#   --locator model:google/owlvit-base-patch32 --chunks chunks/ablate --json ablate.json
# spatial-circuits patch --model $NAME --dtype fp16 --prompts-file prompts.txt --every 3 --chunks chunks/patch
# spatial-circuits inject --model $NAME --dtype fp16 --prompts-file prompts.txt --heads L12H3 --chunks chunks/inject \
#   --locator model:google/owlvit-base-patch32
# spatial-circuits screen --model $NAME --dtype fp16 --prompts-file prompts.txt --json screen.json
# spatial-circuits run-book any_pixart -p model=$NAME -p locator=model:google/owlvit-base-patch32
# ```
#
# `patch` exchanges a head's output between a prompt and its opposite and asks what the model predicts, so that it
# needs no locator. `inject` writes the opposite relation into the picture, as the named heads write it: a mean over
# prompts of other things than the one that is scored, so that no prompt meets a mean that it is in. By default each
# half of the prompts gets the means of the other; `--means-from FILE` gives prompts for the means alone; the record
# says which under `means`.
#
# The same command goes on after a kill: `--chunks` keeps what is finished, and refuses the folder of another run.
# Through that folder several GPUs share a run: `accelerate launch --multi_gpu --num_processes 8 -m
# spatial_circuits.cli` in place of `spatial-circuits`, or the same command started once for each. Each locks the part
# that it computes. If one dies, its lock goes with it; the others say which it was and compute its part. (accelerate
# itself ends all if one dies; the same command then goes on.)

# %% [markdown]
# ## What was established

# %%
by_both = torch.allclose(by_command, edited.maps, atol=1e-3)
verdict({f"Readers tell the truth about {net.name} and leave pictures alone":
         checked.passed,
         "An edit in a file is the same by command and by Python":
         status == 0 and by_both,
         "`rte` through stock diffusers gives chapter 6's numbers": alike and equal,
         "At PixArt-Sigma's shape, with random weights, every analysis keeps within "
         "8 GB beside the weights, and readers within 1.25 times the step": within})

# %% [markdown]
# Not established: anything about a pretrained PixArt, unless this page was run on one; nor that shapes of our detector, or boxes
# of a zero-shot one, are good places in photographs. The hours above are counted, not measured.
