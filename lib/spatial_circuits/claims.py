"""Claims: what the paper says (arXiv 2601.06338), where this book tests it, and what the shipped runs say so far.

A status is computed from a model's folder, never typed in: from evaluation.json, synopsis.json, screen.json, ablation.json
and circuit.json (written by `spatial-circuits evaluate|synopsis|screen|ablate|circuit --json`) and the training log.
"""
from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

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
          "loose relation .843 (RTE), .808 (T5); ceiling .81", "[5](05_evaluation.ipynb)"),
    Claim("C2", "Learning has an order: colour, shape, binding, and the relation last",
          "relation at .5 after 32,000 steps of 256 (RTE-B)", "[4](04_training.ipynb)"),
    Claim("C3", "Random tokens without a position code leave a bag of words: binding at 1/2, relation at 1/4 of the "
          "ceiling", ".415 and .207", "12"),
    Claim("C4", "Depth matters: three layers never learn relations", "loose relation .09", "12"),
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
          "masking shape2 halves all scores", "13"),
    Claim("C11", "The relation explains a good part of that token's variance",
          "12 %, and 21 % after the caption MLP", "14"),
    Claim("C12", "Its relation part finds the responsible heads from the weights, without sampling",
          "cosine −.98 (T5), ±.98 (CLIP)", "13"),
    Claim("C13", "Adding and subtracting relation vectors on that token moves the objects",
          "diagonals .71 to .98 strict", "14"),
    Claim("C14", "The word \"the\" breaks the contextual model and leaves the random-token model alone",
          "loose .808 to .498 (T5), .843 to .862 (RTE)", "15"),
    Claim("C15", "The shift that \"the\" causes lies along relation vectors", "cosine .61 and .52", "15"),
    Claim("C16", "The tools carry over to large pretrained models", "8 of 30 object pairs non-trivial", "not planned yet"),
)


@dataclass
class Evidence:
    """What was found for a claim: a status of STATUS and a sentence with the figure."""
    status: str
    ours: str


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


def evidence(folder: Path) -> dict[str, Evidence]:
    """What the model in `folder` says about the claims, by claim; empty if nothing was trained or measured."""
    out = {}
    if found := scores(folder):
        loose = found["loose"]
        spread = f" [{loose['low']:.3f}, {loose['high']:.3f}]" if "low" in loose else ""
        learned = loose["of_ceiling"] >= REACHED
        out["C1"] = Evidence("partly" if loose["of_ceiling"] >= PARTLY else "does not hold",
                             f"loose relation {loose['mean']:.3f}{spread}, {loose['of_ceiling']:.0%} of the ceiling "
                             f"{loose['ceiling']:.3f}; " + ("learned by" if learned else "so far of") +
                             f" {folder.name}, one encoder of several")
    if any("loose" in r for r in history(folder)):
        images = milestones(history(folder))
        steps = list(images.values())
        rising = all(a <= b for a, b in zip(steps, steps[1:]))
        status = "does not hold" if not rising else "holds" if math.isfinite(steps[-1]) and len({*steps}) > 2 else "partly"
        out["C2"] = Evidence(status, ".5 reached after " + ", ".join(
            f"{v / 1000:,.0f} k ({NAMES[m]})" if math.isfinite(v) else f"never ({NAMES[m]})" for m, v in images.items())
            + " images")
    found = {name: json.loads(path.read_text()) for name in ("synopsis", "screen", "ablation", "circuit")
             if (path := folder / f"{name}.json").exists()}
    for claim, (judge, needs) in _JUDGES.items():
        if all(n in found for n in needs):
            out[claim] = judge(*(found[n] for n in needs))
    return out


def _tops(synopsis: dict, score: str) -> list[dict]:
    return sorted((h for h in synopsis["heads"] if h["score"] == score), key=lambda h: -h["mean"])


def _single_heads(synopsis: dict) -> Evidence:
    parts, certain, single = [], True, True
    for score in ("relation", "object"):
        first, second = _tops(synopsis, score)[:2]
        certain, single = certain and first["p"] < 0.05, single and first["low"] > second["high"]
        parts.append(f"{score} head {first['name']} {first['mean']:.2f} [{first['low']:.2f}, {first['high']:.2f}], next {second['name']} "
                     f"{second['mean']:.2f}")
    return Evidence("holds" if certain and single else "partly" if certain else "does not hold", "; ".join(parts))


def _ramp(screen: dict, synopsis: dict) -> Evidence:
    best: dict[str, dict] = {}                                                                # of each word, the head that draws it largest
    for row in sorted(screen["heads"], key=lambda h: abs(h["projection"])):
        best[row["word"]] = row
    rest = [f"{w} {r['cosine']:.2f}" for w, r in best.items() if r["cosine"] < 0.9]
    share, names = 1 - len(rest) / len(best), sorted({r["name"] for r in best.values()})
    curve = synopsis["curves"]["relation"]
    status = "holds" if not rest else "partly" if share >= 0.5 else "does not hold"
    return Evidence(status, f"cosine at least .9 for {len(best) - len(rest)} of {len(best)} words{f' (but {chr(44).join(rest)})' if rest else ''} at "
                    f"{', '.join(names)}; {curve['name']} gives the relation {curve['share']['object 1']['relation'][0]:.2f} of its attention at step 0")


def _timing(synopsis: dict, ablation: dict) -> Evidence:
    curve = synopsis["curves"]["object"]
    own = [(a + b) / 2 for a, b in zip(curve["share"]["object 1"]["shape1"], curve["share"]["object 2"]["shape2"])]
    change = {e["metric"]: e["change"] for e in ablation["effects"] if e["condition"] == curve["name"]}
    late, only = own[0] < max(own) / 2, change["shape"] < 2 * change["color"] < 0.2
    return Evidence(("does not hold", "partly", "holds")[late + only], f"{curve['name']} attends to its own shape word with {own[0]:.2f} at step 0, "
                    f"{max(own):.2f} at most (step {own.index(max(own))}); without it shape {change['shape']:+.2f}, colour {change['color']:+.2f}")


def _moved(circuit: dict) -> Evidence:
    loose = {r["condition"]: r for r in circuit["injection"] if r["metric"] == "loose"}
    ours, control = loose["relation 1"], loose["random 1"]
    status = "does not hold" if ours["low"] <= control["high"] else "holds" if ours["mean"] >= 0.5 else "partly"
    return Evidence(status, f"opposite relation injected at scale 1: obeyed in {ours['mean']:.2f} [{ours['low']:.2f}, {ours['high']:.2f}], "
                    f"random vector of equal norm {control['mean']:.2f}")


def _ablated(ablation: dict, synopsis: dict, circuit: dict) -> Evidence:
    def of(rows: list[dict], condition: str, metric: str) -> dict:
        return next(r for r in rows if r["condition"] == condition and r["metric"] == metric)
    rows, relation, shape = ablation["effects"], _tops(synopsis, "relation")[0]["name"], _tops(synopsis, "object")[0]["name"]
    intact = of(rows, "intact", "loose")["mean"]
    alone, together = of(rows, relation, "loose"), of(circuit["without"], "relation", "loose")
    lost = of(rows, shape, "shape")
    falls = alone["change"] <= -intact / 3, together["change"] <= -intact / 3, lost["change_high"] < 0
    status = "holds" if falls[0] and falls[2] else "partly" if falls[1] and falls[2] else "does not hold"
    return Evidence(status, f"without {relation} relation {intact:.2f} to {alone['mean']:.2f}; without {', '.join(circuit['circuit']['relation'])} "
                    f"to {together['mean']:.2f}; without {shape} shape {of(rows, 'intact', 'shape')['mean']:.2f} to {lost['mean']:.2f}")


_JUDGES = {"C5": (_single_heads, ("synopsis",)), "C6": (_ramp, ("screen", "synopsis")), "C7": (_timing, ("synopsis", "ablation")),
           "C8": (_moved, ("circuit",)), "C9": (_ablated, ("ablation", "synopsis", "circuit"))}


def table(found: dict[str, Evidence]) -> str:
    """The claims as a Markdown table: number, claim, the paper's figure, ours, status, chapter."""
    rows = ["| | claim | paper | here | status | chapter |", "|---|---|---|---|---|---|"]
    for claim in CLAIMS:
        e = found.get(claim.id, Evidence("not yet tested", ""))
        rows.append(f"| {claim.id} | {claim.text} | {claim.paper} | {e.ours or '–'} | {e.status} | {claim.chapter} |")
    return "\n".join(rows)
