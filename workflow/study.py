"""The study: populations of a configuration, checked and spelled out as single training runs.

The Snakefile imports this module; it needs nothing but Python.
"""
import re
import shlex

ENTRIES = {"out", "command", "threads", "device", "tables", "chapters", "populations", "train"}
FIELDS = {"name", "encoder", "options", "encoder_seeds", "seeds", "size", "recipe", "parameters",
          "tables", "chapters"}
NAME = re.compile(r"[\w.-]+")


def check_study(config: dict) -> None:
    """Raises ValueError, naming the entry and what is allowed, for a study that cannot run."""
    _known("the study", config, ENTRIES)
    for entry in ("out", "command", "populations"):
        if not config.get(entry):
            raise ValueError(f"the study has no entry {entry}")
    for population in config["populations"]:
        name = str(population.get("name", ""))
        if not NAME.fullmatch(name):
            raise ValueError(f"population {name!r} needs a name of letters, digits, . _ -")
        _known(f"population {name}", population, FIELDS)
        if not population.get("encoder") or not population.get("seeds"):
            raise ValueError(f"population {name} needs an encoder and a list of seeds")
        for kind in ("tables", "chapters"):
            _known(f"{kind} of population {name}", population.get(kind, []), config.get(kind, []))
    expand_runs(config)


def _known(what: str, given, allowed) -> None:
    for entry in given:
        if entry not in allowed:
            raise ValueError(f"{what}: {entry!r} is unknown; choose from "
                             f"{', '.join(sorted(allowed)) or 'none'}")


def expand_runs(config: dict) -> dict[str, dict]:
    """{run: population with seed and encoder_seed}, in order.

    One run for each pair of an encoder seed and a training seed: rte-e42-s0; without encoder
    seeds, as for a pretrained encoder, minilm-s0. ValueError for a name that comes twice.
    """
    runs: dict[str, dict] = {}
    for population in config["populations"]:
        for own in population.get("encoder_seeds") or [None]:
            for seed in population["seeds"]:
                name = population["name"] + (f"-e{own}" if own is not None else "") + f"-s{seed}"
                if name in runs:
                    raise ValueError(f"two runs have the name {name}")
                runs[name] = {**population, "seed": seed, "encoder_seed": own}
    return runs


def train_options(run: dict) -> str:
    """The options of `spatial-circuits train` for a run, quoted for a shell."""
    options = dict(run.get("options") or {})
    if run["encoder_seed"] is not None:
        options["seed"] = run["encoder_seed"]
    fields = {**(run.get("parameters") or {}), "seed": run["seed"]}
    if run.get("size"):
        fields["size"] = run["size"]
    line = ["--encoder", run["encoder"], "--recipe", run.get("recipe", "noise-first")]
    for key, value in options.items():
        line += ["--encoder-option", f"{key}={_typed(value)}"]
    for key, value in fields.items():
        line += ["-p", f"{key}={_typed(value)}"]
    return shlex.join(map(str, line))


def _typed(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
