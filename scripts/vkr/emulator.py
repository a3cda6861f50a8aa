# SPDX-License-Identifier: GPL-2.0
"""A QEMU whose IOMMU sets dirty bits, which none in any distribution does.

It is Debian's with a patch of ours and with nothing in it that the test machine
has not. Its source, what it is linked with and the tools it is built with are
fetched into the cache, where it is built once; nothing is installed. What was
compiled before an interruption is not compiled again.
"""

import re
import shutil

from . import env, host, patched, ui

# The source is of patched.RELEASE. Debian 12 has it, too, as the binary among its backports.
TARGET = "x86_64-softmmu"
PROGRAM = "qemu-system-x86_64"

#: What it is linked with, and what finds that.
PACKAGES = ("libglib2.0-dev", "zlib1g-dev", "pkgconf-bin")

FOLDER = env.repo / "scripts" / "qemu"
PATCHES = ("vtd-ssads.patch",)
DEVICES = "devices.mak"
TOOLS = "requirements.txt"

FEATURES = ("attr", "kvm", "tcg", "virtfs")
OPTIONS = (f"--target-list={TARGET}", "--without-default-features", "--without-default-devices",
           "--with-devices-x86_64=vkr", "--disable-install-blobs", "--disable-docs", "--disable-fdt",
           "--disable-debug-info", "--disable-relocatable", "--disable-werror", "--disable-download", *(f"--enable-{name}" for name in FEATURES))


def ensure():
    """The program, built if it is not in the cache yet."""
    digest = _digest()
    if found := _find(digest):
        return found
    with env.lock("emulator"):
        return _find(digest) or _build(digest)


def _find(digest):
    found = patched.newest(f"qemu-hwdbm_*_{digest}/{PROGRAM}")
    return str(found) if found else None


def _digest():
    files = patched.changes(FOLDER, PATCHES) + [(FOLDER / name).read_text() for name in (DEVICES, TOOLS)]
    return patched.digest("gcc", files=files, options=OPTIONS, packages=PACKAGES, firmware=_firmware())


def _firmware():
    """Where the host's own QEMU has the firmware, which is not built here."""
    from . import machine
    return ui.output([machine.qemu(), "-L", "help"]).split()


def _build(digest):
    patched.need_apt("a QEMU that sets dirty bits is built of")
    # Kept if something fails, to go on from there.
    work = env.paths.programs / f".qemu-hwdbm_{digest}"
    work.mkdir(parents=True, exist_ok=True)
    with ui.step("QEMU with dirty bits"):
        _source(work)
        _libraries(work)
        _compile(work)
        version = (work / "version").read_text()
        folder = env.paths.programs / f"qemu-hwdbm_{version.partition(':')[2] or version}_{digest}"
        with env.fresh(folder) as scratch:
            shutil.move(work / "root", scratch / "root")
            shutil.copy(work / "build" / PROGRAM, scratch)
            ui.output([scratch / PROGRAM, "--version"])
        shutil.rmtree(work)
    return str(folder / PROGRAM)


def _source(work):
    if (work / "source").exists():
        return
    with patched.source("qemu", "QEMU", work, FOLDER, PATCHES, env.paths.logs / "qemu.log", "QEMU 10.0") as scratch:
        shutil.copy(FOLDER / DEVICES, scratch / "configs" / "devices" / TARGET / "vkr.mak")


def _libraries(work):
    """Those of the host's own release, for its C library is used."""
    root = work / "root"
    if root.exists():
        return
    codename = host.distribution().get("VERSION_CODENAME", "")
    apt = host.Apt("qemu-libraries", (codename, f"{codename}-updates"), security=True)
    apt.update("Look for what QEMU is linked with")
    with env.fresh(root) as scratch:
        apt.unpack(apt.libraries(*PACKAGES, development=True), scratch)


def _compile(work):
    log, tools = env.paths.logs / "qemu.log", env.require_venv(work / "tools", FOLDER / TOOLS) / "bin"
    build, libraries = work / "build", next((work / "root").glob("usr/lib/*/pkgconfig")).parent
    behind = libraries.relative_to(work)
    variables = {
        "PKG_CONFIG": str(work / "root/usr/bin/pkgconf"),
        "PKG_CONFIG_LIBDIR": f"{libraries}/pkgconfig:{work}/root/usr/share/pkgconfig",
        "PKG_CONFIG_SYSROOT_DIR": str(work / "root"),
        # pkgconf's own, and those of glib's tools.
        "LD_LIBRARY_PATH": str(libraries),
    }
    if not (build / "build.ninja").exists():
        shutil.rmtree(build, ignore_errors=True)
        build.mkdir()
        ui.run([work / "source" / "configure", f"--python={tools}/python3", f"--ninja={tools}/ninja", "--cc=gcc",
                "--prefix=/usr", f"--firmwarepath={':'.join(_firmware())}",
                f"--extra-ldflags=-L{libraries} -Wl,-rpath-link,{libraries} -Wl,-rpath,$ORIGIN/{behind} "
                # So that it holds for what libraries need, too.
                "-Wl,--disable-new-dtags", *OPTIONS],
               cwd=build, env=variables, title="Configure", log=log)

    def progress(line):
        found = re.match(r"\[(\d+)/(\d+)\]", line)
        return (int(found[1]), int(found[2])) if found else None

    ui.run([tools / "ninja", "-C", build, f"-j{env.nproc()}", PROGRAM], env=variables, title="Compile", log=log,
           progress=progress)
