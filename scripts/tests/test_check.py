# SPDX-License-Identifier: GPL-2.0
"""Which tests run on which machines of a stage, and what is put into their commands."""

import argparse
import unittest
from unittest import mock

from vkr import check, selftests, ui


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


class PlanTest(unittest.TestCase):
    def plan(self, *command):
        description = selftests.Description()
        test = selftests.Test("t", ["vm"], 1, command=list(command), needs=["igb", "vfio"])
        places = selftests.Places(bin="/bin")
        with mock.patch.object(places, "file", places.fill):
            return selftests.plan(description, "vm", [test], [], places)["phases"][0]["tests"][0]

    def test_what_stands_for_what(self):
        self.assertEqual(self.plan("{bin}/type1", "--device", "{igb}")["command"],
                         ["/bin/type1", "--device", "{igb}"])

    def test_what_a_subject_loads(self):
        description = selftests.Description()
        description.subjects["mapper"] = {"rust": "/m/mapper-rs.ko"}
        test = selftests.Test("t", ["vm"], 1, command=["t"], drivers=["c", "rust"], subject="mapper")
        places = selftests.Places()
        with mock.patch.object(places, "file", places.fill):
            phases = selftests.plan(description, "vm", [test], ["c", "rust"], places)["phases"]
        c, rust = (phase["tests"][0]["subject"] for phase in phases)
        self.assertEqual(c, {"load": "", "absent": ["mapper_rs"]})
        self.assertEqual(rust, {"load": "/m/mapper-rs.ko", "absent": []})

    def test_a_place_nobody_knows(self):
        with self.assertRaises(ui.StepFailed) as caught:
            self.plan("{python}", "{vfio}", "{igb}")
        self.assertIn("python, vfio", caught.exception.render())


if __name__ == "__main__":
    unittest.main()
