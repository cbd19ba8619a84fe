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
# <aside class="margin">
#
# The two mechanisms are those of [Wang, Fan and Pan (2026)](bibliography.md#wang2026circuit), who find one for
# each of two encoders.
#
# </aside>
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
          "columns *exchanged*.",
          "Two heat maps, a row for each model, a column for each measure.")

# %%
groups = {token: [n for n in names if carrier[n] == token] for token in ("relation", "shape2")}
contextual = [n for n in names if claims.kind(claims.folder_of(n)) == "contextual"]
the = {n: first(study[n]["robustness"]["ratio"], condition="T3 the") for n in names}
Markdown("\n".join(f"- Read more from **{'its own word' if token == 'relation' else 'the second shape'}**: " + ", ".join(
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
          "The largest ramp of each model, as it stands. A map that rises toward the named side marks the first object's place, one that rises toward "
          "the other side the second's (cosine below); what the head writes there decides what the mark means.",
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
# ## What the encoder decides, and what it does not

# %%
share = {n: about(n, "shape2")["share"] for n in names}
raw = {n: first(study[n]["factors"]["partition"], token="shape2", stage="encoder", factor="relation")["partial_r2"] for n in names}
inverted = {n: wording(n, "I1 inverted") for n in names}
turned = {n: {token: about(n, token)["exchanged"] for token in ("relation", "shape2")} for n in names}
pure = [n for n in names if turned[n][carrier[n]] >= 0.8 and min(turned[n].values()) <= 0.1]
mixed = [n for n in names if n not in pure]
broken, spared = [n for n in names if the[n]["mean"] < 0.75], [n for n in names if the[n]["mean"] >= 0.75]
from_shape, from_word = ([n for n in pure if carrier[n] == token] for token in ("shape2", "relation"))
siblings = [(n, f"{n}-seed1") for n in contextual if f"{n}-seed1" in contextual]
split = [(a, b) for a, b in siblings if (carrier[a], a in pure) != (carrier[b], b in pure)]
listed = lambda values: ", ".join(values) or "none"
Markdown("\n".join([
    f"- **Context is {'enough' if set(contextual) <= set(from_shape) else 'not enough'} to decide.** Of {len(contextual)} contextual models these read the relation from the second shape: {listed(n for n in contextual if n in from_shape)}; "
    f"from its own word: {listed(n for n in contextual if n in from_word)}; in part from each: {listed(n for n in contextual if n in mixed)}.",
    *[f"- **The encoder alone does not decide.** {a} and {b} have one encoder and differ in the seed of training. Exchanging the relation word turns {turned[a]['relation']:.2f} of the pictures in one and "
      f"{turned[b]['relation']:.2f} in the other, exchanging the second shape {turned[a]['shape2']:.2f} and {turned[b]['shape2']:.2f}." for a, b in split],
    f"- **What training makes of it shows after the caption MLP.** The relation's share in the second shape's token there: {listed(f'{n} {v:.0%}' for n, v in share.items() if n in contextual)}; "
    f"in the encoder's output: {listed(f'{n} {v:.0%}' for n, v in raw.items() if n in contextual)}. The paper's T5 has 21 % and 12 %. "
    "(For random tokens the share is the length of the phrase.)",
    f"- **Pretraining is not the cause.** t5-untrained, whose weights are random, {'does' if 't5-untrained' in from_shape else 'does not do'} what the paper's T5 does." if "t5-untrained" in names else "",
    f"- **What breaks.** *The* breaks {listed(broken)}, which {'reads' if len(broken) == 1 else 'read'} the relation from {listed(sorted({carrier[n] for n in broken}))}. The others keep at least "
    f"{min(the[n]['mean'] for n in spared):.2f}" + (f"; {listed(n for n in spared if n in mixed)} among them, which reads both tokens." if set(spared) & set(mixed) else "."),
    f"- **Brittle is not one property.** Of T0, inverted sentences leave {listed(f'{n} {inverted[n]:.2f}' for n in names)}."]))

# %% [markdown]
# ## What was established

# %%
both = bool({carrier[n] for n in pure} == {"relation", "shape2"})
Markdown(f"""
- {f'Both mechanisms of the paper occur here in full ({listed(pure)}): exchanging one token turns the objects round, exchanging the other does nothing.' if both else
   'Only one of the two mechanisms occurs in full among these models.'}
- {f'{listed(mixed)} {"lies" if len(mixed) == 1 else "lie"} between: both tokens count.' if mixed else 'None lies between.'}
- {f"With a contextual encoder the outcome depends on the seed of training ({', '.join(f'{a} and {b}' for a, b in split)})." if split else 'Seeds of one encoder agree.'}
- {f"What *the* breaks ({listed(broken)}) is what reads the second shape alone." if broken and set(broken) == set(from_shape) else
   f"*The* breaks {listed(broken)}, which does not follow the token that is read." if broken else 'None of these models is broken by *the*.'}

Not established: how often each mechanism is learned (one or two seeds of an encoder say little); and that the share after the caption MLP is
cause rather than consequence. An encoder whose fusion can be turned up and down, as the deviation of `t5-untrained`'s position biases can,
trained at several values and seeds, would decide it.
""")
