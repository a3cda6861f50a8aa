# SPDX-License-Identifier: GPL-2.0
"""Trees, tarballs and patches, on a kernel source of two files."""

import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path
from unittest import mock

from vkr import env, source, ui

MAKEFILE = "# SPDX\nVERSION = {}\nPATCHLEVEL = {}\nSUBLEVEL = 9\nEXTRAVERSION =\n"
PATCH = """--- a/file.c
+++ b/file.c
@@ -1 +1 @@
-old
+new
"""


class SourceTest(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.patches = self.tmp / "patches"
        self.patches.mkdir()
        self.series()
        self.tree = self.make_tree()
        for target, value in ((env, ("paths", env.Paths(self.tmp / "cache"))),
                              (source, ("_patches", self.patches)),
                              (source, ("_record", self.tmp / "cache/downloads/source.json")),
                              (ui, ("_stream", (self.tmp / "said").open("w")))):
            patcher = mock.patch.object(target, *value)
            patcher.start()
            self.addCleanup(patcher.stop)
        self.addCleanup(ui._stream.close)
        without = mock.patch.dict("os.environ")
        without.start()
        source.os.environ.pop("KERNEL_SRC", None)
        self.addCleanup(without.stop)

    def make_tree(self, version=7, patchlevel=3):
        tree = self.tmp / "linux"
        shutil.rmtree(tree, ignore_errors=True)
        tree.mkdir()
        (tree / "Makefile").write_text(MAKEFILE.format(version, patchlevel))
        (tree / "file.c").write_text("old\n")
        return tree

    def tarball(self):
        path = self.tmp / "linux.tar.xz"
        subprocess.run(["tar", "-C", self.tmp, "-cJf", path, "linux"], check=True)
        return path

    def series(self, *patches):
        (self.patches / "series").write_text("# order matters\n\n" + "".join(
            f"{name}\n" for name, _ in patches))
        for name, text in patches:
            (self.patches / name).write_text(text)

    def test_tree_is_used_in_place_without_patches(self):
        found = source.ensure(self.tree)
        self.assertEqual((found.dir, found.version), (self.tree, "7.3.9"))

    def test_tree_is_copied_for_patches(self):
        self.series(("one.patch", PATCH))
        found = source.ensure(self.tree)
        self.assertNotEqual(found.dir, self.tree)
        self.assertEqual((found.dir / "file.c").read_text(), "new\n")
        self.assertEqual((self.tree / "file.c").read_text(), "old\n")

    def test_tarball_is_unpacked_once(self):
        tarball = self.tarball()
        found = source.ensure(tarball)
        (found.dir / "mark").touch()
        again = source.ensure(tarball)
        self.assertEqual(found, again)
        self.assertTrue((again.dir / "mark").exists())
        self.assertEqual(source.prepared(tarball), found)

    def test_patches_apply_in_order(self):
        self.series(("b.patch", PATCH), ("a.patch", PATCH.replace("new", "newer").replace("old", "new")))
        found = source.ensure(self.tarball())
        self.assertEqual((found.dir / "file.c").read_text(), "newer\n")

    def test_strip_level_and_comment(self):
        self.series(("one.patch -p0 # why", ""))
        (self.patches / "one.patch").write_text(PATCH.replace("a/", "").replace("b/", ""))
        found = source.ensure(self.tarball())
        self.assertEqual((found.dir / "file.c").read_text(), "new\n")

    def test_changed_patch_makes_another_tree(self):
        tarball = self.tarball()
        plain = source.ensure(tarball)
        self.series(("one.patch", PATCH))
        self.assertIsNone(source.prepared(tarball))
        patched = source.ensure(tarball)
        self.series(("one.patch", PATCH.replace("new", "newest")))
        changed = source.ensure(tarball)
        self.assertEqual(len({plain.dir, patched.dir, changed.dir}), 3)
        self.assertEqual(len({str(s.identity()) for s in (plain, patched, changed)}), 3)

    def test_patch_that_does_not_apply_names_its_log(self):
        tarball = self.tarball()
        self.series(("bad.patch", PATCH.replace("-old", "-other")))
        with self.assertRaises(ui.StepFailed) as failure:
            source.ensure(tarball)
        self.assertIn("bad.patch", failure.exception.message)
        self.assertIn("FAILED", failure.exception.render())
        self.assertIsNone(source.prepared(tarball))

    def test_missing_patch(self):
        (self.patches / "series").write_text("absent.patch\n")
        with self.assertRaisesRegex(ui.StepFailed, "absent.patch, which does not exist"):
            source.ensure(self.tree)

    def test_interrupted_unpacking_starts_over(self):
        tarball = self.tarball()
        left = env.paths.src / f"{source._short('sha256:' + source._sha256(tarball))}.partial"
        left.mkdir(parents=True)
        (left / "half").touch()
        self.assertFalse((source.ensure(tarball).dir / "half").exists())

    def test_other_series_is_refused(self):
        self.make_tree(7, 4)
        for given in (self.tree, self.tarball()):
            with self.assertRaisesRegex(ui.StepFailed, "is Linux 7.4.9; these modules are for 7.3.y"):
                source.ensure(given)

    def test_not_a_kernel(self):
        (self.tree / "Makefile").write_text("all:\n")
        with self.assertRaisesRegex(ui.StepFailed, "no kernel source"):
            source.ensure(self.tree)
        with self.assertRaisesRegex(ui.StepFailed, "no such kernel tree"):
            source.ensure(self.tmp / "nowhere")

    def test_kernel_org_takes_the_newest_and_checks_it(self):
        tarball = self.tarball().read_bytes()
        digest = source.hashlib.sha256(tarball).hexdigest()
        sums = "".join(f"{digest}  linux-7.3{v}.tar.xz\n" for v in ("", ".9", ".10")) + \
            f"{digest}  linux-7.30.tar.xz\n"
        asked = []

        def fetch(url, path):
            asked.append(url.rsplit("/", 1)[1])
            path.write_bytes(tarball)

        env.paths.downloads.mkdir(parents=True)
        with mock.patch.object(source, "_get", lambda url: sums.encode()), \
                mock.patch.object(source, "_fetch", fetch), \
                mock.patch.object(source, "_from_debian", lambda: None):
            found = source.ensure()
            self.assertEqual((asked, found.origin), (["linux-7.3.10.tar.xz"], "kernel.org 7.3.10"))
            # The record makes the second run independent of the network.
            self.assertEqual(source.ensure(), found)
            self.assertEqual(len(asked), 1)
            (env.paths.downloads / "linux-7.3.10.tar.xz").unlink()
            tarball += b"damaged"
            with self.assertRaisesRegex(ui.StepFailed, "checksum"):
                source.ensure()


if __name__ == "__main__":
    unittest.main()
