"""Factory: the command of an analysis, with the options and refusals that all analyses share."""
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from inspect import Parameter, signature
from io import StringIO
from pathlib import Path

import typer

from ..files import write_json
from ..model.manifest import check_table
from .options import (
    Device,
    Dtype,
    EditFile,
    Json,
    Limit,
    Name,
    Precise,
    Prompts,
    PromptsFile,
    open_model,
)


def first_prompts(prompts: str, limit: int | None, spread: bool = False,
                  file: Path | None = None) -> list[str]:
    """The first `limit` prompts of a set or a file, or as many spread over it."""
    from ..data.metrics import prompt_set
    lines = prompt_set(prompts) if file is None else _lines_of(file)
    chosen = [line.strip() for line in lines if line.strip()]
    if not chosen:
        raise ValueError(f"{file} holds no prompt; write one a line")
    stride = max(1, len(chosen) // (limit or len(chosen))) if spread else 1
    return chosen[::stride][:limit]


def _lines_of(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8: {error}") from error


def analysis(run: Callable[..., dict], spread: bool = False, fast: bool = True,
             **defaults) -> Callable[..., None]:
    """The command that calls `run(model, prompts, ...)`, with the options that all analyses share.

    An analysis that samples (it takes a seed) also has `--edit`, and `--precise` unless it is not
    `fast`: always in fp32 if no dtype is said. `defaults` are those of the shared options;
    `spread`: a limit takes prompts from all over the set.
    """
    shared: dict[str, tuple] = {
        "model": (Name, "rte"), "prompts": (Prompts, "264"), "prompts_file": (PromptsFile, None),
        "limit": (Limit, None)}
    own = list(signature(run).parameters.values())[2:]
    if "seed" in signature(run).parameters:
        shared |= {"edit": (EditFile, None)} | ({"precise": (Precise, False)} if fast else {})

    def command(context, model, prompts, limit, json, device, prompts_file, dtype, precise=True,
                edit=None, **options) -> None:
        if json:
            check_table(json)
        if precise and dtype not in (None, "fp32") and "precise" in shared:
            raise ValueError(f"--precise is fp32; leave it out, or --dtype {dtype}")
        if prompts_file and context.get_parameter_source("prompts").name == "COMMANDLINE":
            raise ValueError("--prompts-file takes the place of --prompts; leave one of them out")
        from ..analyses.chunks import process
        number, count = process()
        if count > 1 and not options.get("chunks"):
            raise ValueError(f"{count} processes were started, which share an analysis by its "
                             "chunks: give --chunks FOLDER to a command that has it")
        chosen = first_prompts(prompts, limit, spread, prompts_file)
        net = open_model(model, device, precise, edit, dtype)
        if edit:
            from ..analyses.edit_files import check_edits
            check_edits(net, chosen)
        with redirect_stdout(StringIO() if number else sys.stdout):      # the first one speaks
            record = run(net, chosen, **options)
        if json:                             # each of several writes the same, whole, at the end
            write_json(json, {"model": net.name, "command": context.obj, **record})

    def option(name, kind, default) -> Parameter:
        return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)
    first = [option(name, kind, defaults.get(name, usual))
             for name, (kind, usual) in shared.items()]
    last = [option("json", Json, None), option("device", Device, "auto"),
            option("dtype", Dtype, None)]
    context = option("context", typer.Context, Parameter.empty)
    own = [parameter.replace(kind=Parameter.KEYWORD_ONLY) for parameter in own]
    whole = signature(command).replace(parameters=[context, *first, *own, *last])
    setattr(command, "__signature__", whole)  # noqa: B010 (what Typer reads)
    command.__name__, command.__doc__ = run.__name__, run.__doc__
    return command
