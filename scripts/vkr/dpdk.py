# SPDX-License-Identifier: GPL-2.0
"""The distribution's DPDK, for the test that runs it unmodified.

It is unpacked into the cache, not installed: its development package, which
has the program, would bring a hundred more with headers nobody needs here.
"""

import shutil
import subprocess
from pathlib import Path

from . import env, host, ui

#: Packages with the program and the drivers; the latter's names end in a version.
PROGRAM = "dpdk-dev"
DRIVERS = ("librte-mempool-ring", "librte-net-e1000", "librte-net-pcap")
#: Holds libraries, though it is not called like one.
PROVIDERS = "ibverbs-providers"


def ensure():
    """The folder in which there is usr/bin/dpdk-testpmd: / if it is installed."""
    if shutil.which("dpdk-testpmd"):
        return Path("/")
    codename = host.distribution().get("VERSION_CODENAME", "")
    root = env.paths.programs / f"dpdk-{codename}"
    with env.lock("dpdk"):
        if not _works(root):
            with ui.step("Unpack DPDK into the cache"):
                _unpack(root, codename)
    return root


def _unpack(root, codename):
    try:
        apt = host.Apt("dpdk", (codename, f"{codename}-updates"), security=True)
    except ui.StepFailed as failure:
        raise ui.StepFailed(f"there is no dpdk-testpmd: {failure}",
                            hint="install your distribution's DPDK with dpdk-testpmd in PATH")
    apt.update("Look for DPDK")
    packages = apt.libraries(PROGRAM, PROVIDERS, *(apt.newest(driver) for driver in DRIVERS))
    with env.fresh(root) as scratch:
        apt.unpack(packages, scratch)
    if not _works(root):
        raise ui.StepFailed(f"{root} lacks libraries", hint=f"ldd {root}/usr/bin/dpdk-testpmd lists them")


def _works(root):
    """Whether the program finds all its libraries: the host's may have changed."""
    program = root / "usr/bin/dpdk-testpmd"
    folders = [str(path.parent) for path in root.glob("usr/lib/*/librte_eal.so.*")]
    if not program.exists() or not folders:
        return False
    done = subprocess.run(["ldd", program], env={"LD_LIBRARY_PATH": folders[0], "LC_ALL": "C", "PATH": "/usr/bin:/bin"},
                          capture_output=True, text=True)
    return done.returncode == 0 and "not found" not in done.stdout
