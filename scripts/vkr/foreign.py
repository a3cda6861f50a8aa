# SPDX-License-Identifier: GPL-2.0
"""`scripts/dev foreign`: VFIO programs that no one here wrote, on both drivers.

They are those at github.com/awilliam/tests: fetched or given, built unchanged
in a copy, run in the VM, and judged by scripts/guest/foreign.py.
"""

import functools
import json
import shutil
import subprocess
from pathlib import Path

from guest import foreign as guest

from . import check, env, machine, report, selftests, setup, ui
from .ktap import FAIL, PASS

URL = "https://github.com/awilliam/tests"
#: What guest/foreign.py was written for; later versions may want other words.
COMMIT = "89361c956cf283af12b6e824ce8a62c8c1815b30"

HINT = f"""fetch it where there is a network and bring it here:
    git clone {URL} DIR
    scripts/dev foreign --checkout DIR"""

#: Programs of that repository that are not run, and why.
LEFT_OUT = {
    "iommufd-pci-device-open": "uses iommufd, not a type1 driver",
    "vfio-noiommu-pci-device-open": "the kernel here is built without no-IOMMU mode, and no type1 driver has a part in it",
    "kvm-huge-guest-test": "KVM's own device assignment has left Linux in 4.12",
    "leaktest-legacy-kvm": "KVM's own device assignment has left Linux in 4.12",
    "intx-race/vfio-kprobe-unmask-always-injects": "a kernel module that changes vfio-pci, not a test",
}


class Machine(machine.Vm):
    """The VM with a BAR of 1 GiB, on a bus that can be reset, and a guest's worth of huge pages."""

    memory = 7
    alone = False
    huge_pages = "hugepagesz=1G hugepages=4 hugepagesz=2M hugepages=128"
    devices = (
        *machine.Vm.devices,
        "-object", "memory-backend-ram,id=pmr,size=1G,share=on",
        # After a reset Linux waits for the link of a faster port, which never comes.
        "-device", "pcie-root-port,id=behind,x-speed=5",
        "-drive", "if=none,id=void,format=raw,file=null-co://",
        # Known by this vendor's id; the other disk has another.
        "-device", "nvme,bus=behind,drive=void,serial=pmr,pmrdev=pmr,use-intel-id=on",
    )


class Racing(Machine):
    """The same whose CPUs run at once, as those of hosts do: a host thread for each."""

    thread = machine.Host.thread
    # CPUs of another would keep them from it.
    alone = True


#: By the names that tests.toml and the results know them by.
MACHINES = {"vm": Machine, "host": Racing}

NEEDS = {"bar-1G": {"device": "8086:5845", "driver": "vfio-pci"}}


def args_foreign(parser):
    parser.description = (f"Builds and runs the VFIO programs at {URL} on the C and on the Rust driver. "
                          "They belong to their authors: nothing of them is a part of this project.")
    parser.add_argument("--checkout", type=Path, metavar="DIR",
                        help=f"take the programs from here; otherwise commit {COMMIT[:12]} is fetched into the cache")
    parser.add_argument("--test", action="append", default=[], metavar="NAME", choices=guest.PROGRAMS,
                        help="only this one; repeatable. There are: " + ", ".join(guest.PROGRAMS))
    parser.add_argument("--driver", action="append", default=[], metavar="NAME",
                        help="only this driver: c or rust; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the table to this file, too")
    parser.add_argument("--kvm", action="store_true", help="let KVM run the VM")


def cmd_foreign(args):
    if args.checkout and not (args.checkout / "vfio-correctness-tests.c").exists():
        raise ui.StepFailed(f"{args.checkout} is no checkout of {URL}", hint=HINT)
    setup.ensure("x86_64")
    checkout = args.checkout.resolve() if args.checkout else fetch()
    commit = identify(checkout)
    built = check._kernel("x86_64")
    names = [name for name in guest.PROGRAMS if name in (args.test or guest.PROGRAMS)]
    folder = build(checkout, built, names)

    description = selftests.Description()
    description.needs.update(NEEDS)
    drivers = args.driver or ["c", "rust"]
    places = selftests.Places(kernel=built.build_dir, modules=check._modules("x86_64"),
                              python=Machine.python)
    found = report.Report()
    with found.stage("foreign") as stage:
        for where, boot in MACHINES.items():
            if members := [test for test in tests(names, folder) if where in test.machines]:
                selftests.run_stage(stage, where, functools.partial(boot, built=built, kvm=args.kvm),
                                    members, drivers, places, description, alone=boot.alone)
        rows = table(names, drivers, stage.results)
    status = found.finish()
    print(f"\n{URL}, {commit}; times are the machine's own and mean nothing but progress\n")
    print(ui.table([[row["name"], *(cell(row[driver]) for driver in drivers)] for row in rows], ["program", *drivers]))
    print("\nnot run:")
    for name, why in LEFT_OUT.items():
        print(f"  {name}: {why}")
    if args.json:
        args.json.write_text(json.dumps({"commit": commit, "programs": rows}, indent="\t") + "\n")
    return status


def fetch():
    """The commit that was looked at, in the cache."""
    folder = env.paths.cache / "foreign" / COMMIT
    if (folder / ".git").exists():
        return folder
    log = env.paths.logs / "foreign.log"
    with env.lock("foreign"), ui.step(f"Fetch {URL}"), env.fresh(folder) as scratch:
        for words in (["init", "-q"], ["fetch", "-q", "--depth", "1", URL, COMMIT], ["checkout", "-q", "FETCH_HEAD"]):
            ui.run(["git", *words], cwd=scratch, title=f"git {words[0]}", log=log, hint=HINT)
    return folder


def identify(checkout):
    """Which version this is, in words; a note if it is not the one that was looked at."""
    asked = subprocess.run(["git", "-C", checkout, "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
                           capture_output=True, text=True)
    commit = asked.stdout.strip() or "no git checkout"
    if commit != COMMIT[:12]:
        ui.note(f"{checkout} is at {commit}; the criteria were written for {COMMIT[:12]}")
    return commit


def build(checkout, kernel, names):
    """The programs, built in a copy against the kernel's own headers."""
    folder = env.out / "foreign"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(checkout, folder, ignore=shutil.ignore_patterns(".git", "*.o"))
    flags = ["-g", "-Wall", "-isystem", str(kernel.build_dir / "usr" / "include")]
    log = env.out / "logs" / "foreign.log"
    paths = dict.fromkeys(guest.PROGRAMS[name].path for name in names)
    for path in paths:
        # Compiled here, or it would be left as it came.
        (folder / path).unlink(missing_ok=True)
    simple = [path for path in paths if "/" not in path]
    if simple:
        ui.run(["make", "-C", folder, "CC=gcc", f"CFLAGS={' '.join(flags)}", *simple],
               title=f"Build {len(simple)} programs", log=log, hint=f"the full log is {log}")
    for path in paths:
        if "/" in path:
            source = folder / f"{path}.c"
            ui.run(["gcc", *flags, *capability_header(folder), "-o", folder / path, source],
                   title=f"Build {path}", log=log, hint=f"the full log is {log}")
    return folder


def capability_header(folder):
    """libcap's header is included by a program that uses nothing of it."""
    header = folder / "stand-in" / "sys" / "capability.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    header.touch()
    return "-idirafter", str(folder / "stand-in")


def tests(names, folder):
    return [selftests.Test(
        name=name, machines=[home(name)], drivers=["c", "rust"], compare=True, needs=["vfio", guest.PROGRAMS[name].device],
        # The one inside ends it, and says so.
        limit=guest.PROGRAMS[name].limit + 120,
        command=["{python}", "-I", "-S", "{repo}/scripts/guest/foreign.py", str(folder), name,
                 f"{{{guest.PROGRAMS[name].device}}}"], settings=guest.PROGRAMS[name].settings) for name in names]


def home(name):
    """The machine that a program runs on."""
    return "host" if guest.PROGRAMS[name].races else "vm"


def table(names, drivers, results):
    """What became of each program with each driver; its status is - if it never ran."""
    rows = []
    for name in names:
        row = {"name": name}
        for driver in drivers:
            parts = [result for result in results if result.suite == f"{home(name)}.{driver}.{name}"]
            ran = [part for part in parts if part.name != "run"]
            row[driver] = {"status": "-", "seconds": None} if not ran else {
                "status": PASS if all(part.status == PASS for part in ran) else FAIL,
                "seconds": round(sum(part.seconds for part in ran))}
        rows.append(row)
    return rows


def cell(result):
    return result["status"] if result["seconds"] is None else f"{result['status']} {ui.duration(result['seconds'])}"
