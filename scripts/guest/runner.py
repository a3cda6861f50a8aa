# SPDX-License-Identifier: GPL-2.0
"""Runs a plan of tests inside a test machine and tells the host what happens.

The host starts this as the machine's one job, with a plan (JSON) it wrote.
Everything goes back as one JSON object a line through the transcript, a
channel of its own: the console belongs to the kernel, and a test may print
what it likes. What the lines mean for the verdict is decided on the host.

Only the standard library, and little of that: starting Python is what takes
longest here when the processor is emulated.
"""

import contextlib
import ctypes
import errno
import json
import os
import re
import selectors
import signal
import subprocess
import sys
import time

# Python was told not to look beside this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import kernel  # noqa: E402
from kernel import bar, libc, load_module, module_name, pinned_pages, read, unload_module, write  # noqa: E402

RB_POWER_OFF = 0x4321FEDC


class Trouble(Exception):
    """Something this machine should be able to do did not work."""


class Missing(Exception):
    """A need that is not there: reason to skip, by name."""


class Transcript:
    def __init__(self, name):
        self.fd = os.open(find_port(name), os.O_WRONLY | os.O_NOCTTY)

    def say(self, **event):
        # The leading newline ends whatever a terminal had echoed before.
        data = ("\n" + json.dumps(event) + "\n").encode()
        while data:
            data = data[os.write(self.fd, data):]


def find_port(name):
    """A device file: a path, or the name the host gave to a virtio port."""
    if name.startswith("/"):
        return name
    ports = "/sys/class/virtio-ports"
    for port in os.listdir(ports):
        if read(f"{ports}/{port}/name").strip() == name:
            return f"/dev/{port}"
    raise Trouble(f"no virtio port is called {name}")


def require_module(path, parameters=""):
    if (error := load_module(path, parameters)) not in (0, errno.EEXIST):
        raise Trouble(f"{module_name(path)} does not load: {os.strerror(error)}")


def loaded(name):
    return os.path.isdir(f"/sys/module/{name}/holders")


def find_device(ident, memory=0):
    """The PCI address of a device: ``vendor:device`` or ``class:code``, with so much memory in BAR 2."""
    kind, _, code = ident.partition(":")
    base = "/sys/bus/pci/devices"
    if not os.path.isdir(base):
        raise Missing(f"PCI device {ident} (no PCI bus)")
    for address in sorted(os.listdir(base)):
        attribute = lambda name: read(f"{base}/{address}/{name}").strip().removeprefix("0x")
        if kind == "class":
            if attribute("class").startswith(code):
                return address
        elif (attribute("vendor"), attribute("device")) == (kind, code):
            if not memory or bar(read(f"{base}/{address}/resource"), 2)[1] == memory:
                return address
    raise Missing(f"PCI device {ident}" + (f" with {memory} bytes of memory" if memory else ""))


def bind(address, driver):
    """Takes a PCI device from whatever drives it and gives it to ``driver``."""
    device = f"/sys/bus/pci/devices/{address}"
    link = f"{device}/driver"
    if os.path.islink(link):
        if os.path.basename(os.readlink(link)) == driver:
            return
        write(f"{link}/unbind", address)
    write(f"{device}/driver_override", driver)
    write("/sys/bus/pci/drivers_probe", address)
    if not os.path.islink(link) or os.path.basename(os.readlink(link)) != driver:
        raise Trouble(f"{driver} did not take {address}")


@contextlib.contextmanager
def settings(wanted):
    """Files of the kernel that read as wanted for a while, as before after it."""
    before = {}
    try:
        for path, value in wanted.items():
            # A choice shows all values and brackets the one in force.
            text = read(path).strip()
            before[path] = text.partition("[")[2].partition("]")[0] or text
            write(path, value)
        yield
    finally:
        for path, value in before.items():
            write(path, value)


@contextlib.contextmanager
def subject(load="", absent=()):
    """A module that takes over for a while what the kernel does itself without it."""
    for rival in absent:
        if loaded(rival):
            raise Trouble(f"{rival} is loaded")
    if not load:
        yield
        return
    if error := load_module(load):
        raise Trouble(f"{module_name(load)} does not load: {os.strerror(error)}")
    try:
        yield
    finally:
        if error := unload_module(module_name(load)):
            raise Trouble(f"{module_name(load)} does not unload: {os.strerror(error)}")


class Leaks:
    """kmemleak's opinion, where the machine was booted with it on."""

    control = "/sys/kernel/debug/kmemleak"

    def __init__(self, wanted):
        self.on = wanted
        if wanted:
            write(self.control, "clear")

    def found(self):
        # It reports nothing younger than five seconds, and an object freshly
        # freed by RCU looks leaked to the first scan.
        time.sleep(6)
        for _ in range(2):
            write(self.control, "scan")
        return read(self.control).strip()


def lockdep_watches():
    """Whether lockdep is still on; it switches itself off after its first report. None without it."""
    try:
        stats = read("/proc/lockdep_stats")
    except FileNotFoundError:
        return None
    return re.search(r"debug_locks:\s*(\d)", stats)[1] == "1"


class Runner:
    def __init__(self, plan):
        self.plan = plan
        self.transcript = Transcript(plan["transcript"])
        self.log = kernel.Log(boot=True)
        self.places = {}

    def say(self, event, **more):
        self.transcript.say(event=event, **more)

    def kernel_log(self, test):
        if lines := self.log.news():
            self.say("kernel", test=test, text="\n".join(lines))

    def main(self):
        self.say("start", release=os.uname().release, uptime=float(read("/proc/uptime").split()[0]))
        for module in self.plan["modules"]:
            require_module(**module)
        self.kernel_log("boot")
        for phase in self.plan["phases"]:
            self.phase(phase)
        self.say("end")

    def phase(self, phase):
        driver = phase.get("driver")
        name = phase["name"]
        if not driver:
            for test in phase["tests"]:
                self.test(name, test, None)
            return

        checks = []
        leaks = Leaks(self.plan["leaks"])
        pinned = pinned_pages()
        began = time.monotonic()
        for path in driver["below"]:
            require_module(path)
        error = load_module(driver["path"], driver.get("parameters", ""))
        checks.append(("loads", not error, os.strerror(error) if error else ""))
        if not error:
            for test in phase["tests"]:
                self.test(name, test, driver)
            error = unload_module(driver["name"])
            checks.append(("unloads", not error, os.strerror(error) if error else ""))
            acquired, released = (now - then for now, then in zip(pinned_pages(), pinned))
            checks.append(("gave back every page it pinned", acquired == released,
                           f"{acquired} pinned, {released} released"))
            if leaks.on:
                found = leaks.found()
                checks.append(("leaks nothing kmemleak can see", not found, found))
        if (watches := lockdep_watches()) is not None:
            checks.append(("lockdep watched to the end", watches, ""))
        self.say("begin", phase=name, test="module")
        self.output(name, "module", f"KTAP version 1\n1..{len(checks)}\n")
        for number, (what, good, detail) in enumerate(checks, 1):
            text = "".join(f"# {line}\n" for line in detail.splitlines())
            self.output(name, "module", f"{text}{'ok' if good else 'not ok'} {number} {what}\n")
        self.kernel_log("module")
        self.say("done", phase=name, test="module", status=0, seconds=time.monotonic() - began)

    def output(self, phase, test, text):
        self.say("output", phase=phase, test=test, text=text)

    def test(self, phase, test, driver):
        name = test["name"]
        self.say("begin", phase=phase, test=name)
        began = time.monotonic()
        end = {"status": 0}
        try:
            for need in test["needs"]:
                self.need(need)
            if "kunit" in test:
                self.kunit(phase, test)
            else:
                served = self.served(driver)
                with settings(test["settings"]), subject(**test.get("subject", {})):
                    end = self.command(phase, test)
                self.serves(driver, test, served)
        except Missing as missing:
            end = {"skip": str(missing)}
        except (Trouble, OSError) as trouble:
            end = {"trouble": str(trouble)}
        self.kernel_log(name)
        self.say("done", phase=phase, test=name, seconds=time.monotonic() - began, **end)

    def need(self, need):
        """Checks one need; only its absence, or being denied it, is a Missing."""
        try:
            for module in need.get("modules", []):
                require_module(**module)
            if "device" in need:
                address = find_device(need["device"], need.get("memory", 0))
                self.places[need["name"]] = address
                if need.get("driver"):
                    bind(address, need["driver"])
            if "open" in need:
                os.close(os.open(need["open"], os.O_RDWR | os.O_CLOEXEC))
            if "reads" in need and (text := read(need["file"]).strip()) != need["reads"]:
                raise Missing(f"{need['name']}: {need['file']} is {text}, not {need['reads']}")
            if "count" in need and int(read(need["count"])) < need["at_least"]:
                raise Missing(f"{need['name']}: {need['count']} is below {need['at_least']}")
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.EACCES):
                raise Missing(f"{need['name']}: {error.filename}: {error.strerror}")
            raise Trouble(f"{need['name']}: {error}")

    def served(self, driver):
        """How many containers the driver says it has served; None if it cannot tell."""
        return int(read(driver["served"])) if driver and "served" in driver else None

    def serves(self, driver, test, before):
        """The container core falls back to another driver without a word."""
        if not driver:
            return
        for rival in driver["rivals"]:
            if loaded(rival):
                raise Trouble(f"{rival} is loaded too: any container may be its")
        if not loaded(driver["name"]):
            raise Trouble(f"{driver['name']} is not loaded after the test")
        if test["containers"] and before is not None and self.served(driver) <= before:
            raise Trouble(f"{driver['name']} served no container of this test")

    def kunit(self, phase, test):
        """Loads a module of KUnit suites; each suite leaves a file of results."""
        results = "/sys/kernel/debug/kunit"
        before = set(os.listdir(results))
        if error := load_module(test["kunit"]):
            raise Trouble(f"{module_name(test['kunit'])} does not load: {os.strerror(error)}")
        for suite in sorted(set(os.listdir(results)) - before):
            self.output(phase, test["name"], read(f"{results}/{suite}/results"))
        if error := unload_module(module_name(test["kunit"])):
            raise Trouble(f"{module_name(test['kunit'])} does not unload: {os.strerror(error)}")

    def command(self, phase, test):
        words = [self.expand(word) for word in test["command"]]
        variables = {key: self.expand(value) for key, value in test["env"].items()}
        child = subprocess.Popen(words, env={**os.environ, **variables}, start_new_session=True,
                                 cwd="/run", stdin=subprocess.DEVNULL,
                                 stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + test["limit"]
        late = self.follow(child, phase, test["name"], deadline)
        if late:
            # It goes with all it started, or it would keep its device busy.
            kill_session(child.pid)
        try:
            status = child.wait(timeout=30)
        except subprocess.TimeoutExpired:
            return {"trouble": "SIGKILL does not end it: " + read(f"/proc/{child.pid}/stack")}
        if late:
            return {"late": test["limit"]}
        return {"status": status}

    def expand(self, word):
        """Puts in where this machine has the devices a test needs."""
        for name, address in self.places.items():
            word = word.replace(f"{{{name}}}", address)
        return word

    def follow(self, child, phase, name, deadline):
        """Passes output on; true if the deadline came first."""
        with selectors.DefaultSelector() as selector:
            selector.register(child.stdout, selectors.EVENT_READ)
            while (left := deadline - time.monotonic()) > 0:
                if selector.select(left):
                    chunk = os.read(child.stdout.fileno(), 1 << 16)
                    if not chunk:
                        return False
                    self.output(phase, name, chunk.decode(errors="replace"))
        return True


def kill_session(session):
    """Ends all processes of a session: those of a test program are in groups of their own."""
    found, deadline = True, time.monotonic() + 30
    while found and time.monotonic() < deadline:
        found = False
        for pid in filter(str.isdigit, os.listdir("/proc")):
            try:
                state, _, _, its_session = read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:4]
                if int(its_session) == session and state not in "ZX":
                    found = True
                    os.kill(int(pid), signal.SIGKILL)
            except (FileNotFoundError, ProcessLookupError):
                pass


def prepare():
    """What an init does, for machines that have no other."""
    os.environ.update(PATH="/usr/sbin:/usr/bin:/sbin:/bin", HOME="/run", TMPDIR="/run", LC_ALL="C")
    os.makedirs("/dev/shm", exist_ok=True)
    # Not over /tmp: the checkout may be there.
    for kind, target in (("proc", "/proc"), ("sysfs", "/sys"), ("debugfs", "/sys/kernel/debug"),
                         ("tmpfs", "/run"), ("tmpfs", "/dev/shm")):
        mount(kind, target)
    if os.path.isdir("/sys/kernel/tracing"):
        mount("tracefs", "/sys/kernel/tracing")


def mount(kind, target):
    if libc.mount(kind.encode(), target.encode(), kind.encode(), 0, None):
        raise Trouble(f"mount {target}: {os.strerror(ctypes.get_errno())}")


def power_off():
    os.sync()
    libc.reboot(ctypes.c_int(RB_POWER_OFF))


def main(path):
    init = os.getpid() == 1
    if init:
        prepare()
    with open(path) as file:
        plan = json.load(file)
    runner = Runner(plan)
    try:
        runner.main()
    except (Trouble, OSError) as trouble:
        runner.say("trouble", text=str(trouble))
    finally:
        if init:
            power_off()


if __name__ == "__main__":
    main(sys.argv[1])
