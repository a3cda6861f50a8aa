# SPDX-License-Identifier: GPL-2.0
"""The test machines: Linux under emulated QEMU, and User-Mode Linux.

Both share the host's root read-only, start scripts/guest/runner.py with a plan
as their one job and answer through a transcript, a file of JSON lines. A run
ends when the machine does; one that stops making progress is killed and says
so. Nothing here judges a test: see selftests.py.
"""

import contextlib
import fcntl
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from . import bochs, emulator, env, guest, host, sysroot, tsc, ui, unpacked

RUNNER = env.repo / "scripts" / "guest" / "runner.py"
DISK_BYTES = 32 << 20

#: Seconds without the event that is due next before a machine counts as hung.
#: Emulation on a busy host is slow: these only have to end, not to be short.
BOOT_LIMIT = 300
PAUSE_LIMIT = 300
#: kmemleak reads all memory twice, that of reserved huge pages too.
LEAKS_LIMIT = 900
GRACE = 120
OFF_LIMIT = 90

COMPLAINT = re.compile(
    r"BUG:|WARNING:|Oops|Kernel panic|general protection fault|unable to handle"
    r"|KASAN:|UBSAN:|KFENCE:|possible (?:recursive|circular) locking|suspicious RCU usage"
    r"|refcount_t:|sleeping function called from invalid|blocked for more than|invalid opcode"
    r"|panicked at|BUG \S+ \(|pagealloc:|locking correctness validator|Detected page leak")


@dataclass
class Outcome:
    """What one test left behind."""

    phase: str
    test: str
    text: str = ""
    kernel: str = ""
    end: dict = None

    def complaints(self):
        return complaints(self.kernel)


@dataclass
class Run:
    """What one boot left behind."""

    outcomes: dict = field(default_factory=dict)
    boot_kernel: str = ""
    release: str = ""
    trouble: list = field(default_factory=list)
    console: Path = None
    tail: deque = field(default_factory=lambda: deque(maxlen=8))
    # Of the console, since the last test began: all there is to read after a panic.
    complaints: deque = field(default_factory=lambda: deque(maxlen=12))
    seconds: float = 0.0
    ended: bool = False


class Machine:
    """One boot of a built kernel; what it leaves behind goes to ``where``."""

    #: Of the host, at most, in GiB.
    memory = 0
    #: All time limits are this many times as long,
    patience = 1
    #: but for those it watches itself, if its clock is no faster than its processor.
    steady = False

    #: The machine's own.
    python = os.path.realpath(sys.executable)
    #: What KVM's module for its processor is called.
    kvm_module = "kvm-amd"

    def __init__(self, where, built, append="", kvm=False):
        self.where = where
        self.image = built.image
        self.append = append
        self.kvm = kvm

    def argv(self, plan, transcript):
        raise NotImplementedError

    def run(self, plan, on_event=lambda event: None):
        """Boots, runs ``plan`` and returns the Run, whatever happened."""
        run, = run_all([(self, plan)], lambda _, event: on_event(event))
        return run

    def _run(self, plan, on_event, stop):
        with env.lock("machine", self.where):
            return self._run_locked(plan, on_event, stop)

    def _run_locked(self, plan, on_event, stop):
        transcript = self.where / "transcript.jsonl"
        transcript.write_bytes(b"")
        plan_file = self.where / "plan.json"
        patience = 1 if self.steady else self.patience
        # Programs with limits of their own learn from the environment.
        phases = [{**phase, "tests": [{**test, "limit": test["limit"] * patience,
                                       "env": {"TEST_PATIENCE": str(patience), **test["env"]}}
                                      for test in phase["tests"]]} for phase in plan["phases"]]
        plan_file.write_text(json.dumps(
            {**plan, "phases": phases, "transcript": self.transcript_name,
             "leaks": plan.get("leaks", False)}, indent="\t"))

        run = Run(console=self.where / "console.log")
        began = time.monotonic()
        with transcript.open("ab") as channel, run.console.open("wb") as console:
            child = subprocess.Popen(
                [str(word) for word in self.argv(plan_file, channel)],
                env=self.environment(), cwd="/", start_new_session=True, pass_fds=[channel.fileno()],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            try:
                _Follower(run, plan, child, console, transcript, on_event, stop, self.patience).follow()
            finally:
                _end(child)
        run.seconds = time.monotonic() - began
        if not run.ended and not run.trouble:
            run.trouble.append("the machine stopped before its plan was done")
            # Its CPUs race with its own memory map when each has a thread (machine Host).
            run.trouble += [f"QEMU itself failed, not the kernel in it: {line}\nrun the same command again"
                            for line in run.tail if re.search(r"Assertion .* failed", line)]
        return run

    def environment(self):
        return dict(os.environ)

    def runner_words(self, plan):
        return [self.python, "-I", "-S", RUNNER, plan]


def run_all(jobs, on_event=lambda machine, event: None, at_once=1):
    """Runs each (machine, plan), some of them at a time; their Runs in the same order."""
    stop = threading.Event()
    one_by_one = threading.Lock()

    def run(machine, plan):
        def tell(event):
            with one_by_one:
                on_event(machine, event)
        return machine._run(plan, tell, stop)

    def leave(number, frame):
        # Goes the way that ends the machines.
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, leave)
    try:
        with ThreadPoolExecutor(at_once) as pool:
            try:
                futures = [pool.submit(run, *job) for job in jobs]
                return [future.result() for future in futures]
            except BaseException:
                stop.set()
                raise
    finally:
        signal.signal(signal.SIGTERM, before)


def at_once(kind):
    """How many machines of a kind this host has processors and memory for."""
    available = re.search(r"^MemAvailable: *([0-9]+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    gigabytes = int(available[1]) >> 20 if available else 0
    return max(1, min(env.nproc(), gigabytes // (kind.boot.memory + 1)))


class Vm(Machine):
    """QEMU by virtme-ng: an IOMMU, Intel's here, three PCI devices, huge pages."""

    transcript_name = "vkr.transcript"
    memory = 6
    cpus = 2
    iommu = ("-device", "intel-iommu,intremap=on,caching-mode=on,eim=on")
    devices = (
        "-device", "igb",
        # edu addresses 28 bits unless told otherwise.
        "-device", "edu,dma_mask=0xffffffffffffffff",
    )
    huge_pages = "hugepagesz=1G hugepages=3 hugepagesz=2M hugepages=512"
    parameters = ""
    # A thread for each CPU makes QEMU 10.0 fail an assertion now and then
    # (iotlb_to_section) when a device reset moves BARs under a running CPU.
    thread = "single"

    def __init__(self, where, built, append="", kvm=False):
        super().__init__(where, built, append, kvm)
        if kvm and (reason := kvm_refuses()):
            raise ui.StepFailed(f"KVM cannot be used: {reason}", hint="leave --kvm away: the machine is emulated then")
        self.qemu = self.find_qemu()

    def find_qemu(self):
        return qemu()

    @staticmethod
    def disk():
        """The NVMe disk's content: made once, random, never written to."""
        path = env.out / "machine" / "disk.img"
        if not path.exists() or path.stat().st_size != DISK_BYTES:
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_suffix(".new")
            scratch.write_bytes(os.urandom(DISK_BYTES))
            scratch.replace(path)
        return path

    def board(self):
        accel = ("-accel", "kvm", "-cpu", "host") if self.kvm else (
            "-accel", f"tcg,thread={self.thread}", "-cpu", "max,+svm")
        return [*accel, "-machine", "q35,kernel-irqchip=" + ("split" if self.kvm else "off"),
                *self.iommu, *self.devices]

    def qemu_options(self, channel):
        return [
            *self.board(),
            "-drive", f"if=none,id=disk,format=raw,snapshot=on,file={_comma(self.disk())}",
            "-device", "nvme,drive=disk,serial=vkr",
            "-device", "virtio-serial-pci,id=vkr",
            "-chardev", f"file,id=transcript,append=on,path={_comma(self.where / 'transcript.jsonl')}",
            "-device", f"virtserialport,bus=vkr.0,chardev=transcript,name={self.transcript_name}",
            # Without it the default network card takes the first free slot.
            "-nic", "none",
        ]

    def argv(self, plan, channel):
        command = shlex.join(str(word) for word in self.runner_words(plan))
        return [
            env.require_venv() / "bin" / "vng",
            "--run", self.image, "--qemu", self.qemu, "--name", "vkr",
            "--force-9p", "--disable-monitor", "--disable-microvm",
            *([] if self.kvm else ["--disable-kvm"]),
            "--verbose", "--user", "root", "--cpus", self.cpus, "--memory", f"{self.memory}G",
            # On a busy host no timer interrupt may come for ten emulated ticks, and Linux panics.
            "--append", " ".join(filter(None, ("no_timer_check", self.clock(), self.huge_pages, self.parameters,
                                               self.append))),
            f"--qemu-opts={shlex.join(self.qemu_options(channel))}",
            "--exec", command,
        ]

    def clock(self):
        """The rate of the TSC, which Linux gets wrong by any factor on a busy host."""
        rate = None if self.kvm else tsc.khz()
        return f"tsc_early_khz={rate}" if rate else ""

    def environment(self):
        # vng starts its other half by name.
        path = f"{env.require_venv() / 'bin'}:{os.environ.get('PATH', '/usr/bin:/bin')}"
        return {**os.environ, "PATH": path}


class Host(Vm):
    """The same with a thread for each CPU, without which guests of its own hang."""

    thread = "multi"


class WiredVm(Vm):
    """The same with a wire from one network card to another."""

    devices = (
        "-netdev", "hubport,id=near,hubid=1", "-netdev", "hubport,id=far,hubid=1",
        "-device", "igb,netdev=near", "-device", "e1000e,netdev=far",
    )


class VirtioVm(Vm):
    """The same behind a virtio-iommu, which remaps no interrupts on x86."""

    iommu = ("-device", "virtio-iommu-pci")
    # tests.toml tells type1 the same.
    parameters = "iommufd.allow_unsafe_interrupts=1"


class AmdVm(Vm):
    """The same behind an AMD IOMMU."""

    iommu = (
        "-device", "amd-iommu,intremap=on,xtsup=on,dma-remap=on",
        # Linux remaps interrupts only if the IO-APIC's address on the PCI bus, of
        # which QEMU tells the firmware, is a southbridge. QEMU has nothing there,
        # and no device of that class that does nothing: any will do, renamed.
        "-blockdev", f"null-co,node-name=nothing,size={1 << 20}",
        "-device", "virtio-blk-pci,drive=nothing,addr=0x14,class=0x0601",
    )

    def find_qemu(self):
        return unpacked.ensure(unpacked.QEMU)


class HwdbmVm(Vm):
    """The same behind an Intel IOMMU that sets dirty bits, which takes a QEMU of our own."""

    iommu = ("-device", "intel-iommu,intremap=on,caching-mode=on,eim=on,x-scalable-mode=on,x-ssads=on")

    def find_qemu(self):
        return emulator.ensure()


class Arm64(Vm):
    """QEMU's virt board with an SMMUv3, the same devices and a userland of its own.

    EL2 is there for KVM, and the GIC has an ITS: interrupts of devices are writes
    that the SMMU translates.
    """

    python = "/usr/bin/python3"
    cpu = "neoverse-n1"
    #: Of devices whose BAR 2 is memory. It takes none of the host's where nobody wrote.
    bars = ("64K", "1G", "4G")
    #: Of one behind a port, which can reset it.
    resettable = "4M"

    def __init__(self, where, built, append="", kvm=False):
        if kvm:
            raise ui.StepFailed("KVM cannot run a machine of another architecture", hint="leave --kvm away")
        super().__init__(where, built, append)
        self.userland = sysroot.ensure("arm64")
        self.shares = [env.repo, built.build_dir]

    def find_qemu(self):
        return qemu("arm64")

    def board(self):
        return ["-accel", f"tcg,thread={self.thread}", "-cpu", self.cpu,
                "-machine", "virt,virtualization=on,gic-version=3,iommu=smmuv3", *self.devices,
                *(word for size in self.bars for word in self.memory_device(size)),
                "-device", "pcie-root-port,id=reset-port,chassis=1",
                *self.memory_device(self.resettable, ",bus=reset-port")]

    @staticmethod
    def memory_device(size, where=""):
        return ["-object", f"memory-backend-memfd,id=bar-{size},size={size},share=on",
                "-device", f"ivshmem-plain,memdev=bar-{size}{where}"]

    def initramfs(self):
        """Little more than an init that mounts what the machine shares with its host."""
        busybox = (self.userland.root / "bin" / "busybox").read_bytes()
        init = (env.repo / "scripts" / "guest" / "shares-init").read_bytes()
        path = self.where / "initramfs.cpio"
        path.write_bytes(guest.cpio([("dev", 0o040755, b""), ("busybox", 0o100755, busybox),
                                     ("init", 0o100755, init)]))
        return path

    def argv(self, plan, channel):
        def share(tag, path):
            return ["-fsdev", f"local,id={tag},security_model=none,readonly=on,multidevs=remap,path={_comma(path)}",
                    "-device", f"virtio-9p-pci,fsdev={tag},mount_tag={tag}"]

        shares = share("usr", self.userland.root / "usr")
        for number, path in enumerate(self.shares):
            shares += share(f"share{number}", path)
        command = shlex.join(str(word) for word in self.runner_words(plan))
        return [
            self.qemu, "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
            "-serial", "stdio", "-smp", self.cpus, "-m", f"{self.memory}G", *self.qemu_options(channel), *shares,
            "-kernel", self.image, "-initrd", self.initramfs(), "-append",
            f"console=ttyAMA0 panic=-1 {self.huge_pages} {self.append} "
            f"shares={':'.join(map(str, self.shares))} -- {command}",
        ]


class Arm64Counting(Arm64):
    """The same with one CPU, whose clock counts its instructions: one a nanosecond."""

    cpus = 1

    def board(self):
        return [*super().board(), "-icount", "shift=0,sleep=off"]


class Arm64Max(Arm64):
    """The same with all that QEMU knows a processor of this architecture to have, which is slow, and not a device.

    SME is left out, as KVM has none for guests; pointers are signed in a way that is easy to compute.
    """

    cpu = "max,sme=off,pauth-impdef=on"
    devices = ()
    bars = ("4G",)


class Arm64Host(Arm64):
    """The same with QEMU in it, and nothing but devices whose BARs are memory."""

    devices = ()

    def __init__(self, where, built, append="", kvm=False):
        super().__init__(where, built, append, kvm)
        self.shares += [Path(unpacked.ensure(unpacked.ARM64_QEMU)).parent]


class Uml(Machine):
    """The kernel as a host process: no PCI and no IOMMU, but quick."""

    transcript_name = "/dev/tty1"
    memory = 2

    def argv(self, plan, channel):
        init, *arguments = self.runner_words(plan)
        return [
            self.image, f"mem={self.memory}G", "seccomp=on", "ncpus=2",
            "rootfstype=hostfs", "rootflags=/", "ro", "panic=-1",
            "con=null", "con0=null,fd:1", f"con1=null,fd:{channel.fileno()}",
            *shlex.split(self.append), f"init={init}", "--", *arguments,
        ]


class Bochs(Machine):
    """A processor with VMX, two serial ports, and nothing to share files with.

    Its initramfs holds what the plan names, at the same paths as on the host,
    and an init of ours that runs it.
    """

    transcript_name = "/dev/ttyS1"
    memory = 1
    cpus = 2
    kvm_module = "kvm-intel"
    #: The first with posted interrupts.
    cpu = "corei7_icelake_u"
    #: Instructions in a second of the machine's own time, about as many as it executes in one of ours.
    speed = 100_000_000
    # Neither its HPET nor its timer interrupt pass the checks of Linux. Its time stamp counter counts
    # instructions, whatever CPUID says of its frequency.
    parameters = ("console=ttyS0,115200 panic=-1 hpet=disable no_timer_check tsc=reliable "
                  f"tsc_early_khz={speed // 1000} idle=halt nokaslr")
    # On a busy host its seconds are longer than ours.
    patience = 8
    steady = True

    def __init__(self, where, built, append="", kvm=False, init=None):
        if kvm:
            raise ui.StepFailed("Bochs emulates what KVM would need", hint="leave --kvm away")
        super().__init__(where, built, append)
        self.init = init
        self.emulator = bochs.ensure()

    def initramfs(self, plan_file):
        plan = json.loads(plan_file.read_text())
        entries = {"dev": (0o040755, b""), "init": (0o100755, self.init.read_bytes()),
                   "plan.json": (0o100644, plan_file.read_bytes())}
        for path in sorted(_files(plan)):
            for folder in reversed(path.parents[:-1]):
                entries[str(folder.relative_to("/"))] = (0o040755, b"")
            entries[str(path.relative_to("/"))] = (0o100755, path.read_bytes())
        return guest.cpio([(name, *rest) for name, rest in entries.items()])

    def argv(self, plan, channel):
        initramfs = self.initramfs(plan)
        setup, kernel = bochs.split(self.image.read_bytes(), len(initramfs), f"{self.parameters} {self.append}")
        for name, content in (("setup", setup), ("kernel", kernel), ("initramfs", initramfs),
                              ("floppy", bochs.floppy()), ("vga", bochs.vga())):
            (self.where / name).write_bytes(content)
        (self.where / "bochsrc").write_text(f"""\
cpu: model={self.cpu}, count={self.cpus}, ips={self.speed}, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest={self.memory << 10}, host={self.memory << 10}, block_size=8192
romimage: file="{self.emulator.bios}", options=fastboot
vgaromimage: file="vga"
optramimage1: file="setup", address={bochs.SETUP:#x}
optramimage2: file="kernel", address={bochs.KERNEL:#x}
optramimage3: file="initramfs", address={bochs.INITRAMFS:#x}
floppya: 1_44="floppy", status=inserted
boot: floppy
com1: enabled=1, mode=file, dev=/dev/stdout
com2: enabled=1, mode=file, dev=transcript.jsonl
clock: sync=none, time0=1
display_library: nogui
speaker: enabled=0
log: bochs.log
panic: action=fatal
error: action=report
info: action=ignore
debug: action=ignore
""")
        return ["env", "-C", self.where, self.emulator.program, "-q", "-f", "bochsrc"]


class BochsAlone(Bochs):
    """The same with one processor, whose clock counts its instructions and nothing else.

    That of two goes on by half of what both did in turn: a block of instructions of each, or sixteen
    for one that halts.
    """

    cpus = 1


class DebugVm(Vm):
    """The same for a kernel that watches itself, which takes memory, and time most of all."""

    memory = 8
    patience = 8


class DebugUml(Uml):
    memory = 3
    patience = 8


class DebugArm64(Arm64):
    patience = 8


class Kind(NamedTuple):
    """How a machine boots, and the kernel (of kernel.RECIPES) it boots."""

    boot: type
    kernel: str
    # Parameters of that kernel.
    append: str = ""
    # The machine whose tests it runs, if it has none of its own.
    tests: str = ""
    # Whether kmemleak runs, too.
    leaks: bool = False


#: What a kernel must be told to watch, beyond what it is configured to.
WATCHFUL = "panic_on_warn=1 page_poison=1"

#: While Linux identifies the first processor it takes 5-level page tables for off, and KASAN takes
#: what an interrupt touches just then for no memory. On an emulated processor interrupts do come then.
FOUR_LEVELS = "no5lvl"

#: Of the kernel crate's own tests, all of which begin with rust_, one expects spin_lock_irq() to disable
#: interrupts, which PREEMPT_RT does not. None of ours does.
OURS = "kunit.filter_glob=[!r]*"

#: KVM refuses PREEMPT_RT where the TSC may change its rate. An emulated one does not, but QEMU does not say so.
STEADY_TSC = "setcpuid=constant_tsc"

#: By the name tests.toml and the results know them.
MACHINES = {
    "vm": Kind(Vm, "x86_64"),
    "host": Kind(Host, "x86_64"),
    "vm-wire": Kind(WiredVm, "x86_64"),
    "vm-virtio": Kind(VirtioVm, "x86_64"),
    "vm-amd": Kind(AmdVm, "x86_64"),
    "bochs": Kind(Bochs, "x86_64"),
    "bochs-alone": Kind(BochsAlone, "x86_64"),
    "vm-hwdbm": Kind(HwdbmVm, "x86_64"),
    "arm64": Kind(Arm64, "arm64"),
    "arm64-host": Kind(Arm64Host, "arm64"),
    "arm64-icount": Kind(Arm64Counting, "arm64"),
    "arm64-max": Kind(Arm64Max, "arm64", "kvm-arm.mode=nested"),
    "uml": Kind(Uml, "um"),
    "uml-debug": Kind(DebugUml, "um-debug", WATCHFUL, "uml"),
    "vm-debug": Kind(DebugVm, "x86_64-debug", f"{WATCHFUL} {FOUR_LEVELS}", "vm", leaks=True),
    "vm-rt": Kind(DebugVm, "x86_64-rt", f"{WATCHFUL} {OURS} {STEADY_TSC}", "vm"),
    "arm64-debug": Kind(DebugArm64, "arm64-debug", WATCHFUL, "arm64"),
}


def qemu(arch="x86_64"):
    command, _ = host.QEMU[arch]
    found = shutil.which(command)
    if not found:
        raise ui.StepFailed(f"{command} is not installed", hint="run scripts/dev host")
    return found


def kvm_refuses():
    """Why KVM cannot be used, or None. That /dev/kvm exists proves nothing."""
    KVM_CREATE_VM = 0xAE01
    try:
        fd = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.close(fcntl.ioctl(fd, KVM_CREATE_VM, 0))
        finally:
            os.close(fd)
    except OSError as error:
        return f"/dev/kvm: {error.strerror}"
    return None


class _Follower:
    """Reads console and transcript until the machine is gone, or should be."""

    def __init__(self, run, plan, child, console, transcript, on_event, stop, patience):
        self.stop = stop
        self.run = run
        self.child = child
        self.console = console
        self.transcript = transcript.open("rb")
        self.on_event = on_event
        self.patience = patience
        self.limits = {(phase["name"], test["name"]): test["limit"]
                       for phase in plan["phases"] for test in phase["tests"]}
        self.pause = PAUSE_LIMIT + (LEAKS_LIMIT if plan.get("leaks") else 0)
        self.current = None
        self.rest = b""
        self.partial = b""
        self.wait("the first sign of life of the runner", BOOT_LIMIT)

    def wait(self, what, seconds):
        self.due, self.deadline = what, time.monotonic() + seconds * self.patience

    def follow(self):
        pipe = self.child.stdout
        os.set_blocking(pipe.fileno(), False)
        with selectors.DefaultSelector() as selector:
            selector.register(pipe, selectors.EVENT_READ)
            while True:
                ready = selector.select(0.2)
                chunk = os.read(pipe.fileno(), 1 << 16) if ready else None
                if chunk:
                    self.on_console(chunk)
                self.read_transcript()
                if chunk == b"":
                    break
                if self.stop.is_set():
                    self.run.trouble.append("interrupted")
                    return
                if time.monotonic() > self.deadline:
                    self.run.trouble.append(f"hung: waited in vain for {self.due}")
                    return
        # The pipe closes a moment before the process ends.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.child.wait(timeout=GRACE)
        self.read_transcript()

    def on_console(self, chunk):
        self.console.write(chunk)
        self.console.flush()
        *lines, self.partial = (self.partial + chunk).split(b"\n")
        lines = [line.decode(errors="replace").rstrip() for line in lines]
        self.run.tail.extend(lines)
        self.run.complaints.extend(complaints("\n".join(lines)))

    def read_transcript(self):
        *lines, self.rest = (self.rest + self.transcript.read()).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                self.event(json.loads(line))

    def event(self, event):
        kind = event["event"]
        if kind == "start":
            self.run.release = event["release"]
            self.wait("the first test", PAUSE_LIMIT)
        elif kind == "begin":
            self.current = Outcome(event["phase"], event["test"])
            self.run.complaints.clear()
            self.run.outcomes[event["phase"], event["test"]] = self.current
            limit = self.limits.get((event["phase"], event["test"]), 0)
            self.wait(f"the end of test {event['test']}", limit + GRACE)
        elif kind == "output":
            self.current.text += event["text"]
        elif kind == "kernel":
            if self.current:
                self.current.kernel += event["text"] + "\n"
            else:
                self.run.boot_kernel += event["text"] + "\n"
        elif kind == "done":
            self.current.end = event
            self.wait("the next test", self.pause)
        elif kind == "trouble":
            self.run.trouble.append(event["text"])
            self.wait("power-off", OFF_LIMIT)
        elif kind == "end":
            self.run.ended = True
            self.wait("power-off", OFF_LIMIT)
        self.on_event(event)


def _files(plan):
    """Everything in a plan that is the path of a file on the host, wherever it is."""
    if isinstance(plan, dict):
        plan = plan.values()
    elif isinstance(plan, str):
        path = Path(plan)
        return {path} if path.is_absolute() and not path.is_relative_to("/dev") and path.is_file() else set()
    elif not isinstance(plan, list):
        return set()
    return set().union(*map(_files, plan))


def complaints(log):
    return [line for line in log.splitlines() if COMPLAINT.search(line)]


def _end(child):
    """The machine with all its processes, which are a group of their own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()


def _comma(path):
    """A path inside one of QEMU's comma-separated options."""
    return str(path).replace(",", ",,")
