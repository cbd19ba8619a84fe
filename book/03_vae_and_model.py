# %% [markdown]
# # 3. The VAE and the transformer
#
# A diffusion transformer does not paint pixels. It turns noise into a small array of numbers, a latent, which
# a separate network, the VAE, unfolds into a picture; a caption steers the way. Two questions, then. **What
# does the VAE keep of a scene**, and would it notice if the latent were slightly wrong? **And what is the
# model**: how large, how the picture becomes tokens, where the words come in?

# %% tags=["parameters"]
model: str = "rte"
seed: int = 0
scale: str = "full"  # smoke | full

# %%
import json

import numpy as np
import pandas as pd
import torch
from diffusers import PixArtTransformer2DModel
from IPython.display import Markdown
from torch.utils.flop_counter import FlopCounterMode

from spatial_circuits.analyses.intervals import summarise
from spatial_circuits.book.figures import Captioned, grid, lines, maps
from spatial_circuits.data.captions import captions
from spatial_circuits.data.metrics import METRICS, score
from spatial_circuits.data.render import render
from spatial_circuits.data.scenes import RADIUS, SIZE, sample_scenes
from spatial_circuits.model.sampler import GUIDANCE, STEPS
from spatial_circuits.model.store import VAE_FOLDER, load
from spatial_circuits.model.transformer import GRID, SIZES, build_transformer, predict

net = load(model)
vae = net.vae
count = 768 if scale == "full" else 24

# %% [markdown]
# ## What the VAE keeps
#
# With encoder $\mathrm{Enc}$, decoder $\mathrm{Dec}$ and the mean $\mu$ and deviation $\sigma$ of each latent channel over
# the training scenes, a picture $x$ and its latent $x_0$ are tied by
#
# $$x_0 = \frac{\mathrm{Enc}(x) - \mu}{\sigma}, \qquad \hat x = \mathrm{Dec}(\sigma x_0 + \mu).$$
#
# The round trip $x \to \hat x$ bounds what any model behind this VAE can draw. The scenes below come from a
# stream that was not used in training; both colour words are spoken, so that the detector has every attribute
# to check.

# %%
scenes = sample_scenes(torch.arange(count), seed + 40_000,
                       named=torch.ones(count, 2, dtype=torch.bool))
images = render(scenes)  # uint8 [N, 3, 128, 128]
latents = vae.encode(images)                                            # [N, 4, 16, 16]
restored = vae.decode(latents)  # uint8 [N, 3, 128, 128]
error = (images.float() - restored.float()).abs().mean(1)  # [N, 128, 128], grey levels

# %%
Captioned(grid(torch.cat([images[:6], restored[:6]]),
               [*captions(scenes[:6]), *["round trip"] * 6], 6),
          "Six scenes (top) and their round trips (bottom).")

# %%
Captioned(maps(error[:6], [""] * 6, "grey levels", 6, top=50),
          "Absolute error of the six round trips, mean over the colour channels.")

# %%
size = images[0].numel() / latents[0].numel()
off = (error > 25).float().mean()
Markdown(f"""
The latent is {size:.0f} times smaller than the picture. The error is {error.mean():.1f}
grey levels of 255 on average over {count} scenes, it lies along the outlines, and
{off:.2%} of the pixels are off by more than 25 levels, which is how far a colour may
lie from pure red or blue in the detector's eyes.
""")

# %% [markdown]
# Small errors are no comfort if they fall where the metrics look. So the detector of chapter 5 judges each
# scene before and after the round trip. Its verdict is *kept* if all six metrics come out the same.

# %%
def wilson(successes: int, n: int, z: float = 1.96) -> tuple[float, float]:
    """95 % interval of a proportion, valid at 0 and 1 too (Wilson)."""
    p, shrink = successes / n, 1 + z ** 2 / n
    half = z * np.sqrt(p * (1 - p) / n + z ** 2 / (4 * n ** 2))
    return ((p + z ** 2 / (2 * n) - half) / shrink,
            (p + z ** 2 / (2 * n) + half) / shrink)

prompts = captions(scenes)
before, after = score(images, prompts), score(restored, prompts)
kept = (before[list(METRICS)] == after[list(METRICS)]).all(axis=1)
shares = {"before": summarise(before)["mean"], "after": summarise(after)["mean"]}
pd.DataFrame(shares).loc[list(METRICS)].round(4)

# %%
low, high = wilson(kept.sum(), count)
moved = pd.concat([after["dx"] - before["dx"], after["dy"] - before["dy"]]).abs()
Markdown(f"""
The verdict is kept for **{kept.mean():.2%}** of the scenes (95 % interval {low:.2%} to
{high:.2%}). The distance between the two centroids changes by {moved.mean():.2f} px on
average and by {moved.max():.2f} px at most; the threshold between *aligned* and *apart*
is 5 px. What the VAE loses, the metrics do not see.
""")

# %% [markdown]
# ### How exact must a latent be?
#
# A sampled latent is never exactly one that the encoder would have produced. So add Gaussian noise of
# deviation $s$ (in units of the latent's own deviation) and decode:
# $\hat x(s) = \mathrm{Dec}(\sigma (x_0 + s\,\varepsilon) + \mu)$.

# %%
levels = (0.0, 0.1, 0.2, 0.3, 0.4, 0.6, 0.8) if scale == "full" else (0.0, 0.3, 0.8)
few = 96 if scale == "full" else 12
eps = torch.randn(latents[:few].shape, generator=torch.Generator().manual_seed(seed))
noisy = {s: vae.decode(latents[:few] + s * eps) for s in levels}
scores = {s: summarise(score(noisy[s], prompts[:few])) for s in levels}

# %%
some = ["shape", "color", "loose", "strict"]
mean, low, high = (pd.DataFrame({s: t[c] for s, t in scores.items()}).T[some]
                   for c in ("mean", "low", "high"))
Captioned(lines(mean, "latent noise s", "share of scenes", band=(low, high),
                ylim=(-0.02, 1.02)),
          f"Metrics of {few} scenes decoded from noisy latents; bands are 95 % "
          "intervals over prompts.")

# %%
Captioned(grid(torch.stack([noisy[s][0] for s in levels]), [f"s = {s}" for s in levels],
               len(levels)),
          "The first scene, decoded from latents with more and more noise.")

# %%
enough = 0.95 * mean.loc[0.0, "loose"]
safe = max(s for s in levels if (mean.loc[:s, "loose"] >= enough).all())
Markdown(f"""
Up to s = {safe} the loose relation stays within 5 % of what it is without noise: the
decoder forgives errors of that size. At s = {levels[-1]}, loose is
{mean["loose"].iloc[-1]:.2f} and shape {mean["shape"].iloc[-1]:.2f}. This noise is
independent from cell to cell, unlike the errors of a sampler: the figure says how much
the decoder tolerates, not how much error a model makes.
""")

# %% [markdown]
# ## Latent statistics
#
# The noise that a diffusion model learns to remove has deviation 1 in every channel, so its data should have
# it too.

# %%
channels = latents.transpose(0, 1).flatten(1)                           # [4, N * 256]
pd.DataFrame({"mean": channels.mean(1), "deviation": channels.std(1),
              "smallest": channels.amin(1), "largest": channels.amax(1)},
             index=[f"channel {c}" for c in range(4)]).round(2)

# %%
Captioned(maps(torch.cat([latents[0], latents[1]]),
               [f"channel {c}" for c in range(4)] * 2, "latent", 4),
          "The four latent channels of the first two scenes.")

# %%
mixed = torch.corrcoef(channels).fill_diagonal_(0).abs().max()
Markdown(f"""
Mean and deviation are close to 0 and 1; those that the VAE's config holds were measured
on other scenes. A latent is still a picture: objects keep their places, at an eighth of
the resolution, with values far beyond one deviation. The channels share information
(the largest correlation of two is {mixed:.2f}).
""")

# %% [markdown]
# ## How the VAE was trained
#
# From scratch on rendered scenes, on absolute plus squared error and a faint pull of the posterior towards a
# standard normal: $\mathcal L = |x - \hat x| + (x - \hat x)^2 + 10^{-4}\, \mathrm{KL}$ per latent number.

# %%
log = pd.DataFrame([json.loads(line)
                    for line in (VAE_FOLDER / "log.jsonl").read_text().splitlines()])
Captioned(lines(log.set_index("step")[["loss", "mse"]], "step",
                "per pixel, range -1..1", yscale="log"),
          "Training log of the shipped VAE.")

# %%
parameters = sum(p.numel() for p in vae.model.parameters())
command = (VAE_FOLDER / "command.txt").read_text().strip()
Markdown(f"""
{parameters:,} parameters, {log['step'].iloc[-1] + 20:,} steps, squared error
{log['mse'].iloc[0]:.3f} at the start and {log['mse'].tail(5).mean():.5f} at the end.
The command is `{command}`.
""")

# %% [markdown]
# ## The transformer
#
# <aside class="margin">
#
# PixArt is a DiT ([Peebles and Xie, 2023](bibliography.md#peebles2023dit)) with cross-attention to the caption
# added to each block. Its authors share one small network for the shifts, scales and gates of all blocks; each
# block adds its own table.
#
# </aside>
#
# The model is PixArt's ([Chen et al., 2024](bibliography.md#chen2024pixart)): diffusers' `PixArtTransformer2DModel`, unchanged. The latent is cut into patches of 2
# x 2, each patch becomes a token, and a fixed two-dimensional position embedding is added. Each block then
# does
#
# $$u \leftarrow u + g_1 \odot \mathrm{SelfAttn}(\mathrm{adaLN}_1(u)), \quad
#   u \leftarrow u + \mathrm{CrossAttn}(u, c), \quad
#   u \leftarrow u + g_2 \odot \mathrm{MLP}(\mathrm{adaLN}_2(u)),$$
#
# where $u$ is the residual stream, the time sets the shifts, scales and gates $g_1, g_2$ of adaLN, and $c$ is the caption after a small MLP. The
# middle term is the only way from words to picture.

# %%
tokens = images[:4].clone()
tokens[..., ::SIZE // GRID, :] = tokens[..., ::SIZE // GRID] = 255
Captioned(grid(tokens, captions(scenes[:4]), 4),
          "The 8 x 8 cells of the image tokens over four scenes.")

# %%
cell = SIZE // GRID
Markdown(f"""
A token sees {cell} x {cell} px; an object is {2 * RADIUS / cell:.0f} tokens wide.
Self-attention over {GRID ** 2} tokens must decide where the objects go, and the 5
px that make two objects *aligned* are {5 / cell:.1f} of a token.
""")

# %% [markdown]
# ### Size
#
# `nano` to `B` are the paper's sizes; `tiny` is this book's, for training on a CPU.

# %%
PARTS = {"pos_embed": "patch embedding", "adaln_single": "time, adaLN",
         "caption_projection": "caption MLP", "attn1": "self-attention",
         "attn2": "cross-attention", ".ff.": "MLP", "proj_out": "output"}

def part(name: str) -> str:
    """The part of the model that a parameter belongs to."""
    return next((label for key, label in PARTS.items() if key in name),
                "scale and shift tables")

def parameter_count(preset: str) -> pd.Series:
    """Parameters by part, counted on a model without storage."""
    with torch.device("meta"):
        fresh = build_transformer(preset, net.encoder.dim)
    sizes = pd.Series({name: p.numel() for name, p in fresh.named_parameters()})
    return sizes.groupby(part).sum()

parts = pd.DataFrame({preset: parameter_count(preset) for preset in SIZES})
parts = parts.loc[[*PARTS.values(), "scale and shift tables"]]
pd.concat([parts, parts.sum().to_frame("all").T]).map("{:,}".format)

# %%
def forward_flops(preset: str, text_tokens: int = 12) -> int:
    """FLOPs of one forward pass of one image; a multiply-add counts two."""
    with torch.device("meta"):
        shape, mask = (1, text_tokens, net.encoder.dim), (1, text_tokens)
        latents, fresh = torch.zeros(1, 4, 16, 16), build_transformer(preset, shape[2])
        with FlopCounterMode(display=False) as counter:
            predict(fresh, latents, torch.zeros(1), torch.zeros(shape),
                    torch.ones(mask))
    return counter.get_total_flops()

sizes = pd.DataFrame(SIZES, index=["blocks", "heads", "head dimension"]).T
sizes["width"] = sizes["heads"] * sizes["head dimension"]
sizes["parameters"] = parts.sum()
forward = pd.Series({preset: forward_flops(preset) / 1e9 for preset in SIZES})
costs = pd.DataFrame({"forward pass": forward, "training image": 3 * forward,
                      "sample": 2 * STEPS * forward})
sizes.map("{:,}".format).join(costs.map("{:,.2f} GFLOP".format))

# %%
Markdown(f"""
A training image costs three forward passes (one forward, two backward); a sampled image
costs {2 * STEPS}, since each of {STEPS} steps runs with the caption and without it
(guidance {GUIDANCE}). `micro` costs {forward['micro'] / forward['tiny']:.1f} times as
much as `tiny`, `B` {forward['B'] / forward['tiny']:.0f} times. In `tiny`, the MLPs and
the two attentions hold
{parts.loc[['self-attention', 'cross-attention', 'MLP'], 'tiny'].sum() /
parts['tiny'].sum():.0%} of the parameters.
""")

# %% [markdown]
# ### Position
#
# The position embedding is fixed: sines and cosines of the row in one half of the channels, of the column in
# the other, at wavelengths from short to long. It is added once, to the patch embedding, and everything the
# model knows about places starts from it.

# %%
position = net.transformer.pos_embed.pos_embed[0]                       # [64, width]
width = position.shape[1]
shown = [h * width // 2 + k * width // 16 for h in (0, 1) for k in range(4)]
waves = position.T.view(width, GRID, GRID)                       # [width, 8, 8]
Captioned(maps(waves[shown], [f"channel {c}" for c in shown], "value", 4),
          "Eight channels of the position embedding, as maps over the tokens.")

# %%
unit = position / position.norm(dim=1, keepdim=True)
picked = [0, 27, 60]
cosine = (unit[picked] @ unit.T).view(-1, GRID, GRID)           # [3, 8, 8]
Captioned(maps(cosine, [f"row {p // 8}, column {p % 8}" for p in picked], "cosine", 3),
          "Cosine of three tokens' position embeddings with those of all tokens.")

# %%
pairs = unit @ unit.T                                                   # [64, 64]
neighbours = pairs.view(8, 8, 8, 8).diagonal(1, 1, 3).diagonal(0, 0, 1).mean()
Markdown(f"""
Every embedding has norm {position.norm(dim=1).mean():.1f}. Horizontal neighbours have
cosine {neighbours:.2f}, opposite corners {pairs[0, -1]:.2f}: near means similar, and
row and column are kept apart, so that *above* can be read from half of the channels
alone.
""")

# %% [markdown]
# ### Where the text enters
#
# Each word is a vector before it reaches the model (chapter 2). The caption MLP, shared by all blocks, maps
# it to the model's width; keys and values of every cross-attention are linear maps of the result.

# %%
text = net.encoder.encode(captions(scenes[:1]))
projected = net.transformer.caption_projection(text.embeddings)         # [1, T, width]
pd.DataFrame({"role": text.roles[0], "norm": text.embeddings[0].norm(dim=1).numpy(),
              "norm after the MLP": projected[0].norm(dim=1).numpy()},
             index=text.tokens[0]).round(1)

# %% [markdown]
# How much does each block write? Hooks on the cross-attentions compare the length of what they add with the
# length of the token they add it to, at several noise levels of true scenes ($t = 1$ is pure noise; chapter 4
# defines it).

# %%
blocks = net.transformer.transformer_blocks
@torch.no_grad()
def written(t: float, n: int = 24) -> list[float]:
    """Mean length of what cross-attention adds, relative to the residual stream."""
    shares, (alpha, sigma) = [], net.noise.levels(torch.full((n,), t))
    def hook(module, inputs, output):
        shares.append((output.norm(dim=-1) / inputs[0].norm(dim=-1)).mean().item())
    handles = [block.attn2.register_forward_hook(hook) for block in blocks]
    mixture, times = alpha * latents[:n] + sigma * eps[:1], torch.full((n,), 1000 * t)
    predict(net.transformer, mixture, times, text.embeddings, text.mask)
    [handle.remove() for handle in handles]
    return shares

text = net.encoder.encode(prompts[:24])
shares = pd.DataFrame({f"t = {t}": written(t) for t in (1.0, 0.9, 0.8, 0.5, 0.2)})
Captioned(lines(shares, "block", "relative length", ylim=(0, None)),
          "What cross-attention adds to a token, relative to the token, by block and "
          "noise level.")

# %%
most = shares.stack().idxmax()
Markdown(f"""
All {len(shares)} blocks write; the largest share is {shares.max().max():.2f}, in block
{most[0]} at {most[1]}. Length says that text arrives, not what it does there: which
head reads which word is the subject of later chapters, and needs causal tests.
""")

# %% [markdown]
# ### Before training
#
# The output of each cross-attention and the last layer start at zero. A fresh model therefore predicts zero
# for any input and is blind to text until the first gradients arrive.

# %%
def outputs(transformer: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions [1, 4, 16, 16] for a noisy latent with its caption and another."""
    text = net.encoder.encode(prompts[:2])
    inputs = eps[:1], torch.full((1,), 900.0)
    with torch.no_grad():
        return tuple(predict(transformer, *inputs, text.embeddings[i], text.mask[i])
                     for i in ([0], [1]))

fresh = outputs(build_transformer("tiny", net.encoder.dim, seed))
trained = outputs(net.transformer)
Markdown(f"""
Fresh: largest output {fresh[0].abs().max():.1f}, largest change with the caption
{(fresh[0] - fresh[1]).abs().max():.1f}. Trained: {trained[0].abs().max():.1f} and
{(trained[0] - trained[1]).abs().max():.1f}.
""")

# %% [markdown]
# ### Nothing of our own inside
#
# The shipped folder is an ordinary diffusers checkpoint. Loaded by diffusers alone and called by hand, it
# predicts the same numbers, so whatever later chapters find is a property of the stock model.

# %%
stock = PixArtTransformer2DModel.from_pretrained(
    net.folder / "transformer", torch_dtype=torch.float32).eval()
text = net.encoder.encode(prompts[:1])
with torch.no_grad():
    by_hand = stock(eps[:1], encoder_hidden_states=text.embeddings,
                    timestep=torch.full((1,), 900.0),
                    encoder_attention_mask=text.mask.float(),
                    added_cond_kwargs={"resolution": None, "aspect_ratio": None}).sample
Markdown(f"""
`{type(stock).__module__}.{type(stock).__name__}`: largest difference
**{(by_hand - trained[0]).abs().max():.1g}**.
""")

# %% [markdown]
# ## What was established
#
# - The VAE's round trip leaves the detector's verdict as it was, within the interval above: scores of later
#   chapters measure the transformer, not the VAE.
# - Its decoder tolerates moderate noise in the latent, and the latent keeps objects at their places.
# - The transformer is stock diffusers, with 64 image tokens of which an object covers a few, a fixed position
#   embedding as its only sense of place, and cross-attention as its only access to words.
#
# Not established: what any of its parts does. How it learns its task is the next chapter.

# %% [markdown]
# ## Exercise
#
# Move a latent by one cell to the right and decode it. By how many pixels do the objects move, and what becomes of their
# shapes?
#
# :::{admonition} Solution
# :class: dropdown
#
# ```python
# from spatial_circuits.data.detect import detect
#
# def found(picture: torch.Tensor) -> dict[str, float]:
#     """The detector's shapes, with the x of each centroid in px."""
#     return {blob.shape: blob.center[0] for blob in detect(picture)}
#
# latent = vae.encode(render(sample_scenes(torch.arange(1), seed)))
# before, after = (found(vae.decode(z)[0]) for z in (latent, latent.roll(1, -1)))
# assert before.keys() == after.keys() and len(before) == 2
# assert all(abs(after[s] - before[s] - SIZE / 16) < 1 for s in before)
# ```
#
# By 8 px, the size of a cell, and the shapes stay: the decoder does the same at every place, and a latent is a small picture.
# :::
