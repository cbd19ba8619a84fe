"""Judges: each decides one claim from the tables of one training run, and says so in a sentence.

A run holds a claim or does not; how many of several runs do is the verdict (`claims.survey`). Every
rule is stated here once, in its judge's docstring, and applies to all models: it asks for an effect
of a size, and that its interval leaves no doubt. What was tuned to the paper is said in the
sentence. A judge reads the figures, then states the rule, then the sentence; `JUDGES` says which
tables each gets, `claims` which models count. It raises KeyError for a table without a row or
column that it reads.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..analyses.intervals import wilson_edges

APART = 2.0         # a head is the only one if the next has less than one part in this
TUNED = {("C11", "t5-untrained"): "this encoder's position bias was set so that the share is that "
         "of the paper's"}  # by claim and encoder: no evidence


@dataclass
class Evidence:
    """In how many of how many training runs a claim holds, and a sentence with the figures; no run
    where none can be compared with the paper's."""
    held: int
    runs: int
    ours: str

    @property
    def status(self) -> str:
        """A word of `claims.STATUS`; "partly" only where some run holds and some does not."""
        if not self.runs:
            return "not comparable"
        if self.held == self.runs:
            return "holds"
        return "partly" if self.held else "does not hold"

    @property
    def verdict(self) -> str:
        """The word, and of several runs how many."""
        return self.status if self.runs < 2 else f"{self.status}: {self.held} of {self.runs} runs"


def judged(holds: bool, ours: str) -> Evidence:
    """What one run says."""
    return Evidence(int(holds), 1, ours)


def rows_with(rows: Sequence[dict], **wanted) -> list[dict]:
    """The rows with these values. Raises KeyError if there is none."""
    found = [row for row in rows if all(row[k] == v for k, v in wanted.items())]
    if not found:
        raise KeyError("a row with " + ", ".join(f"{k} {v}" for k, v in wanted.items()))
    return found


def _row(rows: Sequence[dict], **wanted) -> dict:
    return rows_with(rows, **wanted)[0]


def sure(row: dict) -> dict:
    """A share's row, with Wilson's interval over prompts where a bootstrap has none, as all or none
    of them succeeded."""
    if "n_prompts" not in row or (row["low"] is not None and row["low"] < row["high"]):
        return row
    low, high = wilson_edges(row["mean"], row["low"], row["high"], row["n_prompts"])
    return {**row, "low": low, "high": high}


def span(row: dict, digits: int = 2) -> str:
    """The interval of a row in words; nothing if it has none, as that of a single prompt."""
    if row.get("low") is None:
        return ""
    return f" [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def mean_and_range(row: dict) -> str:
    """A row's mean, with its interval if it has one."""
    return f"{row['mean']:.2f}{span(row)}"


def loose_score(scores: dict) -> str:
    """The sentence of C1 and C4."""
    loose = scores["loose"]
    return (f"loose relation {loose['mean']:.3f}{span(loose, 3)}, "
            f"{loose['of_ceiling']:.0%} of the ceiling {loose['ceiling']:.3f}")


def best_share(scores: dict) -> float:
    """The share of the ceiling that loose may have: the upper end of its interval, if there is one.
    A claim that it is reached falls, and one that it is missed stands, only if this is below."""
    loose = scores["loose"]
    high = loose["mean"] if loose.get("high") is None else loose["high"]
    return high / loose["ceiling"] if loose["ceiling"] else 0.0


def bag_of_words(scores: dict) -> Evidence:
    """C3: binding within a tenth of the ceiling of 1/2, and relation within a twentieth of 1/4."""
    binding, loose = scores["unique_binding"], scores["loose"]
    half = abs(binding["of_ceiling"] - 0.5) <= 0.1
    quarter = abs(loose["of_ceiling"] - 0.25) <= 0.05
    said = (f"binding {binding['mean']:.3f}{span(binding, 3)}, "
            f"relation {loose['mean']:.3f}{span(loose, 3)} "
            f"of a ceiling of {loose['ceiling']:.2f}")
    return judged(half and quarter, said)


def _tops(synopsis: dict, score: str) -> list[dict]:
    """The heads of a synopsis by one score, best first, at least two."""
    heads = sorted((h for h in synopsis["heads"] if h["score"] == score), key=lambda h: -h["mean"])
    if len(heads) < 2:
        raise KeyError(f"two heads by the score {score}")
    return heads


def single_heads(synopsis: dict) -> Evidence:
    """C5: the first head by each score is certain (p < .05), and has at least twice (`APART`) the
    attention of the second."""
    best = {score: _tops(synopsis, score)[:2] for score in ("relation", "object")}
    certain = all(first["p"] < 0.05 for first, _ in best.values())
    apart = all(first["mean"] >= APART * second["mean"] for first, second in best.values())
    said = [f"{score} head {first['name']} {mean_and_range(first)}, "
            f"next {second['name']} {second['mean']:.2f}"
            for score, (first, second) in best.items()]
    return judged(certain and apart, "; ".join(said))


def ramp(screen: dict, synopsis: dict) -> Evidence:
    """C6: cosine of at least .9, of either sign, for every direction word at the head that draws it
    largest. The sign is a gauge: what the object head reads is the ramp times its tag."""
    best: dict[str, dict] = {}                            # the last, largest row of each word stays
    for row in sorted(screen["heads"], key=lambda h: abs(h["projection"])):
        best[row["word"]] = row
    if not best:
        raise KeyError("a row of a direction word")
    rest = [f"{w} {row['cosine']:.2f}" for w, row in best.items() if abs(row["cosine"]) < 0.9]
    good, negative = len(best) - len(rest), sum(row["cosine"] < 0 for row in best.values())
    but = f" (but {', '.join(rest)})" if rest else ""
    names = ", ".join(sorted({row["name"] for row in best.values()}))
    curve = synopsis["curves"]["relation"]
    first = curve["share"]["object 1"]["relation"][0]
    said = (f"|cosine| at least .9 for {good} of {len(best)} words{but}, {negative} of them with a "
            f"negative sign, at {names}; "
            f"{curve['name']} gives the relation {first:.2f} of its attention at step 0")
    return judged(not rest, said)


def timing(synopsis: dict, ablation: dict) -> Evidence:
    """C7: the object head acts late (at step 0 less than half of its largest attention) and carries
    shape only: without it shape falls for certain, and colour by less than a quarter of that."""
    curve = synopsis["curves"]["object"]
    name, share = curve["name"], curve["share"]
    own = [(a + b) / 2 for a, b in zip(share["object 1"]["shape1"], share["object 2"]["shape2"])]
    shape, colour = (_row(ablation["effects"], condition=name, metric=metric)
                     for metric in ("shape", "color"))
    late = own[0] < max(own) / 2
    only = shape["change_high"] < 0 and abs(colour["change"]) < -shape["change"] / 4
    said = (f"{name} attends to its own shape word with {own[0]:.2f} at step 0, "
            f"{max(own):.2f} at most (step {own.index(max(own))}); "
            f"without it shape {shape['change']:+.2f}, colour {colour['change']:+.2f}")
    return judged(late and only, said)


def moved(circuit: dict) -> Evidence:
    """C8: the injected relation is obeyed in at least half of the pictures, and more than a random
    vector of equal norm. Judged for the opposite relation, and by pictures, where the paper shows
    an example of attention."""
    ours, control = (sure(_row(circuit["injection"], condition=c, metric="loose"))
                     for c in ("relation 1", "random 1"))
    above = ours["low"] > control["high"]
    said = (f"opposite relation injected at scale 1: obeyed in {mean_and_range(ours)}, "
            f"random vector of equal norm {control['mean']:.2f}")
    return judged(above and ours["mean"] >= 0.5, said)


def ablated(ablation: dict, synopsis: dict, circuit: dict) -> Evidence:
    """C9: without the first head by the relation score a third of the relation is lost, without the
    first by the object score shape falls for certain, and no other head costs as much as a third
    of the relation or of shape."""
    relation, shape = (_tops(synopsis, score)[0]["name"] for score in ("relation", "object"))
    rows = ablation["effects"]
    intact = {m: _row(rows, condition="intact", metric=m)["mean"] for m in ("loose", "shape")}
    alone = _row(rows, condition=relation, metric="loose")
    together = _row(circuit["without"], condition="relation", metric="loose")
    lost = _row(rows, condition=shape, metric="shape")
    others = [r for r in rows if r["metric"] in intact and r["condition"] not in
              ("intact", relation, shape)]
    worst = min(others, key=lambda r: r["change"] / intact[r["metric"]], default=None)
    little = worst is None or worst["change"] > -intact[worst["metric"]] / 3
    said = (f"without {relation} relation {intact['loose']:.2f} to {alone['mean']:.2f}; "
            f"without {', '.join(circuit['circuit']['relation'])} to {together['mean']:.2f}; "
            f"without {shape} shape {intact['shape']:.2f} to {lost['mean']:.2f}")
    if worst:
        metric = {"loose": "relation", "shape": "shape"}[worst["metric"]]
        said += f"; of the others {worst['condition']} costs most: {metric} {worst['change']:+.2f}"
    falls = alone["change"] <= -intact["loose"] / 3 and lost["change_high"] < 0
    return judged(falls and little, said)


def token(tokens: dict, arithmetic: dict) -> Evidence:
    """C10: shape2 taken from the opposite prompt turns at least half of the pictures, and more than
    the relation word so exchanged; and hiding the relation word leaves at least three quarters of
    the relation, hiding shape2 at most half. Judges the side, not the axis (see chapter 17)."""
    intact, word, shape2 = (sure(_row(tokens["effects"], condition=c, metric="loose"))
                            for c in ("intact", "relation", "shape2"))
    by_word, by_shape2 = (sure(_row(arithmetic["graft"], token=t, condition="grafted",
                                     metric="loose")) for t in ("relation", "shape2"))
    turns = by_shape2["mean"] >= 0.5 and by_shape2["low"] > by_word["high"]
    whole = max(intact["mean"], 1e-9)
    hides = word["mean"] / whole >= 0.75 and shape2["mean"] / whole <= 0.5
    said = (f"exchanged for the opposite prompt's, shape2 turns {mean_and_range(by_shape2)} of the "
            f"pictures, the relation word {mean_and_range(by_word)}; loose {intact['mean']:.2f}, "
            f"relation word hidden {mean_and_range(word)}, shape2 hidden {mean_and_range(shape2)}")
    return judged(turns and hides, said)


def variance(factors: dict) -> Evidence:
    """C11: the relation's share at shape2 is at least a tenth and p < .05, as the encoder gives the
    token and after the caption MLP."""
    before, after = (_row(factors["partition"], token="shape2", stage=stage, factor="relation")
                     for stage in ("encoder", "caption MLP"))
    large = all(row["p"] < 0.05 and row["partial_r2"] >= 0.1 for row in (before, after))
    said = (f"{before['partial_r2']:.1%}, and {after['partial_r2']:.1%} after the caption MLP "
            f"(p = {after['p']:.3f})")
    return judged(large, said)


def screened(factors: dict) -> Evidence:
    """C12: shape2's relation effects find a head with |cosine| of at least .9 and p < .05."""
    best = {t: _row(factors["heads"], token=t) for t in ("shape2", "relation")}  # the largest
    said = [f"{t}: {h['name']} cosine {h['cosine']:+.2f}, projection {h['projection']:+.1f}, "
            f"p = {h['p']:.3f}" for t, h in best.items()]
    found = best["shape2"]["p"] < 0.05 and abs(best["shape2"]["cosine"]) >= 0.9
    return judged(found, "; ".join(said))


def _best_scale(rows: list[dict], role: str) -> tuple[dict, dict]:
    """The row of the k at which a role's relation vectors are obeyed most, and of the control's own
    best k, so that both have had the same choice."""
    ours, control = (max(rows_with(rows, token=role, metric="loose", vector=vector),
                         key=lambda r: r["mean"]) for vector in ("relation", "shuffled"))
    return ours, control


def steered(arithmetic: dict) -> Evidence:
    """C13: on shape2, at the best k, the new relation is obeyed in at least half of the pictures,
    and more than by shuffled vectors at theirs."""
    best = {role: _best_scale(arithmetic["moved"], role) for role in ("shape2", "relation")}
    ours, control = best["shape2"]
    said = [f"{role}: {mean_and_range(ours)} at k = {ours['k']:g}, shuffled {control['mean']:.2f}"
            for role, (ours, control) in best.items()]
    holds = ours["mean"] >= 0.5 and ours["low"] > control["high"]
    return judged(holds, f"obeyed: {'; '.join(said)}")


def _the(robustness: dict) -> tuple[dict, str]:
    """The ratio of "the" to the training wording, and the sentence of C14."""
    after, before = (_row(robustness["effects"], condition=c, metric="loose")
                     for c in ("T3 the", "T0"))
    ratio = _row(robustness["ratio"], condition="T3 the")
    said = f"loose {before['mean']:.2f} to {after['mean']:.2f}, ratio {mean_and_range(ratio)}"
    return ratio, said


def broken(robustness: dict) -> Evidence:
    """C14 for a contextual model: with "the" at most three quarters are left, for certain."""
    ratio, said = _the(robustness)
    return judged(ratio["mean"] <= 0.75 and ratio["high"] < 1, said)


def unharmed(robustness: dict) -> Evidence:
    """C14 for random tokens: with "the" at least nineteen twentieths are left, and nine tenths for
    certain."""
    ratio, said = _the(robustness)
    return judged(ratio["mean"] >= 0.95 and ratio["low"] >= 0.9, said)


def aligned(robustness: dict) -> Evidence:
    """C15: the shift of "the" at shape2 has a cosine of at least .5 with some relation's effect,
    for certain above the largest of the relations' nulls, since the best of eight is taken."""
    rows = [r for r in robustness["shifts"] if r["token"] == "shape2" and r["family"] == "T3 the"]
    if not rows:
        return judged(False, "the word does not move shape2 at all")
    best, null = max(rows, key=lambda r: r["cosine"]), max(r["null"] for r in rows)
    said = (f"cosine {best['cosine']:.2f}{span(best)} with {best['relation'].replace('_', ' ')}, "
            f"largest null {null:.2f}; {best['within']:.0%} of the shift along relation effects")
    return judged(best["cosine"] >= 0.5 and best["low"] > null, said)


JUDGES: dict[str, tuple[Callable[..., Evidence], tuple[str, ...]]] = {
    "C5": (single_heads, ("synopsis",)), "C6": (ramp, ("screen", "synopsis")),
    "C7": (timing, ("synopsis", "ablation")), "C8": (moved, ("circuit",)),
    "C9": (ablated, ("ablation", "synopsis", "circuit")),
    "C10": (token, ("tokens", "arithmetic")), "C11": (variance, ("factors",)),
    "C12": (screened, ("factors",)), "C13": (steered, ("arithmetic",)),
    "C14": (broken, ("robustness",)), "C15": (aligned, ("robustness",))}
