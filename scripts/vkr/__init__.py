# SPDX-License-Identifier: GPL-2.0
"""Set-up, kernels, test machines and checks, behind ``scripts/dev``."""
