# SPDX-License-Identifier: GPL-2.0
"""Runs one of the VFIO programs at github.com/awilliam/tests and judges it.

usage: foreign.py FOLDER NAME PCI-ADDRESS

FOLDER is where the programs were built, NAME one of PROGRAMS below. Many of these programs were written to be watched:
they exit with 0 over a mistake, or do not exit at all. So what each must print,
and must not, is written down here; none of their code is.
"""

import contextlib
import ctypes
import errno
import os
import re
import resource
import select
import signal
import subprocess
import sys
import time
from collections import namedtuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kernel  # noqa: E402
from hugetlbfs import hugetlbfs  # noqa: E402

PR_SET_CHILD_SUBREAPER = 36
PR_CAPBSET_DROP = 24
CAP_IPC_LOCK = 14


# How a program is run, and what makes a pass. One that ends must exit with 0.
# One that does not is stopped once its goal is reached, and has failed if it
# ends before. Either has failed if it takes longer than the limit.
#
# arguments: {device}, {group} and {huge}, a file system of huge pages, are
#   filled in.
# device: the need of tests.toml that names the device it is given.
# wants, refuses: expressions that its output must match, and must not, line by
#   line.
# mark, goal: for an endless one, how often a text must have been printed in one
#   line, or how many seconds of CPU time it must have used if it prints nothing.
# huge: the size of huge pages, if it wants any.
# settings: as in tests.toml.
# memlock: bytes it may lock, without the privilege to lock more.
# races: whether it is about two CPUs at the same time.
# limit: in seconds, and only there to end a hang.
#
# A class of the dataclasses would take seconds to import here.
Program = namedtuple(
    "Program", "path arguments device wants refuses endless mark goal huge settings memlock races limit",
    defaults=((), ("[Ff]ail", "Error"), False, "", 0, "", {}, 0, False, 300))

MANY_MAPPINGS = {"/sys/module/{module}/parameters/dma_entry_limit": str(1 << 20)}

PROGRAMS = {
    # Allows to map twice what the driver should refuse, and returns 0: only
    # the words at the end of both parts say that all was well.
    "correctness": Program(
        "vfio-correctness-tests", ("{group}",), "edu",
        wants=("^pagesize test: PASSED$", "^hugepage test: PASSED$")),
    # If it cannot make its file it goes on with ordinary memory.
    "correctness-huge": Program(
        "vfio-correctness-tests", ("{group}", "{huge}"), "edu", huge="2M",
        wants=("2048K huge page size", "^pagesize test: PASSED$", "^hugepage test: PASSED$")),
    # A terabyte of guest in 4 GiB of memory: 255 dots in the last line.
    "huge-guest": Program(
        "vfio-huge-guest-test", ("{group}", "{huge}"), "edu", huge="1G", limit=1800,
        wants=("1048576K huge page size", r"^Mapping low memory\.$", r"^Mapping high memory\.{255}$")),
    # 1 GiB in chunks of 4 KiB, removed at once, for ever.
    "map-unmap": Program(
        "vfio-iommu-map-unmap", ("{device}",), "edu", settings=MANY_MAPPINGS,
        endless=True, mark="+-", goal=3, limit=1800),
    # 349,000 mappings of 2 MiB out of order, half of which are removed one by one.
    "stress": Program(
        "vfio-iommu-stress-test", ("{device}",), "edu", limit=1800,
        settings={**MANY_MAPPINGS, "/sys/kernel/mm/transparent_hugepage/enabled": "always"},
        wants=("Mapping:.*100%$", "Unmapping:.*100%$")),
    # One page mapped by one thread and one locked by another, for ever, where
    # two may be locked: an update of the count that gets lost makes a call fail.
    "accounting-stress": Program(
        "accounting-stress/accounting-stress", ("{device}",), "edu", memlock=2 * resource.getpagesize(),
        races=True, endless=True, mark=".", goal=10, limit=900),
    # BARs as targets of DMA, in pieces and whole. Reports failures, returns 0.
    "bar-dma-map": Program(
        "vfio-pci-device-dma-map", ("{device}",), "bar-1G",
        wants=(r"dma size\s+2048K mmapped", r"dma size\s+1048576K mmapped"),
        # Not every region there may be is there.
        refuses=("DMA failed", "mmap failed")),
    "bar-dma-map-small": Program(
        "vfio-pci-device-dma-map", ("{device}",), "igb",
        wants=(r"dma size\s+128K mmapped",), refuses=("DMA failed", "mmap failed")),
    # Two threads touch one huge page of a BAR at a time, 100,000 times and then
    # as often with a larger page, which takes too long where CPUs are emulated. A
    # dot is for 10,000. The kernel complains if that ends as it must not: that
    # is looked for in its log.
    "huge-fault-race": Program(
        "vfio-pci-huge-fault-race", ("{device}",), "bar-1G", races=True, endless=True, mark=".", goal=2, limit=3600,
        wants=(r"for 2MB page size test",), refuses=("failed:", "No BAR found")),
    # The container is closed, its group is asked for a device there is not, for ever.
    "group-after-container": Program(
        "e324fc82ea45/reproducer", ("{device}",), "edu", endless=True, goal=15, refuses=(".",)),
    # INTx enabled, unmasked and disabled by three processes, for ever.
    "intx-race": Program(
        "intx-race/vfio-pci-intx-race", ("{device}",), "igb", races=True, endless=True, goal=5,
        refuses=("[Ff]ail", "Error", r"^(INTx|unmask irqfd) .*\(")),
    "device-open": Program(
        "vfio-pci-device-open", ("{device}",), "igb", wants=("^Success$",), refuses=("mmap failed",)),
    "device-open-sparse-mmap": Program(
        "vfio-pci-device-open-sparse-mmap", ("{device}",), "igb", wants=("^Success$",), refuses=("re-get",)),
    # Gives up at the MSI-X capability that edu does not have.
    "device-open-igd": Program(
        "vfio-pci-device-open-igd", ("{device}",), "edu", wants=("^Success$",), refuses=("re-get",)),
    "device-migration": Program(
        "vfio-pci-device-migration", ("{device}",), "igb", wants=("^No migration support$", "^Success$")),
    # Returns 0, too, if there is no bus to reset.
    "hot-reset": Program(
        "vfio-pci-hot-reset", ("{device}",), "bar-1G", wants=("^Attempting reset: Pass$",)),
}


def reached(program, text, cpu):
    """How far towards its goal an endless program is."""
    if not program.mark:
        return cpu
    return max(line.count(program.mark) for line in text.split("\n"))


def faults(program, text, status, cpu, log=()):
    """Why a program has not passed; nothing if it has. Status is None if it was stopped."""
    found = []
    if program.endless:
        if status is not None:
            found.append(f"it has ended, with status {status}")
    elif status is None:
        found.append(f"it has not ended after {program.limit} s")
    elif status:
        found.append(f"exit status {status}")
    if (far := reached(program, text, cpu)) < program.goal:
        found.append(f"it got to {far:.0f} of {program.goal} {program.mark or 's of CPU time'}")
    for wanted in program.wants:
        if not re.search(wanted, text, re.MULTILINE):
            found.append(f"it has not printed {wanted}")
    # What it says about itself before it starts is not what it is judged by.
    said = "\n".join(line for line in text.split("\n") if not line.startswith("Using device "))
    for refused in program.refuses:
        if match := re.search(f".*{refused}.*", said, re.MULTILINE):
            found.append(f"it printed: {match[0]}")
    return found + [line for line in log if "VM_FAULT_OOM" in line]


def plain(text):
    """What a terminal would show: carriage returns go, backspaces take away."""
    text = text.replace("\r", "")
    while "\b" in text:
        text = re.sub("[^\b\n]?\b", "", text, count=1)
    return text


def cpu_seconds(pid):
    """What a process, with its threads, has used of the CPU."""
    fields = kernel.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def restrict(program):
    """Makes the limit on locked memory hold, which root is exempt from."""
    if program.memlock:
        if kernel.libc.prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "drop CAP_IPC_LOCK")
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (program.memlock, program.memlock))


def read(terminal, seconds):
    """What is printed within some seconds; nothing, too, if nobody can print any more."""
    if not select.select([terminal], [], [], seconds)[0]:
        return ""
    try:
        return os.read(terminal, 1 << 16).decode(errors="replace")
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        time.sleep(0.1)
        return ""


def run(program, command):
    """Runs it to its end or its goal: (output, status or None, CPU time)."""
    # What it forks and leaves behind is to be ours.
    if kernel.libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "become a subreaper")
    # A terminal, lest what it printed be lost in a buffer when it is stopped.
    terminal, theirs = os.openpty()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs,
                             start_new_session=True, preexec_fn=lambda: restrict(program))
    os.close(theirs)
    text, status, cpu = "", None, 0.0
    deadline = time.monotonic() + program.limit
    try:
        while status is None and time.monotonic() < deadline:
            # Asked before the last look at what it printed, which is then complete.
            status = child.poll()
            while chunk := read(terminal, 0.5 if status is None else 0):
                text += chunk
                if status is None:
                    break
            if status is None:
                cpu = cpu_seconds(child.pid)
                if program.endless and reached(program, text, cpu) >= program.goal:
                    status = child.poll()
                    break
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        # Those it forked have the container open for as long as it takes them to end.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-child.pid, 0)
        os.close(terminal)
    return plain(text), status, cpu


def main(folder, name, address):
    program = PROGRAMS[name]
    group = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{address}/iommu_group"))
    log = kernel.Log()
    with hugetlbfs(program.huge) as huge:
        places = {"device": address, "group": group, "huge": huge}
        command = [f"{folder}/{program.path}", *(word.format(**places) for word in program.arguments)]
        began = time.monotonic()
        text, status, cpu = run(program, command)
        seconds = time.monotonic() - began
    found = faults(program, text, status, cpu, log.news())
    print("KTAP version 1\n1..1")
    for line in [*text.splitlines()[-30:], *found]:
        print(f"# {line}")
    end = f"stopped at {reached(program, text, cpu):.0f} {program.mark or 's of CPU time'}" if program.endless else "ended"
    print(f"# {end} after {seconds:.1f} s")
    print(f"{'not ok' if found else 'ok'} 1 {name}")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
