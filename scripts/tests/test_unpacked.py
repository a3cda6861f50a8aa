# SPDX-License-Identifier: GPL-2.0
"""Programs of another release, with a package that is a shell script."""

import os
import dataclasses
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from vkr import env, host, ui, unpacked

PROGRAM = unpacked.Program("vkr-no-such-command", "prog", "11.1.0", "release", "release-new",
                           ("-L", "$root/a folder"), (("PROG_DIR", "$root/modules"),))

# Stands for the dynamic loader: says what it was told.
LOADER = """#!/bin/sh
echo "PROG_DIR=$PROG_DIR"
for word; do echo "$word"; done
"""


class FakeApt:
    """Offers ``offered``; a package's content is the loader alone."""

    offered = []

    architectures = []

    def __init__(self, name, suites, architecture=None):
        self.suites = suites
        self.architectures.append(architecture)

    def update(self, title):
        pass

    def versions(self, package):
        return self.offered

    def unpack(self, packages, root, dependencies, suite):
        assert packages == [f"prog={self.offered[0]}"] and dependencies and suite in self.suites
        loader = root / "usr/lib64/ld-linux-x86-64.so.2"
        loader.parent.mkdir(parents=True)
        loader.write_text(LOADER)
        loader.chmod(0o755)


@unittest.skipUnless(shutil.which("apt-get") and shutil.which("dpkg-deb"), "the host has no apt")
class UnpackedTest(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp(prefix="vkr it's "))
        self.addCleanup(shutil.rmtree, self.tmp)
        for target, value in ((env, ("paths", env.Paths(self.tmp / "cache"))),
                              (host, ("Apt", FakeApt)),
                              (ui, ("_stream", (self.tmp / "said").open("w")))):
            patcher = mock.patch.object(target, *value)
            patcher.start()
            self.addCleanup(patcher.stop)
        self.addCleanup(ui._stream.close)
        FakeApt.offered = ["1:11.1.3+ds-1~bpo13+1", "1:10.0.13+ds-0"]

    def test_fetches_and_starts(self):
        start = unpacked.ensure(PROGRAM)
        said = subprocess.run([start, "one", "two words"], capture_output=True, text=True, check=True)
        root = f"{self.tmp}/cache/programs/prog_11.1.3+ds-1~bpo13+1/root"
        self.assertEqual(said.stdout.splitlines(), [
            f"PROG_DIR={root}/modules",
            "--library-path", f"{root}/usr/lib/x86_64-linux-gnu", f"{root}/usr/bin/{PROGRAM.command}",
            "-L", f"{root}/a folder", "one", "two words"])

    def test_of_another_architecture(self):
        foreign = dataclasses.replace(PROGRAM, foreign=True, triple="aarch64-linux-gnu", loader="lib/ld-linux.so")
        start = Path(unpacked.ensure(foreign))
        self.assertEqual(FakeApt.architectures[-1], "arm64")
        # It cannot be run here, only read.
        shell, root, *_, last = start.read_text().splitlines()
        self.assertEqual((shell, root), ("#!/busybox sh", "root=${0%/*}/root"))
        self.assertTrue(last.startswith('exec "$root/usr/lib/ld-linux.so" "--library-path" "$root/usr/lib/aarch64'))

    def test_fetches_once(self):
        start = unpacked.ensure(PROGRAM)
        FakeApt.offered = []
        self.assertEqual(unpacked.ensure(PROGRAM), start)

    def test_too_old_in_cache(self):
        for version in ("9.2.0", "11.1.2+ds", "11.1.10+ds", "11.0.9"):
            start = env.paths.programs / f"prog_{version}" / unpacked.MARK
            start.parent.mkdir(parents=True)
            start.write_text("")
        self.assertIn("prog_11.1.10+ds", unpacked.ensure(PROGRAM))

    def test_host_is_new_enough(self):
        command = self.tmp / PROGRAM.command
        command.write_text("#!/bin/sh\necho version 11.2.0\n")
        command.chmod(0o755)
        with mock.patch.dict(os.environ, PATH=f"{self.tmp}:{os.environ['PATH']}"):
            self.assertEqual(unpacked.ensure(PROGRAM), str(command))

    def test_no_longer_offered(self):
        FakeApt.offered = ["1:10.0.13+ds-0"]
        with self.assertRaises(ui.StepFailed) as failed:
            unpacked.ensure(PROGRAM)
        said = failed.exception.render()
        self.assertIn("release-new no longer offers prog 11.1.0 or newer; it has 1:10.0.13+ds-0", said)
        self.assertIn("PATH", said)
        self.assertFalse(list(env.paths.programs.glob("*")))

    def test_broken_download_leaves_nothing(self):
        for step in ("update", "unpack"):
            with mock.patch.object(FakeApt, step, side_effect=ui.StepFailed("no network")):
                with self.assertRaises(ui.StepFailed) as failed:
                    unpacked.ensure(PROGRAM)
            self.assertIn("PATH", failed.exception.render())
            self.assertFalse(list(env.paths.programs.glob("*")))
