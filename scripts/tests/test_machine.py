# SPDX-License-Identifier: GPL-2.0
"""What of a kernel's log counts as a complaint, and which machines there are."""

import subprocess
import tempfile
import unittest
from pathlib import Path
from types import SimpleNamespace

from vkr import kernel, machine, selftests


class ComplaintTest(unittest.TestCase):
    def test_every_watcher_is_heard(self):
        for line in (
                "WARNING: possible circular locking dependency detected",
                "WARNING: possible recursive locking detected",
                "WARNING: inconsistent lock state",
                "WARNING: suspicious RCU usage",
                "[ BUG: Invalid wait context ]",
                "BUG: sleeping function called from invalid context at kernel/locking/mutex.c:591",
                "BUG: scheduling while atomic: type1/71/0x00000002",
                "BUG: KASAN: slab-use-after-free in vfio_type1_rs+0x12/0x34",
                "BUG: MAX_LOCKDEP_CHAINS too low!",
                "turning off the locking correctness validator.",
                "BUG kmalloc-64 (Not tainted): Right Redzone overwritten",
                "pagealloc: memory corruption",
                "UBSAN: array-index-out-of-bounds in drivers/vfio/container.c:1:2",
                "ODEBUG: free active (active state 0) object type: work_struct",
                "iommu: Detected page leak!",
                "INFO: task type1:71 blocked for more than 300 seconds.",
                "------------[ cut here ]------------\nWARNING: drivers/iommu/iommu.c:9 at f+0x1/0x2",
                "Kernel panic - not syncing: kernel: panic_on_warn set ...",
                "rust_kernel: panicked at vfio_type1_rs/space.rs:9:9:",
        ):
            with self.subTest(line):
                self.assertTrue(machine.complaints(f"[    1.000000] {line}"))

    def test_what_is_expected_is_not_a_complaint(self):
        for line in (
                "vfio_type1_rs: type1 (pid 71) VFIO_IOMMU_MAP_DMA refused: the range is empty",
                "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
                "FAULT_INJECTION: forcing a failure.",
                "kmemleak: Kernel memory leak detector initialized (mem pool available: 15000)",
                "Lock dependency validator: Copyright (c) 2006 Red Hat, Inc., Ingo Molnar",
        ):
            with self.subTest(line):
                self.assertFalse(machine.complaints(f"[    1.000000] {line}"))


class Arm64Test(unittest.TestCase):
    def test_initramfs_has_what_its_init_needs(self):
        with tempfile.TemporaryDirectory() as folder:
            vm = machine.Arm64.__new__(machine.Arm64)
            vm.where, vm.userland = Path(folder), SimpleNamespace(root=Path(folder))
            (vm.where / "bin").mkdir()
            (vm.where / "bin" / "busybox").write_text("some program")
            with vm.initramfs().open() as archive:
                listed = subprocess.run(["cpio", "-t", "--quiet"], stdin=archive, capture_output=True, text=True)
        self.assertEqual(listed.stdout.split(), ["dev", "busybox", "init"])


class TablesTest(unittest.TestCase):
    def test_machines_name_what_exists(self):
        description = selftests.Description()
        for name, kind in machine.MACHINES.items():
            with self.subTest(name):
                self.assertIn(kind.kernel, kernel.RECIPES)
                self.assertIn(kind.tests or name, description.machines)

    def test_recipes_name_fragments_that_exist(self):
        for name, recipe in kernel.RECIPES.items():
            for path in kernel._fragments(recipe):
                with self.subTest(name):
                    self.assertTrue(path.exists(), path)


if __name__ == "__main__":
    unittest.main()
