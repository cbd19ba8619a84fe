"""Condense the records of the stacked runs to what chapter 4 shows: book/stacked_runs.json."""
import json
from pathlib import Path

HERE = Path(__file__).parent
TIMES = ("0.999", "0.97", "0.9", "0.75")
KINDS = ("error", "shape", "binding", "axis", "order")
SCORES = ("shape", "color", "unique_binding", "loose", "strict")
EVERY = 160     # steps between two points that are kept


def condensed(wave: int) -> list[dict]:
    """The runs of a wave: name, recipe, gains [times] of two kinds over images, scores."""
    record = json.loads((HERE / "records" / f"wave{wave}.json").read_text())
    runs = []
    for run in record["runs"]:
        batch = record["meta"]["batch"]
        gains = [{"images": step * batch, "loss": loss,
                  **{kind: dict(zip(TIMES, [g[KINDS.index(kind)] for g in by_time], strict=True))
                     for kind in ("axis", "order")}}
                 for step, loss, _, by_time in run["curve"] if step % EVERY == 0]
        scores = [{"images": p["step"] * batch, **{k: p[k] for k in SCORES}}
                  for p in run["pictures"]]
        name, recipe = run["run"].pop("name"), run["run"]
        runs.append({"wave": wave, "name": name, "recipe": recipe, "gains": gains,
                     "scores": scores})
    return runs


if __name__ == "__main__":
    everything = [run for wave in (1, 2, 3) for run in condensed(wave)]
    text = json.dumps(everything).replace("NaN", "null")
    (HERE.parents[1] / "book" / "stacked_runs.json").write_text(text + "\n")
    print(len(everything), "runs")
