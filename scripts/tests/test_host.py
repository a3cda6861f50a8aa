# SPDX-License-Identifier: GPL-2.0
"""What is unpacked from packages must be all that is needed, and little else."""

import unittest
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

    def test_newest(self):
        self.assertEqual(self.apt.newest("librte-net-foo"), "librte-net-foo-10t64")

    def test_none(self):
        with self.assertRaises(ui.StepFailed):
            self.apt.newest("librte-net-bar")


if __name__ == "__main__":
    unittest.main()
