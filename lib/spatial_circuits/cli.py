"""The command `spatial-circuits`: train, evaluate, analyse, sample, export, run-book. Each prints what it does."""
import argparse
import json
import os
import shlex
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a ValueError or OSError becomes one line on stderr and exit status 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="spatial-circuits", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_train, _add_train_vae, _add_evaluate, _add_analyses, _add_sample, _add_export, _add_book):
        add(commands)
    options = parser.parse_args(arguments)
    options.line = shlex.join(["spatial-circuits", *arguments])
    try:
        return options.run(options) or 0
    except (ValueError, OSError) as error:
        print("spatial-circuits:", *str(error).split(), file=sys.stderr)  # one line, even of a library's paragraph
        return 2


def write_json(path: str | Path, record: dict) -> None:
    """Write JSON atomically, creating the folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    strict = json.loads(json.dumps(record), parse_constant=lambda _: None)  # JSON knows no NaN: null
    partial.write_text(json.dumps(strict, indent=1) + "\n")
    os.replace(partial, path)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    value = int(text) if text.isdecimal() else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def _add_train(commands) -> None:
    from .recipe import RECIPES
    p = commands.add_parser("train", help="train a model from scratch, or resume it")
    p.add_argument("--encoder", default="rte", help="rte, rte-nopos, minilm, t5-untrained, t5, clip, or a hub name or folder of a T5")
    p.add_argument("--encoder-option", action="append", default=[], metavar="KEY=VALUE")
    p.add_argument("--recipe", default="fast", choices=RECIPES)
    p.add_argument("-p", "--parameter", action="append", default=[], metavar="KEY=VALUE",
                   help="any field of the recipe, e.g. size=micro, steps=20000, noise.high=0.3")
    p.add_argument("--vae", help="folder or hub name of another VAE")
    p.add_argument("--out", help="the run's folder; default runs/ENCODER-SEED")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--evaluate-every", type=positive, default=1000, metavar="STEPS")
    p.add_argument("--checkpoint-every", type=positive, default=500, metavar="STEPS")
    p.add_argument("--threads", type=positive, default=os.cpu_count())
    p.set_defaults(run=_train)


def _train(options) -> None:
    import torch
    from . import pretrained
    from .book import parse_parameters
    from .evaluation import monitor
    from .text import ENCODERS, encoder
    from .recipe import RECIPES, override
    from .train import train
    torch.set_num_threads(options.threads)
    recipe = override(RECIPES[options.recipe], parse_parameters(options.parameter))
    text = {"name": options.encoder, "options": parse_parameters(options.encoder_option)}
    if options.encoder not in ENCODERS:
        text = {"name": "t5", "options": {"name": options.encoder, **text["options"]}}
    out = Path(options.out or Path("runs") / f"{Path(options.encoder).name}-{recipe.seed}")
    print(f"training {options.encoder} ({recipe.size}, {recipe.steps:,} steps of {recipe.batch}) in {out}")
    coder, vae = encoder(text["name"], **text["options"]), pretrained.load_vae(options.vae)
    model = train(recipe, coder, vae, out, resume=options.resume, evaluate=monitor(recipe.noise, coder, vae),
                  evaluate_every=options.evaluate_every, checkpoint_every=options.checkpoint_every)
    folder = pretrained.save(out / "model", model.cpu(), text, run=out, command=options.line)
    print(f"wrote {folder}")


def _add_train_vae(commands) -> None:
    p = commands.add_parser("train-vae", help="train the small VAE from scratch (minutes)")
    p.add_argument("--steps", type=positive, default=1600)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", default="runs/vae")
    p.set_defaults(run=_train_vae)


def _train_vae(options) -> None:
    import torch
    from . import pretrained
    from .recipe import precision
    from .vae import train_vae
    log: list[dict] = []
    dtype = torch.bfloat16 if precision("auto") == "bf16" else torch.float32
    model = train_vae(options.steps, seed=options.seed, log=log, dtype=dtype,
                      device="cuda" if torch.cuda.is_available() else "cpu")
    print(f"wrote {pretrained.save_vae(options.out, model, log, options.line)}")


def _add_evaluate(commands) -> None:
    p = commands.add_parser("evaluate", help="sample and score a model on a prompt set")
    p.add_argument("--model", default="rte", help="a shipped model's name or a folder")
    p.add_argument("--prompts", default="264", choices=("264", "96", "22"))
    p.add_argument("--images-per-prompt", type=positive, default=4)
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--limit", type=positive, help="only the first N prompts")
    p.add_argument("--mode", default="clean", choices=("clean", "paper"), help="detector and definitions")
    p.add_argument("--json", help="write the figures to this file")
    p.set_defaults(run=_evaluate)


def _evaluate(options) -> None:
    from .evaluation import evaluate, report
    from .metrics import prompt_set
    from .pretrained import load
    model, prompts = load(options.model), prompt_set(options.prompts)[:options.limit]
    frame = evaluate(model, prompts, options.images_per_prompt, options.seed, options.mode, progress=True)
    metrics = report(frame, options.mode)
    print(f"{model.name}: {len(prompts)} prompts x {options.images_per_prompt} images, 95 % interval over prompts")
    for name, m in metrics.items():
        print(f"  {name:15} {m['mean']:.3f} [{m['low']:.3f}, {m['high']:.3f}]  ceiling {m['ceiling']:.3f}")
    if options.json:
        write_json(options.json, {"model": model.name, "prompts": options.prompts, "limit": options.limit,
                                  "images_per_prompt": options.images_per_prompt, "seed": options.seed,
                                  "mode": options.mode, "command": options.line, "metrics": metrics})


def _add_analyses(commands) -> None:
    texts = {"synopsis": "attention from objects to words, head by head (chapter 6)",
             "screen": "ramps that direction words draw, from the weights alone (chapter 7)",
             "ablate": "what fails without each head (chapter 9)",
             "circuit": "find the circuit, test it, and inject relations (chapters 10 and 11)",
             "tokens": "what fails without each word, by steps (chapter 13)",
             "factors": "what a token's embedding holds, and which heads read it (chapters 13 and 14)",
             "arithmetic": "move objects by changing one token's embedding (chapter 14)",
             "robustness": "other wordings, the shifts they cause, and repairs (chapter 15)"}
    for command, text in texts.items():
        p = commands.add_parser(command, help=text)
        p.add_argument("--model", default="rte", help="a shipped model's name or a folder")
        p.add_argument("--prompts", default="96" if command == "synopsis" else "264", choices=("264", "96", "22"))
        p.add_argument("--limit", type=positive, help="only N prompts, spread over the set")
        if command not in ("screen", "factors"):
            p.add_argument("--images-per-prompt", type=positive, default=4 if command == "synopsis" else 1)
            p.add_argument("--seed", type=int, default=1)
            p.add_argument("--precise", action="store_true", help="fp32 also where bf16 is faster")
        if command == "synopsis":
            p.add_argument("--step", default="mean", help="a step's number, mean or max")
        if command == "ablate":
            p.add_argument("--heads", nargs="+", default=[], metavar="L0H0", help="default: every head, each alone")
            p.add_argument("--together", action="store_true", help="the named heads as one set")
            p.add_argument("--kind", default="mean", choices=("mean", "zero"))
            p.add_argument("--role", help="hide this role's tokens from the heads instead: shape1, relation, ...")
            p.add_argument("--when", nargs="+", type=int, metavar="STEP", help="only at these sampling steps")
        if command == "factors":
            p.add_argument("--permutations", type=positive, default=1000)
        p.add_argument("--json", help="write the table to this file")
        p.set_defaults(run=_analyse if command in ("synopsis", "screen", "ablate", "circuit") else _analyse_text)


def _analyse(options) -> None:
    import pandas as pd
    from . import study
    from .metrics import prompt_set
    from .pretrained import load
    model, prompts = load(options.model), prompt_set(options.prompts)
    prompts = prompts[::max(1, len(prompts) // (options.limit or len(prompts)))][:options.limit]
    if options.command == "screen":
        record = study.run_screen(model, prompts)
        print(pd.DataFrame(record["heads"]).pivot(index="name", columns="word", values="cosine").round(2).to_string())
    else:
        net, common = model if options.precise else model.fast(), (options.images_per_prompt, options.seed)
    if options.command == "synopsis":
        step = int(options.step) if options.step.lstrip("-").isdecimal() else options.step
        record = study.run_synopsis(net, prompts, *common, step, progress=True)
        print(pd.DataFrame(record["heads"]).groupby("score", sort=False).head(6).round(4).to_string(index=False))
    if options.command == "ablate":
        record = study.run_ablate(net, prompts, *common, options.heads, options.together, options.kind, options.role,
                                  options.when, progress=True)
        print(pd.DataFrame(record["effects"]).pivot(index="condition", columns="metric", values="change").round(3).to_string())
    if options.command == "circuit":
        record = study.run_circuit(net, prompts, *common, progress=True)
        print(", ".join(f"{role}: {' '.join(heads)}" for role, heads in record["circuit"].items()))
        print(pd.DataFrame(record["tests"]["loose"]).round(3).to_string(index=False))
    if options.json:
        write_json(options.json, {"model": model.name, "command": options.line, **record})


def _analyse_text(options) -> None:
    import pandas as pd
    from . import study_text as study
    from .metrics import prompt_set
    from .pretrained import load
    model, prompts = load(options.model), prompt_set(options.prompts)
    default = {"arithmetic": 22, "tokens": 88}.get(options.command, len(prompts))             # many conditions a prompt
    prompts = prompts[:options.limit or default]
    if options.command == "factors":
        record = study.run_factors(model, prompts, options.permutations)
        print(pd.DataFrame(record["partition"]).set_index(["token", "stage", "factor"]).round(3).to_string())
        print(pd.DataFrame(record["heads"]).groupby("token", sort=False).head(3).round(3).to_string(index=False))
    else:
        net = model if options.precise else model.fast()
        run = {"tokens": study.run_tokens, "arithmetic": study.run_arithmetic, "robustness": study.run_robustness}[options.command]
        record = run(net, prompts, options.images_per_prompt, options.seed, progress=True)
        key, by = ("moved", ["token", "vector", "k"]) if options.command == "arithmetic" else ("effects", ["condition"])
        print(pd.DataFrame(record[key]).pivot(index=by, columns="metric", values="mean").round(3).to_string())
    if options.json:
        write_json(options.json, {"model": model.name, "command": options.line, **record})


def _add_sample(commands) -> None:
    p = commands.add_parser("sample", help="draw pictures of one prompt")
    p.add_argument("prompt")
    p.add_argument("--model", default="rte")
    p.add_argument("--count", type=positive, default=4)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", default="sample.png")
    p.set_defaults(run=_sample)


def _sample(options) -> None:
    from PIL import Image
    from .pretrained import load
    images = load(options.model).images([options.prompt] * options.count,
                                        list(range(options.seed, options.seed + options.count)))
    Image.fromarray(images.permute(2, 0, 3, 1).flatten(1, 2).contiguous().numpy()).save(options.out)
    print(f"wrote {options.out}")


def _add_export(commands) -> None:
    p = commands.add_parser("export", help="write scenes as PNG files and a metadata.jsonl")
    p.add_argument("folder")
    p.add_argument("--count", type=positive, default=1000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--preset", default="clean", choices=("clean", "paper"))
    p.set_defaults(run=_export)


def _export(options) -> None:
    import torch
    from .render import export
    from .scenes import sample
    print(f"wrote {options.count:,} scenes to {export(sample(torch.arange(options.count), options.seed, options.preset), options.folder)}")


def _add_book(commands) -> None:
    from .book import add_arguments
    add_arguments(commands.add_parser("run-book", help="execute the book's notebooks"))


if __name__ == "__main__":
    sys.exit(main())
