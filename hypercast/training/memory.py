"""How a training process treats memory that it has freed."""

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_MAX = -4
KEPT = 2**31 - 1


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next allocation instead of returning it to the system.

    A training step allocates the same large tensors again and again. glibc gives those of 32 MiB and more back at once
    and gets them anew, page by page: that takes longer than an elementwise operation on them. The process's memory then
    stays at its peak. Returns whether the C library took the settings; only glibc has them.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    return bool(libc.mallopt(M_MMAP_MAX, 0)) and bool(libc.mallopt(M_TRIM_THRESHOLD, KEPT))
