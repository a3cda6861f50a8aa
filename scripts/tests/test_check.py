# SPDX-License-Identifier: GPL-2.0
"""On which machines of a stage a test runs that was asked for by its name."""

import argparse
import unittest
from unittest import mock

from vkr import check, ui


def chosen(*words, tell=False):
    parser = argparse.ArgumentParser()
    check.args_check(parser)
    return check._chosen(check.DEBUG, check.DEBUG_STAGES, parser.parse_args(words), tell)


class ChosenTest(unittest.TestCase):
    def test_all_unless_asked(self):
        self.assertEqual(chosen("debug"), list(check.DEBUG))

    def test_those_named_whatever_they_have(self):
        self.assertEqual(chosen("debug", "--machine", "vm-rt", "--test", "soft-native"), ["vm-rt"])

    def test_those_that_have_the_test(self):
        self.assertEqual(chosen("debug", "--test", "soft"), ["vm-debug", "vm-rt"])
        self.assertEqual(chosen("debug", "--test", "soft-native"), ["uml-debug"])
        self.assertEqual(chosen("debug", "--test", "soft", "--test", "soft-native"), list(check.DEBUG))
        self.assertEqual(chosen("debug", "--test", "logic"), list(check.DEBUG))

    def test_it_says_where(self):
        with mock.patch.object(ui, "info") as info:
            chosen("debug", "--test", "soft", tell=True)
        info.assert_called_once_with("soft: on vm-debug, vm-rt, not on uml-debug")

    def test_a_test_of_other_machines(self):
        with self.assertRaises(ui.StepFailed) as caught:
            chosen("debug", "--test", "dpdk")
        self.assertIn("dpdk is a test of vm-wire", caught.exception.render())

    def test_no_test_at_all(self):
        args = argparse.Namespace(stage=["uml"], test=["sotf-native"], machine=[])
        with self.assertRaises(ui.StepFailed) as caught:
            check.cmd_check(args)
        self.assertRegex(caught.exception.render(), "(?s)there is no test sotf-native.*soft-native")


if __name__ == "__main__":
    unittest.main()
