# SPDX-License-Identifier: GPL-2.0
"""The test with DPDK must see every frame that is lost, doubled or changed."""

import tempfile
import unittest
from pathlib import Path

from guest import dpdk

TRACE = """\
# tracer: nop
 dpdk-testpmd-321     [001] .....    12.000001: sys_enter: NR 16 (6, 3b71, 7ffd5c, 0, 1, 2)
 dpdk-testpmd-321     [001] .....    12.000002: sys_exit: NR 16 = 0
 dpdk-testpmd-321     [001] .....    12.000003: sys_enter: NR 16 (6, 3b72, 7ffd5c, 0, 1, 2)
        [odd] 9-322   [000] .....    12.000004: sys_enter: NR 16 (6, 3b71, 7ffd5c, 0, 1, 2)
 dpdk-testpmd-321     [001] .....    12.000005: sys_exit: NR 16 = -22
        [odd] 9-322   [000] .....    12.000006: sys_exit: NR 16 = 0
 dpdk-testpmd-321     [001] .....    12.000007: sys_enter: NR 16 (6, 5401, 7ffd5c, 0, 1, 2)
 dpdk-testpmd-321     [001] .....    12.000008: sys_exit: NR 16 = -25
"""


class Frames(unittest.TestCase):
    def setUp(self):
        self.sent = dpdk.frames(1)

    def test_equal(self):
        self.assertEqual(dpdk.differences(self.sent, list(self.sent)), [])

    def test_sizes(self):
        sizes = {len(frame) for frame in self.sent}
        self.assertEqual((min(sizes) >= 60, max(sizes) <= 1514, len(sizes) > 500), (True, True, True))

    def test_directions_differ(self):
        self.assertNotEqual(dpdk.frames(0), self.sent)

    def test_one_byte(self):
        got = list(self.sent)
        got[7] = got[7][:30] + bytes([got[7][30] ^ 1]) + got[7][31:]
        self.assertEqual(dpdk.differences(self.sent, got),
                         [f"frame 7 ({len(got[7])} bytes, received {len(got[7])}) differs from byte 30 on"])

    def test_lost_doubled_swapped_cut(self):
        one, two, *rest = self.sent
        for got in ([one, *rest], [one, one, two, *rest], [two, one, *rest], [one[:-1], two, *rest], []):
            self.assertTrue(dpdk.differences(self.sent, got))

    def test_file(self):
        with tempfile.TemporaryDirectory() as folder:
            dpdk.write_pcap(Path(folder) / "f", self.sent)
            self.assertEqual(dpdk.read_pcap(Path(folder) / "f"), self.sent)


class Prompt(unittest.TestCase):
    def test_whatever_comes_between(self):
        event = "Port 1: link state change event\n"
        for said in ("testpmd> ", f"testpmd>{event} ", f"Done\nt{event}estpmd> ", f"te\n{event}stp\nmd> "):
            self.assertTrue(dpdk.PROMPT.search(said), said)

    def test_nothing_else(self):
        for said in ("testpmd: create a new mbuf pool", "testpmd>", "test pmd> ", "tPort 1\nestpmd> "):
            self.assertFalse(dpdk.PROMPT.search(said), said)

    def test_answer(self):
        script = "printf 'tPort 0: link state change event\\nestpmd> '; read command; printf 'did %s\\ntestpmd> ' $command; read command"
        with dpdk.Testpmd(["sh", "-c", script], {}) as testpmd:
            testpmd.read(dpdk.PROMPT)
            self.assertIn("did this\n", testpmd.do("this"))
            testpmd.quit()


class Ioctls(unittest.TestCase):
    def test_counts(self):
        made, failed = dpdk.count(TRACE.splitlines())
        self.assertEqual((dict(made), dict(failed)), ({"MAP_DMA": 2, "UNMAP_DMA": 1}, {"UNMAP_DMA": 1}))


if __name__ == "__main__":
    unittest.main()
