# SPDX-License-Identifier: GPL-2.0
"""The tests that run inside the test machines: from tests.toml to results.

One boot runs all tests of a machine: those that need no driver, then each
driver's with only that driver loaded. What a test printed is kept under
build/results, and differences between drivers are failures of their own.
"""

import os
import re
import tomllib
from dataclasses import dataclass, field

from . import env, kernel, ktap, machine, report, ui
from .ktap import FAIL, PASS, SKIP, Case

DESCRIPTION = env.repo / "selftests" / "tests.toml"
UPSTREAM = ("tools", "testing", "selftests")
PATIENCE = env.repo / "selftests" / "patience.h"

#: What kselftest programs exit with when they have nothing to test.
KSFT_SKIP = 4


@dataclass
class Test:
    name: str
    machines: list
    limit: int
    command: list = field(default_factory=list)
    kunit: str = ""
    stage: str = "selftests"
    drivers: list = field(default_factory=list)
    needs: list = field(default_factory=list)
    subject: str = ""
    env: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    compare: bool = False
    containers: bool = True
    leaks: bool = False
    quiet: bool = False
    says: list = field(default_factory=list)


class Description:
    """tests.toml, checked for what a slip of the pen could make go unnoticed."""

    def __init__(self, path=DESCRIPTION):
        with path.open("rb") as file:
            data = tomllib.load(file)
        self.machines, self.drivers, self.needs = data["machines"], data["drivers"], data["needs"]
        self.subjects = data["subjects"]
        for name, described in self.machines.items():
            if like := described.get("like"):
                self.machines[name] = {**self.machines[like], **described}
        try:
            self.tests = [Test(**test) for described in data["tests"] for test in _each(described)]
        except TypeError as error:
            raise ui.StepFailed(f"{path.name}: {error}")
        for name, driver in self.drivers.items():
            driver.setdefault("of", "type1")
            driver.setdefault("as", name)
        names = [test.name for test in self.tests]
        for test in self.tests:
            for kind, used, known in (("machine", test.machines, {*self.machines, *machine.MACHINES}),
                                      ("driver", test.drivers, self.drivers),
                                      ("need", test.needs, self.needs),
                                      ("subject", filter(None, [test.subject]), self.subjects)):
                for name in set(used) - set(known):
                    raise ui.StepFailed(f"{path.name}: test {test.name} names an unknown {kind}, {name}")
            if bool(test.command) == bool(test.kunit):
                raise ui.StepFailed(f"{path.name}: test {test.name} must have either command or kunit")
            if names.count(test.name) > 1:
                raise ui.StepFailed(f"{path.name}: two tests are called {test.name}")

    def tests_of(self, where):
        """The tests of a machine, some of which run those of another."""
        described = machine.MACHINES[where].tests or where
        return [test for test in self.tests if {where, described} & set(test.machines)]

    def drivers_as(self, sides):
        """The drivers that stand for C, for Rust or for both, of whatever they drive."""
        return [name for name, driver in self.drivers.items() if driver["as"] in sides]

    def upstream(self, kind, arch):
        """Those of the kernel's own selftests of one kind that are run on any machine of an architecture."""
        prefix = f"{{upstream_{kind}}}/"
        machines = {name for name, kind in machine.MACHINES.items() if kernel.RECIPES[kind.kernel].arch == arch}
        return sorted({test.command[0].removeprefix(prefix) for test in self.tests
                       if machines & set(test.machines) and test.command and test.command[0].startswith(prefix)})

    def where(self, names):
        """Which machines have tests, in words."""
        having = {name: [where for where in machine.MACHINES
                         if any(test.name == name for test in self.tests_of(where))] for name in names}
        return "; ".join(f"{name} is a test of {', '.join(machines)}" for name, machines in having.items())

    def select(self, where, stages, only=()):
        chosen = [test for test in self.tests_of(where)
                  if test.stage in stages and (not only or test.name in only)]
        if only and not chosen:
            raise ui.StepFailed(f"no such test on {where}: {', '.join(only)}", hint=self.where(only))
        return chosen


def _each(described):
    """The tests that one description stands for: a program each, if it names several."""
    for program in (each := described.pop("each", [])):
        fill = lambda word: word.replace("{each}", program)
        name = os.path.basename(program).replace("_", "-").removesuffix("-test")
        yield {**described, "name": described["name"].replace("{each}", name), "command": list(map(fill, described["command"]))}
    if not each:
        yield described


class Places:
    """What {kernel}, {modules} and the like stand for on one machine."""

    def __init__(self, **places):
        self.places = {"repo": env.repo, **places}

    def fill(self, text):
        for name, place in self.places.items():
            text = text.replace(f"{{{name}}}", str(place))
        return text

    def file(self, text):
        path = self.fill(text)
        if not os.path.exists(path):
            raise ui.StepFailed(f"{path} does not exist", hint="build it: scripts/dev check build")
        return path

    def modules(self, wanted):
        return [{**module, "path": self.file(module["path"])} for module in wanted]


def build_upstream(source, kernel, arch, userland=None, target="vfio", programs=()):
    """The kernel's own selftests of one kind, static, outside its source; only these programs, if any are named."""
    output = kernel / "upstream-selftests"
    cross = [f"CC={userland.cc(env.toolchain())}"] if userland else []
    # A copy: the build remembers what it was made of, and outlives a checkout.
    patience, wanted = output / PATIENCE.name, PATIENCE.read_bytes()
    if not patience.exists() or patience.read_bytes() != wanted:
        output.mkdir(exist_ok=True)
        patience.write_bytes(wanted)
    flags = ["-static", "-pthread", *(["-fuse-ld=lld"] if userland else [])]
    if programs:
        # Kinds that differ between architectures have lists by architecture, and cannot be position-independent.
        flags.append("-no-pie")
        theirs = arch.removesuffix("_64")
        programs = [f"TEST_GEN_PROGS_{theirs}={' '.join(programs)}", f"TEST_GEN_PROGS_EXTENDED_{theirs}=",
                    f"TEST_PROGS_{theirs}="]
    ui.run(["make", "-C", source.joinpath(*UPSTREAM), f"TARGETS={target}", "FORCE_TARGETS=1",
            f"O={output}", f"ARCH={arch}", *cross,
            f"KHDR_INCLUDES=-isystem {kernel / 'usr' / 'include'}",
            *([] if programs else [f"EXTRA_CFLAGS=-include {patience}"]),
            f"LDFLAGS={' '.join(flags)}", *programs, f"-j{env.nproc()}"],
           title=f"Build the kernel's selftests of {target}", log=env.out / "logs" / f"upstream-selftests-{target}.log",
           hint="they need a C compiler and libuuid's headers: scripts/dev host")
    return output / "kselftest" / target


def plan(description, where, tests, drivers, places, leaks=False):
    """The plan for the runner: a phase without a driver, then one for each."""

    def entry(test, driver=None):
        fill, about = places.fill, {}
        if test.subject:
            files = dict(description.subjects[test.subject])
            wanted = files.pop(name, None) if driver else None
            about = {"subject": {"load": places.file(wanted) if wanted else "",
                                 "absent": [_module_name(file) for file in files.values()]}}
        if driver:
            fill = lambda text: places.fill(
                text.replace("{module_file}", driver["path"]).replace("{module}", driver["name"]).replace("{driver}", name))
        needs = [{**description.needs[need], "name": need,
                  "modules": places.modules(description.needs[need].get("modules", []))}
                 for need in test.needs]
        entry = {**about, "name": test.name, "needs": needs, "limit": test.limit, "containers": test.containers,
                 "settings": {fill(path): value for path, value in test.settings.items()},
                 "env": {key: fill(value) for key, value in test.env.items()}}
        if test.kunit:
            return {**entry, "kunit": places.file(test.kunit)}
        command = [fill(word) for word in test.command]
        # The machine itself knows where its devices are, and nothing else.
        devices = {need for need in test.needs if "device" in description.needs[need]}
        if unknown := set(re.findall(r"\{([a-z]\w*)\}", " ".join(command))) - devices:
            raise ui.StepFailed(f"nothing says what {', '.join(sorted(unknown))} in braces stands for in test {test.name}")
        return {**entry, "command": command}

    modules = {name: _module_name(places.fill(driver["path"])) for name, driver in description.drivers.items()}
    phases = []
    if plain := [entry(test) for test in tests if not test.drivers]:
        phases.append({"name": "plain", "tests": plain})
    for name in drivers:
        of = description.drivers[name]["of"]
        below = [places.fill(path) for path in description.drivers[name].get("below", [])]
        ours = {modules[name], *map(_module_name, below)}
        driver = {**description.drivers[name], "name": modules[name],
                  "parameters": description.machines[where].get("driver_parameters", "") if of == "type1" else "",
                  "rivals": [module for other, module in modules.items()
                             if description.drivers[other]["of"] == of and module not in ours]}
        if members := [entry(test, driver) for test in tests if name in test.drivers]:
            driver |= {"path": places.file(driver["path"]), "below": [places.file(path) for path in below]}
            phases.append({"name": name, "driver": driver, "tests": members})
    if not phases:
        raise ui.StepFailed(f"no test for {where} with the drivers {', '.join(drivers)}")
    return {"modules": places.modules(description.machines[where]["modules"]),
            "leaks": leaks, "phases": phases}


def _module_name(path):
    return os.path.basename(path).removesuffix(".ko").replace("-", "_")


def judge(outcome, run, quiet=False, says=()):
    """What one test's outcome means, as result cases.

    One that is quiet may say it by its exit status alone. Each line it ``says`` if a part passed is the result
    of that part, for programs that skip parts without telling by it.
    """
    cases = ktap.parse(outcome.text)
    leaves = ktap.leaves(cases)
    end = outcome.end
    if end is None:
        leaves.append(Case("end", FAIL, "the machine stopped in this test: "
                           + "; ".join(run.trouble or ["no reason given"])
                           + "\n" + "\n".join([*run.complaints, f"console: {run.console}", *run.tail])))
    elif "skip" in end:
        leaves.append(Case("needs", SKIP, end["skip"]))
    elif "trouble" in end:
        leaves.append(Case("trouble", FAIL, end["trouble"]))
    elif "late" in end:
        leaves.append(Case("time limit", FAIL, f"not done after {end['late']} s; it was killed\n"
                           + "\n".join(outcome.text.splitlines()[-8:])))
    elif end["status"] == KSFT_SKIP and not leaves:
        leaves.append(Case("all", SKIP, "\n".join(outcome.text.splitlines()[-4:])))
    elif end["status"] and all(leaf.status != FAIL for leaf in leaves):
        how = f"exit status {end['status']}" if end["status"] > 0 else f"signal {-end['status']}"
        if not (end["status"] == KSFT_SKIP and all(leaf.status == SKIP for leaf in leaves)):
            leaves.append(Case("exit", FAIL, how + "\n" + "\n".join(outcome.text.splitlines()[-8:])))
    if end is not None and "status" in end:
        said = set(outcome.text.splitlines())
        leaves += [Case(line, PASS if line in said else FAIL, "" if line in said else "it does not say so") for line in says]
    if not leaves and quiet:
        leaves.append(Case("exit", PASS))
    if not leaves:
        leaves.append(Case("results", FAIL, "it printed no result\n"
                           + "\n".join(outcome.text.splitlines()[-8:])))
    if outcome.test == "module":
        # Why a module does not load only the kernel's log says.
        for leaf in leaves:
            if leaf.status == FAIL:
                leaf.detail = "\n".join([leaf.detail, *outcome.kernel.splitlines()[-4:]]).strip()
    if complaints := outcome.complaints():
        leaves.append(Case("kernel log", FAIL, "\n".join(complaints)))
    return leaves


def compare(test, by_driver):
    """One case: do all drivers give the same result for every part?"""
    statuses = {driver: {leaf.name: leaf.status for leaf in leaves} for driver, leaves in by_driver.items()}
    first, *others = statuses
    differences = []
    for other in others:
        for name in dict.fromkeys([*statuses[first], *statuses[other]]):
            one, two = (statuses[driver].get(name, "absent") for driver in (first, other))
            if one != two:
                differences.append(f"{name}: {first} {one}, {other} {two}")
    what = f"same on {' and '.join(statuses)}"
    return Case(what, FAIL if differences else PASS, "\n".join(differences))


def collect(stage, where, runs, tests, planned, folder):
    """Turns the runs of a plan's phases into results of ``stage`` and files under ``folder``."""
    prefix = f"{where}." if stage.name != where else ""
    judged = {}
    described = {test.name: (test.quiet, test.says) for test in tests}
    for phase, run in zip(planned["phases"], runs):
        members = [test["name"] for test in phase["tests"]]
        if "driver" in phase:
            members.append("module")
        for name in members:
            outcome = run.outcomes.get((phase["name"], name))
            suite = f"{prefix}{phase['name']}.{name}"
            if outcome is None:
                why = "; ".join(run.trouble) or "the driver did not load"
                stage.add(suite, "run", FAIL, f"never started: {why}")
                continue
            path = folder / phase["name"] / f"{name}.ktap"
            path.write_text(outcome.text)
            path.with_suffix(".dmesg").write_text(outcome.kernel)
            leaves = judge(outcome, run, *described.get(name, ()))
            judged.setdefault(name, {})[phase["name"]] = leaves
            stage.add_cases(suite, leaves, (outcome.end or {}).get("seconds", 0.0))
        _collect_machine(stage, f"{prefix}{phase['name']}.machine", run)
    for test in tests:
        if test.compare and len(by_driver := judged.get(test.name, {})) > 1:
            case = compare(test, by_driver)
            stage.add(f"{prefix}compare.{test.name}", case.name, case.status, case.detail)


def _collect_machine(stage, suite, run):
    boot = machine.Outcome("boot", "boot", kernel=run.boot_kernel)
    if complaints := boot.complaints():
        stage.add(suite, "boots without complaint", FAIL, "\n".join(complaints))
    if run.trouble:
        stage.add(suite, "runs its plan", FAIL,
                  "\n".join([*run.trouble, f"console: {run.console}", *run.tail]))
    else:
        stage.add(suite, "boots, runs its plan, powers off", PASS, "", run.seconds)


def run_stage(stage, where, boot, tests, drivers, places, description, leaks=False, alone=False):
    """Runs ``tests`` on ``where``, each phase in a boot of its own, and adds what came out to ``stage``.

    Machines run beside each other if there is room, unless they are to be ``alone``.
    """
    folder = report.results / where / stage.name if stage.name != where else report.results / where
    planned = plan(description, machine.MACHINES[where].tests or where, tests, drivers, places, leaks)
    jobs = [(boot(folder / phase["name"]), {**planned, "phases": [phase]}) for phase in planned["phases"]]

    def announce(member, event):
        kind = event["event"]
        if kind == "start":
            ui.info(f"{member.where.name}: Linux {event['release']} is up, "
                    f"{event['uptime']:.1f} s after power-on")
        elif kind == "done":
            key = event["phase"], event["test"]
            how = event.get("skip") or event.get("trouble") or (
                f"killed after {event['late']} s" if "late" in event else "")
            ui.info(f"{'/'.join(key)}: {ui.duration(event['seconds'])}{' ' + how if how else ''}")

    count = sum(len(phase["tests"]) for phase in planned["phases"])
    at_once = 1 if alone else machine.at_once(machine.MACHINES[where])
    with ui.step(f"Boot {where} for {count} test runs"):
        runs = machine.run_all(jobs, announce, at_once)
    collect(stage, where, runs, tests, planned, folder)
