# SPDX-License-Identifier: GPL-2.0
"""The kernel source: a user's tree or tarball, Debian's package, or kernel.org's.

Whatever was taken once is kept, so that later runs are reproducible and need
no network; ``scripts/dev source --update`` looks for a newer release.
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from . import env, host, ui

PACKAGE = f"linux-source-{env.SERIES}"
SUITES = ("trixie-backports", "trixie", "forky", "sid", "bookworm-backports")
KERNEL_ORG = f"https://cdn.kernel.org/pub/linux/kernel/v{env.SERIES.split('.')[0]}.x/"
TIMEOUT = 60

_patches = env.repo / "patches" / env.SERIES
_record = env.paths.downloads / f"source-{env.SERIES}.json"


@dataclass(frozen=True)
class Source:
    """A tree ready to be built from, with O= elsewhere."""
    dir: Path
    version: str
    origin: str
    patches: str

    def identity(self):
        """What a kernel built from it depends on."""
        return {"version": self.version, "origin": self.origin, "patches": self.patches}


def args_source(parser):
    parser.add_argument("--source", metavar="TREE|TARBALL",
                        help="use this instead of downloading (same as KERNEL_SRC=)")
    parser.add_argument("--update", action="store_true",
                        help=f"look for a newer {env.SERIES}.y than the one in the cache")


def cmd_source(args):
    print(ensure(args.source, update=args.update).dir)


def ensure(given=None, update=False):
    """The source, unpacked and patched."""
    given = given or os.environ.get("KERNEL_SRC")
    with env.lock("source"):
        if given:
            given = Path(given).absolute()
            if given.is_dir():
                return _from_tree(given)
            if not given.is_file():
                raise ui.StepFailed(f"{given}: no such kernel tree or tarball",
                                    hint="correct KERNEL_SRC= or --source")
            return _from_tarball(given, f"sha256:{_sha256(given)}")
        recorded = _recorded()
        if recorded and not update:
            return _from_tarball(*recorded)
        return _from_tarball(*_download(recorded))


def prepared(given=None):
    """The source if ensure() would have nothing left to do, else None."""
    given = given or os.environ.get("KERNEL_SRC")
    if given:
        given = Path(given).absolute()
        if given.is_dir() and not _series():
            return _from_tree(given)
        identity = f"tree:{given}" if given.is_dir() else \
            f"sha256:{_sha256(given)}" if given.is_file() else None
    else:
        recorded = _recorded()
        identity = recorded and recorded[1]
    return _find_tree(identity) if identity else None


def _recorded():
    try:
        record = json.loads(_record.read_text())
    except (OSError, ValueError):
        return None
    tarball = env.paths.downloads / record["tarball"]
    return (tarball, record["origin"]) if tarball.exists() else None


def _download(recorded):
    env.paths.downloads.mkdir(parents=True, exist_ok=True)
    with ui.step(f"Fetch the Linux {env.SERIES} source"):
        found = _from_debian() or _from_kernel_org()
    if not found:
        if recorded:
            ui.warn("no archive could be reached; staying with the source in the cache")
            return recorded
        raise ui.StepFailed(
            f"neither a Debian mirror nor kernel.org gave a Linux {env.SERIES} source",
            log=env.paths.logs / "apt.log",
            hint=f"download linux-{env.SERIES}.y yourself and pass it with KERNEL_SRC=<tree or tarball>")
    tarball, origin = found
    if recorded and recorded[0] != tarball:
        recorded[0].unlink()
    _write(_record, json.dumps({"tarball": tarball.name, "origin": origin}, indent=1) + "\n")
    return found


def _from_debian():
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        return None
    if not host.debian_mirror():
        ui.info("this host uses no Debian mirror")
        return None
    # One suite at a time: one that this host's keyring cannot verify, or that
    # the mirror lacks, then says nothing about the others.
    for suite in SUITES:
        apt = host.Apt(suite, [suite])
        try:
            apt.update(f"Look into {suite}")
        except ui.StepFailed:
            continue
        for version in apt.versions(PACKAGE)[:1]:
            tarball = env.paths.downloads / f"{PACKAGE}_{version.replace(':', '_')}.tar.xz"
            if not tarball.exists():
                with tempfile.TemporaryDirectory(dir=tarball.parent) as scratch:
                    apt.unpack([f"{PACKAGE}={version}"], Path(scratch))
                    Path(scratch, "usr", "src", f"{PACKAGE}.tar.xz").rename(tarball)
            return tarball, f"{PACKAGE} {version}"
    return None


def _from_kernel_org():
    with ui.step("Look into kernel.org"):
        try:
            sums = _get(KERNEL_ORG + "sha256sums.asc").decode()
        except (OSError, ValueError) as error:
            ui.info(f"not reachable: {error}")
            return None
    offered = re.findall(rf"^([0-9a-f]{{64}})  (linux-({re.escape(env.SERIES)}(?:\.\d+)?)\.tar\.xz)$",
                         sums, re.MULTILINE)
    if not offered:
        return None
    digest, name, version = max(offered, key=lambda row: [int(n) for n in row[2].split(".")])
    tarball = env.paths.downloads / name
    if not tarball.exists():
        with ui.step(f"Download {name}"):
            partial = tarball.with_suffix(".partial")
            try:
                _fetch(KERNEL_ORG + name, partial)
            except OSError as error:
                raise ui.StepFailed(f"downloading {name} failed: {error}",
                                    hint="run the same command again")
            if _sha256(partial) != digest:
                partial.unlink()
                raise ui.StepFailed(f"{name} does not have the checksum kernel.org lists",
                                    hint="run the same command again")
            partial.rename(tarball)
    return tarball, f"kernel.org {version}"


def _from_tree(tree):
    version = _check_version(tree)
    if not _series():
        return Source(tree, version, f"tree:{tree}", _patches_digest())
    identity = f"tree:{tree}"
    ready = _find_tree(identity)
    if ready:
        return ready
    with _new_tree(identity) as partial:
        ui.run(["sh", "-c", 'tar -C "$1" --exclude=./.git -cf - . | tar -C "$2" -xf -', "sh",
                tree, partial],
               title=f"Copy {tree}", log=env.paths.logs / "source.log")
        _apply(partial)
    return _find_tree(identity)


def _from_tarball(tarball, identity):
    ready = _find_tree(identity)
    if ready:
        return ready
    with _new_tree(identity) as partial:
        ui.run(["tar", "-C", partial, "--strip-components=1", "-xf", tarball],
               title=f"Unpack {tarball.name}", log=env.paths.logs / "source.log",
               env={"XZ_OPT": "-T0"},
               hint=f"if the file is damaged, remove it and run the same command again: {tarball}")
        _check_version(partial)
        _apply(partial)
    return _find_tree(identity)


@contextlib.contextmanager
def _new_tree(identity):
    """A folder that becomes a tree of the cache only if all went well."""
    partial = env.paths.src / f"{_short(identity)}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    version = _check_version(partial)
    final = env.paths.src / f"linux-{version}-{_short(identity)}"
    _write(final.with_name(final.name + ".json"),
           json.dumps({"version": version, "origin": identity}, indent=1) + "\n")
    partial.rename(final)


def _find_tree(identity):
    for stamp in env.paths.src.glob(f"linux-*-{_short(identity)}.json"):
        tree = stamp.with_suffix("")
        if tree.is_dir():
            return Source(tree, json.loads(stamp.read_text())["version"], identity,
                          _patches_digest())
    return None


def _short(identity):
    return hashlib.sha256(f"{identity}\n{_patches_digest()}".encode()).hexdigest()[:8]


def _series():
    """(patch, strip level) in quilt's order."""
    entries = []
    for line in (_patches / "series").read_text().splitlines():
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        patch = _patches / words[0]
        if not patch.is_file():
            raise ui.StepFailed(f"{_patches / 'series'} lists {words[0]}, which does not exist",
                                hint="add the patch or remove the line")
        entries.append((patch, words[1] if len(words) > 1 else "-p1"))
    return entries


def _patches_digest():
    digest = hashlib.sha256()
    for patch, strip in _series():
        digest.update(f"{patch.name} {strip}\n".encode())
        digest.update(patch.read_bytes())
    return digest.hexdigest()[:16]


def _apply(tree):
    log = env.paths.logs / "patches.log"
    for patch, strip in _series():
        ui.run(["patch", "-d", tree, strip, "--forward", "--no-backup-if-mismatch",
                "-r", "-", "-i", patch],
               title=f"Apply {patch.name}", log=log,
               hint=f"refresh {patch} for this kernel version; see patches/README.md")


def _check_version(tree):
    makefile = Path(tree) / "Makefile"
    try:
        head = makefile.read_text(errors="replace")[:400]
    except OSError:
        raise ui.StepFailed(f"{tree} is no kernel source: it has no Makefile",
                            hint="correct KERNEL_SRC= or --source")
    fields = dict(re.findall(r"^(VERSION|PATCHLEVEL|SUBLEVEL|EXTRAVERSION) *= *(\S*)$",
                             head, re.MULTILINE))
    if not fields.get("VERSION"):
        raise ui.StepFailed(f"{tree} is no kernel source: its Makefile has no VERSION",
                            hint="correct KERNEL_SRC= or --source")
    series = f"{fields['VERSION']}.{fields['PATCHLEVEL']}"
    version = f"{series}.{fields['SUBLEVEL']}{fields['EXTRAVERSION']}"
    if series != env.SERIES:
        raise ui.StepFailed(f"{tree} is Linux {version}; these modules are for {env.SERIES}.y",
                            hint=f"give a {env.SERIES}.y tree or tarball")
    return version


def _get(url):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
        return answer.read()


def _fetch(url, path):
    with urllib.request.urlopen(url, timeout=TIMEOUT) as answer, path.open("wb") as out:
        shutil.copyfileobj(answer, out, 1 << 20)


def _sha256(path):
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _write(path, text):
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    partial.rename(path)
