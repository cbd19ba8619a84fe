"""The command `spatial-circuits`: train, evaluate, analyse, sample, share, export, run-book.

A command checks what it is asked before any work, and imports PyTorch only when it starts to work.
"""
import shlex
import signal
import sys
import traceback
from typing import Annotated

import typer

from .. import __version__
from .analyse import ANALYSES
from .book import RUNNING
from .draw import DRAWING
from .live import LIVING
from .train import TRAINING
from .zoo import ZOO

try:
    from typer import TyperException
except ImportError:  # older than 0.27
    from click import ClickException as TyperException  # type: ignore[no-redef,assignment]

INTERRUPTED, TERMINATED = 130, 143  # exit statuses, as of a shell
SEVERAL = ("--heads", "--when", "--relation", "--readers", "--tokens")   # `--heads L1H3 L2H0`

app = typer.Typer(name="spatial-circuits", rich_markup_mode=None, add_completion=False,
                  pretty_exceptions_enable=False,
                  context_settings={"help_option_names": ["-h", "--help"]})
for function in (*TRAINING, *ANALYSES, *DRAWING, *LIVING, *ZOO, *RUNNING):
    app.command(function.__name__.strip("_").replace("_", "-"))(function)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"spatial-circuits {__version__}")
        raise typer.Exit


@app.callback()
def start(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
    debug: Annotated[bool, typer.Option("--debug", envvar="SPATIAL_CIRCUITS_DEBUG",
                                        help="show where an error comes from")] = False,
) -> None:
    """Train small diffusion transformers and find the heads that place objects."""
    settings["debug"] = debug


settings = {"debug": False}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    A ValueError or OSError becomes one line on stderr and status 2; `--debug` shows its traceback.
    Ctrl-C is one line and 130, SIGTERM 143: both let what runs put its things away.
    """
    arguments = (sys.argv[1:] if arguments is None else list(arguments)) or ["--help"]
    settings.update(debug=False)
    before = signal.signal(signal.SIGTERM, _terminate)
    try:
        line = shlex.join(["spatial-circuits", *arguments])
        status = app(_spread(arguments), standalone_mode=False, obj=line) or 0
    except TyperException as error:
        message = error.format_message()
        if message.startswith("No such command"):
            message += f" Choose from {', '.join(c.name or '' for c in app.registered_commands)}."
        return _complain(message, error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except (ValueError, OSError) as error:
        if settings["debug"]:
            traceback.print_exc()
        return _complain(str(error) or type(error).__name__, 2)
    finally:
        signal.signal(signal.SIGTERM, before)
    return _complain("interrupted", status) if status == INTERRUPTED else status


def _complain(message: str, status: int) -> int:
    print("spatial-circuits:", *message.split(), file=sys.stderr)  # one line, even of a paragraph
    return status


def _terminate(*_) -> None:
    print("spatial-circuits: terminated", file=sys.stderr)
    raise SystemExit(TERMINATED)


def _spread(arguments: list[str]) -> list[str]:
    """`--heads A B` -> `--heads A --heads B`, which is how Typer takes several values."""
    spread: list[str] = []
    option = None
    for argument in arguments:
        if argument.startswith("-"):
            option = argument if argument in SEVERAL else None
        elif option and spread[-1] != option:
            spread.append(option)
        spread.append(argument)
    return spread
