# SPDX-License-Identifier: GPL-2.0
"""The reader of results must not report success that was not there."""

import unittest

from vkr import ktap
from vkr.ktap import FAIL, PASS, SKIP


def read(text):
    return [(case.name, case.status) for case in ktap.leaves(ktap.parse(text))]


class Flat(unittest.TestCase):
    def test_kselftest_harness(self):
        self.assertEqual(read("""\
TAP version 13
1..3
# Starting 3 tests from 3 test cases.
#  RUN           dma.anonymous.map_unmap ...
#            OK  dma.anonymous.map_unmap
ok 1 dma.anonymous.map_unmap
#  RUN           dma.huge.map_unmap ...
#      SKIP      mmap() failed: Cannot allocate memory (12)
ok 2 dma.huge.map_unmap # SKIP mmap() failed: Cannot allocate memory (12)
# map.c:12:map:Expected 0 (0) == rc (-1)
# map: Test terminated by assertion
not ok 3 dma.map
# FAILED: 2 / 3 tests passed.
# Totals: pass:1 fail:1 xfail:0 xpass:0 skip:1 error:0
"""), [("dma.anonymous.map_unmap", PASS), ("dma.huge.map_unmap", SKIP), ("dma.map", FAIL)])

    def test_failure_carries_what_was_said_before_it(self):
        case, = ktap.parse("# Expected 1\nnot ok 1 x")
        self.assertEqual(case.detail, "Expected 1")

    def test_plan_not_kept(self):
        self.assertEqual(read("1..2\nok 1 a"), [("a", PASS), ("plan", FAIL)])

    def test_more_than_planned(self):
        self.assertEqual(read("1..1\nok 1 a\nok 2 b")[-1], ("plan", FAIL))

    def test_skip_all(self):
        self.assertEqual(read("TAP version 13\n1..0 # SKIP no device"), [("all", SKIP)])

    def test_nothing(self):
        self.assertEqual(read("hello\nok then\n"), [("then", PASS)])
        self.assertEqual(read("hello\n"), [])

    def test_bail_out(self):
        self.assertEqual(read("1..1\nBail out! no memory"), [("bail out", FAIL)])

    def test_directives(self):
        self.assertEqual(
            read("ok 1 a # XFAIL known\nnot ok 2 b # TODO later\nok 3 c # ERROR lost\nnot ok 4 d # TIMEOUT 45 s"),
            [("a", PASS), ("b", SKIP), ("c", FAIL), ("d", FAIL)])

    def test_hash_in_name_is_not_a_directive(self):
        self.assertEqual(read("ok 1 issue #12"), [("issue #12", PASS)])

    def test_console_line_ends_and_dmesg_prefix(self):
        self.assertEqual(read("[    1.234567] ok 1 a\r\n[   12.000001][  T1] not ok 2 - b\r\n"),
                         [("a", PASS), ("b", FAIL)])

    def test_two_documents(self):
        self.assertEqual(read("KTAP version 1\n1..1\nok 1 a\nKTAP version 1\n1..1\nok 1 b"),
                         [("a", PASS), ("b", PASS)])


class Nested(unittest.TestCase):
    KUNIT = """\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: iova_space
    # module: vrs_kunit
    1..2
    ok 1 splits
    ok 2 joins
# iova_space: pass:2 fail:0 skip:0 total:2
ok 1 iova_space
"""

    def test_kunit(self):
        self.assertEqual(read(self.KUNIT), [("iova_space.splits", PASS), ("iova_space.joins", PASS)])

    def test_child_fails_parent_says_ok(self):
        case, = ktap.parse(self.KUNIT.replace("    ok 2", "    not ok 2"))
        self.assertEqual(case.status, FAIL)

    def test_parent_fails_alone(self):
        self.assertIn(("iova_space", FAIL), read(self.KUNIT.replace("\nok 1", "\nnot ok 1")))

    def test_cut_off_inside(self):
        names = read(self.KUNIT.split("    ok 2")[0])
        self.assertIn(("iova_space.splits", PASS), names)
        self.assertIn(("iova_space.plan", FAIL), names)
        self.assertIn(("iova_space.end", FAIL), names)

    def test_parameters_two_deep(self):
        self.assertEqual(read("""\
KTAP version 1
1..1
    KTAP version 1
    # Subtest: suite
    1..1
        KTAP version 1
        # Subtest: case
        ok 1 4K
        ok 2 2M # SKIP not here
    ok 1 case
ok 1 suite
"""), [("suite.case.4K", PASS), ("suite.case.2M", SKIP)])

    def test_subtest_named_before_its_header(self):
        self.assertEqual(read("# Subtest: s\n    1..1\n    ok 1 a\nok 1 s"), [("s.a", PASS)])


class Libtest(unittest.TestCase):
    def test_crates_and_statuses(self):
        cases = ktap.parse_libtest("""\
     Running unittests src/lib.rs (target/debug/deps/iova_space-0123456789abcdef)
running 3 tests
test tests::splits ... ok
test tests::joins ... FAILED
test tests::slow ... ignored, takes minutes
   Doc-tests iova_space
test src/lib.rs - Space::new (line 3) ... ok
""")
        self.assertEqual([(case.name, case.status) for case in cases], [
            ("iova_space::tests::splits", PASS),
            ("iova_space::tests::joins", FAIL),
            ("iova_space::tests::slow", SKIP),
            ("iova_space::src/lib.rs - Space::new (line 3)", PASS)])


if __name__ == "__main__":
    unittest.main()
