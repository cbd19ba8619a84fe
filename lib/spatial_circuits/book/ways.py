"""Ways: one model's way from the words to the picture, with the heads and the token that its own
tables name; what the circuit figure plays."""
from collections.abc import Sequence

from ..analyses.circuit import heads_by_attention
from ..claims import claims
from ..claims.population import circuit_heads, read_from
from ..data.metrics import prompt_set
from ..hooks.core import Heads
from ..live.contents import Workbench
from ..model.pipeline import Model
from ..model.store import load
from .explorer import READ_FROM, mechanism


def heads_by_role(name: str, model: Model) -> dict[str, Heads]:
    """The recorded circuit's heads by role (chapter 11); without a record, those that look there.

    Raises ValueError for a broken table.
    """
    if found := circuit_heads(claims.folder_of(name)):
        return found
    relation, reader, _ = heads_by_attention(model, prompt_set("264")[:8])
    return {"relation": relation, "object": [reader], "colour": []}


def token_read(name: str) -> str:
    """The role of `explorer.READ_FROM` whose exchange turns most pictures (chapter 14), else the
    relation's."""
    return read_from(claims.folder_of(name)) or "relation"


def way(name: str, prompts: Sequence[str], seed: int = 1) -> dict:
    """`explorer.mechanism` of a model by name or folder, for prompts.

    Raises ValueError for an unknown model or a broken table.
    """
    model = load(name).fast()
    heads, reads = heads_by_role(name, model), token_read(name)
    screened = claims.read(claims.folder_of(name)).get("factors", {}).get("heads", [])
    found = [(r["layer"], r["head"]) for r in screened if r["token"] == reads and r["p"] < 0.05]
    if reads == "shape2" and found:
        heads["relation"] = found[:3]
    bench = Workbench(model, heads["relation"], readers=heads["object"])
    return mechanism(bench, prompts, heads, reads, f"{name}: from {READ_FROM[reads]}", seed)
