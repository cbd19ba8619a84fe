"""Put the logs of the runs in this folder into book/experiments.json, for chapter 4."""
import json
from pathlib import Path

from spatial_circuits.files import write_json
from spatial_circuits.training.log import read_log

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "book" / "experiments.json"
CHANGE = ("recipe noise-first: times near pure noise at first, both colours told at first, x_0 "
          "prediction, half of the rates; captions without bias")
SLOW_END = ("noise-first, but the rates fall over the last half, and of the times .1 are near pure "
            "noise, .45 above .75 and .45 anywhere")
VARIANTS = {  # by the end of a folder's name: the entry's name, question, change and verdict
    "-slow-end": ("slow end", "Can pictures be more exact?", SLOW_END,
                  "open: compare strict with that of noise first"),
    "": ("noise first", "Can the bias be left out?", CHANGE,
         "kept: word order from unbiased captions")}


def experiment(folder: Path) -> dict:
    """A run as an entry of chapter 4's table."""
    seed = json.loads((folder / "recipe.json").read_text())["seed"]
    curve = [r for r in read_log(folder / "log.jsonl") if "loose" in r]
    kind = next(end for end in VARIANTS if folder.name.endswith(end))
    name, question, change, verdict = VARIANTS[kind]
    return {"name": f"{name}, seed {seed}", "question": question, "change": change,
            "verdict": verdict, "command": (folder / "command.txt").read_text().strip(),
            "curve": curve}


if __name__ == "__main__":
    ours = tuple(name for name, *_ in VARIANTS.values())
    others = [e for e in json.loads(OUT.read_text()) if not e["name"].startswith(ours)]
    runs = [experiment(p.parent) for p in sorted(HERE.glob("rte-[0-9]*/log.jsonl"))]
    write_json(OUT, others + runs)
    print(f"{len(runs)} runs")
