# SPDX-License-Identifier: GPL-2.0
"""Everything from a fresh clone to both test kernels."""

from . import env, host, kernel, toolchain


def args_setup(parser):
    parser.add_argument("--source", metavar="TREE|TARBALL",
                        help="build this kernel source (same as KERNEL_SRC=)")


def cmd_setup(args):
    host.ensure()
    toolchain.ensure()
    env.require_venv()
    for machine in kernel.RECIPES:
        kernel.ensure(machine, args.source)
