"""Train the toy's rows, three seeds each, and keep their gains in book/toy_runs.json."""
import json
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from spatial_circuits.files import write_json
from spatial_circuits.model.noise import Noise
from spatial_circuits.text.encoders import encoder
from spatial_circuits.training.toy import Toy, train_toy

RECORD = Path(__file__).parents[2] / "book" / "toy_runs.json"
SEEDS = (0, 1, 2)
PURE_VELOCITY = Noise(top=1.0, high=0.0)
ROWS = {
    "one wording, no colours": Toy(wordings=1, colours=False),
    "two wordings, no colours": Toy(wordings=2, colours=False),
    "all wordings, no colours": Toy(colours=False),
    "all wordings, no colours, quadruples": Toy(colours=False, quadruples=True),
    "one wording, colours": Toy(wordings=1),
    "all wordings, colours": Toy(),
    "all wordings, colours, all noise levels": Toy(noise=Noise(prediction="sample")),
    "all wordings, colours, velocity": Toy(noise=PURE_VELOCITY),
    "all wordings, colours, quadruples": Toy(quadruples=True),
    "all wordings, colours, all noise levels, velocity": Toy(noise=Noise()),
}


def run(name: str, seed: int) -> dict:
    """One run, on one thread."""
    torch.set_num_threads(1)
    gains = train_toy(ROWS[name], encoder("rte"), seed=seed, progress=False)
    return {"row": name, "seed": seed, "gains": gains.round(6).reset_index().to_dict("records")}


def main(processes: int) -> None:
    done = json.loads(RECORD.read_text()) if RECORD.exists() else []
    known = {(r["row"], r["seed"]) for r in done}
    left = [(name, seed) for seed in SEEDS for name in ROWS if (name, seed) not in known]
    with ProcessPoolExecutor(processes) as pool:
        for future in as_completed([pool.submit(run, *one) for one in left]):
            last = future.result()
            done.append(last)
            done.sort(key=lambda r: (list(ROWS).index(r["row"]), r["seed"]))
            write_json(RECORD, done)
            print(last["row"], last["seed"], last["gains"][-1], flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]) if sys.argv[1:] else 2)
