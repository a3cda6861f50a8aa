# SPDX-License-Identifier: GPL-2.0
"""An unmodified QEMU saves, restores and migrates a guest with a mediated device.

usage: migration.py SCENARIO QEMU KERNEL INITRAMFS DISK-IMAGE PCI-ADDRESS

The device is the kernel's sample, mtty, as a card with two serial ports. It can
migrate and never touches the guest's memory: type1 has to say that no page is
dirty. It could track that by itself; x-device-dirty-page-tracking=off makes QEMU
ask type1 instead. What each scenario does is said where it is defined.
"""

import contextlib
import os
import sys

# Python was told not to look beside this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from clients import Disk, container_of, group_of, mtty, plug_disk, unplug_disk  # noqa: E402
from kernel import locked, pins  # noqa: E402
from vmm import (  # noqa: E402
    MIB,
    PATIENCE,
    Problem,
    Qemu,
    Results,
    TRACE_DIRTY_BITMAPS,
    containers,
    eventually,
    expect,
)

#: Of the cards that a guest moves between.
UUIDS = ("5b0c8d1e-64a7-4a0e-9f52-1d3c5e7a9b10", "5b0c8d1e-64a7-4a0e-9f52-1d3c5e7a9b11")
#: Bytes in a second, so few that one can look on.
SLOWLY = MIB
AT_ONCE = 1 << 40


class Move:
    """What all the guests of a scenario have in common, and what they must leave as they found it."""

    def __init__(self, results, arguments):
        self.results = results
        self.qemu, self.kernel, self.initramfs, self.image, self.address = arguments
        self.pins = pins()
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        self.cards = [self.stack.enter_context(mtty(2, uuid)) for uuid in UUIDS]
        return self

    def __exit__(self, *problem):
        # QEMU has to be gone before its card can go: last in, first out.
        self.stack.close()

    def guest(self, card, *options, device_tracks=False):
        tracking = "" if device_tracks else ",x-device-dirty-page-tracking=off"
        guest = Qemu(self.qemu, self.kernel, self.initramfs,
                     "-device", "pcie-root-port,id=port0,chassis=1,slot=1",
                     *options,
                     "-device", f"vfio-pci,id=card,sysfsdev={card},addr={Card.slot},enable-migration=on{tracking}",
                     *TRACE_DIRTY_BITMAPS)
        self.stack.callback(guest.close)
        self.results.tails.append(guest.tail)
        return guest

    def incoming(self, card, **settings):
        guest = self.guest(card, "-incoming", "defer", **settings)
        guest.connect()
        return guest

    def nothing_left(self):
        eventually("open containers", lambda: len(containers() or []), 0)
        eventually("pages pinned more than before", lambda: pins() - self.pins, 0)


class Card:
    """The card in the guest. A process listens at its first port; the second has no driver but us."""

    slot = "0x10"
    folder = "/sys/bus/pci/devices/0000:00:10.0/tty"
    # Offsets of registers, as of any 16550.
    LINE, SCRATCH = 3, 7

    def __init__(self, guest):
        guest.wait_in_guest(f"[ $(ls {self.folder} | wc -l) = 2 ]")
        first, second = guest.sh(f"ls {self.folder}").split()
        self.tty = f"/dev/{first}"
        self.base = int(guest.sh(f"cat /sys/class/tty/{second}/port"), 16)
        self.heard = ""
        guest.sh(f"stty -F {self.tty} raw -echo; exec 4<>{self.tty}; cat <&4 >/tmp/heard 2>&1 &")

    def store(self, guest, register, value):
        guest.sh(f"printf '\\{value:03o}' | dd of=/dev/port bs=1 seek={self.base + register} conv=notrunc 2>&-")

    def load(self, guest, register):
        return int(guest.sh(f"dd if=/dev/port bs=1 count=1 skip={self.base + register} 2>&- | od -An -tu1"))

    def fill(self, guest):
        """Leaves something in the card that is nowhere else."""
        self.store(guest, self.LINE, 3)
        self.store(guest, self.SCRATCH, 0xa5)

    def check(self, guest):
        """It is there."""
        expect("the scratch register", self.load(guest, self.SCRATCH), 0xa5)
        expect("the line's settings", self.load(guest, self.LINE), 3)

    def say(self, guest, text):
        """The process that listens hears it, by interrupt. A FIFO's worth at most: the card drops the rest."""
        self.heard += text
        guest.sh(f"printf '%s' '{text}' >{self.tty}")
        guest.wait_in_guest(f"[ \"$(cat /tmp/heard)\" = '{self.heard}' ]")


class Memory:
    """A process in the guest that writes files all the time and knows what is in them."""

    files = 16
    size = MIB // 16

    def __init__(self, guest):
        guest.sh("mkdir /tmp/m; "
                 f"head -c {4 * MIB} /dev/urandom >/tmp/m/still; sha256sum /tmp/m/still >/tmp/m/sum.still")
        guest.sh(f"(n=0; until [ -e /tmp/m/stop ]; do f=$((n % {self.files})); "
                 f"head -c {self.size} /dev/urandom >/tmp/m/$f; sha256sum /tmp/m/$f >/tmp/m/sum.$f; "
                 "n=$((n + 1)); echo $n >/tmp/m/new; mv /tmp/m/new /tmp/m/count; done; echo >/tmp/m/done) "
                 ">/tmp/m/said 2>&1 &")
        self.rewritten(guest)

    @staticmethod
    def count(guest):
        return int(guest.sh("cat /tmp/m/count 2>&- || echo 0"))

    def rewritten(self, guest):
        """Waits until every file is another."""
        goal = self.count(guest) + self.files
        guest.wait_in_guest(f"[ $(cat /tmp/m/count || echo 0) -ge {goal} ]")

    def check(self, guest):
        """The process goes on; then it ends, and all is what it says."""
        self.rewritten(guest)
        guest.sh("touch /tmp/m/stop")
        guest.wait_in_guest("[ -e /tmp/m/done ]")
        expect("what the writer had to complain of", guest.sh("cat /tmp/m/said"), "")
        said = guest.sh("cat /tmp/m/sum.* | sha256sum -c").splitlines()
        expect("files that are right", sum(line.endswith(": OK") for line in said), self.files + 1)


def tracking(guest):
    """How the guest's container tracks, if the driver tells."""
    found = containers()
    return None if found is None else [container.tracking for container in found if container.owner == guest.pid]


def expect_tracking(guest, wanted):
    if (found := tracking(guest)) is not None:
        expect("dirty tracking", found, [wanted])


def depart(guest, uri, wanted):
    """Begins to migrate, and looks on while it tracks."""
    expect_tracking(guest, "off")
    asked = len(guest.dirty_bitmaps())
    guest.command("migrate-set-parameters", max_bandwidth=SLOWLY, downtime_limit=1)
    guest.command("migrate", uri=uri)
    eventually("whether dirty pages were asked for", lambda: len(guest.dirty_bitmaps()) > asked, True)
    expect("the guest's state", guest.command("query-status")["status"], "running")
    expect_tracking(guest, wanted)


def arrive(source, memory, wanted):
    """The guest writes to all of its files once more, then the migration may end."""
    memory.rewritten(source)
    expect("the migration's state", source.command("query-migrate")["status"], "active")
    expect_tracking(source, wanted)
    source.command("migrate-set-parameters", max_bandwidth=AT_ONCE, downtime_limit=PATIENCE * 1000)
    told = source.migrated()
    pages = source.dirty_bitmaps()
    print(f"# {told['ram']['transferred']} bytes of memory, {told['vfio']['transferred']} of the card;"
          f" dirty pages asked for {len(pages)} times")
    expect("whether the card's state was sent", told["vfio"]["transferred"] > 0, True)
    expect("pages that VFIO called dirty", sum(pages), 0)
    # QEMU stops to track when the guest goes on, and that may never be.
    expect("the guest's state", source.command("query-status")["status"], "postmigrate")
    expect_tracking(source, wanted)


def goes_on(guest):
    guest.migrated()
    eventually("the guest's state", lambda: guest.command("query-status")["status"], "running")


@contextlib.contextmanager
def refused(reason):
    try:
        yield
    except Problem as problem:
        if reason not in str(problem):
            raise
        print(f"# {problem}")
    else:
        raise Problem(f"done, but should have been refused: {reason}")


def live(results, arguments):
    """A guest moves from one QEMU to another while it runs; before that, all that may not migrate."""
    with Move(results, arguments) as move:
        here, there = move.cards
        disk = Disk(move.image, move.address)
        with results.part("a guest with an IOMMU of its own is refused a card that migrates"):
            guest = move.guest(here, "-device", "intel-iommu,caching-mode=on")
            with refused("Migration is currently not supported with vIOMMU enabled"):
                guest.connect()
            move.nothing_left()
        with results.part("a guest with a card starts"):
            source = move.guest(here)
            source.start()
            card = Card(source)
            container_of(source, [], [group_of(here)])
            expect("memory locked", locked(source.pid), 0)
            card.say(source, "before.")
        with results.part("the disk cannot migrate, and keeps the guest from it"):
            reason = f"{move.address}: VFIO migration is not supported in kernel"
            with refused(reason):
                plug_disk(source, disk, enable_migration="on")
            plug_disk(source, disk)
            container_of(source, [disk.group], [group_of(here)])
            with refused(reason):
                source.command("migrate", uri=f"file:{source.folder}/never")
            expect_tracking(source, "off")
        with results.part("writing is measured by the bitmap: with a disk, type1 knows nothing"):
            measure(source, "every page")
            disk.check(source, 0, 4 * MIB)
        with results.part("without the disk it knows all again"):
            unplug_disk(source)
            container_of(source, [], [group_of(here)])
            expect("pages pinned more than before", pins() - move.pins, 0)
            measure(source, "pinned pages")
        with results.part("a migration that is called off leaves the guest as it was"):
            card.fill(source)
            memory = Memory(source)
            depart(source, f"file:{source.folder}/never", "pinned pages")
            source.command("migrate_cancel")
            source.migrated("cancelled")
            eventually("dirty tracking", lambda: tracking(source) in (None, ["off"]), True)
            memory.rewritten(source)
            card.say(source, " called off.")
        with results.part("the guest migrates while it writes"):
            target = move.incoming(there)
            uri = f"unix:{target.folder}/incoming"
            target.command("migrate-incoming", uri=uri)
            depart(source, uri, "pinned pages")
            arrive(source, memory, "pinned pages")
            goes_on(target)
            expect_tracking(target, "off")
        with results.part("the QEMU it has left takes its container with it"):
            source.quit()
            container_of(target, [], [group_of(there)])
            expect("memory locked", locked(target.pid), 0)
        with results.part("memory and card are what they were, and go on"):
            memory.check(target)
            card.check(target)
            card.say(target, " after.")
        with results.part("the disk can be plugged in where the guest is now"):
            plug_disk(target, disk)
            container_of(target, [disk.group], [group_of(there)])
            disk.check(target, 8 * MIB, 4 * MIB)
            card.say(target, " with a disk.")
        with results.part("the guest powers off"):
            target.power_off()
            move.nothing_left()


def measure(guest, wanted):
    """QEMU has a guest's writes logged for some seconds, VFIO's too."""
    guest.command("calc-dirty-rate", calc_time=10, mode="dirty-bitmap")
    if containers() is not None:
        eventually("dirty tracking", lambda: tracking(guest), [wanted], patience=60)
    eventually("the measurement", lambda: guest.command("query-dirty-rate")["status"], "measured")
    eventually("dirty tracking", lambda: tracking(guest) in (None, ["off"]), True)


def save(results, arguments):
    """A running guest is saved to a file and restored into a QEMU with another card, and back again.

    The second time by QEMU's own choice, which is that the card tracks what it
    writes: type1 is not asked.
    """
    with Move(results, arguments) as move:
        here, there = move.cards
        with results.part("a guest with a card starts"):
            guest = move.guest(here)
            guest.start()
            card = Card(guest)
            container_of(guest, [], [group_of(here)])
            card.say(guest, "Before.")
            card.fill(guest)
            memory = Memory(guest)
        for name, source, destination, device_tracks in (
                ("type1", here, there, False), ("the card", there, here, True)):
            wanted = "off" if device_tracks else "pinned pages"
            file = f"/run/saved-{os.getpid()}"
            with contextlib.ExitStack() as stack:
                with results.part(f"the guest is saved while it writes, {name} tracks"):
                    depart(guest, f"file:{file}", wanted)
                    stack.callback(os.unlink, file)
                    arrive(guest, memory, wanted)
                    container_of(guest, [], [group_of(source)])
                with results.part(f"it goes on after it was saved, {name} tracked"):
                    guest.command("cont")
                    memory.rewritten(guest)
                    expect_tracking(guest, "off")
                with results.part(f"nothing is left of it but the file, {name} tracked"):
                    guest.quit()
                    move.nothing_left()
                with results.part(f"the guest is restored with another card, {name} tracked"):
                    guest = move.incoming(destination, device_tracks=not device_tracks)
                    guest.command("migrate-incoming", uri=f"file:{file}")
                    goes_on(guest)
                    container_of(guest, [], [group_of(destination)])
                    expect_tracking(guest, "off")
                    memory.rewritten(guest)
                    card.say(guest, " After.")
                    expect("memory locked", locked(guest.pid), 0)
        with results.part("memory and card are what they were"):
            memory.check(guest)
            card.check(guest)
        with results.part("the guest powers off"):
            guest.power_off()
            move.nothing_left()


SCENARIOS = {"live": live, "save": save}

if __name__ == "__main__":
    name, *words = sys.argv[1:]
    sys.exit(Results().run(lambda results: SCENARIOS[name](results, words)))
