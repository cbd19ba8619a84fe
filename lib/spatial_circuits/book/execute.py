"""Execute: one notebook in a process of its own, that leaves no kernel behind however it ends."""
import atexit
import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import lru_cache
from pathlib import Path

WRITE = "SPATIAL_CIRCUITS_WRITE_RECORDS"    # set where the book's own outputs are refreshed
PARENT_DEATH = 1  # prctl's PR_SET_PDEATHSIG


def start(notebook: Path, partial: Path, values: dict, cwd: Path, jobs: int,
          keep: bool = False) -> subprocess.Popen:
    """Execute `notebook` in the folder `cwd`, cell by cell into `partial`; its log is beside it.
    keep: what `Records` compute goes into the book."""
    given = notebook.with_suffix(".json")
    given.write_text(json.dumps(values), encoding="utf-8")
    command = [sys.executable, "-m", __name__, *map(str, (notebook, partial, given, cwd))]
    env = environment(jobs) | ({WRITE: "1"} if keep else {})
    with notebook.with_suffix(".log").open("w") as log:
        return subprocess.Popen([*command, str(os.getpid())], env=env, stdout=log,
                                stderr=log, start_new_session=True)


def stop(processes: list[subprocess.Popen], seconds: float = 10) -> None:
    """End the processes and their kernels: asked first, then killed."""
    import psutil
    family = [one for process in processes if process.poll() is None
              for one in psutil.Process(process.pid).children(recursive=True)]
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for one in family:
        if one.is_running():
            one.kill()


def environment(jobs: int = 1) -> dict[str, str]:
    """Environment of a notebook's process: this interpreter's kernel, inline figures, its share of
    the cores, and nothing of the reader's settings for matplotlib and IPython."""
    foreign = ("JUPYTER_PATH", "MPLBACKEND", "MATPLOTLIBRC", WRITE)
    env = {key: value for key, value in os.environ.items() if key not in foreign}
    env.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    own = settings_folder()
    return env | {"JUPYTER_PREFER_ENV_PATH": "1", "PYTHONHASHSEED": "0", "PYTHONUTF8": "1",
                  "HF_HUB_DISABLE_PROGRESS_BARS": "1",
                  "MPLCONFIGDIR": str(own / "matplotlib"), "IPYTHONDIR": str(own / "ipython")}


def drop_unused(chapter: Path, since: float) -> None:
    """Remove the records of a chapter's folder that no run has used since that time (seconds)."""
    for file in chapter.glob("*.json"):
        if file.stat().st_mtime < since:
            file.unlink()
            file.with_suffix(".safetensors").unlink(missing_ok=True)


@lru_cache
def settings_folder() -> Path:
    """A folder of our own for the kernels' settings and fonts, in the user's cache if possible.

    The fonts are listed here, once: a kernel that has to do so says it in its page.
    """
    from platformdirs import user_cache_path
    folder = user_cache_path("spatial-circuits")
    try:
        (folder / "matplotlib").mkdir(parents=True, exist_ok=True)
        (folder / "ipython").mkdir(exist_ok=True)
        tempfile.TemporaryFile(dir=folder / "matplotlib").close()
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="spatial-circuits-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if not list(folder.glob("matplotlib/fontlist-*.json")):
        env = {**os.environ, "MPLCONFIGDIR": str(folder / "matplotlib")}
        listing = [sys.executable, "-c", "import matplotlib.font_manager"]
        subprocess.run(listing, env=env, capture_output=True, check=False)
    return folder


def skip_grammar() -> None:
    """Spare this process the grammar of internationalised addresses: jsonschema would build it for
    2.5 s when nbformat is imported, no notebook uses it, and jsonschema does without."""
    sys.modules.setdefault("rfc3987_syntax", None)  # type: ignore[arg-type]


def _execute(notebook: str, partial: str, given: str, cwd: str, parent: str) -> None:
    """What the process does. It ends with its parent, and a SIGTERM closes its kernel."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PARENT_DEATH, signal.SIGTERM)
    if os.getppid() != int(parent):
        sys.exit(1)
    skip_grammar()
    import papermill
    values = json.loads(Path(given).read_text(encoding="utf-8"))
    papermill.execute_notebook(notebook, partial, values, kernel_name="python3", cwd=cwd,
                               progress_bar=False)


if __name__ == "__main__":
    _execute(*sys.argv[1:])
