# SPDX-License-Identifier: GPL-2.0
"""An unmodified DPDK moves frames between two network cards, and none may change.

usage: dpdk.py ROOT NEAR FAR [MODE...]

ROOT is where the distribution's DPDK was unpacked (/ if it is installed), NEAR
and FAR are the PCI addresses of two cards of Intel's that a wire connects.
testpmd reads frames from a file, sends them through one card, receives them
from the other and writes them to a file; both directions at a time. What is
written must be what was read, so all memory of DPDK's was where its cards
looked for it. A MODE is a way in which DPDK obtains memory and maps it.
"""

import contextlib
import errno
import glob
import os
import random
import re
import select
import struct
import subprocess
import sys
import time
from collections import Counter, namedtuple

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import kernel  # noqa: E402
from hugetlbfs import hugetlbfs  # noqa: E402

#: Emulated igb loses what comes while its ring is full, and nothing stops who
#: sends: a round is shorter than the ring, all rounds of a mode are longer.
RING = 1024
FRAMES = 900
ROUNDS = 2
SIZES = (60, 1514)
#: An EtherType for experiments: nobody interprets what follows.
HEADER = bytes.fromhex("020000000002" "020000000001" "88b5")

#: Seconds without any progress before testpmd counts as hung.
PATIENCE = 120

IOCTLS = {0x3b66: "SET_IOMMU", 0x3b68: "SET_CONTAINER", 0x3b71: "MAP_DMA", 0x3b72: "UNMAP_DMA"}
NR_IOCTL = 16
TRACING = "/sys/kernel/tracing"
#: It is written character by character, and another thread tells of links meanwhile.
PROMPT = re.compile(r"(?:\n|Port \d+: [\w ]+ event\n)*".join(map(re.escape, "testpmd> ")))

# What DPDK is told (eal, testpmd), the size of the huge pages it gets a file
# system of, if any, how many of some ioctls must be seen lest the mode be one by
# name only, and whether a card leaves and comes back in between.
Mode = namedtuple("Mode", "eal testpmd huge least replug", defaults=((), (), "2M", {}, False))

MODES = {
    # Memory grows and shrinks and is mapped piece by piece; the default.
    "dynamic": Mode(least={"MAP_DMA": 2, "UNMAP_DMA": 1}),
    # A card's group leaves the container and comes back among live mappings.
    "replug": Mode(least={"MAP_DMA": 2, "UNMAP_DMA": 1, "SET_CONTAINER": 3}, replug=True),
    # All memory is taken and mapped at the start.
    "legacy": Mode(eal=("--legacy-mem", "-m", "128")),
    "one-file": Mode(eal=("--single-file-segments",)),
    "in-memory": Mode(eal=("--in-memory",), huge=""),
    "1G": Mode(huge="1G"),
    # The IOVA of a page is its physical address, not its virtual one.
    "physical": Mode(eal=("--iova-mode=pa",)),
    # Pages of 4 KiB, in one piece, for everything ...
    "no-huge": Mode(eal=("--no-huge", "-m", "64"), huge=""),
    # ... or for the buffers alone, outside of DPDK's own memory, one by one.
    "external": Mode(testpmd=("--mp-alloc=xmem",), least={"MAP_DMA": 10000}),
    "external-huge": Mode(testpmd=("--mp-alloc=xmemhuge",), least={"MAP_DMA": 20}),
}


class Failed(Exception):
    """One mode's frames did not arrive as they left."""


class Testpmd:
    """testpmd's command line.

    It is given a terminal: into a pipe its prompts would overtake its answers.
    """

    def __init__(self, argv, environment):
        self.said = ""
        self.terminal, theirs = os.openpty()
        try:
            self.child = subprocess.Popen(argv, env={**os.environ, **environment}, start_new_session=True,
                                          stdin=theirs, stdout=theirs, stderr=theirs)
        finally:
            os.close(theirs)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        os.close(self.terminal)

    def read(self, end):
        """What it says until it says ``end``, or until it has ended if that is None."""
        text = ""
        while end is None or not end.search(text):
            if not select.select([self.terminal], [], [], PATIENCE)[0]:
                raise Failed(f"testpmd has said nothing for {PATIENCE} s")
            try:
                chunk = os.read(self.terminal, 1 << 16).decode(errors="replace").replace("\r", "")
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                # The other side has been closed.
                if end is None:
                    return text
                raise Failed(f"testpmd ended with status {self.child.wait()}")
            self.said += chunk
            text += chunk
        return text

    def do(self, *commands):
        """The answer to the last of some commands."""
        for command in commands:
            os.write(self.terminal, command.encode() + b"\n")
            answer = self.read(PROMPT)
        return answer

    def quit(self):
        os.write(self.terminal, b"quit\n")
        self.read(None)
        if status := self.child.wait():
            raise Failed(f"testpmd ended with status {status}")

    def stats(self):
        """Counters by port."""
        text = self.do("show port stats all")
        ports = re.split(r"NIC statistics for port (\d+)", text)[1:]
        return {int(number): {key: int(value) for key, value in re.findall(r"([RT]X-\w+):\s+(\d+)", body)}
                for number, body in zip(ports[::2], ports[1::2])}


class Ioctls:
    """The type1 ioctls made meanwhile, as the kernel saw them."""

    def __enter__(self):
        self.base = f"{TRACING}/instances/dpdk"
        os.mkdir(self.base)
        self.set("buffer_size_kb", 8192)
        for event in ("sys_enter", "sys_exit"):
            self.set(f"events/raw_syscalls/{event}/filter", f"id == {NR_IOCTL}")
            self.set(f"events/raw_syscalls/{event}/enable", 1)
        return self

    def set(self, name, value):
        kernel.write(f"{self.base}/{name}", str(value))

    def __exit__(self, *_):
        for event in ("sys_enter", "sys_exit"):
            self.set(f"events/raw_syscalls/{event}/enable", 0)
        with open(f"{self.base}/trace") as file:
            self.made, self.failed = count(file)
        os.rmdir(self.base)


def count(trace):
    """How often each ioctl was made and failed, from a trace of system calls."""
    made, failed, under_way = Counter(), Counter(), {}
    for line in trace:
        # The task is named before its id, and may contain anything.
        task = re.match(r"\s*.+-(\d+)\s+\[\d+\]", line)
        if not task:
            continue
        if found := re.search(r"sys_enter: NR \d+ \(\w+, (\w+),", line):
            if name := IOCTLS.get(int(found[1], 16)):
                under_way[task[1]] = name
                made[name] += 1
        elif found := re.search(r"sys_exit: NR \d+ = (-?\d+)", line):
            name = under_way.pop(task[1], None)
            if name and int(found[1]) < 0:
                failed[name] += 1
    return made, failed


def frames(seed):
    source = random.Random(seed)
    return [HEADER + struct.pack(">HI", seed, number) + source.randbytes(source.randint(*SIZES) - len(HEADER) - 6)
            for number in range(FRAMES)]


def write_pcap(path, content):
    with open(path, "wb") as file:
        file.write(struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1))
        for frame in content:
            file.write(struct.pack("<IIII", 0, 0, len(frame), len(frame)) + frame)


def read_pcap(path):
    with open(path, "rb") as file:
        data = file.read()
    content, place = [], 24
    while place < len(data):
        length = struct.unpack_from("<8xI4x", data, place)[0]
        content.append(data[place + 16:place + 16 + length])
        place += 16 + length
    return content


def differences(sent, got):
    """What distinguishes the frames of two lists, in words; nothing if they are equal."""
    if sent == got:
        return []
    found = [f"{len(sent)} frames sent, {len(got)} received"] if len(sent) != len(got) else []
    for number, (one, two) in enumerate(zip(sent, got)):
        if one != two:
            place = next((i for i, (a, b) in enumerate(zip(one, two)) if a != b), min(len(one), len(two)))
            found.append(f"frame {number} ({len(one)} bytes, received {len(two)}) differs from byte {place} on")
            break
    return found


def dma_faults(log):
    """What of these lines says that the IOMMU refused something."""
    return [line for line in log if re.search(r"(?:DMAR|AMD-Vi):.*fault|viommu.*fault", line, re.IGNORECASE)]


def command(root, near, far, mode, huge):
    """How testpmd is started: (arguments, environment)."""
    environment, plugins = {}, []
    if root != "/":
        libraries = os.path.dirname(glob.glob(f"{root}/usr/lib/*/librte_eal.so.*")[0])
        environment = {"LD_LIBRARY_PATH": libraries}
        for name in ("mempool_ring", "net_e1000", "net_pcap"):
            plugins += ["-d", glob.glob(f"{libraries}/dpdk/pmds-*/librte_{name}.so.*")[0]]
    files = [f"--vdev=net_pcap{n},rx_pcap=/run/dpdk-in{n},tx_pcap=/run/dpdk-out{n}" for n in range(2)]
    return [f"{root}/usr/bin/dpdk-testpmd".replace("//", "/"), "-l", "0-1", "--no-telemetry", *plugins,
            *(["--huge-dir", huge] if huge else []), *mode.eal, "-a", near, "-a", far, *files,
            "--", "-i", "--no-flush-rx", f"--rxd={RING}", "--total-num-mbufs=8192", *mode.testpmd], environment


def forward(testpmd, sent):
    """Lets the frames pass once and looks at what arrived."""
    testpmd.do("clear port stats all", "start")
    before, quiet = None, time.monotonic()
    while True:
        stats = testpmd.stats()
        if set(stats) != set(range(4)):
            raise Failed(f"testpmd has the ports {sorted(stats)}")
        if all(stats[port]["TX-packets"] >= FRAMES for port in (2, 3)):
            break
        if stats != before:
            before, quiet = stats, time.monotonic()
        elif time.monotonic() - quiet > PATIENCE:
            break
        time.sleep(0.5)
    # Stopped, the ports that write files close them.
    testpmd.do("stop", "port stop 2", "port stop 3")
    problems = [f"port {port}: {key} {value}" for port in (0, 1) for key, value in stats[port].items()
                if value and key in ("RX-missed", "RX-errors", "RX-nombuf", "TX-errors")]
    for here, there in ((0, 1), (1, 0)):
        problems += [f"direction {here}: {problem}"
                     for problem in differences(sent[here], read_pcap(f"/run/dpdk-out{there}"))]
    if problems:
        raise Failed("\n".join([*problems, *(f"port {port}: {stats[port]}" for port in sorted(stats))]))


def drive(testpmd, near, mode, content):
    """All rounds, with other frames in each."""
    testpmd.read(PROMPT)
    testpmd.do("set portlist 2,0,1,3", "set fwd io retry", "set burst tx delay 10 retry 10000")
    forward(testpmd, content)
    for number in range(1, ROUNDS):
        if mode.replug:
            testpmd.do("port stop 0", "port close 0", f"device detach {near}", f"port attach {near}", "port start 0")
        content = sent(number)
        testpmd.do("port start 2", "port start 3")
        forward(testpmd, content)
    testpmd.quit()


def sent(number):
    """The frames of a round, by direction, where testpmd looks for them."""
    content = [frames(2 * number + direction) for direction in range(2)]
    for direction in range(2):
        write_pcap(f"/run/dpdk-in{direction}", content[direction])
    return content


def run(root, near, far, mode):
    for direction in range(2):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"/run/dpdk-out{direction}")
    # testpmd opens the files when it starts.
    content = sent(0)
    log = kernel.Log()
    problems = []
    with hugetlbfs(mode.huge) as huge, Ioctls() as ioctls:
        argv, environment = command(root, near, far, mode, huge)
        with Testpmd(argv, environment) as testpmd:
            try:
                drive(testpmd, near, mode, content)
            except Failed as failed:
                problems += [str(failed), *testpmd.said.splitlines()[-20:]]
    problems += dma_faults(log.news())
    made = ", ".join(f"{what} {ioctls.made[what]}" for what in IOCTLS.values())
    for what, least in {"MAP_DMA": 1, "SET_CONTAINER": 2, **mode.least}.items():
        if ioctls.made[what] < least:
            problems.append(f"{what} {ioctls.made[what]}, expected at least {least}")
    if ioctls.failed:
        problems.append(f"ioctls that failed: {dict(ioctls.failed)}")
    if problems:
        raise Failed("\n".join([*problems, made]))
    return made


def main(root, near, far, *names):
    names = names or tuple(MODES)
    print(f"KTAP version 1\n1..{len(names)}", flush=True)
    failed = 0
    for number, name in enumerate(names, 1):
        began = time.monotonic()
        verdict, notes = "ok", ""
        try:
            notes = run(root, near, far, MODES[name])
        except Failed as problem:
            verdict, notes, failed = "not ok", str(problem), failed + 1
        for line in f"{notes}\n{time.monotonic() - began:.1f} s".splitlines():
            print(f"# {line}")
        print(f"{verdict} {number} {name}", flush=True)
    return failed > 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
