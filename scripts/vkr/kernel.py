# SPDX-License-Identifier: GPL-2.0
"""The test kernels: configured from scripts/config, built once per key.

The key covers everything the result depends on: source, patches, fragments,
toolchain, and the recipe below. A folder of the cache holds one key's build;
an interrupted one is continued by make itself.
"""

import contextlib
import hashlib
import json
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from . import env, source, toolchain, ui


@dataclass(frozen=True)
class Recipe:
    arch: str
    fragments: tuple
    targets: tuple
    image: str
    # Lines of make's output in a full build, for the percentage only.
    lines: int
    variables: tuple = field(default=())
    # Whether set-up and `make check` need it.
    usual: bool = True


RECIPES = {
    "x86_64": Recipe("x86_64", ("common", "x86_64"), ("bzImage", "modules"),
                     "arch/x86/boot/bzImage", 2212),
    # Kconfig offers the C driver on some architectures only, though it builds
    # anywhere; the comparison of the two drivers wants it here as well.
    "um": Recipe("um", ("common", "um"), ("linux", "modules"),
                 "linux", 1179, ("CONFIG_VFIO_IOMMU_TYPE1=m",)),
    # Kernels that watch themselves, see the stage "debug". Under UML's large
    # code model clang puts data into sections that UML's linker script leaves
    # outside of .bss, where lockdep takes no key of a lock for static. (Its vDSO
    # has another model, for which the flag means nothing.) Not in modules: where
    # theirs is loaded, 32 bits do not reach it.
    "um-debug": Recipe("um", ("common", "um", "debug", "kasan"), ("linux", "modules"), "linux", 1233,
                       ("CONFIG_VFIO_IOMMU_TYPE1=m",
                        "CFLAGS_KERNEL=-mlarge-data-threshold=2147483647 -Wno-unused-command-line-argument"),
                       usual=False),
    "x86_64-debug": Recipe("x86_64", ("common", "x86_64", "debug", "kasan"), ("bzImage", "modules"),
                           "arch/x86/boot/bzImage", 2260, usual=False),
    "x86_64-rt": Recipe("x86_64", ("common", "x86_64", "debug", "rt"), ("bzImage", "modules"),
                        "arch/x86/boot/bzImage", 2230, usual=False),
    "arm64": Recipe("arm64", ("common", "arm64"), ("Image", "modules"),
                    "arch/arm64/boot/Image", 1690, usual=False),
    "arm64-debug": Recipe("arm64", ("common", "arm64", "debug"), ("Image", "modules"),
                          "arch/arm64/boot/Image", 1720, usual=False),
}
USUAL = tuple(name for name, recipe in RECIPES.items() if recipe.usual)


@dataclass(frozen=True)
class Kernel:
    machine: str
    key: str
    build_dir: Path
    source_dir: Path
    image: Path
    release: str


def args_kernel(parser):
    parser.add_argument("machine", nargs="*", metavar="MACHINE",
                        help=f"{', '.join(RECIPES)}; without any: {' and '.join(USUAL)}")
    parser.add_argument("--source", metavar="TREE|TARBALL",
                        help="build this source (same as KERNEL_SRC=)")


def cmd_kernel(args):
    for machine in _machines(args.machine):
        print(ensure(machine, args.source).build_dir)


def args_env(parser):
    parser.add_argument("machine", nargs="?", default="x86_64", metavar="MACHINE",
                        help=f"{', '.join(RECIPES)} (default: x86_64)")
    parser.add_argument("--json", action="store_true", help="as one JSON object")


def cmd_env(args):
    machine, = _machines([args.machine])
    kernel = find(machine)
    if not kernel:
        raise ui.StepFailed(f"the {machine} kernel of this checkout is not built yet",
                            hint=f"run `scripts/dev kernel {machine}`")
    chain = env.toolchain()
    values = {"KDIR": str(kernel.build_dir), "KSRC": str(kernel.source_dir)}
    values |= dict(word.split("=", 1) for word in chain.make_args(RECIPES[machine].arch))
    values |= {"CARGO": chain.cargo, **chain.env()}
    values |= {"IMAGE": str(kernel.image), "RELEASE": kernel.release}
    if args.json:
        print(json.dumps(values, indent=1))
    else:
        print("\n".join(f"{key}={value}" for key, value in values.items()))


def args_clean_cache(parser):
    parser.add_argument("--all", action="store_true",
                        help="the whole cache, with sources, bindgen and the Python environment")


def cmd_clean_cache(args):
    if args.all:
        # By name: VKR_CACHE may point at a folder that holds other things too.
        for path in vars(env.paths).values():
            if path != env.paths.cache and path.exists():
                _remove(path)
        return
    current = [kernel for kernel in map(find, RECIPES) if kernel]
    keep = {kernel.build_dir for kernel in current} | {kernel.source_dir for kernel in current}
    for path in (*env.paths.kernels.glob("*"), *env.paths.src.glob("*")):
        if path.is_dir() and path not in keep:
            _remove(path)
            path.with_name(path.name + ".json").unlink(missing_ok=True)
    for kernel in current:
        ui.info(f"kept, as this checkout uses it: {kernel.build_dir}")


def ensure(machine, given=None):
    """The built kernel of a machine; builds what is missing."""
    recipe = RECIPES[machine]
    chain = toolchain.ensure()
    tree = source.ensure(given)
    kernel = _describe(machine, tree, chain)
    if _is_built(kernel):
        return _with_release(kernel)
    toolchain.check_source(tree.dir)
    with env.lock(f"kernel-{kernel.key}"), ui.step(f"Kernel {tree.version} for {machine}"):
        state = kernel.build_dir / ".vkr"
        state.mkdir(parents=True, exist_ok=True)
        (state / "key.json").write_text(json.dumps(_inputs(machine, tree, chain), indent=1) + "\n")
        make = _Make(kernel, recipe, chain)
        for name, action in (("configure", _configure), ("build", _build), ("headers", _headers)):
            stamp = state / name
            if not stamp.exists():
                action(kernel, recipe, make)
                stamp.touch()
    return _with_release(kernel)


def find(machine, given=None):
    """The built kernel, or None; never builds, downloads or installs."""
    tree = source.prepared(given)
    if not tree:
        return None
    kernel = _describe(machine, tree, env.toolchain())
    return _with_release(kernel) if _is_built(kernel) else None


class _Make:
    """make in the source tree with the output in the build folder."""

    def __init__(self, kernel, recipe, chain):
        self.kernel = kernel
        self.recipe = recipe
        self.chain = chain
        self.log = env.paths.logs / f"kernel-{kernel.key}.log"

    def argv(self, *words, out=None, arch=None):
        return ["make", "-C", self.kernel.source_dir, f"O={out or self.kernel.build_dir}",
                f"-j{env.nproc()}", *self.chain.make_args(arch or self.recipe.arch),
                *self.recipe.variables, *words]

    def __call__(self, *words, title, progress=None, hint=None, **places):
        ui.run(self.argv(*words, **places), title=title, log=self.log, progress=progress,
               env=self.chain.env(), hint=hint)


def _configure(kernel, recipe, make):
    fragments = _fragments(recipe)
    config = kernel.build_dir / ".config"
    make("tinyconfig", title="Configure: tinyconfig",
         hint="if make says that the source tree is not clean, run `make mrproper` in it")
    merge = kernel.source_dir / "scripts" / "kconfig" / "merge_config.sh"
    ui.run(["sh", merge, "-m", "-Q", "-O", kernel.build_dir, config, *fragments],
           title="Configure: merge " + " ".join(f.name for f in fragments), log=make.log,
           cwd=kernel.source_dir, env={"KCONFIG_CONFIG": str(config)})
    make("olddefconfig", title="Configure: olddefconfig")
    lost = lost_options(config.read_text(), [f.read_text() for f in fragments])
    if lost:
        raise ui.StepFailed(
            "Kconfig did not accept these lines of scripts/config:\n" +
            "\n".join(f"  {wanted} (is: {actual})" for wanted, actual in lost), log=None,
            hint=f"a dependency is missing or the option is gone; compare {config}")


def lost_options(config, fragments):
    """(wanted line, actual value) of each fragment line that had no effect.

    A later fragment overrides an earlier one, as for merge_config.sh.
    """
    pattern = re.compile(r"^(CONFIG_\w+)=(.*)$", re.MULTILINE)
    actual = dict(pattern.findall(config))
    wanted = {}
    for fragment in fragments:
        wanted |= dict(pattern.findall(fragment))
    return [(f"{name}={value}", actual.get(name, "n")) for name, value in wanted.items()
            if actual.get(name, "n") != value]


def _build(kernel, recipe, make):
    done = sum(1 for _ in kernel.build_dir.rglob(".*.o.cmd"))

    def progress(line):
        nonlocal done
        done += bool(re.match(r"  [A-Z]", line))
        return done, recipe.lines

    make(*recipe.targets, title=f"Build {' and '.join(recipe.targets)}", progress=progress,
         hint="run the same command again to resume; the log's first error line says more")


def _headers(kernel, recipe, make):
    if recipe.arch == "um":
        # UML has no user headers of its own: its programs are the host's.
        make("headers_install", f"INSTALL_HDR_PATH={kernel.build_dir / 'usr'}",
             title="Install user headers", arch="x86_64", out=kernel.build_dir / ".vkr" / "uapi")
    else:
        make("headers", title="Install user headers")


def _describe(machine, tree, chain):
    inputs = json.dumps(_inputs(machine, tree, chain), sort_keys=True)
    digest = hashlib.sha256(inputs.encode()).hexdigest()[:12]
    key = f"{machine}-{tree.version}-{digest}"
    build = env.paths.kernels / key
    return Kernel(machine, key, build, tree.dir, build / RECIPES[machine].image, release="")


def _inputs(machine, tree, chain):
    recipe = RECIPES[machine]
    return {"source": tree.identity(), "toolchain": chain.fingerprint(),
            "recipe": [recipe.arch, *recipe.targets, *recipe.variables],
            "fragments": [line for fragment in _fragments(recipe)
                          for line in fragment.read_text().splitlines()
                          if line.startswith("CONFIG_")]}


def _fragments(recipe):
    return [env.repo / "scripts" / "config" / f"{name}.config" for name in recipe.fragments]


def _is_built(kernel):
    return (kernel.build_dir / ".vkr" / "headers").exists() and kernel.image.exists()


def _with_release(kernel):
    release = (kernel.build_dir / "include" / "config" / "kernel.release").read_text().strip()
    return Kernel(**{**vars(kernel), "release": release})


def _machines(names):
    for name in names:
        if name not in RECIPES:
            raise ui.StepFailed(f"there is no machine {name}", hint=f"take {' or '.join(RECIPES)}")
    return names or list(USUAL)


def _remove(path):
    with ui.step(f"Remove {path}"), contextlib.suppress(FileNotFoundError):
        shutil.rmtree(path)
