"""Edit files: interventions as data, in JSON, and a model that always samples under them.

    {"edits": [{"kind": "zero", "heads": ["L1H3"], "steps": [0, 1], "branch": "cond"},
               {"kind": "hide", "heads": null, "words": ["above"]}]}
"""
import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from ..files import write_json
from ..hooks.attach import hooked
from ..hooks.core import Hook
from ..hooks.edits import Ablate, MaskKeys
from ..model.pipeline import Model
from ..model.sampler import STEPS, ready_scheduler
from ..text.words import word_tokens
from .heads import check_heads, parse_head

EDIT_KINDS = ("zero", "hide")


@dataclass(frozen=True)
class EditSpec:
    """One intervention: heads that write nothing ("zero"), or do not see some words ("hide").

    heads: names, None for all; steps: numbers, None for all; branch: cond, uncond or both; words:
    of the prompt, for "hide" alone. Raises ValueError naming what is not allowed.
    """
    kind: str
    heads: list[str] | None = None
    words: list[str] | None = None
    steps: list[int] | None = None
    branch: str = "cond"

    def __post_init__(self):
        if self.kind not in EDIT_KINDS:
            raise ValueError(f"kind {self.kind!r} is unknown; choose from {', '.join(EDIT_KINDS)}")
        if bool(self.words) != (self.kind == "hide"):
            raise ValueError(f"words are {self.words!r} for kind {self.kind!r}; "
                             "hide needs at least one, zero has none")
        for name, chosen in (("heads", self.heads), ("steps", self.steps)):
            if chosen == []:
                raise ValueError(f"{name} are [], so that nothing would be done; null means all")
        Ablate([parse_head(head) for head in self.heads or []], steps=self.steps,
               branch=self.branch)                               # refuses steps and branches


def save_edits(path: str | Path, edits: Sequence[EditSpec]) -> None:
    """Write interventions to a JSON file."""
    write_json(path, {"edits": [asdict(edit) for edit in edits]})


def load_edits(path: str | Path) -> list[EditSpec]:
    """Interventions of a JSON file. Raises ValueError, naming the file, for another form."""
    known = [field.name for field in fields(EditSpec)]
    try:
        record = json.loads(Path(path).read_text())
        edits = record.get("edits") if isinstance(record, dict) else None
        if not edits or not isinstance(edits, list) or not all(isinstance(e, dict) for e in edits):
            raise ValueError("edits must be a list of at least one object")
        for key in (key for edit in edits for key in edit if key not in known):
            raise ValueError(f"key {key!r} is unknown; choose from {', '.join(known)}")
        return [EditSpec(**edit) for edit in edits]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} holds no edits, {{\"edits\": [{{\"kind\": \"zero\", ...}}]}}: "
                         f"{error}") from error


def edit_hooks(edits: Sequence[EditSpec], model: Model, prompts: Sequence[str]) -> list[Hook]:
    """Fresh hooks for a run of these prompts, a sample each. Raises ValueError for a head that the
    model does not have, or a word that a prompt does not hold."""
    hooks: list[Hook] = []
    for edit in edits:
        where = None if edit.heads is None else [parse_head(head) for head in edit.heads]
        check_heads(model, where or [])
        if edit.kind == "zero":
            hooks.append(Ablate(where, steps=edit.steps, branch=edit.branch))
            continue
        hidden = torch.zeros_like(model.encoder.encode(["", *prompts]).mask)[1:]       # [S, T]
        tokens = {prompt: [i for word in edit.words or []
                           for i in word_tokens(model.encoder, prompt, word)]
                  for prompt in dict.fromkeys(prompts)}
        for row, prompt in zip(hidden, prompts):
            row[tokens[prompt]] = True
        hooks.append(MaskKeys(hidden, where, steps=edit.steps, branch=edit.branch))
    return hooks


def check_edits(model: Model, prompts: Sequence[str], steps: int = STEPS) -> None:
    """Raise ValueError for an edit of `under_edits` that would be refused when these prompts are
    drawn in so many steps: ask before the first of them is."""
    forwards = len(ready_scheduler(model.scheduler, steps).timesteps)
    for prompt in dict.fromkeys(prompts):
        for hook in edit_hooks(getattr(model, "edits", ()), model, [prompt]):
            hook.fit(None, forwards)


def under_edits(model: Model, edits: Sequence[EditSpec]) -> Model:
    """The same model, all of whose samples are drawn under these edits, by whatever analysis; so
    are those of a copy that has another encoder."""
    made, kind, before = copy.copy(model), type(model), getattr(model, "edits", ())

    class Edited(kind):  # type: ignore[misc,valid-type]
        """A model whose `edits` hold while it draws."""

        def latents(self, prompts: list[str], seeds: list[int], **options) -> Tensor:
            with hooked(self.transformer, *edit_hooks(edits, self, prompts)):
                return super().latents(prompts, seeds, **options)
    setattr(Edited, "edits", [*before, *edits])  # noqa: B010 (no field: copies keep it)
    made.__class__ = Edited
    return made
