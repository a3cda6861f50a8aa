# SPDX-License-Identifier: GPL-2.0
"""Building Bochs, with one that is built quickly, and what it boots."""

import json
import shutil
import struct
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from vkr import bochs, env, host, machine, ui

CONFIGURE = """#!/bin/sh
printf '%s\\n' "$@" >config.status
printf 'bochs: bit\\n\\tcp bit bochs\\n' >Makefile
"""

PATCH = """Sets it

--- a/bit
+++ b/bit
@@ -1 +1 @@
-clean
+dirty
"""


class FakeApt:
    """The source is a configure script and a file to be patched."""

    fetched = []

    def __init__(self, name, suites, sources=False):
        pass

    def update(self, title):
        pass

    def source(self, package, root):
        self.fetched.append(package)
        (root / "bit").write_text("clean\n")
        (root / "configure").write_text(CONFIGURE)
        (root / "configure").chmod(0o755)
        return "3.0+dfsg-1"

    def unpack(self, packages, root):
        self.fetched += packages
        folder = root / "usr" / "share" / "bochs"
        folder.mkdir(parents=True)
        (folder / bochs.BIOS).write_text("bios\n")


@unittest.skipUnless(shutil.which("apt-get") and shutil.which("dpkg-deb"), "the host has no apt")
class BuildTest(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp(prefix="vkr"))
        self.addCleanup(shutil.rmtree, self.tmp)
        (self.tmp / "a.patch").write_text(PATCH)
        for target, value in ((env, ("paths", env.Paths(self.tmp / "cache"))),
                              (host, ("Apt", FakeApt)),
                              (bochs, ("FOLDER", self.tmp)),
                              (bochs, ("PATCHES", ("a.patch",))),
                              (FakeApt, ("fetched", [])),
                              (ui, ("_stream", (self.tmp / "said").open("w")))):
            patcher = mock.patch.object(target, *value)
            patcher.start()
            self.addCleanup(patcher.stop)
        self.addCleanup(ui._stream.close)

    def test_builds_what_is_patched(self):
        built = bochs.ensure()
        self.assertTrue(built.folder.name.startswith("bochs_3.0+dfsg-1_"))
        self.assertEqual(built.program.read_text(), "dirty\n")
        self.assertEqual(built.bios.read_text(), "bios\n")
        self.assertEqual(list(env.paths.programs.glob(".*")), [])

    def test_builds_once(self):
        built = bochs.ensure()
        FakeApt.fetched.clear()
        self.assertEqual(bochs.ensure(), built)
        self.assertEqual(FakeApt.fetched, [])

    def test_goes_on_after_a_failure(self):
        with mock.patch.object(FakeApt, "unpack", side_effect=ui.StepFailed("no network")):
            with self.assertRaises(ui.StepFailed):
                bochs.ensure()
        bochs.ensure()
        self.assertEqual(FakeApt.fetched, ["bochs", "bochsbios"])

    def test_another_patch_is_another_program(self):
        built = bochs.ensure()
        (self.tmp / "a.patch").write_text(PATCH.replace("dirty", "filthy"))
        self.assertNotEqual(bochs.ensure(), built)

    def test_patch_does_not_apply(self):
        (self.tmp / "a.patch").write_text(PATCH.replace("clean", "spotless"))
        with self.assertRaises(ui.StepFailed) as failed:
            bochs.ensure()
        self.assertIn("has to be adapted to 3.0+dfsg-1", failed.exception.render())


class BootTest(unittest.TestCase):
    def image(self, sectors):
        image = bytearray((sectors + 1) * 512) + b"kernel"
        image[0x1F1] = sectors
        image[0x202:0x206] = b"HdrS"
        return bytes(image)

    def test_header(self):
        setup, kernel = bochs.split(self.image(31), 1234, "quiet")
        self.assertEqual(kernel, b"kernel")
        where, size = struct.unpack_from("<II", setup, 0x218)
        self.assertEqual((where, size), (bochs.INITRAMFS, 1234))
        at = struct.unpack_from("<I", setup, 0x228)[0] - bochs.SETUP
        self.assertEqual(setup[at:], b"quiet\0")

    def test_what_does_not_fit(self):
        for image, line in ((b"\0" * 4096, ""), (self.image(31), "x" * 4096), (self.image(200), "")):
            with self.assertRaises(ui.StepFailed):
                bochs.split(image, 0, line)

    def test_what_the_bios_checks(self):
        self.assertEqual(bochs.floppy()[510:512], b"\x55\xaa")
        self.assertEqual(len(bochs.floppy()), bochs.FLOPPY_BYTES)
        self.assertEqual(sum(bochs.vga()) % 256, 0)

    def test_files_of_a_plan(self):
        with tempfile.TemporaryDirectory() as folder:
            program = Path(folder) / "program"
            program.write_text("")
            plan = {"phases": [{"tests": [{"command": [str(program), "--json", "/dev/null", folder, "program"]}]}]}
            self.assertEqual(machine._files(json.loads(json.dumps(plan))), {program})


if __name__ == "__main__":
    unittest.main()
