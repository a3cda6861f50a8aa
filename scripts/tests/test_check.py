# SPDX-License-Identifier: GPL-2.0
"""Which tests run on which machines of a stage, and what is put into their commands."""

import argparse
import unittest
from unittest import mock

from vkr import check, ktap, machine, selftests, ui


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
        self.assertEqual(chosen("debug", "--test", "soft"), ["vm-debug", "vm-rt", "arm64-debug"])
        self.assertEqual(chosen("debug", "--test", "soft-native"), ["uml-debug"])
        self.assertEqual(chosen("debug", "--test", "soft", "--test", "soft-native"), list(check.DEBUG))
        self.assertEqual(chosen("debug", "--test", "logic"), list(check.DEBUG))

    def test_it_says_where(self):
        with mock.patch.object(ui, "info") as info:
            chosen("debug", "--test", "soft", tell=True)
        info.assert_called_once_with("soft: on vm-debug, vm-rt, arm64-debug, not on uml-debug")

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


class DriversTest(unittest.TestCase):
    """Drivers of KVM stand above modules, and none of type1 is in their way."""

    def plan(self, of):
        description = selftests.Description()
        names = [name for name in description.drivers_as(["c", "rust"]) if description.drivers[name]["of"] == of]
        test = selftests.Test("t", ["host"], 1, command=["true"], drivers=names)
        places = selftests.Places(kernel="/k", modules="/m", kvm="kvm-amd")
        with mock.patch.object(places, "file", places.fill):
            phases = selftests.plan(description, "host", [test], names, places)["phases"]
        return {phase["name"]: phase["driver"] for phase in phases}

    def test_below_and_rivals(self):
        kvm = self.plan("kvm")
        self.assertEqual(kvm["kvm-c"]["path"], "/k/arch/x86/kvm/kvm-amd.ko")
        self.assertEqual(kvm["kvm-c"]["below"], ["/k/arch/x86/kvm/kvm.ko"])
        self.assertEqual(kvm["kvm-c"]["rivals"], ["kvm_x86_rs"])
        self.assertEqual(kvm["kvm-rust"]["path"], "/m/kvm_x86_rs.ko")
        self.assertEqual(kvm["kvm-rust"]["below"][-1], "/k/arch/x86/kvm/kvm-amd.ko")
        self.assertEqual(kvm["kvm-rust"]["rivals"], [])

    def test_type1(self):
        type1 = self.plan("type1")
        self.assertEqual(list(type1), ["c", "rust"])
        self.assertEqual(type1["c"]["rivals"], ["vfio_type1_rs"])

    def test_as(self):
        description = selftests.Description()
        self.assertLessEqual({"rust", "kvm-rust"}, set(description.drivers_as(["rust"])))
        self.assertNotIn("kvm-c", description.drivers_as(["rust"]))


class EachTest(unittest.TestCase):
    def test_a_test_of_each_program(self):
        described = {"name": "upstream-{each}", "command": ["{upstream_kvm}/{each}", "-v"],
                     "each": ["x86/set_sregs_test", "rseq_test"]}
        self.assertEqual([(test["name"], test["command"]) for test in selftests._each(described)],
                         [("upstream-set-sregs", ["{upstream_kvm}/x86/set_sregs_test", "-v"]),
                          ("upstream-rseq", ["{upstream_kvm}/rseq_test", "-v"])])

    def test_programs_to_build(self):
        description = selftests.Description()
        self.assertIn("x86/set_sregs_test", description.upstream("kvm", "x86_64"))
        self.assertIn("get-reg-list", description.upstream("kvm", "arm64"))
        self.assertNotIn("get-reg-list", description.upstream("kvm", "x86_64"))


class QuietTest(unittest.TestCase):
    def judge(self, text="", quiet=True, says=(), **end):
        outcome = machine.Outcome("kvm-c", "t", text=text, end={"status": 0, "seconds": 1, **end})
        return [(leaf.name, leaf.status) for leaf in selftests.judge(outcome, machine.Run(), quiet, says)]

    def test_exit_status_is_enough(self):
        self.assertEqual(self.judge("Random seed: 0x1\n"), [("exit", ktap.PASS)])

    def test_but_only_for_those_who_may(self):
        self.assertEqual(self.judge("Random seed: 0x1\n", quiet=False), [("results", ktap.FAIL)])

    def test_failures_stay_failures(self):
        self.assertEqual(self.judge(status=254), [("exit", ktap.FAIL)])

    def test_parts_that_say_something(self):
        says = ["vregs: PASS", "sve: PASS"]
        self.assertEqual(self.judge("vregs: PASS\nsve: SVE not available\n", says=says),
                         [("vregs: PASS", ktap.PASS), ("sve: PASS", ktap.FAIL)])
        self.assertEqual(self.judge("vregs: PASS\n", says=says, status=254),
                         [("exit", ktap.FAIL), ("vregs: PASS", ktap.PASS), ("sve: PASS", ktap.FAIL)])

    def test_nothing_is_expected_of_what_was_skipped(self):
        outcome = machine.Outcome("c", "t", end={"skip": "no KVM", "seconds": 1})
        self.assertEqual([leaf.status for leaf in selftests.judge(outcome, machine.Run(), True, ["a"])], [ktap.SKIP])
        self.assertEqual(self.judge("1..1\nnot ok 1 a\n"), [("a", ktap.FAIL)])
        self.assertEqual(self.judge(status=4), [("all", ktap.SKIP)])


if __name__ == "__main__":
    unittest.main()
