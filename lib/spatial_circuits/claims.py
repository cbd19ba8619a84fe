"""Claims: what the paper says (arXiv 2601.06338), where this book tests it, and what the shipped runs say so far.

A status is computed from the models' folders, never typed in: from the training log and the tables that
`spatial-circuits evaluate|synopsis|screen|ablate|circuit|tokens|factors|arithmetic|robustness --json` wrote (see `judges`).
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

from . import judges
from .judges import Evidence
from .metrics import ceiling, prompt_set, summarise
from .pretrained import HERE
from .train import read_log

ORDER = ("color", "shape", "unique_binding", "loose")  # C2: the order of learning
NAMES = {"color": "colour", "shape": "shape", "unique_binding": "binding", "loose": "relation"}
REACHED, PARTLY = 0.95, 0.5  # shares of the ceiling: above the first a task counts as learned, below the second not
STATUS = ("holds", "partly", "does not hold", "not yet tested")


@dataclass(frozen=True)
class Claim:
    """One claim: its number, what it says, the paper's figure, and the chapter that tests it (planned ones unlinked)."""
    id: str
    text: str
    paper: str
    chapter: str


CLAIMS = (
    Claim("C1", "With any of the encoders that know word order, the model learns the task to the metric's ceiling",
          "loose relation .843 (RTE), .808 (T5); ceiling .81", "[12](12_encoders.ipynb)"),
    Claim("C2", "Learning has an order: colour, shape, binding, and the relation last",
          "relation at .5 after 32,000 steps of 256 (RTE-B)", "[4](04_training.ipynb)"),
    Claim("C3", "Random tokens without a position code leave a bag of words: binding at 1/2, relation at 1/4 of the "
          "ceiling", ".415 and .207", "[12](12_encoders.ipynb)"),
    Claim("C4", "Depth matters: three layers never learn relations", "loose relation .09", "[12](12_encoders.ipynb)"),
    Claim("C5", "Attention summed over token roles singles out a relation head and an object head",
          "layer 2 head 8, layer 4 head 3", "[6](06_synopsis.ipynb)"),
    Claim("C6", "The relation head needs no picture: position embedding and relation word alone give a ramp toward "
          "the named side", "cosine with an ideal ramp .93 to .98", "[7](07_relation_head.ipynb)"),
    Claim("C7", "The object head acts later, links the marked region to the shape word and carries shape only",
          "sampling steps 4 to 8", "[8](08_object_head.ipynb)"),
    Claim("C8", "The relation head's output, injected into the position embedding, moves the object head's attention",
          "shown by example", "[10](10_injection.ipynb)"),
    Claim("C9", "Without the relation head relations fail, without the object head shapes fail; other heads matter "
          "little", "relation .67 to .33, shape .90 to .76", "[9](09_ablation.ipynb)"),
    Claim("C10", "With a contextual encoder the relation is read from the second shape word, not from the relation word",
          "masking shape2 halves all scores", "[13](13_which_token.ipynb)"),
    Claim("C11", "The relation explains a good part of that token's variance",
          "12 %, and 21 % after the caption MLP", "[14](14_factors.ipynb)"),
    Claim("C12", "Its relation part finds the responsible heads from the weights, without sampling",
          "cosine −.98 (T5), ±.98 (CLIP)", "[13](13_which_token.ipynb)"),
    Claim("C13", "Adding and subtracting relation vectors on that token moves the objects",
          "diagonals .71 to .98 strict", "[14](14_factors.ipynb)"),
    Claim("C14", "The word \"the\" breaks the contextual model and leaves the random-token model alone",
          "loose .808 to .498 (T5), .843 to .862 (RTE)", "[15](15_robustness.ipynb)"),
    Claim("C15", "The shift that \"the\" causes lies along relation vectors", "cosine .61 and .52", "[15](15_robustness.ipynb)"),
    Claim("C16", "The tools carry over to large pretrained models", "8 of 30 object pairs non-trivial", "not planned yet"),
)


FILES = ("synopsis", "screen", "ablation", "circuit", "tokens", "factors", "arithmetic", "robustness")
TESTED = {"random": ("C1", "C2", "C5", "C6", "C7", "C8", "C9", "C14"), "bag": ("C3",), "shallow": ("C4",),
          "contextual": ("C1", "C2", "C10", "C11", "C12", "C13", "C14", "C15")}  # which models a claim is about


def kind(folder: Path) -> str:
    """What sort of model a folder holds: random (tokens), bag (of words), shallow or contextual."""
    text, recipe = (json.loads((folder / f"{f}.json").read_text()) for f in ("text", "recipe"))
    name = "shallow" if recipe["size"] in ("shallow", "nano") else text["name"]
    return {"rte": "random", "rte-nopos": "bag", "shallow": "shallow"}.get(name, "contextual")


def read(folder: Path) -> dict[str, dict]:
    """The tables of FILES that the folder holds, by name."""
    return {name: json.loads(path.read_text()) for name in FILES if (path := folder / f"{name}.json").exists()}


def folder_of(model: str | Path) -> Path:
    """The folder of a shipped model's name, else the path itself; it need not exist."""
    return HERE / model if (HERE / model / "text.json").exists() else Path(model)


def scores(folder: Path) -> dict[str, dict] | None:
    """Each metric's mean, ceiling and their ratio `of_ceiling`, with low and high if known. None without an evaluation."""
    if (folder / "evaluation.json").exists():
        return json.loads((folder / "evaluation.json").read_text())["metrics"]
    last = next((r for r in reversed(history(folder)) if "loose" in r), None)
    if last is None:
        return None
    best = summarise(ceiling(prompt_set("264")[:132], 2))["mean"]
    return {m: {"mean": last[m], "ceiling": best[m], "of_ceiling": last[m] / best[m]} for m in best.index if m in last}


def history(folder: Path) -> list[dict]:
    """The records of the folder's training log; none if there is no log."""
    return read_log(folder / "log.jsonl") if (folder / "log.jsonl").exists() else []


def milestones(log: list[dict], level: float = 0.5) -> dict[str, float]:
    """Images seen when each metric of ORDER was first measured at `level` or above; infinity if it never was."""
    return {m: min((r["images"] for r in log if r.get(m, 0.0) >= level), default=math.inf) for m in ORDER}


def survey(folders: list[Path]) -> dict[str, Evidence]:
    """What several models together say: each claim by the models that it is about. Where they differ it holds partly."""
    out: dict[str, list[tuple[str, Evidence]]] = {}
    for folder in folders:
        for claim, one in evidence(folder).items():
            if claim in TESTED[kind(folder)]:
                out.setdefault(claim, []).append((folder.name, one))
    def together(found: list[tuple[str, Evidence]]) -> Evidence:
        statuses = {e.status for _, e in found}
        return Evidence(statuses.pop() if len(statuses) == 1 else "partly", "<br>".join(f"`{name}`: {e.ours}" for name, e in found))
    return {claim: together(found) for claim, found in out.items()}


def evidence(folder: Path) -> dict[str, Evidence]:
    """What the model in `folder` says about the claims, by claim; empty if nothing was trained or measured."""
    out = {}
    if found := scores(folder):
        loose, share = found["loose"], found["loose"]["of_ceiling"]
        spread = f" [{loose['low']:.3f}, {loose['high']:.3f}]" if "low" in loose else ""
        said = f"loose relation {loose['mean']:.3f}{spread}, {share:.0%} of the ceiling {loose['ceiling']:.3f}"
        out["C1"] = Evidence("holds" if share >= REACHED else "partly" if share >= PARTLY else "does not hold", said)
        out["C4"] = Evidence("holds" if share < PARTLY / 2 else "partly" if share < PARTLY else "does not hold", said)
        out["C3"] = judges.bag_of_words(found)
    if any("loose" in r for r in history(folder)):
        images = milestones(history(folder))
        steps = list(images.values())
        rising = all(a <= b for a, b in zip(steps, steps[1:]))
        status = "does not hold" if not rising else "holds" if math.isfinite(steps[-1]) and len({*steps}) > 2 else "partly"
        out["C2"] = Evidence(status, ".5 reached after " + ", ".join(
            f"{v / 1000:,.0f} k ({NAMES[m]})" if math.isfinite(v) else f"never ({NAMES[m]})" for m, v in images.items())
            + " images")
    tables = read(folder)
    for claim, (judge, needs) in judges.JUDGES.items():
        if all(n in tables for n in needs):
            out[claim] = judge(*(tables[n] for n in needs))
    if (folder / "text.json").exists() and "C14" in out and kind(folder) == "random":  # the claim for these: nothing breaks
        out["C14"] = judges.unharmed(tables["robustness"])
    return out


def table(found: dict[str, Evidence]) -> str:
    """The claims as a Markdown table: number, claim with the paper's figure and ours, status, chapter."""
    rows = ["| no. | claim, the paper's figure, and ours | here | chapter |", "|---|---|---|---|"]
    for claim in CLAIMS:
        e = found.get(claim.id, Evidence("not yet tested", ""))
        rows.append(f"| {claim.id} | **{claim.text}.**<br>Paper: {claim.paper}<br>{e.ours or '–'} | {e.status} | {claim.chapter} |")
    return "\n".join(rows)
