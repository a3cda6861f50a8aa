# SPDX-License-Identifier: GPL-2.0
"""How fast this processor's time stamp counter counts.

TCG hands it to a guest as it is. A guest that calibrates it with the emulated PIT gets it wrong by
any factor if the emulator does not run just then, and its clock with it; told, it need not measure.
"""

import ctypes
import functools
import mmap
import platform
import time

#: rdtsc; shl rdx, 32; or rax, rdx; ret
READ = bytes.fromhex("0f31 48c1e220 4809d0 c3")

#: Seconds between two looks: an error of a microsecond is one of five in a million then.
SPAN = 0.2


@functools.cache
def khz():
    """The rate, or None on a processor that is no x86-64, or if no code may be made here."""
    if platform.machine() != "x86_64":
        return None
    try:
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:
        return None
    code.write(READ)
    address = ctypes.addressof(ctypes.c_char.from_buffer(code))
    return measure(ctypes.CFUNCTYPE(ctypes.c_uint64)(address), SPAN)


def measure(counter, span):
    """The rate of a counter in kHz."""
    before = look(counter)
    time.sleep(span)
    after = look(counter)
    return round((after[1] - before[1]) * 1_000_000 / (after[0] - before[0]))


def look(counter):
    """Nanoseconds and count at the same time, as well as that can be had."""
    def once():
        begin = time.monotonic_ns()
        count = counter()
        end = time.monotonic_ns()
        return end - begin, ((begin + end) // 2, count)
    return min(once() for _ in range(100))[1]
