# SPDX-License-Identifier: GPL-2.0
"""Programs newer than the host's, from another Debian release, beside the host's own.

A package and all it depends on, down to the C library, are unpacked into the
cache; the program is started by the loader that came with it. Nothing is
installed, what the host has stays in use for everything else, and root is not
needed.
"""

import shutil
from dataclasses import dataclass

from . import env, host, toolchain, ui

MARK = "run"

#: Debian's names.
ARCHITECTURES = {"aarch64-linux-gnu": "arm64"}


@dataclass(frozen=True)
class Program:
    command: str
    package: str
    minimum: str
    # Where it is offered: the release, and a suite of it that is preferred.
    release: str
    suite: str
    # What it has to be told because it is not where it expects to be; $root is
    # where the packages are unpacked.
    arguments: tuple = ()
    environment: tuple = ()
    # Not the host's: of a machine, whose only shell is /busybox.
    foreign: bool = False
    triple: str = "x86_64-linux-gnu"
    loader: str = "lib64/ld-linux-x86-64.so.2"


#: The first QEMU whose amd-iommu translates DMA so that Linux 7.3 accepts it.
QEMU = Program(
    "qemu-system-x86_64", "qemu-system-x86", "11.1.0", "trixie", "trixie-backports",
    ("-L", "$root/usr/share/qemu", "-L", "$root/usr/share/seabios"),
    (("QEMU_MODULE_DIR", "$root/usr/lib/x86_64-linux-gnu/qemu"),))

#: For guests of the arm64 machine. From 9.2 on QEMU maps BARs to addresses that suit large blocks.
ARM64_QEMU = Program(
    "qemu-system-aarch64", "qemu-system-arm", "10.0.0", "trixie", "trixie", ("-L", "$root/usr/share/qemu"),
    (("QEMU_MODULE_DIR", "$root/usr/lib/aarch64-linux-gnu/qemu"),),
    foreign=True, triple="aarch64-linux-gnu", loader="lib/ld-linux-aarch64.so.1")


def ensure(program):
    """The command to run: the host's if it is new enough, or else one in the cache."""
    if not program.foreign and (installed := _installed(program)):
        return installed
    if found := _find(program):
        return found
    with env.lock("programs"):
        return _find(program) or _fetch(program)


def _installed(program):
    path = shutil.which(program.command)
    if path and toolchain.at_least(toolchain._version([path, "--version"]), program.minimum):
        return path
    return None


def _find(program):
    """The newest in the cache that will do, or None."""
    found = {}
    for start in env.paths.programs.glob(f"{program.package}_*/{MARK}"):
        version = host.upstream(start.parent.name.partition("_")[2])
        if toolchain.at_least(version, program.minimum):
            found[toolchain._key(version)] = start
    return str(found[max(found)]) if found else None


def _fetch(program):
    try:
        return _fetch_from_release(program)
    except ui.StepFailed as failure:
        failure.hint = failure.hint or f"put a {program.command} {program.minimum} or newer first in PATH"
        raise


def _fetch_from_release(program):
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ui.StepFailed(f"{program.command} {program.minimum} is needed, and this host has no apt to get it with")
    architecture = ARCHITECTURES[program.triple] if program.foreign else None
    apt = host.Apt(f"{program.release}-{architecture or 'programs'}",
                   dict.fromkeys((program.release, f"{program.release}-updates", program.suite)),
                   architecture=architecture)
    apt.update(f"Look into {program.suite}")
    offered = apt.versions(program.package)
    good = [version for version in offered if toolchain.at_least(host.upstream(version), program.minimum)]
    if not good:
        raise ui.StepFailed(
            f"{program.suite} no longer offers {program.package} {program.minimum} or newer; "
            f"it has {', '.join(offered) or 'none'}")

    version = good[0]
    folder = env.paths.programs / f"{program.package}_{version.partition(':')[2] or version}"
    with env.fresh(folder) as scratch:
        apt.unpack([f"{program.package}={version}"], scratch / "root", dependencies=True, suite=program.suite)
        _write_start(program, scratch / MARK)
        if not program.foreign:
            ui.output([scratch / MARK, "--version"])
    return str(folder / MARK)


def _write_start(program, path):
    """A script, because a loader that is started by name needs to be told everything."""
    if program.foreign:
        lines = ["#!/busybox sh", "root=${0%/*}/root"]
    else:
        lines = ["#!/bin/sh", 'root=$(dirname "$(readlink -f "$0")")/root']
    lines += [f'export {name}="{value}"' for name, value in program.environment]
    arguments = ("--library-path", f"$root/usr/lib/{program.triple}", f"$root/usr/bin/{program.command}",
                 *program.arguments, "$@")
    lines.append(f'exec "$root/usr/{program.loader}" ' + " ".join(f'"{word}"' for word in arguments))
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
