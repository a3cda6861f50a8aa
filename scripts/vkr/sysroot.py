# SPDX-License-Identifier: GPL-2.0
"""The userland of machines of another architecture, from the distribution's packages.

One tree is both what test programs are linked against and what the machine has
as its /usr. Packages are downloaded and unpacked into the cache; none is
installed, and no program of them runs on this host.
"""

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from . import env, host, toolchain, ui

#: What the machine runs, and what a C program is linked against.
PACKAGES = ("python3", "busybox-static", "libc6-dev", "uuid-dev")

#: Nobody reads these in a test machine.
LEFT_OUT = ("doc", "man", "info", "locale", "lintian")


@dataclass(frozen=True)
class Architecture:
    debian: str
    triple: str

    @property
    def rust_target(self):
        cpu, _, rest = self.triple.partition("-")
        return f"{cpu}-unknown-{rest}"


#: By the name the kernel's Makefiles have for it.
FOREIGN = {"arm64": Architecture("arm64", "aarch64-linux-gnu")}


@dataclass(frozen=True)
class Sysroot:
    """An unpacked userland, and how to build for it."""

    architecture: Architecture
    root: Path

    def cc(self, chain):
        """A C compiler for make's CC=."""
        return f"{chain.clang} --target={self.architecture.triple} --sysroot={self.root}"

    def cargo_env(self, chain):
        """Makes cargo build for this userland, with the compiler the library is of."""
        target = self.architecture.rust_target
        prefix = "CARGO_TARGET_" + target.upper().replace("-", "_")
        link = (f"--target={self.architecture.triple}", f"--sysroot={self.root}", "-fuse-ld=lld")
        flags = ["-Ctarget-feature=+crt-static", *(f"-Clink-arg={word}" for word in link)]
        if (library := _library(self.root, target)).is_dir():
            flags.append(f"-L{library}")
        # Of the two ways to name flags this is the one that allows blanks in paths.
        return {"RUSTC": chain.rustc, "CARGO_BUILD_TARGET": target, f"{prefix}_LINKER": chain.clang,
                "CARGO_ENCODED_RUSTFLAGS": "\x1f".join(flags)}


def ensure(arch):
    """The userland for a kernel architecture; None if programs of the host run there."""
    if arch not in FOREIGN:
        return None
    architecture, chain = FOREIGN[arch], env.toolchain()
    with env.lock(f"sysroot-{arch}"):
        codename = host.distribution().get("VERSION_CODENAME", "")
        said = {"packages": PACKAGES, "left out": LEFT_OUT, "release": codename,
                "rustc": toolchain._first_line([chain.rustc, "--version"])}
        digest = hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]
        root = env.paths.sysroots / f"{arch}-{digest}"
        if not root.exists():
            with ui.step(f"Userland for {arch}"):
                _fetch(architecture, codename, chain, root)
        return Sysroot(architecture, root)


def _fetch(architecture, codename, chain, root):
    if not codename or not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ui.StepFailed(f"the userland for {architecture.debian} consists of packages, and this host has no apt")
    apt = host.Apt(f"{architecture.debian}-{codename}", (codename, f"{codename}-updates"), security=True,
                   architecture=architecture.debian)
    apt.update(f"Look into {codename} for {architecture.debian}")
    left_out = [f"./usr/share/{name}" for name in LEFT_OUT]
    with env.fresh(root) as scratch:
        apt.unpack([*PACKAGES, _libgcc(apt)], scratch, dependencies=True, left_out=left_out)
        if rust := _rust_library(apt, architecture, chain):
            apt.unpack(["=".join(rust)], scratch, left_out=left_out)


def _libgcc(apt):
    """The package of what GCC adds to each program; its name has GCC's version in it."""
    found = re.search(r"^Depends:.*\bgcc-(\d+)", apt.show("gcc"), re.MULTILINE)
    if not found:
        raise ui.StepFailed("apt does not say which GCC is the release's own")
    return f"libgcc-{found[1]}-dev"


def _rust_library(apt, architecture, chain):
    """(package, version) of the standard library, unless rustc has one at hand."""
    wanted = toolchain._version([chain.rustc, "--version"])
    sysroot = Path(toolchain._first_line([chain.rustc, "--print", "sysroot"]))
    if _library(sysroot, architecture.rust_target, "").is_dir():
        return None
    minor = wanted.split(".")[1]
    for package in ("libstd-rust-dev", "libstd-rust-web-dev", f"libstd-rust-1.{minor}-dev"):
        for version in apt.versions(package):
            if host.upstream(version) == wanted:
                return package, version
    raise ui.StepFailed(
        f"apt offers no standard library of rustc {wanted} for {architecture.rust_target}",
        hint=f"take a rustc of the distribution, or `rustup target add {architecture.rust_target}`")


def _library(root, target, usr="usr"):
    return root / usr / "lib" / "rustlib" / target / "lib"
