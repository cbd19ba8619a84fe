# %% [markdown]
# # 7. The relation head
#
# The heads that look at the relation do so from the first step, at the right place, while the latent is pure noise.
# **How can a head know where "above" is when there is no picture?** The paper's answer, claim C6: it needs none. The
# position of a place and the word are enough. This can be read off the weights.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 0
scale: str = "full"  # smoke | full

# %%
from textwrap import fill

import pandas as pd
import torch
from IPython.display import Markdown, display
from torch.nn.functional import normalize

from spatial_circuits.analyses.heads import head_name, heads_of
from spatial_circuits.analyses.injection import patterns_on_residual
from spatial_circuits.analyses.synopsis import ranking, synopsis
from spatial_circuits.analyses.weight_maps import (
    DIRECTIONS,
    head_writes,
    logit_shift,
    ov,
    positions,
    project_captions,
    qk_composition,
    qk_maps,
    ramps,
    screen_words,
    shape_keys,
    snapshots,
    spectra,
    words,
)
from spatial_circuits.book.figures import Captioned, heatmaps, lines, maps
from spatial_circuits.book.head_figures import attention_rows, head_grid, scatter
from spatial_circuits.book.records import Records
from spatial_circuits.book.verdict import verdict
from spatial_circuits.data.captions import PHRASES, parse
from spatial_circuits.data.metrics import prompt_set, score
from spatial_circuits.data.scenes import OFFSETS, RELATIONS
from spatial_circuits.hooks.readers import MeanResidual, Patterns
from spatial_circuits.hooks.run import run
from spatial_circuits.model.store import load
from spatial_circuits.training.log import read_log

net = load(model)
fast, dit, encoder = net.fast(), net.transformer, net.encoder
full = scale == "full"
prompts = prompt_set("264")

# %% [markdown]
# ## Ramps
#
# <aside class="margin">
#
# To take a head apart into *where it looks* (QK circuit) and *what it writes* (OV circuit), each a product of
# two weight matrices, is the view of [Elhage et al. (2021)](bibliography.md#elhage2021mathematical).
#
# </aside>
#
# The query of image token $i$ from its bare position embedding $P_i$, and the key of a word from its embedding $e$:
#
# $$M_i(e) = \frac{(W_q P_i + b_q) \cdot (W_k\,\mathrm{MLP}(e) + b_k)}{\sqrt d}.$$
#
# $M$ is an 8 x 8 map of attention logits before any picture exists. It is compared with an ideal ramp $T$ of norm 1
# that rises toward the side the word names: with $\tilde M$ the map without its mean, the *projection* is
# $\langle \tilde M, T \rangle$ in logits and the *cosine* $\langle \tilde M, T \rangle / \lVert \tilde M \rVert$. What all directions have
# in common is subtracted first. As a *control*, the other words (colours, shapes, fillers) take the ramp that fits
# them best. All heads and all words are one product of matrices; nothing is sampled.

# %%
screen = screen_words(dit, encoder, prompts)
screen["strength"] = screen["projection"].abs()
strongest = screen.groupby("word", sort=False)["strength"].idxmax()
best = screen.loc[strongest].set_index("word")
ordered = best.sort_values("strength", ascending=False)[["layer", "head"]]
found = list(dict.fromkeys(ordered.itertuples(index=False, name=None)))
best[["name", "cosine", "projection", "control"]].round(2)

# %%
def on_grid(column: str, how: str = "mean") -> torch.Tensor:
    """A column of the screen, over the words of each head, as [L, H]."""
    values = screen.groupby(["layer", "head"])[column].agg(how).to_numpy()
    return torch.tensor(values).view(len(dit.transformer_blocks), -1).float()

panels = {"strongest word": on_grid("strength", "max"),
          "mean over words": on_grid("strength"), "control words": on_grid("control")}
Captioned(head_grid(panels, "logits", {"relation": found}, columns=3, tall=0.9),
          "Size of the projection on a ramp: the strongest direction word, the mean "
          "over direction words, and the control. Framed are the heads that are the "
          "strongest for some word.",
          "Three heat maps of layers by heads of the projection on ramps.")

# %% [markdown]
# A cosine near 1 is a ramp that rises toward the side that the word names. Near -1 it is as clean, but the wrong way round:
# the head then looks at the other side. The paper has .93 to .98 for all words.

# %%
AXIS = {w: "vertical" if DIRECTIONS[w][1] else "horizontal" for w in best.index}
turned = best.index[best["cosine"] < -0.5].tolist()
straight = best.index[best["cosine"] >= 0.9].tolist()
reads = {head_name(*h): best.index[best["name"] == head_name(*h)].tolist()
         for h in found}
times = best["strength"] / best["control"]
Markdown(f"""
- The cosine is at least .9 for {len(straight)} of {len(best)} words.
- It is below -.5, the wrong way round, for {len(turned)}:
  {', '.join(turned) or 'none'}.
- The projection is {times.min():.1f} to {times.max():.1f} times the control.
""")

# %% [markdown]
# A word stands here for the mean of its vectors over the prompts. Where the encoder mixes the words of a sentence, the mean is
# only a rough guide to what the model reads; so, how much of a direction word's square changes from prompt to prompt?

# %%
spoken = encoder.encode(prompts)
each = project_captions(dit, spoken.embeddings)  # [P, T, D]
def varies(word: str) -> float:
    """Share of a word's mean square that changes from prompt to prompt."""
    x = torch.stack([v[row.index(word)] for v, row in zip(each, spoken.tokens)
                     if word in row])
    return float((x - x.mean(0)).square().sum() / x.square().sum())

most = max(varies(w) for w in best.index)
verdict({f"The mean is the word: at most {100 * most:.1f} % changes, less than 5 %":
         most < 0.05})

# %%
vectors = words(dit, encoder, prompts)
said = [w for w in DIRECTIONS if w in vectors]
others = [w for w in ("circle", "square", "triangle", "red", "blue", "is", "of")
          if w in vectors]

def drawn(chosen: list[str], head: tuple[int, int]) -> torch.Tensor:
    """Maps [R, 8, 8] of words at a head, without their means and what they share."""
    m = qk_maps(dit, torch.stack([vectors[w] for w in chosen]))[head]
    m = m - m.mean((1, 2), keepdim=True)
    return m - m.mean(0)

def figure(head: tuple[int, int]) -> Captioned:
    """The maps of direction and control words at a head."""
    both = torch.cat([drawn(said, head), drawn(others, head)])
    return Captioned(maps(both, [*said, *others], "logits"),
                     f"{head_name(*head)}: the logit that each word gets from each "
                     "place, direction words first, then others.",
                     f"Maps of 8 by 8 places for {len(said)} direction words and "
                     f"{len(others)} other words.")

for head in found[:3]:
    display(figure(head))

# %%
of_readers = screen[screen["name"].isin(reads)]
cosines = of_readers.pivot(index="word", columns="name", values="cosine")
cosines.loc[said, list(reads)].round(2)

# %% [markdown]
# The cosine judges the form of a map, the projection its size. A head may draw a clean ramp for a word which is so
# faint that it decides nothing; the table above therefore goes with the one before.
#
# Do the weights agree with the attention of [chapter 6](06_synopsis.ipynb)? Its synopsis, read from its record:

# %%
some, per_prompt = (prompt_set("96"), 4) if full else (prompt_set("96")[:6], 1)
records = Records("06_synopsis")
seen = ranking(records(synopsis, fast, some, per_prompt, seed + 1))
by_attention = seen[seen["score"] == "relation"].reset_index(drop=True)
place = {h: int(by_attention.index[by_attention["name"] == h][0]) + 1 for h in reads}
order = by_attention.set_index("name")["mean"].reindex(
    [head_name(*h) for h in heads_of(net)])
strengths = pd.Series(on_grid("strength").flatten().numpy())
rank = order.reset_index(drop=True).corr(strengths, method="spearman")
Markdown(f"""
By attention to the relation,
{', '.join(f"{h} is number {n}" for h, n in place.items())} of {len(order)} heads. Over
all heads, the rank correlation of attention with the mean projection is {rank:.2f}.
""")

# %% [markdown]
# ## From a ramp to attention
#
# A ramp of logits is not yet attention: the other words compete. Next, what happens at step 0 in real runs. For each
# direction word, take the mean attention of its own head on that word inside the half of the picture that the word
# names, and outside. Four queries are compared: the bare position embedding; the same plus one constant vector,
# equal at all places; the mean of the stream over pictures; and the real stream with its noise.

# %%
def phrase(word: str) -> str:
    """The shortest training phrase with this word."""
    return min((p for p in PHRASES if word in p.split()), key=lambda p: len(p.split()))

shown = [best.index[best["name"] == h][0] for h in reads] + turned
examples = [f"red square is {phrase(w)} blue circle" for w in shown]
told = examples + prompts[::3] if full else examples + prompts[:8]
reader, streams = Patterns(heads_of(net)), MeanResidual()
latents = run(fast, told, [seed + i for i in range(len(told))], reader, streams)
pictures = fast.vae.decode(latents[:len(examples)])
start = {h: m[:, 0] for h, m in reader.maps.items()}  # step 0: [B, N, T] for each head

# %%
P = positions(dit)                                                     # [N, D]
constant = (streams.mean[found[0][0]] - P).mean(0)                             # [D]
def asked(layer: int) -> dict[str, torch.Tensor]:
    """Patterns [B, H, N, T] of a layer under each kind of query."""
    mean = streams.mean[layer]
    made = {"position": P, "position + constant": P + (mean - P).mean(0),
            "mean stream": mean}
    made = {k: patterns_on_residual(net, told, s, layer) for k, s in made.items()}
    real = torch.stack([start[h] for h in heads_of(net) if h[0] == layer], 1)
    return made | {"real": real}

tokens = encoder.encode(told).tokens
queries = {layer: asked(layer) for layer in {h[0] for h in found}}
axis = torch.linspace(-1, 1, 8)
grid = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), -1)
grid = grid.flatten(0, 1)  # [N, 2] x, y

def halves(word: str, kind: str) -> tuple[float, float]:
    """Mean attention of a word's own head on it inside the half it names and
    outside."""
    layer, head = best.loc[word, ["layer", "head"]]
    inside = grid @ torch.tensor(DIRECTIONS[word]).float() > 0
    at = torch.stack([queries[layer][kind][b, head, :, row.index(word)]
                      for b, row in enumerate(tokens) if word in row])
    return float(at[:, inside].mean()), float(at[:, ~inside].mean())

present = [w for w in best.index if any(w in row for row in tokens)]
kinds = list(queries[found[0][0]])
at_start = pd.DataFrame({(k, side): [halves(w, k)[i] for w in present] for k in kinds
                         for i, side in enumerate(("inside", "outside"))},
                        index=present)
at_start.insert(0, ("", "head"), best["name"].reindex(present))
at_start.round(2)

# %% [markdown]
# The same, as a mean over the words with an upright ramp; the paper has about .9 inside. *Apart* is inside less outside, as a
# share of what it is in the real stream. The mean stream holds no picture; the bare position holds nothing but the place.
# The constant, the mean of what the layers up to this query have added, cannot say where anything is. What it can do is turn a
# head on.

# %%
right = [w for w in present if w not in turned]
by_query = pd.DataFrame({side: [at_start.loc[right, (k, side)].mean() for k in kinds]
                         for side in ("inside", "outside")}, index=kinds)
layer = found[0][0]
apart = by_query["inside"] - by_query["outside"]
by_query["apart"] = apart / apart["real"]
by_query.round(2)

# %%
Markdown(f"""
Words: {len(right)}. Prompts: {len(told)}. The constant has a norm of
{constant.norm():.0f}, the position embedding one of {P.norm(dim=1).mean():.0f}.
""")

# %%
enough = by_query["apart"] > 0.8
verdict({"No picture is needed: the mean stream keeps the halves apart by more than .8 "
         "of the real one": enough["mean stream"],
         "The bare position embedding is enough for that": enough["position"],
         "The position embedding and one constant are enough for that":
         enough["position + constant"]})

# %%
steps = [0, 1, 2, 4, 6, 8, 10, 13]
def history(i: int) -> torch.Tensor:
    """Attention [steps, 8, 8] to the word of example i by its own head."""
    head = tuple(best.loc[shown[i], ["layer", "head"]])
    return reader.maps[head][i, steps, :, tokens[i].index(shown[i])].unflatten(
        -1, (8, 8))

rows = {f"{w} ({best.loc[w, 'name']})": history(i) for i, w in enumerate(shown)}
Captioned(attention_rows(rows, [f"step {s}" for s in steps], "attention", pictures,
                         1.0),
          "Attention to one word by the head that reads it, from noise to picture. "
          "Prompts: " + "; ".join(examples) + ".",
          f"{len(rows)} rows of maps over steps, each with the picture at its end.")

# %% [markdown]
# The half-planes stand from the first step, before there is anything to see, and fade once the picture is decided.
# In a longer phrase, each head picks its word:

# %%
longest = "red square is above and to the left of blue circle"
parts = list(encoder.encode([longest]).tokens[0])
mean_stream = streams.mean[layer]
split = patterns_on_residual(net, [longest], mean_stream, layer)[0]  # [H, N, T]
rows = {head_name(layer, h): split[h].T.unflatten(1, (8, 8))
        for h in range(split.shape[0])}
Captioned(attention_rows(rows, parts, "attention"),
          f"All heads of layer {layer} on the words of \"{longest}\", from the mean "
          "stream at step 0.", "A row of maps a head, a column a word.")

# %% [markdown]
# ## What it writes
#
# Where a head attends to a token it adds $W_o (W_v\,\mathrm{MLP}(e) + b_v)$ to the residual stream. What do direction
# words write? If each wrote its own direction, opposite words should write opposite vectors.

# %%
writes = ov(dit, torch.stack([vectors[w] for w in said]))  # [L, H, R, D]
def alike(head: tuple[int, int]) -> torch.Tensor:
    """Cosines [R, R] between what the words write, without their common part."""
    own = normalize(writes[head] - writes[head].mean(0), dim=1)
    return own @ own.T

Captioned(heatmaps({head_name(*h): alike(h) for h in found[:3]}, said),
          "Cosine between what the direction words write at the relation heads.",
          f"{len(found[:3])} matrices of cosines between {len(said)} words.")

# %%
def between(one: list[str], two: list[str]) -> list[float]:
    """Cosines between words of two lists that one head reads, at that head."""
    same = [(a, b) for a in one for b in two if a != b
            and best.loc[a, "name"] == best.loc[b, "name"]]
    at = {a: alike(tuple(best.loc[a, ["layer", "head"]]))[said.index(a)]
          for a, _ in same}
    return [float(at[a][said.index(b)]) for a, b in same]

sides = {d: [w for w in said if DIRECTIONS[w] == d and w not in turned]
         for d in set(DIRECTIONS.values())}
alike_pairs = [c for words in sides.values() for c in between(words, words)]
apart_pairs = [c for d, words in sides.items()
               for c in between(words, sides[tuple(-x for x in d)])]
turned_pairs = [c for w in turned for c in between([w], sides[DIRECTIONS[w]])]
pairs = {"upright, one meaning": alike_pairs, "upright, opposite": apart_pairs,
         "wrong way round against upright, one meaning": turned_pairs}
cosine = {k: f"{sum(v) / len(v):.2f}" for k, v in pairs.items() if v}
count = pd.Series({k: len(v) for k, v in pairs.items()}, name="pairs at one head")
count.to_frame().assign(cosine=cosine).fillna("none")

# %% [markdown]
# <aside class="margin">
#
# What one head writes changing where a later head looks is *Q-composition* in [Elhage et al.
# (2021)](bibliography.md#elhage2021mathematical).
#
# </aside>
#
# A cosine does not say what a vector *means*. For that, ask who reads it. Through the residual stream it moves the query
# of a later head; PixArt's cross-attention has no norm before it, so that the effect on a logit is exact for the straight
# path. The question to each later head: does what was written make it prefer shape 1 or shape 2?
#
# $$\theta = \frac{(W_q\, w)\cdot W_k (m_1 - m_2)}{\sqrt d},$$
#
# with $w$ the written vector and $m_1 - m_2$ the difference of the two shape words, averaged over prompts (so that it
# is about first against second, not about squares).

# %%
keys = shape_keys(dit, encoder, prompts)  # [P, 2, D]
def tags(net: torch.nn.Module, head: tuple[int, int], vectors: dict,
         keys: torch.Tensor) -> torch.Tensor:
    """Effect [L, H, R] of a head's writes on every head's choice of shape 1 over 2."""
    written = ov(net, torch.stack([vectors[w] for w in said]))[head]
    effect = qk_composition(net, written, keys.mean(0))
    effect = effect[..., 0] - effect[..., 1]
    effect[:head[0] + 1] = 0  # only later layers can read it
    return effect

tag = {h: tags(dit, h, vectors, keys) for h in found}
readers = {f"written by {head_name(*h)}": t.abs().mean(-1) for h, t in tag.items()}
total = sum(readers.values())
receiver = divmod(int(total.argmax()), total.shape[1])
Captioned(head_grid(readers, "logits", {"object": [receiver]}, tall=0.9),
          "Who reads it: mean size, over direction words, of the effect on each head's "
          "choice between shape 1 and shape 2.",
          f"{len(readers)} heat maps of layers by heads.")

# %%
by_object = seen[seen["score"] == "object"]["name"].iloc[0]
second = total.flatten().topk(2).values
Markdown(f"""
The reader is {head_name(*receiver)}, with a mean effect of
{float(second[0]) / len(found):.1f} logits; the next head has
{float(second[1]) / len(found):.1f}. No picture was needed to find it.
""")

# %%
verdict({f"It is the head that the synopsis calls the object head, {by_object}":
         by_object == head_name(*receiver)})

# %%
def signs(head: tuple[int, int]) -> pd.DataFrame:
    """Ramp and tag of every word at a head."""
    of_head = screen[screen["name"] == head_name(*head)].set_index("word")
    ramp = of_head["projection"].reindex(said)
    return pd.DataFrame({"x": ramp, "y": tag[head][receiver].tolist()})

points = {head_name(*h): signs(h) for h in found}
Captioned(scatter(points, "ramp toward the named side (logits)",
                  "tag: shape 1 over shape 2 (logits)"),
          "Each word at each relation head: which way its ramp rises, and what it "
          "writes. Right: the head attends on the named side, left: on the other. "
          "Above: it writes \"shape 1 belongs here\", below: \"shape 2\".",
          "Scatter plot of tag against ramp; nearly all large values lie in the lower "
          "left and the upper right.")

# %% [markdown]
# If a relation head wrote *up* or *down*, opposite words would write opposite vectors. It may as well write a **tag**: shape 1
# belongs here, or shape 2 belongs here, whichever side the word names. Then the ramp says where, the tag says which, and only
# their product counts. A head that attends on the side the word does not name, and writes there that shape 2 belongs here,
# does as well as one that attends on the side it names and writes the tag of shape 1. The paper's measure, the ramp alone,
# counts it as a failure.
#
# The words at the heads that read them. *Pictures*: how many of those that say the word show its relation.

# %%
own = pd.Series({w: points[best.loc[w, "name"]].loc[w, "y"] for w in said})
met = score(fast.vae.decode(latents), told)["loose"]
says = {w: met[[w in row for row in tokens]] for w in said}
table = best.loc[said, ["name", "projection"]].set_axis(["head", "ramp"], axis=1)
table["tag"] = own
table["same sign"] = table["ramp"] * table["tag"] > 0
table["pictures"] = [f"{int(r.sum())} of {len(r)}" for r in says.values()]
table.round(1)

# %%
every = pd.concat(points)
large = every[every["x"].abs() > screen["control"].median()]
agree = (large["x"] * large["y"] > 0)
verdict({"What a relation head writes works as a tag: ramp and tag have the same sign "
         f"for {int(agree.sum())} of {len(agree)} pairs of head and word whose ramp is "
         "larger than the median control, more than .8": agree.mean() > 0.8,
         f"Each of the {len(turned)} words whose ramp is the wrong way round writes "
         "the tag of shape 2": (own[turned] < 0).all()})

# %% [markdown]
# ## All phrases at once
#
# Put together: at step 0, take the relation heads' patterns under the mean stream, what they write, and what the
# object head makes of it by the straight path. This predicts a map of "shape 1 over shape 2" for every prompt from
# the weights and one mean vector a place. Is it a ramp for all phrases, and does it agree with the object head's real
# choice, $\log A_{\text{shape 1}} - \log A_{\text{shape 2}}$?

# %%
text = encoder.encode(told)
embedded = project_captions(dit, text.embeddings)
told_keys = shape_keys(dit, encoder, told)
senders = [h for h in found if h[0] < receiver[0]]
written = [head_writes(dit, embedded, queries[h[0]]["mean stream"][:, h[1]], h)
           for h in senders]
predicted = logit_shift(dit, sum(written), told_keys, receiver)
predicted = predicted.unflatten(1, (8, 8))  # [B, 8, 8]

roles = [[r.index(f"shape{k}") for r in text.roles] for k in (1, 2)]
logs = (start[receiver] + 1e-6).log()  # [B, N, T]
chosen = torch.stack([logs[b, :, i] - logs[b, :, j]
                      for b, (i, j) in enumerate(zip(*roles))]).unflatten(1, (8, 8))

# %%
relation = [parse(p).relation for p in told]
def fits(values: torch.Tensor) -> pd.Series:
    """Cosine of maps with the ramps of their relations, a mean for each phrase."""
    each = [float(ramps(m[None], OFFSETS[[r]].float(), center=False)["cosine"])
            for m, r in zip(values, relation)]
    phrases = [PHRASES[parse(p).phrase] for p in told]
    return pd.Series(each).groupby(phrases, sort=False).mean()

each = {"predicted": fits(predicted), "real": fits(chosen)}
match = torch.corrcoef(torch.stack([predicted.flatten(), chosen.flatten()]))[0, 1]
slope = (predicted * chosen).sum() / chosen.square().sum()
first = {r: relation.index(i) for i, r in enumerate(RELATIONS) if i in relation}
titles = [fill(PHRASES[parse(told[i]).phrase], 11) for i in first.values()]
scaled = {"predicted": predicted / predicted.std(), "real": chosen / chosen.std()}
Captioned(attention_rows({k: v[list(first.values())] for k, v in scaled.items()},
                         titles, "deviations"),
          f"Shape 1 over shape 2 at {head_name(*receiver)} at step 0, one prompt a "
          "relation: predicted from weights, and real. Each row in units of its "
          "standard deviation.",
          "Two rows of maps: predicted and real; the real ones are the predicted ones "
          "with noise.")

# %%
Markdown(f"""
For {len(each['predicted'])} phrases the predicted map has a cosine of
{each['predicted'].min():.2f} to {each['predicted'].max():.2f} with the ramp of the
relation, diagonals and reversed words included; the real one {each['real'].min():.2f}
to {each['real'].max():.2f}. Predicted and real values correlate with {float(match):.2f}
over all places and prompts. Their size differs: the straight path gives
{float(slope):.0%} of it. The difference must come from the MLPs and self-attention in
between, and [chapter 9](09_ablation.ipynb) tests whether the straight part alone would
do.
""")

# %% [markdown]
# ## How many directions
#
# A head's query-key form $W_q^\top W_k$ and its map $W_o W_v$ could use as many directions as the head is wide. The
# ramps need two, one an axis. The table says how many hold 80 % of the squared norm.

# %%
singular = spectra(dit)  # [L, H, d] each
energy = {kind: (s ** 2 / (s ** 2).sum(-1, keepdim=True)).cumsum(-1)
          for kind, s in singular.items()}
needed = {kind: {h: int((e[h] < 0.8).sum()) + 1 for h in heads_of(net)}
          for kind, e in energy.items()}
heads = pd.DataFrame({kind: {head_name(*h): n[h] for h in found}
                      for kind, n in needed.items()})
heads.loc["median of the others"] = {kind: pd.Series(n).drop(found).median()
                                     for kind, n in needed.items()}
heads = heads.astype(int)
heads.rename_axis(f"of {singular['QK'].shape[-1]}")

# %% [markdown]
# ## When the circuit forms
#
# Training left snapshots of the cross-attention weights, of which those are shipped between which the circuit forms; the last
# point is the finished model. All that was done above without sampling can be done to each:
# the ramp of every word at the head that reads it in the end, and the tag that it writes for the object head. Their
# signs must agree. Beside them, the accuracy of the pictures from the log.

# %%
try:
    saved = snapshots(dit, net.folder)
except ValueError:
    saved = {}
log = pd.DataFrame(read_log(net.folder / "log.jsonl")) if saved else pd.DataFrame()
if saved:
    saved[int(log["step"].iloc[-1])] = dit

def stage(snapshot: torch.nn.Module) -> pd.DataFrame:
    """Cosine and tag of each word at its head, in a snapshot of the training."""
    table = screen_words(snapshot, encoder, prompts)
    table = table.set_index(["name", "word"])["cosine"]
    vectors = words(snapshot, encoder, prompts)
    keys = shape_keys(snapshot, encoder, prompts)
    effect = {head_name(*h): tags(snapshot, h, vectors, keys)[receiver] for h in found}
    return pd.DataFrame({w: {"cosine": table[best.loc[w, "name"], w],
                             "tag": float(effect[best.loc[w, "name"]][i])}
                         for i, w in enumerate(said)})

stages = {step: stage(s) for step, s in saved.items()}
seen_at = dict(zip(log["step"], log["images"])) if saved else {}
ramp = pd.DataFrame({seen_at[s]: t.loc["cosine"] for s, t in stages.items()}).T
tag_at = pd.DataFrame({seen_at[s]: t.loc["tag"] for s, t in stages.items()}).T

# %%
panel = ({"ramp (cosine)": ramp,
          "tag (share of its largest)": tag_at / tag_at.abs().max()} if saved else {})
formed = Markdown("This model has no snapshots of its training, so there is nothing to "
                  "show here; `train --evaluate-every` keeps them.")
if saved:
    formed = Captioned(lines(panel, "images seen", "", ylim=(-1.05, 1.05)),
                       "Every direction word at the head that reads it in the end: its "
                       "ramp and the tag it writes for the object head, by snapshot.",
                       "Two line plots over training: cosines, and tags, of each "
                       "direction word.")
formed

# %%
if saved:
    metrics = log.dropna(subset=["loose"]).set_index("images")[["shape", "loose"]]
    size = tag_at.abs().mean(axis=1)
    together = {"ramp of upright words": ramp.drop(columns=turned).mean(axis=1),
                "signs that agree": ((ramp * tag_at) > 0).mean(axis=1),
                "size of the tag": size / size.max()}
    circuit = pd.DataFrame(together).join(metrics, how="outer")
    formed = Captioned(lines(circuit, "images seen", "", ylim=(None, 1.05)),
                       "The circuit in the weights and the accuracy of the pictures: "
                       "mean cosine of the upright words, share of words whose ramp "
                       "and tag have the same sign, mean size of the tag as a share of "
                       "its largest; share of pictures with the right shapes and "
                       "relation.",
                       "Five curves over training: three of the weights, two of the "
                       "pictures.")
formed if saved else Markdown("No snapshots.")

# %% [markdown]
# When does each curve first pass half? And for a word whose ramp ends the wrong way round: when do its tag and its ramp first
# fall below 0? The loss sees only the product of the two, so that once one has changed its sign the other has to follow; which
# way round a word ends may be an accident of the run. Counts are of images, at the snapshots.

# %%
def first_at(curve: pd.Series, reached: pd.Series) -> str:
    """The number of images at which something is reached first."""
    return f"{curve.index[reached][0]:,}" if reached.any() else "never"

curves = {k: c.dropna() for k, c in circuit.items()} if saved else {}
half = pd.Series({k: first_at(c, c > 0.5) for k, c in curves.items()}, dtype=str)
half.rename("passes half").to_frame()

# %%
signs_at = {"tag": tag_at, "ramp": ramp} if saved else {}
crossed = pd.DataFrame({k: {w: first_at(f[w], f[w] < 0) for w in turned}
                        for k, f in signs_at.items()}, index=turned)
crossed.rename_axis("first below 0")

# %%
early = {k: c.index[c > 0.5].min() for k, c in curves.items()}
before = bool(saved) and early["ramp of upright words"] < early["loose"]
verdict({"The weights show the ramp before the pictures show the relation":
         before if saved else None})

# %% [markdown]
# ## What was established

# %%
good = {w: abs(best.loc[w, "cosine"]) >= 0.9 for w in said}
inside, outside = by_query["inside"], by_query["outside"]
Markdown(f"""
- C6, *form*: {sum(good.values())} of {len(good)} direction words draw a ramp with
  |cosine| of at least .9 on the bare position embedding, {len(straight)} of them toward
  the side they name. Heads that read them:
  {'; '.join(f"{h} ({', '.join(sorted({AXIS[w] for w in words}))})" for h, words
  in reads.items())}.
- C6, *no image*: attention at step 0 is {inside['real']:.2f} inside the named half and
  {outside['real']:.2f} outside. The bare embedding gives {inside['position']:.2f}, the
  same with one constant vector {inside['position + constant']:.2f}.
- Who reads what is written: {head_name(*receiver)}. Ramp and tag have the same sign for
  {int(agree.sum())} of {len(agree)} pairs of head and word.
- From weights and a mean stream, the object head's choice at step 0 is predicted with a
  correlation of {float(match):.2f}.

Not established: that pictures depend on these heads ([chapter 9](09_ablation.ipynb)),
and that another training run finds the same ones.
""")

# %% [markdown]
# ## Exercise
#
# Take the strongest head's map of *upper* minus that of *lower*. Is it a vertical ramp, from the weights alone?
#
# :::{admonition} Solution
# :class: dropdown
#
# ```python
# screened = screen_words(dit, encoder, prompts)
# top = screened.loc[screened["projection"].abs().idxmax()]
# spoken = words(dit, encoder, prompts)
# pair = torch.stack([spoken["upper"], spoken["lower"]])
# upper, lower = qk_maps(dit, pair)[int(top["layer"]), int(top["head"])]  # [8, 8] each
# height = (upper - lower).mean(1)  # by row, from the top
# line = torch.stack([height, -torch.arange(8.0)])
# assert abs(torch.corrcoef(line)[0, 1]) > 0.9
# ```
#
# It falls from the top to the bottom, nearly on a line and bent back a little at the edges. From bare positions, before there
# is any picture, the two words send this head to opposite sides.
# :::
