# %% [markdown]
# # 11. The circuit assembled
#
# The pieces are known: relation heads that turn a word into places, an object head that turns places into a
# shape, heads for the colours. **Are these all? Do they suffice, are they needed, is each of them needed, and
# do the ways of finding them agree?**
#
# The paper describes its circuit and does not test it as a whole. The three tests here, *faithful*, *complete*
# and *minimal*, are those that were applied to a circuit of the language model GPT-2 (IOI).

# %% tags=["parameters"]
model: str = "rte"
seed: int = 1
scale: str = "full"  # smoke | full

# %%
import pandas as pd
import torch
from IPython.display import Markdown

from spatial_circuits.ablation import INTACT, ablate, effects, heads_of, mean_outputs, name, others
from spatial_circuits.circuit import agreement, find, prune, shares, tests
from spatial_circuits.metrics import prompt_set, summarise
from spatial_circuits.patching import DIRECTIONS, FACTORS, counterpart, patch_paths, prediction_effects
from spatial_circuits.plots import Captioned, intervals
from spatial_circuits.plots_heads import diagram, head_grid
from spatial_circuits.pretrained import load
from spatial_circuits.sample import STEPS
from spatial_circuits.scenes import SHAPES
from spatial_circuits.synopsis import scores, synopsis
from spatial_circuits.weights import screen

net = load(model)
quick = net.fast()                                                       # bf16 where that is faster
full = scale == "full"
steps = STEPS if full else 8
everything = prompt_set("264")                                           # each run of 22 holds every phrase
finding, testing = (everything[176:198], everything[220:264]) if full else (everything[176:179], everything[220:224])

def listed(heads: list) -> str:
    """Heads by name."""
    return ", ".join(name(*h) for h in heads) or "none"

def spelled(row: pd.Series) -> str:
    """A mean with its interval."""
    return f"{row['mean']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"

# %% [markdown]
# ## Members
#
# Heads are found by patching alone, on prompts that chapters 9 and 10 did not single out heads or scales with.
# As there, a prompt and its counterpart differ in one factor, and a set of heads $S$ has the effect
#
# $$e(S) = 1 - \frac{\lVert \hat v_S - \hat v_{\text{from}} \rVert^2}
#                    {\lVert \hat v_{\text{to}} - \hat v_{\text{from}} \rVert^2},$$
#
# summed over steps before dividing, where $\hat v_S$ is the prediction for one prompt (*to*) with the heads'
# outputs taken from the other (*from*). Denoising brings clean parts to the counterpart: 1 if $S$ is enough.
# Noising is the reverse: 1 if nothing of the factor is left without $S$. Each set grows by the head that adds
# most to the smaller of the two, until it reaches .9. The sets for shape and for colour come first and are left
# out of the search for the relation, which otherwise ends in *which* shape and colour go where. (A minute.)

# %%
single = {name(*h): [h] for h in heads_of(quick)}
sparse = {"steps": steps, "every": 2 if full else 4, "seed": seed}
effect = {d: {f: prediction_effects(quick, finding, f, single, d, **sparse) for f in FACTORS} for d in DIRECTIONS}
smaller = {f: effect["denoising"][f].clip(upper=effect["noising"][f]) for f in FACTORS}
circuit = find(quick, finding, limit=6 if full else 3, first=smaller, **sparse)
members = {"relation": circuit.relation, "object": circuit.object, "colour": circuit.colour}
circuit.trace.drop(columns="head").round(3)

# %%
last = circuit.trace.groupby("factor")["effect"].last()
short = [f for f in FACTORS if last[f] < 0.9]
reached = f"The set for {' and '.join(short)} stays below .9." if short else "All three sets reach .9."
Markdown(f"""
The circuit has {len(circuit.heads)} of {len(single)} cross-attention heads. Relation: {listed(circuit.relation)};
object: {listed(circuit.object)}; colour: {listed(circuit.colour)}. {reached}
""")

# %% [markdown]
# ## Three tests
#
# On prompts that took no part in finding the circuit. "Off" means mean ablation, as in chapter 9.
#
# - *faithful*: with all other cross-attention heads off, the circuit alone does what the model does;
# - *complete*: with the circuit off and all others on, nothing is left;
# - *minimal*: without any one member, the circuit alone does worse.
#
# The null for the first is as many heads drawn at random. Scores are shares of the intact model's.

# %%
mean = mean_outputs(quick, everything if full else everything[:22], steps=steps)
tested = tests(quick, testing, circuit.heads, mean, random=5 if full else 1, seed=seed, steps=steps)
METRICS = ("loose", "unique_binding", "shape")
outcome = {m: shares(tested, m) for m in METRICS}
Captioned(intervals(outcome, "share of the intact model's score"),
          "The circuit alone, the rest without it, no head at all, the circuit without each member, and random sets "
          "of equal size alone; 95 % intervals over prompts.")

# %%
def share(condition: str, metric: str = "loose") -> str:
    """A condition's share with its interval."""
    return spelled(outcome[metric].loc[condition])

loose = outcome["loose"]
alone, gone = loose.loc["circuit alone"], loose.loc["without the circuit"]
null = loose.filter(like="random", axis=0)["mean"]
without = loose.filter(like="circuit without", axis=0).rename(index=lambda c: c.removeprefix("circuit without "))
spare = [h for h, row in without.iterrows() if row["high"] >= alone["mean"]]
faithful = "yes" if alone["low"] >= 0.9 else "in part" if alone["low"] > null.max() else "no"
complete = "yes" if gone["high"] < 0.1 else "in part" if gone["mean"] < 0.5 else "no"
minimal = (f"no. Without {' or '.join(spare)} the rest of the circuit is as good within the interval." if spare else
           "yes. Each member is missed.")
Markdown(f"""
*Faithful*: {faithful}. Alone, the circuit has {share('circuit alone')} of the model's loose,
{share('circuit alone', 'unique_binding')} of its binding and {share('circuit alone', 'shape')} of its shapes. Random
sets of {len(circuit.heads)} heads have {null.min():.2f} to {null.max():.2f} of loose, no head at all
{share('nothing')}.

*Complete*: {complete}. Without the circuit, {share('without the circuit')} of loose is left, and
{share('without the circuit', 'shape')} of shape.

*Minimal*: {minimal} Without one member, loose goes to {without['mean'].min():.2f} ({without['mean'].idxmin()}) up to
{without['mean'].max():.2f} ({without['mean'].idxmax()}).
""")

# %% [markdown]
# ### How small can it be?
#
# Take members out one after the other, each time the one that the rest, alone, misses least: chosen on the
# prompts that found the circuit, measured on the others.

# %%
chain = prune(quick, finding, circuit.heads, mean, until=0.5 if full else 0.99, seed=seed + 1, steps=steps)
nested = {f"{len(left)}: {listed(left)}": others(quick, left) for left in chain["left"]}
tighter = ablate(quick, testing, nested, seed=seed, mean=mean, steps=steps)
sizes = {m: shares(tighter, m).drop(INTACT) for m in METRICS}
Captioned(intervals(sizes, "share of the intact model's score"),
          "Smaller and smaller circuits alone; 95 % intervals over prompts.")

# %%
enough = [(left, row) for left, (_, row) in zip(chain["left"], sizes["loose"].iterrows()) if row["mean"] >= 0.9]
core, core_share = enough[-1] if enough else (circuit.heads, alone)
small = ("What the other members carry is real, by the effects above, but what a picture needs is the sign of a sum, "
         "and part of the sum gives it." if enough else "No smaller circuit of those tried keeps nine tenths.")
left_out = [h for h in circuit.heads if h not in core]
Markdown(f"""
{len(core)} heads, {listed(core)}, still have {spelled(core_share)} of loose. Left out: {listed(left_out)}. {small}
""")

# %% [markdown]
# ### Backups
#
# A member that the intact model does not miss may be missed in the circuit alone, where the heads that cover
# for it are off. And a whole group may be missed where its members are not.

# %%
sets = {name(*h): [h] for h in circuit.heads} | {f"{role} heads": heads for role, heads in members.items()}
off = effects(ablate(quick, testing[:22], sets, seed=seed, mean=mean, steps=steps))
lost = off["change"].unstack("metric").loc[list(sets)]
missed = lost[["loose", "shape", "unique_binding"]].add_suffix(", whole model")
missed["loose, circuit alone"] = without["mean"] - alone["mean"]
missed.rename(columns=lambda c: c.replace("_", " ")).round(2)

# %%
covered = [h for h in without.index if missed.loc[h, "loose, circuit alone"] < lost.loc[h, "loose"] - 0.2]
backup = (f"Covered for by heads outside the circuit, by more than .2 of loose: {', '.join(covered)}." if covered else
          "No member is covered for by heads outside the circuit by more than .2 of loose.")
within = {r: lost.loc[[name(*h) for h in heads], "loose"].min() for r, heads in members.items()}
Markdown(f"""
{backup} Within the circuit they cover for each other: without all relation heads the model loses
{-lost.loc['relation heads', 'loose']:.2f} of loose, without one of them {-within['relation']:.2f} at most; without all
colour heads {-lost.loc['colour heads', 'loose']:.2f}, without one {-within['colour']:.2f}; without the object
head{'s' * (len(circuit.object) > 1)} {-lost.loc['object heads', 'loose']:.2f}.
""")

# %% [markdown]
# ## Arrows
#
# A diagram is a claim about paths. Its arrows from the text carry the effects $e$ of the sets. The arrows from
# the relation heads are measured by path patching (chapter 9): only the receivers' queries are told the clean
# relation, everything else the opposite one. If the *object head* alone is told, the shapes change places and
# the colours stay; if the *colour heads* alone are told, the colours change and the shapes stay; told both, the
# picture is the clean one. Each run is scored against the picture predicted for it. Arrows to the picture say
# what is lost of shape and of unique binding without the set (table above).

# %%
def shapes_exchanged(prompt: str) -> str:
    """The prompt with its two shapes exchanged."""
    one, two = (w for w in prompt.split() if w in SHAPES)
    return " ".join({one: two, two: one}.get(w, w) for w in prompt.split())

few = testing[:22]
told = {"object head": (circuit.object, [counterpart(p, "colour") for p in few]),
        "colour heads": (circuit.colour, [shapes_exchanged(p) for p in few]),
        "object and colour heads": ([*circuit.object, *circuit.colour], few)}
heard = {}
for receiver, (receivers, predicted) in told.items():
    frame = patch_paths(quick, few, "relation", {"told": circuit.relation}, receivers, scored=predicted, seed=seed,
                        steps=steps)
    heard[receiver] = summarise(frame[frame["condition"] == "told"]).loc["loose"]
heard = pd.DataFrame(heard).T.astype(float)
heard[["mean", "low", "high"]].round(2)

# %%
paths = heard["mean"]
edges = [("relation words", "relation", f"effect\n{last['relation']:.2f}"),
         ("shape words", "object", f"effect {last['shape']:.2f}"),
         ("colour words", "colour", f"effect {last['colour']:.2f}"),
         ("relation", "object", f"by its query\n{paths['object head']:.2f}"),
         ("relation", "colour", f"by their queries\n{paths['colour heads']:.2f}"),
         ("object", "picture", f"shape without it\n{lost.loc['object heads', 'shape']:+.2f}"),
         ("colour", "picture", f"binding without\n{lost.loc['colour heads', 'unique_binding']:+.2f}")]
does = {"relation": "a word becomes a side: a ramp over the places", "colour": "the same places get their colour",
        "object": "marked places become object 1 or 2 by shape", "picture": "self-attention and MLPs do the rest"}
Captioned(diagram({role: [name(*h) for h in heads] for role, heads in members.items()}, edges, does),
          "The circuit. From the words: the effect of patching the set. Between heads: the share of pictures that "
          "follow when only the receivers' queries are told. To the picture: the change without the set.",
          "A diagram from relation, shape and colour words to relation heads, object head, colour heads and picture.")

# %%
apart = ("The relation takes two paths, which can be told different things." if paths.min() > 0.5 else
         "Not every arrow is as clean as the drawing: where the share is low, other receivers take part.")
Markdown(f"""
Told to the object head's query alone, the relation gives the predicted picture, shapes moved and colours not, in
{spelled(heard.loc['object head'])} of the runs; told to the colour heads' alone, colours moved and shapes not, in
{spelled(heard.loc['colour heads'])}; told to both, the clean picture in
{spelled(heard.loc['object and colour heads'])}. {apart}
""")

# %% [markdown]
# ## Do the ways of finding heads agree?
#
# Four ways, none of which uses another: the *synopsis* (where a head looks while sampling), the *weights* alone
# (the ramps that direction words draw on the bare position embedding, mean size of the projection over words),
# *patching* (what a head brings by denoising), *ablation* (what fails without it; here for members only).

# %%
read = synopsis(quick, few, 1, seed, steps=steps).table("per token").nan_to_num()
looks = {kind: x.mean(0).flatten() for kind, x in scores(read).items()}                          # [L * H] each
words = screen(net.transformer, net.encoder, everything)
ramp = words.assign(size=words["projection"].abs()).groupby("name")["size"].mean()
table = pd.DataFrame({"relation score": looks["relation"], "ramp (weights)": ramp[list(single)].to_numpy(),
                      "object score": looks["object"]}, index=list(single))
table = table.join(pd.DataFrame({f"brings the {f}": t.mean() for f, t in effect["denoising"].items()}))
grids = {c: torch.tensor((table[c] / table[c].abs().max()).to_numpy()).view(len(net.transformer.transformer_blocks), -1)
         for c in table}
Captioned(head_grid(grids, "share of the largest", members, columns=3),
          "Scores of all heads, each divided by its largest. Frames: relation heads green, object head purple, colour "
          "heads brown.", "Six grids of layers and heads.")

# %%
roles = [", ".join(r for r, heads in members.items() if h in heads) for h in heads_of(quick)]
whole = pd.DataFrame({f"{m} without": lost[m] for m in ("loose", "shape")}).reindex(table.index)
overview = table.assign(role=roles).join(whole).set_index("role", append=True).reorder_levels([1, 0])
overview[overview.index.get_level_values("role") != ""].sort_index(ascending=False).round(2)

# %%
output = [name(*h) for h in [*circuit.object, *circuit.colour]]
compared = table.drop(index=output)[["relation score", "ramp (weights)", "brings the relation"]]
agreed = agreement(compared)
agreed.round(3)

# %%
rho, same = agreed["rank correlation"], bool(agreed["same top head"].all())
tops = {c: compared[c].idxmax() for c in compared}
leading = [set(compared[c].nlargest(len(circuit.relation)).index) for c in compared]
common = sorted(set.intersection(*leading))
top = (f"All three put {tops['relation score']} first." if same else
       "They do not put the same head first: " + ", ".join(f"{h} ({c})" for c, h in tops.items()) + ".")
Markdown(f"""
Over the {len(compared)} heads that are neither object nor colour heads, rank correlations are {rho.min():.2f} to
{rho.max():.2f}. {top} Of the {len(circuit.relation)} leading heads of each, common to all: {', '.join(common) or 'none'}.
A rank correlation counts the many heads that do nothing, whose order is noise; the leading heads are what matters.
""")

# %% [markdown]
# ## What was established

# %%
gap = max(0.0, 1 - alone["mean"])
recovered = (f"{gap:.0%} of loose, which the circuit alone does not recover" if gap > 0.005 else
             "of loose nothing on these prompts, though the interval ends where the prompts do")
needed = [h for h in without.index if h not in spare]
Markdown(f"""
- {len(circuit.heads)} of {len(single)} cross-attention heads have {share('circuit alone')} of what the model has of
  loose, random sets {null.max():.2f} at most; without them {share('without the circuit')} is left.
- One by one, {len(needed)} of {len(without)} members {'is' if len(needed) == 1 else 'are'} needed for pictures
  ({', '.join(needed) or 'none'}); {len(core)} heads ({listed(core)}) still have {core_share['mean']:.2f}.
- The relation reaches shapes and colours by separate paths: {paths['object head']:.0%} and
  {paths['colour heads']:.0%} of the pictures follow when only one of them is told. The paper has no colour heads.
- Attention, weights and patching {'agree' if same else 'do not agree'} on the leading relation head, and on
  {len(common)} of the {len(circuit.relation)} leading ones.

What remains unexplained: {recovered}; what self-attention and the MLPs do, which were left in place throughout
although part of the path from the relation heads to the object head goes through them; what the mean outputs of the
other heads, which stay on, contribute; and why a model keeps more relation and colour heads than pictures need.
This is the circuit of one model; whether it recurs from seed to seed needs other models.
""")
