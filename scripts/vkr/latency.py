# SPDX-License-Identifier: GPL-2.0
"""`scripts/dev latency`: a picture of how long interrupts took to get to a guest.

It is drawn of what `interrupts --json` wrote into the last results of a machine,
a panel for each test and a curve for each driver: of all interrupts, how many
had arrived after so many cycles. Both axes show all there is, the slowest, too.
"""

import json
import math
from html import escape
from pathlib import Path

from . import env, report, ui

#: Of the picture, in its own units.
PANEL, MARGIN, COLUMNS, HARDLY = (320, 200), (58, 40), 2, 0.5
COLOURS = {"c": "#c25a00", "rust": "#0057b8"}
STYLE = "text{font:12px sans-serif;fill:#222}.small{font-size:10px}.axis{stroke:#888;fill:none}.curve{fill:none;stroke-width:2}"


def args_latency(parser):
    parser.add_argument("--machine", default="bochs", metavar="NAME", help="whose results (default: bochs)")
    parser.add_argument("--test", default="interrupts", metavar="NAME", help="of which test (default: interrupts)")
    parser.add_argument("--output", type=Path, default=env.out / "latency.svg", metavar="FILE",
                        help="where to (default: build/latency.svg)")


def cmd_latency(args):
    found = {phase.name.removeprefix("kvm-"): read(phase / f"{args.test}.ktap")
             for phase in sorted((report.results / args.machine).glob("*/kvm-*"))}
    found = {driver: tests for driver, tests in found.items() if tests}
    if not found:
        raise ui.StepFailed(f"there are no times of {args.test} on {args.machine}",
                            hint="scripts/dev check vmx takes them")
    args.output.write_text(draw(found))
    print(args.output)


def read(path):
    """What a test printed as JSON: {name: {cycles: count}}, without what else it printed."""
    if not path.exists():
        return {}
    records = [json.loads(line) for line in path.read_text().splitlines() if line.startswith('{"test":')]
    return {record["test"]: {int(cycles): count for cycles, count in record["taken"].items()} for record in records}


def draw(found):
    """The picture, of {driver: {test: {cycles: count}}}."""
    names = list(dict.fromkeys(name for tests in found.values() for name in tests))
    width = COLUMNS * (PANEL[0] + MARGIN[0]) + 20
    height = math.ceil(len(names) / COLUMNS) * (PANEL[1] + MARGIN[1] + 20) + 30
    parts = []
    for number, name in enumerate(names):
        left = MARGIN[0] + number % COLUMNS * (PANEL[0] + MARGIN[0])
        top = 50 + number // COLUMNS * (PANEL[1] + MARGIN[1] + 20)
        parts += panel(name, {driver: tests[name] for driver, tests in found.items() if name in tests}, left, top)
    for number, driver in enumerate(found):
        parts.append(f'<text x="{MARGIN[0] + number * 60}" y="18" style="fill:{COLOURS.get(driver, "#444")}">'
                     f'{escape(driver)}</text>')
    body = "\n".join(parts)
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">\n<style>{STYLE}</style>\n'
            f'<rect width="{width}" height="{height}" fill="#fff"/>\n{body}\n</svg>\n')


def panel(name, by_driver, left, top):
    right, bottom = left + PANEL[0], top + PANEL[1]
    cycles = [number for taken in by_driver.values() for number in taken]
    low, high = math.floor(math.log10(max(1, min(cycles)))), math.ceil(math.log10(max(cycles) + 1))
    x = lambda number: left + (math.log10(max(1, number)) - low) / (high - low) * PANEL[0]
    y = lambda share: bottom - share * PANEL[1]

    yield f'<text x="{left}" y="{top - 8}">{escape(name)}</text>'
    yield f'<path class="axis" d="M{left} {top}V{bottom}H{right}"/>'
    for power in range(low, high + 1):
        yield f'<text class="small" x="{x(10 ** power):.1f}" y="{bottom + 14}" text-anchor="middle">{10 ** power:,}</text>'
    for percent in (0, 50, 100):
        yield f'<text class="small" x="{left - 6}" y="{y(percent / 100) + 3:.1f}" text-anchor="end">{percent} %</text>'
    yield f'<text class="small" x="{right}" y="{bottom + 28}" text-anchor="end">cycles</text>'
    for number, (driver, taken) in enumerate(by_driver.items()):
        total, arrived, path = sum(taken.values()), 0, f"M{left} {bottom}"
        steps = {}
        for value in sorted(taken):
            arrived += taken[value]
            steps[round(x(value), 1)] = round(y(arrived / total), 1)
        path += "".join(f"H{across}V{up}" for across, up in visible(steps.items()))
        # The second is drawn over the first, and lets it be seen.
        dashes = ' stroke-dasharray="6 5"' if number else ""
        yield f'<path class="curve" stroke="{COLOURS.get(driver, "#444")}"{dashes} d="{path}H{right}"/>'


def visible(points):
    """Without those that are hardly above the one before; a million samples have thousands."""
    shown = None
    for number, (across, up) in enumerate(points := list(points)):
        if shown is None or shown - up >= HARDLY or number == len(points) - 1:
            shown = up
            yield across, up
