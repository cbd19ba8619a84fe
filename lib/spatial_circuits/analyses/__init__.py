"""Analyses: functions from a model and prompts to a frame, or a tensor on the CPU. None knows a
path, a plot or a notebook, and what cannot be done is refused before a picture is drawn.

What the others stand on:
heads       names ("L2H3"), lists and masks of heads
intervals   95 % intervals over prompts: bootstrap by cluster, ratios, Wilson's, `summarise`
sweep       many conditions of the same pictures as one batch, and their paired effects

What heads do:
evaluation  a model's scores, and their share of the ceiling
second_judge  the same verdicts by other means: how far scores hang on the detector
ablation    scores without heads, or with a role's tokens hidden from them
patching    interchange interventions between two prompts that differ in one factor
circuit     the heads that carry shape, colour and relation, and three tests of them
wires       what each component of a running model writes, and what each of its inputs reads
edges       what each component hands to each later one, from a few backward passes
exact_edges single edges by path patching, and how well attribution tells them
carriers    what takes the tag from the relation heads to the object head's query
fused       the heads that read the relation from another token than its word
curves      faithfulness over the size of a circuit, and what it says of a ranking of heads
subspaces   in how many dimensions a factor sits at a word or a head's query (DAS)
synopsis    attention from each object's image tokens to each role of the prompt
heatmap     where each head looks at a word, in any model
locate      where two named things are in a picture: detectors, colours, masks, by one protocol
edit_files  interventions as JSON, and a model that samples under them
placed      synopsis and ablation for any model and any two things, in bounded memory
predicted   patching between a prompt and its counterpart in any model, by what it predicts
placed_injection  relations written into any model's pictures, scored by a locator
screening   ramps from the weights of any model, a layer at a time
chunks      finished parts of a long analysis in a folder, for a resume and for several processes
max_statistic  which of very many heads tell words apart, corrected by the largest under shuffles
costs       operations and bytes of a forward and of an analysis, counted from the config
self_check  do readers tell the truth, leave pictures alone, and what memory do they take
weight_maps what a head would attend to, from the weights alone: QK and OV maps, ramps
injection   relations written into the residual stream by hand

What words do:
embeddings  what text embeddings hold: linear probes, similarities
factors     their variance by factor, and the heads that read a factor's effect
token_exchange  every token and pair taken from another relation: who carries axis and side
arithmetic  pictures moved by changing one token's embedding
robustness  the same scene in other words, and the shifts that this causes
repair      what brings the relation back where other words broke it

A new analysis is a module here; it takes heads from `heads`, pictures from `sweep`, intervals from
`intervals`, and edits of a running model from `hooks`. A new score of heads by attention goes into
`synopsis.attention_scores`, a factor of prompts into `text.counterparts`, its metric into
`patching.FACTOR_METRIC`.
"""
