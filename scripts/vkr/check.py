# SPDX-License-Identifier: GPL-2.0
"""`scripts/dev check`: everything that can be shown about the code, by stages."""

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from . import dpdk, env, guest, kernel, ktap, machine, report, selftests, setup, sysroot, ui, unpacked
from .ktap import FAIL, PASS

#: The machines of the stage that is about the kernels' own checks, and the stages whose tests it runs.
DEBUG = ("uml-debug", "vm-debug", "vm-rt", "arm64-debug")
DEBUG_STAGES = ("kunit", "selftests")

WORKSPACES = (env.repo, env.repo / "selftests")

#: Not part of what Kbuild compiles.
ELSEWHERE = ("Documentation", "build", "samples", "selftests", "target")


def args_check(parser):
    parser.add_argument("stage", nargs="*", metavar="STAGE",
                        help=f"some of {', '.join(STAGES)}; without any: {', '.join(_usual())}")
    parser.add_argument("--test", action="append", default=[], metavar="NAME",
                        help="in the machines, only this test of selftests/tests.toml; repeatable")
    parser.add_argument("--machine", action="append", default=[], metavar="NAME",
                        help=f"of the machines, only this one of {', '.join(machine.MACHINES)}; repeatable")
    parser.add_argument("--driver", action="append", default=[], metavar="NAME",
                        help="in the machines, only this driver: c or rust; repeatable")
    parser.add_argument("--kvm", action="store_true",
                        help="let KVM run the VM; it then has no nested virtualization of its own to test with")


def cmd_check(args):
    for name in args.stage:
        if name not in STAGES:
            raise ui.StepFailed(f"there is no stage {name}", hint=f"take some of {', '.join(STAGES)}")
    for name in args.machine:
        if name not in machine.MACHINES:
            raise ui.StepFailed(f"there is no machine {name}", hint=f"take some of {', '.join(machine.MACHINES)}")
    known = [test.name for test in selftests.Description().tests]
    if unknown := sorted(set(args.test) - set(known)):
        raise ui.StepFailed(f"there is no test {', '.join(unknown)}", hint=f"there are: {', '.join(known)}")
    chosen = [name for name in STAGES if name in (args.stage or _usual())]
    setup.ensure(*dict.fromkeys(kernel for name in chosen for kernel in _kernels(name, args)))
    # Two runs in one checkout would write to the same builds, logs and results.
    with env.lock("check", env.out):
        shutil.rmtree(env.out / "logs", ignore_errors=True)
        found = report.Report()
        for name in chosen:
            with found.stage(name) as stage:
                STAGES[name].run(stage, args)
        return found.finish()


def _usual():
    return [name for name, stage in STAGES.items() if stage.usual]


# The host: nothing here boots anything.

def _host(stage, args):
    chain = env.toolchain()
    with stage.attempt("format", "rustfmt"):
        ui.run([chain.rustfmt, "--check", "--edition", "2021", *_tracked("*.rs")], cwd=env.repo,
               title="Check the format of Rust code", log=_log("rustfmt"), hint="run `make fmt`")
    with stage.attempt("layering", "check-layering"):
        ui.run([sys.executable, env.repo / "scripts" / "check-layering"], cwd=env.repo,
               title="Check the layers", log=_log("layering"),
               hint="Documentation/safety.md says what each layer may do")
    for workspace in WORKSPACES:
        name = workspace.name if workspace != env.repo else "logic"
        with stage.attempt("clippy", f"cargo clippy ({name})"):
            ui.run([chain.cargo, "clippy", "--workspace", "--all-targets", "--", "-D", "warnings"],
                   cwd=workspace, env=_cargo_env(), title=f"Lint the {name} workspace", log=_log("clippy"),
                   hint="clippy for cargo's own toolchain is needed: scripts/dev doctor")
    with stage.attempt("clippy", "modules"):
        _build_modules("x86_64", "CLIPPY=1", variant="-clippy")
    for workspace in WORKSPACES:
        _cargo_test(stage, chain, workspace)
    _unit_tests(stage)
    for script in sorted((env.repo / "scripts" / "tests").glob("*.sh")):
        with stage.attempt("scripts", script.name):
            ui.run(["sh", script], cwd=env.repo, title=f"Run {script.name}", log=_log(script.stem))


def _cargo_test(stage, chain, workspace):
    name = workspace.name if workspace != env.repo else "logic"
    log = _log(f"cargo-test-{name}")
    # cargo counts itself; what it exits with matters where nothing was counted.
    with stage.attempt("cargo test", f"exit status ({name})"):
        ui.run([chain.cargo, "test", "--workspace", "--no-fail-fast"], cwd=workspace,
               env=_cargo_env(), title=f"Test the {name} workspace", log=log)
    if log.exists():
        stage.add_cases(f"cargo test {name}", ktap.parse_libtest(log.read_text(errors="replace")))


def _unit_tests(stage):
    folder = env.repo / "scripts" / "tests"
    log = _log("unittest")
    with stage.attempt("scripts", "unittest exit status"):
        ui.run([sys.executable, "-m", "unittest", "discover", "-v", "-s", folder], cwd=env.repo / "scripts",
               env={"PYTHONPATH": str(env.repo / "scripts")}, title="Test the scripts", log=log)
    if log.exists():
        for match in re.finditer(r"^(\w+) \(([\w.]+)\).*? \.\.\. (ok|FAIL|ERROR|skipped.*)$",
                                 log.read_text(errors="replace"), re.MULTILINE):
            status = {"ok": PASS, "FAIL": FAIL, "ERROR": FAIL}.get(match[3], ktap.SKIP)
            stage.add("scripts", match[2] if match[1] in match[2] else f"{match[2]}.{match[1]}", status)


# Builds. Each is made once a run, whichever stage asks first.

def _build(stage, args):
    for name in kernel.USUAL:
        with stage.attempt("modules", name):
            _modules(name)
    with stage.attempt("programs", "upstream selftests"):
        _upstream()
    with stage.attempt("programs", "test programs"):
        _programs()


@functools.cache
def _kernel(name):
    return kernel.ensure(name)


@functools.cache
def _modules(name):
    return _build_modules(name)


def _build_modules(name, *words, variant=""):
    """Our modules for one kernel, in a copy of the tree: Kbuild builds in place,
    and two kernels in one place would undo each other's work."""
    built = _kernel(name)
    folder = env.out / "modules" / f"{name}{variant}"
    _mirror(folder)
    chain, log = env.toolchain(), _log(f"modules-{name}{variant}")
    # Of an earlier build that failed; its warnings are not this one's.
    log.unlink(missing_ok=True)
    ui.run(["make", "-C", folder, f"KDIR={built.build_dir}",
            *chain.make_args(kernel.RECIPES[name].arch), *words, f"-j{env.nproc()}", "modules"],
           env=chain.env(), title=f"Build the modules for {name}{' with clippy' if variant else ''}", log=log)
    warnings = [line for line in log.read_text(errors="replace").splitlines()
                if re.search(r"\bwarning\b", line, re.IGNORECASE)]
    if warnings:
        # The next build must not be quiet only because this one compiled it all.
        shutil.rmtree(folder)
        raise ui.StepFailed("\n".join([f"the modules for {name} build with {len(warnings)} warnings:",
                                       *warnings[:10]]), hint=f"the full log is {log}")
    return folder


@functools.cache
def _fixture(name):
    """The test-only modules, with devices and with IOMMUs made of software, for one kernel."""
    built = _kernel(name)
    folder = env.out / "modules" / f"{name}-fixture"
    shutil.copytree(env.repo / "selftests" / "kmod", folder, dirs_exist_ok=True)
    chain = env.toolchain()
    ui.run(["make", "-C", built.build_dir, f"M={folder}", *chain.make_args(kernel.RECIPES[name].arch),
            "modules"], env=chain.env(), title=f"Build the test-only modules for {name}",
           log=_log(f"fixture-{name}"))
    return folder


def _mirror(folder):
    """Makes ``folder`` a copy of the sources; times are kept, so make is too."""
    wanted = [path for path in _tracked() if path.split("/")[0] not in ELSEWHERE]
    for name in wanted:
        source, copy = env.repo / name, folder / name
        try:
            same = copy.stat().st_mtime_ns == source.stat().st_mtime_ns and \
                copy.stat().st_size == source.stat().st_size
        except FileNotFoundError:
            same = False
        if not same:
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
    listing = folder / ".mirrored"
    if listing.exists():
        for name in set(listing.read_text().splitlines()) - set(wanted):
            (folder / name).unlink(missing_ok=True)
    listing.write_text("\n".join(wanted))


def _tracked(*patterns):
    """The project's files, with those not committed yet."""
    if (env.repo / ".git").exists():
        listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "--", *patterns],
                                cwd=env.repo, capture_output=True, text=True, check=True)
        names = listed.stdout.splitlines()
    else:
        names = [str(path.relative_to(env.repo)) for pattern in patterns or ("*",)
                 for path in env.repo.rglob(pattern)
                 if path.is_file() and path.relative_to(env.repo).parts[0] not in ("build", "target")]
    return sorted(name for name in set(names) if (env.repo / name).is_file())


@functools.cache
def _upstream(name="x86_64"):
    built, arch = _kernel(name), kernel.RECIPES[name].arch
    return selftests.build_upstream(built.source_dir, built.build_dir, arch, sysroot.ensure(arch))


@functools.cache
def _upstream_kvm(name="x86_64"):
    built, arch = _kernel(name), kernel.RECIPES[name].arch
    return selftests.build_upstream(built.source_dir, built.build_dir, arch, sysroot.ensure(arch), target="kvm",
                                    programs=selftests.Description().upstream("kvm", arch))


@functools.cache
def _programs(arch="x86_64"):
    userland, variables = sysroot.ensure(arch), _cargo_env()
    folder = Path(variables["CARGO_TARGET_DIR"])
    if userland:
        variables |= userland.cargo_env(env.toolchain())
        folder /= userland.architecture.rust_target
    ui.run([env.toolchain().cargo, "build", "--release", "--workspace"], cwd=env.repo / "selftests",
           env=variables, title=f"Build the test programs{f' for {arch}' if userland else ''}", log=_log("programs"))
    return folder / "release"


@functools.cache
def _static_programs(*packages):
    """The folder of programs for machines, and guests, that have nothing but a kernel."""
    target = "x86_64-unknown-linux-gnu"
    variables = _cargo_env() | {f"CARGO_TARGET_{target.upper().replace('-', '_')}_RUSTFLAGS": "-C target-feature=+crt-static"}
    ui.run([env.toolchain().cargo, "build", "--profile", "guest", "--target", target,
            *(word for package in packages for word in ("-p", package))],
           cwd=env.repo / "selftests", env=variables, title="Build static programs", log=_log("programs"))
    return Path(variables["CARGO_TARGET_DIR"]) / target / "guest"


# The machines.

def _kunit(stage, args):
    for where in _chosen(("uml", "vm"), ("kunit",), args):
        _run(stage, where, ("kunit",), args)


def _uml(stage, args):
    _run(stage, "uml", ("selftests",), args)


def _vm(stage, args):
    _run(stage, "vm", ("selftests",), args)


def _iommus(stage, args):
    """What meets real devices, behind the other IOMMUs QEMU has."""
    for where in _chosen(("vm-virtio", "vm-amd"), ("selftests",), args):
        _run(stage, where, ("selftests",), args)


def _dpdk(stage, args):
    """DPDK as the distribution ships it."""
    _run(stage, "vm-wire", ("dpdk",), args, dpdk=dpdk.ensure())


def _leaks(stage, args):
    """The Rust driver once more, under kmemleak, which slows all else down.

    Not on User-Mode Linux, where it takes what modules keep in their data for
    lost: character devices of vfio.ko, for instance.
    """
    _run(stage, "vm", ("selftests",), args, ["rust"], leaks=True)


def _debug(stage, args):
    """What the stages kunit, uml and vm run, on kernels that watch themselves and panic.

    The C driver only if asked for, to tell whose fault a report is: lockdep
    knows its deadlocks, and is silent for good once it has reported one.
    """
    for where in _chosen(DEBUG, DEBUG_STAGES, args):
        kind = machine.MACHINES[where]
        if "kasan" in kernel.RECIPES[kind.kernel].fragments:
            with stage.attempt("modules", f"{kind.kernel}: every crate is instrumented"):
                _check_instrumented(_modules(kind.kernel))
        _run(stage, where, DEBUG_STAGES, args, args.driver or ["rust"])


def _check_instrumented(folder):
    """That the recipe of scripts/Makefile.crates passes on what Kbuild compiles modules with."""
    commands = {path: path.read_text() for path in folder.rglob(".*.o.cmd")}
    crates = {path: text for path, text in commands.items() if "--crate-name" in text}
    plain = [path for path, text in crates.items() if "-Zsanitizer=kernel-address" not in text]
    plain += [path for path in folder.glob("*.ko") if b"__asan_" not in path.read_bytes()]
    if plain or not crates:
        raise ui.StepFailed("no KASAN in " + (", ".join(map(str, plain)) or "any crate"))


def _arm64(stage, args):
    """The tests of logic and those of the VM, on another architecture and its IOMMU."""
    chosen = _chosen(("arm64", "arm64-host"), ("kunit", "selftests", "clients"), args)
    if "arm64" in chosen:
        _run(stage, "arm64", ("kunit", "selftests"), args)
    if "arm64-host" in chosen:
        _run(stage, "arm64-host", ("clients",), args, **_arm64_guest())


def _stage2(stage, args):
    """KVM on arm64: the kernel's own tests with and without our module, and what a guest's faults cost."""
    for where in _chosen(("arm64", "arm64-max", "arm64-icount"), ("kvm",), args):
        _run(stage, where, ("kvm",), args, upstream_kvm=_upstream_kvm("arm64"))


def _clients(stage, args):
    """What users run on type1, unmodified: the distribution's programs, with guests of their own.

    The C driver only on request (--driver): it is here to look into a failure.
    """
    _run(stage, "host", ("clients",), args, args.driver or ["rust"], **_guest())


@functools.cache
def _guest():
    linux = guest.kernel()
    initramfs = guest.initramfs(
        env.out / "machine" / "agent.cpio", env.repo / "scripts" / "guest" / "agent-init", linux,
        ["virtio_pci", "virtio_console", "virtio_mem"], [_static_programs("dmacat") / "dmacat"])
    return {"qemu": machine.qemu(), "guest_kernel": linux.image, "guest_initramfs": initramfs,
            "disk": machine.Vm.disk()}


def _arm64_guest():
    """An unmodified QEMU of the machine's architecture, and a guest of the machine's own kernel."""
    userland = sysroot.ensure("arm64")
    initramfs = guest.initramfs(
        env.out / "machine" / "agent-arm64.cpio", env.repo / "scripts" / "guest" / "agent-init",
        programs=[_programs("arm64") / "barcat"], shell=userland.root / "bin" / "busybox")
    return {"qemu": unpacked.ensure(unpacked.ARM64_QEMU), "guest_kernel": _kernel("arm64").image,
            "guest_initramfs": initramfs}


def _run(stage, where, stages, args, drivers=None, leaks=False, **more):
    if args.machine and where not in args.machine:
        return
    description = selftests.Description()
    kind = machine.MACHINES[where]
    name, built = kind.kernel, _kernel(kind.kernel)
    tests = description.select(where, stages, args.test)
    drivers = description.drivers_as(drivers or args.driver or ["c", "rust"])
    if leaks:
        tests = [test for test in tests if test.leaks]
    leaks = leaks or kind.leaks
    bins = (_static_programs("init", "interrupts") if issubclass(kind.boot, machine.Bochs)
            else _programs(kernel.RECIPES[name].arch))
    places = selftests.Places(kernel=built.build_dir, modules=_modules(name), python=kind.boot.python,
                              upstream=_upstream(name) if issubclass(kind.boot, machine.Vm) else "",
                              bin=bins, fixture=_fixture(name), kvm=kind.boot.kvm_module, **more)
    append = " ".join([kind.append, "kmemleak=on" if leaks else ""])
    boot = functools.partial(kind.boot, built=built, append=append, kvm=args.kvm)
    if issubclass(kind.boot, machine.Bochs):
        boot = functools.partial(boot, init=bins / "init")
    selftests.run_stage(stage, where, boot, tests, drivers, places, description, leaks)


def _hwdbm(stage, args):
    """Dirty bits that an IOMMU sets, in an emulator of our own: none that is packaged has such an IOMMU."""
    _run(stage, "vm-hwdbm", ("hwdbm",), args)


def _kvm(stage, args):
    """KVM's interrupts on a processor with SVM, which injects them."""
    _run(stage, "host", ("kvm",), args, upstream_kvm=_upstream_kvm())


def _vmx(stage, args):
    """KVM's interrupts on a processor with VMX, which posts them."""
    for where in _chosen(("bochs", "bochs-alone"), ("kvm",), args):
        _run(stage, where, ("kvm",), args, upstream_kvm=_upstream_kvm())


class Stage(NamedTuple):
    run: callable
    # The kernels it needs, by their names in kernel.RECIPES.
    kernels: tuple
    # Whether it is a part of `make check`.
    usual: bool = True


STAGES = {
    "host": Stage(_host, ("x86_64",)),
    "build": Stage(_build, kernel.USUAL),
    "kunit": Stage(_kunit, ("um", "x86_64")),
    "uml": Stage(_uml, ("um",)),
    "vm": Stage(_vm, ("x86_64",)),
    "leaks": Stage(_leaks, ("x86_64",)),
    "iommus": Stage(_iommus, ("x86_64",), usual=False),
    "dpdk": Stage(_dpdk, ("x86_64",), usual=False),
    "debug": Stage(_debug, tuple(machine.MACHINES[where].kernel for where in DEBUG), usual=False),
    "arm64": Stage(_arm64, ("arm64",), usual=False),
    "stage2": Stage(_stage2, ("arm64",), usual=False),
    "clients": Stage(_clients, ("x86_64",), usual=False),
    "hwdbm": Stage(_hwdbm, ("x86_64",), usual=False),
    "kvm": Stage(_kvm, ("x86_64",), usual=False),
    "vmx": Stage(_vmx, ("x86_64",), usual=False),
}


def _kernels(name, args):
    if name == "debug":
        # Built only if asked for: they take long.
        return [machine.MACHINES[where].kernel for where in _chosen(DEBUG, DEBUG_STAGES, args, tell=False)]
    return STAGES[name].kernels


def _chosen(machines, stages, args, tell=True):
    """Those of a stage's machines that are asked for: by their names, or else by having a test that is."""
    if args.machine or not args.test:
        return [where for where in machines if not args.machine or where in args.machine]
    description = selftests.Description()
    having = [where for where in machines
              if any(test.name in args.test and test.stage in stages
                     for test in description.tests_of(where))]
    if not having:
        raise ui.StepFailed(f"none of {', '.join(machines)} has a test {' or '.join(args.test)}",
                            hint=description.where(args.test))
    if tell and having != list(machines):
        ui.info(f"{' and '.join(args.test)}: on {', '.join(having)}, not on "
                f"{', '.join(where for where in machines if where not in having)}")
    return having


def _cargo_env():
    return {"CARGO_TARGET_DIR": str(env.out / "cargo"), "CARGO_TERM_COLOR": "never"}


def _log(name):
    return env.out / "logs" / f"{name}.log"
