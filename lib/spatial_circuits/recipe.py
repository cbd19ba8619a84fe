"""Recipe: every choice of a training run in one frozen record, checked before any work."""
from dataclasses import dataclass, field, fields, replace

import torch

from .dit import PRESETS as SIZES
from .noise import Noise
from .scenes import PRESETS


@dataclass(frozen=True)
class Recipe:
    """How to train. `PAPER` is the authors' recipe; the default is the one this book arrived at."""
    size: str = "tiny"
    steps: int = 3_200
    batch: int = 128                # over all processes
    noise: Noise = field(default_factory=Noise)
    muon_lr: float = 0.02           # for the matrices of the blocks; 0 = AdamW for all
    lr: float = 2e-3                # AdamW, for the rest
    weight_decay: float = 0.0
    eps: float = 1e-8
    clip: float = 1.0
    warmup: int = 100
    decay: float = 0.5              # the last share of the steps takes the learning rate to zero; 0 = constant
    ema: float = 0.999
    text_dropout: float = 0.1
    drop_colors: float = 0.5        # each colour word is left out with this probability ...
    drop_from: float = 0.0          # ... from this share of the steps on; until then both are spoken
    first_up: float = 0.95          # share of captions that mention the upper (if level, the left) object first ...
    first_until: float = 0.4        # ... falling linearly to one half over this share of the steps; 0.5 = no bias
    preset: str = "clean"
    cache: int = 65_536             # scenes encoded once by the VAE; 0 = encode fresh scenes in every step
    precision: str = "auto"         # no, bf16, fp16; auto = bf16 where the processor multiplies it fast
    compile: bool = True
    seed: int = 0


PAPER = Recipe(size="mini", steps=160_000, batch=256, noise=Noise(path="ddpm", prediction="epsilon", high=0.0), muon_lr=0.0,
               lr=1e-4, weight_decay=3e-2, eps=1e-10, clip=0.01, warmup=500, decay=0.0, ema=0.9999, first_up=0.5,
               preset="paper", cache=10_000)
RECIPES = {"fast": Recipe(), "paper": PAPER}


def precision(name: str) -> str:
    """Resolve "auto": bf16 on a GPU or a CPU with bf16 matrix units (AMX), else full precision."""
    if name not in ("auto", "no", "bf16", "fp16"):
        raise ValueError(f"precision {name!r} is unknown; choose from auto, no, bf16, fp16")
    if name != "auto":
        return name
    amx = getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)()
    return "bf16" if torch.cuda.is_available() or amx else "no"


def override(recipe: Recipe, changes: dict) -> Recipe:
    """A recipe with fields replaced, `noise.x` reaching into its noise.

    Raises ValueError for an unknown field or a value of another type, naming both.
    """
    noise = {k[6:]: v for k, v in changes.items() if k.startswith("noise.")}
    plain = {k: v for k, v in changes.items() if not k.startswith("noise.")}
    for target, given, prefix in ((recipe.noise, noise, "noise."), (recipe, plain, "")):
        known = {f.name: getattr(target, f.name) for f in fields(target) if f.name != "noise"}
        for name, value in given.items():
            if name not in known:
                raise ValueError(f"unknown recipe field {prefix}{name}; choose from {', '.join(sorted(known))}")
            wanted = type(known[name])
            if type(value) is not wanted and not (wanted is float and type(value) is int):
                raise ValueError(f"recipe field {prefix}{name} is {value!r}; it must be of type {wanted.__name__}")
    check(recipe := replace(recipe, noise=replace(recipe.noise, **noise), **plain))
    return recipe


def check(recipe: Recipe) -> None:
    """Raises ValueError, naming field and range, for a recipe that cannot run."""
    if recipe.size not in SIZES:
        raise ValueError(f"size {recipe.size!r} is unknown; choose from {', '.join(SIZES)}")
    if recipe.preset not in PRESETS:
        raise ValueError(f"preset {recipe.preset!r} is unknown; choose from {', '.join(PRESETS)}")
    precision(recipe.precision)
    for name in ("steps", "batch"):
        if getattr(recipe, name) < 1:
            raise ValueError(f"{name} is {getattr(recipe, name)}; it must be at least 1")
    for name in ("muon_lr", "lr", "weight_decay", "eps", "clip", "warmup", "cache"):
        if not getattr(recipe, name) >= 0:
            raise ValueError(f"{name} is {getattr(recipe, name)}; it must be at least 0")
    if recipe.preset == "paper" and recipe.first_up != 0.5:
        raise ValueError("first_up must be 0.5 with preset 'paper': retelling a scene of overlapping objects would "
                         "contradict the drawing order")
    for name in ("text_dropout", "drop_colors", "drop_from", "first_up", "first_until", "decay",
                 "ema"):
        if not 0 <= getattr(recipe, name) <= 1:
            raise ValueError(f"{name} is {getattr(recipe, name)}; it must lie in 0..1")
