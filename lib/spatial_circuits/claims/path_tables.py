"""Tables of edges and of the fused reading, as plain numbers, for the commands and a model's
folder. As in `tables`, each function returns a record that is written to JSON as it is."""
from collections.abc import Sequence
from typing import Any

import pandas as pd

from ..analyses.carriers import carriers, removal, straight, ways
from ..analyses.circuit import CIRCUIT_ROLES, find_circuit
from ..analyses.edges import edge_attribution
from ..analyses.exact_edges import check_edges
from ..analyses.fused import find_readers, shared_roles, turn_pictures, turned_shares
from ..analyses.heads import Head, check_heads, head_name, heads_of, parse_head
from ..analyses.intervals import mean_interval, ratio_interval
from ..model.pipeline import Model
from ..text.roles import role_mask
from .population import finite
from .tables import discovery_and_test, records

STRONGEST = 60    # edges that a table lists
ALPHA = 0.05      # p below which an edge is counted
FULL = "all paths"
REMOVED_EVERY = 7  # steps at which random sets are held: a thousand forwards each


def run_edges(model: Model, prompts: Sequence[str], seed: int = 1, relation: Sequence[str] = (),
              readers: Sequence[str] = (), draws: int = 1000, sample: int = 24) -> dict:
    """Which component hands the relation to which: edges by attribution, checked against path
    patching, and what carries the tag from the relation heads to each object head's query.

    Circuit and carriers are found on every fourth prompt, the rest is measured on the others.
    `relation` heads and `readers`, if named, are taken in place of the circuit's. Raises ValueError
    for fewer than eight prompts, a head that does not exist, a reader before all relation heads, or
    a model that never obeys.
    """
    given = {"relation": [parse_head(h) for h in relation],
             "object": [parse_head(h) for h in readers]}
    check_heads(model, sum(given.values(), []))
    _check_readers(given["relation"] or heads_of(model), given["object"])
    discovery, held_out = discovery_and_test(model, prompts, 1, seed, least=8)
    found = find_circuit(model, discovery, seed=seed)
    roles = {role: given.get(role) or getattr(found, role) for role in CIRCUIT_ROLES}
    first = min((layer for layer, _ in roles["relation"]), default=len(heads_of(model)))
    later = [h for h in roles["object"] if h[0] > first]
    _check_readers(roles["relation"], given["object"])
    table = edge_attribution(model, held_out, seed=seed, draws=draws)
    rows, numbers = check_edges(model, held_out, table, sample, seed)
    return {"prompts": len(held_out), "discovery_prompts": len(discovery), "seed": seed,
            "circuit": {role: [head_name(*h) for h in heads] for role, heads in roles.items()},
            **_listed(table), "check": {**numbers, "rows": records(rows)},
            "readers": [_carried(model, discovery, held_out, roles["relation"], h, seed, draws)
                        for h in later]}


def _check_readers(relation: Sequence[Head], readers: Sequence[Head]) -> None:
    for layer, head in readers:
        if all(layer <= earlier for earlier, _ in relation):
            raise ValueError(f"no relation head comes before the reader {head_name(layer, head)}, "
                             "so that none can hand it the relation; name others")


def _listed(table: pd.DataFrame) -> dict[str, Any]:
    """The strongest edges, and how many of all pass."""
    return {"edges": records(table.head(STRONGEST)), "count": len(table),
            "passed": int((table["p"] < ALPHA).sum())}


def _carried(model: Model, discovery: Sequence[str], held_out: Sequence[str],
             relation: Sequence[Head], reader: Head, seed: int, draws: int) -> dict:
    """What carries the tag to one reader's query."""
    relation = [h for h in relation if h[0] < reader[0]]
    told = ways(model, held_out, relation, reader, seed=seed)
    whole = told[FULL].to_numpy()
    low, high = mean_interval(told.to_numpy(), seed=seed)
    parts = ratio_interval(told.to_numpy(), whole, seed=seed)
    by_way = pd.DataFrame({"way": list(told), "turned": told.mean().to_numpy(), "low": low,
                           "high": high, "of_all": told.mean().to_numpy() / whole.mean(),
                           "of_all_low": parts[0], "of_all_high": parts[1]})
    edges = edge_attribution(model, held_out, reader=reader, seed=seed, draws=draws)
    chosen = carriers(model, discovery, relation, reader, seed=seed)
    named = [name for name in chosen["name"] if name]
    record = {"reader": head_name(*reader), "relation": [head_name(*h) for h in relation],
              "ways": records(by_way), **_listed(edges),
              "straight": straight(edges, relation, reader, draws, seed),
              "carriers": records(chosen)}
    if named:
        record["removal"] = removal(model, held_out, relation, reader, named, draws, seed,
                                    every=REMOVED_EVERY)
    return record


def run_fused(model: Model, prompts: Sequence[str], per_prompt: int = 1, seed: int = 1,
              tokens: Sequence[str] = ("shape2", "relation"), draws: int = 100,
              progress: bool = False) -> dict:
    """Which heads read a role's tokens for the relation, what else they carry, and what share of
    the pictures they turn alone, beside all heads and as many random ones.

    Readers are found on every fourth prompt and tested on the rest. Raises ValueError for fewer
    than four prompts, or a prompt without such a token.
    """
    for role in tokens:
        role_mask(model.encoder, prompts, role)                # refuses before anything is sampled
    discovery, held_out = discovery_and_test(model, prompts, per_prompt, seed)
    out = []
    for role in tokens:
        found = find_readers(model, discovery, role, seed=seed)
        heads = list(found["head"])
        frame = turn_pictures(model, held_out, role, heads, draws, per_prompt, seed,
                              progress=progress)
        out.append({"tokens": role, "found": records(found.drop(columns="head")),
                    "roles": records(shared_roles(model, discovery, heads, seed, every=2)),
                    "turned": finite(records(turned_shares(frame)))})
    return {"prompts": len(held_out), "discovery_prompts": len(discovery), "seed": seed,
            "images_per_prompt": per_prompt, "draws": draws, "readings": out}
