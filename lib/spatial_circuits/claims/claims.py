"""Claims: what the paper says (arXiv 2601.06338), where this book tests it, and what the shipped
models say so far.

A status is computed from the models' folders, never typed in: from the training log and from the
tables that the commands evaluate, synopsis, screen, ablate, circuit, tokens, factors, arithmetic
and robustness wrote with --json (see `judges`).
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd

from ..analyses.intervals import summarise
from ..data.metrics import ceiling, prompt_set
from ..model.manifest import read_record
from ..model.store import HERE
from ..training.log import read_log
from . import judges
from .judges import TUNED, Evidence, judged

ORDER = ("color", "shape", "unique_binding", "loose")  # C2: the order of learning
NAMES = {"color": "colour", "shape": "shape", "unique_binding": "binding", "loose": "relation"}
FEWEST = 4  # scored records of a log below which it tells no order
RARE = 0.1  # a share of pictures below which no share of them is taken

REACHED, MISSED = 0.95, 0.5  # of the ceiling: a task counts as learned above, as missed below
STATUS = ("holds", "partly", "does not hold", "not comparable", "not yet tested")


@dataclass(frozen=True)
class Claim:
    """One claim: its number, what it says, the paper's figure, and the chapter that tests it
    (planned ones unlinked)."""
    id: str
    text: str
    paper: str
    chapter: str

CLAIMS = (
    Claim("C1", "With any of the encoders that know word order, the model learns the task to the "
          "metric's ceiling",
          "loose relation .843 (RTE), .808 (T5); ceiling .81", "[12](12_encoders.ipynb)"),
    Claim("C2", "Learning has an order: colour, shape, binding, and the relation last",
          "relation at .5 after 32,000 steps of 256 (RTE-B)", "[4](04_training.ipynb)"),
    Claim("C3", "Random tokens without a position code leave a bag of words: binding at 1/2, "
          "relation at 1/4 of the ceiling", ".415 and .207", "[12](12_encoders.ipynb)"),
    Claim("C4", "Depth matters: three layers never learn relations",
          "loose relation .09", "[12](12_encoders.ipynb)"),
    Claim("C5", "Attention summed over token roles singles out a relation head and an object head",
          "layer 2 head 8, layer 4 head 3", "[6](06_synopsis.ipynb)"),
    Claim("C6", "The relation head needs no picture: position embedding and relation word alone "
          "give a ramp toward the named side",
          "cosine with an ideal ramp .93 to .98", "[7](07_relation_head.ipynb)"),
    Claim("C7", "The object head acts later, links the marked region to the shape word and carries "
          "shape only", "sampling steps 4 to 8", "[8](08_object_head.ipynb)"),
    Claim("C8", "The relation head's output, injected into the position embedding, moves the "
          "object head's attention", "shown by example", "[10](10_injection.ipynb)"),
    Claim("C9", "Without the relation head relations fail, without the object head shapes fail; "
          "other heads matter little",
          "relation .67 to .33, shape .90 to .76", "[9](09_ablation.ipynb)"),
    Claim("C10", "With a contextual encoder the relation is read from the second shape word, not "
          "from the relation word",
          "masking shape2 halves all scores", "[13](13_which_token.ipynb)"),
    Claim("C11", "The relation explains a good part of that token's variance",
          "12 %, and 21 % after the caption MLP", "[14](14_factors.ipynb)"),
    Claim("C12", "Its relation part finds the responsible heads from the weights, without sampling",
          "cosine −.98 (T5), ±.98 (CLIP)", "[13](13_which_token.ipynb)"),
    Claim("C13", "Adding and subtracting relation vectors on that token moves the objects",
          "diagonals .71 to .98 strict", "[14](14_factors.ipynb)"),
    Claim("C14", "The word \"the\" breaks the contextual model and leaves the random-token model "
          "alone",
          "loose .808 to .498 (T5), .843 to .862 (RTE)", "[15](15_robustness.ipynb)"),
    Claim("C15", "The shift that \"the\" causes lies along relation vectors",
          "cosine .61 and .52", "[15](15_robustness.ipynb)"),
    Claim("C16", "The tools carry over to large pretrained models",
          "8 of 30 object pairs non-trivial", "not planned yet"),
)

FILES = ("synopsis", "screen", "ablation", "circuit", "curves", "tokens", "factors", "arithmetic",
         "subspaces", "robustness", "exchange", "edges", "fused")

KINDS = {"rte": "random", "rte-nopos": "bag"}  # by encoder; all others are contextual
TESTED = {"random": ("C1", "C2", "C5", "C6", "C7", "C8", "C9", "C14"),
          "bag": ("C3",), "shallow": ("C4",),
          "contextual": ("C1", "C2", "C10", "C11", "C12", "C13", "C14", "C15")}  # by kind of model


def _entry(folder: Path, file: str, key: str) -> Any:
    """An entry of a JSON file of a folder. Raises ValueError naming the file if it has none."""
    record = read_record(folder / f"{file}.json")
    if key not in record:
        raise ValueError(f"{folder / file}.json has no entry {key!r}; it has {', '.join(record)}")
    return record[key]


def kind(folder: Path) -> str:
    """What sort of model a folder holds: random (tokens), bag (of words), shallow or contextual.

    Raises ValueError naming the file or entry that is missing.
    """
    encoder, size = _entry(folder, "text", "name"), _entry(folder, "recipe", "size")
    return "shallow" if size in ("shallow", "nano") else KINDS.get(encoder, "contextual")


def read(folder: Path) -> dict[str, dict]:
    """The tables of FILES that the folder holds, by name. Raises ValueError for a broken file."""
    paths = {name: folder / f"{name}.json" for name in FILES}
    return {name: read_record(path) for name, path in paths.items() if path.exists()}


def folder_of(model: str | Path) -> Path:
    """The folder of a shipped model's name, else the path itself; it need not exist."""
    return HERE / model if (HERE / model / "text.json").exists() else Path(model)


def evaluation_scores(folder: Path) -> dict[str, dict] | None:
    """Each metric's mean, ceiling and their ratio `of_ceiling`, with low and high if known.

    From the evaluation, else from the log's last record with scores; None without either.
    """
    if (folder / "evaluation.json").exists():
        return _entry(folder, "evaluation", "metrics")
    last = next((r for r in reversed(history(folder)) if "loose" in r), None)
    if last is None:
        return None
    best = _ceiling_of_logs()
    return {m: {"mean": last[m], "ceiling": best[m], "of_ceiling": last[m] / best[m]}
            for m in best.index if m in last}


@cache
def _ceiling_of_logs() -> pd.Series:
    """The ceiling of each metric on the prompts that are scored in training."""
    return summarise(ceiling(prompt_set("264")[:132], 2))["mean"]


def history(folder: Path) -> list[dict]:
    """The records of the folder's training log; none if there is no log."""
    return read_log(folder / "log.jsonl") if (folder / "log.jsonl").exists() else []


def conditional(log: list[dict]) -> list[dict[str, float]]:
    """The scores of a log that are no part of one another, by record: colour, shape, binding given
    colour and shape, relation given binding. Those given something are NaN while it is below
    `RARE`."""
    rows = []
    for r in log:
        if all(m in r for m in ORDER):
            both = min(r["color"], r["shape"])
            rows.append({
                "images": r["images"], "color": r["color"], "shape": r["shape"],
                "unique_binding": r["unique_binding"] / both if both >= RARE else math.nan,
                "loose": r["loose"] / r["unique_binding"] if r["unique_binding"] >= RARE
                else math.nan})
    return rows


def milestones(log: list[dict]) -> dict[str, float]:
    """Images seen when each conditional score first passes the middle between its value for a
    reader of single words and 1: .5 for colour and shape, .75 for binding and relation, which such
    a reader gets right by half. Infinity if never."""
    levels = dict(zip(ORDER, (0.5, 0.5, 0.75, 0.75)))
    rows = conditional(log)
    return {m: min((r["images"] for r in rows if r[m] >= level), default=math.inf)
            for m, level in levels.items()}


def tells_order(log: list[dict]) -> bool:
    """Whether a log has at least `FEWEST` scored records."""
    return sum("loose" in r for r in log) >= FEWEST


def learned_in_order(log: list[dict]) -> Evidence:
    """C2: colour, shape, binding given both, and relation given binding pass the middle between a
    reader of single words and a perfect one in that order, the relation later than binding."""
    images = milestones(log)
    steps = list(images.values())
    last = math.isfinite(steps[-1]) and steps[-1] > steps[-2]
    parts = []
    for metric, seen in images.items():
        after = f"{seen / 1000:,.0f} k" if math.isfinite(seen) else "never"
        parts.append(f"{after} ({NAMES[metric]})")
    return judged(steps == sorted(steps) and last, f"learned after {', '.join(parts)} images")


def unbiased(folder: Path) -> bool:
    """Whether the training captions named either object first alike, as the paper's do."""
    path = folder / "recipe.json"
    return not path.exists() or read_record(path).get("first_up", 0.5) == 0.5


def _compared(folder: Path, found: Evidence) -> Evidence:
    """What is found, if captions without a bias taught it."""
    if unbiased(folder):
        return found
    return Evidence(0, 0, f"{found.ours}; its captions had a bias that takes the obstacle away")


def evidence(folder: Path) -> dict[str, Evidence]:
    """What the model in `folder` says about the claims, by claim; empty if nothing was measured.

    Raises ValueError naming a file that is broken or lacks what a judge reads.
    """
    out: dict[str, Evidence] = {}
    if found := evaluation_scores(folder):
        files = ("evaluation" if (folder / "evaluation.json").exists() else "log",)
        share = _judged(folder, files, judges.best_share, found)
        said = _judged(folder, files, judges.loose_score, found)
        out["C1"] = judged(share >= REACHED, said)
        out["C4"] = _compared(folder, judged(share < MISSED, said))
        out["C3"] = _judged(folder, files, judges.bag_of_words, found)
    log = history(folder)
    if tells_order(log):
        out["C2"] = _compared(folder, learned_in_order(log))
    tables = read(folder)
    for claim, (judge, needs) in judges.JUDGES.items():
        if all(name in tables for name in needs):
            if claim == "C14" and (folder / "text.json").exists() and kind(folder) == "random":
                judge = judges.unharmed                       # the claim for these: nothing breaks
            out[claim] = _judged(folder, needs, judge, *(tables[name] for name in needs))
    return out


def _judged(folder: Path, files: tuple[str, ...], judge: Callable[..., Any], *tables: dict) -> Any:
    """A judge's answer. Raises ValueError naming the files if they lack what it reads."""
    try:
        return judge(*tables)
    except (KeyError, IndexError, TypeError) as error:
        told = error.args[0] if error.args else type(error).__name__
        names = " or ".join(f"{name}.json" for name in files)
        raise ValueError(f"{folder}: {names} lacks what the claims read there ({told}); "
                         "write the whole table with the command of that name") from error


def verdicts(folder: Path) -> dict[str, Evidence]:
    """`evidence` on the claims that this kind of model is about, in the order of `CLAIMS`; what was
    tuned to the paper is not compared with it. Raises ValueError as `evidence` and `kind` do."""
    found, encoder = evidence(folder), _entry(folder, "text", "name")
    out = {}
    for claim in (c.id for c in CLAIMS if c.id in found and c.id in TESTED[kind(folder)]):
        out[claim] = found[claim]
        if tuned := TUNED.get((claim, encoder)):
            out[claim] = Evidence(0, 0, f"{found[claim].ours}; {tuned}")
    return out


def counted(folders: Sequence[Path]) -> list[Path]:
    """The runs that count: where a kind of model has runs without a bias in their captions, those
    with one only stand beside them. Raises ValueError as `kind` does."""
    freed = {kind(folder) for folder in folders if unbiased(folder)}
    return [f for f in folders if unbiased(f) or kind(f) not in freed]


def survey(folders: Sequence[Path]) -> dict[str, Evidence]:
    """What models together say: each claim by the `counted` ones that it is about, and in how many
    of them it holds. Raises ValueError as `evidence` and `kind` do."""
    found: dict[str, dict[str, Evidence]] = {}
    for folder in counted(folders):
        for claim, one in verdicts(folder).items():
            found.setdefault(claim, {})[folder.name] = one
    return {claim: _together(by_model) for claim, by_model in found.items()}


def _together(by_model: dict[str, Evidence]) -> Evidence:
    told = []
    for name, e in by_model.items():
        word = f", {e.status}" if len(by_model) > 1 else ""
        told.append(f"`{name}`{word}: {e.ours}")
    held, runs = (sum(getattr(e, n) for e in by_model.values()) for n in ("held", "runs"))
    return Evidence(held, runs, "<br>".join(told))
