# SPDX-License-Identifier: GPL-2.0
"""A file system of huge pages, for programs that want a path."""

import contextlib
import ctypes
import os

from kernel import libc


@contextlib.contextmanager
def hugetlbfs(size):
    """Where a file system with pages of ``size`` ("2M") is, for a while; None without a size."""
    if not size:
        yield None
        return
    place = f"/run/hugetlbfs-{size}"
    os.makedirs(place, exist_ok=True)
    if libc.mount(b"hugetlbfs", place.encode(), b"hugetlbfs", 0, f"pagesize={size}".encode()):
        raise OSError(ctypes.get_errno(), f"mount hugetlbfs with pages of {size}")
    try:
        yield place
    finally:
        # Files left behind keep their pages.
        for name in os.listdir(place):
            os.unlink(f"{place}/{name}")
        libc.umount(place.encode())
