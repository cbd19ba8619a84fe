"""Verdict: what may turn out one way or another in a run, set apart from the text of a chapter."""
from IPython.display import Markdown

from ..claims.claims import folder_of
from .claims_grid import grid_rows, rule

_WORDS = {True: "Holds", False: "Does not hold", None: "Not measured"}


def verdict(statements: dict[str, bool | None]) -> Markdown:
    """Statements as a quotation, a paragraph each, and whether they hold in this run; None stands
    for what was not measured."""
    lines = (f"> **{_WORDS[holds]}**: {said}." for said, holds in statements.items())
    return Markdown("\n>\n".join(lines))


def claim_verdict(name: str, *ids: str) -> Markdown:
    """What the table of claims says of some for one model, by name or folder: the verdict of their
    judges, which measure for themselves, with figures and rule; a quotation, a paragraph each. Not
    measured where the folder does not hold a model of ours.

    Raises ValueError as `grid_rows` does.
    """
    if not (folder_of(name) / "text.json").exists():
        return verdict(dict.fromkeys(ids))
    rows = {row.claim.id: row for row in grid_rows([folder_of(name)])}
    said = []
    for claim, cell in ((rows[i].claim, rows[i].cells[0]) for i in ids):
        figures = f"Measured: {cell.ours}. " if cell.ours else ""
        said.append(f"> **{cell.status.capitalize()}** by the [table of claims](index.ipynb) for "
                    f"`{cell.run}`: {claim.id}, *{claim.text}*. {figures}Rule: {rule(claim.id)}")
    return Markdown("\n>\n".join(said))
