# SPDX-License-Identifier: GPL-2.0
"""How programs are built for a machine of another architecture."""

import shutil
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from vkr import sysroot, ui

CHAIN = SimpleNamespace(rustc="/opt/rustc", clang="/opt/clang")


class SysrootTest(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.root = self.tmp / "with blank"
        self.userland = sysroot.Sysroot(sysroot.FOREIGN["arm64"], self.root)

    def flags(self):
        return self.userland.cargo_env(CHAIN)["CARGO_ENCODED_RUSTFLAGS"].split("\x1f")

    def test_the_host_needs_none(self):
        self.assertIsNone(sysroot.ensure("x86_64"))
        self.assertIsNone(sysroot.ensure("um"))

    def test_cargo_uses_the_compiler_of_the_library(self):
        variables = self.userland.cargo_env(CHAIN)
        self.assertEqual(variables["RUSTC"], CHAIN.rustc)
        self.assertEqual(variables["CARGO_BUILD_TARGET"], "aarch64-unknown-linux-gnu")
        self.assertEqual(variables["CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER"], CHAIN.clang)

    def test_programs_are_static_and_paths_are_kept_whole(self):
        self.assertIn("-Ctarget-feature=+crt-static", self.flags())
        self.assertIn(f"-Clink-arg=--sysroot={self.root}", self.flags())

    def test_only_a_library_that_is_there_is_searched(self):
        self.assertFalse([flag for flag in self.flags() if flag.startswith("-L")])
        library = self.root / "usr/lib/rustlib/aarch64-unknown-linux-gnu/lib"
        library.mkdir(parents=True)
        self.assertIn(f"-L{library}", self.flags())

    def offered(self, **packages):
        apt = mock.Mock()
        apt.versions.side_effect = lambda package: packages.get(package.replace("-", "_"), [])
        says = {"--version": "1.96.0", "--print": str(self.tmp)}
        with mock.patch.object(sysroot.toolchain, "_first_line", side_effect=lambda argv: says[argv[1]]), \
                mock.patch.object(sysroot.toolchain, "_version", return_value="1.96.0"):
            return sysroot._rust_library(apt, self.userland.architecture, CHAIN)

    def test_the_library_is_of_the_version_of_rustc(self):
        found = self.offered(libstd_rust_dev=["1.63.0+dfsg1-2"],
                             libstd_rust_web_dev=["1.96.0+dfsg1-1~deb12u2", "1.85.0+dfsg3-1~deb12u3"])
        self.assertEqual(found, ("libstd-rust-web-dev", "1.96.0+dfsg1-1~deb12u2"))

    def test_another_version_will_not_do(self):
        with self.assertRaises(ui.StepFailed):
            self.offered(libstd_rust_dev=["1.95.0+dfsg1-1"])

    def test_rustc_may_have_a_library_of_its_own(self):
        (self.tmp / "lib/rustlib/aarch64-unknown-linux-gnu/lib").mkdir(parents=True)
        self.assertIsNone(self.offered())

    def test_gcc_version_comes_from_the_release(self):
        apt = mock.Mock()
        apt.show.return_value = "Package: gcc\nDepends: cpp (= 4:12.2.0-3), gcc-12 (>= 12.2.0-1~)\n"
        self.assertEqual(sysroot._libgcc(apt), "libgcc-12-dev")


if __name__ == "__main__":
    unittest.main()
