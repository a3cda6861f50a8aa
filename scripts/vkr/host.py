# SPDX-License-Identifier: GPL-2.0
"""Host packages: what is missing, and installing it with apt.

This is the only part that needs root. It adds no apt source to the host: a
QEMU that is too old is replaced from the release's backports through a
configuration of our own, see class Apt.
"""

import functools
import os
import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import env, toolchain, ui

QEMU_MINIMUM = "10.0.0"
#: The emulators, by the architecture of the kernel they run, and their packages.
QEMU = {"x86_64": ("qemu-system-x86_64", "qemu-system-x86"), "arm64": ("qemu-system-aarch64", "qemu-system-arm")}

# What apt says is parsed, and a minimal system has no other locale.
_C = {"LC_ALL": "C.UTF-8"}


@dataclass(frozen=True)
class Need:
    """Something the host must have, how to see it, and the package it is in."""
    name: str
    kind: str
    package: str
    what_for: str


NEEDS = (
    Need("make", "command", "make", "every build"),
    Need("gcc", "command", "gcc", "linking host programs"),
    Need("stdio.h", "header", "libc6-dev", "host programs"),
    Need("g++", "command", "g++", "Bochs"),
    Need("flex", "command", "flex", "Kconfig"),
    Need("bison", "command", "bison", "Kconfig"),
    Need("gelf.h", "header", "libelf-dev", "objtool"),
    Need("openssl/evp.h", "header", "libssl-dev", "kernel build"),
    Need("bc", "command", "bc", "kernel build"),
    Need("perl", "command", "perl", "kernel build"),
    Need("cpio", "command", "cpio", "initramfs"),
    Need("zstd", "command", "zstd", "kernel image"),
    Need("xz", "command", "xz-utils", "kernel source"),
    Need("patch", "command", "patch", "patches/"),
    Need("rsync", "command", "rsync", "kernel headers"),
    Need("depmod", "command", "kmod", "modules_install"),
    Need("uuid/uuid.h", "header", "uuid-dev", "VFIO selftests"),
    Need("busybox", "static", "busybox-static", "the demo's guest"),
    Need("ensurepip", "python", "python3-venv", "virtme-ng"),
)

# Package families in order of preference; the first one new enough is taken.
RUST_FAMILIES = (
    ("rustc", "rust-src", "rustfmt", "rust-clippy", "cargo"),
    ("rustc-web", "rust-web-src", "rustfmt-web", "rust-web-clippy", "cargo-web"),
    *((f"rustc-1.{n}", f"rust-1.{n}-src", f"rustfmt-1.{n}", f"rust-1.{n}-clippy", f"cargo-1.{n}")
      for n in range(99, 84, -1)),
)
LLVM_FAMILIES = (
    ("clang", "lld", "llvm", "libclang-dev"),
    *((f"clang-{n}", f"lld-{n}", f"llvm-{n}", f"libclang-{n}-dev")
      for n in range(toolchain.LLVM_NEWEST, toolchain.LLVM_OLDEST - 1, -1)),
)


def args_host(parser):
    parser.add_argument("--list", action="store_true",
                        help="only list what is missing; the exit status is 1 if anything is")


def cmd_host(args):
    if args.list:
        packages = missing_packages()
        for package in packages:
            print(package)
        return 1 if packages else 0
    ensure()


def ensure(*emulated):
    """Installs what is missing, with emulators of more architectures if asked for.

    Does nothing, and needs no root, if all is there.
    """
    if not missing(*emulated):
        ui.info("host packages: all there")
        return
    with env.lock("host"), ui.step("Install host packages"):
        if not shutil.which("apt-get"):
            raise ui.StepFailed(
                "this host has no apt; missing are:\n" +
                "\n".join(f"  {name}: {what}" for name, what in missing(*emulated)),
                hint="install these with your distribution's package manager, then run the "
                     "same command again")
        _privileged(["apt-get", "update", "-q"], "Refresh the package lists")
        packages = missing_packages(*emulated)
        backports = [package for _, package in QEMU.values()
                     if package in packages and not _candidate_ok(package, QEMU_MINIMUM)]
        _install([package for package in packages if package not in backports])
        for package in backports:
            _install_backport(package)
        toolchain._said.cache_clear()
        left = missing(*emulated)
        if left:
            raise ui.StepFailed(
                "still missing after the installation:\n" +
                "\n".join(f"  {name}: {what}" for name, what in left),
                hint="see Documentation/building.md, section Troubleshooting")


def missing(*emulated):
    """(name, what it is needed for or what is wrong) of each unmet need."""
    return [(name, detail) for name, _, _, detail, ok in requirements(*emulated) if not ok]


def missing_packages(*emulated):
    packages = []
    for name, package, _, _, ok in requirements(*emulated):
        if ok:
            continue
        names = package if isinstance(package, str) else _family(*package)
        packages += [names] if isinstance(names, str) else names
    return list(dict.fromkeys(packages))


def requirements(*emulated):
    """Rows of (name, package or family, found, detail, ok) for everything apt provides."""
    for need in NEEDS:
        found = find(need)
        yield need.name, need.package, found or "-", need.what_for, bool(found)
    tools = toolchain.probe()
    for name in ("rustc", "rustfmt", "clippy-driver", "cargo"):
        tool = tools[name]
        yield (name, (RUST_FAMILIES, toolchain.MINIMUM["rustc"]), tool.version or "-",
               tool.problem or tool.need, tool.ok)
    clang = tools["clang"]
    yield ("clang", (LLVM_FAMILIES, clang.minimum), clang.version or "-",
           clang.problem or clang.need, clang.ok)
    bindgen = tools["bindgen"]
    if not bindgen.ok and packaged_bindgen():
        yield "bindgen", "bindgen", bindgen.version or "-", bindgen.problem, False
    for arch in ("x86_64", *emulated):
        command, package = QEMU[arch]
        version, problem = qemu(command)
        yield command, package, version or "-", problem or f"{QEMU_MINIMUM} or newer", problem is None


def packaged_bindgen():
    """Whether apt has a usable one; toolchain.ensure() compiles it otherwise."""
    return _candidate_ok("bindgen", toolchain.MINIMUM["bindgen"])


def find(need):
    """Where a Need was found, or None."""
    if need.kind == "command":
        return _which(need.name)
    if need.kind == "static":
        path = _which(need.name)
        return path if path and _is_static(path) else None
    if need.kind == "python":
        python = env.base_python()
        done = subprocess.run([python, "-c", f"import {need.name}, venv"], capture_output=True)
        return str(python) if done.returncode == 0 else None
    for folder in (Path("/usr/include"), *Path("/usr/include").glob("*-linux-gnu")):
        if (folder / need.name).exists():
            return str(folder / need.name)
    return None


def qemu(command):
    """(version, what is wrong or None) of a QEMU in PATH."""
    path = shutil.which(command)
    if not path:
        return None, f"not found, {QEMU_MINIMUM} or newer is needed"
    version = toolchain._version([path, "--version"])
    if not toolchain.at_least(version, QEMU_MINIMUM):
        return version, f"{path} is {version}, {QEMU_MINIMUM} or newer is needed"
    return version, None


def distribution():
    release = Path("/etc/os-release")
    pairs = (line.split("=", 1) for line in release.read_text().splitlines() if "=" in line)
    return {key: value.strip("\"'") for key, value in pairs}


class Apt:
    """An apt with its own sources, lists and cache; the host's stay as they are.

    Settings such as proxies still come from the host's apt.conf, and the
    mirror from the host's sources, so what works for the host works here.
    With another ``architecture`` it offers packages to unpack, not to install;
    with ``sources`` only what packages are built from.
    """

    def __init__(self, name, suites, security=False, architecture=None, sources=False):
        self.root = env.paths.apt / name
        self.architecture = architecture
        for folder in ("sources", "preferences", "lists/partial", "cache/archives/partial"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        mirror = debian_mirror()
        if not mirror:
            raise ui.StepFailed("the host's apt sources name no Debian mirror")
        repositories = [(mirror, " ".join(suites))]
        if security:
            repositories += [(uri, suite) for label, suite, uri in _repositories()
                             if label == "Debian-Security"]
        signed = ""
        for keyring in ("debian-archive-keyring.pgp", "debian-archive-keyring.gpg"):
            if (path := Path("/usr/share/keyrings") / keyring).exists():
                signed = f"Signed-By: {path}\n"
                break
        (self.root / "sources" / "debian.sources").write_text("\n".join(
            f"Types: {'deb-src' if sources else 'deb'}\nURIs: {uri}\nSuites: {suite}\nComponents: main\n{signed}"
            for uri, suite in repositories))

    @property
    def options(self):
        settings = {
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": self.root / "sources",
            "Dir::Etc::preferences": "/dev/null",
            "Dir::Etc::preferencesparts": self.root / "preferences",
            "Dir::State::lists": self.root / "lists",
            "Dir::Cache": self.root / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        if self.architecture:
            settings |= {"APT::Architecture": self.architecture, "APT::Architectures": self.architecture}
        return [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]

    def update(self, title):
        ui.run(["apt-get", *self.options, "update", "-q", "-o", "APT::Update::Error-Mode=any"],
               title=title, log=env.paths.logs / "apt.log", env=_C)

    def versions(self, package):
        """Offered versions, newest first."""
        shown = _quiet(["apt-cache", *self.options, "madison", package])
        return [row.split("|")[1].strip() for row in shown.splitlines() if row.count("|") >= 2]

    def show(self, package):
        """What apt tells about the newest version, in the format of its lists."""
        return _quiet(["apt-cache", *self.options, "show", "--no-all-versions", package])

    def behind(self, metapackage):
        """(package, version) of what the newest version of a metapackage stands for."""
        found = re.search(r"^Depends: (\S+) \(= (\S+)\)", self.show(metapackage), re.MULTILINE)
        if not found:
            raise ui.StepFailed(f"apt offers no {metapackage}", hint="Debian's archive must be among apt's sources")
        return found[1], found[2]

    def newest(self, prefix):
        """The package called ``prefix`` and a version, such as libfoo-bar23."""
        names = _quiet(["apt-cache", *self.options, "pkgnames", prefix]).split()
        versions = {int(found[1]): name for name in names
                    if (found := re.fullmatch(rf"{re.escape(prefix)}-?(\d+)(?:t64)?", name))}
        if not versions:
            raise ui.StepFailed(f"the archive has no package {prefix}")
        return versions[max(versions)]

    def libraries(self, *packages, development=False):
        """These packages and the libraries they need that the host does not have.

        With ``development`` those the host has, too, and the headers of all: what
        to link with, but for the C library.
        """
        installed = {line.split()[0] for line in _quiet(
            ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"]).splitlines()
            if line.endswith(" installed")}

        def unwanted(name):
            if development:
                return re.match(r"libc\d|libc-|libgcc|libstdc", name)
            return name.endswith("-dev") or name in installed

        wanted, todo = [], list(packages)
        while todo:
            wanted += todo
            shown = _quiet(["apt-cache", *self.options, "depends", "--important", *todo])
            needed = re.findall(r"^\s+\|?(?:Pre)?Depends: ((?:lib|zlib1g)\S*)", shown, re.MULTILINE)
            todo = [name for name in dict.fromkeys(needed) if not unwanted(name) and name not in wanted]
        return wanted

    def source(self, package, root):
        """Adds what the newest version of a package is built from to ``root``, and returns that version.

        Its .dsc is left out: what it says, the archive's signed index says, too.
        """
        kinds = (".orig.tar.xz", ".debian.tar.xz")
        files = self._download(f"the source of {package}", *(
            ["source", "--download-only", only, package] for only in ("--tar-only", "--diff-only")))
        found = {kind: path for kind in kinds for path in files if path.name.endswith(kind)}
        if len(found) != len(kinds):
            raise ui.StepFailed(f"the source of {package} is not in files that end with {', '.join(kinds)}: "
                                f"{', '.join(path.name for path in files)}")
        upstream_tar, debian_tar = found.values()
        version = debian_tar.name.removeprefix(f"{package}_").removesuffix(kinds[1])
        root.mkdir(parents=True, exist_ok=True)
        with ui.step(f"Unpack {package} {version}"):
            ui.output(["tar", "-x", "-C", root, "--strip-components=1", "--no-same-owner", "-f", upstream_tar])
            ui.output(["tar", "-x", "-C", root, "--no-same-owner", "-f", debian_tar])
            patches = root / "debian" / "patches"
            for line in (patches / "series").read_text().splitlines():
                if name := line.partition("#")[0].strip():
                    ui.output(["patch", "-d", root, "-p1", "--batch", "--quiet", "-i", patches / name])
        for path in files:
            path.unlink()
        return version

    def unpack(self, packages, root, dependencies=False, suite=None, left_out=()):
        """Adds the files of packages, each NAME or NAME=VERSION, to ``root``, as if installed there.

        With ``dependencies`` also those of all they depend on, as if nothing
        at all were installed. ``left_out`` are patterns for tar.
        """
        what = " ".join(packages) if len(packages) < 6 else f"{len(packages)} packages"
        if dependencies:
            nothing = self.root / "nothing-installed"
            nothing.write_text("")
            archives = self._download(
                f"{what}, and what is behind", ["install", "--download-only", "-y", "--no-install-recommends",
                "-o", f"Dir::State::status={nothing}", "-o", "Debug::NoLocking=1",
                *(["-t", suite] if suite else []), *packages])
        else:
            archives = self._download(what, ["download", *packages])
        # What one release has in /lib, another has in /usr/lib; on a host both are one.
        for name in ("bin", "lib", "lib64", "sbin"):
            (root / "usr" / name).mkdir(parents=True, exist_ok=True)
            if not (root / name).is_symlink():
                (root / name).symlink_to(f"usr/{name}")
        with ui.step(f"Unpack {len(archives)} package{'s' if len(archives) > 1 else ''}"):
            for archive in archives:
                content = archive.with_suffix(".tar")
                ui.output(["sh", "-c", 'exec dpkg-deb --fsys-tarfile "$1" >"$2"', "sh", archive, content])
                archive.unlink()
                ui.output(["tar", "-x", "-C", root, "--keep-directory-symlink", "--no-same-owner",
                           *(f"--exclude={pattern}" for pattern in left_out), "-f", content])
                content.unlink()

    def _download(self, what, *commands):
        """The files apt-get commands fetch; a lock of the user's keeps others from doing it, too."""
        folder = self.root / "downloads"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "partial").mkdir(parents=True)
        for words in commands:
            ui.run(["apt-get", *self.options, "-o", f"Dir::Cache::archives={folder}", "-q", *words],
                   title=f"Download {what}", log=env.paths.logs / "apt.log", cwd=folder, env=_C)
        return sorted(path for path in folder.iterdir() if path.is_file() and path.name != "lock")


def debian_mirror():
    """The URI of the Debian archive the host is set up for, or None."""
    codename = distribution().get("VERSION_CODENAME", "")
    mirrors = [(suite, uri) for label, suite, uri in _repositories() if label == "Debian"]
    return next((uri for suite, uri in mirrors if suite == codename),
                mirrors[0][1] if mirrors else None)


@functools.cache
def _repositories():
    """(label, suite, URI) of the Debian archives among the host's sources.

    apt itself is asked, for it knows every format of its sources and tells a
    Debian archive by its signed Release file. The host may have no lists yet
    (container images ship without); then they are fetched into our cache.
    """
    lists = env.paths.apt / "host" / "lists"
    own = ["-o", f"Dir::State::lists={lists}", "-o", "APT::Sandbox::User=root",
           "-o", f"Dir::Cache={lists.parent}"]
    found = _index([])
    if not found:
        (lists / "partial").mkdir(parents=True, exist_ok=True)
        found = _index(own)
    if not found:
        _quiet(["apt-get", *own, "update", "-q"])
        found = _index(own)
    return found


def _index(options):
    shown = _quiet(["apt-get", *options, "indextargets",
                    "--format", "$(COMPONENT)|$(LABEL)|$(RELEASE)|$(REPO_URI)",
                    "Created-By: Packages", "Origin: Debian"])
    rows = [line.split("|") for line in shown.splitlines() if line.startswith("main|")]
    return list(dict.fromkeys(tuple(row[1:]) for row in rows))


def _install(packages):
    if not packages:
        return
    ui.info("packages to install:\n  " + " ".join(packages))
    archives = env.paths.apt / "archives"
    (archives / "partial").mkdir(parents=True, exist_ok=True)
    # Own archives: another apt on the host may clean the shared ones under us.
    _privileged(["apt-get", "install", "-y", "-q", "--no-install-recommends",
                 "-o", f"Dir::Cache::archives={archives}", "-o", "APT::Sandbox::User=root",
                 *packages],
                f"Install {len(packages)} packages")
    _discard_archives(archives)


def _install_backport(package):
    codename = distribution().get("VERSION_CODENAME", "")
    backports = f"{codename}-backports"
    apt = Apt("backports", (codename, f"{codename}-updates", backports), security=True)
    apt.update(f"Look into {backports}")
    good = [v for v in apt.versions(package) if toolchain.at_least(upstream(v), QEMU_MINIMUM)]
    if not good:
        raise ui.StepFailed(f"{backports} offers no {package} {QEMU_MINIMUM} or newer",
                            hint=f"install QEMU {QEMU_MINIMUM} or newer and put it first in PATH")
    ui.info(f"packages to install, from {backports}:\n  {package} {good[0]}")
    _privileged(["apt-get", *apt.options, "install", "-y", "-q", "--no-install-recommends",
                 "-t", backports, package],
                f"Install {package} from {backports}")
    _discard_archives(apt.root / "cache" / "archives")


def _discard_archives(folder):
    for deb in folder.glob("*.deb"):
        deb.unlink()


def _privileged(argv, title):
    """Runs apt as root, saying so; once more if it fails, as locks and mirrors pass."""
    argv = ["env", "DEBIAN_FRONTEND=noninteractive", argv[0], "-o", "DPkg::Lock::Timeout=600",
            *argv[1:]]
    if os.geteuid() != 0:
        by_hand = f"run as root: {shlex.join(argv)}"
        if not shutil.which("sudo"):
            raise ui.StepFailed("packages are missing, and there is no sudo", hint=by_hand)
        # A password is asked for here, where the terminal is still the user's.
        if subprocess.run(["sudo", "-v"]).returncode:
            raise ui.StepFailed("packages are missing, and sudo was refused", hint=by_hand)
        argv = ["sudo", "-n", *argv]
    ui.info(f"running: {shlex.join(argv)}")
    log = env.paths.logs / "apt.log"
    try:
        ui.run(argv, title=title, log=log, env=_C)
    except ui.StepFailed:
        ui.run(argv, title=f"{title}, second attempt", log=log, env=_C,
               hint="the host's own package sources must work; try `apt-get update` by hand")


def _family(families, minimum):
    """The packages of the first family apt can install new enough."""
    for family in families:
        if _candidate_ok(family[0], minimum):
            return [package for package in family if _candidate(package)]
    raise ui.StepFailed(f"apt offers no {families[0][0]} {minimum} or newer",
                        hint="see Documentation/building.md, section Other distributions")


def _candidate_ok(package, minimum):
    return toolchain.at_least(upstream(_candidate(package)), minimum)


def _candidate(package):
    shown = _quiet(["apt-cache", "policy", package])
    found = re.search(r"Candidate: (\S+)", shown)
    return found[1] if found and found[1] != "(none)" else None


def upstream(version):
    """The upstream part of a Debian version, as far as it is numeric."""
    if not version:
        return None
    found = re.match(r"(?:\d+:)?(\d+(?:\.\d+)*)", version)
    return found[1] if found else None


def _quiet(argv):
    try:
        return subprocess.run(argv, capture_output=True, text=True,
                              env={**os.environ, **_C}).stdout
    except OSError:
        return ""


def _which(name):
    # Administrators' tools are not in every user's PATH.
    return shutil.which(name, path=os.pathsep.join((*os.get_exec_path(), "/usr/sbin", "/sbin")))


def _is_static(path):
    done = subprocess.run(["ldd", path], capture_output=True, text=True)
    return "not a dynamic" in done.stdout + done.stderr or "statically" in done.stdout
