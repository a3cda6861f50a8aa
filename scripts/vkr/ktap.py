# SPDX-License-Identifier: GPL-2.0
"""Reads test results: KTAP as KUnit and kselftest print it, and libtest's text.

A reader that believes too much is worse than none: a plan that promised more
results than arrived, a parent that says ok over a failed child and a bail-out
all become failures of their own.
"""

import re
from dataclasses import dataclass, field

PASS, FAIL, SKIP = "pass", "fail", "skip"

VERSION = re.compile(r"(?:K?TAP) version \d+$")
PLAN = re.compile(r"1\.\.(\d+)(?:\s+#\s*SKIP\b:?\s*(.*))?$")
RESULT = re.compile(r"(ok|not ok)\b\s*(\d+)?(?:\s+(?:-\s+)?(.*))?$")
DIRECTIVE = re.compile(r"\s*(?<!\\)#\s*(SKIP|TODO|XFAIL|XPASS|TIMEOUT|ERROR)\b:?\s*(.*)$", re.IGNORECASE)
SUBTEST = re.compile(r"#\s*Subtest:\s*(.*)$")
BAIL = re.compile(r"Bail out!\s*(.*)$")
DMESG = re.compile(r"^(?:<\d+>)?\[\s*\d+\.\d+\](?:\[[^\]]*\])? ?")

LIBTEST = re.compile(r"test (.+?)(?: - should panic)? \.\.\. (ok|FAILED|ignored)(?:, (.*))?$")


@dataclass
class Case:
    """One result. ``children`` are the results of the subtest it sums up."""

    name: str
    status: str
    detail: str = ""
    children: list = field(default_factory=list)

    def leaves(self, prefix=""):
        """The results that are no sums, named by their path."""
        path = f"{prefix}{self.name}"
        if not self.children:
            yield Case(path, self.status, self.detail)
            return
        for child in self.children:
            yield from child.leaves(f"{path}.")
        if self.status == FAIL and all(c.status != FAIL for c in self.children):
            yield Case(path, FAIL, self.detail or "fails as a whole, though no part of it does")


class _Level:
    """One nesting level while it is being read."""

    def __init__(self, indent, name=""):
        self.indent = indent
        self.name = name
        self.plan = None
        self.cases = []
        self.diagnostics = []

    def close(self):
        """The results of this level, with what is wrong with them as a whole."""
        if self.plan is not None and len(self.cases) != self.plan:
            self.cases.append(Case("plan", FAIL, f"{self.plan} results promised, {len(self.cases)} seen"))
        return self.cases


CUT_OFF = "the output stops inside this subtest"


class _Reader:
    def __init__(self):
        self.done = []
        self.levels = [_Level(0)]

    def line(self, line):
        body = line.lstrip(" ")
        indent = len(line) - len(body)
        if VERSION.match(body):
            self.document(indent)
        elif match := SUBTEST.match(body):
            self.enter(indent).name = match[1]
        elif match := PLAN.match(body):
            level = self.enter(indent)
            level.plan = int(match[1])
            if match[2] is not None:
                level.plan = 1
                level.cases.append(Case("all", SKIP, match[2]))
        elif match := RESULT.match(body):
            self.result(indent, match)
        elif match := BAIL.match(body):
            self.levels[-1].cases.append(Case("bail out", FAIL, match[1]))
        elif body.startswith("#"):
            self.levels[-1].diagnostics.append(body.lstrip("# "))

    def document(self, indent):
        if indent:
            self.enter(indent)
        elif self.levels[0].cases or self.levels[0].plan is not None:
            # A second document at the top, as from two results files.
            self.done = self.end()
            self.levels = [_Level(0)]

    def enter(self, indent):
        """The level a header line of this indentation belongs to."""
        if indent > self.levels[-1].indent:
            self.levels.append(_Level(indent))
        return next(level for level in reversed(self.levels) if level.indent <= indent)

    def result(self, indent, match):
        children = []
        while self.levels[-1].indent > indent:
            children = self.leave(cut_off=self.levels[-2].indent > indent)
        level = self.levels[-1]

        description = match[3] or ""
        status = PASS if match[1] == "ok" else FAIL
        detail = ""
        if directive := DIRECTIVE.search(description):
            description = description[:directive.start()]
            word, detail = directive[1].upper(), directive[2]
            if word in ("SKIP", "TODO"):
                status = SKIP
            elif word in ("TIMEOUT", "ERROR", "XPASS"):
                status, detail = FAIL, f"{word.lower()} {detail}".rstrip()
        if status == FAIL and not detail:
            detail = "\n".join(level.diagnostics[-8:])
        level.diagnostics.clear()
        if status == PASS and any(leaf.status == FAIL for leaf in leaves(children)):
            status, detail = FAIL, "says ok over a failed part"
        number = match[2] or str(len(level.cases) + 1)
        level.cases.append(Case(description.strip() or number, status, detail, children))

    def leave(self, cut_off):
        """Ends the innermost level; one cut off becomes a failure of the outer."""
        inner = self.levels.pop()
        cases = inner.close()
        if cut_off:
            cases.append(Case("end", FAIL, CUT_OFF))
            self.levels[-1].cases.append(Case(inner.name or "subtest", FAIL, "", cases))
        return cases

    def end(self):
        while len(self.levels) > 1:
            self.leave(cut_off=True)
        return self.done + self.levels[0].close()


def parse(text):
    """All top-level results of the KTAP documents in a text, among other lines."""
    reader = _Reader()
    for line in text.replace("\r", "").split("\n"):
        if line := DMESG.sub("", line).rstrip():
            reader.line(line)
    return reader.end()


def leaves(cases):
    return [leaf for case in cases for leaf in case.leaves()]


def parse_libtest(text):
    """Results of `cargo test`, which names tests anew in each crate."""
    cases, crate = [], ""
    for line in text.splitlines():
        line = line.strip()
        if match := re.match(r"Running (?:unittests )?(\S+)(?: \((.*)\))?|Doc-tests (\S+)", line):
            crate = match[3] or re.sub(r"-[0-9a-f]{16}$", "", (match[2] or match[1]).split("/")[-1])
        elif match := LIBTEST.match(line):
            status = {"ok": PASS, "FAILED": FAIL, "ignored": SKIP}[match[2]]
            cases.append(Case(f"{crate}::{match[1]}" if crate else match[1], status, match[3] or ""))
    return cases
