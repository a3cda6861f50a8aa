# SPDX-License-Identifier: GPL-2.0
"""Everything from a fresh clone to the test kernels."""

from . import env, host, kernel, sysroot, toolchain


def args_setup(parser):
    parser.add_argument("--source", metavar="TREE|TARBALL",
                        help="build this kernel source (same as KERNEL_SRC=)")


def cmd_setup(args):
    ensure(*kernel.USUAL, source=args.source)


def ensure(*machines, source=None):
    """The kernels of these machines, by name; quick if all is there already."""
    host.ensure(*{kernel.RECIPES[machine].arch for machine in machines} & set(sysroot.FOREIGN))
    toolchain.ensure()
    env.require_venv()
    return {machine: kernel.ensure(machine, source) for machine in machines}
