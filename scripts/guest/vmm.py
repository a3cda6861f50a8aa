# SPDX-License-Identifier: GPL-2.0
"""What a test needs to drive an unmodified QEMU, and to see what it makes the kernel do.

Used inside the test machine, by Python without site packages.
"""

import collections
import contextlib
import json
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import tempfile
import time

from kernel import read, write

#: Seconds for anything a guest does: its processor is emulated twice over, on a busy host.
PATIENCE = 600
MIB = 1 << 20
PAGE = 4096

CONTAINERS = "/sys/kernel/debug/vfio_type1_rs/containers"


class Problem(Exception):
    """Something is not as it should be; the message says what."""


def expect(what, got, wanted):
    if got != wanted:
        raise Problem(f"{what}: got {got}, wanted {wanted}")


def eventually(what, look, wanted, patience=PATIENCE):
    """Waits until ``look()`` gives what is wanted."""
    deadline = time.monotonic() + patience
    while (got := look()) != wanted:
        if time.monotonic() > deadline:
            raise Problem(f"{what}: got {got}, wanted {wanted}, for {patience} s")
        time.sleep(0.1)


class Results:
    """Prints KTAP, a result for each part; the first that fails is the last."""

    class Stop(Exception):
        pass

    def __init__(self):
        self.count = 0
        self.tails = []
        print("KTAP version 1", flush=True)

    @contextlib.contextmanager
    def part(self, what):
        began = time.monotonic()
        try:
            yield
        except (Problem, OSError) as problem:
            self.count += 1
            for tail in self.tails:
                print("".join(f"# {line}\n" for line in tail()), end="")
            print("".join(f"# {line}\n" for line in str(problem).splitlines()), end="")
            print(f"not ok {self.count} {what}", flush=True)
            raise self.Stop
        self.count += 1
        print(f"# {time.monotonic() - began:.1f} s\nok {self.count} {what}", flush=True)

    def run(self, scenario):
        """The exit status of a scenario, which is given these results."""
        try:
            scenario(self)
        except self.Stop:
            return 1
        finally:
            print(f"1..{self.count}", flush=True)
        return 0


class Lines:
    """Lines from a socket, each before a deadline."""

    def __init__(self, path, alive):
        self.alive = alive
        self.rest = b""
        self.socket = socket.socket(socket.AF_UNIX)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.socket.connect(path)
                break
            except (FileNotFoundError, ConnectionRefusedError):
                alive()
                if time.monotonic() > deadline:
                    raise Problem(f"nobody listens at {path} after {PATIENCE} s")
                time.sleep(0.05)
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.socket, selectors.EVENT_READ)

    def send(self, text):
        try:
            self.socket.sendall(text.encode())
        except OSError:
            self.alive()
            raise

    def line(self, what, deadline):
        while b"\n" not in self.rest:
            left = deadline - time.monotonic()
            if left <= 0:
                raise Problem(f"waited in vain for {what}")
            if self.selector.select(left):
                try:
                    chunk = self.socket.recv(1 << 16)
                except ConnectionResetError:
                    chunk = b""
                if not chunk:
                    self.alive(gone=True)
                self.rest += chunk
        line, self.rest = self.rest.split(b"\n", 1)
        return line.decode(errors="replace").rstrip("\r")

    def close(self):
        self.selector.close()
        self.socket.close()


class Qemu:
    """A guest under the distribution's QEMU and the machine's KVM, that runs commands for us."""

    #: What the agent's port hangs on. By ports, not by memory: on a busy host KVM once gave the guest up at a write
    #: to this device's memory (internal error, suberror 3), for reasons not found out.
    serial_bus = "virtio-serial-pci,disable-modern=on,disable-legacy=off"

    # What follows rdinit makes it boot faster.
    append = ("console=ttyS0 quiet panic=-1 rdinit=/init mitigations=off nokaslr no_timer_check"
              " cryptomgr.notests apparmor=0 audit=0")

    def __init__(self, program, kernel, initramfs, *options, memory="256M", machine="q35", append=""):
        self.folder = tempfile.mkdtemp(prefix="qemu-", dir="/run")
        self.console = f"{self.folder}/console"
        self.errors = f"{self.folder}/errors"
        self.traces = f"{self.folder}/traces"
        self.events = collections.deque()
        self.qmp = self.agent = None
        self.argv = [
            program, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-machine", machine, "-accel", "kvm", "-cpu", "host", "-smp", "1", "-m", memory,
            "-kernel", kernel, "-initrd", initramfs,
            "-append", f"{self.append} {append}".strip(),
            "-chardev", f"file,id=console,path={self.console}", "-serial", "chardev:console",
            "-device", self.serial_bus,
            "-device", "virtserialport,chardev=agent,name=agent",
            "-chardev", f"socket,id=agent,server=on,wait=off,path={self.folder}/agent",
            "-qmp", f"unix:{self.folder}/qmp,server=on,wait=off", "-D", self.traces,
            *options,
        ]
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        self.pid = self.process.pid

    def start(self):
        self.connect()
        self.finish("the guest's first sign of life", "ready", PATIENCE)

    def connect(self):
        """To a guest that need not run yet."""
        self.qmp = Lines(f"{self.folder}/qmp", self.alive)
        self.agent = Lines(f"{self.folder}/agent", self.alive)
        if "QMP" not in json.loads(self.qmp.line("QMP's greeting", time.monotonic() + PATIENCE)):
            raise Problem("QMP begins without a greeting")
        self.command("qmp_capabilities")

    def alive(self, gone=False):
        """Raises a Problem if it is not, or if it should not be."""
        if gone:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=10)
        status = self.process.poll()
        if status is not None:
            how = f"exit status {status}" if status >= 0 else signal.strsignal(-status)
            raise Problem(f"QEMU has ended ({how}): {read(self.errors).strip() or 'without a word'}")
        if gone:
            raise Problem("QEMU has closed a socket but goes on")

    def tail(self):
        """What console and QEMU had to say."""
        lines = []
        for path in (self.errors, self.console):
            with contextlib.suppress(OSError), open(path, errors="replace") as file:
                lines += [f"{os.path.basename(path)}: {line.rstrip()}" for line in file if line.strip()]
        return lines[-40:]

    def command(self, execute, **arguments):
        """What a QMP command returns."""
        request = {"execute": execute}
        if arguments:
            request["arguments"] = {key.replace("_", "-"): value for key, value in arguments.items()}
        self.qmp.send(json.dumps(request) + "\n")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = json.loads(self.qmp.line(f"QMP's answer to {execute}", deadline))
            if "event" in answer:
                self.events.append(answer)
            elif "error" in answer:
                raise Problem(f"QMP {execute}: {answer['error']['desc']}")
            else:
                return answer["return"]

    def event(self, name, **data):
        """Waits for an event with this data; earlier ones are forgotten."""
        deadline = time.monotonic() + PATIENCE
        while True:
            event = (self.events.popleft() if self.events
                     else json.loads(self.qmp.line(f"QMP's event {name}", deadline)))
            if event.get("event") == name and data.items() <= event.get("data", {}).items():
                return

    def plug(self, device, driver="vfio-pci", **properties):
        self.command("device_add", driver=driver, id=device, **properties)

    def unplug(self, device):
        """Asks for a device and waits until guest and QEMU have let go of it."""
        self.events.clear()
        self.command("device_del", id=device)
        self.event("DEVICE_DELETED", device=device)

    def migrated(self, wanted="completed"):
        """Waits for the end of a migration, from here or to here; returns what QEMU tells about it."""
        deadline = time.monotonic() + PATIENCE
        while True:
            told = self.command("query-migrate")
            status = told.get("status")
            if status == wanted:
                return told
            if status in ("completed", "failed", "cancelled"):
                raise Problem(f"the migration has {status}: {told.get('error-desc', 'no reason given')}")
            if time.monotonic() > deadline:
                raise Problem(f"the migration has not {wanted} within {PATIENCE} s, but is {status}")
            time.sleep(0.1)

    def dirty_bitmaps(self):
        """How many dirty pages VFIO has reported, each time QEMU asked; needs TRACE_DIRTY_BITMAPS."""
        try:
            text = read(self.traces)
        except FileNotFoundError:
            return []
        return [int(pages) for pages in re.findall(r"vfio_\w+_dirty_bitmap .*dirty_pages=(\d+)\n", text)]

    def sh(self, line, patience=PATIENCE):
        """What a command in the guest prints; it has to succeed."""
        self.agent.send(line + "\n")
        return self.finish(f"the guest to do: {line}", "0", patience)

    def finish(self, what, wanted, patience):
        deadline = time.monotonic() + patience
        lines = []
        while True:
            line, end, status = self.agent.line(what, deadline).partition("\x1e")
            if line or not end:
                lines.append(line)
            if end:
                break
        text = "\n".join(lines)
        if status != wanted:
            raise Problem(f"{what}: status {status}: {text}")
        return text

    def wait_in_guest(self, condition):
        tries = PATIENCE * 10
        self.sh(f"n=0; until {condition}; do n=$((n + 1)); [ $n -lt {tries} ] || exit 1; usleep 100000; done",
                PATIENCE * 2)

    def power_off(self):
        self.events.clear()
        self.agent.send("poweroff -f\n")
        # A guest that panics ends too, but not like this.
        self.event("SHUTDOWN", reason="guest-shutdown")
        try:
            status = self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise Problem(f"the guest does not power off within {PATIENCE} s")
        if status:
            self.alive()

    def quit(self):
        self.command("quit")
        if status := self.process.wait(timeout=PATIENCE):
            raise Problem(f"QEMU quits with exit status {status}: {read(self.errors).strip()}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def close(self):
        if self.process.poll() is None:
            self.kill()
        for lines in (self.qmp, self.agent):
            if lines:
                lines.close()
        shutil.rmtree(self.folder, ignore_errors=True)


#: The event is vfio_get_dirty_bitmap in QEMU 10.0, vfio_container_query_dirty_bitmap later.
TRACE_DIRTY_BITMAPS = ("-trace", "vfio_*_dirty_bitmap")


class Container:
    """What vfio_type1_rs tells about one container."""

    def __init__(self, text):
        self.text = text
        self.owner = int(re.search(r"owner: .* \(pid (\d+)\)", text)[1])
        self.used, self.left = map(int, re.search(r"dma entries: (\d+) used, (\d+) left", text).groups())
        self.tracking = re.search(r"dirty tracking: (.*)", text)[1]
        self.groups = [int(group) for groups in re.findall(r"domain \d+: groups((?: \d+)*)", text)
                       for group in groups.split()]
        self.emulated = [int(group) for group in re.findall(r"emulated: group (\d+)", text)]
        self.pinned = sum(int(pages) for pages in re.findall(r"pinned (\d+) pages", text))


def containers():
    """The open ones; None if the driver in use has nothing to tell."""
    try:
        text = read(CONTAINERS)
    except FileNotFoundError:
        return None
    return [Container(part) for part in re.split(r"^container \d+\n", text, flags=re.MULTILINE)[1:]]


class Translations:
    """Counts what a process has the IOMMU map and unmap, by the kernel's tracepoints."""

    tracefs = "/sys/kernel/tracing"

    def __init__(self, comm):
        if not os.path.exists(f"{self.tracefs}/instances"):
            subprocess.run(["mount", "-t", "tracefs", "tracefs", self.tracefs], check=True)
        self.instance = tempfile.mkdtemp(prefix="clients-", dir=f"{self.tracefs}/instances")
        write(f"{self.instance}/buffer_size_kb", "16384")
        for name in ("map", "unmap"):
            # Names of processes are cut to 15 characters.
            write(f"{self.instance}/events/iommu/{name}/filter", f'comm ~ "{comm[:15]}"')
            write(f"{self.instance}/events/iommu/{name}/enable", "1")

    def counts(self):
        """(maps, bytes mapped, unmaps, bytes unmapped) since it began."""
        for cpu in os.listdir(f"{self.instance}/per_cpu"):
            for line in read(f"{self.instance}/per_cpu/{cpu}/stats").splitlines():
                name, _, value = line.partition(":")
                if name in ("overrun", "commit overrun", "dropped events") and int(value):
                    raise Problem(f"the trace buffer of {cpu} was too small: {line}")
        mapped = unmapped = maps = unmaps = 0
        with open(f"{self.instance}/trace") as trace:
            for line in trace:
                if " map: " in line:
                    maps += 1
                    mapped += int(line.rpartition(" size=")[2])
                elif " unmap: " in line:
                    unmaps += 1
                    unmapped += int(line.rpartition("unmapped_size=")[2])
        return maps, mapped, unmaps, unmapped

    def close(self):
        os.rmdir(self.instance)
