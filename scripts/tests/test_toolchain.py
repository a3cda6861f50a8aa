# SPDX-License-Identifier: GPL-2.0
"""The choice between toolchains, made of scripts that only print versions."""

import os
import shutil
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from vkr import env, host, kernel, toolchain


class ToolchainTest(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        settings = {"PATH": f"{self.tmp / 'first'}:{self.tmp / 'second'}", "HOME": str(self.tmp)}
        for patcher in (mock.patch.dict(os.environ, settings),
                        mock.patch.object(env, "paths", env.Paths(self.tmp / "cache"))):
            patcher.start()
            self.addCleanup(patcher.stop)
        for name in ("RUSTC", "BINDGEN", "LLVM", "CARGO", "RUSTFMT", "CLIPPY_DRIVER"):
            os.environ.pop(name, None)
        toolchain._said.cache_clear()
        self.addCleanup(toolchain._said.cache_clear)

    def program(self, where, name, says):
        path = self.tmp / where / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{says}\n")
        path.chmod(0o755)
        return str(path)

    def rust(self, where, version, sources, clippy=None):
        sysroot = self.tmp / where / "sysroot"
        library = sysroot / "lib/rustlib/src/rust/library"
        (library if sources else sysroot).mkdir(parents=True)
        minor = version.split(".")[1]
        self.program(where, "rustfmt", "echo rustfmt 1.8.0-stable")
        self.program(where, "clippy-driver", f"echo clippy 0.1.{clippy or minor}")
        return self.program(where, "rustc", f"case $1 in --print) echo {sysroot};; "
                                            f"*) echo 'rustc {version} (abc 2025-01-01)';; esac")

    def test_rustc_without_sources_is_passed_over(self):
        self.rust("first", "1.95.0", sources=False)
        wanted = self.rust("second", "1.90.0", sources=True)
        self.assertEqual(toolchain._rustc().path, wanted)

    def test_old_rustc_is_passed_over(self):
        self.rust("first", "1.84.1", sources=True)
        wanted = self.rust("second", "1.85.0", sources=True)
        self.assertEqual(toolchain._rustc().path, wanted)

    def test_named_rustc_is_the_only_candidate(self):
        self.rust("second", "1.90.0", sources=True)
        os.environ["RUSTC"] = self.rust("first", "1.95.0", sources=False)
        tool = toolchain._rustc()
        self.assertFalse(tool.ok)
        self.assertIn("no library sources", tool.problem)

    def test_clippy_must_be_of_the_same_compiler(self):
        self.rust("first", "1.90.0", sources=True, clippy="89")
        tool = toolchain._companion(toolchain._rustc(), "clippy-driver")
        self.assertIn("not that of rustc 1.90.0", tool.problem)

    def test_incomplete_llvm_is_passed_over(self):
        for name in toolchain.LLVM_TOOLS:
            if name != "ld.lld":
                self.program("first", name, "echo clang version 20.1.0")
            self.program("second", f"{name}-19", "echo clang version 19.1.7")
        with mock.patch.object(toolchain, "_libclang", lambda clang: "/lib"):
            tool = toolchain._llvm()
        self.assertEqual((Path(tool.path).name, tool.version), ("clang-19", "19.1.7"))
        self.assertEqual(toolchain._llvm_spelling(tool.path), "-19")

    def test_versions(self):
        self.assertTrue(toolchain.at_least("1.100.0", "1.85.0"))
        self.assertFalse(toolchain.at_least("0.71.0", "0.71.1"))
        self.assertFalse(toolchain.at_least(None, "1.0.0"))
        for version, expected in (("1:19.0-63", "19.0"), ("1.85.1+dfsg1-1", "1.85.1"),
                                  ("1:10.0.2+ds-2+deb13u1~bpo12+1", "10.0.2"), (None, None)):
            self.assertEqual(host.upstream(version), expected)

    def test_make_arguments(self):
        chain = toolchain.Toolchain("r", "f", "c", "b", "cargo", "-19", "clang-19", "/lib")
        self.assertEqual(chain.make_args("um")[:3], ["ARCH=um", "LLVM=-19", "RUSTC=r"])
        self.assertEqual(chain.make_args()[0], "LLVM=-19")


class FragmentTest(unittest.TestCase):
    CONFIG = 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C=m\nCONFIG_S="x"\nCONFIG_N=16\n'

    def lost(self, *fragments):
        return kernel.lost_options(self.CONFIG, fragments)

    def test_all_effective(self):
        self.assertEqual(self.lost('# why\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_GONE=n\n',
                                   'CONFIG_C=m\nCONFIG_S="x"\nCONFIG_N=16\n'), [])

    def test_lost_demoted_and_forced(self):
        self.assertEqual(self.lost("CONFIG_B=y\nCONFIG_C=y\nCONFIG_A=n\n"),
                         [("CONFIG_B=y", "n"), ("CONFIG_C=y", "m"), ("CONFIG_A=n", "y")])

    def test_later_fragment_wins(self):
        self.assertEqual(self.lost("CONFIG_A=n\n", "CONFIG_A=y\n"), [])


if __name__ == "__main__":
    unittest.main()
