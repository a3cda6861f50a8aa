# SPDX-License-Identifier: GPL-2.0
"""The guests' initramfs, and reading what the driver tells about its containers."""

import lzma
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from vkr import env, guest, ui

sys.path.append(str(env.repo / "scripts" / "guest"))
import vmm  # noqa: E402

CONTAINERS = """container 3
\tdriver: vfio_type1_rs
\tmodel: type1v2
\towner: qemu-system-x86 (pid 64)
\tpage sizes: 4K 2M 1G
\tdma entries: 8 used, 65527 left
\tdirty tracking: off
\tdomain 0: groups 11 12 (not coherent)
\temulated: group 14
\tiova 0x0-0xfedfffff
\tmapping 0x0-0xc2fff rw vaddr 0x00007fef17e00000 size 798720 pinned 195 pages iopte 4K x 195
\tmapping 0xfebf8000-0xfebf9fff rw vaddr 0x00007fef2ce54000 size 8192 pinned 0 pages iopte 4K x 2
container 4
\towner: a (pid 1) b (pid 65)
\tdma entries: 0 used, 65535 left
\tdirty tracking: pinned pages
"""


class GuestTest(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.guest = guest.Kernel("6.1", self.tmp)
        self.guest.modules.mkdir(parents=True)
        (self.guest.modules / "modules.builtin").write_text("kernel/ring.ko\nkernel/in-built.ko\n")
        (self.guest.modules / "modules.dep").write_text(
            "pci.ko.xz: legacy.ko core-bus.ko\nlegacy.ko:\ncore-bus.ko:\nmem.ko: core-bus.ko\n")
        for name in ("legacy", "core-bus", "mem"):
            (self.guest.modules / f"{name}.ko").write_bytes(name.encode())
        (self.guest.modules / "pci.ko.xz").write_bytes(lzma.compress(b"pci"))

    def test_modules_come_after_what_they_need(self):
        names = [path.name for path in self.guest.closure(["pci", "in_built", "mem"])]
        self.assertEqual(names, ["core-bus.ko", "legacy.ko", "pci.ko.xz", "mem.ko"])

    def test_a_module_that_is_not_there_is_named(self):
        with self.assertRaisesRegex(ui.StepFailed, "no module nvme"):
            self.guest.closure(["nvme"])

    def test_archive_is_what_cpio_reads(self):
        init = self.tmp / "init"
        init.write_text("#!")
        with mock.patch.object(guest, "busybox", return_value=init):
            path = guest.initramfs(self.tmp / "a.cpio", init, self.guest, ["pci"])
        folder = self.tmp / "read"
        folder.mkdir()
        done = subprocess.run(["cpio", "-id", "--quiet"], cwd=folder, input=path.read_bytes(), capture_output=True)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        self.assertEqual({file.name: file.read_text() for file in (folder / "modules").iterdir()},
                         {"00-core_bus.ko": "core-bus", "01-legacy.ko": "legacy", "02-pci.ko": "pci"})
        self.assertTrue((folder / "bin" / "sh").is_symlink())


class ContainersTest(unittest.TestCase):
    def read(self, path):
        with mock.patch.object(vmm, "CONTAINERS", str(path)):
            return vmm.containers()

    def test_what_the_driver_tells(self):
        with tempfile.NamedTemporaryFile("w") as file:
            file.write(CONTAINERS)
            file.flush()
            first, second = self.read(file.name)
        self.assertEqual((first.owner, first.used, first.left, first.groups, first.emulated, first.pinned),
                         (64, 8, 65527, [11, 12], [14], 195))
        self.assertEqual((second.owner, second.groups, second.emulated, second.pinned), (65, [], [], 0))
        self.assertEqual((first.tracking, second.tracking), ("off", "pinned pages"))

    def test_what_qemu_traces(self):
        qemu = object.__new__(vmm.Qemu)
        qemu.traces = "/nowhere"
        self.assertEqual(qemu.dirty_bitmaps(), [])
        with tempfile.NamedTemporaryFile("w") as file:
            file.write("vfio_get_dirty_bitmap iova=0x0 size= 0xa0000 bitmap_size=0x18 start=0x0 dirty_pages=0\n"
                       "12@1.5:vfio_container_query_dirty_bitmap iova=0xc0000 size=0x2000 dirty_pages=2\n"
                       "vfio_get_dirty_bitmap iova=0xc0")
            file.flush()
            qemu.traces = file.name
            self.assertEqual(qemu.dirty_bitmaps(), [0, 2])

    def test_a_driver_that_tells_nothing(self):
        self.assertIsNone(self.read("/nowhere"))


if __name__ == "__main__":
    unittest.main()
