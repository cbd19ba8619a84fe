"""Memory: what one tensor leaves is kept for the next, where the C library would give it back."""
import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4        # as malloc.h of glibc numbers them
_KEPT, _GROWTH = 1 << 30, 1 << 26                        # bytes


def keep_freed_memory() -> bool:
    """Let this process keep up to a gigabyte that tensors have left, for those to come.

    glibc maps a block of over 32 MiB anew each time, and the kernel clears its pages: a tenth to a
    quarter of the time of sampling at batch 128. Numbers are not touched. Returns False where there
    is nothing to be told: another C library, or the user's choice, MALLOC_... in the environment.
    """
    if any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        tell = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):         # not glibc
        return False
    for option, value in ((_TRIM_THRESHOLD, _KEPT), (_TOP_PAD, _GROWTH), (_MMAP_MAX, 0)):
        tell(option, value)
    return True
