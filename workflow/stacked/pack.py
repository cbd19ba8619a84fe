"""Write models.json: what the library needs to load shipped models of the third wave by name.

    python workflow/stacked/pack.py

The weights stay where they are, in records/; `spatial_circuits.model.collections` reads both.
"""
import json

from population import HERE, OUT, shipped, text_of

from spatial_circuits.files import write_json

BATCH = 128
NOISE = {"path": "flow", "prediction": "sample", "top": 0.2, "high": 0.4}


def log_of(run: dict) -> list[dict]:
    """Loss and scores of a run, as `train` logs them."""
    losses = [{"step": row[0], "images": row[0] * BATCH, "loss": row[1]} for row in run["curve"]]
    scores = [{**p, "images": p["step"] * BATCH} for p in run["pictures"]]
    return sorted(losses + scores, key=lambda r: r["step"])


def entry(run: dict, meta: dict, file: str, measured: dict) -> dict:
    """What stands in the files of a model's folder."""
    plan = run["run"]
    recipe = {"size": "tiny", "steps": meta["steps"], "batch": BATCH, "noise": NOISE,
              "first_up": plan["up"][0][1], "preset": "clean", "seed": plan["seed"],
              "stacked": plan}
    exchange = {"model": plan["name"], "command": "python workflow/stacked/population.py",
                "images_per_prompt": 1, "seed": 1, "prompts": measured["prompts"],
                "scores": measured["scores"], "exchange": measured["exchange"]}
    return {"file": file, "text": text_of(plan), "recipe": recipe, "precision": "bf16",
            "command": f"python gpu_search.py RUNS.json OUT  # run {plan['name']} of wave3.py",
            "log": log_of(run), "tables": {"exchange": exchange}}


if __name__ == "__main__":
    record = json.loads((HERE / "records" / "wave3.json").read_text())
    population, held = json.loads(OUT.read_text()), shipped()
    by_name = {run["run"]["name"]: run for run in record["runs"]}
    found = {name: entry(by_name[name], record["meta"], f"records/{path.name}", population[name])
             for name, path in held.items()}
    write_json(HERE / "models.json", found)
    print(f"{len(found)} models")
