"""Train: one loop for CPU and GPU, resumable bit for bit, logging to JSONL.

Everything random in step i is a pure function of (seed, i), so a resumed run sees what it would
have seen, and several processes together see what one would: a checkpoint holds weights, EMA,
optimizer states and the step. accelerate brings device, precision and several processes.
"""
import time
from collections.abc import Callable
from contextlib import contextmanager
from math import cos, pi
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from torch import Tensor
from tqdm import tqdm

from ..memory import keep_freed_memory
from ..model.compiling import compiled_forward
from ..model.noise import Noise
from ..model.precision import resolve_precision
from ..model.transformer import build_transformer, predict
from ..model.vae import VAE
from ..text.batch import Encoder
from .batches import Batches, encode_captions
from .checkpoint import restore, save_snapshot, save_state
from .lock import claimed
from .log import Log
from .muon import Muon
from .recipe import Recipe, check_counts, check_recipe
from .run_folder import check_run, leave, run_record, stop_asked, write_run

LOG_EVERY = 50
ASK_EVERY = 10      # steps between two agreements of several processes on whether to stop


def optimizers(model: torch.nn.Module, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """AdamW, and Muon on the matrices inside the blocks (not with muon_lr 0)."""
    blocks = [p for n, p in model.named_parameters() if recipe.muon_lr and "transformer_blocks" in n
              and p.ndim == 2 and "scale_shift" not in n]
    chosen = {id(p) for p in blocks}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    adam = torch.optim.AdamW(rest, lr=recipe.lr, weight_decay=recipe.weight_decay, eps=recipe.eps,
                             fused=True)
    return [adam, Muon(blocks, lr=recipe.muon_lr)] if blocks else [adam]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Learning rate as a share of its peak: linear warm-up, constant, then a cosine to zero over
    the last `decay`."""
    start = (1 - recipe.decay) * recipe.steps
    fall = 1.0
    if step > start:
        fall = (1 + cos(pi * min(1, (step - start) / (recipe.steps - start)))) / 2
    return min(1.0, (step + 1) / max(1, recipe.warmup)) * fall


def set_rates(optimizers_: list, step: int, recipe: Recipe) -> None:
    """The step's learning rates, for the optimizers as `optimizers` gives them."""
    peaks = [recipe.lr, recipe.muon_lr][:len(optimizers_)]
    for optimizer, peak in zip(optimizers_, peaks, strict=True):
        optimizer.param_groups[0]["lr"] = peak * learning_rate(step, recipe)


def batch_loss(model: torch.nn.Module, noise: Noise, x0: Tensor, eps: Tensor, t: Tensor,
               text: Tensor, mask: Tensor) -> Tensor:
    """Mean loss of a batch, as `Batches.batch` gives it."""
    alpha, sigma = noise.levels(t)
    output = predict(model, alpha * x0 + sigma * eps, t * 1000, text, mask)
    return noise.loss(output.float(), x0, eps, t).mean()


def update(optimizers_: list, parameters: list, clip: float, scaler=None) -> None:
    """Clip the gradient's norm (0: not at all), take every optimizer's step, clear the gradients;
    fp16's loss scale is taken out once per optimizer and adapted once per step."""
    if scaler:
        for optimizer in optimizers_:
            scaler.unscale_(optimizer)
    if clip:
        torch.nn.utils.clip_grad_norm_(parameters, clip)
    for optimizer in optimizers_:
        if scaler:
            scaler.step(optimizer)
        else:
            optimizer.step()
        optimizer.zero_grad()
    if scaler:
        scaler.update()


def train(recipe: Recipe, encoder: Encoder, vae: VAE, folder: str | Path, *, resume: bool = False,
          evaluate: Callable[[torch.nn.Module], dict] | None = None, evaluate_every: int = 1000,
          checkpoint_every: int = 500, stop_at: int | None = None, progress: bool = True,
          device: str | None = None, text: dict | None = None,
          wait: bool = False, keep: bool = False) -> torch.nn.Module:
    """Train a model in `folder` (recipe.json, run.json, log.jsonl, checkpoint-STEP.safetensors,
    snapshots/) and return the EMA weights in a model.

    `evaluate(model)` returns numbers to log, beside a snapshot of the cross-attention weights. With
    `resume`, continue from the last complete checkpoint, to the same weights as in one piece.
    `stop_at` ends early, as a kill would, after a checkpoint. `device` is cpu, cuda or cuda:N; None
    takes a GPU where there is one. `text`, name and options of the encoder, is kept to refuse
    another on resume. `wait` waits while another run is going on there; `keep` leaves older
    checkpoints where they are. SIGTERM ends the step, writes a checkpoint and leaves by SystemExit.

    Raises ValueError for wrong values, a run of another recipe, encoder, VAE or precision, and a
    loss that is not finite (the last checkpoint is then kept); FileExistsError if the folder holds
    a run and `resume` is off; BlockingIOError if a run is going on there and `wait` is off.
    """
    check_recipe(recipe)
    check_counts(evaluate_every=evaluate_every, checkpoint_every=checkpoint_every,
                 stop_at=recipe.steps if stop_at is None else stop_at)
    folder = Path(folder)
    accelerator = start_accelerator(recipe, device)
    main = accelerator.is_main_process
    with claimed(folder, main, wait):
        return _train(recipe, encoder, vae, folder, accelerator, resume, evaluate, evaluate_every,
                      checkpoint_every, min(stop_at or recipe.steps, recipe.steps),
                      progress and main, text, keep)


def start_accelerator(recipe: Recipe, device: str | None) -> Accelerator:
    """Device, precision and processes. ValueError if they do not go together, or with the batch."""
    name = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if torch.device(name).type not in ("cpu", "cuda"):
        raise ValueError(f"device {name!r} is unknown; choose cpu, cuda or cuda:N")
    if name != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} is not available: PyTorch finds no GPU; choose cpu")
    if name.startswith("cuda:"):
        torch.cuda.set_device(name)
    precision = resolve_precision(recipe.precision, name)
    if precision == "fp16" and name == "cpu":
        raise ValueError("precision fp16 needs a GPU; choose auto, no or bf16")
    AcceleratorState._reset_state()     # a process may train several models, each at its precision
    if PartialState._shared_state and PartialState().device.type != torch.device(name).type:
        PartialState._reset_state()     # ... and on its own device
    accelerator = Accelerator(mixed_precision=precision, cpu=name == "cpu")
    if recipe.batch % accelerator.num_processes:
        raise ValueError(f"batch is {recipe.batch}; it must be a multiple of the number of "
                         f"processes, {accelerator.num_processes}")
    return accelerator


def _train(recipe: Recipe, encoder: Encoder, vae: VAE, folder: Path, accelerator: Accelerator,
           resume: bool, evaluate: Callable | None, evaluate_every: int, checkpoint_every: int,
           last: int, progress: bool, text: dict | None, keep: bool) -> torch.nn.Module:
    main, device, scaler = accelerator.is_main_process, accelerator.device, accelerator.scaler
    keep_freed_memory()
    alone = accelerator.num_processes == 1
    cheap = alone and device.type == "cpu"      # to look at a loss: a GPU would have to wait
    captions = encode_captions(encoder)
    record = run_record(captions, vae, accelerator.mixed_precision, device, text)
    check_run(folder, recipe, record, resume)
    batches = Batches(recipe, captions, vae, device, progress)
    net = build_transformer(recipe.size, encoder.dim, recipe.seed).to(device)
    if device.type == "cpu" and accelerator.mixed_precision == "bf16":
        net.set_attn_processor(AttnProcessor())  # the fused one's bf16 backward is 20 times slower
    opts = optimizers(net, recipe)
    ema = EMAModel(net.parameters(), decay=recipe.ema, use_ema_warmup=True, power=0.75,
                   foreach=True)
    first = restore(folder, net, ema, opts, scaler) if resume else 0
    model = accelerator.prepare(net)
    share = recipe.batch // accelerator.num_processes
    part = slice(accelerator.process_index * share, (accelerator.process_index + 1) * share)

    def batch(step: int) -> tuple[Tensor, ...]:
        rows = step * recipe.batch + torch.arange(recipe.batch, device=device)
        return batches.batch(step, rows, part)

    def attempt(forward) -> None:
        batch_loss(forward, recipe.noise, *batch(first)).backward()
    forward = model
    if recipe.compile and first < last:
        forward = compiled_forward(net, model, attempt)
        net.zero_grad()
    accelerator.wait_for_everyone()              # all have read what the folder holds
    log = None
    if main:
        write_run(folder, recipe, record)
        log = Log(folder / "log.jsonl", first)
    losses: list[Tensor] = []
    bar = tqdm(total=recipe.steps, initial=first, unit="step", desc="training",
               disable=not progress)
    with bar, stop_asked() as asked:
        since = time.perf_counter()
        for step in range(first, last):
            loss = batch_loss(forward, recipe.noise, *batch(step))
            accelerator.backward(loss)
            set_rates(opts, step, recipe)
            losses.append(loss.detach())
            done = step + 1
            saving = done % checkpoint_every == 0 or done == last
            judging = evaluate is not None and (done % evaluate_every == 0 or done == recipe.steps)
            logging = done % LOG_EVERY == 0 or done == last
            stopping = asked() if alone else done % ASK_EVERY == 0 and _any(accelerator, asked())
            if logging or saving or judging or stopping or cheap:
                _check_losses(accelerator, losses, step, recipe)
            update(opts, list(net.parameters()), recipe.clip, scaler)
            ema.step(net.parameters())
            bar.update()
            if logging:
                mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                speed = len(losses) * recipe.batch / (time.perf_counter() - since)
                bar.set_postfix(loss=f"{mean:.4f}", images=f"{speed:.0f}/s")
                if log:
                    log.write(step=done, images=done * recipe.batch, loss=mean,
                              images_per_s=round(speed, 1))
                losses, since = [], time.perf_counter()
            if saving or judging or stopping:
                _check_weights(net, done)
            if log and evaluate and judging:
                paused = time.perf_counter()
                with averaged(net, ema):
                    log.write(step=done, images=done * recipe.batch, **evaluate(net))
                    save_snapshot(folder, done, net)
                since += time.perf_counter() - paused
            if main and (saving or stopping):
                save_state(folder, done, net, ema, opts, scaler, keep)
            if stopping and done < last:
                leave(folder, done)
    accelerator.wait_for_everyone()
    ema.copy_to(net.parameters())
    return net.eval()


def _any(accelerator: Accelerator, flag: bool) -> bool:
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), "sum") > 0)


def _check_losses(accelerator: Accelerator, losses: list[Tensor], step: int,
                  recipe: Recipe) -> None:
    """ValueError, with step and rates, if one of the last `losses` of any process is not finite."""
    bad = ~accelerator.reduce(torch.stack(losses), "mean").isfinite()
    if bad.any():
        step -= len(losses) - 1 - int(bad.int().argmax())
        share = learning_rate(step, recipe)
        raise ValueError(
            f"the loss of step {step + 1} is not finite, at learning rates lr "
            f"{recipe.lr * share:.3g} and muon_lr {recipe.muon_lr * share:.3g}; "
            "lower them and start anew")


def _check_weights(model: torch.nn.Module, done: int) -> None:
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise ValueError(f"the weights are not finite after step {done}; lower the learning rates "
                         "and start anew")


@contextmanager
def averaged(model: torch.nn.Module, ema):
    """Within the block the model carries its EMA weights."""
    ema.store(model.parameters())
    ema.copy_to(model.parameters())
    model.eval()
    try:
        yield
    finally:
        ema.restore(model.parameters())
        model.train()
