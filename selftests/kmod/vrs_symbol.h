/* SPDX-License-Identifier: GPL-2.0 */
/* For test-only modules that call functions which the kernel keeps to itself. */
#ifndef VRS_SYMBOL_H
#define VRS_SYMBOL_H

#include <linux/kallsyms.h>
#include <linux/string.h>

/* Is @name at @address? Calling anything else would be the end of the machine. */
static inline bool vrs_is_at(const char *name, u64 address)
{
	char symbol[KSYM_SYMBOL_LEN];

	sprint_symbol(symbol, address);
	return !strncmp(symbol, name, strlen(name)) &&
	       !strncmp(symbol + strlen(name), "+0x0/", strlen("+0x0/"));
}

#endif
