# SPDX-License-Identifier: GPL-2.0
"""Where things are: the checkout, the cache, the toolchain, the venv."""

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import sys
from pathlib import Path

from . import ui

repo = Path(__file__).resolve().parents[2]
out = repo / "build"

#: The kernel series the modules are written for; patches/<series> belongs to it.
SERIES = "7.3"


class Paths:
    """The cache, which lives outside the checkout and survives it."""

    def __init__(self, root):
        self.cache = root
        self.src = root / "src"
        self.kernels = root / "kernels"
        self.venv = root / "venv"
        self.logs = root / "logs"
        self.downloads = root / "downloads"
        self.bindgen = root / "bindgen"
        self.apt = root / "apt"
        self.programs = root / "programs"
        self.sysroots = root / "sysroots"
        self.guests = root / "guests"


def _cache_root():
    if os.environ.get("VKR_CACHE"):
        return Path(os.environ["VKR_CACHE"]).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vfio-kvm-rs"


paths = Paths(_cache_root())


def nproc():
    """CPUs this process may use, which a container often limits."""
    return len(os.sched_getaffinity(0))


@functools.cache
def toolchain():
    """The kernel toolchain; StepFailed if no complete one is installed."""
    from . import toolchain as finder
    return finder.find()


def base_python():
    """The Python below the venv this may be running in."""
    base = Path(sys.base_prefix) / "bin" / "python3"
    return base if base.exists() else Path(sys.executable)


def require_venv(folder=None, wanted=repo / "scripts" / "requirements.txt"):
    """A venv's directory, created or brought up to a file of requirements; the tool's own if none is given."""
    folder = folder or paths.venv
    stamp = folder / ".requirements"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return folder
    with lock("venv"):
        if stamp.exists() and stamp.read_text() == digest:
            return folder
        log = paths.logs / "venv.log"
        python = folder / "bin" / "python3"
        if not python.exists():
            ui.run([base_python(), "-m", "venv", "--clear", folder],
                   title="Create the Python environment", log=log,
                   hint="install the package python3-venv (scripts/dev host does)")
        ui.run([python, "-m", "pip", "install", "--disable-pip-version-check",
                "--quiet", "-r", wanted],
               title=f"Install {wanted.relative_to(repo)}", log=log,
               hint="the package index must be reachable once; pip's usual settings "
                    "(PIP_INDEX_URL, pip.conf) apply")
        stamp.write_text(digest)
    return folder


@contextlib.contextmanager
def lock(name, folder=None):
    """Keeps two runs of this tool from doing the same work in ``folder``, the cache if none is given."""
    folder = folder or paths.cache
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f".{name}.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            ui.note(f"waiting for another run that works on {name}")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def fresh(folder):
    """An empty folder to fill, which becomes ``folder`` if all goes well, and goes if not."""
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
