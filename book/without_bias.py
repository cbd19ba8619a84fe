# %% [markdown]
# # Interlude: with and without a bias
#
# The models of this book learned word order from captions that name either object first alike, as the paper's do,
# by a recipe that begins near pure noise ([chapter 4](04_training.ipynb)). The first that this project trained did
# not get there without a crutch: in most of the first pictures the caption named the upper object first. One of
# them is kept, as `rte-biased`. **Did the bias shape the circuit? Is it the same one, in the same layers, with the
# same roles, and does the paper's single relation head appear with the crutch or without?**
#
# Encoder, size, scenes and number of pictures are equal. The tables of all runs were made by the same commands
# (`spatial-circuits circuit`, `ablate`, `synopsis`, `screen`); the last section runs a part of them again.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 1
scale: str = "full"  # smoke | full

# %%
import math
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from spatial_circuits.analyses.ablation import ablate, mean_outputs
from spatial_circuits.analyses.heads import head_name, heads_of, parse_head
from spatial_circuits.book.figures import Captioned, lines
from spatial_circuits.book.head_figures import heat_tables
from spatial_circuits.book.records import Records
from spatial_circuits.claims import claims
from spatial_circuits.claims.judges import mean_and_range, sure
from spatial_circuits.data.metrics import METRICS, prompt_set
from spatial_circuits.model.store import load, names

needed = {"circuit", "ablation", "synopsis", "screen"}
runs = {}
for folder in map(claims.folder_of, dict.fromkeys([model, *names()])):
    if claims.kind(folder) != "random":
        continue
    how = "unbiased" if claims.unbiased(folder) else "biased"
    if needed <= set(claims.read(folder)):
        runs[f"{how}: {folder.name}"] = folder
study = {name: claims.read(folder) for name, folder in runs.items()}
biased, unbiased = ([n for n in runs if n.startswith(how)]
                    for how in ("biased", "unbiased"))

# %% [markdown]
# ## The same scores, in another order
#
# <aside class="margin">
#
# A score that is part of another says little about order: a picture without the shapes cannot have the relation.
# So binding is read given colour and shape, the relation given binding.
#
# </aside>
#
# Accuracy while training, each score given those that it needs. A reader of single words has 1/2 of the last
# two.

# %%
def course(folder: Path, metric: str) -> pd.Series:
    """A conditional score by pictures seen, in thousands."""
    rows = pd.DataFrame(claims.conditional(claims.history(folder)))
    return rows.set_index(rows["images"] / 1000)[metric]

shown = {"unique_binding": "binding given colour and shape",
         "loose": "relation given binding"}
panels = {said: pd.DataFrame({name: course(folder, m) for name, folder in runs.items()})
          for m, said in shown.items()}
Captioned(lines({k: t.interpolate(limit_area="inside") for k, t in panels.items()},
                "pictures seen, thousands", "share", ylim=(0, 1.03)),
          "Binding among pictures with colours and shapes, and the relation among "
          "pictures with both objects, by pictures seen.")

# %%
stones = {name: claims.milestones(claims.history(f)) for name, f in runs.items()}
passed = pd.DataFrame(stones).T / 1000
passed.map(lambda k: f"{k:.0f}" if math.isfinite(k) else "never")

# %% [markdown]
# Thousands of pictures after which each conditional score first passes the middle between a reader of single words
# and 1.

# %%
later = {how: [stones[n]["loose"] > stones[n]["unique_binding"] for n in group]
         for how, group in (("biased", biased), ("unbiased", unbiased))}
Markdown(f"""
The paper's order, the relation after binding (C2), is found in
{sum(later['biased'])} of {len(biased)} runs with the bias and in
{sum(later['unbiased'])} of {len(unbiased)} without.
""")

# %% [markdown]
# ## The members
#
# The circuit of each run, found by patching on some prompts and tested on others, as in [chapter
# 11](11_circuit.ipynb). Head numbers mean nothing across runs, since heads of a layer can be permuted; layers and
# roles do.

# %%
def members(name: str) -> dict[str, str]:
    """Heads of each role, and what the circuit does."""
    table = study[name]["circuit"]
    loose = {r["condition"]: r for r in table["tests"]["loose"]}
    heads = {role: ", ".join(found) for role, found in table["circuit"].items()}
    return heads | {c: mean_and_range(sure(loose[c]))
                    for c in ("circuit alone", "without the circuit")}

pd.DataFrame({name: members(name) for name in runs}).T

# %%
def layers(name: str, role: str) -> list[int]:
    """The layers of a role's heads."""
    return sorted({parse_head(h)[0] for h in study[name]["circuit"]["circuit"][role]})

depth = {role: {how: sorted({x for n in group for x in layers(n, role)})
                for how, group in (("biased", biased), ("unbiased", unbiased))}
         for role in ("relation", "object", "colour")}
counts = {n: len(study[n]["circuit"]["circuit"]["relation"]) for n in runs}
single = [n for n in runs if counts[n] == 1]
Markdown(f"""
Layers of the heads by role, all runs of a kind together:
{'; '.join(f"{role} {d['biased']} with the bias, {d['unbiased']} without"
           for role, d in depth.items())}. Heads that carry the relation, run by run:
{[counts[n] for n in biased]} with the bias, {[counts[n] for n in unbiased]} without;
runs with a single one: {len(single)} of {len(runs)}.
""")

# %% [markdown]
# ## Is there one relation head?
#
# What is lost of the relation without any single head: if one head carried it, one bar would stand out. Mean
# ablation; the same prompts and noises in all runs.

# %%
def losses(name: str, metric: str = "loose") -> pd.Series:
    """Change of a metric without each head, the largest loss first."""
    rows = [r for r in study[name]["ablation"]["effects"]
            if r["metric"] == metric and r["condition"] != "intact"]
    return pd.Series({r["condition"]: r["change"] for r in rows}).sort_values()

ranked = pd.DataFrame({n: losses(n).head(6).round(2).reset_index(drop=True)
                       for n in runs}).T
ranked.columns = [f"no. {i + 1}" for i in ranked]
Captioned(heat_tables({"change in loose": ranked}, "change", 2, vmin=-1.0,
                      xlabel="head, by its loss", ylabel="run"),
          "The six largest losses of the relation without a single head, by run.",
          "A heat table, a row for each run.")

# %%
def judged(name: str) -> dict[str, str]:
    """The verdicts that hang on the circuit, by claim."""
    found = claims.evidence(runs[name])
    return {c: found[c].status for c in ("C5", "C6", "C7", "C8", "C9")}

verdicts = pd.DataFrame({name: judged(name) for name in runs}).T
verdicts

# %%
texts = {c.id: c.text for c in claims.CLAIMS}
held = {how: (verdicts.loc[group] == "holds").sum()
        for how, group in (("biased", biased), ("unbiased", unbiased))}
Markdown("\n".join(
    f"- {c} ({texts[c]}): with the bias {held['biased'][c]} of {len(biased)} runs, "
    f"without {held['unbiased'][c]} of {len(unbiased)}." for c in verdicts))

# %% [markdown]
# What the judges saw of C6 and C8, run by run. The vector of C8 is added to the position embedding, where the
# stream begins; heads of a later layer speak into a stream that other blocks have already changed.

# %%
def seen(claim: str) -> list[str]:
    """The sentence of each run."""
    return [f"- {claim}, {name}: {claims.evidence(folder)[claim].ours}"
            for name, folder in runs.items()]

Markdown("\n".join([*seen("C6"), *seen("C8")]))

# %% [markdown]
# ## A part run again
#
# The first losses of one run, recorded with the model, beside the same heads ablated now, on a few prompts.

# %%
net = load(model)
quick, full = net.fast(), scale == "full"
records = Records("without_bias")
prompts = prompt_set("264")[:22 if full else 2]
steps = 14 if full else 4
mean = records(mean_outputs, quick, prompt_set("264")[:88 if full else 2], steps=steps)
table = next((n for n in runs if runs[n].name == net.folder.name), next(iter(runs)))
tried = [h for h in losses(table).head(3).index if parse_head(h) in heads_of(quick)]
sets = {head_name(*parse_head(h)): [parse_head(h)] for h in tried}
again = records(ablate, quick, prompts, sets, seed=seed, mean=mean, steps=steps, live=2)
now = again.groupby("condition", sort=False)[list(METRICS)].mean()
beside = pd.DataFrame({"recorded": losses(table)[tried],
                       "again": (now["loose"] - now.loc["intact", "loose"])[tried]})
beside.round(2)

# %%
records.report()

# %% [markdown]
# ## What was established

# %%
said = {role: " and ".join(str(depth[role][how]) for how in ("biased", "unbiased"))
        for role in ("relation", "object")}
Markdown(f"""
- Without the bias a run takes more pictures to reach nearly the same scores; the table
  of milestones says in which order.
- Layers, with and without the bias: relation heads in {said['relation']}, object heads
  in {said['object']}. The deeper the object head, the more blocks change a vector that
  is added to the position embedding before it is read, which is what C8 hangs on;
  [chapter 10](10_injection.ipynb) adds it where the object head reads.
- A single relation head is found in {len(single)} of {len(runs)} runs.

Not established: more than these few runs can say. Runs of a kind that agree may still
be some of a lottery ([chapter 17](17_population.ipynb)), and with the bias there is
{len(biased)}.
""")
