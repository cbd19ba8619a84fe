"""The command that writes a model for a page."""
from pathlib import Path
from typing import Annotated

import typer

from ..model.manifest import check_replaced


def _live(model: Annotated[list[str] | None, typer.Option(help="a name or a folder; "
                           "may be given again")] = None,
          out: Annotated[Path, typer.Option(help="a folder")] = Path("live")) -> None:
    """Write models as a page that runs them by itself: open index.html of the folder."""
    check_replaced(out, "index.js")
    from ..book.explorer import LiveModel
    from ..live.bundle import LIVE_MODELS, write_live
    write_live(out, model or LIVE_MODELS, page=LiveModel(base="")._repr_html_())
    size = sum(p.stat().st_size for p in out.iterdir())
    print(f"wrote {out / 'index.html'} and what it loads, {size / 1e6:.1f} MB")


LIVING = (_live,)
