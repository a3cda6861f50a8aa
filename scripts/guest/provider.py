# SPDX-License-Identifier: GPL-2.0
"""kvm_x86_rs comes and goes with no VM there, and loses no interrupt of kernel threads.

usage: provider.py life MODULE-FILE VENDOR-MODULE-FILE
       provider.py threads MODULE-FILE THREADS-MODULE-FILE POSTS

KVM's modules are loaded. kvm_x86_rs is not, and is not when this is done.
`threads` loads selftests/kmod/vmx, which runs its tests then.
"""

import contextlib
import errno
import fcntl
import os
import re
import sys
import threading
import time

# Python was told not to look beside this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from kernel import Log, load_module, module_name, module_users, read, unload_module, write  # noqa: E402
from ktap import Results  # noqa: E402

KVM_CREATE_VM = 0xAE01
KVM_CREATE_VCPU = 0xAE41

MODULE = "kvm_x86_rs"
REPORT = f"/sys/kernel/debug/{MODULE}/posted_intr"
# How many times longer all takes on this machine, which is reason to do less of what is repeated.
SLOWNESS = max(1, round(float(os.environ.get("TEST_PATIENCE", "1"))))
ROUNDS = max(10, 200 // SLOWNESS)
PATIENCE = 60 * SLOWNESS
EVENT = "kvm/kvm_register_provider"
TRACING = "/sys/kernel/tracing"

# Parts of KVM that the module registers for. Each holds it while there is a VM.
PARTS = 2


@contextlib.contextmanager
def vm():
    """A VM with one vCPU, as a file descriptor."""
    fds = [os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)]
    try:
        fds.append(fcntl.ioctl(fds[0], KVM_CREATE_VM, 0))
        fds.append(fcntl.ioctl(fds[1], KVM_CREATE_VCPU, 0))
        yield fds[1]
    finally:
        for fd in reversed(fds):
            os.close(fd)


def storm(module):
    """VMs come and go in one thread, the module in another; what came of loading, and of VMs."""
    loads, created, stop = [], [], threading.Event()

    def vms():
        while not stop.is_set():
            try:
                with vm():
                    created.append(0)
            except OSError as error:
                created.append(error.errno)

    thread = threading.Thread(target=vms)
    thread.start()
    try:
        for _ in range(ROUNDS):
            loads.append(load_module(module))
            if not loads[-1]:
                # A VM holds it for a moment only.
                while unload_module(MODULE):
                    pass
    finally:
        stop.set()
        thread.join()
    return loads, created


def life(module, vendor):
    results = Results()

    results.expect("it loads where there is no VMX", load_module(module), 0)
    cpus = os.sysconf("SC_NPROCESSORS_CONF")
    report = read(REPORT).splitlines()
    results.expect("it reports on each CPU", [line.split()[:2] for line in report[:cpus]],
                   [["cpu", str(cpu)] for cpu in range(cpus)])
    results.expect("a second one is refused", load_module(module), errno.EEXIST)
    results.expect("nobody holds it", module_users(MODULE), 0)
    with vm():
        results.expect("a VM holds it", module_users(MODULE), PARTS)
        with vm():
            results.expect("a second VM does not hold it again", module_users(MODULE), PARTS)
        results.expect("the first VM still holds it", module_users(MODULE), PARTS)
        results.expect("it refuses to unload while there is one", unload_module(MODULE), errno.EWOULDBLOCK)
    results.expect("without VMs nobody holds it", module_users(MODULE), 0)

    results.expect("KVM's vendor module goes before it", unload_module(module_name(vendor)), 0)
    results.expect("... and comes after it", load_module(vendor), 0)
    with vm():
        results.expect("a VM holds it then, too", module_users(MODULE), PARTS)
    results.expect("it unloads", unload_module(MODULE), 0)

    write(f"{TRACING}/events/{EVENT}/enable", "1")
    log, refused, said = Log(), [], []
    # The log takes ten refusals in five seconds, and there may have been others before.
    deadline = time.monotonic() + PATIENCE
    with vm(), vm():
        while not said and time.monotonic() < deadline:
            refused.append(load_module(module))
            said = [line.partition("] ")[2] for line in log.news() if " refused to " in line]
        results.expect("it is refused while there is a VM", {*refused}, {errno.EBUSY})
        results.expect("... and leaves nothing behind", os.path.exists(f"/sys/module/{MODULE}"), False)
    results.expect("the log says why", said,
                   [f"kvm: posted interrupts: refused to {MODULE}: provided by KVM, 2 VMs exist"])
    results.expect("it loads again afterwards", load_module(module), 0)
    results.expect("it unloads again", unload_module(MODULE), 0)
    results.expect("each registration is traced", re.findall(r"kvm_register_provider: (.*)", read(f"{TRACING}/trace")),
                   [*[f"part posted interrupts owner {MODULE} nr_vms 2 result {-errno.EBUSY}"] * len(refused),
                    f"part posted interrupts owner {MODULE} nr_vms 0 result 0",
                    f"part special registers owner {MODULE} nr_vms 0 result 0"])
    write(f"{TRACING}/events/{EVENT}/enable", "0")

    loads, created = storm(module)
    results.expect("in a storm of VMs it loads, or is refused for one", sorted({*loads, 0, errno.EBUSY}),
                   [0, errno.EBUSY])
    results.expect("... and no VM fails for it", {*created}, {0})
    print(f"# loaded {loads.count(0)} of {ROUNDS} times while {len(created)} VMs came and went")
    return results.end()


def counts():
    """The report's lines of CPUs, by name, added up."""
    total = {}
    for line in read(REPORT).splitlines():
        if line.startswith("cpu "):
            words = line.split()[2:]
            for name, number in zip(words[::2], words[1::2]):
                total[name] = total.get(name, 0) + int(number)
    return total


def threads(module, tests, posts):
    results, posts = Results(), max(1000, int(posts) // SLOWNESS)
    results.expect("it loads", load_module(module), 0)
    # Not the real one, which there is no processor for.
    results.expect("the threads come to an end", load_module(tests, f"posts={posts}"), 0)
    outcome = read("/sys/kernel/debug/kunit/posted_intr_threads/results")
    print("".join(f"# {line}\n" for line in outcome.splitlines()), end="")
    for verdict, name in re.findall(r"^ +(ok|not ok) \d+ (\w+)(?! #)", outcome, re.MULTILINE):
        results.expect(f"threads.{name}", verdict, "ok")
    total = counts()
    print(f"# {total}")
    results.expect("all four tests have run", results.count, 6)
    results.expect("no list has anybody left", total["waiting"], 0)
    # Three vCPUs in each round.
    results.expect("who waits on a CPU that goes offline is woken", total["stranded"] >= 15, True)
    results.expect("most that waited were woken by their interrupts",
                   total["woken"] > total["waited"] // 2 > posts // 2, True)
    results.expect("the threads are unloaded", unload_module("kvm_intel"), 0)
    results.expect("it unloads", unload_module(MODULE), 0)
    return results.end()


if __name__ == "__main__":
    sys.exit({"life": life, "threads": threads}[sys.argv[1]](*sys.argv[2:]))
