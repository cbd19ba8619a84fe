"""Verdict: what may turn out one way or another in a run, set apart from the text of a chapter."""
from IPython.display import Markdown

_WORDS = {True: "Holds", False: "Does not hold", None: "Not measured"}


def verdict(statements: dict[str, bool | None]) -> Markdown:
    """Statements as a quotation, a paragraph each, and whether they hold in this run; None stands
    for what was not measured."""
    lines = (f"> **{_WORDS[holds]}**: {said}." for said, holds in statements.items())
    return Markdown("\n>\n".join(lines))
