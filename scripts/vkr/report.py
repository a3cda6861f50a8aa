# SPDX-License-Identifier: GPL-2.0
"""What the checks found: a table for people, JUnit XML for machines."""

import re
import time
import xml.etree.ElementTree as xml
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import env, ui
from .ktap import FAIL, PASS, SKIP

results = env.out / "results"


@dataclass
class Result:
    suite: str
    name: str
    status: str
    detail: str = ""
    seconds: float = 0.0


@dataclass
class Stage:
    """A named part of the checks. One that tested nothing has failed."""

    name: str
    results: list = field(default_factory=list)
    seconds: float = 0.0

    def add(self, suite, name, status, detail="", seconds=0.0):
        self.results.append(Result(suite, name, status, detail, seconds))

    def add_cases(self, suite, cases, seconds=0.0):
        """The leaves of parsed results; the time is the whole suite's."""
        for case in cases:
            self.add(suite, case.name, case.status, case.detail,
                     seconds / max(len(cases), 1))

    @contextmanager
    def attempt(self, suite, name):
        """One result: it passes unless the body says StepFailed or fails it."""
        start = time.monotonic()
        attempt = Result(suite, name, PASS)
        try:
            yield attempt
        except ui.StepFailed as failure:
            attempt.status, attempt.detail = FAIL, failure.render()
        attempt.seconds = time.monotonic() - start
        self.results.append(attempt)

    def counts(self):
        return Counter(result.status for result in self.results)


class Report:
    def __init__(self):
        self.stages = []

    @contextmanager
    def stage(self, name):
        stage = Stage(name)
        self.stages.append(stage)
        start = time.monotonic()
        try:
            with ui.step(f"Check: {name}"):
                yield stage
        except ui.StepFailed as failure:
            # A broken stage must not keep the others from running.
            ui.warn(failure.render())
            stage.add(name, "stage", FAIL, failure.render())
        if not stage.results:
            stage.add(name, "stage", FAIL, "no test ran")
        stage.seconds = time.monotonic() - start

    def counts(self):
        return sum((stage.counts() for stage in self.stages), Counter())

    def finish(self):
        """Writes the results, prints the summary, returns the exit status."""
        write_junit(self.stages, results / "junit.xml")
        for stage in self.stages:
            for status, word in ((SKIP, "skipped"), (FAIL, "FAILED")):
                for result in stage.results:
                    if result.status == status:
                        print(f"{word}: {stage.name}: {result.suite}: {result.name}")
                        for line in result.detail.splitlines()[:12]:
                            print(f"    {line}")
        rows = [[stage.name, *_numbers(stage.counts()), ui.duration(stage.seconds)]
                for stage in self.stages]
        print()
        print(ui.table(rows, ["stage", "passed", "failed", "skipped", "time"]))
        print(f"\nresults: {results.relative_to(env.repo)}/, JUnit: {(results / 'junit.xml').relative_to(env.repo)}")
        total = self.counts()
        passed, failed, skipped = _numbers(total)
        print(f"{passed} passed, {failed} failed, {skipped} skipped", flush=True)
        return 1 if failed or not passed else 0


def _numbers(counts):
    return [counts[status] for status in (PASS, FAIL, SKIP)]


# XML 1.0 has no way to write these, not even escaped.
UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def write_junit(stages, path):
    root = xml.Element("testsuites")
    for stage in stages:
        by_suite = {}
        for result in stage.results:
            by_suite.setdefault(result.suite, []).append(result)
        for suite, members in by_suite.items():
            count = Counter(result.status for result in members)
            element = xml.SubElement(
                root, "testsuite", name=f"{stage.name}.{suite}", tests=str(len(members)),
                failures=str(count[FAIL]), skipped=str(count[SKIP]),
                time=f"{sum(result.seconds for result in members):.3f}")
            for result in members:
                case = xml.SubElement(
                    element, "testcase", classname=f"{stage.name}.{suite}",
                    name=UNPRINTABLE.sub("?", result.name), time=f"{result.seconds:.3f}")
                detail = UNPRINTABLE.sub("?", result.detail)
                if result.status == FAIL:
                    failure = xml.SubElement(case, "failure", message=detail.split("\n")[0])
                    failure.text = detail
                elif result.status == SKIP:
                    xml.SubElement(case, "skipped", message=detail.split("\n")[0])
    xml.indent(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    xml.ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)
