"""Run a command while holding a lock that ends with it, however it ends.

    python workflow/locked.py LOCKFILE COMMAND ...

Snakemake's own lock outlives a kill, and whoever removes it cannot tell a dead Snakemake from a
living one.
"""
import fcntl
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    path, *command = sys.argv[1:]
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{path} is held: this study runs already")
    os.set_inheritable(descriptor, True)   # by Snakemake; it does not pass it on to its jobs
    os.execvp(command[0], command)
