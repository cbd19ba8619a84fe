# %% [markdown]
# # 16. Two mechanisms side by side
#
# The models of this book differ in their text encoder alone. **What does the encoder decide?** The paper's answer: which of
# two mechanisms is learned. With random tokens the relation is read from its own word, in two steps, and the model is robust;
# with T5 it is read from the second shape's token, in one step, and the model is brittle. This chapter puts all models into one
# table. Its figures are those recorded with the models (`spatial-circuits evaluate`, `tokens`, `factors`, `arithmetic`,
# `robustness`, `circuit`); the chapters before it show how they come about.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 0
scale: str = "full"  # smoke | full

# %%
import math

import pandas as pd
import torch
from IPython.display import Markdown

from spatial_circuits import claims, pretrained, weights
from spatial_circuits.factors import labels, partition, relation_effects, token_vectors
from spatial_circuits.metrics import prompt_set
from spatial_circuits.perturb import FAMILIES
from spatial_circuits.plots import Captioned
from spatial_circuits.plots_heads import attention_rows, tables
from spatial_circuits.pretrained import load
from spatial_circuits.scenes import RELATIONS

everything = prompt_set("264")
names = list(dict.fromkeys([model, *pretrained.names()]))
study = {n: claims.read(claims.folder_of(n)) for n in names}
needed = {"tokens", "factors", "arithmetic", "robustness"}
names = [n for n in names if needed <= set(study[n]) and claims.kind(claims.folder_of(n)) in ("random", "contextual")]
names = names or [n for n in pretrained.names() if needed <= set(study[n])]

# %% [markdown]
# ## One table
#
# *Exchanged*: one token is taken from the opposite prompt, all others stay; share of pictures that show the opposite
# relation. *Hidden*: no head sees the token; relation right among the pictures with both objects. *Share*: of that token's variance after the
# caption MLP that the relation explains. *Arithmetic*: the relation's vector exchanged in that token alone, the new relation obeyed.

# %%
def first(rows: list[dict], **wanted) -> dict:
    """The first row with these values; NaNs if there is none."""
    return next((r for r in rows if all(r[k] == v for k, v in wanted.items())), {"mean": math.nan, "partial_r2": math.nan, "low": math.nan, "high": math.nan})

def about(name: str, token: str) -> dict[str, float]:
    """What is recorded of one token in one model."""
    t, of = study[name], lambda metric: first(study[name]["tokens"]["effects"], condition=token, metric=metric)["mean"]
    moved = [r["mean"] for r in t["arithmetic"]["moved"] if (r["token"], r["vector"], r["metric"]) == (token, "relation", "loose")]
    return {"exchanged": first(t["arithmetic"]["graft"], token=token, condition="grafted", metric="loose")["mean"],
            "hidden": of("loose") / max(of("unique_binding"), 1e-9), "arithmetic": max(moved),
            "share": first(t["factors"]["partition"], token=token, stage="caption MLP", factor="relation")["partial_r2"]}

def wording(name: str, family: str) -> float:
    """Loose relation in other words as a share of T0."""
    return first(study[name]["robustness"]["ratio"], condition=family)["mean"]

carrier = {n: max(("relation", "shape2"), key=lambda token: about(n, token)["exchanged"]) for n in names}
names = sorted(names, key=lambda n: (carrier[n] != "relation", claims.kind(claims.folder_of(n)) != "random", n))
tokens = {f"token: {'relation word' if token == 'relation' else 'second shape'}": pd.DataFrame({n: about(n, token) for n in names}).T for token in ("relation", "shape2")}
Captioned(tables(tokens, "share", columns=2),
          "What the relation word (left) and the second shape's token (right) carry in each model whose encoder knows word order. Compare the two "
          "columns *exchanged*: the models fall into two groups.",
          "Two heat maps, a row for each model; where one is bright in the first column the other is dark.")

# %%
groups = {token: [n for n in names if carrier[n] == token] for token in ("relation", "shape2")}
contextual = [n for n in names if claims.kind(claims.folder_of(n)) == "contextual"]
the = {n: first(study[n]["robustness"]["ratio"], condition="T3 the") for n in names}
Markdown("\n".join(f"- Read from **{'its own word' if token == 'relation' else 'the second shape'}**: " + ", ".join(
    f"{n} (exchanged {about(n, token)['exchanged']:.2f}, the other token {about(n, 'shape2' if token == 'relation' else 'relation')['exchanged']:.2f}; *the* leaves "
    f"{the[n]['mean']:.2f} [{the[n]['low']:.2f}, {the[n]['high']:.2f}])" for n in group) + "." for token, group in groups.items() if group))

# %% [markdown]
# ## Seen from the heads
#
# For each model the head whose map of the relation effects, on the token that carries the relation, is the largest ramp: the
# preference for a place before there is a picture.

# %%
def strongest(name: str) -> dict:
    """The first head of the recorded screen, on the carrying token."""
    return next(h for h in study[name]["factors"]["heads"] if h["token"] == carrier[name])

def drawn(name: str) -> torch.Tensor:
    """The head's maps [8, 8, 8] for the eight relation effects, scaled to a largest value of 1."""
    net, head = load(name), strongest(name)
    effects = relation_effects(partition(token_vectors(net.encoder, everything, carrier[name], net.transformer), labels(everything, carrier[name]), 0))
    found = weights.qk_maps(net.transformer, effects)[head["layer"], head["head"]]
    return (found - found.mean(0)) / (found - found.mean(0)).abs().max()

rows = {f"{n} {strongest(n)['name']}, {carrier[n]}": drawn(n) for n in names}
Captioned(attention_rows(rows, [r.replace("_", " ") for r in RELATIONS], "logit, scaled"),
          "The largest ramp of each model. A head that reads the relation word marks the named side for the first object; one that reads the "
          "second shape's token marks the opposite side, where that shape belongs.",
          "Rows of eight maps each, shaded from side to side.")

# %%
pd.DataFrame({n: {"token": carrier[n], **{k: strongest(n)[k] for k in ("name", "cosine", "projection", "p")}} for n in names}).T

# %% [markdown]
# ## Does the circuit recur?
#
# Circuits were found in the same way in every model for which `spatial-circuits circuit` was run: by patching alone, on one half of the prompts,
# tested on the other ([chapter 11](11_circuit.ipynb)).

# %%
def circuit(name: str) -> dict:
    """Heads by role, and how much of the intact model's relation the circuit keeps on its own."""
    t = study[name]["circuit"]
    kept = next((r for r in t["tests"]["loose"] if r["condition"].startswith("circuit")), {"mean": math.nan})
    return {role: " ".join(heads) or "none" for role, heads in t["circuit"].items()} | {"heads": sum(map(len, t["circuit"].values())), "kept": round(kept["mean"], 2)}

circuits = pd.DataFrame({n: circuit(n) for n in pretrained.names() if "circuit" in study[n]}).T
circuits

# %%
layers = {n: sorted({h[:2] for h in study[n]["circuit"]["circuit"]["relation"]}) for n in circuits.index}
twins = [(n, f"{n}-seed1") for n in circuits.index if f"{n}-seed1" in circuits.index]
Markdown("\n".join([f"- Relation heads of {n}: layers {', '.join(v) or 'none'}." for n, v in layers.items()] +
                   [f"- Two seeds of {a}: the relation heads lie in {'the same layers' if layers[a] == layers[b] else 'other layers'}; head numbers mean nothing across seeds." for a, b in twins]))

# %% [markdown]
# ## Every wording

# %%
ratios = pd.DataFrame({n: {f: wording(n, f) for f in FAMILIES} for n in names})
Captioned(tables({"loose relation as a share of T0": ratios.clip(upper=1)}, "share"),
          "All wordings and models. Values above 1 are drawn as 1; empty: the encoder does not know a word.",
          "A heat map of sixteen wordings by models.")

# %% [markdown]
# ## What the encoder decides

# %%
share = {n: about(n, "shape2")["share"] for n in names}
raw = {n: first(study[n]["factors"]["partition"], token="shape2", stage="encoder", factor="relation")["partial_r2"] for n in names}
inverted = {n: wording(n, "I1 inverted") for n in names}
broken = [n for n in names if the[n]["mean"] < 0.75]
from_shape = groups["shape2"]
other = [n for n in contextual if n not in from_shape]
Markdown("\n".join([
    f"- **Context is {'not enough' if other else 'enough'} to decide.** Of {len(contextual)} contextual models {len(from_shape)} read the relation from the second shape"
    f"{f' ({chr(44).join(from_shape)})' if from_shape else ''} and {len(other)} from its own word{f' ({chr(44).join(other)})' if other else ''}.",
    f"- **How much of the relation the encoder puts there goes with it.** Its share at the second shape, in the encoder's output: {', '.join(f'{n} {v:.1%}' for n, v in raw.items())}; the paper's T5 12 %. "
    "(For random tokens this is the length of the phrase.)",
    f"- **Pretraining is not the cause.** t5-untrained, whose weights are random, {'does' if 't5-untrained' in from_shape else 'does not do'} what the paper's T5 does." if "t5-untrained" in names else "",
    f"- **Where it is read decides what breaks.** *The* breaks {', '.join(broken) or 'none'}; these read from {', '.join(sorted({carrier[n] for n in broken})) or 'nothing'}. The others keep at least "
    f"{min(the[n]['mean'] for n in names if n not in broken):.2f}.",
    f"- **Brittle is not one property.** {from_shape[0]} understands inverted sentences ({inverted[from_shape[0]]:.2f} of T0), while those that read the relation word do so less "
    f"({', '.join(f'{n} {inverted[n]:.2f}' for n in groups['relation'])})." if from_shape else ""]))

# %% [markdown]
# ## What was established

# %%
both = bool(groups["relation"] and groups["shape2"])
Markdown(f"""
- {'Both mechanisms of the paper occur here, each in full: exchanging one token moves the objects, exchanging the other does nothing.' if both else
   'Only one of the two mechanisms occurs among these models.'}
- {f"The division is not between random and contextual encoders: {', '.join(other)} is contextual and reads the relation word." if other else 'It falls between random and contextual encoders.'}
- {f"The model that reads the second shape's token is the one that *the* breaks." if broken and set(broken) <= set(from_shape) else 'What *the* breaks does not follow the token that is read.'}

Not established: that the share of the relation in the token is the cause. An encoder whose fusion can be turned up and down, as the
deviation of `t5-untrained`'s position biases can, trained at several values, would decide it.
""")
