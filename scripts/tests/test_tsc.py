# SPDX-License-Identifier: GPL-2.0
"""How the rate of the time stamp counter is found."""

import platform
import time
import unittest

from vkr import tsc


class TscTest(unittest.TestCase):
    def test_a_counter_of_known_rate(self):
        # Nanoseconds three times over.
        rate = tsc.measure(lambda: time.monotonic_ns() * 3, 0.05)
        self.assertAlmostEqual(rate, 3_000_000, delta=3000)

    def test_a_look_is_not_torn(self):
        # All looks but one are interrupted between the clock and the counter.
        looks = iter(range(1000))

        def counter():
            if next(looks) != 50:
                time.sleep(0.001)
            return time.monotonic_ns()

        when, count = tsc.look(counter)
        self.assertLess(abs(when - count), 500_000)

    @unittest.skipUnless(platform.machine() == "x86_64", "there is a TSC on x86 only")
    def test_this_processor(self):
        rate = tsc.khz()
        if rate is None:
            self.skipTest("no code may be made here")
        self.assertTrue(200_000 < rate < 20_000_000, rate)


if __name__ == "__main__":
    unittest.main()
