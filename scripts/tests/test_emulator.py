# SPDX-License-Identifier: GPL-2.0
"""Building a QEMU, with one that is built quickly."""

import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from vkr import emulator, env, host, ui

CONFIGURE = """#!/bin/sh
printf '%s\\n' "$@" >options
cp "$(dirname "$0")/bit" build.ninja
"""

NINJA = """#!/bin/sh
echo "[1/2] Compile" >>"$2/compiled"
[ -e "$2/fail" ] && exit 1
printf '#!/bin/sh\\ncat %s/build.ninja\\n' "$2" >"$2/qemu-system-x86_64"
chmod +x "$2/qemu-system-x86_64"
"""

PATCH = """Sets it

--- a/bit
+++ b/bit
@@ -1 +1 @@
-clean
+dirty
"""


def program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class FakeApt:
    """The source is a configure script and a file to be patched."""

    fetched = []

    def __init__(self, name, suites, security=False, sources=False):
        pass

    def update(self, title):
        pass

    def libraries(self, *packages, development):
        return packages

    def source(self, package, root):
        self.fetched.append(package)
        program(root / "configure", CONFIGURE)
        (root / "bit").write_text("clean\n")
        (root / "configs" / "devices" / emulator.TARGET).mkdir(parents=True)
        return "1:10.0.13+ds-0+deb13u1"

    def unpack(self, packages, root):
        self.fetched += packages
        (root / "usr/lib/any/pkgconfig").mkdir(parents=True)


@unittest.skipUnless(shutil.which("apt-get") and shutil.which("dpkg-deb"), "the host has no apt")
class EmulatorTest(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp(prefix="vkr"))
        self.addCleanup(shutil.rmtree, self.tmp)
        self.folder = self.tmp / "qemu"
        self.folder.mkdir()
        for name, text in (("a.patch", PATCH), (emulator.DEVICES, "CONFIG_EDU=y\n"), (emulator.TOOLS, "")):
            (self.folder / name).write_text(text)
        program(self.tmp / "bin" / "ninja", NINJA)
        for target, value in ((env, ("paths", env.Paths(self.tmp / "cache"))),
                              (env, ("require_venv", lambda folder, wanted: self.tmp)),
                              (host, ("Apt", FakeApt)),
                              (emulator, ("FOLDER", self.folder)),
                              (emulator, ("PATCHES", ("a.patch",))),
                              (emulator, ("_firmware", lambda: ["/firmware", "/more"])),
                              (FakeApt, ("fetched", [])),
                              (ui, ("_stream", (self.tmp / "said").open("w")))):
            patcher = mock.patch.object(target, *value)
            patcher.start()
            self.addCleanup(patcher.stop)
        self.addCleanup(ui._stream.close)

    def work(self):
        found, = env.paths.programs.glob(".qemu-hwdbm_*/build")
        return found

    def test_builds_what_is_patched(self):
        built = Path(emulator.ensure())
        self.assertTrue(built.parent.name.startswith("qemu-hwdbm_10.0.13+ds-0+deb13u1_"))
        self.assertTrue((built.parent / "root/usr/lib/any").is_dir())
        self.assertEqual(list(env.paths.programs.glob(".*")), [])

    def test_builds_once(self):
        built = emulator.ensure()
        FakeApt.fetched.clear()
        self.assertEqual(emulator.ensure(), built)
        self.assertEqual(FakeApt.fetched, [])

    def test_goes_on_after_a_failure(self):
        with mock.patch.object(emulator.host.Apt, "unpack", side_effect=ui.StepFailed("no network")):
            with self.assertRaises(ui.StepFailed):
                emulator.ensure()
        self.assertEqual(FakeApt.fetched, ["qemu"])
        program(self.tmp / "bin" / "ninja", "#!/bin/sh\nexit 1\n")
        with self.assertRaises(ui.StepFailed):
            emulator.ensure()
        build = self.work()
        self.assertEqual((build / "build.ninja").read_text(), "dirty\n")
        self.assertIn("--firmwarepath=/firmware:/more", (build / "options").read_text())
        (build / "options").write_text("not again")
        program(self.tmp / "bin" / "ninja", NINJA)
        with mock.patch.object(shutil, "rmtree") as kept:
            emulator._compile(build.parent)
        kept.assert_not_called()
        self.assertEqual((build / "options").read_text(), "not again")
        emulator.ensure()
        self.assertEqual(FakeApt.fetched, ["qemu", *emulator.PACKAGES])

    def test_another_patch_is_another_program(self):
        built = emulator.ensure()
        (self.folder / "a.patch").write_text(PATCH.replace("dirty", "filthy"))
        self.assertNotEqual(emulator.ensure(), built)

    def test_patch_does_not_apply(self):
        (self.folder / "a.patch").write_text(PATCH.replace("clean", "spotless"))
        with self.assertRaises(ui.StepFailed) as failed:
            emulator.ensure()
        self.assertIn("has to be adapted to 1:10.0.13", failed.exception.render())


class SourceTest(unittest.TestCase):
    """A source package, made here."""

    def test_patched_like_the_distributions(self):
        tmp = Path(tempfile.mkdtemp(prefix="vkr"))
        self.addCleanup(shutil.rmtree, tmp)
        (tmp / "prog-1.0/debian/patches").mkdir(parents=True)
        (tmp / "prog-1.0/bit").write_text("clean\n")
        pack = ["tar", "-C", tmp, "-cJf"]
        subprocess.run([*pack, tmp / "prog_1.0.orig.tar.xz", "prog-1.0/bit"], check=True)
        (tmp / "prog-1.0/debian/patches/a.patch").write_text(PATCH)
        (tmp / "prog-1.0/debian/patches/series").write_text("# none\n\na.patch # the one\n")
        pack[2] = tmp / "prog-1.0"
        subprocess.run([*pack, tmp / "prog_1.0-2.debian.tar.xz", "debian"], check=True)
        files = [tmp / name for name in ("prog_1.0-2.debian.tar.xz", "prog_1.0.orig.tar.xz")]
        apt = host.Apt.__new__(host.Apt)
        with mock.patch.object(host.Apt, "_download", lambda *words: files), \
                mock.patch.object(ui, "_stream", (tmp / "said").open("w")) as said:
            self.addCleanup(said.close)
            self.assertEqual(apt.source("prog", tmp / "root"), "1.0-2")
        self.assertEqual((tmp / "root/bit").read_text(), "dirty\n")
