# SPDX-License-Identifier: GPL-2.0
"""What is unpacked from packages must be all that is needed, and little else."""

import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from vkr import host, ui

DEPENDS = {
    "tool-dev": "  Depends: libc6\n  Depends: libone1\n |Depends: libtwo-3\n  Depends: libtool-dev\n  Depends: python3\n",
    "libone1": "  PreDepends: libthree3t64\n  Depends: <libvirtual>\n",
    "libtwo-3": "  Depends: libone1\n  Depends: udev\n",
}


def answer(argv):
    """What apt-cache and dpkg-query would say."""
    if argv[0] == "dpkg-query":
        return "libc6 installed\nlibthree3t64 config-files\n"
    if "pkgnames" in argv:
        return "librte-net-foo9\nlibrte-net-foo-10t64\nlibrte-net-foo\nlibrte-net-foo-dev\nlibrte-net-foobar11\n"
    return "".join(f"{name}\n{DEPENDS.get(name, '')}" for name in argv[argv.index("--important") + 1:])


class Packages(unittest.TestCase):
    def setUp(self):
        self.apt = host.Apt.__new__(host.Apt)
        for target, value in (("vkr.host._quiet", answer), ("vkr.host.Apt.options", [])):
            patch = mock.patch(target, value)
            patch.start()
            self.addCleanup(patch.stop)

    def test_libraries_of_libraries(self):
        self.assertEqual(self.apt.libraries("tool-dev"), ["tool-dev", "libone1", "libtwo-3", "libthree3t64"])

    def test_what_to_link_with(self):
        self.assertEqual(self.apt.libraries("tool-dev", development=True),
                         ["tool-dev", "libone1", "libtwo-3", "libtool-dev", "libthree3t64"])

    def test_newest(self):
        self.assertEqual(self.apt.newest("librte-net-foo"), "librte-net-foo-10t64")

    def test_none(self):
        with self.assertRaises(ui.StepFailed):
            self.apt.newest("librte-net-bar")


@unittest.skipUnless(shutil.which("dpkg-deb"), "the host has no dpkg")
class Unpacking(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp(prefix="vkr it's "))
        self.addCleanup(shutil.rmtree, self.tmp)
        self.root = self.tmp / "root"
        self.apt = host.Apt.__new__(host.Apt)

    def package(self, name, *files):
        tree = self.tmp / name
        for file in files:
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            (tree / file).write_text(name)
        (tree / "DEBIAN").mkdir()
        (tree / "DEBIAN" / "control").write_text(
            f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: none\nDescription: none\n")
        archive = self.tmp / f"{name}.deb"
        subprocess.run(["dpkg-deb", "--build", tree, archive], check=True, capture_output=True)
        return archive

    def unpack(self, archives, **options):
        with mock.patch.object(self.apt, "_download", return_value=archives), mock.patch("vkr.ui._stream"):
            self.apt.unpack(["some"], self.root, **options)

    def test_lib_and_usr_lib_are_one(self):
        self.unpack([self.package("old", "lib/old", "bin/old"), self.package("new", "usr/lib/new")])
        self.assertEqual(sorted(file.name for file in (self.root / "lib").iterdir()), ["new", "old"])
        self.assertEqual((self.root / "usr/bin/old").read_text(), "old")

    def test_adds_to_what_is_there_and_leaves_no_archive(self):
        for name in ("one", "two"):
            archive = self.package(name, f"lib/{name}")
            self.unpack([archive])
            self.assertFalse(list(self.tmp.glob("*.deb")) + list(self.tmp.glob("*.tar")))
        self.assertEqual([(self.root / "usr/lib" / name).read_text() for name in ("one", "two")], ["one", "two"])

    def test_left_out(self):
        self.unpack([self.package("one", "usr/share/doc/one", "usr/share/data")], left_out=["./usr/share/doc"])
        self.assertEqual([file.name for file in (self.root / "usr/share").iterdir()], ["data"])

    def test_a_broken_archive(self):
        archive = self.package("one", "usr/lib/one")
        archive.write_bytes(archive.read_bytes()[:-60])
        with self.assertRaises(ui.StepFailed):
            self.unpack([archive])


if __name__ == "__main__":
    unittest.main()
