"""Stock: any diffusers pipeline around a PixArtTransformer2DModel as a `Model` of ours.

The pipeline itself is called, with its scheduler, guidance and micro-conditions; a hook before each
forward says what its rows are (see `forward`). Pictures and latents are those of the plain pipeline
bit by bit, with readers attached or without. Its parts stay as they were loaded, also in that they
require gradients: a convolution that does not takes another kernel, with other last digits.
"""
import copy
import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from threading import get_ident
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DiffusionPipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from huggingface_hub import HfApi, try_to_load_from_cache
from torch import Tensor, nn
from tqdm import tqdm
from transformers import T5EncoderModel

from ..text.encoders import load_encoder
from ..text.hub import read_pretrained
from ..text.pipeline_encoder import PipelineEncoder
from .forward import BRANCHES, TOLD, Forward
from .noise import Noise
from .pipeline import Model
from .sampler import GUIDANCE, STEPS, Watcher, initial_noise, ready_scheduler
from .vae import VAE

PIPELINES = {cls.__name__: cls for cls in (PixArtAlphaPipeline, PixArtSigmaPipeline)}
PIXELS = 2 ** 20    # decoded at once: a picture of 1,024 px, four of 512
DTYPES = ("float32", "bfloat16", "float16")
_PARTS = {"transformer": PixArtTransformer2DModel, "vae": AutoencoderKL,
          "text_encoder": T5EncoderModel}


@dataclass
class StockVAE(VAE):
    """A pipeline's VAE, decoding as the pipeline does; any size of picture."""
    processor: Any

    @torch.no_grad()
    def decode(self, latents: Tensor, batch: int = 16) -> Tensor:
        """latents [B, C, h, w] -> uint8 [B, 3, H, W] on the VAE's device; `batch` pictures at once
        or as many as PIXELS, at least one.

        Raises ValueError for latents whose picture is not finite.
        """
        factor = self.processor.config.vae_scale_factor
        out = torch.empty(len(latents), 3, *(factor * n for n in latents.shape[2:]),
                          dtype=torch.uint8)
        batch = max(1, min(batch, PIXELS // out[:1, 0].numel())) if len(out) else batch
        for start in range(0, len(latents), batch):
            z = latents[start:start + batch].to(self.model.device, self.model.dtype)
            x = self.model.decode(z / self.model.config.scaling_factor, return_dict=False)[0]
            if not x.isfinite().all():
                raise ValueError(f"an image from {start} on is not finite: its latents hold NaN, "
                                 "infinity, or more than this precision can")
            unit = torch.from_numpy(self.processor.postprocess(x, output_type="np"))
            out[start:start + batch] = (unit * 255).round().movedim(-1, 1)
        return out.to(self.model.device)


@dataclass
class StockModel(Model):
    """A diffusers pipeline as a model. `encoder` may be put another one, such as `Prepared`: its
    embeddings then are what the pipeline is given."""
    pipe: DiffusionPipeline

    @torch.no_grad()
    def latents(self, prompts: list[str], seeds: list[int], steps: int = STEPS,
                guidance: float | None = GUIDANCE, batch: int = 8,
                on_step: Watcher | None = None, progress: bool = False, **call) -> Tensor:
        """Latents [B, C, h, w] on the model's device, in its precision.

        Options as of `sampler.sample_latents`, but `guidance` up to 1 is none, as in the pipeline;
        `on_step` counts a second-order solver's two forwards as one. `call` goes to the pipeline
        (height and width in px, negative_prompt ...). Raises ValueError for a wrong option, and
        for latents that are not finite.
        """
        forwards = self._check(prompts, seeds, steps, guidance, batch, call)
        text, run, scale = self._text(prompts), object(), guidance or 1.0
        if on_step:
            call["callback"] = lambda step, time, latents: on_step(step, latents)
        branches, size = BRANCHES if scale > 1 else BRANCHES[1:], self.transformer.config
        out = []
        for first in tqdm(range(0, len(prompts), batch), desc="sampling", disable=not progress):
            part = range(first, min(first + batch, len(prompts)))
            pipe, told = copy.copy(self.pipe), (tuple(part), branches, forwards, run)
            pipe.scheduler = type(self.scheduler).from_config(self.scheduler.config)  # holds state
            pipe.set_progress_bar_config(disable=True)
            generator = [torch.Generator().manual_seed(int(seeds[i])) for i in part]
            with _telling(self.transformer, pipe.vae_scale_factor, *told):
                latents = pipe(num_inference_steps=steps, guidance_scale=scale, return_dict=False,
                               generator=generator, output_type="latent",
                               use_resolution_binning=False, **text(part, scale > 1), **call)[0]
            for i in (~latents.isfinite().flatten(1).all(1)).nonzero().flatten().tolist():
                raise ValueError(f"the latents of {prompts[first + i]!r}, seed {seeds[first + i]}, "
                                 "are NaN or infinite; look at weights, precision and hooks")
            out.append(latents)
        nothing = torch.empty(0, size.in_channels, size.sample_size, size.sample_size)
        return torch.cat(out) if out else nothing.to(self.device)

    def _check(self, prompts, seeds, steps, guidance, batch, call) -> int:
        """The number of forwards. Raises ValueError naming the first wrong option."""
        if isinstance(prompts, str) or len(prompts) != len(seeds):
            raise ValueError(f"prompts {prompts!r} and seeds {seeds!r} must be lists of one length")
        if not isfinite(guidance or 0) or batch < 1:
            raise ValueError(f"guidance is {guidance}, batch is {batch}; they must be a finite "
                             "number or None, and at least 1")
        allowed = inspect.signature(self.pipe.__call__).parameters
        if unknown := [name for name in call if name not in allowed]:
            raise ValueError(f"option {unknown[0]!r} is unknown; choose from {', '.join(allowed)}")
        if seeds:
            initial_noise(seeds, 1, 1)                               # refuses what is no seed
        alpha = isinstance(self.pipe, PixArtAlphaPipeline)
        if steps == 1 and alpha and hasattr(self.scheduler, "model_outputs"):
            raise ValueError("steps is 1; diffusers' PixArtAlphaPipeline needs at least 2 with "
                             f"{type(self.scheduler).__name__}")
        return len(ready_scheduler(self.scheduler, steps).timesteps)

    def _text(self, prompts: Sequence[str]) -> Any:
        """A function (numbers of prompts, guided) -> the pipeline's arguments about text."""
        if isinstance(self.encoder, PipelineEncoder):
            own = self.encoder.options
            return lambda part, _: {"prompt": [prompts[i] for i in part], **own}
        unique = list(dict.fromkeys(["", *prompts]))                 # row 0: the null
        coded = self.encoder.encode(unique)
        embeddings = coded.embeddings.to(self.device, self.transformer.dtype)
        mask = coded.mask.to(self.device)

        def given(part: range, guided: bool) -> dict[str, Any]:
            rows = [unique.index(prompts[i]) for i in part]
            branches = {"": rows, "negative_": [0] * len(rows)} if guided else {"": rows}
            named = {f"{b}prompt_embeds": embeddings[r] for b, r in branches.items()}
            masks = {f"{b}prompt_attention_mask": mask[r] for b, r in branches.items()}
            return {"negative_prompt": None, **named, **masks}
        return given

    def fast(self) -> "StockModel":
        """Itself: a pipeline runs in the precision it was loaded in."""
        return self

    def to(self, device: str | torch.device) -> "StockModel":
        """This model, moved in place with all of its pipeline."""
        self.pipe.to(device)
        self.vae.to(device)
        return self


@contextmanager
def _telling(transformer: nn.Module, factor: int, samples: tuple[int, ...],
             branches: tuple[str, ...], steps: int, run: object) -> Iterator[None]:
    """Within the block, before each forward of this thread: say what its rows are, and give the
    micro-conditions that the model wants and the pipeline leaves out."""
    step, thread = 0, get_ident()

    def before(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        nonlocal step
        if get_ident() != thread:
            return None
        TOLD.set(Forward(step, samples, branches, steps, run))
        step += 1
        given = kwargs.get("added_cond_kwargs") or {}
        if not module.use_additional_conditions or given.get("resolution") is not None:
            return None
        height, width = (factor * n for n in args[0].shape[-2:])
        given = {"resolution": args[0].new_tensor([[height, width]] * len(args[0])),
                 "aspect_ratio": args[0].new_tensor([[height / width]] * len(args[0]))}
        return args, {**kwargs, "added_cond_kwargs": given}

    token = TOLD.set(None)
    handle = transformer.register_forward_pre_hook(before, with_kwargs=True, prepend=True)
    try:
        yield
    finally:
        handle.remove()
        TOLD.reset(token)


def load_pipeline(name: str | Path, vae: Any = None, dtype: str | None = None) -> StockModel:
    """A diffusers pipeline by folder or hub name, in `dtype` (float32 by default, as in diffusers),
    on request with another AutoencoderKL.

    A folder without a text encoder needs a text.json (see `text.encoders`). Raises ValueError for
    another kind of pipeline, and for what cannot be found or is damaged.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is unknown; choose from {', '.join(DTYPES)}")
    kept, local = getattr(torch, dtype or "float32"), {"local_files_only": True}
    parts = {} if vae is None else {"vae": vae.to(kept)}
    try:
        if not Path(name).exists() and not try_to_load_from_cache(str(name), "model_index.json"):
            HfApi().model_info(str(name), timeout=2)    # diffusers would try for half a minute
            local = {}
        index = DiffusionPipeline.load_config(name, **local)
        kind = index["_class_name"]
        for part, cls in _PARTS.items() if kind in PIPELINES else ():
            if part not in parts and index[part][0] is not None:
                precision = {"dtype" if part == "text_encoder" else "torch_dtype": kept}
                parts[part] = read_pretrained(cls, name, subfolder=part, **precision)
        if kind in PIPELINES:
            pipe = PIPELINES[kind].from_pretrained(name, **local, **parts)
    except Exception as error:                          # a damaged folder raises whatever it likes
        raise ValueError(f"{name} is no pipeline that can be read: {error}") from error
    if kind not in PIPELINES:
        raise ValueError(f"{name} holds a {kind}; choose one with {' or '.join(PIPELINES)}")
    record, text = {"name": "pipeline", "options": {}}, Path(name) / "text.json"
    if pipe.text_encoder is None and not text.is_file():
        raise ValueError(f"{name} holds no text encoder; save one with it or name one in text.json")
    if pipe.text_encoder is None:
        record = json.loads(text.read_text())
    encoder = PipelineEncoder(pipe) if pipe.text_encoder else load_encoder(record, text.parent)
    one = torch.ones(1, 1, 1, 1)
    decoder = StockVAE(pipe.vae, 0 * one, one / pipe.vae.config.scaling_factor,
                       pipe.image_processor)
    return StockModel(Path(name).name, pipe.transformer, pipe.scheduler, encoder, decoder,
                      Noise("ddpm", "epsilon"), record, Path(name), pipe)
