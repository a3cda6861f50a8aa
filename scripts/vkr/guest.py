# SPDX-License-Identifier: GPL-2.0
"""Guests for the machine that runs guests: a distribution's kernel, an initramfs.

The test kernel is small and has none of what a guest needs to have devices and
memory plugged and unplugged. Users' guests are distributions' kernels anyway.
"""

import lzma
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import env, host, ui

PACKAGE = "linux-image-cloud-amd64"


@dataclass(frozen=True)
class Kernel:
    release: str
    folder: Path

    @property
    def image(self):
        return self.folder / f"vmlinuz-{self.release}"

    @property
    def modules(self):
        return self.folder / "lib" / "modules" / self.release

    def closure(self, names):
        """The files of these modules and all they depend on, in the order of loading."""
        files = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            path, _, needed = line.partition(":")
            files[_module(path)] = (path, needed.split())
        builtin = {_module(path) for path in (self.modules / "modules.builtin").read_text().split()}
        wanted = []
        for name in names:
            if name not in files and name not in builtin:
                raise ui.StepFailed(f"Linux {self.release} has no module {name}",
                                    hint=f"remove {self.folder}: another kernel will be fetched")
            if name in files:
                path, needed = files[name]
                wanted += [*reversed(needed), path]
        return [self.modules / path for path in dict.fromkeys(wanted)]


def _module(path):
    return re.sub(r"\.ko(\.\w+)?$", "", os.path.basename(path)).replace("-", "_")


def kernel():
    """The distribution's kernel for virtual machines, fetched once and unpacked into the cache."""
    if found := _cached():
        return found
    with env.lock("guest-kernel"):
        return _cached() or _fetch()


def _cached():
    found = sorted(env.paths.guests.glob("[!.]*/lib/modules/*/modules.dep"), key=lambda path: path.stat().st_mtime)
    if not found:
        return None
    folder = found[-1].parent
    return Kernel(folder.name, folder.parents[2])


def _fetch():
    codename = host.distribution().get("VERSION_CODENAME", "")
    apt = host.Apt("guest-kernel", (codename, f"{codename}-updates"), security=True)
    apt.update(f"Look for {PACKAGE}")
    package, version = apt.behind(PACKAGE)
    release = package.removeprefix("linux-image-")
    folder = env.paths.guests / release
    with env.fresh(folder) as scratch:
        unpacked = scratch / "unpacked"
        apt.unpack([f"{package}={version}"], unpacked)
        (scratch / "lib").mkdir()
        (unpacked / "lib" / "modules").rename(scratch / "lib" / "modules")
        (unpacked / "boot" / f"vmlinuz-{release}").rename(scratch / f"vmlinuz-{release}")
        shutil.rmtree(unpacked)
        ui.run([host._which("depmod"), "-b", scratch, release], title=f"Look what needs what in {release}",
               log=env.paths.logs / "guest-kernel.log")
    return Kernel(release, folder)


def initramfs(path, init, guest=None, modules=(), programs=(), shell=None):
    """Busybox, the host's or ``shell``, an init script, modules with what they need, and static programs."""
    entries = [("bin", 0o040755, b""), ("bin/busybox", 0o100755, (shell or busybox()).read_bytes()),
               ("bin/sh", 0o120777, b"busybox"), ("init", 0o100755, init.read_bytes()), ("dev", 0o040755, b"")]
    for program in programs:
        entries.append((f"bin/{program.name}", 0o100755, _static(program).read_bytes()))
    if modules:
        files = guest.closure(modules)
        entries.append(("modules", 0o040755, b""))
        entries += [(f"modules/{number:02}-{_module(file)}.ko", 0o100644, _content(file))
                    for number, file in enumerate(files)]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Another run may be booting from it.
    scratch = path.with_suffix(".new")
    scratch.write_bytes(cpio(entries))
    scratch.replace(path)
    return path


def busybox():
    found = shutil.which("busybox")
    if not found:
        raise ui.StepFailed("no busybox is installed", hint="scripts/dev host installs busybox-static")
    return _static(Path(found), "scripts/dev host installs busybox-static")


def _static(path, hint=None):
    # ldd fails for a program without a dynamic linker; the guest has no libraries.
    done = subprocess.run(["ldd", path], capture_output=True, text=True)
    if done.returncode == 0 and "statically linked" not in done.stdout:
        raise ui.StepFailed(f"{path} is not linked statically", hint=hint)
    return path


def _content(path):
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content


def cpio(entries):
    """An archive in the newc format, for (name, mode, content)."""
    out = bytearray()
    for number, (name, mode, content) in enumerate([*entries, ("TRAILER!!!", 0, b"")], 1):
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
        out += b"070701" + b"".join(b"%08x" % field for field in fields) + name.encode() + b"\0"
        out += bytes(-len(out) % 4) + content
        out += bytes(-len(out) % 4)
    return bytes(out)
