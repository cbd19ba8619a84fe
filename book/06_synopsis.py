# %% [markdown]
# # 6. Attention synopsis
#
# The text enters the picture through cross-attention alone, and every head leaves a record: which place looked
# at which word. **Do a few heads stand out by what they look at, one for the relation and one for the shapes,
# as claim C5 says?**
#
# A pattern of one head at one step is a table of 64 image tokens by a dozen text tokens, and a run has thousands of them.
# The synopsis reduces each to a few numbers that mean the same for every prompt and every picture.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 0
scale: str = "full"  # smoke | full

# %%
import numpy as np
import pandas as pd
import torch
from IPython.display import Markdown

from spatial_circuits.analyses.heads import head_name, heads_of
from spatial_circuits.analyses.synopsis import (
    CLASSES,
    VALUES,
    attention_scores,
    object_masks,
    ranking,
    synopsis,
)
from spatial_circuits.book.figures import Captioned, lines
from spatial_circuits.book.head_figures import attention_rows, head_grid
from spatial_circuits.book.records import Records
from spatial_circuits.book.verdict import claim_verdict, verdict
from spatial_circuits.claims.judges import APART
from spatial_circuits.data.captions import ROLES, parse
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.data.scenes import RELATIONS
from spatial_circuits.model.sampler import STEPS
from spatial_circuits.model.store import load

net = load(model).fast()
full = scale == "full"
prompts = prompt_set("96") if full else prompt_set("96")[:6]
per_prompt = 4 if full else 1
records = Records("06_synopsis")

# %% [markdown]
# ## Places and roles
#
# A *place* is object 1, object 2 or the background of the finished picture: the detector's outlines, shrunk to the
# 8 x 8 grid of image tokens, give soft masks $B_l$ for the place $l$. A *role* is what a token is for: colour, shape, relation,
# filler, end. Both are defined relative to the prompt, so that "red square is above blue circle" and "blue triangle
# is left of red square" can be averaged.

# %%
told = prompts[0]
picture = net.images([told], [seed])
places, seen = object_masks(picture, [told])
Captioned(attention_rows({"soft mask": places[0].view(-1, 8, 8)}, CLASSES,
                         "share of the cell", picture[0], 1.0),
          f"Places of one picture, \"{told}\": the masks are empty unless each object "
          "is found exactly once.",
          "Three 8 by 8 masks, object 1, object 2 and background, beside the picture "
          "they come from.")

# %% [markdown]
# <aside class="margin">
#
# One map a word, summed over heads and steps, was shown for Stable Diffusion by [Tang et al.
# (2023)](bibliography.md#tang2023daam). Here heads stay apart, since they are what is looked for, and words
# become roles, so that prompts can be averaged.
#
# </aside>
#
# With $A_{ij}$ the attention of image token $i$ to text token $j$, and $\rho$ the tokens of a role,
#
# $$\text{sum}_{l\rho} = \sum_i B_{li} \sum_{j \in \rho} A_{ij}, \qquad
#   \text{share}_{l\rho} = \frac{\text{sum}_{l\rho}}{\sum_i B_{li}}, \qquad
#   \text{per token}_{l\rho} = \frac{\text{share}_{l\rho}}{\lvert \rho \rvert}.$$
#
# The paper takes the *sum*, which is larger for a larger place. *Share* is the attention of an average cell of the
# place, and adds up to 1 over the roles. *Per token* divides by the tokens of the role: a relation phrase may be one
# word or six, and a head that spreads its attention evenly over all tokens would otherwise seem to prefer long
# phrases. The pictures are not kept and neither are the patterns: attention is summed over roles inside each
# attention call, and over places as soon as a batch of pictures is decoded.

# %%
blocks, text = net.transformer.transformer_blocks, net.encoder.encode(prompts)
# patterns of a picture: [calls, T]
calls, images = STEPS * len(heads_of(net)) * 64, len(prompts) * per_prompt
whole = calls * 2 * images * text.mask.shape[1] * 2  # both branches, 2 bytes
batch = calls * 2 * min(32, images) * len(ROLES) * 2
kept = 2 * STEPS * len(heads_of(net)) * len(CLASSES) * len(ROLES) * len(prompts) * 4 * 2
Markdown(f"""
All cross-attention patterns of these {images} pictures would take {STEPS} steps x
{len(heads_of(net))} heads x 64 image tokens x {text.mask.shape[1]} text tokens x 2 CFG
branches x {images} x 2 bytes = {whole / 1e6:.0f} MB and grow with their number. Here a
batch holds {batch / 1e6:.0f} MB, and what remains is a table of {kept / 1e6:.0f} MB.
""")

# %% [markdown]
# ## The run
#
# The paper's 96 prompts, which put *the* before object 2 as our training captions never do. The seeds are not those of
# chapter 5.

# %%
found = records(synopsis, net, prompts, per_prompt, seed + 1, live=4)
share = found.table("share")  # [P, L, H, 3, R] mean over the steps
mean = dict(zip(CLASSES, share.mean(0).movedim(2, 0)))  # place -> [L, H, R]
# colours, shapes and the relation
null = found.table("share", "uncond")[..., :5].sum(-1)
Markdown(f"""
{int(found.images.sum())} pictures count; {int(found.failed.sum())} were left out since
an object was missing or found twice. Guidance also runs the model with the empty
prompt, where there is no colour, shape or relation to look at: these roles get
{float(null.max()):.3f}, and all attention rests on the end token (and what else the
encoder adds). Everything below is the conditional branch.
""")

# %% [markdown]
# ## Who looks at what
#
# Each square is a head. First the relation and the shapes; *own* means shape 1 seen from object 1.

# %%
def seen_from(place: str, *roles: str) -> torch.Tensor:
    """Mean share [L, H] of attention from a place to some roles together."""
    return mean[place][..., [ROLES.index(r) for r in roles]].sum(-1)

panels = {f"{place} → {role}": seen_from(place, role)
          for role in ("relation", "shape1", "shape2") for place in CLASSES}
Captioned(head_grid(panels, "share of attention", columns=3, tall=0.75),
          "Share of attention from each place to the relation and to both shapes, mean "
          "over steps and pictures. A relation head is bright in the upper row, an "
          "object head on the diagonal of the lower two rows.",
          "Nine heat maps of layers by heads: from object 1, object 2 and background "
          "to relation, shape 1, shape 2.")

# %%
table = ranking(found)
TOP = {score: rows.reset_index(drop=True) for score, rows in table.groupby("score")}
def heads(score: str, count: int = 1) -> list[tuple[int, int]]:
    """The best heads (layer, head) by a score."""
    return list(TOP[score][["layer", "head"]].head(count)
                .itertuples(index=False, name=None))

def shown(rows: pd.DataFrame) -> pd.DataFrame:
    """A ranking as text: mean with its interval, and p."""
    value = [f"{r.mean_:.3f} [{r.low:.3f}, {r.high:.3f}]"
             for r in rows.rename(columns={"mean": "mean_"}).itertuples()]
    chance = {"p": [f"{p:.3f}" for p in rows["p"]]} if "p" in rows else {}
    return pd.DataFrame({"score": value, **chance}, index=list(rows["name"]))

# %% [markdown]
# ## Two scores
#
# One number a head ranks them:
#
# $$R = \tfrac12 \sum_{k=1,2} A_{\text{object } k \to \text{relation}}, \qquad
#   O = \tfrac12 \sum_{k=1,2} \left( A_{\text{object } k \to \text{shape } k} -
#   A_{\text{object } k \to \text{other shape}} \right),$$
#
# with $A$ per token. A large number alone proves little: among so many heads, one is always the largest. The null
# hypothesis is that a head does not care which word is which. Under it the five content roles of a prompt can be
# shuffled; $p$ is how often shuffles reach the score, times the number of heads (Bonferroni). Intervals are 95 %
# bootstraps over prompts.

# %%
pd.concat({score: shown(rows.head(6)) for score, rows in TOP.items()},
          names=["score", "head"])

# %%
SURE = {score: rows[rows["p"] < 0.05] for score, rows in TOP.items()}
def first_two(score: str) -> str:
    """The best head by a score, and the next."""
    a, b = TOP[score].iloc[0], TOP[score].iloc[1]
    return (f"**{a['name']}** ({a['mean']:.2f} [{a['low']:.2f}, {a['high']:.2f}]), "
            f"then {b['name']} ({b['mean']:.2f})")

def alone(score: str) -> bool:
    """Whether the best head passes the test and stands apart from the next."""
    a, b = TOP[score].iloc[0], TOP[score].iloc[1]
    return bool(a["mean"] >= APART * b["mean"] and a["p"] < 0.05)

Markdown(f"""
Object: {first_two('object')}. Relation: {first_two('relation')}.
{len(SURE['relation'])} heads pass the test for the relation
({', '.join(SURE['relation']['name']) or 'none'}), {len(SURE['object'])} for the shapes.
The smallest possible p is {len(heads_of(net)) / 2001:.3f}, the number of heads over
that of shuffles. A small p says that a head tells the words apart, not that it matters:
compare the scores.
""")

# %%
verdict({f"One head stands out for the {said}: it passes the test, and has at least "
         f"{APART:g} times the score of the next": alone(score)
         for score, said in (("object", "shapes"), ("relation", "relation"))})

# %% [markdown]
# ## Is it the definition?
#
# Three values and two ways to treat the steps. The paper takes the sum at each picture's strongest step.

# %%
def leaders(value: str, step: str, score: str) -> str:
    """The three best heads by a score made from another value."""
    table = found.table(value, "cond", step).nan_to_num()
    score_of = attention_scores(table)[score].mean(0)
    best = score_of.flatten().topk(3).indices.tolist()
    return ", ".join(f"{head_name(*divmod(i, score_of.shape[1]))} "
                     f"{score_of.flatten()[i]:.2f}" for i in best)

ways = [(v, s) for v in VALUES for s in ("mean", "max") if (v, s) != ("sum", "max")]
choice = pd.DataFrame({score: [leaders(v, s, score) for v, s in ways] for score in TOP},
                      index=[f"{v}, {s} over steps" for v, s in ways])
choice

# %%
firsts = {score: sorted({row.split()[0] for row in choice[score]}) for score in TOP}
Markdown(f"""
Heads that lead under one of them: for the object score {', '.join(firsts['object'])},
for the relation {', '.join(firsts['relation'])}. The maximum over steps, taken picture
by picture, is never below the mean and rewards a head that looks at the right word
once. The rest of the book uses *per token, mean*.
""")

# %%
verdict({"The lead does not hang on the definition, by either score":
         all(len(heads) == 1 for heads in firsts.values())})

# %% [markdown]
# ## Several relation heads, one for each axis?
#
# The table of relations below asks whether the leading heads share the work by direction. It shows the share of
# object 1's attention that goes to the whole phrase.

# %%
relation = [RELATIONS[parse(p).relation] for p, n in zip(found.prompts, found.images)
            if n]
said = [r for r in RELATIONS if r in relation]
leading = heads("relation", max(2, min(4, len(SURE["relation"]))))
to_phrase = share[..., CLASSES.index("object 1"), ROLES.index("relation")]  # [P, L, H]
def by_said(head: tuple[int, int]) -> list[float]:
    """Mean share of a head for each relation, in the order of `said`."""
    of_head = to_phrase[:, head[0], head[1]]
    return [float(of_head[[r == s for r in relation]].mean()) for s in said]

by_relation = pd.DataFrame({head_name(*h): by_said(h) for h in leading},
                           index=[s.replace("_", " ") for s in said])
by_relation.round(2)

# %%
best = by_relation.idxmax(axis=1)
Markdown(f"""
Looked at relation by relation, the most attentive head is
{'; '.join(f"{h} for {', '.join(best.index[best == h])}" for h in dict.fromkeys(best))}.
""")

# %%
verdict({"The heads share the relations among them: one head is the most attentive for "
         "some, another for others": best.nunique() > 1})

# %% [markdown]
# An average over all prompts would hide such a division. The score also divides by the length of the phrase, so that a head
# which reads one word of "to the left of" and ignores the other three is counted at a quarter of what it does;
# [chapter 7](07_relation_head.ipynb) goes to single words.

# %% [markdown]
# ## Colours
#
# The paper names no head for colours. The same table has them.

# %%
panels = {f"{place} → {role}": seen_from(place, role) for place in CLASSES[:2]
          for role in ("colour1", "colour2")}
Captioned(head_grid(panels, "share of attention"),
          "Share of attention from the objects to the colour words. The second and "
          "third panel are the other object's colour.",
          "Four heat maps of layers by heads: from each object to each colour word.")

# %%
def interval(values: torch.Tensor) -> pd.DataFrame:
    """Mean over prompts of [P, L, H] with a 95 % bootstrap, a row a head."""
    flat, rng = values.flatten(1).numpy(), np.random.default_rng(seed)
    counts = rng.multinomial(len(flat), np.full(len(flat), 1 / len(flat)), 2000)
    low, high = np.percentile(counts / len(flat) @ flat, [2.5, 97.5], axis=0)
    return pd.DataFrame({"name": [head_name(*h) for h in heads_of(net)],
                         "mean": flat.mean(0), "low": low, "high": high})

# [P, L, H, object, colour word]
to_colour = share[..., :2, [ROLES.index("colour1"), ROLES.index("colour2")]]
any_colour = interval(to_colour.sum(-1).mean(-1))
own_colour = interval((to_colour[..., [0, 1], [0, 1]] - to_colour[..., [0, 1], [1, 0]])
                      .mean(-1))
order = any_colour.sort_values("mean", ascending=False).index[:6]
pd.DataFrame({"any colour word": shown(any_colour.loc[order])["score"],
              "own minus other": shown(own_colour.loc[order])["score"],
              **{k: [float(v[h]) for h in (heads_of(net)[i] for i in order)]
                 for k, v in panels.items()}}).round(2)

# %%
turned = own_colour[own_colour["high"] < -0.05].sort_values("mean")
crossed = panels["object 2 → colour1"]
across = divmod(int(crossed.argmax()), crossed.shape[1])
own_most = float(panels["object 2 → colour2"].max())
listed = ", ".join(f"{h} ({m:+.2f})" for h, m in zip(turned["name"], turned["mean"]))
Markdown(f"""
The leading colour head is {any_colour.loc[order[0], 'name']} with
{any_colour.loc[order[0], 'mean']:.2f} of the objects' attention on colour words. Heads
that look at the *other* object's colour more than at their own:
{listed or 'none'}. Object 2 looks at the colour of object 1 with
{float(crossed.max()):.2f} in {head_name(*across)}, and at its own colour with
{own_most:.2f} at most in any head.
""")

# %%
verdict({"Object 2 looks more at the colour of object 1 than at its own, in the heads "
         "that do so most": float(crossed.max()) > own_most})

# %% [markdown]
# In this data the two colours always differ, so that the first colour word tells both colours. Whether a model makes use of
# that is tested in [chapter 8](08_object_head.ipynb).

# %% [markdown]
# ## Over the steps
#
# The same shares step by step, for the leading heads of each kind.

# %%
counted = found.share[found.images > 0, 1].mean(0)  # [steps, L, H, 3, R]
def curve(head: tuple[int, int], *pairs: tuple[int, str]) -> np.ndarray:
    """Share at each step, the mean of (object, role) pairs."""
    return torch.stack([counted[:, head[0], head[1], k, ROLES.index(r)]
                        for k, r in pairs]).mean(0).numpy()

colour_heads = [heads_of(net)[i] for i in order[:2]]
kinds = {"1 → relation": [(0, "relation")], "own shape": [(0, "shape1"), (1, "shape2")],
         "1 → colour 1": [(0, "colour1")], "2 → colour 1": [(1, "colour1")]}
chosen = list(dict.fromkeys(leading[:3] + heads("object") + colour_heads))
curves = {kind: pd.DataFrame({head_name(*h): curve(h, *pairs) for h in chosen})
          for kind, pairs in kinds.items()}
Captioned(lines(curves, "step", "share of attention", ylim=(0, 1)),
          "Attention of the leading heads at each sampling step: object 1 to the "
          "relation, each object to its own shape, and both objects to the first "
          "colour. At step 0 the latent is pure noise.",
          "Four line plots of attention over steps: to the relation, to the own shape, "
          "to the first colour.")

# %%
def fall(curve: pd.Series) -> str:
    """First, largest and last value of a curve."""
    return (f"{curve.iloc[0]:.2f} at step 0, {curve.max():.2f} at most (step "
            f"{curve.idxmax()}), {curve.iloc[-1]:.2f} at the end")

r, o = leading[0], heads("object")[0]
Markdown(f"""
{head_name(*r)} to the relation: {fall(curves['1 → relation'][head_name(*r)])}.
{head_name(*o)} to the own shape: {fall(curves['own shape'][head_name(*o)])}. The places
are those of the *finished* picture, so that the first value says that attention is
already at the right place while the latent is nothing but noise.
""")

# %% [markdown]
# ## What attention does not show
#
# Attention is where a head *could* get its information; whether it writes anything there, and whether anything
# downstream depends on it, is another matter. The plainest case is the end token.

# %%
ends = {place: seen_from(place, "end") for place in CLASSES}
Captioned(head_grid(ends, "share of attention", columns=3, tall=0.75),
          "Share of attention on the end token: a head that is bright from all places "
          "rests there.",
          "Three heat maps of layers by heads: attention to the end token from each "
          "place.")

# %%
resting = [h for h in heads_of(net) if min(float(e[h]) for e in ends.values()) > 0.5]
weakest = ", ".join(SURE["relation"]["name"].tail(1)) or "none"
Markdown(f"""
{len(resting)} of {len(heads_of(net))} heads give the end token more than half of their
attention from every place. The token is the same in every prompt (but for its
position), so they can learn little from it: it is where a head goes that has nothing to
read. The opposite error is as easy. Of the {len(SURE['relation'])} heads that pass the
test for the relation, some may do nothing with it; a candidate is the weakest of them
({weakest}). Only an intervention can tell, and [chapter 9](09_ablation.ipynb) makes it.
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

# %%
def leading_four(score: str) -> str:
    """The four best heads by a score."""
    rows = TOP[score][["name", "mean"]].head(4).itertuples(index=False)
    return ", ".join(f"{name} {mean:.2f}" for name, mean in rows)

Markdown(f"""
- Leading heads for the shapes: {leading_four('object')}; for the relation:
  {leading_four('relation')}.
- At step 0 the first relation head gives the relation
  {curves['1 → relation'][head_name(*r)][0]:.2f} of its attention from the place where
  object 1 will be, and the object head gives the own shape
  {curves['own shape'][head_name(*o)][0]:.2f}.
- For colours the most attentive head is {any_colour.loc[order[0], 'name']}.
""")

# %%
verdict({"One head stands out for the shapes": alone("object"),
         "One head stands out for the relation": alone("relation")})

# %%
claim_verdict(model, "C5")

# %% [markdown]
# Not established: that any of these heads is *used*; what it writes; and why the attention is where it is before there is a
# picture. The last is the next chapter's question.

# %% [markdown]
# ## Exercise
#
# Do the roles share the whole attention of a place? How much is left for the words that say nothing, fillers and the end?
#
# :::{admonition} Solution
# :class: dropdown
#
# ```python
# small = synopsis(net, prompts[:4], 1, seed, steps=8)
# share = small.table("share")  # [P, L, H, 3, R]
# total = share.sum(-1)
# rest = share[..., [ROLES.index("filler"), ROLES.index("end")]].sum(-1).mean((0, 3))
# assert len(share) and torch.allclose(total, torch.ones_like(total), atol=0.02)
# print(rest)  # [L, H]
# ```
#
# They add up to 1 at every place, as each row of a pattern is a softmax over the tokens. Some heads spend most of it on words
# that say nothing: a head that has nothing to do must look somewhere.
# :::
