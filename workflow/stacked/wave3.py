"""Writes the runs of the third device call: a population by the recipe that wave 2 arrived at."""
import json, sys
from wave1 import curr, MID, ALL
R = []
def cf(h): return dict(drop=[[0, 0], [h, 0], [h + .1, .5]])
M = dict(pred="x0", cap=.1, p=[[0, -2]], muon=.01, adam=1e-3, decay=.35, mix=curr(.15, .05, (.2, .4, .4)), **cf(.15))
E = {**M, "pred": "edm", "cap": .05, "p": [[0, 0]]}
def run(name, base=M, **k): R.append({"name": name, **base, **k})
for s in range(6): run(f"rte-{s}", seed=s, table=42 + s)
run("rte-nopos", encoder="rte-nopos")
for s in range(6): run(f"minilm-{s}", seed=s, encoder="minilm")
for s in range(6): run(f"t5-untrained-{s}", seed=s, encoder=f"t5-untrained-{s}")
for s in (1, 2, 3): run(f"rte-edm-{s}", E, seed=s, table=42 + s)
for a in (.25, .5, 1.):
    for s in range(3): run(f"rte-fused{a:g}-{s}", seed=s, table=42 + s, fused=a)
for s in range(1): run(f"rte-h12-w03-F1-{s}", seed=s, table=42 + s, mix=curr(.12, .03, (.1, .45, .45)), **cf(.12))
for s in range(1): run(f"rte-decay50-{s}", seed=s, table=42 + s, decay=.5)
run("rte-colours-dropped", drop=[[0, .5]])
run("rte-no-curriculum", mix=[[0, [[.5, *MID], [.5, *ALL]]]])
run("rte-edm-no-curriculum-1", E, mix=[[0, [[.5, *MID], [.5, *ALL]]]], seed=1, table=43)
for s in range(2): run(f"rte-fused0.1-{s}", seed=s, table=42 + s, fused=.1)
for r in R: r["keep"] = 1
assert len({r["name"] for r in R}) == len(R); print(len(R))
if len(sys.argv) > 1: json.dump(R, open(sys.argv[1], "w"), indent=0)
