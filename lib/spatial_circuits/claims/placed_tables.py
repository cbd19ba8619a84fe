"""Tables of patching and injection in any model, as plain numbers, for the commands. As in
`tables`, each function returns a record that is written to JSON as it is."""
from collections.abc import Sequence

from ..analyses.chunks import Chunks
from ..analyses.heads import head_name, heads_of, parse_head
from ..analyses.locate import Locator
from ..analyses.placed import placed_effects
from ..analyses.placed_injection import means_sources, placed_injection
from ..analyses.predicted import head_effects, patched_predictions
from ..model.pipeline import Model
from .tables import records


def run_patch(model: Model, prompts: Sequence[str], seed: int = 1, heads: Sequence[str] = (),
              every: int = 1, batch: int = 16, progress: bool = False,
              chunks: Chunks | None = None) -> dict:
    """How much of the relation each head (all by default) carries, by what the model predicts.
    Raises ValueError as `patched_predictions` does."""
    chosen = [parse_head(head) for head in heads] or heads_of(model)
    frame = patched_predictions(model, prompts, None, chosen, every, seed, batch,
                                progress=progress, chunks=chunks)
    return {"prompts": len(prompts), "seed": seed, "every": every,
            "heads": records(head_effects(frame))}


def run_inject(model: Model, prompts: Sequence[str], heads: Sequence[str], locate: Locator,
               scales: Sequence[float] = (1.0,), layer: int | None = None, per_prompt: int = 1,
               seed: int = 1, progress: bool = False, chunks: Chunks | None = None,
               means_from: Sequence[str] | None = None) -> dict:
    """What share of the pictures shows the opposite of its prompt once that relation, as these
    heads write it for other prompts, is added; "means" says of which, and of how many without their
    counterparts, for each half of the prompts or for all. Raises ValueError as `placed_injection`
    does."""
    chosen = [parse_head(head) for head in heads]
    frame = placed_injection(model, prompts, chosen, locate, scales, layer, per_prompt, seed,
                             progress=progress, chunks=chunks, means_from=means_from)
    means = {"of": "the other half" if means_from is None else "further prompts",
             "prompts": [len(some) for some in means_sources(prompts, means_from)[1]]}
    return {"prompts": len(prompts), "images_per_prompt": per_prompt, "seed": seed,
            "heads": [head_name(*head) for head in chosen], "layer": layer, "means": means,
            "effects": records(placed_effects(frame))}
