# %% [markdown]
# # 18. Explorer
#
# The chapters before count over many pictures. **What do the heads do in a single picture, step by step, and what becomes of the
# picture when one of them is silent?**
#
# This chapter holds no new analysis. It lets you look. With $\hat x_0(x_t, t)$ the picture that the model expects at the end
# while it is still at step $t$, and $A^h_{ij}$ the attention of image token $i$ to text token $j$ in head $h$, the figures show
# $\hat x_0$ and $\sum_{j \in \text{word}} A^h_{ij}$ at every step. Steps count from 0, here and in every other chapter.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 1
scale: str = "full"  # smoke | full

# %%
import pandas as pd
from IPython.display import Markdown

from spatial_circuits.analyses.heads import head_name, parse_head
from spatial_circuits.book.explorer import (
    READ_FROM,
    Figure,
    LiveModel,
    circuit_figure,
    compare_circuits,
    explorer,
)
from spatial_circuits.book.verdict import verdict
from spatial_circuits.book.ways import heads_by_role, token_read, way
from spatial_circuits.book.widgets import Explorer
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.live.contents import Workbench
from spatial_circuits.model.store import load

full = scale == "full"
everything = prompt_set("264")
prompts = everything[:16] if full else everything[:2]

nets = {model: load(model).fast()}
heads = {model: heads_by_role(model, nets[model])}
benches = {model: Workbench(nets[model], heads[model]["relation"],
                            readers=heads[model]["object"])}

# %% [markdown]
# ## The model in your hands
#
# The next figure is not a recording. It is the model: the button fetches its weights, some 14 MB, and from then on it draws
# in this page, without a kernel, a server or a network. Type a sentence or compose one; choose a head and switch it off, scale
# it or put its mean in its place; hide words, write another relation in, take a word's embedding from another sentence. The
# pictures from the same noise, intact and changed, stand side by side with the detector's verdicts. The noise of a seed is
# that of Python: what you find here, the library finds too, and so do the figures below, which start from the same noise. The
# address keeps what you see: a finding can be sent as a link.
#
# - *Add one word.* Choose a second model beside the first, then add "the": which of the two still places the objects as told?
# - *Take a head away.* The heads of the circuit (chapter 11) are underlined. Which other head can the model spare?
# - *Exchange a word.* Take "above" from a sentence that says "below". In which model do the objects follow it?

# %%
LiveModel(prompts[0], seed)

# %% [markdown]
# ## With a kernel
#
# The next cell makes controls in JupyterLab (`make lab`): compose a prompt or type one, pick model, seed, layer, head, word
# and step; switch heads off, hide words, write another relation into the residual stream or into a word. An answer takes
# about a second.
#
# > *Reading a page?* It has no kernel, so these controls are left out. The figures above and below need none.

# %% tags=["remove-output"]
Explorer(model, prompts[0], seed)

# %% [markdown]
# ## Without a kernel
#
# All of this was recorded beforehand: each prompt intact, without each head of the circuit (its output replaced by its mean,
# as in [chapter 9](09_ablation.ipynb)), and with the opposite relation written in where the object head reads it (as in
# [chapter 10](10_injection.ipynb)). Choose a prompt, a change, a word, a step, a head. Within the heads, and within the
# map of the changed run, arrow keys move.

# %%
roles = {head_name(*h): role for role, found in heads[model].items() for h in found}
chosen = roles if full else dict(list(roles.items())[:2])
silent = {f"without {h}": [parse_head(h)] for h in chosen}
recordings = compare_circuits(benches[model], prompts, silent, seed)
data = explorer(benches[model], recordings, roles)
Figure(data,
       f"Explorer: {len(prompts)} prompts under {len(data['conditions'])} conditions, "
       f"{data['shape'][2]} steps, all {data['shape'][3] * data['shape'][4]} heads. "
       f"Noise: that of seed {seed}, as in the figure above. Heads of the circuit are "
       "underlined in the colour of their role. Start with step 0, the relation head "
       "and its word: the map is there before the picture is.",
       "Interactive figure: picture, attention of a head to a word, and the same under "
       "a change, for every step")

# %% [markdown]
# ## What to try

# %%
names = data["conditions"]
def as_told(outcome: str) -> bool:
    """Whether a picture's outcome, in words, is the one that it was told."""
    return "as told" in outcome and "not as told" not in outcome

ended = pd.DataFrame({c: [as_told(p["outcomes"][i]) for p in data["prompts"]]
                      for i, c in enumerate(names)})
table = pd.DataFrame({"pictures": len(ended), "as told": ended.sum()})
table = table.rename_axis("change")

def without(role: str) -> pd.Series:
    """Pictures as told without each head of a role."""
    heads_of_role = [f"without {h}" for h in chosen if roles[h] == role]
    return table["as told"].reindex(heads_of_role)

def counted(role: str) -> str:
    """The same in words."""
    return ", ".join(f"{n} {name}" for name, n in without(role).items()) or "none tried"

told = table["as told"]
Markdown(f"""
- *The map before the picture.* At step 0 the relation word is looked at from one side.
  The last map shows that the place alone would do: it is computed from the weights,
  without noise, picture or sampling.
- *Place becomes shape.* Choose an object head
  ({', '.join(h for h, role in roles.items() if role == 'object')}) and the word of
  shape 1, then shape 2. Then take a relation head away
  ({', '.join(h for h, role in roles.items() if role == 'relation')}).
- *One head of several.* Take an object head away: of {len(ended)} pictures,
  {told['intact']} are as told when nothing is changed, {counted('object')}. A relation
  head: {counted('relation')}. Look for the pictures that fail, and for what is wrong in
  them.
- *A relation written by hand.* The last change: the words say one thing, and
  {told.iloc[-1]} of {len(ended)} pictures show the opposite.
""")

# %%
table

# %% [markdown]
# Few pictures, all from the noise of one seed: shares and intervals are in chapters 9 to 11. For the last change, *as told* means
# by the relation that was written in.
#
# ## From words to picture
#
# The same run, taken apart along the circuit's own stages. Two models, two mechanisms ([chapter
# 16](16_two_mechanisms.ipynb)): in one, the relation is read from the relation word; in the other, from the second shape's
# word, which has taken it up inside the text encoder.

# %%
shown = list(dict.fromkeys([model, "rte", "t5-untrained"] if full else [model]))
ways = [way(name, prompts[:8], seed) for name in shown]
Figure(circuit_figure(ways),
       "The circuit in five stages, for single prompts, with the model's own maps and "
       f"the noise of seed {seed}. Left and right arrow keys go from stage to stage.",
       "Interactive figure: words, relation heads, their tag, object heads, picture, "
       "for two mechanisms")

# %% [markdown]
# ## What was established
#
# Nothing that the chapters before had not: a single run is an anecdote. What can be seen here is that their averages are not
# of unlike things.

# %%
kept = table["as told"] / table["pictures"]
lost = [h for h in chosen if kept[f"without {h}"] <= kept["intact"] / 2]
Markdown(f"""
Of {len(ended)} pictures, {table.loc['intact', 'as told']} are as told when nothing is
changed, and {table.loc[names[-1], 'as told']} show the opposite relation when it is
written in. Heads without which, alone, at least half of them fail: {len(lost)} of
{len(chosen)} ({', '.join(lost) or 'none'}). The stages:
{', '.join(f'`{n}` starts from {READ_FROM[token_read(n)]}' for n in shown)}.
""")

# %%
verdict({"No single head of the circuit is needed by half of these pictures": not lost})

# %% [markdown]
# Not established: that the tag is all that the object heads read. [Chapter 10](10_injection.ipynb) measures how much of the way
# it explains.

# %% [markdown]
# ## Exercise
#
# One head may cover for another. How much more does the end of a run move without all relation heads than without the first of
# them alone?
#
# :::{admonition} Solution
# :class: dropdown
#
# ```python
# relation = heads[model]["relation"]
# off = {"one": relation[:1], "all": relation}
# made = compare_circuits(benches[model], prompts[:2], off, seed)
# def moved(change: int) -> float:
#     """Mean distance of the last latents from those of the intact run."""
#     return sum(float((r.latents[0, change] - r.latents[0, 0]).norm()) for r in made) / 2
#
# one, all_of_them = moved(1), moved(2)
# assert all_of_them > one > 0
# ```
#
# A good deal more. The single head that is taken away in the explorer above therefore shows too little: what the others do in its
# place is not seen. [Chapter 9](09_ablation.ipynb) measures it.
# :::
