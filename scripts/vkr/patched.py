# SPDX-License-Identifier: GPL-2.0
"""Programs that are built of Debian's source with patches of ours, once, in the cache."""

import contextlib
import hashlib
import json
import shutil

from . import env, host, toolchain, ui

#: The release sources are of, whatever the host's.
RELEASE = "trixie"


def newest(pattern):
    """The newest of the files in the cache's programs, whatever version the archive has by now; or None."""
    found = {toolchain._key(host.upstream(path.parent.name.partition("_")[2])): path
             for path in env.paths.programs.glob(pattern)}
    return found[max(found)] if found else None


def changes(folder, patches):
    """What patches change; what they say before their first file is for readers."""
    return [(folder / name).read_text().partition("\n--- a/")[2] for name in patches]


def digest(compiler, **said):
    """Stands for all that a build depends on: what is said, and the host."""
    said |= {"release": host.distribution().get("VERSION_CODENAME", ""),
             "compiler": toolchain._first_line([host._which(compiler), "--version"])}
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:12]


def need_apt(what):
    if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
        raise ui.StepFailed(f"{what} Debian's, and this host has no apt to get it with")


@contextlib.contextmanager
def source(package, title, work, folder, patches, log, made_for):
    """``work``/source with our patches, for the caller to add to; its version is in ``work``/version then."""
    apt = host.Apt(f"{package}-source", (RELEASE, f"{RELEASE}-updates"), sources=True)
    apt.update(f"Look for the source of {title}")
    with env.fresh(work / "source") as scratch:
        version = apt.source(package, scratch)
        for name in patches:
            ui.run(["patch", "-d", scratch, "-p1", "--batch", "-i", folder / name], title=f"Apply {name}",
                   log=log, hint=f"it is for {made_for} and has to be adapted to {version}")
        yield scratch
        (work / "version").write_text(version)
