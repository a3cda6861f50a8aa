# SPDX-License-Identifier: GPL-2.0
"""What is needed, what was found, and what to do about the difference."""

import json
import os
import shutil
from dataclasses import asdict, dataclass

from . import env, host, kernel, source, toolchain, ui

DISK_GB = 8


@dataclass
class Row:
    name: str
    found: str
    needed: str
    state: str  # ok, missing, or optional: absent and not needed
    todo: str = ""


def args_doctor(parser):
    parser.add_argument("--json", action="store_true", help="as a JSON list")


def cmd_doctor(args):
    rows = list(diagnose())
    if args.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print(ui.table(([r.name, r.found, r.needed, r.state, r.todo] for r in rows),
                       header=("what", "found", "needed", "state", "what to do")))
    return 1 if any(row.state == "missing" for row in rows) else 0


def diagnose():
    for name, _, found, detail, ok in host.requirements():
        yield _row(name, found, detail, ok, "scripts/dev host")
    tool = toolchain.probe()["bindgen"]
    if tool.ok or not host.packaged_bindgen():
        yield _row("bindgen", tool.version, tool.problem or tool.need, tool.ok,
                   "scripts/dev setup compiles one")
    ready = (env.paths.venv / ".requirements").exists()
    yield _row("virtme-ng", env.paths.venv if ready else None, "for the PCI machine", ready,
               "scripts/dev setup")
    tree = source.prepared()
    yield _row("kernel source", tree and f"{tree.version} ({tree.dir})",
               f"{env.SERIES}.y", tree, "scripts/dev source, or set KERNEL_SRC=")
    for machine in kernel.USUAL:
        built = _built(machine)
        yield _row(f"kernel {machine}", built and built.build_dir, "built for this checkout",
                   built, f"scripts/dev kernel {machine}")
    free = _free_gb(env.paths.cache)
    yield _row("disk space", f"{free} GB in {env.paths.cache}", f"{DISK_GB} GB if nothing is built",
               free >= DISK_GB or _built("x86_64"), "free some, or set VKR_CACHE=")
    yield _optional("/dev/kvm", os.access("/dev/kvm", os.R_OK | os.W_OK) and "accessible, not tried",
                    "faster test machine")
    yield _optional("cargo-nextest", shutil.which("cargo-nextest"), "nicer host test output")


def _row(name, found, needed, ok, todo):
    return Row(name, str(found or "-"), needed, "ok" if ok else "missing", "" if ok else todo)


def _optional(name, found, use):
    return Row(name, str(found or "-"), use, "ok" if found else "optional")


def _built(machine):
    try:
        return kernel.find(machine)
    except ui.StepFailed:
        # Without a toolchain there is no key; the tool's own row says so.
        return None


def _free_gb(path):
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free >> 30
