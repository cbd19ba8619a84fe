"""Judges: each decides one claim from the tables of one model's folder, and says so in a sentence with the figure.

Every rule is stated here once and applies to all models. `claims` says which tables a judge gets and which models count.
"""
from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Evidence:
    """What was found for a claim: a status of `claims.STATUS` and a sentence with the figure."""
    status: str
    ours: str


def _graded(whole: bool, part: bool) -> str:
    return "holds" if whole else "partly" if part else "does not hold"


def _row(rows: list[dict], **wanted) -> dict:
    """The first row with these values."""
    return next(r for r in rows if all(r[k] == v for k, v in wanted.items()))


def bag_of_words(scores: dict) -> Evidence:
    """C3: binding within a tenth of the ceiling of 1/2, relation within a twentieth of 1/4."""
    binding, loose = scores["unique_binding"], scores["loose"]
    right = abs(binding["of_ceiling"] - 0.5) <= 0.1, abs(loose["of_ceiling"] - 0.25) <= 0.05
    spread = lambda m: f" [{m['low']:.3f}, {m['high']:.3f}]" if "low" in m else ""
    return Evidence(_graded(all(right), any(right)), f"binding {binding['mean']:.3f}{spread(binding)}, relation {loose['mean']:.3f}"
                    f"{spread(loose)} of a ceiling of {loose['ceiling']:.2f}")


def _tops(synopsis: dict, score: str) -> list[dict]:
    return sorted((h for h in synopsis["heads"] if h["score"] == score), key=lambda h: -h["mean"])


def single_heads(synopsis: dict) -> Evidence:
    """C5: the first head by each score stands apart from the second (partly: certain, but not apart)."""
    parts, certain, single = [], True, True
    for score in ("relation", "object"):
        first, second = _tops(synopsis, score)[:2]
        certain, single = certain and first["p"] < 0.05, single and first["low"] > second["high"]
        parts.append(f"{score} head {first['name']} {first['mean']:.2f} [{first['low']:.2f}, {first['high']:.2f}], next {second['name']} "
                     f"{second['mean']:.2f}")
    return Evidence("holds" if certain and single else "partly" if certain else "does not hold", "; ".join(parts))


def ramp(screen: dict, synopsis: dict) -> Evidence:
    """C6: cosine of at least .9 for every direction word at the head that draws it largest (partly: for half of the words)."""
    best: dict[str, dict] = {}                                                                # of each word, the head that draws it largest
    for row in sorted(screen["heads"], key=lambda h: abs(h["projection"])):
        best[row["word"]] = row
    rest = [f"{w} {r['cosine']:.2f}" for w, r in best.items() if r["cosine"] < 0.9]
    share, names = 1 - len(rest) / len(best), sorted({r["name"] for r in best.values()})
    curve = synopsis["curves"]["relation"]
    status = "holds" if not rest else "partly" if share >= 0.5 else "does not hold"
    but = f" (but {', '.join(rest)})" if rest else ""
    return Evidence(status, f"cosine at least .9 for {len(best) - len(rest)} of {len(best)} words{but} at "
                    f"{', '.join(names)}; {curve['name']} gives the relation {curve['share']['object 1']['relation'][0]:.2f} of its attention at step 0")


def timing(synopsis: dict, ablation: dict) -> Evidence:
    """C7: the object head acts late (at step 0 less than half of its largest attention) and carries shape only (partly: one of both)."""
    curve = synopsis["curves"]["object"]
    own = [(a + b) / 2 for a, b in zip(curve["share"]["object 1"]["shape1"], curve["share"]["object 2"]["shape2"])]
    change = {e["metric"]: e["change"] for e in ablation["effects"] if e["condition"] == curve["name"]}
    late, only = own[0] < max(own) / 2, change["shape"] < 2 * change["color"] < 0.2
    return Evidence(("does not hold", "partly", "holds")[late + only], f"{curve['name']} attends to its own shape word with {own[0]:.2f} at step 0, "
                    f"{max(own):.2f} at most (step {own.index(max(own))}); without it shape {change['shape']:+.2f}, colour {change['color']:+.2f}")


def moved(circuit: dict) -> Evidence:
    """C8: the injected relation is obeyed by half of the pictures and more than a random vector (partly: more than random)."""
    loose = {r["condition"]: r for r in circuit["injection"] if r["metric"] == "loose"}
    ours, control = loose["relation 1"], loose["random 1"]
    status = "does not hold" if ours["low"] <= control["high"] else "holds" if ours["mean"] >= 0.5 else "partly"
    return Evidence(status, f"opposite relation injected at scale 1: obeyed in {ours['mean']:.2f} [{ours['low']:.2f}, {ours['high']:.2f}], "
                    f"random vector of equal norm {control['mean']:.2f}")


def ablated(ablation: dict, synopsis: dict, circuit: dict) -> Evidence:
    """C9: without the relation head a third of the relation is lost, without the object head shape (partly: only all relation heads together)."""
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


def token(tokens: dict, arithmetic: dict) -> Evidence:
    """C10: shape2 taken from the opposite prompt turns at least half of the pictures, and more than the relation word so exchanged (partly); and
    hiding the relation word leaves at least three quarters of the relation, hiding shape2 at most half."""
    loose = {c: _row(tokens["effects"], condition=c, metric="loose") for c in ("intact", "relation", "shape2")}
    turned = {t: _row(arithmetic["graft"], token=t, condition="grafted", metric="loose") for t in ("relation", "shape2")}
    said = lambda r: f"{r['mean']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
    read = turned["shape2"]["mean"] >= 0.5 and turned["shape2"]["low"] > turned["relation"]["high"]
    share = {c: loose[c]["mean"] / max(loose["intact"]["mean"], 1e-9) for c in loose}
    return Evidence(_graded(read and share["relation"] >= 0.75 and share["shape2"] <= 0.5, read),
                    f"exchanged for the opposite prompt's, shape2 turns {said(turned['shape2'])} of the pictures, the relation word "
                    f"{said(turned['relation'])}; loose {loose['intact']['mean']:.2f}, relation word hidden {said(loose['relation'])}, shape2 hidden {said(loose['shape2'])}")


def variance(factors: dict) -> Evidence:
    """C11: the relation's share at shape2, after the caption MLP, is at least a tenth (partly: p < .05)."""
    raw, after = (_row(factors["partition"], token="shape2", stage=s, factor="relation") for s in ("encoder", "caption MLP"))
    return Evidence(_graded(after["p"] < 0.05 and after["partial_r2"] >= 0.1, after["p"] < 0.05),
                    f"{raw['partial_r2']:.1%}, and {after['partial_r2']:.1%} after the caption MLP (p = {after['p']:.3f})")


def screened(factors: dict) -> Evidence:
    """C12: shape2's relation effects find a head with |cosine| of at least .9 and p < .05 (partly: p < .05, there or at the relation word)."""
    best = {t: next(h for h in factors["heads"] if h["token"] == t) for t in ("shape2", "relation")}  # largest projection first
    said = "; ".join(f"{t}: {h['name']} cosine {h['cosine']:+.2f}, projection {h['projection']:+.1f}, p = {h['p']:.3f}" for t, h in best.items())
    found = best["shape2"]["p"] < 0.05
    return Evidence(_graded(found and abs(best["shape2"]["cosine"]) >= 0.9, found or best["relation"]["p"] < 0.05), said)


def steered(arithmetic: dict) -> Evidence:
    """C13: on shape2, at the best k, the new relation is obeyed in at least half of the pictures (partly: above the shuffled control, or
    at least half on the relation word)."""
    best = {}
    for role in ("shape2", "relation"):
        rows = [r for r in arithmetic["moved"] if r["token"] == role and r["metric"] == "loose"]
        ours = max((r for r in rows if r["vector"] == "relation"), key=lambda r: r["mean"])
        best[role] = ours, _row(rows, vector="shuffled", k=ours["k"])
    above = {role: ours["low"] > control["high"] for role, (ours, control) in best.items()}
    said = "; ".join(f"{role}: {o['mean']:.2f} [{o['low']:.2f}, {o['high']:.2f}] at k = {o['k']:g}, shuffled {c['mean']:.2f}"
                     for role, (o, c) in best.items())
    half = {role: above[role] and ours["mean"] >= 0.5 for role, (ours, _) in best.items()}
    return Evidence(_graded(half["shape2"], above["shape2"] or half["relation"]), f"obeyed: {said}")


def _the(robustness: dict) -> tuple[dict, str]:
    row, base = (_row(robustness["effects"], condition=c, metric="loose") for c in ("T3 the", "T0"))
    ratio = _row(robustness["ratio"], condition="T3 the")
    return ratio, f"loose {base['mean']:.2f} to {row['mean']:.2f}, ratio {ratio['mean']:.2f} [{ratio['low']:.2f}, {ratio['high']:.2f}]"


def broken(robustness: dict) -> Evidence:
    """C14 for a contextual model: with "the" at most three quarters are left (partly: the interval of the ratio lies below 1)."""
    ratio, said = _the(robustness)
    return Evidence(_graded(ratio["mean"] <= 0.75, ratio["high"] < 1), said)


def unharmed(robustness: dict) -> Evidence:
    """C14 for random tokens: with "the" at least nineteen twentieths are left."""
    ratio, said = _the(robustness)
    return Evidence(_graded(ratio["mean"] >= 0.95, ratio["mean"] >= 0.75), said)


def aligned(robustness: dict) -> Evidence:
    """C15: the shift of "the" at shape2 has a cosine of at least .5 with some relation's effect (partly: above the null)."""
    rows = [r for r in robustness["shifts"] if r["token"] == "shape2" and r["family"] == "T3 the"]
    if not rows:
        return Evidence("does not hold", "the word does not move shape2 at all")
    best = max(rows, key=lambda r: r["cosine"])
    return Evidence(_graded(best["cosine"] >= 0.5 and best["low"] > best["null"], best["low"] > best["null"]),
                    f"cosine {best['cosine']:.2f} [{best['low']:.2f}, {best['high']:.2f}] with {best['relation'].replace('_', ' ')}, null {best['null']:.2f}; "
                    f"{best['within']:.0%} of the shift along relation effects")


JUDGES = {"C5": (single_heads, ("synopsis",)), "C6": (ramp, ("screen", "synopsis")), "C7": (timing, ("synopsis", "ablation")),
          "C8": (moved, ("circuit",)), "C9": (ablated, ("ablation", "synopsis", "circuit")), "C10": (token, ("tokens", "arithmetic")),
          "C11": (variance, ("factors",)), "C12": (screened, ("factors",)), "C13": (steered, ("arithmetic",)),
          "C14": (broken, ("robustness",)), "C15": (aligned, ("robustness",))}
