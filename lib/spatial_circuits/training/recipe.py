"""Recipe: every choice of a training run in one frozen record, checked before any work."""
from dataclasses import dataclass, field, fields, replace
from math import isfinite

from ..data.scenes import PRESETS
from ..model.noise import Noise
from ..model.precision import resolve_precision
from ..model.transformer import SIZES

LARGEST_SEED = 2 ** 40      # times a million it still fits an integer of 64 bits


@dataclass(frozen=True)
class Recipe:
    """How to train. `NOISE_FIRST`, which the command `train` takes by default, learns the relation
    from unbiased captions, by times near pure noise at first; the fields' own defaults, `biased`,
    from captions that tell the upper object first; `PAPER` is the authors' recipe."""
    size: str = "tiny"
    steps: int = 3_200
    batch: int = 128                # over all processes
    noise: Noise = field(default_factory=Noise)
    pure: float = 0.0               # share of the steps, at first, with times above noise.peak ...
    widen: float = 0.0              # ... and the share over which the other times then come in
    muon_lr: float = 0.02           # for the matrices of the blocks; 0 = AdamW for all
    lr: float = 2e-3                # AdamW, for the rest
    weight_decay: float = 0.0
    eps: float = 1e-8
    clip: float = 1.0               # of the gradient's norm; 0 = none
    warmup: int = 100
    decay: float = 0.5              # the rates fall to zero over this last share; 0 = constant
    ema: float = 0.999
    text_dropout: float = 0.1
    drop_colors: float = 0.5        # each colour word is left out with this probability ...
    drop_from: float = 0.0          # ... from this share of the steps on, before that never ...
    drop_over: float = 0.0          # ... growing to it over this share
    first_up: float = 0.95          # share of captions with the upper (if level, left) one first
    first_until: float = 0.4        # ... falling to 0.5, no bias, over this share of the steps
    preset: str = "clean"
    cache: int = 65_536             # scenes encoded once and kept; 0 = fresh ones in every step
    precision: str = "auto"         # no, bf16, fp16; auto = bf16 where that is fast
    compile: bool = True
    seed: int = 0


PAPER = Recipe(size="mini", steps=160_000, batch=256,
               noise=Noise(path="ddpm", prediction="epsilon", high=0.0), muon_lr=0.0, lr=1e-4,
               weight_decay=3e-2, eps=1e-10, clip=0.01, warmup=500, decay=0.0, ema=0.9999,
               first_up=0.5, preset="paper", cache=10_000)

NOISE_FIRST = Recipe(noise=Noise(prediction="sample", top=0.2, high=0.4), pure=0.15, widen=0.05,
                     muon_lr=0.01, lr=1e-3, decay=0.35, drop_from=0.15, drop_over=0.1, first_up=0.5)

RECIPES = {"noise-first": NOISE_FIRST, "biased": Recipe(), "paper": PAPER}  # first: the default


_AT_LEAST_0 = ("muon_lr", "lr", "weight_decay", "eps", "clip", "warmup", "cache")
_SHARES = ("pure", "widen", "decay", "ema", "text_dropout", "drop_colors", "drop_from", "drop_over",
           "first_up", "first_until")


def override_recipe(recipe: Recipe, changes: dict) -> Recipe:
    """A recipe with fields replaced, `noise.x` reaching into its noise.

    Raises ValueError for an unknown field or a value of another type, naming both.
    """
    known = {f.name: getattr(recipe, f.name) for f in fields(recipe) if f.name != "noise"}
    known |= {f"noise.{f.name}": getattr(recipe.noise, f.name) for f in fields(recipe.noise)}
    for name, value in changes.items():
        if name not in known:
            raise ValueError(f"unknown recipe field {name}; choose from {', '.join(sorted(known))}")
        wanted = type(known[name])
        if type(value) is not wanted and not (wanted is float and type(value) is int):
            raise ValueError(f"recipe field {name} is {value!r}; "
                             f"it must be of type {wanted.__name__}")
    noise = {k[6:]: v for k, v in changes.items() if k.startswith("noise.")}
    plain = {k: v for k, v in changes.items() if not k.startswith("noise.")}
    check_recipe(recipe := replace(recipe, noise=replace(recipe.noise, **noise), **plain))
    return recipe


def check_recipe(recipe: Recipe) -> None:
    """Raises ValueError, naming field and range, for a recipe that cannot run."""
    for name, known in (("size", SIZES), ("preset", PRESETS)):
        if getattr(recipe, name) not in known:
            raise ValueError(f"{name} {getattr(recipe, name)!r} is unknown; "
                             f"choose from {', '.join(known)}")
    resolve_precision(recipe.precision)
    for f in fields(recipe):
        value = getattr(recipe, f.name)
        if isinstance(value, float) and not isfinite(value):
            raise ValueError(f"{f.name} is {value}; it must be a finite number")
        if f.name in ("steps", "batch") and value < 1:
            raise ValueError(f"{f.name} is {value}; it must be at least 1")
        if f.name in _AT_LEAST_0 and value < 0:
            raise ValueError(f"{f.name} is {value}; it must be at least 0")
        if f.name in _SHARES and not 0 <= value <= 1:
            raise ValueError(f"{f.name} is {value}; it must lie in 0..1")
    if not 0 <= recipe.seed < LARGEST_SEED:
        raise ValueError(f"seed is {recipe.seed}; it must lie in 0..{LARGEST_SEED - 1}")
    if recipe.preset == "paper" and recipe.first_up != 0.5:
        raise ValueError("first_up must be 0.5 with preset 'paper': retelling a scene of "
                         "overlapping objects would contradict the drawing order")


def check_counts(**counts: int) -> None:
    """Raises ValueError, naming it, for a number of steps that is not whole or below 1."""
    for name, value in counts.items():
        if type(value) is not int or value < 1:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
