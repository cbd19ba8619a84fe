"""Put the log of the variant in this folder into book/experiments.json, for chapter 4."""
import json
from pathlib import Path

from spatial_circuits.files import write_json
from spatial_circuits.training.log import read_log

HERE = Path(__file__).resolve().parent
OUT = HERE.parents[1] / "book" / "experiments.json"
NAME = "slow end, seed 0"
SLOW_END = ("noise-first, but the rates fall over the last half, and of the times .1 are near pure "
            "noise, .45 above .75 and .45 anywhere")


def experiment(folder: Path) -> dict:
    """A run as an entry of chapter 4's table."""
    curve = [r for r in read_log(folder / "log.jsonl") if "loose" in r]
    return {"name": NAME, "question": "Can pictures be more exact?", "change": SLOW_END,
            "verdict": "open: compare strict with that of `rte`, the recipe with this seed",
            "command": (folder / "command.txt").read_text().strip(), "curve": curve}


if __name__ == "__main__":
    others = [e for e in json.loads(OUT.read_text()) if e["name"] != NAME]
    write_json(OUT, [*others, experiment(HERE / "rte-0-slow-end")])
