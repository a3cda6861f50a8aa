# SPDX-License-Identifier: GPL-2.0
"""An unmodified QEMU gives a large BAR to a guest, which uses it.

usage: bars.py DRIVER MODULE BARCAT QEMU KERNEL INITRAMFS PCI-ADDRESS

With DRIVER rust, MODULE maps the BAR into the guest instead of KVM. Whatever
the guest writes to the BAR has to be there for the machine that runs it, and
the other way round; and the guest's stage-2 page table is looked at.
"""

import contextlib
import os
import re
import subprocess
import sys

# Python was told not to look beside this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from kernel import bar, load_module, pins, read, unload_module  # noqa: E402
from vmm import Problem, Qemu, Results, containers, eventually, expect  # noqa: E402

NAME = "kvm_arm64_rs"
STATS = f"/sys/kernel/debug/{NAME}/stats"
#: Of the largest blocks: arm64's level of 2M for C, of 1G for Rust.
LEVEL = {"c": 2, "rust": 1}


class ArmQemu(Qemu):
    serial_bus = "virtio-serial-pci"
    append = "console=ttyAMA0 quiet panic=-1 rdinit=/init"


def stage2(pid):
    """(first address, one behind the last, level) of what is mapped into a guest."""
    folder, = (name for name in os.listdir("/sys/kernel/debug/kvm") if name.startswith(f"{pid}-"))
    text = read(f"/sys/kernel/debug/kvm/{folder}/stage2_page_tables")
    found = re.findall(r"^0x([0-9a-f]+)-0x([0-9a-f]+) +\w+ (\d) +(.*)$", text, re.MULTILINE)
    return [(int(first, 16), int(end, 16), int(level)) for first, end, level, flags in found
            if "AF" in flags.split()]


def barcat(program, action, address, seed):
    done = subprocess.run([program, action, f"/sys/bus/pci/devices/{address}/resource2", "--seed", str(seed)],
                          capture_output=True, text=True)
    if done.returncode:
        raise Problem(f"{action} outside of the guest: {done.stderr.strip()}")
    return done.stdout


def stats():
    with contextlib.suppress(FileNotFoundError):
        for line in read(STATS).splitlines():
            name, _, number = line.rpartition(" ")
            if int(number):
                yield f"{name}: {number}"


def scenario(driver, module, program, qemu, kernel, initramfs, address):
    def run(results):
        before = pins()
        host = f"/sys/bus/pci/devices/{address}"
        size = bar(read(f"{host}/resource"), 2)[1]
        if driver == "rust":
            with results.part(f"{NAME} loads"):
                expect("errno", load_module(module), 0)
        elif os.path.exists(f"/sys/module/{NAME}/holders"):
            raise Problem(f"{NAME} is loaded")

        guest = ArmQemu(qemu, kernel, initramfs, "-device", f"vfio-pci,host={address}",
                        machine="virt,gic-version=3")
        results.tails.append(guest.tail)
        try:
            with results.part("a guest with the device starts"):
                guest.start()
                found = guest.sh("cd /sys/bus/pci/devices; grep -l 0x1110 */device").strip()
                inside = f"/sys/bus/pci/devices/{found.partition('/')[0]}"
                guest.sh(f"echo 1 >{inside}/enable")
                ipa, length = bar(guest.sh(f"cat {inside}/resource"), 2)
                expect("size of the BAR in the guest", length, size)
            use = lambda action, seed: guest.sh(f"barcat {action} {inside}/resource2 --seed {seed}")
            with results.part("what the guest writes is there"):
                use("fill", 1)
                print(f"# {barcat(program, 'check', address, 1)}", end="")
            with results.part("the guest reads what is written"):
                barcat(program, "fill", address, 2)
                use("check", 2)
            with results.part("the BAR is mapped in blocks as large as they can be"):
                mapped = [run for run in stage2(guest.pid) if ipa <= run[0] < ipa + size]
                for first, end, level in mapped:
                    print(f"# stage 2: {first:#x}-{end:#x} level {level}")
                for line in stats():
                    print(f"# {line}")
                expect("what is mapped of the BAR", mapped, [(ipa, ipa + size, LEVEL[driver])])
            if driver == "rust":
                with results.part(f"{NAME} unloads under the guest, which goes on"):
                    expect("errno", unload_module(NAME), 0)
                    use("fill", 3)
                    barcat(program, "check", address, 3)
            with results.part("the guest powers off, and nothing is left"):
                guest.power_off()
                eventually("open containers", lambda: len(containers() or []), 0)
                eventually("pages pinned more than before", lambda: pins() - before, 0)
        finally:
            guest.close()
            if driver == "rust":
                unload_module(NAME)
    return run


if __name__ == "__main__":
    if len(sys.argv) != 8:
        sys.exit(__doc__.strip())
    sys.exit(Results().run(scenario(*sys.argv[1:])))
