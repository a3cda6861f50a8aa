# SPDX-License-Identifier: GPL-2.0
"""An unmodified QEMU and what users do with it, on the type1 driver that is loaded.

usage: clients.py SCENARIO QEMU KERNEL INITRAMFS DISK-IMAGE PCI-ADDRESS

DISK-IMAGE is what the NVMe disk at PCI-ADDRESS holds. Its last quarter is
written to. What each scenario does is said where it is defined.
"""

import contextlib
import hashlib
import os
import re
import sys

# Python was told not to look beside this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from kernel import locked, module_users, pins, write  # noqa: E402
from vmm import MIB, PAGE, Problem, Qemu, Results, Translations, containers, eventually, expect  # noqa: E402

KVM_MODULE = "kvm_x86_rs"
GUEST_MEMORY = 256 * MIB
MTTY = "/sys/class/mdev_bus/mtty/mdev_supported_types"
MTTY_UUID = "c1e4b8a2-2f0f-4c55-9d4e-8a1f5b6c7d80"


def group_of(device):
    return int(os.path.basename(os.readlink(f"{device}/iommu_group")))


class Disk:
    """The passed-through NVMe disk: what it holds, and reading it in a guest."""

    def __init__(self, image, address):
        with open(image, "rb") as file:
            self.content = file.read()
        self.address = address
        self.group = group_of(f"/sys/bus/pci/devices/{address}")
        # The last quarter is there to be overwritten.
        self.scratch = len(self.content) * 3 // 4

    def sum(self, offset, length):
        return hashlib.sha256(self.content[offset:offset + length]).hexdigest()

    def check(self, guest, offset, length, *more, at=None):
        """The guest reads by DMA what the disk holds at ``offset``, from ``at`` if that is another
        place; returns how many pages of its memory are where dmacat was asked to look for them."""
        start = offset if at is None else at
        words = " ".join(map(str, ("--offset", start >> 10, "--length", length >> 10, *more)))
        said = guest.sh(f"set -o pipefail; dmacat /dev/nvme0n1 {words} | sha256sum")
        found = re.search(r"^([0-9a-f]{64}) ", said, re.MULTILINE)
        expect("the checksum of what the guest read", found and found[1], self.sum(offset, length))
        return int(re.search(r"(\d+) of \d+ pages above", said)[1])


class Bench:
    """A guest, and what it must leave behind as it found it."""

    def __init__(self, arguments, *options, **settings):
        qemu, kernel, initramfs, image, address = arguments
        self.disk = Disk(image, address)
        self.pins = pins()
        self.guest = Qemu(qemu, kernel, initramfs, *options, **settings)

    def __enter__(self):
        return self.guest, self.disk

    def __exit__(self, *problem):
        self.guest.close()

    def nothing_left(self):
        """Nobody holds a container nor a page."""
        eventually("open containers", lambda: len(containers() or []), 0)
        eventually("pages pinned more than before", lambda: pins() - self.pins, 0)


def plug_disk(guest, disk, **properties):
    guest.plug("disk", host=disk.address, bus="port0", **properties)
    guest.wait_in_guest("[ -b /dev/nvme0n1 ]")


def unplug_disk(guest):
    guest.unplug("disk")
    guest.wait_in_guest("[ ! -e /dev/nvme0n1 ]")


def container_of(guest, groups, emulated=()):
    """The guest's container, if the driver tells: it must have just these groups."""
    found = containers()
    if found is None:
        return None
    expect("open containers", len(found), 1)
    expect("the container's owner", found[0].owner, guest.pid)
    expect("groups with an IOMMU", found[0].groups, list(groups))
    expect("emulated groups", found[0].emulated, list(emulated))
    expect("pages pinned, against memory locked", found[0].pinned * PAGE, locked(guest.pid))
    return found[0]


def hotplug(results, arguments):
    """Devices that come and go, memory that grows and shrinks, all in one guest.

    The container is made by the first device and goes with the last.
    """
    memory = 1024 * MIB
    block = 2 * MIB
    bench = Bench(arguments,
                  "-device", "pcie-root-port,id=port0,chassis=1,slot=1",
                  "-device", "pcie-root-port,id=port1,chassis=2,slot=2",
                  "-object", f"memory-backend-ram,id=more,size={memory >> 20}M",
                  "-device", f"virtio-mem-pci,id=grown,memdev=more,block-size={block >> 20}M,requested-size=0",
                  memory=f"{GUEST_MEMORY >> 20}M,maxmem={(GUEST_MEMORY + memory) >> 20}M",
                  # Only what is movable can be taken away again.
                  append="memhp_default_state=online_movable")
    # QEMU has to be gone before the port can go.
    with mtty() as card, bench as (guest, disk):
        group = group_of(card)
        results.tails.append(guest.tail)
        with results.part("a guest without devices starts"):
            guest.start()
            expect("memory locked", locked(guest.pid), 0)
            expect("containers", containers() or [], [])
            if os.path.isdir(f"/sys/module/{KVM_MODULE}"):
                expect("the guest's VM is with our KVM module", module_users(KVM_MODULE) > 0, True)

        for cycle in range(3):
            with results.part(f"the disk is plugged in, read and unplugged, {cycle + 1}"):
                plug_disk(guest, disk)
                container_of(guest, [disk.group])
                if locked(guest.pid) < GUEST_MEMORY:
                    raise Problem(f"only {locked(guest.pid)} bytes of the guest are locked")
                disk.check(guest, cycle * 8 * MIB, 8 * MIB)
                unplug_disk(guest)
                bench.nothing_left()
                expect("memory locked without a device", locked(guest.pid), 0)

        with results.part("the disk is plugged in to stay"):
            plug_disk(guest, disk)
            container = container_of(guest, [disk.group])
            base = locked(guest.pid)
            floor = guest.command("qom-get", path="/machine/peripheral/grown", property="memaddr")
        for size in (512 * MIB, 128 * MIB):
            with results.part(f"memory grows by {size >> 20} MiB, each block a mapping"):
                resize(guest, size)
                expect("memory locked more than before", locked(guest.pid) - base, size)
                if container:
                    grown = container_of(guest, [disk.group])
                    expect("mappings more than before", grown.used - container.used, size // block)
                    expect("mappings left less than before", container.left - grown.left, size // block)
            with results.part(f"the disk is read into {size >> 20} MiB of grown memory and written from there"):
                above = disk.check(guest, 0, 8 * MIB, "--copy-to", disk.scratch >> 10, "--above", hex(floor))
                expect("pages in grown memory", above, 8 * MIB // PAGE)
                disk.check(guest, 0, 8 * MIB, at=disk.scratch)
            with results.part(f"memory shrinks by {size >> 20} MiB, all mappings go"):
                resize(guest, 0)
                expect("memory locked more than before", locked(guest.pid) - base, 0)
                if container:
                    expect("mappings", container_of(guest, [disk.group]).used, container.used)
                disk.check(guest, 8 * MIB, 8 * MIB)

        with results.part("an emulated serial port joins the disk's container and echoes"):
            guest.plug("tty", sysfsdev=card, bus="port1")
            guest.wait_in_guest("ls /sys/bus/pci/devices/*/tty/ttyS*")
            container_of(guest, [disk.group], [group])
            echo(guest, "both devices")
            disk.check(guest, 16 * MIB, 4 * MIB)
        with results.part("the disk leaves, and its pins with it; the port stays and echoes"):
            unplug_disk(guest)
            container_of(guest, [], [group])
            expect("memory locked", locked(guest.pid), 0)
            expect("pages pinned more than before", pins() - bench.pins, 0)
            echo(guest, "only the port")
        with results.part("memory grows, then the disk joins the port's container"):
            resize(guest, 128 * MIB)
            expect("memory locked", locked(guest.pid), 0)
            plug_disk(guest, disk)
            container_of(guest, [disk.group], [group])
            expect("memory locked", locked(guest.pid), base + 128 * MIB)
            above = disk.check(guest, 20 * MIB, 4 * MIB, "--above", hex(floor))
            expect("pages in grown memory", above, 4 * MIB // PAGE)
            echo(guest, "both again")
        with results.part("both are unplugged, and nothing is left"):
            guest.unplug("tty")
            unplug_disk(guest)
            bench.nothing_left()
            expect("memory locked without a device", locked(guest.pid), 0)

        with results.part("the guest powers off"):
            guest.power_off()
            bench.nothing_left()


def resize(guest, size):
    path = "/machine/peripheral/grown"
    guest.command("qom-set", path=path, property="requested-size", value=size)
    eventually("plugged memory", lambda: guest.command("qom-get", path=path, property="size"), size)
    # It is plugged before the guest gives it to anyone; nothing else is in this zone.
    managed = "awk '/zone +Movable/ {here = 1} here && $1 == \"managed\" {print $2; exit}' /proc/zoneinfo"
    guest.wait_in_guest(f'[ "$({managed})" = {size // PAGE} ]')


@contextlib.contextmanager
def mtty(ports=1, uuid=MTTY_UUID):
    """The kernel's sample of a mediated device, serial ports that send back what they are sent."""
    write(f"{MTTY}/mtty-{ports}/create", uuid)
    device = f"/sys/bus/mdev/devices/{uuid}"
    try:
        yield device
    finally:
        write(f"{device}/remove", "1")


def echo(guest, text):
    """Characters go to the emulated port and come back."""
    said = guest.sh("tty=/dev/$(basename /sys/bus/pci/devices/*/tty/ttyS*); stty -F $tty raw -echo; "
                    f"exec 4<>$tty; printf '%s' '{text}' >&4; timeout 60 head -c {len(text)} <&4")
    expect("what the port sent back", said, text)


def viommu(results, arguments):
    """An IOMMU in the guest, in front of the disk: each transfer maps and unmaps.

    QEMU is killed in the midst of it at the end.
    """
    qemu, *_, address = arguments
    bench = Bench(arguments,
                  "-device", "intel-iommu,caching-mode=on",
                  "-device", f"vfio-pci,host={address}",
                  append="intel_iommu=on iommu.strict=1 iommu.passthrough=0")
    with bench as (guest, disk), contextlib.closing(Translations(os.path.basename(qemu))) as translations:
        results.tails.append(guest.tail)
        with results.part("a guest with an IOMMU of its own starts"):
            guest.start()
            guest.wait_in_guest("[ -b /dev/nvme0n1 ]")
            type_of = guest.sh("cat /sys/bus/pci/drivers/nvme/0*/iommu_group/type")
            expect("the guest's kind of translation", type_of, "DMA")
        with results.part("the guest's memory is not pinned, but for what its disk uses"):
            # The first transfers leave the driver's pool of lists of pages behind: dmacat has it need them.
            disk.check(guest, 0, MIB, "--step", 16)
            container_of(guest, [disk.group])
            held = locked(guest.pid)
            if not 0 < held < GUEST_MEMORY // 8:
                raise Problem(f"{held} bytes of the guest's {GUEST_MEMORY} are locked")
        with results.part("each of 512 transfers maps and unmaps"):
            maps, mapped, unmaps, unmapped = translations.counts()
            disk.check(guest, 0, 8 * MIB, "--step", 16)
            after = translations.counts()
            print(f"# maps {after[0] - maps}, unmaps {after[2] - unmaps}")
            expect("enough maps", after[1] - mapped >= 8 * MIB, True)
            expect("enough unmaps", after[3] - unmapped >= 8 * MIB and after[2] - unmaps >= 512, True)
            expect("memory locked", locked(guest.pid), held)
        with results.part("what was written is what is read"):
            disk.check(guest, 8 * MIB, 2 * MIB, "--step", 64, "--copy-to", disk.scratch >> 10)
            disk.check(guest, 8 * MIB, 2 * MIB, "--step", 256, at=disk.scratch)
        with results.part("QEMU is killed while the disk is busy, and nothing is left"):
            guest.agent.send("dd if=/dev/nvme0n1 of=/dev/null bs=64k iflag=direct\n")
            before = translations.counts()[0]
            eventually("busy", lambda: translations.counts()[0] > before, True)
            guest.kill()
            bench.nothing_left()
            maps, mapped, unmaps, unmapped = translations.counts()
            print(f"# in all {maps} maps, {unmaps} unmaps")
            expect("bytes unmapped, against bytes mapped", unmapped, mapped)


SCENARIOS = {"hotplug": hotplug, "viommu": viommu}

if __name__ == "__main__":
    name, *words = sys.argv[1:]
    sys.exit(Results().run(lambda results: SCENARIOS[name](results, words)))
