# %% [markdown]
# # 2. Text encoders
#
# **What does the transformer get to read?** Not a sentence but a list of vectors, one a token. What a vector holds
# decides what the network behind it has to do. If it names a word and a place and nothing more, the network must
# combine *red*, *square*, *above* and *circle* by itself. If the encoder has already mixed the words, each token may
# carry the whole sentence, and the network can pick up the relation wherever it likes.
#
# This chapter looks at both kinds before any picture is made. The later chapters find two mechanisms, one for each.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 0
scale: str = "full"  # smoke | full

# %%
import inspect
import json

import pandas as pd
import torch
import transformers
from IPython.display import Markdown
from tqdm import tqdm

from spatial_circuits.analyses.embeddings import (
    CAPTION_POSITIONS,
    corpus,
    cosines,
    displacement,
    linear_probe,
    position_parts,
    retellings,
)
from spatial_circuits.book.data_figures import token_roles
from spatial_circuits.book.figures import ENCODER_COLORS, Captioned, bars, heatmaps
from spatial_circuits.book.verdict import verdict
from spatial_circuits.claims.claims import folder_of
from spatial_circuits.data.captions import RELATIONS, captions
from spatial_circuits.data.scenes import sample_scenes
from spatial_circuits.text.batch import NORM
from spatial_circuits.text.encoders import encoder
from spatial_circuits.text.random_tokens import RandomTokenEncoder, sinusoid
from spatial_circuits.text.roles import of_role, token_of_role

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

# %% [markdown]
# ## Tokens and their roles
#
# Every encoder answers the same call: prompts in; embeddings, mask, tokens and **roles** out. A token's role (first
# colour, first shape, relation, ...) is found by aligning its characters with the parsed prompt, so that *shape2* is
# the same word for an encoder that splits words into pieces or puts a start token in front.
#
# * `rte`: **random token embeddings**, one fixed random vector a word, plus a code for its place in the sentence.
# * `rte-nopos`: the same without the code. Nothing tells it which word came first.
# * `t5-untrained`: a T5 encoder ([Raffel et al., 2020](bibliography.md#raffel2020t5)) with random weights. Its tokens look at each other, yet
#   it has learned nothing.
# * `minilm`: a small pretrained sentence encoder ([Wang et al., 2020](bibliography.md#wang2020minilm)), standing in for the paper's T5-XXL, which
#   needs a download of many gigabytes. Any T5 or CLIP encoder ([Radford et al., 2021](bibliography.md#radford2021clip)) can be named in its place: `encoder("t5", name="google/t5-v1_1-small")`.

# %%
names = ["rte", "rte-nopos", "t5-untrained", "minilm"]
# options of the encoder that the shipped model was trained with
trained = folder_of(model) / "text.json"
text = (json.loads(trained.read_text()) if trained.exists()
        else {"name": "rte", "options": {}})
encoders = {name: encoder(name, **(text["options"] if name == text["name"] else {}))
            for name in tqdm(names)}
rte = encoders["rte"]

# %%
prompt = "red triangle is diagonally up and left from blue square"
shown = {name: encoders[name].encode([prompt]) for name in names}
Captioned(token_roles(shown),
                "One prompt as four encoders see it, coloured by role. MiniLM adds a "
                "start token and splits a word in two; the roles stay with the words.")

# %%
try:
    rte.encode(["red hexagon is above blue circle"])
except ValueError as error:
    print(error)

# %% [markdown]
# A random-token encoder has no vector for a word outside its vocabulary, so it says so. A pretrained encoder accepts
# any word; whether the model behind it can use the word is another matter.

# %% [markdown]
# ## Random tokens
#
# The vector of the token at place $j$ with the word $w_j$ is
#
# $$ e_j = u_{w_j} + p_j, \qquad p_{j, 2m} = \sin\bigl(j\, b^{-2m/D}\bigr), \quad p_{j, 2m+1} = \cos\bigl(j\, b^{-2m/D}\bigr), $$
#
# with $u_w$ random and $p_j$ the sinusoidal position code with base $b$, scaled to the same mean norm. Two random
# directions in $D$ dimensions are nearly orthogonal, with cosines around $1/\sqrt{D}$, so the words start as equals:
# *above* is no closer to *below* than to *circle*.

# %%
words = list(rte.vocabulary[2:])
word_cosines = cosines(rte.table[2:])
off = word_cosines[~torch.eye(len(words), dtype=torch.bool)]
Captioned(heatmaps({"words of the random table": word_cosines}, words),
                "Cosines between the word vectors: nothing but noise off the diagonal, "
                "so no word is related to another.")

# %% tags=["remove-input"]
Markdown(f"""The {len(words)} words live in {rte.dim} dimensions. Every vector has norm
{rte.table.norm(dim=1).mean():.1f}, the paper's choice to match T5. Cosines between
different words scatter around {off.mean():.3f} with standard deviation {off.std():.3f},
where $1/\\sqrt{{D}}$ = {rte.dim ** -0.5:.3f}; the largest is {off.max():.2f}.""")

# %% [markdown]
# ## The position code is a weak signal
#
# With words alone, *red square above blue circle* and *blue circle above red square* are the same set of vectors, and
# cross-attention treats its input as a set. Only $p_j$ tells them apart. How much of $p_j$ differs from place to place?
# Split it into its mean over the places that captions use and the rest:
#
# $$ p_j = \bar p + (p_j - \bar p). $$
#
# $\bar p$ is added to every token alike and says nothing. The base $b$ sets how fast the sinusoids turn: with a large
# one most dimensions hardly move over the length of a caption.

# %%
declared = inspect.signature(RandomTokenEncoder).parameters
default = {name: p.default for name, p in declared.items()}
base, center = (({**default, **text["options"]})[name] for name in ("base", "center"))
codes = {"base 10,000 (paper)": sinusoid(20, rte.dim, 10_000),
         "base 100": sinusoid(20, rte.dim, 100),
         "base 100, centred": sinusoid(20, rte.dim, 100, center=True)}
Captioned(heatmaps({name: cosines(code[:CAPTION_POSITIONS])
                                for name, code in codes.items()},
                               range(CAPTION_POSITIONS)),
                "Cosines between the position codes of the places in a caption. The "
                "paper's code is nearly the same vector everywhere; a shorter base and "
                "a centred code tell the places apart.")

# %% tags=["nbval-check-output"]
compared = codes | {f"`{model}` here": rte.position}
parts = pd.DataFrame({name: position_parts(code) for name, code in compared.items()}).T
parts.round(2)

# %% tags=["remove-input"]
paper, ours = parts.iloc[0], parts.iloc[-1]
Markdown(f"""Of the paper's code, with norm {paper["norm"]:.1f}, a part of norm
{paper["common"]:.1f} is common to all places and only {paper["specific"]:.1f} depends
on the place: {paper["share"]:.0%} of the squared norm. Neighbouring places have cosine
{paper["neighbour"]:.2f}. Against a word of norm {NORM}, which word it is weighs
{(NORM / paper["specific"]) ** 2:.1f} times as much, in squared norm, as where it
stands.

The code of the encoder of `{model}` has base {base:,.0f} (its mean removed: {center});
{ours["share"]:.0%} of its squared norm depends on the place, neighbours have cosine
{ours["neighbour"]:.2f}.""")

# %% tags=["remove-input"]
verdict({"It is the paper's own code, with base 10,000 and added as it is":
         (base, center) == (10_000, False)})

# %% [markdown]
# Another base, and a mean that is removed, make order easier to learn.

# %% [markdown]
# That order is weak in the input is no proof that it is slow to learn. The experiments of chapter 4 take that up: a model on
# random tokens first learns everything but the order.

# %% [markdown]
# ## What *contextual* means
#
# Take the word of the second shape and change the caption everywhere else. Does its vector move? For prompts $c$ and
# $c'$ that share the word, measure the distance relative to its norm,
#
# $$ \frac{\lVert e_{\text{shape2}}(c) - e_{\text{shape2}}(c') \rVert}{\overline{\lVert e_{\text{shape2}} \rVert}}. $$

# %%
count = {"smoke": 40, "full": 400}[scale]
# both colours spoken
told = sample_scenes(torch.arange(count), seed,
                     named=torch.ones(count, 2, dtype=torch.bool))
for name, (changed_scene, _) in retellings(told[0]).items():
    print(f"{name:18} {captions(told[0])[0]}  ->  {captions(changed_scene)[0]}")

# %%
moved = {name: displacement(encoders[name], told) for name in tqdm(names)}
mean = pd.DataFrame({name: frame.mean() for name, frame in moved.items()})
low, high = (pd.DataFrame({name: frame.quantile(q) for name, frame in moved.items()})
             for q in (0.05, 0.95))
Captioned(bars(mean, low, high, "relative distance", ENCODER_COLORS),
                "How far the vector of the second shape's word moves when the rest of "
                "the caption changes. Bars: mean; whiskers: 5th to 95th percentile of "
                "the captions.")

# %% tags=["remove-input"]
m = mean
Markdown(f"""Reverse the relation and a random token stays exactly where it was
({m.loc["relation reversed", "rte"]:.2f}); in MiniLM the word moves by
{m.loc["relation reversed", "minilm"]:.2f} of its norm, in an untrained T5 by
{m.loc["relation reversed", "t5-untrained"]:.2f}. **That is what contextual means: the
vector of *circle* differs with what the circle is above or below.** Pretraining is not
needed for it, only layers in which tokens look at each other.

The last two groups show place. Without the first colour all later words move up by one,
which shifts a random token by {m.loc["colour dropped", "rte"]:.2f}; told in the other
order, the same word stands elsewhere, and it moves by
{m.loc["objects swapped", "rte"]:.2f}. Without the position code neither matters
({m.loc["objects swapped", "rte-nopos"]:.2f}): this encoder cannot say which object came
first.""")

# %% [markdown]
# ## Can the relation be read from the second shape's word?
#
# That a vector moves does not mean that it moves in a way one can use. So fit the simplest reader, a linear map from
# the word's vector to the eight relations (ridge regression on one-hot labels), and test it on captions it has not
# seen: once with a pair of shapes that was held out, once with a wording that was held out, such as *directly above*
# after *above* and *higher than*.

# %%
table = corpus()
label, pair, wording = (torch.tensor(table[c].to_numpy())
                        for c in ("relation", "pair", "wording"))
states = {name: e.encode(table["caption"].tolist()) for name, e in encoders.items()}
at = token_of_role(states["rte"], "shape2")
place = torch.nn.functional.one_hot(at).float()  # [B, places]
sources = {"place alone": place,
           **{name: of_role(batch, "shape2") for name, batch in states.items()}}

# %%
held = {"unseen objects": pair, "unseen wording": wording}
read = {name: {how: linear_probe(x, label, group) for how, group in held.items()}
        for name, x in tqdm(sources.items())}
accuracy, least, most = (pd.DataFrame({n: {h: getattr(r, what) for h, r in by.items()}
                                       for n, by in read.items()})
                         for what in ("accuracy", "low", "high"))
Captioned(bars(accuracy, least, most, "probe accuracy",
                           {"place alone": "#4D4D4D", **ENCODER_COLORS},
                           lines={"chance": 1 / len(RELATIONS)}),
                "Relation read by a linear probe from the second shape's word, with 95 "
                "% bootstrap intervals over captions.")

# %% tags=["remove-input"]
a = accuracy.loc["unseen objects"]
b = accuracy.loc["unseen wording"]
Markdown(f"""With chance at {1 / len(RELATIONS):.3f}, the probe reaches
{a["t5-untrained"]:.2f} on the untrained T5's word and {a["minilm"]:.2f} on MiniLM's for
unseen objects, from {len(table):,} captions. The random token gives {a["rte"]:.2f},
which sounds like more than nothing. It is: phrases differ in length, so the *place* of
the second shape betrays something about the relation, and a probe that is told the
place alone gets {a["place alone"]:.2f}. It never tells *above* from *below*.

For an unseen wording all figures fall: {b["t5-untrained"]:.2f} for the untrained T5,
{b["minilm"]:.2f} for MiniLM. What the shape's word carries is largely a trace of the
words around it. Meaning that survives a change of wording is a smaller part of it, and
the part for which pretraining helps.""")

# %% tags=["remove-input"]
Markdown(f"""## What was established

* A random token says which word and which place, and nothing of its neighbours:
  reversing the relation moves the second shape's word by
  {m.loc["relation reversed", "rte"]:.2f}.
* Order enters through the position code alone. In the paper's code {paper["share"]:.0%}
  of the squared norm depends on the place; in the code used here {ours["share"]:.0%}.
* In a contextual encoder the word of the second shape carries the relation, linearly
  readable at {min(a["minilm"], a["t5-untrained"]):.2f} to
  {max(a["minilm"], a["t5-untrained"]):.2f}, with or without pretraining (place alone:
  {a["place alone"]:.2f}).

What this chapter does not show: that a transformer trained on such tokens *uses* what a
probe can read. A relation that is there for the taking in the second shape may still be
taken from the relation word. That is the question of the chapters on circuits.""")

# %% [markdown]
# ## Exercise
#
# *Red square is above blue circle* and *blue circle is above red square* hold the same words. Cross-attention reads its
# tokens as a set. For which of `rte` and `rte-nopos` are the two sentences the same set of vectors?
#
# :::{admonition} Solution
# :class: dropdown
#
# ```python
# pair = ["red square is above blue circle", "blue circle is above red square"]
#
# def same_set(name: str) -> bool:
#     """Does every vector of the first sentence also occur in the second?"""
#     one, two = encoder(name).encode(pair).embeddings  # [T, D] each
#     return bool((one[:, None] == two).all(-1).any(1).all())
#
# assert same_set("rte-nopos") and not same_set("rte")
# ```
#
# Without the position code no model behind the encoder, however good, can tell the two apart: it has to place objects by
# chance, as [chapter 12](12_encoders.ipynb) finds.
# :::
