# %% [markdown]
# # 17. Explorer
#
# Every figure so far was an average. **What do the heads do in a single picture, step by step, and what becomes of the
# picture when one of them is silent?**
#
# This chapter holds no new analysis. It lets you look. With $\hat x_0(x_t, t)$ the picture that the model expects at the end
# while it is still at step $t$, and $A^h_{ij}$ the attention of place $i$ to token $j$ in head $h$, the figures show
# $\hat x_0$ and $\sum_{j \in \text{word}} A^h_{ij}$ at every step.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 1
scale: str = "full"  # smoke | full

# %%
import pandas as pd
from IPython.display import Markdown

from spatial_circuits import claims
from spatial_circuits.circuit import scout
from spatial_circuits.explorer import Figure, circuit, explorer, mechanism, survey
from spatial_circuits.metrics import prompt_set
from spatial_circuits.pretrained import load
from spatial_circuits.recording import Bench
from spatial_circuits.study import head
from spatial_circuits.widgets import Explorer

full = scale == "full"
everything = prompt_set("264")
prompts = everything[:16] if full else everything[:2]

def members(name: str, net) -> dict:
    """Heads (layer, head) by role: the circuit of chapter 11 where it is recorded, else the heads that look there."""
    if found := claims.read(claims.folder_of(name)).get("circuit"):
        return {role: [head(h) for h in heads] for role, heads in found["circuit"].items()}
    relation, reader, _ = scout(net, everything[:8])
    return {"relation": relation, "object": [reader], "colour": []}

nets = {model: load(model).fast()}
heads = {model: members(model, nets[model])}
benches = {model: Bench(nets[model], heads[model]["relation"])}

# %% [markdown]
# ## With a kernel
#
# The next cell makes controls in JupyterLab (`make lab`): compose a prompt or type one, pick model, seed, layer, head, word
# and step; switch heads off, hide words, write another relation into the picture's stream or into a word. An answer takes
# about a second.
#
# > *Reading a page?* It has no kernel, so the controls are left out. The figure below needs none.

# %% tags=["remove-output"]
Explorer(model, prompts[0], seed)

# %% [markdown]
# ## Without a kernel
#
# All of this was recorded beforehand: each prompt intact, without each head of the circuit (its output replaced by its mean,
# as in [chapter 9](09_ablation.ipynb)), and with the opposite relation written into the position embedding (as in
# [chapter 10](10_injection.ipynb)). Choose a prompt, a change, a word, a step, a head. Within the heads, and within the
# large map of the changed run, arrow keys move.

# %%
roles = {f"L{h[0]}H{h[1]}": role for role, found in heads[model].items() for h in found}
chosen = roles if full else dict(list(roles.items())[:2])
recordings = survey(benches[model], prompts, {f"without {h}": [head(h)] for h in chosen}, seed)
data = explorer(benches[model], recordings, roles)
Figure(data, f"Explorer: {len(prompts)} prompts under {len(data['conditions'])} conditions, {data['shape'][2]} steps, all "
       f"{data['shape'][3] * data['shape'][4]} heads. Heads of the circuit are underlined in the colour of their role. Start with step 1, the relation "
       "head and its word: the map is there before the picture is.",
       "Interactive figure: picture, attention of a head to a word, and the same under a change, for every step")

# %% [markdown]
# ## What to try
#
# - *The map before the picture.* At step 1 the relation word is looked at from the side that it names. The last map shows
#   that the place alone would do: it is computed from the weights, without noise, picture or sampling.
# - *Place becomes shape.* Choose the object head and the word of shape 1, then shape 2. Then take a relation head away.
# - *Two objects of one kind.* Take the object head away: the right places, the wrong shapes.
# - *A relation written by hand.* The last change: the words say one thing, the picture shows the opposite.

# %%
names = data["conditions"]
ended = pd.DataFrame({c: [("as told" in p["outcomes"][i]) and "not as told" not in p["outcomes"][i] for p in data["prompts"]] for i, c in enumerate(names)})
table = pd.DataFrame({"pictures": len(ended), "as told": ended.sum()}).rename_axis("change")
table

# %% [markdown]
# Few pictures, each of one seed: shares and intervals are in chapters 9 to 11. For the last change, *as told* means by the
# relation that was written in.
#
# ## From words to picture
#
# The same run, taken apart along the circuit's own stages. Two models, two mechanisms ([chapter
# 16](16_two_mechanisms.ipynb)): in one, the relation is read from the relation word; in the other, from the second shape's
# word, which has taken it up inside the text encoder.

# %%
def reads(name: str) -> str:
    """The role whose exchange for the opposite prompt's turns most pictures (chapter 14), else the relation word."""
    rows = claims.read(claims.folder_of(name)).get("arithmetic", {}).get("graft", [])
    turned = {r["token"]: r["mean"] for r in rows if r["condition"] == "grafted" and r["metric"] == "loose" and r["token"] in ("relation", "shape2")}
    return max(turned, key=turned.get) if turned else "relation"

def looking(name: str) -> list:
    """Relation heads: of the circuit; where the second shape is read, those that the screen of chapter 13 finds on it (p below .05)."""
    rows = [r for r in claims.read(claims.folder_of(name)).get("factors", {}).get("heads", []) if r["token"] == "shape2" and r["p"] < 0.05]
    return [(r["layer"], r["head"]) for r in rows[:3]] if reads(name) == "shape2" and rows else heads[name]["relation"]

for name in [n for n in ("rte", "t5-untrained") if full and n not in nets]:
    nets[name] = load(name).fast()
    heads[name] = members(name, nets[name])
    benches[name] = Bench(nets[name], heads[name]["relation"])
where = {"relation": "from the relation word", "shape2": "from the second shape's word"}
ways = [mechanism(benches[n], prompts[:8], heads[n] | {"relation": looking(n)}, reads(n), f"{n}: {where[reads(n)]}", seed) for n in nets]
Figure(circuit(ways), "The circuit in five stages, for single prompts, with the model's own maps. Left and right arrow keys go from stage to stage.",
       "Interactive figure: words, relation heads, their tag, object heads, picture, for two mechanisms")

# %% [markdown]
# ## What was established
#
# Nothing that the chapters before had not: a single run is an anecdote. What can be seen here is that their averages are not
# of unlike things.

# %%
without = {h: f"without {h}" for h in chosen}
kept = table["as told"] / table["pictures"]
lost = [h for h, c in without.items() if kept[c] <= kept["intact"] / 2]
Markdown(f"""
Of {len(ended)} pictures, {table.loc['intact', 'as told']} are as told when nothing is changed, and {table.loc[names[-1], 'as told']} show the opposite relation
when it is written in. {f'Without {" or ".join(lost)} alone, at least half of them fail.' if lost else 'No single head is needed by half of them.'}
The stages of {', '.join(f'`{n}` start {where[reads(n)]}' for n in nets)}.

Not established: that the tag is all that the object heads read. [Chapter 10](10_injection.ipynb) measures how much of the way it explains.
""")
