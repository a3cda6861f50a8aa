# SPDX-License-Identifier: GPL-2.0
"""`scripts/dev fuzz`: random calls on both drivers for as long as you like.

The test is the one called fuzz in tests.toml, which `make check` runs for half
a minute; here it gets other numbers, and its output is shown as it comes.
"""

import dataclasses
import time
from pathlib import Path

from . import check, ktap, machine, report, selftests, setup, ui

FOLDER = report.results / "fuzz"
MARGIN = 600


def args_fuzz(parser):
    parser.add_argument("--ops", type=int, default=1_000_000, metavar="NUMBER",
                        help="go on until each driver has answered so many calls (default: 1000000)")
    parser.add_argument("--minutes", type=int, default=60, metavar="NUMBER",
                        help="stop after so many minutes all the same (default: 60)")
    parser.add_argument("--seed", type=int, metavar="NUMBER",
                        help="what random numbers begin with; the same seed gives the same calls "
                             "(default: the time)")
    parser.add_argument("--findings", type=int, default=3, metavar="NUMBER",
                        help="stop after so many, each made as small as can be (default: 3)")
    parser.add_argument("--replay", type=Path, metavar="FILE",
                        help="run one sequence from a file, as a finding leaves it")


def cmd_fuzz(args):
    setup.ensure("um")
    description = selftests.Description()
    test = description.select("uml", ("selftests",), ("fuzz",))[0]
    built = check._kernel("um")
    places = selftests.Places(kernel=built.build_dir, modules=check._modules("um"), upstream="",
                              bin=check._programs(), fixture=check._fixture("um"))
    # What `make check` says about how long stands at the end.
    command = test.command[:test.command.index("--ops")]
    if args.replay:
        command += ["--replay", str(args.replay.resolve())]
    else:
        seed = int(time.time()) if args.seed is None else args.seed
        command += ["--ops", str(args.ops), "--minutes", str(args.minutes), "--seed", str(seed),
                    "--findings", str(args.findings)]
    test = dataclasses.replace(test, command=command, limit=60 * args.minutes + MARGIN)

    show = Show()
    run = machine.Uml(FOLDER, built).run(
        selftests.plan(description, "uml", [test], [], places), show.event)
    outcome = run.outcomes.get(("plain", test.name))
    leaves = selftests.judge(outcome, run) if outcome else []
    failed = [leaf for leaf in leaves if leaf.status == ktap.FAIL]
    for leaf in failed:
        print(f"FAILED: {leaf.name}")
    for path in show.findings:
        print(f"a finding is in {path}; scripts/dev fuzz --replay {path} shows it again")
    if run.trouble or not leaves:
        raise ui.StepFailed("; ".join(run.trouble) or "the test did not run", log=run.console)
    return 1 if failed else 0


class Show:
    """Prints what the test prints, and keeps the sequences it found something in."""

    def __init__(self):
        self.rest = ""
        self.findings = []

    def event(self, event):
        if event["event"] != "output":
            return
        *lines, self.rest = (self.rest + event["text"]).split("\n")
        for line in lines:
            text = line.removeprefix("# ")
            if line.startswith('# {"seed"'):
                path = FOLDER / f"finding-{len(self.findings) + 1}.json"
                path.write_text(text + "\n")
                self.findings.append(path)
            else:
                print(text, flush=True)
