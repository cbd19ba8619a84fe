"""First page: the figures of its five sentences, from the tables of training runs, and the verdict
line below each.

A sentence must be true whatever the tables hold. So its figures are those of the weakest of the
runs that it is about, with their interval, or counts of runs; whether that bears out a claim stands
in the line below it. A sentence whose tables are missing is left out.
"""
from collections.abc import Callable, Sequence
from pathlib import Path

from ..claims import claims
from ..claims.judges import Evidence, mean_and_range, rows_with, sure
from .claims_grid import SHORT, UNTESTED, Row, mark, tally

MISSING = "(not measured)"
NOTHING = "Not a question for the runs of this page, or not measured in them."
TURNS = 0.5  # a run reads a token whose exchange turns this share of its pictures
_ORDERED = ("random", "contextual")  # kinds of models whose encoder knows word order
_Tables = dict[str, dict]


def numbers(folders: Sequence[Path]) -> dict[str, str]:
    """The figures of the first page as text, over the runs that count (`claims.counted`); MISSING
    where no run has the table.

    ordered, random, contextual: how many runs the first, second and fifth finding is about; the
    others' stand in their verdicts. relation, shallow, bag: the relation where the encoder knows
    word order (the weakest run), there with three layers, and in a bag of words. ramps: direction
    words that draw a ramp, of all words and runs. obeyed, at_reader, control: a relation written in
    by hand (the weakest run), there and where the object head reads, and the random vector (the
    strongest). alone, together: what is lost without one relation head at most, and without all at
    least. by_shape2, by_word: runs that each token's exchange turns. the: relations left where an
    article is added, by run.

    Raises ValueError for a folder with a broken table, or whose files do not tell its kind.
    """
    folders = claims.counted(folders)
    kinds = {folder: claims.kind(folder) for folder in folders}
    tables = {folder: claims.read(folder) for folder in folders}
    scores = {folder: claims.evaluation_scores(folder) for folder in folders}
    ordered, shallow, bags = ([s["loose"] for f, s in scores.items() if s and kinds[f] in some]
                              for some in (_ORDERED, ("shallow",), ("bag",)))
    random, contextual = ([t for f, t in tables.items() if kinds[f] == kind] for kind in _ORDERED)
    exchanged = [t["arithmetic"] for t in contextual if "arithmetic" in t]
    written = [t["circuit"]["injection"] for t in random if "circuit" in t]
    read = [t["circuit"]["injection_at_reader"] for t in random
            if "injection_at_reader" in t.get("circuit", {})]
    lost = _having(random, "ablation", "synopsis", "circuit")
    return {
        "ordered": str(len(ordered)), "random": str(len(_having(random, "screen"))),
        "contextual": str(len(exchanged)), "relation": _extreme(ordered, min),
        "shallow": _extreme(shallow, min), "bag": _extreme(bags, min), "ramps": _ramps(random),
        "obeyed": _extreme([_one(rows, condition="relation 1") for rows in written], min),
        "control": _extreme([_one(rows, condition="random 1") for rows in (*written, *read)], max),
        "at_reader": _extreme([_one(rows, condition="relation 1") for rows in read], min),
        "alone": _extreme([_change(_alone(t)) for t in lost], max),
        "together": _extreme([_change(_together(t)) for t in lost], min),
        "by_shape2": _turned(exchanged, "shape2"), "by_word": _turned(exchanged, "relation"),
        "the": _the(contextual)}


def finding(sentences: str, figures: dict[str, str]) -> str:
    """The sentences, a blank line between two, whose figures `{so}` are all known, in one line;
    NOTHING if there is none."""
    told = [" ".join(said.split()).format(**figures) for said in sentences.split("\n\n")]
    return " ".join(said for said in told if MISSING not in said) or NOTHING


def more_together(folders: Sequence[Path]) -> Evidence:
    """In how many runs with random tokens more of the relation is lost without all relation heads
    of the circuit than without the one that looks most at the relation word: their intervals must
    lie apart. Raises ValueError as `numbers` does."""
    tables = [claims.read(f) for f in claims.counted(folders) if claims.kind(f) == "random"]
    found = [_change(_together(t))["low"] > _change(_alone(t))["high"]
             for t in _having(tables, "ablation", "synopsis", "circuit")]
    return Evidence(sum(found), len(found), "")


def verdict_line(row: Row) -> str:
    """A line of Markdown: sign, link that opens the claim's row of the grid, verdict."""
    claim = row.claim.id
    return _verdict(row.status, f'<a href="#claim-{claim}">{claim} {SHORT[claim].lower()}</a>',
                    row.verdict)


def verdict_span(evidence: Evidence, about: str) -> str:
    """A line of Markdown: sign, what it is about (HTML), verdict; without runs not yet tested."""
    status = evidence.status if evidence.runs else UNTESTED
    return _verdict(status, about, status + tally(evidence))


def _verdict(status: str, about: str, said: str) -> str:
    return f'<span class="verdict">{mark(status)} {about} <b>{said}</b></span>'


def _having(tables: Sequence[_Tables], *needed: str) -> list[_Tables]:
    return [t for t in tables if set(needed) <= set(t)]


def _one(rows: Sequence[dict], **wanted) -> dict:
    """The first row of the relation with these values, its interval by Wilson where all or none
    succeeded. Raises ValueError naming the values if there is none."""
    try:
        return sure(rows_with(rows, metric="loose", **wanted)[0])
    except KeyError as error:
        raise ValueError(f"a table lacks {error.args[0]}") from error


def _extreme(rows: Sequence[dict], choose: Callable) -> str:
    """Mean and interval of the row with the least (min) or greatest (max) mean."""
    if not rows:
        return MISSING
    return mean_and_range(choose(rows, key=lambda r: r["mean"]))


def _change(row: dict) -> dict:
    """The loss of a row of effects as a mean with its interval."""
    return {"mean": -row["change"], "low": -row["change_high"], "high": -row["change_low"]}


def _alone(tables: _Tables) -> dict:
    heads = [h for h in tables["synopsis"]["heads"] if h["score"] == "relation"]
    first = max(heads, key=lambda h: h["mean"])["name"]
    return _one(tables["ablation"]["effects"], condition=first)


def _together(tables: _Tables) -> dict:
    return _one(tables["circuit"]["without"], condition="relation")


def _ramps(tables: Sequence[_Tables]) -> str:
    """k of n words of all runs whose largest map is a ramp of |cosine| .9, as C6 asks of each."""
    good, words = 0, 0
    for table in _having(tables, "screen"):
        best = {row["word"]: row for row in
                sorted(table["screen"]["heads"], key=lambda r: abs(r["projection"]))}
        good += sum(abs(row["cosine"]) >= 0.9 for row in best.values())
        words += len(best)
    return f"{good} of {words}" if words else MISSING


def _turned(exchanged: Sequence[dict], token: str) -> str:
    rows = [_one(t["graft"], token=token, condition="grafted") for t in exchanged]
    return str(sum(row["mean"] >= TURNS for row in rows)) if rows else MISSING


def _the(tables: Sequence[_Tables]) -> str:
    """Lowest and highest ratio of "the" to the training wording over the runs; one run's own."""
    rows = [r for t in _having(tables, "robustness") for r in t["robustness"]["ratio"]
            if r["condition"] == "T3 the"]
    return " to ".join(dict.fromkeys((_extreme(rows, min), _extreme(rows, max))))
