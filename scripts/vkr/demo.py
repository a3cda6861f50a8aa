# SPDX-License-Identifier: GPL-2.0
"""`scripts/dev demo`: an unmodified QEMU passes a disk through, before your eyes."""

import hashlib
import time

from . import check, env, guest, machine, report, selftests, setup, ui

LIMIT = 600
REPORTS = {"rust": "/sys/kernel/debug/vfio_type1_rs/containers", "c": "-"}

LABELS = {"module": "module", "device": "device", "qemu": "QEMU", "guest": "guest", "container": "",
          "rmmod": "rmmod", "interrupts": "interrupts", "sha256": "guest read", "console": "console"}


def args_demo(parser):
    parser.add_argument("--driver", choices=REPORTS, default="rust",
                        help="which type1 driver serves QEMU (default: rust)")


def cmd_demo(args):
    began = time.monotonic()
    setup.ensure("x86_64")
    description = selftests.Description()
    built = check._kernel("x86_64")
    places = selftests.Places(kernel=built.build_dir, python=machine.Host.python,
                              modules=check._modules("x86_64") if args.driver == "rust" else "")
    initramfs = guest.initramfs(env.out / "machine" / "demo.cpio", env.repo / "scripts" / "guest" / "demo-init")
    module = selftests._module_name(description.drivers[args.driver]["path"])
    test = selftests.Test(
        name="demo", machines=["host"], drivers=[args.driver], needs=["vfio", "kvm", "nvme"], limit=LIMIT,
        command=["{python}", "-I", "-S", "{repo}/scripts/guest/demo.py", machine.qemu(),
                 str(built.image), str(initramfs), "{nvme}", module, REPORTS[args.driver]])
    vm = machine.Host(report.results / "demo", built)
    plan = selftests.plan(description, "host", [test], [args.driver], places)

    show = Show()
    show.line("test machine", f"emulated q35, Intel IOMMU, {vm.cpus} CPUs, {vm.memory} GiB")
    show.line("disk", f"NVMe, {machine.DISK_BYTES >> 20} MiB of random bytes")
    wanted = hashlib.sha256(vm.disk().read_bytes()).hexdigest()
    run = vm.run(plan, show.event)

    problems = judge(run, show.facts, args.driver, module, wanted)
    print()
    for problem in problems:
        print(f"NOT SO: {problem}")
    if problems:
        print(f"console of the test machine: {run.console}")
    else:
        print(f"The guest read through {module} what the disk holds: sha256 {wanted[:16]}…")
    seconds = ui.duration(time.monotonic() - began)
    print(f"demo {'failed' if problems else 'passed'} in {seconds}")
    return 1 if problems else 0


class Show:
    """Prints what the machine tells, as it comes, and keeps it by topic."""

    def __init__(self):
        self.facts = {}
        self.rest = ""
        self.last = None

    def line(self, label, text):
        shown = "" if label == self.last else label
        self.last = label
        print(f"{shown:>14}  {text}", flush=True)

    def event(self, event):
        kind = event["event"]
        if kind == "start":
            self.line("kernel", f"Linux {event['release']}, up after {event['uptime']:.1f} s")
        elif kind == "output" and event["test"] == "demo":
            *lines, self.rest = (self.rest + event["text"]).split("\n")
            for line in lines:
                topic, tab, text = line.partition("\t")
                if not tab:
                    topic, text = "console", line
                self.facts.setdefault(topic, []).append(text)
                if topic in LABELS:
                    self.line(LABELS[topic], text.replace("\t", "  "))
        elif kind == "done" and event["test"] == "module":
            self.line("rmmod", "the module is asked to go, now that nobody uses it")


def judge(run, facts, driver, module, wanted):
    """All that was not as it should be."""
    problems = list(run.trouble)
    for key, outcome in run.outcomes.items():
        for leaf in selftests.judge(outcome, run):
            # The demonstration prints no results of its own.
            if leaf.status == "pass" or (key[1], leaf.name) == ("demo", "results"):
                continue
            problems.append(f"{leaf.name}: {leaf.detail}")
    if not run.outcomes:
        problems.append("nothing ran")
    got = facts.get("sha256", ["nothing"])[-1]
    if got != wanted:
        problems.append(f"the guest read {got}, the disk holds {wanted}")
    if facts.get("rmmod") != ["refused while in use"]:
        problems.append("the module did not refuse to go while in use")
    if int(facts.get("interrupts", ["0"])[-1]) == 0:
        problems.append("the disk raised no interrupt in the guest")
    if driver == "rust":
        container = "\n".join(facts.get("container", []))
        if f"driver: {module}" not in container:
            problems.append(f"no container says that {module} serves it")
        if "mapping " not in container:
            problems.append("the container has no mapping while the guest runs")
    return problems
