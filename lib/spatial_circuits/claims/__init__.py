"""Claims: what the paper says, which tables test it, and what the shipped models say so far.

claims       the sixteen claims, which kinds of models each is about, evidence of a folder, survey
judges       one function a claim: the rule, then the sentence with the figures
tables       run_synopsis, run_screen, run_ablate, run_circuit: analyses as records for JSON
text_tables  run_tokens, run_factors, run_arithmetic, run_robustness: the same for the text
placed_tables  run_patch, run_inject: the same for any model and any two things
population   k of n runs with Wilson's intervals: claims, the word that is read, order of learning
cards        what a model is and does: a line of `spatial-circuits models`, a model card

A table is written by the command of its name into a model's folder; a judge reads it from there.
A new claim goes into `claims.CLAIMS`, with the models it is about in `TESTED`; its rule into
`judges`, with the tables that it needs in `JUDGES`; a new table's function into `tables` (pictures)
or `text_tables` (embeddings), with its file in `claims.FILES` and its command in `cli`.
"""
