# %% [markdown]
# # What is not established
#
# A reference work should say where it ends. **Which questions does this study leave open, how far is each run from
# an answer, and what would count as one?**
#
# Each question has a goal, the command that measures it, and where the runs of this copy of the book stand by their
# own tables. A fork that meets a goal has found something: its own runs, put through the same command, stand here
# beside these. Square brackets hold 95 % intervals over prompts, of this one run each.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 1
scale: str = "full"  # smoke | full

# %% tags=["remove-input"]
import json
from pathlib import Path

import pandas as pd
from IPython.display import Markdown

from spatial_circuits.claims.challenges import (
    challenge_rows,
    challenges_page,
    commoner_reading,
)
from spatial_circuits.claims.claims import folder_of, survey
from spatial_circuits.claims.population import readings
from spatial_circuits.model.store import names

folders = [folder_of(name) for name in dict.fromkeys([model, *names()])]
shipped = folders if scale == "full" else folders[:1]
rows = challenge_rows(shipped)
Markdown(challenges_page(rows, survey(shipped)))

# %% [markdown]
# ## A guess to beat
#
# Which word a run reads is the question that chapter 17 leaves. Who always gives the commonest answer is right this
# often; a rule that looks at anything must be right more often, on runs that it has not seen.

# %% tags=["remove-input"]
record = json.loads(Path("population.json").read_text())
read = pd.DataFrame([{"encoder": run["text"]["name"], **readings(run["exchange"])}
                     for run in record.values()])
contextual = read[read["encoder"].isin(["minilm", "t5-untrained"])]
guess = contextual.groupby("encoder")[["side", "axis"]].agg(commoner_reading)
guess.rename(columns=lambda part: f"{part} read from")

# %% [markdown]
# ## How to take one up
#
# Train a run of your own (`make train`, [read, run, extend](how_to.md)), write its tables by the commands above with
# `--model FOLDER --json FOLDER/TABLE.json`, and let `spatial-circuits judge --model FOLDER` say what they make of
# the paper's claims. What a baseline counts is said in its function's docstring, in
# [`spatial_circuits.claims.challenges`](reference.md).
