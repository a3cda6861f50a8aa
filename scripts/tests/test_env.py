# SPDX-License-Identifier: GPL-2.0
"""What is in the cache must be complete."""

import shutil
import tempfile
import unittest
from pathlib import Path

from vkr import env


class Fresh(unittest.TestCase):
    def setUp(self):
        self.tmp = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.tmp)
        self.folder = self.tmp / "some" / "folder"

    def fill(self, name):
        with env.fresh(self.folder) as scratch:
            self.assertEqual(list(scratch.iterdir()), [])
            (scratch / name).touch()

    def names(self):
        return [str(path.relative_to(self.tmp)) for path in self.tmp.rglob("*") if path.is_file()]

    def test_replaces(self):
        self.fill("one")
        self.fill("two")
        self.assertEqual(self.names(), ["some/folder/two"])

    def test_failure_leaves_what_was_there(self):
        self.fill("one")
        with self.assertRaises(KeyError), env.fresh(self.folder) as scratch:
            (scratch / "two").touch()
            raise KeyError
        self.assertEqual(self.names(), ["some/folder/one"])

    def test_remains_of_a_killed_run(self):
        rest = self.tmp / "some" / ".folder" / "rest"
        rest.parent.mkdir(parents=True)
        rest.touch()
        self.fill("one")
        self.assertEqual(self.names(), ["some/folder/one"])


if __name__ == "__main__":
    unittest.main()
