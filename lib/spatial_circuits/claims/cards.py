"""Cards: what each model is and what it does, as a line of a list and as a page.

Both are written from the model's own files, never typed in: encoder and recipe from text.json and
recipe.json, scores from the evaluation (else the log), the word it reads from the exchange table
(else that of arithmetic), verdicts from the judges.
"""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..files import write_text
from ..model.collections import collected, packed_entry
from ..model.manifest import CARD, add_measured, verify
from ..model.store import find_model, names
from . import claims
from .judges import span
from .population import encoder_words, folder_name, reading, readings

TITLE = "# Model card: "
WHAT = {"rte": "random token embeddings with a position code",
        "rte-nopos": "random token embeddings without a position code: a bag of words",
        "rte-fused": "random token embeddings, a dose of the relation on the second shape's token",
        "minilm": "MiniLM: pretrained, contextual",
        "t5-untrained": "a T5 encoder with random weights: contextual, not pretrained"}
HEADER = ("name", "text encoder", "size", "seed", "captions", "pictures", "relation", "side read "
          "from", "axis read from")


def read_parts(name: str) -> dict[str, Any]:
    """Text, recipe, scores and readings of a model by name or folder; a packed one stays packed.

    Raises ValueError for an unknown name or a broken file.
    """
    if entry := packed_entry(name):
        scored = [r["loose"] for r in entry["log"] if "loose" in r]
        return {"text": entry["text"], "recipe": entry["recipe"],
                "loose": scored[-1] if scored else None,
                "read": readings(entry["tables"]["exchange"]["exchange"])}
    folder = find_model(name)
    found = claims.evaluation_scores(folder)
    return {"text": claims.read_record(folder / "text.json"),
            "recipe": claims.read_record(folder / "recipe.json"),
            "loose": found["loose"]["mean"] if found else None, "read": _read_from(folder)}


def _read_from(folder: Path) -> dict[str, str]:
    """Where side and axis are read, as far as the folder's tables tell."""
    tables = claims.read(folder)
    if "exchange" in tables:
        return readings(tables["exchange"]["exchange"])
    if "arithmetic" not in tables:
        return {}
    share = {r["token"]: r["mean"] for r in tables["arithmetic"]["graft"]
             if r["condition"] == "grafted" and r["metric"] == "loose"}
    found = reading(share["relation"], share["shape2"], 0.0)    # the pair was not exchanged
    return {"side": "neither alone" if found == "elsewhere" else found}


def zoo() -> list[tuple[str, ...]]:
    """`HEADER`, then every model that `load` finds by name: the package's, then the checkout's."""
    rows: list[tuple[str, ...]] = [HEADER]
    for name in [*names(), *collected()]:
        parts = read_parts(name)
        recipe, read = parts["recipe"], parts["read"]
        loose = "-" if parts["loose"] is None else f"{parts['loose']:.2f}"
        rows.append((name, encoder_words(parts["text"]), recipe["size"], str(recipe["seed"]),
                     "unbiased" if recipe.get("first_up") == 0.5 else "biased",
                     f"{recipe['steps'] * recipe['batch']:,}", loose, read.get("side", "-"),
                     read.get("axis", "-")))
    return rows


def card(folder: Path) -> str:
    """The model card as Markdown, from the files of the folder.

    Raises ValueError naming a file that is missing or broken.
    """
    text, recipe = (claims.read_record(folder / f"{n}.json") for n in ("text", "recipe"))
    shape = claims.read_record(folder / "transformer" / "config.json")
    command = (folder / "command.txt").read_text().strip()
    bias = "no bias in the order of mention" if claims.unbiased(folder) else \
        "the upper object told first at the beginning"
    heads = shape["num_attention_heads"]
    what = {"text encoder": f"`{encoder_words(text)}`: {WHAT.get(text['name'], 'see its name')}",
            "transformer": f"{shape['num_layers']} layers of {heads} heads, width "
                           f"{heads * shape['attention_head_dim']} (`{recipe['size']}`)",
            "trained on": f"{recipe['steps'] * recipe['batch']:,} drawn pictures of two objects, "
                          f"{recipe['steps']:,} steps of {recipe['batch']}; captions: {bias}",
            "training seed": str(recipe["seed"]), "command": f"`{command}`"}
    parts = [f"{TITLE}{folder_name(folder)}",
             "A small text-to-image diffusion transformer that places two objects, trained from "
             "scratch to be taken apart. It draws nothing else, and is of use for research and "
             "teaching alone. This page is written by `spatial-circuits card`.",
             "## What it is", _table(("", ""), what.items()),
             "## What it does", *_scores(folder), *_readings(folder), *_verdicts(folder),
             "## Use", "```python\nfrom spatial_circuits.model.store import load\n\n"
             f"model = load(\"{_load_name(folder)}\")\n"
             "images = model.images([\"red square is above blue circle\"], seeds=[0])\n```",
             "Licence: MIT, as the repository. Weights: fp16 safetensors, hashes in manifest.json."]
    return "\n\n".join(parts) + "\n"


def write_card(folder: Path) -> Path:
    """Write the card into the folder, then the manifest, which takes in card and tables.

    Raises ValueError for a model that is damaged, and for a README.md that is no card.
    """
    verify(folder, measured=False)
    path = folder / CARD
    if path.exists() and not path.read_text().startswith(TITLE):
        raise ValueError(f"{path} is no card and would be lost; move it")
    write_text(path, card(folder))
    add_measured(folder, {CARD, *(f"{name}.json" for name in ("evaluation", *claims.FILES))})
    return path


def _load_name(folder: Path) -> str:
    known = [*names(), *(n for n in collected() if not packed_entry(n))]
    return next((n for n in known if find_model(n).resolve() == folder.resolve()), folder.name)


def _scores(folder: Path) -> list[str]:
    found = claims.evaluation_scores(folder)
    if not found:
        return ["Not evaluated."]
    rows = [(claims.NAMES.get(m, m), f"{v['mean']:.3f}{span(v, 3)}", f"{v['ceiling']:.3f}")
            for m, v in found.items()]
    source = "evaluation.json: 95 % intervals over prompts" \
        if (folder / "evaluation.json").exists() else "the last scores of the training log"
    return [_table(("share of pictures with the right", "", "ceiling"), rows), f"From {source}."]


def _readings(folder: Path) -> list[str]:
    read = _read_from(folder)
    return [f"It reads the {part} of the relation from: {where}." for part, where in read.items()]


def _verdicts(folder: Path) -> list[str]:
    found = claims.verdicts(folder)
    if not found:
        return []
    rows = [(claim, e.status, e.ours) for claim, e in found.items()]
    return ["What this one run says of the paper's claims (one run is one draw):",
            _table(("claim", "here", "figures"), rows)]


def _table(header: Sequence[str], rows: Any) -> str:
    lines = [header, ["---"] * len(header), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in lines)
    return "\n".join("| " + " | ".join(row) + " |" for row in escaped)
