# %% [markdown]
# # Spatial Circuits
#
# **How does a text-to-image model put the red square *above* the blue circle?** Somewhere between a sentence and a
# picture, a word about space has to become a place. This book trains small diffusion transformers from scratch, on
# pictures of two objects and sentences about them, and then takes them apart until the few attention heads that do the
# placing are found, tested, and understood.
#
# It reproduces, and questions, *Circuit Mechanisms for Spatial Relation Generation in Diffusion Transformers*
# (Wang, Fan and Pan, [arXiv 2601.06338](https://arxiv.org/abs/2601.06338); [bibliography](bibliography.md#wang2026circuit)). The models are small enough to be trained on a laptop, and every
# figure and number on these pages is computed by the cell above it.
#
# > **[Look inside](18_explorer.ipynb)**: single pictures, every head, every step, heads switched off, in this browser.<br>
# > **[Run it yourself](how_to.md)**: two commands, two CPU cores, no account.

# %% tags=["parameters", "remove-input"]
model: str = "rte"
seed: int = 0
scale: str = "full"  # smoke | full

# %% tags=["remove-input"]
import torch
from IPython.display import Markdown

from spatial_circuits.book.figures import Captioned, grid
from spatial_circuits.claims.claims import (
    CLAIMS,
    claims_table,
    evidence,
    folder_of,
    history,
    survey,
)
from spatial_circuits.data.captions import captions
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import sample_scenes
from spatial_circuits.model.store import names

scenes = sample_scenes(torch.arange(8), seed, relation=torch.arange(8),
                       named=torch.ones(8, 2, dtype=torch.bool))
Captioned(grid(render(scenes), captions(scenes), columns=4),
                "The task: one scene for each of the eight relations, drawn by the "
                "program that makes the training data.")

# %% [markdown]
# ## Two mechanisms
#
# All that the transformer learns about the sentence comes through cross-attention: in each layer, each patch of the
# picture looks at the tokens of the text. The paper finds that the *text encoder* decides how the placing is done.
#
# **With random token embeddings**, where a token stands for its word and its place and nothing else, the work is
# divided. An early *relation head* looks at the relation word. It needs no picture: a patch's own position, compared with
# the word *above*, tells whether the patch lies in the upper half, and the head marks it accordingly (<a href="07_relation_head.html#figure-2">Figure 7.2</a>).
# A later *object head* reads those marks and attends from the marked patches to the word of the shape that belongs there
# (<a href="08_object_head.html#figure-1">Figure 8.1</a>; the whole circuit: <a href="11_circuit.html#figure-3">Figure 11.3</a>).
#
# **With a pretrained, contextual encoder** such as T5, the words have been mixed before the transformer sees them. The
# second shape's word already holds the relation, and heads read it there; the relation word itself can be hidden at
# little cost (<a href="13_which_token.html#figure-2">Figure 13.2</a>). This works as well, until the sentence changes slightly: an added *the* shifts that one
# vector, and the objects go astray (<a href="15_robustness.html#figure-1">Figure 15.1</a>).
#
# Two ways to the same pictures, one in two steps, one in a single step, and each with its own weak side: in our models an
# added *the* breaks the single step, and an inverted sentence breaks the two steps. Over many training runs it is a tendency and no
# law: which way a run with a contextual encoder takes is partly a lottery ([chapter 17](17_population.ipynb)). How far our small models agree is recorded in the table below; <a href="16_two_mechanisms.html#figure-1">Figure 16.1</a> sets them side by side.

# %% [markdown]
# ## What is claimed, and what we found
#
# Each model that ships with this book is one training run, and the training run is what counts: in how many of those that
# a claim is about does it hold? *Partly* says that it holds in some and not in others. *Not comparable* are runs whose
# captions had a bias that takes away the very obstacle the claim is about, and what was tuned to the paper; what has no run
# behind it says *not yet tested*. The rules are stated once, in `spatial_circuits.claims.judges`, and ask for an effect of
# a size, not only for a small p. Square brackets hold 95 % intervals over prompts.

# %% tags=["remove-input"]
folders = [folder_of(name) for name in names()]
found = survey(folders) if model == "rte" else evidence(folder_of(model))
Markdown(claims_table(found))

# %% tags=["remove-input"]
logs = {f.name: history(f) for f in (folders if model == "rte" else [folder_of(model)])}
trained = [f"`{name}` ({log[-1]['images']:,} pictures, {log[-1]['seconds'] / 60:,.0f} "
           "min)" for name, log in logs.items() if log]
Markdown(f"{len(found)} of {len(CLAIMS)} claims have been tested. Models: "
         f"{', '.join(trained)}." if trained
         else f"No model named `{model}` ships with this copy of the book; `make "
         "train` makes one.")

# %% [markdown]
# The paper's scores are not to be compared with ours digit by digit. Its training pictures overlap, which limits what
# its metric can reach; ours do not ([chapter 1](01_dataset.ipynb)). Scores are therefore given as shares of their ceiling.
#
# ## Read it
#
# 1. [Dataset](01_dataset.ipynb): two objects, one sentence, and why the distribution matters.
# 2. [Text encoders](02_text_encoders.ipynb): what a token knows, and what *contextual* means.
# 3. [VAE and model](03_vae_and_model.ipynb): from pixels to latents, and the transformer between.
# 4. [Training](04_training.ipynb): a live run, the order of learning, and what was tried.
# 5. [Evaluation](05_evaluation.ipynb): metrics, their ceiling, and failures.
# 6. [Attention synopsis](06_synopsis.ipynb): which heads look from an object to which word.
# 7. [The relation head](07_relation_head.ipynb): a word becomes a place, before there is a picture.
# 8. [The object head](08_object_head.ipynb): a place becomes a shape.
# 9. [Ablation and patching](09_ablation.ipynb): what fails without a head, and what a head carries.
# 10. [Injection](10_injection.ipynb): a relation written into the model by hand.
# 11. [The circuit assembled](11_circuit.ipynb): faithful, complete, minimal?
# 12. [Training with other encoders](12_encoders.ipynb): what changes when only the text encoder changes.
# 13. [Which token carries the relation](13_which_token.ipynb): hidden words, and heads found from the weights.
# 14. [What the token holds](14_factors.ipynb): variance partition, and arithmetic on one token.
# 15. [Robustness and repair](15_robustness.ipynb): other wordings, why they fail, and how to undo it.
# 16. [Two mechanisms side by side](16_two_mechanisms.ipynb): the whole study in one table.
# 17. [How often, and what decides](17_population.ipynb): thirty-four models, and a dial between two encoders.
# 18. [Explorer](18_explorer.ipynb): single pictures, to look at and to touch.
#
# Each chapter opens with a question and closes with what was established and what was not.
#
# Terms are in the [glossary](glossary.md), functions in the [reference](reference.md). To add a word, an encoder or an edit:
# [change one thing](change_one_thing.ipynb).
#
# ## Run it
#
# ```bash
# make book    # runs every notebook and builds these pages: _build/html/index.html
# make test    # runs the tests
# ```
#
# Both create a virtual environment at their first run and reuse it later. [Read, run, extend](how_to.md) has the rest: one notebook,
# another seed, a whole book about a model of your own.
