"""Challenges: what this study does not establish, each with where it stands and how to measure it.

A baseline is read from the tables of the runs at hand, never typed in; a run without the table that
one needs is left out of it. An entry is met when its `goal` is, measured by its `command`.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from scipy.stats import spearmanr

from ..analyses.intervals import wilson
from . import claims
from .judges import Evidence, mean_and_range, rows_with, sure
from .population import folder_name

Tables = dict[str, dict[str, Any]]  # `claims.read`: the tables of a run by name


@dataclass(frozen=True)
class Challenge:
    """An open question. `baseline` says where one run stands, by its tables of the names `needs`
    (one of them its training log); `kinds` of runs (`claims.kind`) are those it is asked about."""
    question: str
    goal: str
    command: str
    chapter: str
    needs: tuple[str, ...]
    kinds: tuple[str, ...]
    baseline: Callable[[Tables], str]


def strict_share(tables: Tables) -> str:
    """Strict placing as a share of its ceiling, with the interval of the score."""
    strict = tables["evaluation"]["metrics"]["strict"]
    best = strict["ceiling"]
    return mean_and_range({k: strict[k] / best for k in ("mean", "low", "high") if k in strict})


def first_relations(tables: Tables) -> str:
    """Pictures seen when loose first passes a half."""
    seen = [r["images"] for r in tables["unbiased log"]["records"] if r.get("loose", 0) >= 0.5]
    return f"{min(seen) / 1000:,.0f} thousand" if seen else "never"


def weights_against_effects(tables: Tables) -> str:
    """Spearman's rank correlation over heads: the largest ramp that a direction word draws, by the
    weights alone, against the loss of the relation without the head."""
    ramps = pd.DataFrame(tables["screen"]["heads"]).set_index("name")["projection"].abs()
    rows = rows_with(tables["ablation"]["effects"], metric="loose")
    loss = pd.DataFrame(rows).set_index("condition")["change"].drop("intact", errors="ignore")
    both = pd.DataFrame({"ramp": ramps.groupby(level=0).max(), "loss": -loss}).dropna()
    found = spearmanr(both["ramp"], both["loss"])
    return f"{found.statistic:.2f} over {len(both)} heads (p = {found.pvalue:.3f})"


def heads_kept(tables: Tables) -> str:
    """Heads in the circuit, and the share of the relation that they keep alone."""
    circuit = tables["circuit"]
    members = {h for heads in circuit["circuit"].values() for h in heads}
    (alone,) = rows_with(circuit["tests"]["loose"], condition="circuit alone")
    return f"{len(members)} of {circuit['heads']} heads keep {mean_and_range(alone)}"


def worst_wording(tables: Tables) -> str:
    """The change of wording that leaves least of the relation, and how much."""
    worst = min(tables["robustness"]["ratio"], key=lambda r: r["mean"])
    return f"{mean_and_range(worst)} with {worst['condition']}"


def steering(tables: Tables) -> str:
    """The share of pictures that obey a relation written into the second shape's token, at the k
    that is best for it."""
    rows = rows_with(tables["arithmetic"]["moved"], token="shape2", metric="loose")
    best = max(rows_with(rows, vector="relation"), key=lambda r: r["mean"])
    return f"{mean_and_range(best)} at k = {best['k']:g}"


def read_elsewhere(tables: Tables) -> str:
    """The share of pictures that follow the opposite prompt's relation word, and second shape."""
    rows = rows_with(tables["arithmetic"]["graft"], condition="grafted", metric="loose")
    share = {r["token"]: sure(r) for r in rows}
    return f"word {mean_and_range(share['relation'])}, shape {mean_and_range(share['shape2'])}"


ABLE = ("random", "contextual")
CHALLENGES = (
    Challenge("Relations earlier: with captions that say either object first alike, after how many "
              "pictures is the relation right in half of them?",
              "100 thousand or fewer in three seeds", "spatial-circuits train --encoder rte",
              "[4](04_training.ipynb)", ("unbiased log",), ABLE,
              first_relations),
    Challenge("Exact places: which share of its ceiling does strict placing reach?",
              "at least .95 in three seeds, within 410 thousand pictures",
              "spatial-circuits evaluate", "[5](05_evaluation.ipynb)", ("evaluation",), ABLE,
              strict_share),
    Challenge("Effects from weights: does the ramp that a head draws, computed without a picture, "
              "rank heads as their ablation does?", "a rank correlation of at least .8",
              "spatial-circuits screen; spatial-circuits ablate", "[9](09_ablation.ipynb)",
              ("screen", "ablation"), ABLE, weights_against_effects),
    Challenge("Fewer heads: how small a circuit keeps the relation alone?",
              "at least .95 with an eighth of the heads", "spatial-circuits circuit",
              "[11](11_circuit.ipynb)", ("circuit",), ABLE, heads_kept),
    Challenge("Which word: what, known before training, tells whether a run will read the relation "
              "word or the second shape?",
              "right for nine of ten new runs, more than the commoner answer",
              "make study; spatial-circuits population", "[17](17_population.ipynb)",
              ("arithmetic",), ("contextual",), read_elsewhere),
    Challenge("Any wording: how much of the relation is left under the worst change of wording?",
              "at least .95, without training again", "spatial-circuits robustness",
              "[15](15_robustness.ipynb)", ("robustness",), ABLE, worst_wording),
    Challenge("Writing a relation into one word: how many pictures obey?",
              "as many as obey a sentence that says it", "spatial-circuits arithmetic",
              "[14](14_factors.ipynb)", ("arithmetic",), ("contextual",), steering),
)
LARGE = ("The circuit of a large pretrained model", "relation heads of a PixArt, found and tested "
         "against a null, with the tables of chapters 6, 9 and 11",
         "spatial-circuits synopsis --model FOLDER --prompts-file prompts.txt")


def _measured(folder: Path) -> Tables:
    """The tables of a run, its evaluation, and its log if its captions had no bias."""
    tables, path = claims.read(folder), folder / "evaluation.json"
    if path.exists():
        tables["evaluation"] = claims.read_record(path)
    log = claims.history(folder)
    if claims.tells_order(log) and claims.unbiased(folder):
        tables["unbiased log"] = {"records": log}
    return tables


def challenge_rows(folders: Sequence[Path]) -> pd.DataFrame:
    """Columns question, run and baseline: a row for each run that a question is about and that has
    its tables. Raises ValueError naming a file that is broken."""
    rows = []
    for folder in folders:
        tables = _measured(folder)
        for c in CHALLENGES:
            if claims.kind(folder) in c.kinds and all(n in tables for n in c.needs):
                rows.append((c.question, folder_name(folder), c.baseline(tables)))
    return pd.DataFrame(rows, columns=["question", "run", "baseline"])


def commoner_reading(read: pd.Series) -> str:
    """The commonest entry of a column of readings, a run each, as k of n with Wilson's interval:
    what a guess without looking gets right. Raises ValueError if there is no run."""
    if read.empty:
        raise ValueError("read holds no run; give at least one")
    counts = read.value_counts()
    low, high = wilson(int(counts.iloc[0]), len(read))
    return f"{counts.index[0]}: {counts.iloc[0]} of {len(read)} runs [{low:.2f}, {high:.2f}]"


def challenges_page(rows: pd.DataFrame, found: dict[str, Evidence]) -> str:
    """The questions as Markdown: each with its goal, its command and where the runs stand; then
    that of C16, which has no run behind it until `found` holds one."""
    parts = []
    for c in CHALLENGES:
        stands = [f"  - `{r.run}`: {r.baseline}" for r in rows.itertuples()
                  if r.question == c.question]
        parts += [f"**{c.question}** (chapter {c.chapter})", "", f"- Met by: {c.goal}.",
                  f"- Measured by: `{c.command}`.", "- Where it stands:",
                  *(stands or ["  - no run with its tables"]), ""]
    question, goal, command = LARGE
    large = found["C16"].verdict if "C16" in found else "not yet tested"
    parts += [f"**{question}**", "", f"- Met by: {goal}.", f"- Measured by: `{command}`.",
              f"- Where it stands: {large}."]
    return "\n".join(parts)
