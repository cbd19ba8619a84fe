"""Files: as a whole or not at all, whatever befalls the disk or the process."""
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import save_file

from spatial_circuits import files
from spatial_circuits.files import (
    check_file,
    check_folder,
    recover_folder,
    replacing_folder,
    write_json,
    write_text,
    writing,
)

OLD = "the old content, whole"


@contextmanager
def small_disk(limit: int = 4096):
    """No file may grow beyond `limit` bytes: as on a full disk, writing ends with an OSError."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def fill(folder, **contents):
    """Write files and the manifest that lists them."""
    for name, text in contents.items():
        (folder / name).mkdir()
        (folder / name / "x.txt").write_text(text)
    manifest = {f"{name}/x.txt": "a hash" for name in contents}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_files_are_written_with_their_folders(tmp_path):
    write_text(tmp_path / "a" / "b.txt", "é")
    assert (tmp_path / "a" / "b.txt").read_bytes() == "é".encode()
    record = {"x": float("nan"), "y": [float("inf"), 1.5, None], "z": "NaN"}
    write_json(tmp_path / "c.json", record)
    strict = {"x": None, "y": [None, 1.5, None], "z": "NaN"}
    assert json.loads((tmp_path / "c.json").read_text()) == strict
    link = tmp_path / "link.txt"
    link.symlink_to(tmp_path / "a" / "b.txt")
    write_text(link, "through")
    assert link.is_symlink() and (tmp_path / "a" / "b.txt").read_text() == "through"


def test_a_full_disk_leaves_the_old_file_and_no_remains(tmp_path):
    path = tmp_path / "keep.bin"
    path.write_text(OLD)

    def text(p):
        p.write_bytes(bytes(100_000))

    def tensors(p):
        save_file({"x": torch.zeros(100_000)}, p)
    for write in (text, tensors):
        with small_disk(), pytest.raises(OSError, match="keep.bin"), writing(path) as temporary:
            write(temporary)
        assert path.read_text() == OLD and os.listdir(tmp_path) == ["keep.bin"]


def test_any_error_and_an_interrupt_leave_the_old_file(tmp_path):
    path = tmp_path / "keep.txt"
    path.write_text(OLD)
    for error in (KeyboardInterrupt(), ValueError(), FileNotFoundError(2, "No file", "other.txt")):
        with pytest.raises(type(error)) as raised, writing(path) as temporary:
            temporary.write_text("half")
            raise error
        assert path.read_text() == OLD and os.listdir(tmp_path) == ["keep.txt"]
    assert raised.value.filename == "other.txt"  # the name of another file is kept


def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="is a folder; name a file"):
        check_file(tmp_path)
    (tmp_path / "file").write_text(OLD)
    with pytest.raises(ValueError, match="file is no folder"):
        check_file(tmp_path / "file" / "x" / "y.json")
    check_file(tmp_path / "new" / "x.png")
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_of_ours_is_replaced_as_a_whole(tmp_path):
    folder = tmp_path / "model"
    for names in ({"one": "1", "two": "2"}, {"two": "3"}):
        with replacing_folder(folder) as temporary:
            fill(temporary, **names)
    assert sorted(p.name for p in folder.iterdir()) == ["manifest.json", "two"]
    assert (folder / "two" / "x.txt").read_text() == "3" and os.listdir(tmp_path) == ["model"]
    folder.rename(tmp_path / "real")
    folder.symlink_to(tmp_path / "real")
    with replacing_folder(folder) as temporary:
        fill(temporary, three="3")
    assert folder.is_symlink() and sorted(os.listdir(tmp_path)) == ["model", "real"]


@pytest.mark.parametrize("own", ["thesis.txt", "two/mine.txt", "sub/", "a link"])
@pytest.mark.parametrize("manifest", ["ours", "none", "{}", "[]", "broken"])
def test_nothing_of_one_s_own_is_removed(tmp_path, own, manifest):
    folder = tmp_path / "d"
    folder.mkdir()
    fill(folder, two="2")
    if own.endswith("/"):
        (folder / own).mkdir()
    elif own == "a link":
        (folder / own).symlink_to(tmp_path)
    else:
        (folder / own).write_text(OLD)
    if manifest == "none":
        (folder / "manifest.json").unlink()
    elif manifest != "ours":
        (folder / "manifest.json").write_text(manifest)
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match="does not list"), replacing_folder(folder) as temporary:
        pytest.fail(f"{temporary}: the work must not start")
    assert sorted(folder.rglob("*")) == before and os.listdir(tmp_path) == ["d"]


def test_a_file_that_came_during_the_work_stays(tmp_path):
    folder = tmp_path / "d"
    with pytest.raises(ValueError, match="thesis.txt"), replacing_folder(folder) as temporary:
        fill(temporary, one="1")
        folder.mkdir()
        (folder / "thesis.txt").write_text(OLD)
    assert (folder / "thesis.txt").read_text() == OLD and os.listdir(tmp_path) == ["d"]


def test_folders_that_are_never_replaced(tmp_path, monkeypatch):
    (tmp_path / "file").write_text(OLD)
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    working = [(path, "working folder") for path in (".", "..", "/")]
    for path, message in (*working,
                          (tmp_path / "file", "is a file"), (tmp_path / "file" / "x", "no folder")):
        with pytest.raises(ValueError, match=message):
            check_folder(path)


def test_a_full_disk_leaves_the_old_folder(tmp_path):
    with replacing_folder(tmp_path / "m") as temporary:
        fill(temporary, one=OLD)
    with (small_disk(), pytest.raises(OSError, match="/m'"),
          replacing_folder(tmp_path / "m") as temporary):
        fill(temporary, one="x" * 100_000)
    assert (tmp_path / "m" / "one" / "x.txt").read_text() == OLD and os.listdir(tmp_path) == ["m"]


KILLED = """
import os, sys
from spatial_circuits import files
real, calls = {name: getattr(os, name) for name in ("rename", "fsync")}, 0
def counted(name):
    def call(*args):
        global calls
        if calls == int(sys.argv[2]):
            os._exit(9)
        calls += 1
        return real[name](*args)
    return call
os.rename, os.fsync = counted("rename"), counted("fsync")
remove = files.shutil.rmtree
def rmtree(*args, **rest):
    if calls == int(sys.argv[2]):
        os._exit(9)
    remove(*args, **rest)
files.shutil.rmtree = rmtree
with files.replacing_folder(sys.argv[1]) as folder:
    (folder / "x.txt").write_text("new")
    (folder / "manifest.json").write_text('{"x.txt": ""}')
"""


@pytest.mark.parametrize("moment", range(5))
def test_a_kill_at_any_moment_leaves_a_whole_folder(tmp_path, moment):
    """Killed at each of its calls: the two fsyncs, the two renames, the removal."""
    folder = tmp_path / "m"
    with replacing_folder(folder) as temporary:
        (temporary / "x.txt").write_text("old")
        (temporary / "manifest.json").write_text('{"x.txt": ""}')
    package = os.path.dirname(os.path.dirname(files.__file__))
    done = subprocess.run([sys.executable, "-c", KILLED, str(folder), str(moment)],
                          env={**os.environ, "PYTHONPATH": package})
    assert done.returncode == 9
    recover_folder(folder)
    assert (folder / "x.txt").read_text() == ("new" if moment == 4 else "old")
    with replacing_folder(folder) as temporary:
        (temporary / "x.txt").write_text("newest")
        (temporary / "manifest.json").write_text('{"x.txt": ""}')
    assert (folder / "x.txt").read_text() == "newest" and not (tmp_path / ".m.replaced").exists()


def test_another_program_s_manifest_is_not_ours(tmp_path):
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "manifest.json").write_text('{"name": "an app"}')
    with pytest.raises(ValueError, match="'manifest.json'"), replacing_folder(tmp_path / "app"):
        pass


def test_what_is_called_like_our_leftover_is_not_removed(tmp_path):
    with replacing_folder(tmp_path / "m") as temporary:
        fill(temporary, one="1")
    shutil.copytree(tmp_path / "m", tmp_path / "m.old")     # a copy of one's own
    (tmp_path / ".m.replaced").mkdir()
    (tmp_path / ".m.replaced" / "mine.txt").write_text(OLD)
    with pytest.raises(ValueError, match="mine.txt"), replacing_folder(tmp_path / "m"):
        pass
    assert (tmp_path / "m.old" / "one").exists()
    assert (tmp_path / ".m.replaced" / "mine.txt").exists()
