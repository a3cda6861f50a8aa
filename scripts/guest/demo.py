# SPDX-License-Identifier: GPL-2.0
"""The demonstration's part inside the VM: an unmodified QEMU with a passed-through disk.

usage: demo.py QEMU KERNEL INITRAMFS PCI-ADDRESS MODULE REPORT

Prints what it sees as TAB-separated pairs of a topic and a line of text, for
the host to present and to judge. REPORT is where MODULE describes its
containers, or - if it does not.
"""

import errno
import os
import subprocess
import sys

# Python was told not to look beside this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from kernel import read, unload_module  # noqa: E402

MARK = "demo:"


def tell(topic, text):
    for line in str(text).splitlines():
        print(f"{topic}\t{line.rstrip()}", flush=True)


def describe(address, module):
    device = f"/sys/bus/pci/devices/{address}"
    group = os.path.basename(os.readlink(f"{device}/iommu_group"))
    driver = os.path.basename(os.readlink(f"{device}/driver"))
    ident = ":".join(read(f"{device}/{name}").strip()[2:] for name in ("vendor", "device"))
    tell("device", f"{address} ({ident}), IOMMU group {group}, driven by {driver}")

    source = f"/sys/module/{module}"
    facts = [f"{int(read(f'{source}/coresize')) // 1024} KiB in memory"] if os.path.exists(f"{source}/coresize") else []
    if os.path.exists(f"{source}/srcversion"):
        facts.append(f"srcversion {read(f'{source}/srcversion')}")
    tell("module", ", ".join([module, *facts]))


def while_running(module, report):
    """What can only be seen as long as the container is open."""
    tell("container", read(report) if report != "-" else f"{module} does not report its containers")
    refused = unload_module(module) in (errno.EWOULDBLOCK, errno.EBUSY)
    tell("rmmod", "refused while in use" if refused else "NOT refused while in use")


def main(qemu, kernel, initramfs, address, module, report):
    describe(address, module)
    command = [
        qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-machine", "q35", "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", "256M",
        "-serial", "stdio", "-kernel", kernel, "-initrd", initramfs,
        "-append", "console=ttyS0 quiet panic=-1 rdinit=/init",
        "-device", f"vfio-pci,host={address}",
    ]
    tell("qemu", subprocess.run([qemu, "--version"], capture_output=True, text=True, check=True).stdout.split("\n")[0])
    tell("qemu", " ".join(command[3:]))
    guest = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, errors="replace")
    looked = False
    for line in guest.stdout:
        line = line.strip()
        if not line.startswith(MARK):
            if line:
                tell("console", line)
            continue
        topic, _, text = line.removeprefix(MARK).strip().partition(" ")
        tell(topic, text)
        if not looked:
            looked = True
            while_running(module, report)
    status = guest.wait()
    tell("exit", status)
    return status


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
