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

# %%
AXIS = {w: "vertical" if DIRECTIONS[w][1] else "horizontal" for w in best.index}
turned = best.index[best["cosine"] < -0.5].tolist()
straight = best.index[best["cosine"] >= 0.9].tolist()
reads = {head_name(*h): best.index[best["name"] == head_name(*h)].tolist()
         for h in found}
wrong = ", ".join(f"{w} ({best.loc[w, 'cosine']:.2f})" for w in turned)
Markdown(f"""
For each direction word, the head with the largest projection:
{'; '.join(f"**{h}** reads {', '.join(w)}" for h, w in reads.items())}. The cosine is at
least .9 for {len(straight)} of {len(best)} words (paper: .93 to .98 for all); the
projection is {(best['strength'] / best['control']).min():.1f} to
{(best['strength'] / best['control']).max():.1f} times the control.
{f"But the ramp is the wrong way round for {wrong}" if turned else
'No word draws its ramp the wrong way round'}.
""")

# %%
spoken = encoder.encode(prompts)
each = project_captions(dit, spoken.embeddings)  # [P, T, D]
def varies(word: str) -> float:
    """Share of a word's mean square that changes from prompt to prompt."""
    x = torch.stack([v[row.index(word)] for v, row in zip(each, spoken.tokens)
                     if word in row])
    return float((x - x.mean(0)).square().sum() / x.square().sum())

most = max(varies(w) for w in best.index)
mixed = ("the encoder mixes the words of a sentence, and the mean is a rough guide to "
         "what the model reads")
Markdown(f"""
A word stands here for the mean of its vectors over {len(prompts)} prompts. At most
{most:.1%} of a direction word's square changes from prompt to prompt:
{"the mean is the word" if most < 0.05 else mixed}.
""")

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

# %%
right = [w for w in present if w not in turned]
inside = {k: at_start.loc[right, (k, "inside")].mean() for k in kinds}
outside = {k: at_start.loc[right, (k, "outside")].mean() for k in kinds}
layer = found[0][0]
bare = queries[layer]["position"][:, found[0][1]].mean(1)                      # [B, T]
apart = {k: inside[k] - outside[k] for k in kinds}
kept = {k: "holds" if apart[k] > 0.8 * apart["real"] else "does not hold"
        for k in kinds}
winners = pd.Series([encoder.encode([p]).tokens[0][int(a.argmax())]
                     for p, a in zip(told, bare)]).value_counts()
Markdown(f"""
At step 0, where no image exists, the {len(right)} words with an upright ramp get
{inside['real']:.2f} of their head's attention inside the half they name and
{outside['real']:.2f} outside it, over {len(told)} prompts. The paper has about .9. That
no picture is needed **{kept['mean stream']}**: the stream averaged over all noises
gives {inside['mean stream']:.2f} and {outside['mean stream']:.2f}. That the bare
position embedding is enough **{kept['position']}** for attention, whatever the form of
its ramp: by itself it gives the word {inside['position']:.2f}, and most attention goes
to another token ("{winners.index[0]}" in {winners.iloc[0]} of {len(told)} prompts). Now
add one vector, the same at all places and for all prompts, the mean of what the layers
up to this query have added (norm {constant.norm():.0f}; the embedding's is
{P.norm(dim=1).mean():.0f}). Attention inside is then
{inside['position + constant']:.2f}. A constant cannot say where anything is: it turns
the head on, and the position embedding does the rest.
""")

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
def average(values: list[float]) -> str:
    """Mean of some cosines."""
    return f"{sum(values) / len(values):.2f}" if values else "none at the same head"

reversed_text = (f"And {', '.join(turned)}, with the ramp the wrong way round, against "
                 f"upright words of the same meaning: {average(turned_pairs)}.")
Markdown(f"""
Mean cosine of upright words of one meaning: {average(alike_pairs)}; of opposite words:
{average(apart_pairs)}.
{reversed_text if turned else ''}
""")

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
agrees = ("which is also the synopsis' object head" if by_object == head_name(*receiver)
          else f"while the synopsis names {by_object}")
Markdown(f"""
The reader is **{head_name(*receiver)}** with a mean effect of
{float(second[0]) / len(found):.1f} logits (the next head:
{float(second[1]) / len(found):.1f}), {agrees}. No picture was needed to find it.
""")

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

# %%
every = pd.concat(points)
large = every[every["x"].abs() > screen["control"].median()]
agree = (large["x"] * large["y"] > 0)
own = pd.Series({w: points[best.loc[w, "name"]].loc[w, "y"] for w in said})
turned_text = '; '.join(
    f"{w} (ramp {best.loc[w, 'projection']:+.1f}, tag {own[w]:+.1f})" for w in turned)
upright = [own[w] for w in said if w not in turned]
met = score(fast.vae.decode(latents), told)
right_at = {w: met.loc[[w in row for row in tokens], "loose"] for w in turned}
obeyed = ' and '.join(f"{int(r.sum())} of {len(r)} pictures that say {w}"
                      for w, r in right_at.items())
story = "It does not explain what is the wrong way round." if turned else ""
if turned and all(own[w] < 0 for w in turned):
    story = f"""This explains what is the wrong way round: {turned_text}. The head
attends on the side that the word does not name and writes there that shape 2 belongs
here, which is as good: the relation is right in {obeyed}. The paper's measure, the ramp
alone, counts such a word as a failure."""
lead = ("So a relation head does not write *up* or *down*. What it writes works"
        if agree.mean() > 0.8
        else "What is written does not go with the ramp often enough to work")
Markdown(f"""
{lead} as a **tag**: shape 1 belongs here, or shape 2 belongs here.
{sum(u > 0 for u in upright)} of {len(upright)} words on an upright ramp write the tag
of shape 1 ({', '.join(f'{w} {own[w]:+.1f}' for w in said if w not in turned)}), whether
they name the upper or the lower side: the ramp says where, the tag says which. Only the
product counts, and it has the right sign for {int(agree.sum())} of {len(agree)} pairs
of head and word whose ramp is larger than the median control. {story}
""")

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
# ramps need two, one an axis.

# %%
singular = spectra(dit)  # [L, H, d] each
energy = {kind: (s ** 2 / (s ** 2).sum(-1, keepdim=True)).cumsum(-1)
          for kind, s in singular.items()}
needed = {kind: {h: int((e[h] < 0.8).sum()) + 1 for h in heads_of(net)}
          for kind, e in energy.items()}
typical = {kind: pd.Series(n).drop(found).median() for kind, n in needed.items()}
Markdown(f"""
Directions for 80 % of the squared norm:
{'; '.join(f"{head_name(*h)} {needed['QK'][h]} (QK) and {needed['OV'][h]} (OV)" for h in
found)}; median of the other heads {typical['QK']:.0f} and {typical['OV']:.0f}, of
{singular["QK"].shape[-1]}.
""")

# %% [markdown]
# ## When the circuit forms
#
# Training left snapshots of the cross-attention weights. All that was done above without sampling can be done to each:
# the ramp of every word at the head that reads it in the end, and the tag that it writes for the object head. Their
# signs must agree. Beside them, the accuracy of the pictures from the log.

# %%
try:
    saved = snapshots(dit, net.folder)
except ValueError:
    saved = {}
log = pd.DataFrame(read_log(net.folder / "log.jsonl")) if saved else pd.DataFrame()

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
    formed = Captioned(lines(circuit, "images seen", "", ylim=(-0.05, 1.05)),
                       "The circuit in the weights and the accuracy of the pictures: "
                       "mean cosine of the upright words, share of words whose ramp "
                       "and tag have the same sign, mean size of the tag as a share of "
                       "its largest; share of pictures with the right shapes and "
                       "relation.",
                       "Five curves over training: three of the weights, two of the "
                       "pictures.")
formed if saved else Markdown("No snapshots.")

# %%
def passes(curve: pd.Series, level: float = 0.5) -> str:
    """The number of images after which a curve is above a level."""
    above = curve.dropna()[curve.dropna() > level]
    return f"{above.index[0]:,.0f}" if len(above) else "never"

def crossing(word: str) -> str:
    """When a turned word's tag and ramp become negative."""
    when = {k: int(f[f[word] < 0].index.min())
            for k, f in (("tag", tag_at), ("ramp", ramp))}
    first = min(when, key=when.get)
    other = f", its {'ramp' if first == 'tag' else 'tag'} after {max(when.values()):,}"
    and_other = ", ramp and tag alike" if when["tag"] == when["ramp"] else other
    return (f"the {first} of {word} is first below 0 after {when[first]:,} images"
            + and_other)

apart = ramp.index.to_series().diff() if saved else None
half = {k: c.dropna().gt(0.5).idxmax() for k, c in circuit.items()} if saved else {}
early = saved and half["ramp of upright words"] < half["loose"]
both = [w for w in turned if saved and (tag_at[w] < 0).any()]
flipped = f"""And {'; '.join(crossing(w) for w in both)}. The loss sees only the product
of the two, so that once one has changed its sign the other has to follow; which way
round a word ends may be an accident of the run.""" if both else ""
Markdown(f"""
Half is passed by the mean ramp after {passes(circuit['ramp of upright words'])} images,
by the size of the tag after {passes(circuit['size of the tag'])}, by *shape* after
{passes(circuit['shape'])} and by *loose* after {passes(circuit['loose'])} (snapshots
{apart.min():,.0f} to {apart.max():,.0f} images apart). At the first snapshot the ramps
have a cosine of {circuit['ramp of upright words'].dropna().iloc[0]:.2f} and loose is
{metrics['loose'].loc[:ramp.index[0]].iloc[-1]:.2f}:
{"the weights show the ramp before the pictures show the relation" if early else
"ramp and relation come together"}. {flipped}
""" if saved else "Without snapshots the order of events is not known.")

# %% [markdown]
# ## What was established

# %%
good = {w: abs(best.loc[w, "cosine"]) >= 0.9 for w in said}
Markdown(f"""
- C6, *form*: {sum(good.values())} of {len(good)} direction words draw a ramp with
  |cosine| of at least .9 on the bare position embedding, {len(straight)} of them toward
  the side they name. Not one head does it but {len(found)}:
  {'; '.join(f"{h} for {', '.join(sorted({AXIS[w] for w in words}))} words" for h, words
  in reads.items())}.
- C6, *no image*: attention at step 0 is {inside['real']:.2f} inside the named half and
  {outside['real']:.2f} outside. The bare embedding gives {inside['position']:.2f}, the
  same with one constant vector {inside['position + constant']:.2f}.
- What is written is a tag, *shape 1 here* or *shape 2 here*, read by
  {head_name(*receiver)}. Ramp and tag have the same sign for {int(agree.sum())} of
  {len(agree)} pairs of head and word.
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
