"""Training: from a recipe, an encoder and a VAE to weights, in a folder that can be resumed.

recipe       every choice of a run in one record. A new field goes there, with its default and its
             line in `check_recipe`; its use in `batches` (what is seen) or `loop` (how it learns).
batches      what step i sees, as a function of (seed, i); curricula over captions and noise.
scene_cache  encoded scenes on disk, shared by all runs on a machine.
loop         `train`; the learning-rate schedule is `learning_rate`, the optimizers `optimizers`.
muon         the optimizer of the matrices.
run_folder   what a folder was started with, and the signal to stop; `lock` keeps others out.
checkpoint   state and snapshots in safetensors. Not accelerate's: that pickles optimizer states.
log          the JSONL of a run.
monitor      what a run measures of itself; pass another function as `train(..., evaluate=...)`.
text_gain    how much each part of the caption lowers the loss.
vae          the VAE, from scratch.
"""
