# %% [markdown]
# # Spatial Circuits
#
# **How does a text-to-image model put the red square *above* the blue circle?** This book trains small diffusion
# transformers from scratch, on pictures of two objects and sentences about them, and takes them apart until the few
# attention heads that do the placing are found and tested. It reproduces, and questions, *Circuit Mechanisms for Spatial
# Relation Generation in Diffusion Transformers* ([Wang, Fan and Pan, 2026](bibliography.md#wang2026circuit)).
#
# > **<a href="18_explorer.html#figure-2">Switch a head off</a>** and see what becomes of the picture, in this browser; or
# > <a href="#the-model-in-your-hands">run the model itself</a>, below.<br>
# > **[Take the tour](tour.ipynb)**: a model in eight short steps, fifteen minutes.<br>
# > **[Run it yourself](how_to.md)**: two commands, two CPU cores, no account.

# %% tags=["parameters", "remove-input"]
model: str = "rte"
seed: int = 0
scale: str = "full"  # smoke | full

# %% tags=["remove-input"]
import torch
from IPython.display import Markdown

from spatial_circuits.book.claims_grid import ClaimsGrid, grid_rows, standing
from spatial_circuits.book.explorer import Figure, LiveModel, circuit_figure
from spatial_circuits.book.figures import Captioned, grid
from spatial_circuits.book.first_page import (
    finding,
    more_together,
    numbers,
    verdict_line,
    verdict_span,
)
from spatial_circuits.book.ways import way
from spatial_circuits.claims.claims import folder_of, history
from spatial_circuits.data.captions import captions
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import sample_scenes
from spatial_circuits.model.store import names

scenes = sample_scenes(torch.arange(4), seed, relation=torch.arange(4),
                       named=torch.ones(4, 2, dtype=torch.bool))
Captioned(grid(render(scenes), captions(scenes), columns=4),
          "The task: four of the eight relations, drawn by the program that makes the "
          "training data.")

# %% [markdown]
# ## What was found
#
# Each model that ships with this book is one training run. A sentence gives the weakest of the runs that it is about, with
# a 95 % interval over prompts; the line below it says in how many of them the paper's claim holds.

# %% tags=["remove-input"]
folders = [folder_of(name) for name in (names() if model == "rte" else [model])]
rows = {row.claim.id: row for row in grid_rows(folders)}
n = numbers(folders)

def said(sentences: str, *claims: str) -> str:
    """A finding: its sentences whose figures are known, and a verdict on each claim."""
    return " ".join([finding(sentences, n), *(verdict_line(rows[c]) for c in claims)])

order = said("""
Where the text encoder knows word order, the relation is right in {relation} of the
pictures (runs: {ordered}).

With three layers in place of six, the relation is right in {shallow} of the pictures.

In a bag of words, the relation is right in {bag} of the pictures
(<a href="12_encoders.html#figure-2">Figure 12.2</a>).
""", "C1", "C3", "C4")

ramp = said("""
Before there is a picture, a patch's place and a direction word, compared by the weights
of one head, draw a ramp over the picture for {ramps} words (runs with random tokens:
{random}; <a href="07_relation_head.html#figure-2">Figure 7.2</a>).
""", "C6")

written = said("""
Added by hand where the object head reads, what the relation heads write for the
opposite relation is obeyed in {at_reader} of the pictures
(<a href="10_injection.html#figure-6">Figure 10.6</a>).

Added to the position embedding, what the relation heads write is obeyed in {obeyed}.

A random vector of equal norm, added at either place, is obeyed in {control} at most.
""", "C8")

lost = said("""
Without the one head that looks most at the relation word, the share of pictures with
the right relation falls by {alone} at most; without all relation heads of the circuit,
by {together} at least (<a href="09_ablation.html#figure-2">Figure 9.2</a>).
""", "C9")
more = verdict_span(more_together(folders), "more is lost together than alone")

token = said("""
With a contextual encoder, the second shape's token, taken from the opposite prompt,
turns the objects round in {by_shape2} of the runs, the relation word so taken in
{by_word} (runs: {contextual};
<a href="13_which_token.html#figure-2">Figure 13.2</a>).

An added *the* leaves {the} of the right relations
(<a href="15_robustness.html#figure-1">Figure 15.1</a>).
""", "C10", "C14")

Markdown("\n".join(f"1. {item}" for item in (order, ramp, written, lost + more, token)))

# %% [markdown]
# ## The model in your hands
#
# Not a recording: the button loads the model's weights into this page, and then it draws what you type. Switch heads off,
# hide words, set a second model beside the first and add "the". More to try is in [chapter 18](18_explorer.ipynb).

# %% tags=["remove-input"]
LiveModel()

# %% [markdown]
# ## The circuit at work
#
# Press *Play*: two prompts on their way from words to picture, each map computed by the model.

# %% tags=["remove-input"]
played = prompt_set("264")[:2]
Figure(circuit_figure([way(model, played, 1)]),
       f"The circuit of {model} in five stages. The buttons and the arrow keys go from "
       "stage to stage. More prompts, and a second mechanism, are in chapter 18.",
       "Interactive figure: words, relation heads, their tag, object heads, picture")

# %% [markdown]
# ## Every claim, run by run
#
# A row is a claim of the paper, a column a training run. *Not comparable* are runs whose captions had a bias that takes away
# the very obstacle the claim is about, and what was tuned to the paper. A row opens to the paper's sentence, our figures
# and the rule, which asks for an effect of a size and not only for a small p.

# %% tags=["remove-input"]
ClaimsGrid(folders, "The claims of the paper and the training runs that ship with this "
           "book. Last column: in how many of the runs that can be compared a claim "
           "holds.")

# %% tags=["remove-input"]
logs = {f.name: history(f) for f in folders}
trained = [f"`{name}` {log[-1]['images']:,} pictures in {log[-1]['seconds'] / 60:,.0f} "
           "min" for name, log in logs.items() if log]
Markdown(f"Trained on: {', '.join(trained) or 'not recorded'}.")

# %% [markdown]
# ## What the paper says
#
# All that the transformer learns about the sentence comes through cross-attention: in each layer, each patch of the picture
# looks at the tokens of the text. In [Wang, Fan and Pan (2026)](bibliography.md#wang2026circuit) the *text encoder* decides
# how the placing is done.
#
# - **With random token embeddings**, where a token stands for its word and its place alone, in two steps: an early *relation
#   head* compares a patch's position with the relation word and marks the named side; a later *object head* attends from
#   the marked patches to the word of the shape that belongs there.
# - **With a pretrained, contextual encoder** such as T5 in one step: the second shape's token already holds the relation, and
#   heads read it there. This fails where the sentence changes slightly: an added *the* shifts that one vector.
#
# ## What our runs say

# %% tags=["remove-input"]
Markdown(standing(list(rows.values())))

# %% [markdown]
# - **The two steps**: chapters [7](07_relation_head.ipynb) and [8](08_object_head.ipynb) follow them from the weights to the
#   picture, and <a href="11_circuit.html#figure-3">Figure 11.3</a> draws the circuit that patching finds.
# - **A bias in the captions**, by which relations are learned earlier: an [interlude](without_bias.ipynb) asks what it does to the
#   circuit. One run with it is kept, `rte-biased`; it counts in no sentence above.
# - **The encoder**: <a href="16_two_mechanisms.html#figure-1">Figure 16.1</a> sets the models side by side, and
#   <a href="17_population.html#figure-1">Figure 17.1</a> shows over eighteen runs how often an encoder goes with a mechanism.
# - **The size**: one run, `micro`, has the paper's layers and heads. [Chapter 16](16_two_mechanisms.ipynb) sets its circuit beside those of
#   the others, [chapter 12](12_encoders.ipynb) three layers beside six.
# - **Scores** are not to be compared with the paper's digit by digit: its training pictures overlap, which limits what its
#   metric can reach; ours do not ([chapter 1](01_dataset.ipynb)). They are given as shares of their ceiling.
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
# 17. [How often, and what decides](17_population.ipynb): many runs of each encoder, and a dial between two of them.
# 18. [Explorer](18_explorer.ipynb): single pictures, to look at and to touch.
#
# Each chapter opens with a question and closes with what was established and what was not.
#
# Terms are in the [glossary](glossary.md), functions in the [reference](reference.md). To add a word, an encoder or an edit:
# [change one thing](change_one_thing.ipynb). What stays open, with numbers to beat: [what is not
# established](challenges.ipynb).
#
# ## Run it
#
# ```bash
# # run every notebook and build these pages
# make book
#
# # run the tests
# make test
# ```
#
# The pages are then in `_build/html/index.html`. Both create a virtual environment at their first run and reuse it later.
# [Read, run, extend](how_to.md) has the rest: one notebook, another seed, a whole book about a model of your own.
