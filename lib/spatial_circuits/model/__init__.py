"""Model: from a prompt's embeddings to a picture.

transformer  diffusers' PixArt transformer in the paper's sizes, and its forward
vae          pictures to latents and back
noise        how latents are corrupted and what the model predicts
precision    which number format is fast on a device
dtypes       a model in fp32, bf16 or fp16, refused where a device cannot
forward      what the rows of a forward are: sampling step, samples, CFG branches
sampler      the sampling loop with classifier-free guidance, for any solver of diffusers
pipeline     `Model`: encoder, transformer, solver and VAE in one
compiling    torch.compile where it works: training, and sampling of many pictures
stock        any diffusers pipeline around a PixArt transformer as a `Model`
export       our models as stock diffusers saves them; pipelines with random weights
manifest     hashes of a folder's files: what is the model, and what was measured of it
store        the shipped models: `load`, `save_model`
collections  models of a checkout's workflow folder, by COLLECTION/NAME, also packed ones

A new size is a line in `transformer.SIZES`, a new noise process a path in `noise.Noise`.
"""
