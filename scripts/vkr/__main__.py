# SPDX-License-Identifier: GPL-2.0
"""The table of commands, and nothing else.

A row names a command, the module it lives in and its line of help. For a
command ``do-this`` the module has ``cmd_do_this(args) -> int | None`` and, if
it takes options, ``args_do_this(parser)``. Modules are imported only when
their command runs, so that one with third-party imports cannot stop ``setup``.
"""

import argparse
import importlib
import sys
from typing import NamedTuple

from . import ui


class Command(NamedTuple):
    name: str
    module: str
    help: str

    def function(self, prefix):
        module = importlib.import_module(f"{__package__}.{self.module}")
        return getattr(module, f"{prefix}_{self.name.replace('-', '_')}", None)


COMMANDS = (
    # Set-up.
    Command("setup", "setup", "install packages, find the toolchain, build both test kernels"),
    Command("doctor", "doctor", "list what is needed, what was found, and what to do"),
    Command("host", "host", "install the host packages that are missing (apt)"),
    Command("source", "source", "fetch the kernel source and apply patches/"),
    Command("kernel", "kernel", "build test kernels"),
    Command("env", "kernel", "print KDIR and the toolchain as KEY=value lines"),
    Command("clean-cache", "kernel", "remove cached kernels, or the whole cache"),
    # What they are for.
    Command("demo", "demo", "pass a disk to a guest through the Rust driver, and show it"),
    Command("check", "check", "run all tests, or some stages of them"),
    Command("foreign", "foreign", "run VFIO programs of others on both drivers"),
    Command("latency", "latency", "draw how long interrupts took to get to a guest"),
    Command("fuzz", "fuzz", "make random calls on both drivers, and compare"),
)


def main(argv=None):
    argv = sys.argv[1:] if argv is None else argv
    width = max(len(command.name) for command in COMMANDS)
    listing = "\n".join(f"  {c.name:<{width}}  {c.help}" for c in COMMANDS)
    parser = argparse.ArgumentParser(
        prog="scripts/dev",
        usage="scripts/dev COMMAND [options]",
        description="Development tooling of vfio-kvm-rs.",
        epilog=f"commands:\n{listing}\n\nscripts/dev COMMAND --help lists a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=[c.name for c in COMMANDS],
                        metavar="COMMAND", help="one of those listed below")
    chosen = parser.parse_args(argv[:1])
    command = next(c for c in COMMANDS if c.name == chosen.command)

    options = argparse.ArgumentParser(prog=f"scripts/dev {command.name}",
                                      description=command.help[0].upper() + command.help[1:] + ".")
    return ui.guard(lambda: run(command, options, argv[1:]))


def run(command, options, argv):
    arguments = command.function("args")
    if arguments:
        arguments(options)
    return command.function("cmd")(options.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
