"""Population: what many training runs say together; the run is the unit throughout.

Runs are grouped by what they share, all but their seeds. How often a claim holds, or the relation
is read from some word, is k of n runs with Wilson's 95 % interval.
"""
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..analyses.heads import parse_head
from ..analyses.intervals import wilson
from ..hooks.core import Heads
from ..model.store import HERE
from . import claims

CARRIES = 0.5  # a token set carries a part of the relation if it moves it in this share of pictures
TOKEN_SITES = ("relation", "shape2")   # tokens from which the relation may be read alone
PARTS_BY_DONOR = {"side": "opposite", "axis": "turned"}


def group(folder: Path) -> str:
    """What a run shares with others: encoder and its options but the seed, size and recipe's bias.

    Raises ValueError for a file that cannot be read.
    """
    text, recipe = (claims.read_record(folder / f"{name}.json") for name in ("text", "recipe"))
    options = {k: v for k, v in text.get("options", {}).items() if k != "seed"}
    words = [encoder_words({**text, "options": options})]
    if recipe.get("size", "tiny") != "tiny":
        words.append(recipe["size"])
    if not claims.unbiased(folder):
        words.append("biased captions")
    return " ".join(words)


def encoder_words(text: dict) -> str:
    """An encoder and its options, as one would type them."""
    return " ".join([text["name"], *(f"{k}={v}" for k, v in text.get("options", {}).items())])


def verdict_rows(folders: Sequence[Path]) -> pd.DataFrame:
    """Columns run, group, claim, held (0, 1 or missing where not comparable) and what it says."""
    return _by_run(folders, ["claim", "held", "ours"], lambda folder: [
        {"claim": claim, "held": e.held if e.runs else None, "ours": e.ours}
        for claim, e in claims.verdicts(folder).items()])


def _by_run(folders: Sequence[Path], columns: Sequence[str],
            found: Callable[[Path], list[dict]]) -> pd.DataFrame:
    """What is found in each folder, beside the run's name and group."""
    rows = [{"run": folder_name(folder), "group": group(folder), **row} for folder in folders
            for row in found(folder)]
    return pd.DataFrame(rows, columns=["run", "group", *columns])


def folder_name(folder: Path) -> str:
    """The run's name: that of the folder above, where this one is called model; the model's where
    it ships with the package; else COLLECTION/NAME."""
    if folder.name == "model":
        return folder.parent.name
    whole = folder.resolve()
    return folder.name if whole.parent == HERE.resolve() else f"{whole.parent.name}/{whole.name}"


def how_often(rows: pd.DataFrame, by: Sequence[str] = ("claim", "group")) -> pd.DataFrame:
    """k of n runs in which `held` is 1, with Wilson's interval, by columns; no missing ones."""
    known = rows[rows["held"].notna()]
    out = []
    for key, part in known.groupby(list(by), sort=False):
        k, n = int(part["held"].sum()), len(part)
        low, high = wilson(k, n)
        out.append({**dict(zip(by, key)), "held": k, "runs": n, "low": low, "high": high})
    return pd.DataFrame(out, columns=[*by, "held", "runs", "low", "high"])


def order_of_learning(folders: Sequence[Path]) -> pd.DataFrame:
    """C2 run by run: images seen when each conditional score passes its level (`milestones`), and
    held, whether they come in the paper's order. Runs whose log has fewer than
    `claims.FEWEST` scores are left out."""
    def found(folder: Path) -> list[dict]:
        log = claims.history(folder)
        row = {**claims.milestones(log), "held": claims.learned_in_order(log).held}
        return [row] if claims.tells_order(log) else []
    return _by_run(folders, [*claims.ORDER, "held"], found)


def conditional_scores(folders: Sequence[Path]) -> pd.DataFrame:
    """The conditional scores of every run over its images (`claims.conditional`)."""
    return _by_run(folders, ["images", *claims.ORDER],
                   lambda folder: claims.conditional(claims.history(folder)))


def reading(word: float, shape2: float, both: float) -> str:
    """From where a part of the relation is read, by the shares of pictures that follow the relation
    word, the second shape's token, and the two together (chapter 17)."""
    if word >= CARRIES and shape2 >= CARRIES:
        return "either alone"
    if word >= CARRIES or shape2 >= CARRIES:
        return "relation word" if word >= CARRIES else "second shape"
    return "only both" if both >= CARRIES else "elsewhere"


def readings(exchange: Sequence[dict[str, Any]]) -> dict[str, str]:
    """{"side": ..., "axis": ...}: `reading` of each part from the rows of an exchange table;
    "nowhere" if the donor itself, all tokens exchanged, is not followed either.

    Raises KeyError for a table without a row that it reads.
    """
    out = {}
    for part, donor in PARTS_BY_DONOR.items():
        share = {r["tokens"]: r[part] / r["pictures"] for r in exchange if r["kind"] == donor}
        read = reading(share["relation"], share["shape2"], share["relation+shape2"])
        out[part] = read if share["all"] >= CARRIES else "nowhere"
    return out


def circuit_roles(folder: Path) -> dict[str, list[str]]:
    """The recorded heads of each role, {"relation": ["L0H0", ...]}; empty if none are recorded.

    Raises ValueError for a broken table, as `read_from` does.
    """
    return claims.read(folder).get("circuit", {}).get("circuit", {})


def circuit_heads(folder: Path) -> dict[str, Heads]:
    """`circuit_roles` as pairs (layer, head). Raises ValueError as it does."""
    roles = circuit_roles(folder)
    return {role: [parse_head(h) for h in heads] for role, heads in roles.items()}


def injection_layer(readers: Heads) -> int:
    """The layer before which a relation is written in by hand: that of the first object head, which
    reads it; 0, the position embedding, without readers (chapter 10)."""
    return min((layer for layer, _ in readers), default=0)


def read_from(folder: Path) -> str | None:
    """The one of TOKEN_SITES whose exchange turns most pictures (chapter 14); None if not
    recorded."""
    rows = claims.read(folder).get("arithmetic", {}).get("graft", [])
    turned = {r["token"]: r["mean"] for r in rows if r["condition"] == "grafted"
              and r["metric"] == "loose" and r["token"] in TOKEN_SITES}
    return max(turned, key=turned.__getitem__) if turned else None


def reading_rows(folders: Sequence[Path]) -> pd.DataFrame:
    """Columns run, group, part (side, axis) and read from; of the runs with an exchange table."""
    def found(folder: Path) -> list[dict]:
        path = folder / "exchange.json"
        read = readings(claims.read_record(path)["exchange"]) if path.exists() else {}
        return [{"part": part, "read from": where} for part, where in read.items()]
    return _by_run(folders, ["part", "read from"], found)


def reading_counts(rows: pd.DataFrame) -> pd.DataFrame:
    """k of n runs that read a part from each place that any run of all reads it from, by group."""
    places = list(dict.fromkeys(rows["read from"]))
    counted = [rows.assign(place=place, held=(rows["read from"] == place).astype(int))
               for place in places]
    if not counted:
        return pd.DataFrame(columns=["part", "group", "place", "held", "runs", "low", "high"])
    return how_often(pd.concat(counted), ("part", "group", "place"))


def population_record(folders: Sequence[Path]) -> dict:
    """All of the above as plain numbers for JSON; infinity (never learned) as null.

    Raises ValueError for a run that is named twice, which is one run still.
    """
    whole = [folder.resolve() for folder in folders]
    if twice := [folder for folder in whole if whole.count(folder) > 1]:
        raise ValueError(f"{twice[0]} is named twice; name each run once")
    verdicts, learned = verdict_rows(folders), order_of_learning(folders)
    read = reading_rows(folders)
    tables = {"verdicts": verdicts, "claims": how_often(verdicts), "order": learned,
              "order_counts": how_often(learned, ("group",)),
              "conditional": conditional_scores(folders), "reading": read,
              "reading_counts": reading_counts(read)}
    return {"runs": [folder_name(f) for f in folders],
            **{name: finite(table.to_dict("records")) for name, table in tables.items()}}


def finite(rows: list[dict]) -> list[dict]:
    """The rows with None in place of NaN and infinity."""
    return [{k: None if isinstance(v, float) and not math.isfinite(v) else v
             for k, v in row.items()} for row in rows]
