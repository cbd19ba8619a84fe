"""Train: one loop for CPU and GPU, resumable bit for bit, logging to JSONL.

Everything random in step i is a pure function of (seed, i), so a resumed run sees what it would have seen: a checkpoint
holds weights, EMA, optimizer states and the step. accelerate brings device, precision and several processes.
"""
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from math import cos, pi
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from . import dit
from .captions import all_captions, caption_index
from .checkpoint import restore, save_snapshot, save_state
from .recipe import Recipe, check, precision
from .render import render
from .scenes import UPPER_FIRST, Scenes, sample, swapped, uniform
from .text import Encoder
from .vae import VAE


class Data:
    """Training batches: latents, text rows. Captions are encoded once, scenes once (`cache`) or in every step."""

    def __init__(self, recipe: Recipe, encoder: Encoder, vae: VAE, device: torch.device, progress: bool = True):
        text = encoder.encode(["", *all_captions()])
        self.text, self.mask = text.embeddings.to(device), text.mask.to(device)     # row 0 is the null
        self.recipe, self.vae, self.device = recipe, vae.to(device), device
        if recipe.cache:
            chunks = torch.arange(recipe.cache, device=device).split(256)
            self.latents = torch.cat([self._encode(self._scenes(c)).half() for c in
                                      tqdm(chunks, desc="encoding scenes", disable=not progress)])

    def _scenes(self, index: Tensor) -> Scenes:
        return sample(index, self.recipe.seed, self.recipe.preset)

    def _encode(self, scenes: Scenes) -> Tensor:
        return self.vae.encode(render(scenes))

    def batch(self, step: int, rows: Tensor) -> tuple[Tensor, ...]:
        """Global sample numbers [b] -> x0, eps [b, 4, 16, 16], t [b], text [b, T, D], mask [b, T]."""
        recipe = self.recipe
        index = rows % recipe.cache if recipe.cache else rows
        scenes = self._scenes(index)
        x0 = self.latents[index].float() if recipe.cache else self._encode(scenes)
        u = uniform(recipe.seed + 1, rows, 5)                                       # [b, 5], afresh on every visit
        dropping = recipe.drop_colors * (step >= recipe.drop_from * recipe.steps)
        scenes = scenes.replace(named=u[:, :2] >= dropping)
        if recipe.first_up != 0.5:
            up = 0.5 + (recipe.first_up - 0.5) * max(0.0, 1 - step / max(1e-9, recipe.first_until * recipe.steps))
            upper = torch.isin(scenes.relation, UPPER_FIRST.to(self.device))
            scenes = swapped(scenes, upper != (u[:, 4] < up))
        row = torch.where(u[:, 2] < recipe.text_dropout, 0, 1 + caption_index(scenes))
        generator = torch.Generator(self.device).manual_seed(recipe.seed * 1_000_003 + int(rows[0]))
        eps = torch.randn(x0.shape, generator=generator, device=self.device)
        order = torch.randperm(len(rows), generator=generator, device=self.device)
        t = recipe.noise.times((order + u[:, 3]) / len(rows))                       # stratified over the batch
        return x0, eps, t, self.text[row], self.mask[row]


def optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Muon on the matrices inside the blocks, AdamW on everything else."""
    blocks = [p for n, p in model.named_parameters() if recipe.muon_lr and "transformer_blocks" in n
              and p.ndim == 2 and "scale_shift" not in n]
    chosen = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=recipe.lr, weight_decay=recipe.weight_decay, eps=recipe.eps)
    return [adam] + ([torch.optim.Muon(blocks, lr=recipe.muon_lr, weight_decay=0.01)] if blocks else [])


def rate(step: int, recipe: Recipe) -> float:
    """Learning rate as a share of its peak: linear warm-up, constant, then a cosine to zero over the last `decay`."""
    start = (1 - recipe.decay) * recipe.steps
    fall = (1 + cos(pi * min(1, (step - start) / (recipe.steps - start)))) / 2 if step > start else 1.0
    return min(1.0, (step + 1) / max(1, recipe.warmup)) * fall


def train(recipe: Recipe, encoder: Encoder, vae: VAE, folder: str | Path, *, resume: bool = False,
          evaluate: Callable[[torch.nn.Module], dict] | None = None, evaluate_every: int = 1000,
          checkpoint_every: int = 500, stop_at: int | None = None, progress: bool = True) -> torch.nn.Module:
    """Train a model in `folder` (log.jsonl, checkpoint/) and return the EMA weights in a model.

    `evaluate(model)` returns numbers that are logged with the step, beside a snapshot of the cross-attention weights. With `resume`, continue from the last complete
    checkpoint, to the same weights as without the interruption. `stop_at` ends early, as a kill would, after a checkpoint.
    Raises FileExistsError if the folder holds a run and `resume` is off, ValueError if it was another recipe.
    """
    check(recipe)
    folder = Path(folder)
    AcceleratorState._reset_state()  # one process may train several models, each at its own precision
    accelerator = Accelerator(mixed_precision=precision(recipe.precision), cpu=not torch.cuda.is_available())
    main, device = accelerator.is_main_process, accelerator.device
    start_record(folder, recipe, resume, main)
    data = Data(recipe, encoder, vae, device, progress and main)
    net = dit.build(recipe.size, encoder.dim, recipe.seed).to(device)
    if device.type == "cpu" and accelerator.mixed_precision == "bf16":
        net.set_attn_processor(AttnProcessor())  # the fused attention's bf16 backward is 20 times slower on CPUs
    opts = optimizers(net, recipe)
    ema = EMAModel(net.parameters(), decay=recipe.ema, use_ema_warmup=True, power=0.75, foreach=True)
    first = restore(folder, net, ema, opts) if resume else 0
    model, *prepared = accelerator.prepare(net, *opts)
    forward = torch.compile(model) if recipe.compile else model
    share = recipe.batch // accelerator.num_processes
    log = Log(folder / "log.jsonl", first) if main else None
    last = min(stop_at or recipe.steps, recipe.steps)
    peaks = [recipe.lr, recipe.muon_lr][:len(opts)]
    with tqdm(total=recipe.steps, initial=first, unit="step", desc="training", disable=not (progress and main)) as bar:
        losses, since = [], time.perf_counter()
        for step in range(first, last):
            rows = step * recipe.batch + accelerator.process_index * share + torch.arange(share, device=device)
            x0, eps, t, text, mask = data.batch(step, rows)
            alpha, sigma = recipe.noise.levels(t)
            output = dit.predict(forward, alpha * x0 + sigma * eps, t * 1000, text, mask)
            loss = recipe.noise.loss(output.float(), x0, eps, t).mean()
            accelerator.backward(loss)
            accelerator.clip_grad_norm_(net.parameters(), recipe.clip)
            for optimizer, peak in zip(prepared, peaks):
                optimizer.param_groups[0]["lr"] = peak * rate(step, recipe)
                optimizer.step()
                optimizer.zero_grad()
            ema.step(net.parameters())
            losses.append(loss.detach())
            bar.update()
            done = step + 1
            if main and (done % 50 == 0 or done == last):
                mean, seconds = torch.stack(losses).mean().item(), time.perf_counter() - since
                speed = len(losses) * recipe.batch / seconds
                bar.set_postfix(loss=f"{mean:.4f}", images=f"{speed:.0f}/s")
                log.write(step=done, images=done * recipe.batch, loss=mean, images_per_s=round(speed, 1))
                losses, since = [], time.perf_counter()
            if main and evaluate and (done % evaluate_every == 0 or done == recipe.steps):
                paused = time.perf_counter()
                with averaged(net, ema):
                    log.write(step=done, images=done * recipe.batch, **evaluate(net))
                    save_snapshot(folder, done, net)
                since += time.perf_counter() - paused
            if main and (done % checkpoint_every == 0 or done == last):
                save_state(folder, done, net, ema, opts)
    accelerator.wait_for_everyone()
    ema.copy_to(net.parameters())
    return net.eval()


class averaged:
    """Within the block the model carries its EMA weights."""

    def __init__(self, model, ema):
        self.model, self.ema = model, ema

    def __enter__(self):
        self.ema.store(self.model.parameters())
        self.ema.copy_to(self.model.parameters())
        self.model.eval()

    def __exit__(self, *_):
        self.ema.restore(self.model.parameters())
        self.model.train()


class Log:
    """A JSONL file, one record a line, flushed at once; records after step `keep` are dropped when a run resumes."""

    def __init__(self, path: Path, keep: int = 0):
        self.path, self.started = path, time.time()
        records = [r for r in read_log(path) if r["step"] <= keep] if path.exists() and keep else []
        self.before = max((r["seconds"] for r in records), default=0.0)
        write_text(path, "".join(json.dumps(r) + "\n" for r in records))

    def write(self, **record) -> None:
        record["seconds"] = round(self.before + time.time() - self.started, 1)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small file as a whole: a kill leaves the old one or the new one."""
    partial = path.with_suffix(".partial")
    partial.write_text(text)
    os.replace(partial, path)


def read_log(path: str | Path) -> list[dict]:
    """The records of a training log; a last line cut short by a kill is left out."""
    records = []
    for line in Path(path).read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def start_record(folder: Path, recipe: Recipe, resume: bool, main: bool) -> None:
    """Write the run's recipe.json, or check it when resuming; the main process alone, before it starts to write."""
    if not main:
        return
    path, now = folder / "recipe.json", json.loads(json.dumps(asdict(recipe)))
    if path.exists() and not resume:
        raise FileExistsError(f"{folder} holds a run; resume it or choose another folder")
    if path.exists() and json.loads(path.read_text()) != now:
        then = json.loads(path.read_text())
        names = [k for k in now if then.get(k) != now[k]]
        raise ValueError(f"{folder} was started with another recipe; it differs in {', '.join(names)}")
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(now, indent=1))
