# SPDX-License-Identifier: GPL-2.0
"""Bochs, the one emulator of a processor with VMX and posted interrupts.

It is Debian's with two patches of ours and little in it beside the processor.
Its source and its BIOS are fetched into the cache, where it is built once;
nothing is installed.

There is no boot loader: Bochs itself loads the kernel into memory, and what
boots it, from a floppy disk, are twenty-five bytes.
"""

import re
import shutil
import struct
from dataclasses import dataclass
from pathlib import Path

from . import env, host, patched, ui

# Source and BIOS are of patched.RELEASE: Debian 12 has an older Bochs without posted interrupts.
PROGRAM = "bochs"
BIOS = "BIOS-bochs-latest"

FOLDER = env.repo / "scripts" / "bochs"
PATCHES = ("vmx-interrupts.patch", "ram-images.patch")

OPTIONS = (
    "--enable-smp", "--enable-x86-64", "--enable-cpu-level=6", "--enable-vmx=2", "--enable-svm", "--enable-avx",
    "--enable-evex", "--enable-long-phy-address", "--enable-all-optimizations", "--enable-pci", "--with-nogui",
    "--without-x", "--disable-plugins", "--disable-docbook", "--disable-readline",
)
FLAGS = "-O2"
#: Lines of make's output that tell of a compiled file.
FILES = 440


@dataclass(frozen=True)
class Emulator:
    folder: Path

    @property
    def program(self):
        return self.folder / PROGRAM

    @property
    def bios(self):
        return self.folder / BIOS


def ensure():
    """The emulator, built if it is not in the cache yet."""
    digest = _digest()
    if found := _find(digest):
        return found
    with env.lock("bochs"):
        return _find(digest) or _build(digest)


def _find(digest):
    found = patched.newest(f"bochs_*_{digest}/{PROGRAM}")
    return Emulator(found.parent) if found else None


def _digest():
    return patched.digest("g++", patches=patched.changes(FOLDER, PATCHES), options=OPTIONS, flags=FLAGS)


def _build(digest):
    patched.need_apt("Bochs is built of")
    # Kept if something fails, to go on from there.
    work = env.paths.programs / f".bochs_{digest}"
    work.mkdir(parents=True, exist_ok=True)
    with ui.step("Bochs with VMX"):
        _source(work)
        _bios(work)
        _compile(work / "source")
        folder = env.paths.programs / f"bochs_{(work / 'version').read_text()}_{digest}"
        with env.fresh(folder) as scratch:
            shutil.copy(work / "source" / PROGRAM, scratch)
            shutil.copy(work / "bios" / "usr" / "share" / "bochs" / BIOS, scratch)
        shutil.rmtree(work)
    return Emulator(folder)


def _source(work):
    if not (work / "source").exists():
        with patched.source("bochs", "Bochs", work, FOLDER, PATCHES, env.paths.logs / "bochs.log", "Bochs 3.0"):
            pass


def _bios(work):
    """Its machine code is the same everywhere, so the package is not one of the host's release."""
    if (root := work / "bios").exists():
        return
    apt = host.Apt("bochs-bios", (patched.RELEASE, f"{patched.RELEASE}-updates"))
    apt.update("Look for the BIOS of Bochs")
    with env.fresh(root) as scratch:
        apt.unpack(["bochsbios"], scratch)


def _compile(source):
    log = env.paths.logs / "bochs.log"
    # Debian's patches touch what configure is made of, but not what matters here.
    variables = {"CC": "gcc", "CXX": "g++", "CFLAGS": FLAGS, "CXXFLAGS": FLAGS}
    if not (source / "config.status").exists():
        ui.run([source / "configure", *OPTIONS], cwd=source, env=variables, title="Configure", log=log)
    compiled = sum(1 for _ in source.rglob("*.o"))

    def progress(line):
        nonlocal compiled
        compiled += bool(re.match(r"(g\+\+|gcc) -c ", line))
        return compiled, FILES

    ui.run(["make", "-C", source, f"-j{env.nproc()}", PROGRAM], env=variables, title="Compile", log=log,
           progress=progress)


# Booting.

#: Where Linux's boot protocol wants its real-mode part, with the stack below the command line.
SETUP = 0x90000
COMMAND_LINE = 0xE000
#: Here the BIOS puts what it starts the other processors with.
SETUP_END = 0xF000
KERNEL = 0x100000
INITRAMFS = 0x10000000

#: cli; all data segments and the stack to SETUP; jmp into the real-mode part.
JUMP = bytes.fromhex("fa b80090 8ed8 8ec0 8ee0 8ee8 8ed0 bc00e0 ea00002090")
#: A BIOS extension without any code but for a return: Bochs insists on a VGA BIOS.
NO_VGA = bytes.fromhex("55aa01cb")

FLOPPY_BYTES = 1440 << 10
ROM_BYTES = 512


def floppy():
    return (JUMP.ljust(510, b"\0") + b"\x55\xaa").ljust(FLOPPY_BYTES, b"\0")


def vga():
    rom = NO_VGA.ljust(ROM_BYTES - 1, b"\0")
    return rom + bytes([-sum(rom) & 0xFF])


def split(image, initramfs_bytes, command_line):
    """A bzImage's part for real mode, with what a boot loader puts into it, and the rest."""
    if image[0x202:0x206] != b"HdrS":
        raise ui.StepFailed("the kernel is no bzImage")
    size = ((image[0x1F1] or 4) + 1) * 512
    setup = bytearray(image[:size])
    line = command_line.encode() + b"\0"
    if size > COMMAND_LINE or COMMAND_LINE + len(line) > SETUP_END:
        raise ui.StepFailed("the kernel's real-mode part or its command line is too long")
    put = struct.pack_into
    put("<H", setup, 0x1FA, 0xFFFF)                  # vid_mode: leave it alone
    put("<B", setup, 0x210, 0xFF)                    # type_of_loader: none that is known
    setup[0x211] |= 0x80                             # loadflags: there is a heap,
    put("<H", setup, 0x224, COMMAND_LINE - 0x200)    # heap_end_ptr: up to here
    put("<II", setup, 0x218, INITRAMFS, initramfs_bytes)
    put("<I", setup, 0x228, SETUP + COMMAND_LINE)
    return bytes(setup).ljust(COMMAND_LINE, b"\0") + line, image[size:]
