# SPDX-License-Identifier: GPL-2.0
"""Programs of others are judged by what they print: by all of it."""

import os
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

from guest import foreign as guest
from guest.foreign import PROGRAMS, Program, faults, plain, reached
from vkr import foreign, selftests, ui
from vkr.ktap import FAIL, PASS
from vkr.report import Result


class Ending(unittest.TestCase):
    program = Program("p", (), "edu", wants=("^first: PASSED$", "^second: PASSED$"))
    good = "Using device x, Failsafe Error\nfirst: PASSED\nsecond: PASSED\n"

    def test_passes(self):
        self.assertEqual(faults(self.program, self.good, 0, 1.0), [])

    def test_exit_status(self):
        self.assertEqual(faults(self.program, self.good, 255, 1.0), ["exit status 255"])

    def test_killed(self):
        self.assertEqual(faults(self.program, self.good, -11, 1.0), ["exit status -11"])

    def test_never_ended(self):
        self.assertEqual(faults(self.program, self.good, None, 1.0), ["it has not ended after 300 s"])

    def test_zero_without_the_words(self):
        self.assertEqual(faults(self.program, "first: PASSED\n", 0, 1.0), ["it has not printed ^second: PASSED$"])

    def test_zero_over_a_failure(self):
        found = faults(self.program, self.good + "Error, allowed to remap @0x0(Success)\n", 0, 1.0)
        self.assertEqual(found, ["it printed: Error, allowed to remap @0x0(Success)"])

    def test_kernel_log(self):
        self.assertEqual(len(faults(self.program, self.good, 0, 1.0, ["Huh VM_FAULT_OOM leaked out"])), 1)
        self.assertEqual(faults(self.program, self.good, 0, 1.0, ["vfio-pci 0000:00:02.0: resetting"]), [])


class Endless(unittest.TestCase):
    marks = Program("p", (), "edu", endless=True, mark="+-", goal=3)
    silent = Program("p", (), "edu", endless=True, goal=10, refuses=(".",))

    def test_stopped_at_its_goal(self):
        self.assertEqual(faults(self.marks, "Using device +-+-\n|+-+-+-", None, 1.0), [])
        self.assertEqual(faults(self.silent, "", None, 10.5), [])

    def test_ended(self):
        self.assertEqual(faults(self.marks, "|+-+-+-", 0, 1.0), ["it has ended, with status 0"])

    def test_stuck(self):
        self.assertEqual(faults(self.marks, "|+-+-+", None, 99.0), ["it got to 2 of 3 +-"])
        self.assertEqual(faults(self.silent, "", None, 0.2), ["it got to 0 of 10 s of CPU time"])

    def test_failed_and_goes_on(self):
        self.assertEqual(faults(self.silent, "Got a device\n", None, 11.0), ["it printed: Got a device"])

    def test_marks_count_within_one_line(self):
        self.assertEqual(reached(self.marks, "+-\n+-+-\n+-", 0), 2)


class Running(unittest.TestCase):
    def test_ends(self):
        program = Program("p", (), "edu")
        text, status, _ = guest.run(program, ["sh", "-c", "printf 'one\\ntwo'; exit 3"])
        self.assertEqual((text, status), ("one\ntwo", 3))

    def test_stopped_at_its_goal(self):
        program = Program("p", (), "edu", endless=True, mark="+", goal=5, limit=60)
        text, status, _ = guest.run(program, ["sh", "-c", "while printf +; do sleep 0.05; done"])
        self.assertIsNone(status)
        self.assertGreaterEqual(text.count("+"), 5)

    def test_hangs(self):
        program = Program("p", (), "edu", endless=True, mark="+", goal=5, limit=1)
        text, status, _ = guest.run(program, ["sh", "-c", "printf ++; sleep 60 & wait"])
        self.assertEqual(faults(program, text, status, 0.0), ["it got to 2 of 5 +"])

    def test_ends_with_a_child_left(self):
        program = Program("p", (), "edu", endless=True, mark="+", goal=5, limit=60)
        text, status, _ = guest.run(program, ["sh", "-c", "printf Failed; sleep 60 & exit 0"])
        self.assertEqual((text, status), ("Failed", 0))

    def test_backspaces(self):
        self.assertEqual(plain("Mapping:   0%\b\b\b\b 50%\b\b\b\b100%\r\n"), "Mapping: 100%\n")


class Host(unittest.TestCase):
    def test_every_program_is_told_its_places(self):
        for name, program in PROGRAMS.items():
            words = [word.format(device="d", group="1", huge="/h") for word in program.arguments]
            self.assertTrue(words, name)
            self.assertEqual(any("{huge}" in word for word in program.arguments), bool(program.huge), name)
            self.assertEqual(program.endless, program.goal > 0, name)

    def test_every_device_is_a_need(self):
        known = {**selftests.Description().needs, **foreign.NEEDS}
        for name, program in PROGRAMS.items():
            self.assertIn(program.device, known, name)

    def test_table(self):
        results = [Result("vm.c.stress", "stress", PASS, seconds=2.0), Result("vm.c.stress", "kernel log", FAIL, seconds=2.0),
                   Result("vm.rust.stress", "stress", PASS, seconds=7.4), Result("host.c.intx-race", "intx-race", PASS, seconds=9.0),
                   Result("vm.c.hot-reset", "run", FAIL)]
        self.assertEqual([[foreign.cell(row[driver]) for driver in ("c", "rust")]
                          for row in foreign.table(["stress", "intx-race", "hot-reset"], ["c", "rust"], results)],
                         [["fail 4s", "pass 7s"], ["pass 9s", "-"], ["-", "-"]])

    def test_races_have_cpus_that_run_at_once(self):
        for test in foreign.tests(list(PROGRAMS), Path("/")):
            where, = test.machines
            self.assertEqual(foreign.MACHINES[where].thread, "multi" if PROGRAMS[test.name].races else "single")

    def test_no_checkout(self):
        with tempfile.TemporaryDirectory() as folder:
            args = type("Args", (), {"checkout": Path(folder)})
            with self.assertRaises(ui.StepFailed) as caught:
                foreign.cmd_foreign(args)
            self.assertIn("git clone", caught.exception.render())

    def test_a_version_is_named(self):
        with tempfile.TemporaryDirectory() as folder:
            self.assertEqual(foreign.identify(Path(folder)), "no git checkout")
            git = ["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e@example.org"]
            subprocess.run(["git", "init", "-q", folder], check=True)
            subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "one"], check=True)
            self.assertRegex(foreign.identify(Path(folder)), "^[0-9a-f]{12}$")


#: Prints the number of a process that takes a while to end, as it has to give back memory.
FORKS = """
import os, time
if not os.fork():
    memory = bytearray(256 << 20)
    for at in range(0, len(memory), 4096):
        memory[at] = 1
    print("large", os.getpid(), flush=True)
time.sleep(60)
"""

#: What is run becomes a subreaper, as the tests here must not.
RUNS = """
import sys
from guest.foreign import Program, run
print(*run(Program("p", (), "edu", endless=True, mark="large", goal=1, limit=60), [sys.executable, "-c", sys.argv[1]]))
"""


class Stopping(unittest.TestCase):
    def test_nothing_it_forked_is_left(self):
        scripts = Path(guest.__file__).parents[1]
        done = subprocess.run([sys.executable, "-c", RUNS, FORKS], cwd=scripts, capture_output=True, text=True, check=True)
        large, pid = done.stdout.split()[:2]
        self.assertEqual(large, "large")
        self.assertFalse(os.path.exists(f"/proc/{pid}"), done)


if __name__ == "__main__":
    unittest.main()
