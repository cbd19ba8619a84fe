"""Claims grid: which claim holds in which training run, as coloured cells with a sign each.

A row a claim, a column a run, then in how many of the runs it holds. A row unfolds to the paper's
sentence and figure, what each run says of it, and the rule by which it is judged; a link to
#claim-ID, which lies inside the row, opens it. HTML and CSS alone: no script.
"""
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from inspect import cleandoc
from pathlib import Path

from ..claims import claims, judges
from ..claims.claims import CLAIMS, TESTED, Claim
from ..claims.judges import Evidence
from ..claims.population import folder_name

SHORT = {"C1": "Learned to the ceiling", "C2": "Relation learned last",
         "C3": "Bag of words: half, quarter", "C4": "Three layers fail",
         "C5": "One head for each score",
         "C6": "A ramp before a picture", "C7": "Object head late, shape only",
         "C8": "Relation written by hand", "C9": "Two heads matter alone",
         "C10": "Read from the second shape", "C11": "Relation explains that token",
         "C12": "Heads found from weights",
         "C13": "Arithmetic on that token", "C14": "“The” breaks contextual only",
         "C15": "“The” shifts along relations", "C16": "Carries over to large models"}
UNTESTED, ELSEWHERE = "not yet tested", "not about this model"
SIGNS = {"holds": "✓", "partly": "◐", "does not hold": "✗", "not comparable": "≠", UNTESTED: "?",
         ELSEWHERE: "·"}
_RULES: dict[str, tuple[Callable[..., object], ...]] = {
    **{claim: (judge,) for claim, (judge, _) in judges.JUDGES.items()},
    "C2": (claims.learned_in_order,), "C3": (judges.bag_of_words,),
    "C14": (judges.broken, judges.unharmed)}


@dataclass(frozen=True)
class Cell:
    """What one run says of one claim: a word of `SIGNS`, and its figures (none if untested)."""
    run: str
    status: str
    ours: str = ""


@dataclass(frozen=True)
class Row:
    """One claim, its cells in the order of the runs, and what the runs say together."""
    claim: Claim
    cells: tuple[Cell, ...]
    together: Evidence | None

    @property
    def status(self) -> str:
        """A word of `SIGNS` for all runs."""
        if self.together:
            return self.together.status
        asked = any(cell.status != ELSEWHERE for cell in self.cells)
        elsewhere = any(self.claim.id in asked_of for asked_of in TESTED.values())
        return ELSEWHERE if elsewhere and not asked else UNTESTED

    @property
    def verdict(self) -> str:
        """The status, and in how many of how many runs the claim holds where any counts."""
        return self.status + tally(self.together)


def grid_rows(folders: Sequence[Path]) -> list[Row]:
    """The claims with a cell for each run: models with random tokens first, contextual ones last.
    A run that does not count (`claims.counted`) stands there as not comparable.

    Raises ValueError as `claims.verdicts` does, for a folder whose files do not tell its kind or
    lack what a judge reads.
    """
    kinds = {folder: claims.kind(folder) for folder in folders}
    ordered = sorted(folders, key=lambda f: (list(TESTED).index(kinds[f]), folder_name(f)))
    found = {folder: claims.verdicts(folder) for folder in ordered}
    together, counted = claims.survey(ordered), claims.counted(ordered)
    rows = []
    for claim in CLAIMS:
        cells = []
        for folder in ordered:
            said = found[folder].get(claim.id)
            about = claim.id in TESTED[kinds[folder]]
            status = said.status if said else UNTESTED if about else ELSEWHERE
            if said and folder not in counted:
                status = "not comparable"
            cells.append(Cell(folder_name(folder), status, said.ours if said else ""))
        rows.append(Row(claim, tuple(cells), together.get(claim.id)))
    return rows


def rule(claim: str) -> str:
    """The rule by which a claim is judged, as its judge's docstring states it.

    Raises ValueError for a claim that CLAIMS does not hold.
    """
    if claim not in SHORT:
        raise ValueError(f"claim {claim!r} is unknown; choose from {', '.join(SHORT)}")
    reached, missed = (f"The upper end of the relation's interval is {edge} of the ceiling." for
                       edge in (f"at least {claims.REACHED:.0%}", f"below {claims.MISSED:.0%}"))
    if claim in ("C1", "C4"):
        return reached if claim == "C1" else missed
    said = []
    for judge in _RULES.get(claim, ()):
        text = " ".join(cleandoc(judge.__doc__ or "").split())
        text = re.sub(r"^C\d+:? ", "", text)
        said.append(text[:1].upper() + text[1:])
    return " ".join(said) or "None yet."


class ClaimsGrid:
    """The grid as one piece of HTML, with a caption. Raises ValueError as `grid_rows` does."""

    def __init__(self, folders: Sequence[Path], caption: str):
        self.rows, self.caption = grid_rows(folders), caption

    def _repr_html_(self) -> str:
        style = (files("spatial_circuits.book") / "assets" / "claims_grid.css").read_text()
        cells = self.rows[0].cells
        head = "".join(f'<span class="run">{escape(cell.run)}</span>' for cell in cells)
        body = "".join(map(_row, self.rows))
        legend = "".join(f"<li>{mark(status)} {status}</li>" for status in SIGNS)
        return (f'<figure><style>{style}</style><div class="sc-claims">'
                f'<ul class="legend">{legend}</ul><div class="scroll" style="--runs: {len(cells)}">'
                f'<div class="sc-row head" aria-hidden="true"><span>claim</span>{head}'
                f'<span class="run">holds in</span></div>{body}</div></div>'
                f'<figcaption>{escape(self.caption)}</figcaption></figure>')

    def __repr__(self) -> str:
        return "\n".join(f"{row.claim.id} {SHORT[row.claim.id]}: {row.verdict}"
                         for row in self.rows)


def mark(status: str, text: str = "") -> str:
    """A coloured cell of HTML with the sign of a status, or a text in its place.

    Raises ValueError for a status that SIGNS does not hold.
    """
    if status not in SIGNS:
        raise ValueError(f"status {status!r} is unknown; choose from {', '.join(SIGNS)}")
    return (f'<span class="sc-sign {status.replace(" ", "-")}" aria-hidden="true">'
            f'{escape(text or SIGNS[status])}</span>')


def standing(rows: Sequence[Row]) -> str:
    """The claims by what the runs say of them together, as a Markdown list."""
    lines = []
    for status in (*claims.STATUS, ELSEWHERE):
        names = [f'<a href="#claim-{r.claim.id}">{SHORT[r.claim.id].lower()}</a>'
                 + tally(r.together)
                 for r in rows if r.status == status]
        if names:
            lines.append(f"- **{status.capitalize()}**: {', '.join(names)}.")
    return "\n".join(lines)


def tally(evidence: Evidence | None) -> str:
    """In how many of how many runs a claim holds, in brackets; nothing where none counts."""
    return f" ({evidence.held} of {evidence.runs})" if evidence and evidence.runs else ""


def _row(row: Row) -> str:
    claim, verdict = row.claim, row.verdict
    count = tally(row.together).strip(" ()")
    cells = "".join(
        f'<span class="sc-cell" title="{escape(cell.run)}: {cell.status}">{mark(cell.status)}'
        f'<span class="hidden">{escape(cell.run)}: {cell.status}.</span></span>'
        for cell in row.cells)
    return ('<details><summary><span class="sc-row"><span class="name">'
            f'<b>{claim.id}</b> {escape(SHORT[claim.id])}</span>{cells}'
            f'<span class="sc-cell" title="{verdict}">{mark(row.status, count)}'
            f'<span class="hidden">Together: {verdict}.</span></span></span></summary>'
            f'{_unfolded(row, verdict)}</details>')


def _unfolded(row: Row, verdict: str) -> str:
    """What a row holds when it is open."""
    claim = row.claim
    told = [f'<li>{mark(cell.status)} <code>{escape(cell.run)}</code> {cell.status}'
            + (f": {escape(cell.ours)}" if cell.ours else "") + "</li>"
            for cell in row.cells if cell.status != ELSEWHERE]
    ours = f"<ul>{''.join(told)}</ul>" if told else "No run here is about this claim."
    chapter = re.sub(r"\[(.*?)\]\((.*?)\.ipynb\)", r'<a href="\2.html">chapter \1</a>',
                     claim.chapter)
    return (f'<dl class="more" id="claim-{claim.id}"><dt>The paper</dt><dd>{escape(claim.text)}. '
            f'<i>{escape(claim.paper)}</i></dd><dt>Our runs: {verdict}</dt><dd>{ours}</dd>'
            f'<dt>The rule</dt><dd>{_coded(rule(claim.id))}</dd>'
            f'<dt>Tested in</dt><dd>{chapter}</dd></dl>')


def _coded(text: str) -> str:
    """Text with what stands in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))
