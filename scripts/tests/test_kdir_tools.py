# SPDX-License-Identifier: GPL-2.0
"""What scripts/kdir-tools finds out about a kernel build."""

import subprocess
import tempfile
import unittest
from pathlib import Path

from vkr import env


class KdirToolsTest(unittest.TestCase):
    def says(self, *config):
        with tempfile.TemporaryDirectory() as kdir:
            auto = Path(kdir) / "include" / "config" / "auto.conf"
            auto.parent.mkdir(parents=True)
            auto.write_text("".join(f"{line}\n" for line in config))
            said = subprocess.run([env.repo / "scripts" / "kdir-tools", kdir], capture_output=True, text=True, check=True)
        return dict(line.split("=", 1) for line in said.stdout.splitlines())

    def test_architecture(self):
        self.assertEqual(self.says("CONFIG_ARM64=y", "CONFIG_64BIT=y")["ARCH"], "arm64")
        self.assertEqual(self.says("CONFIG_X86_64=y", "CONFIG_X86=y")["ARCH"], "x86_64")

    def test_user_mode_linux_has_the_options_of_its_host_too(self):
        self.assertEqual(self.says("CONFIG_UML=y", "CONFIG_X86_64=y")["ARCH"], "um")

    def test_another_architecture_is_left_to_make(self):
        self.assertNotIn("ARCH", self.says("CONFIG_RISCV=y"))

    def test_no_build_no_tools(self):
        with tempfile.TemporaryDirectory() as empty:
            said = subprocess.run([env.repo / "scripts" / "kdir-tools", empty], capture_output=True, check=True)
        self.assertEqual(said.stdout, b"")


if __name__ == "__main__":
    unittest.main()
