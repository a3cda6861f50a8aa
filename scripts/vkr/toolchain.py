# SPDX-License-Identifier: GPL-2.0
"""Finding rustc with its core sources, bindgen, LLVM and cargo.

The first candidate that can build a kernel wins: what the environment names
(RUSTC, BINDGEN, LLVM, CARGO), then PATH, then where distributions put them.
A rustc without the library sources is passed over, even when it comes first
in PATH, because kernel builds compile ``core`` themselves.
"""

import functools
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from . import env, ui

#: What Linux 7.3 asks for; check_source() compares with the tree in use.
MINIMUM = {"rustc": "1.85.0", "bindgen": "0.71.1", "llvm": "17.0.1"}
#: The host tests follow the kernel's minimum.
MINIMUM_CARGO = MINIMUM["rustc"]
BINDGEN_CLI = "0.73.2"

LLVM_TOOLS = ("clang", "ld.lld", "llvm-ar", "llvm-nm", "llvm-objcopy",
              "llvm-objdump", "llvm-readelf", "llvm-strip")
LLVM_NEWEST, LLVM_OLDEST = 25, 17


@dataclass
class Tool:
    """One tool as found; ``problem`` says why it will not do."""
    name: str
    minimum: str | None
    path: str | None = None
    version: str | None = None
    problem: str | None = None

    @property
    def ok(self):
        return self.problem is None

    @property
    def need(self):
        return f"{self.minimum} or newer" if self.minimum else "that of rustc"


@dataclass
class Toolchain:
    rustc: str
    rustfmt: str
    clippy_driver: str
    bindgen: str
    cargo: str
    llvm: str
    clang: str
    libclang: str

    def make_args(self, arch=None):
        """Variables for the kernel's and our own Makefiles."""
        return ([f"ARCH={arch}"] if arch else []) + [
            f"LLVM={self.llvm}", f"RUSTC={self.rustc}", f"BINDGEN={self.bindgen}",
            f"RUSTFMT={self.rustfmt}", f"CLIPPY_DRIVER={self.clippy_driver}",
            f"HOSTRUSTC={self.rustc}"]

    def env(self):
        """What must be in the environment: bindgen is to load clang's own libclang."""
        return {"LIBCLANG_PATH": self.libclang}

    def fingerprint(self):
        """The versions a built kernel depends on."""
        return {"rustc": _first_line([self.rustc, "--version"]),
                "bindgen": _first_line([self.bindgen, "--version"]),
                "clang": _first_line([self.clang, "--version"])}


def find():
    tools = probe()
    missing = [tool for tool in tools.values() if not tool.ok]
    if missing:
        raise ui.StepFailed(
            "the toolchain is not complete:\n" +
            "\n".join(f"  {tool.name}: {tool.problem}" for tool in missing),
            hint="run `scripts/dev host` and `scripts/dev setup`, or name your own tools with "
                 "RUSTC=, BINDGEN=, LLVM= and CARGO= in the environment")
    clang = tools["clang"].path
    return Toolchain(
        rustc=tools["rustc"].path, rustfmt=tools["rustfmt"].path,
        clippy_driver=tools["clippy-driver"].path, bindgen=tools["bindgen"].path,
        cargo=tools["cargo"].path, llvm=_llvm_spelling(clang), clang=clang,
        libclang=_libclang(clang))


def probe():
    """Every tool by name, found or not; nothing is raised."""
    rustc = _rustc()
    return {tool.name: tool for tool in (
        rustc, _companion(rustc, "rustfmt"), _companion(rustc, "clippy-driver"),
        _cargo(), _bindgen(), _llvm())}


def ensure():
    """The toolchain, with bindgen compiled into the cache if there is none."""
    tools = probe()
    if not tools["bindgen"].ok and tools["cargo"].ok and not os.environ.get("BINDGEN"):
        _install_bindgen(tools["cargo"].path)
    env.toolchain.cache_clear()
    return env.toolchain()


def check_source(source):
    """Raises StepFailed if the tree wants newer tools than the ones found."""
    script = Path(source) / "scripts" / "min-tool-version.sh"
    tools = probe()
    for name, tool in (("rustc", "rustc"), ("bindgen", "bindgen"), ("llvm", "clang")):
        need = ui.output(["sh", script, name], env={"ARCH": "x86_64", "SRCARCH": "x86"}).strip()
        have = tools[tool].version
        if have and _key(have) < _key(need):
            raise ui.StepFailed(
                f"this kernel source needs {name} {need} or newer, {tools[tool].path} is {have}",
                hint=f"install a newer {name} and put it first in PATH")


def at_least(version, minimum):
    return version is not None and _key(version) >= _key(minimum)


def _install_bindgen(cargo):
    with env.lock("bindgen"):
        if (env.paths.bindgen / "bin" / "bindgen").exists():
            return
        done = 0

        def progress(line):
            nonlocal done
            done += line.strip().startswith("Compiling")
            return done, 85

        ui.run([cargo, "install", f"bindgen-cli@{BINDGEN_CLI}", "--locked",
                "--root", env.paths.bindgen],
               title=f"Compile bindgen {BINDGEN_CLI} (about 3 minutes)",
               log=env.paths.logs / "bindgen.log", progress=progress,
               # Keeps cargo from picking up the target directory of a project around it.
               cwd=env.paths.logs, env={"CARGO_TARGET_DIR": str(env.paths.bindgen / "target")},
               hint="crates.io, or the registry your cargo is configured for, must be reachable")
        shutil.rmtree(env.paths.bindgen / "target", ignore_errors=True)


def _rustc():
    tool = Tool("rustc", MINIMUM["rustc"])
    rejected = []
    versioned = sorted(Path("/usr/lib").glob("rust-*/bin/rustc"), reverse=True)
    for path in _candidates("RUSTC", "rustc", *versioned):
        version = _version([path, "--version"])
        if not at_least(version, tool.minimum):
            rejected.append(f"{path} is {version or 'not usable'}")
        elif not (library := _rust_library(path)).is_dir():
            rejected.append(f"{path} has no library sources in {library}")
        else:
            tool.path, tool.version = path, version
            return tool
    tool.problem = "; ".join(rejected) or "not found"
    return tool


def _rust_library(rustc):
    return Path(_first_line([rustc, "--print", "sysroot"]) or "/nonexistent",
                "lib/rustlib/src/rust/library")


def _companion(rustc, name):
    """A tool that has to come with this very compiler."""
    tool = Tool(name, None)
    if not rustc.path:
        tool.problem = "no usable rustc to go with"
        return tool
    sysroot = _first_line([rustc.path, "--print", "sysroot"])
    explicit = os.environ.get(name.upper().replace("-", "_"))
    beside = [explicit] if explicit else [Path(rustc.path).parent / name,
                                          Path(sysroot) / "bin" / name]
    for path in beside:
        version = _version([path, "--version"])
        if version is None:
            continue
        tool.path, tool.version = str(path), version
        # clippy 0.1.96 belongs to rustc 1.96 and loads only its metadata.
        if name == "clippy-driver" and version.split(".")[2] != rustc.version.split(".")[1]:
            tool.problem = f"{path} is {version}, which is not that of rustc {rustc.version}"
        return tool
    tool.problem = f"not found beside {rustc.path}"
    return tool


def _cargo():
    return _simple("cargo", "CARGO", MINIMUM_CARGO,
                   *sorted(Path("/usr/lib").glob("rust-*/bin/cargo"), reverse=True))


def _bindgen():
    return _simple("bindgen", "BINDGEN", MINIMUM["bindgen"],
                   env.paths.bindgen / "bin" / "bindgen",
                   Path.home() / ".cargo" / "bin" / "bindgen")


def _simple(name, variable, need, *more):
    tool = Tool(name, need)
    rejected = []
    for path in _candidates(variable, name, *more):
        version = _version([path, "--version"])
        if at_least(version, need):
            tool.path, tool.version = path, version
            return tool
        rejected.append(f"{path} is {version or 'not usable'}")
    tool.problem = "; ".join(rejected) or "not found"
    return tool


def _llvm():
    """clang, standing for the whole suite in the kernel's LLVM= spelling."""
    tool = Tool("clang", MINIMUM["llvm"])
    rejected = []
    explicit = os.environ.get("LLVM")
    for llvm in [explicit] if explicit else \
            ["1", *(f"-{n}" for n in range(LLVM_NEWEST, LLVM_OLDEST - 1, -1))]:
        clang = shutil.which(_llvm_tool(llvm, "clang"))
        if not clang:
            continue
        version = _version([clang, "--version"])
        absent = [t for t in LLVM_TOOLS if not shutil.which(_llvm_tool(llvm, t))]
        if not at_least(version, tool.minimum):
            rejected.append(f"{clang} is {version or 'not usable'}")
        elif absent:
            rejected.append(f"{clang} comes without {', '.join(absent)}")
        elif not _libclang(clang):
            rejected.append(f"{clang} comes without libclang")
        else:
            tool.path, tool.version = clang, version
            return tool
    tool.problem = "; ".join(rejected) or "not found"
    return tool


def _llvm_tool(llvm, name):
    if llvm.endswith("/"):
        return llvm + name
    return name + (llvm if llvm.startswith("-") else "")


def _llvm_spelling(clang):
    if os.environ.get("LLVM"):
        return os.environ["LLVM"]
    return Path(clang).name.removeprefix("clang") or "1"


@functools.cache
def _libclang(clang):
    if os.environ.get("LIBCLANG_PATH"):
        return os.environ["LIBCLANG_PATH"]
    resources = Path(_first_line([clang, "-print-resource-dir"]) or "/nonexistent")
    multiarch = _first_line([clang, "-print-multiarch"])
    for folder in (resources.parents[1], Path("/usr/lib64"),
                   Path("/usr/lib") / multiarch, Path("/usr/lib")):
        if any(folder.glob("libclang.so*")) or any(folder.glob("libclang-*.so*")):
            return str(folder)
    return ""


def _candidates(variable, name, *more):
    """Absolute paths to try, in order, each once."""
    if os.environ.get(variable):
        return [shutil.which(os.environ[variable]) or os.environ[variable]]
    places = [Path(folder) / name for folder in os.get_exec_path()]
    found = [str(path) for path in (*places, Path("/usr/bin") / name, *more)
             if os.access(path, os.X_OK)]
    return list(dict.fromkeys(found))


@functools.cache
def _said(argv):
    try:
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def _first_line(argv):
    said = _said(tuple(str(word) for word in argv))
    return said.splitlines()[0].strip() if said else ""


def _version(argv):
    found = re.search(r"\d+\.\d+(\.\d+)?", _first_line(argv))
    if not found:
        return None
    return found[0] if found[1] else found[0] + ".0"


def _key(version):
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
