# SPDX-License-Identifier: GPL-2.0
"""The picture of latencies, as far as a program can look at it."""

import re
import tempfile
import unittest
import xml.etree.ElementTree as xml
from pathlib import Path

from vkr import latency

KTAP = """KTAP version 1
{"test":"run.msi","unit":"TSC cycles","taken":{"659":9,"14000":1}}
# 10 interrupts
ok 1 run.msi
"""


class LatencyTest(unittest.TestCase):
    def found(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "interrupts.ktap"
            path.write_text(KTAP)
            return latency.read(path)

    def test_reads_json_among_ktap(self):
        self.assertEqual(self.found(), {"run.msi": {659: 9, 14000: 1}})

    def test_no_results(self):
        self.assertEqual(latency.read(Path("/nonexistent/interrupts.ktap")), {})

    def test_curve_for_each_driver(self):
        root = xml.fromstring(latency.draw({"c": self.found(), "rust": self.found()}))
        curves = [path.get("d") for path in root.iter("{http://www.w3.org/2000/svg}path")
                  if path.get("class") == "curve"]
        self.assertEqual(len(curves), 2)
        heights = [float(height) for height in re.findall(r"V([\d.]+)", curves[0])]
        bottom = 50 + latency.PANEL[1]
        # Nine of ten, then all.
        self.assertEqual([(bottom - height) / latency.PANEL[1] for height in heights], [0.9, 1.0])

    def test_hides_what_cannot_be_seen(self):
        points = [(1, 200.0), (2, 199.9), (3, 199.4), (4, 199.3), (5, 199.2)]
        self.assertEqual(list(latency.visible(points)), [(1, 200.0), (3, 199.4), (5, 199.2)])
        self.assertEqual(list(latency.visible([])), [])


if __name__ == "__main__":
    unittest.main()
