# %% [markdown]
# # 5. Evaluation
#
# "Red square is above blue circle" is right or wrong in a way that can be measured: find the objects, compare
# their places. **How often is the model right, at what does it fail, and how good could any model's score
# be?** A score without its ceiling and its chance level means nothing, so those come first.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 0
scale: str = "full"  # smoke | full

# %%
import cv2
import pandas as pd
import torch
from IPython.display import Markdown

from spatial_circuits.analyses.evaluation import report, vae_ceiling
from spatial_circuits.analyses.intervals import summarise
from spatial_circuits.analyses.second_judge import sampled_agreement, second_scores
from spatial_circuits.book.data_figures import distances
from spatial_circuits.book.figures import Captioned, grid, intervals
from spatial_circuits.book.records import Records
from spatial_circuits.data.detect import detect
from spatial_circuits.data.metrics import METRICS, ceiling, chance, prompt_set, score
from spatial_circuits.data.render import Scene, render
from spatial_circuits.data.scenes import ALIGN, RELATIONS, sample_scenes
from spatial_circuits.model.pipeline import Model
from spatial_circuits.model.sampler import GUIDANCE, STEPS
from spatial_circuits.model.store import load

net = load(model)
records = Records("05_evaluation")
full = scale == "full"
prompts = prompt_set("264") if full else prompt_set("264")[:12]
per_prompt = 4 if full else 1

# %% [markdown]
# ## What is measured
#
# A detector (OpenCV contours, after the paper's) finds blobs $b$ with a shape, a colour and a centroid
# $(X_b, Y_b)$, $Y_b$ pointing down. A prompt asks for objects $k = 1, 2$ with shape $s_k$ and colour $\chi_k$, and
# for a relation: a sign $o_a \in \{-1, 0, 1\}$ for each axis $a$, 0 where the relation does not name it. The
# candidates for object $k$ are
#
# $$C_k = \{\, b : \mathrm{shape}(b) = s_k,\ \mathrm{colour}(b) = \chi_k \,\}.$$
#
# | metric | true if |
# |---|---|
# | shape | both shapes are found, whatever their colour |
# | color | both colours are found, on whatever shape |
# | exist binding | $\lvert C_1 \rvert \ge 1$ and $\lvert C_2 \rvert \ge 1$ |
# | unique binding | $\lvert C_1 \rvert = \lvert C_2 \rvert = 1$ |
# | loose | unique binding, and $o_a \Delta_a > 5$ px on each axis with $o_a \ne 0$ |
# | strict | loose, and $\lvert \Delta_a \rvert \le 5$ px on each axis with $o_a = 0$ |
#
# with $\Delta = (X_1 - X_2,\ Y_1 - Y_2)$ between the two candidates.

# %%
def outlined(image: torch.Tensor) -> torch.Tensor:
    """The picture, uint8 [3, H, W], with the detector's outlines and centroids."""
    canvas = image.permute(1, 2, 0).contiguous().numpy().copy()
    for blob in detect(image):
        cv2.drawContours(canvas, [blob.contour], -1, (0, 0, 0), 1)
        cv2.circle(canvas, [round(c) for c in blob.center], 3, (255, 255, 255), -1)
    return torch.from_numpy(canvas).permute(2, 0, 1)

scenes = sample_scenes(torch.arange(4), seed + 60_000)
Captioned(grid(torch.stack([outlined(i) for i in render(scenes)]),
               [str(Scene(s)) for s in scenes], 4),
          "What the detector sees in four true scenes: outlines and centroids.")

# %% [markdown]
# ## Ceiling and chance
#
# The *ceiling* is the score of true scenes that fit each prompt, drawn by the renderer, and of the same after
# a round trip through the VAE. *Chance* comes in two kinds. `random relation` draws the right two objects in
# a relation picked at random. `bag of words` knows every word but not their order: the axis is right, while
# which object comes first, and which shape has which colour, are two coin flips. Intervals are 95 %
# bootstraps over prompts, as images of one prompt are not independent; where all prompts succeed or none, Wilson's.

# %%
truth = records(ceiling, prompts, per_prompt, seed, live=8)
round_trip = records(vae_ceiling, net, prompts, 1, seed, live=8)
ignorant = chance(prompts, per_prompt, seed)
bounds = {"ceiling": summarise(truth, edges=True),
          "ceiling after the VAE": summarise(round_trip, edges=True),
          **{name.replace("_", " "): summarise(part, edges=True)
             for name, part in ignorant.groupby("baseline")}}

# %%
def cells(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """One column a table, "mean [low, high]" for each of its rows."""
    rows = [str(row).replace("_", " ") for row in next(iter(tables.values())).index]
    numbers = {name.replace("_", " "): t[["mean", "low", "high"]].to_numpy()
               for name, t in tables.items()}
    text = {name: [f"{m:.3f} [{low:.3f}, {high:.3f}]" for m, low, high in n]
            for name, n in numbers.items()}
    return pd.DataFrame(text, index=rows)

cells({name: table.loc[list(METRICS)] for name, table in bounds.items()})

# %%
bag = bounds["bag of words"]["mean"]
Markdown(f"""
The detector finds what the renderer draws: loose
{bounds['ceiling'].loc['loose', 'mean']:.3f}, strict
{bounds['ceiling'].loc['strict', 'mean']:.3f}. A bag of words reaches binding
{bag['unique_binding']:.2f} and loose {bag['loose']:.2f}, one half and one quarter up to
sampling error; a model above that reads word order.
""")

# %% [markdown]
# ## The model
#
# Every prompt is sampled with several seeds, in the same way and with the same seeds as by the command
# `spatial-circuits evaluate`, whose seed is this notebook's plus one. The pictures are made once; all that
# follows scores and sorts them.

# %%
told = [prompt for prompt in prompts for _ in range(per_prompt)]
seeds = [(seed + 1) * 1_000_000 + i for i in range(len(told))]
latents = records(Model.latents, net, told, seeds, live=16)
images = net.vae.decode(latents)  # uint8 [N, 3, 128, 128]
results = score(images, told)

# %%
summary = pd.DataFrame(records(report, results)).T
shown = summary.loc[list(METRICS)].rename(columns={"of_ceiling": "share of ceiling"})
shown.rename(index=lambda m: m.replace("_", " ")).astype(float).round(3)

# %%
of = summary["of_ceiling"]
Markdown(f"""
Over {len(prompts)} prompts and {len(told):,} pictures, unique binding is
**{of['unique_binding']:.3f}** of the ceiling, loose **{of['loose']:.3f}** and strict
**{of['strict']:.3f}**. Among pictures with both objects, the relation is right in
{results.loc[results['unique_binding'], 'loose'].mean():.3f}.
""")

# %%
everything = {"model": summarise(results, edges=True), **bounds}
rows = {name: table.loc[list(METRICS)] for name, table in everything.items()}
Captioned(intervals(rows, "share of pictures", (-0.02, 1.02)),
          "Model, ceiling and chance by metric; 95 % intervals.")

# %% [markdown]
# ## By relation and by objects
#
# An average can hide a relation that was never learned.

# %%
def split(by: str, order: list[str] | None = None) -> dict[str, pd.DataFrame]:
    """Unique binding, loose and strict, with intervals, for each value of a column."""
    table = summarise(results, by, edges=True)
    rows = [k for k in order or list(dict.fromkeys(results[by]))
            if k in set(results[by])]
    return {m: table.xs(m, level="metric").loc[rows]
            for m in ("unique_binding", "loose", "strict")}

relations = split("relation", list(RELATIONS))
Captioned(intervals(relations, "share of pictures"),
          "Results by relation; 95 % intervals over prompts.")

# %%
pairs = split("pair")
Captioned(intervals(pairs, "share of pictures"),
          "Results by the shapes of object 1 and object 2; 95 % intervals over "
          "prompts.")

# %%
pd.concat([cells(relations), cells(pairs)])

# %%
loose, strict = relations["loose"]["mean"], relations["strict"]["mean"]
pair = pairs["loose"]["mean"]
Markdown(f"""
Loose ranges from {loose.min():.2f} ({loose.idxmin().replace('_', ' ')}) to
{loose.max():.2f} ({loose.idxmax().replace('_', ' ')}) over the relations and from
{pair.min():.2f} ({pair.idxmin()}) to {pair.max():.2f} ({pair.idxmax()}) over the pairs.
Strict differs from loose only for the four relations that name one axis:
{strict.reindex(RELATIONS[:4]).mean():.2f} against
{loose.reindex(RELATIONS[:4]).mean():.2f}.
""")

# %% [markdown]
# ## How far apart
#
# Verdicts say yes or no; the distances behind them say how. Each point is a picture with both objects, and
# the green area is where it passes *strict*.

# %%
Captioned(distances(results, truth),
          "Distances dx and dy by relation: model over true scenes.",
          "Eight scatter plots, one a relation; the model's points lie over those of "
          "the true scenes.")

# %%
def sideways(frame: pd.DataFrame) -> pd.Series:
    """|d| in px along the axis that above, below, left and right do not name."""
    vertical = frame["relation"].isin(["above", "below"])
    off = frame["dx"].where(vertical, frame["dy"]).abs()
    return off[frame["relation"].isin(RELATIONS[:4])].dropna()

ours, real = sideways(results), sideways(truth)
Markdown(f"""
Where two objects should be aligned, true scenes are at most {real.max():.0f} px off.
The model's median is {ours.median():.1f} px, and {(ours <= ALIGN).mean():.0%} of its
pictures are within the {ALIGN} px that *strict* allows. Whatever strict loses against
loose is lost here.
""")

# %% [markdown]
# ## Samples

# %%
first = results.groupby("relation").head(2)
first = first.assign(place=first["relation"].map(RELATIONS.index))
first = first.sort_values("place", kind="stable")
Captioned(grid(images[first.index.to_list()], list(first["prompt"]), 4),
          "The first pictures of each relation, not selected.")

# %% [markdown]
# ## Failures
#
# A failed picture gets the first of these reasons that applies.

# %%
REASONS = {"color": "a colour is missing or not pure", "shape": "a shape is missing",
           "exist_binding": "colour on the wrong shape",
           "unique_binding": "an object too many", "loose": "wrong place",
           "strict": "not aligned"}
failed = results[~results["strict"]].copy()
# the first metric that is false
failed["reason"] = (~failed[list(REASONS)]).idxmax(axis=1).map(REASONS)
counts = failed["reason"].value_counts().reindex(REASONS.values(), fill_value=0)
failed["crowded"] = [len(detect(images[i])) > 2 for i in failed.index]
crowded = failed.groupby("reason")["crowded"].sum()
crowded = crowded.reindex(REASONS.values(), fill_value=0)
pd.DataFrame({"pictures": counts,
              "share of all": (counts / len(results)).map("{:.1%}".format),
              "with more than two objects": crowded})

# %%
examples = failed.groupby("reason").head(3)[:12].sort_values("reason")
titles = [f"{row.prompt}: {row.reason}" for row in examples.itertuples()]
outlines = [outlined(images[i]) for i in examples.index]
Captioned(grid(torch.stack(outlines), titles, 4),
          "Failures, up to three a reason.") if outlines else "none"

# %%
common = counts.drop("not aligned")
Markdown(f"""
{len(failed)} of {len(results):,} pictures fail strict. Of these, {common.sum()} fail
loose as well, most often because '{common.idxmax()}' ({common.max()} pictures), and
{crowded.drop("not aligned").sum()} of them show more than two objects.
""")

# %% [markdown]
# ## A second judge
#
# All scores of this book hang on one detector. A second judge shares no rule with it: objects are connected
# saturated pixels, shapes are told by a random forest that was trained on renders whose truth is known, colours
# by the mean. Both judge two thousand pictures, half of them of `rte-nopos`, which is wrong more often than
# right, so that agreement is no matter of course. Cohen's $\kappa$ is 0 for agreement by chance, 1 for equal verdicts.

# %%
by_model = {name: records(sampled_agreement, load(name).fast(), told, seeds)
            for name in dict.fromkeys((model, "rte-nopos"))}
agreed = pd.concat(by_model, axis=1)
agreed.rename(index=lambda m: m.replace("_", " ")).astype(float).round(3)

# %%
sample = slice(0, len(prompts))
second = second_scores(images[sample], told[sample])
both_said = pd.concat({"detector": results.iloc[sample][list(METRICS)],
                       "second judge": second}, axis=1)
differ = [i for i in second.index
          if (both_said["detector"].loc[i] != both_said["second judge"].loc[i]).any()]
labels = [f"{told[i]}: " + ", ".join(m.replace("_", " ") for m in METRICS
                                     if second[m][i] != results[m][i])
          for i in differ[:8]]
Captioned(grid(torch.stack([images[i] for i in differ[:8]]), labels, 4),
          f"Where the judges differ, and on what: the first of {len(differ)} among "
          f"{len(second)} pictures of {net.name}.") if differ else "no difference"

# %%
least = {name: t["same"].astype(float) for name, t in by_model.items()}
Markdown("\n".join(
    f"- {name}: the judges agree in {t.min():.1%} ({t.idxmin().replace('_', ' ')}) to "
    f"{t.max():.1%} of the verdicts; on loose in {t['loose']:.1%}."
    for name, t in least.items()))

# %% [markdown]
# ## The paper's detector
#
# The mode `paper` scores as the authors' code does: shapes by counting corners, the centre in the middle of
# the bounding box, each channel searched on its own. The middle of a triangle's box lies above its centroid,
# where the scene placed it, so that a triangle level with a square counts as higher. The authors' scenes also
# overlap, which lowers their ceiling.

# %%
modes = {"model, clean": results, "model, paper": score(images, told, "paper"),
         "true scenes, clean": truth,
         "true scenes, paper": records(ceiling, prompts, per_prompt, seed,
                                       mode="paper"),
         "authors' scenes, paper": records(ceiling, prompts, per_prompt, seed,
                                           preset="paper", mode="paper")}
pd.DataFrame({name: summarise(frame)["mean"]
              for name, frame in modes.items()}).loc[list(METRICS)].round(3)

# %%
theirs = summarise(modes["authors' scenes, paper"])["mean"]
by_box = modes["true scenes, paper"]
beside = by_box[by_box["relation"].isin(["left", "right"])]
with_triangle = beside["pair"].str.contains("triangle")
level = beside.groupby(with_triangle)["strict"].mean().reindex([True, False])
Markdown(f"""
On the authors' own scenes a perfect model would get loose {theirs['loose']:.2f} and
strict {theirs['strict']:.2f}: their models' scores must be read against that. On our
scenes, strict for left and right is {level[True]:.2f} with a triangle and
{level[False]:.2f} without under their definition of the centre. Numbers of this book
are in mode clean unless they say otherwise.
""")

# %% [markdown]
# ## Guidance and steps
#
# <aside class="margin">
#
# The mixture is classifier-free guidance, [Ho and Salimans (2022)](bibliography.md#ho2022cfg); the solver is
# DPM-Solver++, [Lu et al. (2022)](bibliography.md#lu2022dpmpp).
#
# </aside>
#
# Samples mix the predictions with and without the caption,
# $\hat v = \hat v_\varnothing + \gamma (\hat v_c - \hat v_\varnothing)$, over a number of solver steps. Both are
# the paper's values, not tuned. A small check on fewer prompts:

# %%
tries = (((1.0, 14), (2.0, 14), (4.5, 14), (7.0, 14), (4.5, 6), (4.5, 30)) if full
         else ((1.0, 2), (4.5, 4)))
some = prompts[:44] if full else prompts[:3]
tried = {}
for w, n in tries:
    found = records(Model.latents, net, some, list(range(len(some))), guidance=w,
                    steps=n)
    scored = score(net.vae.decode(found), some)
    tried[f"w = {w}, {n} steps"] = summarise(scored, edges=True)
by_metric = {metric: pd.DataFrame({name: table.loc[metric]
                                   for name, table in tried.items()}).T
             for metric in ("color", "unique_binding", "loose", "strict")}
Captioned(intervals(by_metric, "share of pictures", (-0.02, 1.02)),
          f"Guidance w and number of steps, {len(some)} prompts with one picture each; "
          "95 % intervals.")

# %%
by_setting = by_metric["loose"]["mean"]
Markdown(f"""
The book samples with w = {GUIDANCE} and {STEPS} steps. Loose lies between
{by_setting.min():.2f} ({by_setting.idxmin()}) and {by_setting.max():.2f} among these
settings. Intervals this wide tell a broken setting from a working one, and no more.
""")

# %% [markdown]
# ## Recorded and run again
#
# The slow results of this page were computed once and are kept under a hash of model, code and arguments;
# with another of these they are computed anew. A part of some of them was run again just now, from the same
# noise.

# %%
records.report()

# %% [markdown]
# ## What was established
#
# - True scenes mark the ceiling, with and without the VAE, and two kinds of ignorance mark chance.
# - The model's scores stand between them as tabled above, with intervals, for each relation and each pair of
#   shapes.
# - Failures have reasons that can be counted; alignment within 5 px is judged apart from the side.
#
# Not established: how the model does it, and whether it holds for wordings outside the training template. One
# model with one seed was scored; the intervals cover prompts and sampling noise, not other training runs.

# %% [markdown]
# ## Exercise
#
# Judge the model's pictures against the *opposite* prompts. What must *loose* and *unique binding* be if the detector and the
# rule are right?
#
# :::{admonition} Solution
# :class: dropdown
#
# ```python
# from spatial_circuits.text.counterparts import counterpart
#
# some = prompts[:6]
# pictures = net.images(some, range(len(some)))
# opposite = [counterpart(p, "relation") for p in some]
# told, turned = (score(pictures, p)[["unique_binding", "loose"]].mean()
#                 for p in (some, opposite))
# assert told["loose"] > 0.5 and turned["loose"] == 0
# assert told["unique_binding"] == turned["unique_binding"]
# ```
#
# *Loose* is 0, as no picture shows a relation and its opposite; *unique binding* does not change, since it does not look at
# places. A score that is above 0 here would be a fault of the metric.
# :::
