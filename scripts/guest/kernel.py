# SPDX-License-Identifier: GPL-2.0
"""What scripts inside a test machine ask of its kernel."""

import ctypes
import os
import re

FINIT_MODULE, DELETE_MODULE = {"x86_64": (313, 176), "aarch64": (273, 106)}[os.uname().machine]

libc = ctypes.CDLL(None, use_errno=True)


def read(path):
    with open(path) as file:
        return file.read()


def write(path, text):
    with open(path, "w") as file:
        file.write(text)


def load_module(path, parameters=""):
    """0, or the errno the kernel refused with."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.syscall(ctypes.c_long(FINIT_MODULE), fd, parameters.encode(), 0) == 0:
            return 0
        return ctypes.get_errno()
    finally:
        os.close(fd)


def unload_module(name):
    """0, or the errno the kernel refused with."""
    if libc.syscall(ctypes.c_long(DELETE_MODULE), name.encode(), os.O_NONBLOCK) == 0:
        return 0
    return ctypes.get_errno()


def module_name(path):
    return os.path.basename(path).removesuffix(".ko").replace("-", "_")


def module_users(name):
    return int(read(f"/sys/module/{name}/refcnt"))


def bar(resources, number):
    """(first address, size) of a BAR, of what sysfs tells about a PCI device's resources."""
    first, last, _ = (int(word, 0) for word in resources.splitlines()[number].split())
    return first, last - first + 1 if last else 0


def locked(pid="self"):
    """Bytes accounted to a process as locked, which is what type1 pins for it."""
    return int(re.search(r"^VmLck:\s+(\d+) kB", read(f"/proc/{pid}/status"), re.MULTILINE)[1]) << 10


def pinned_pages():
    """Pages pinned for long since boot, and given back."""
    # Each CPU keeps a part of the counts to itself until told to add it up.
    write("/proc/sys/vm/stat_refresh", "1")
    counts = dict(line.split() for line in read("/proc/vmstat").splitlines())
    return int(counts["nr_foll_pin_acquired"]), int(counts["nr_foll_pin_released"])


def pins():
    """Pages pinned for long and not yet given back, by anyone."""
    acquired, released = pinned_pages()
    return acquired - released


class Log:
    """What the kernel has logged since the last look; since boot, or now, at the first."""

    def __init__(self, boot=False):
        self.fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        if not boot:
            os.lseek(self.fd, 0, os.SEEK_END)

    def news(self):
        lines = []
        while True:
            try:
                record = os.read(self.fd, 8192).decode(errors="replace")
            except BlockingIOError:
                return lines
            except BrokenPipeError:
                lines.append("(kernel messages were lost here)")
                continue
            head, _, text = record.partition(";")
            stamp = int(head.split(",")[2])
            lines.append(f"[{stamp / 1e6:12.6f}] {text.splitlines()[0]}")
