/* SPDX-License-Identifier: GPL-2.0 */
/* For test-only modules that post interrupts as an IOMMU does. */
#ifndef VRS_VTD_H
#define VRS_VTD_H

#include <linux/cpumask.h>

#include <asm/apic.h>
#include <asm/posted_intr.h>
#include <asm/smp.h>

/* The CPU that is online and has this NDST, or -1. */
static inline int vrs_cpu_of(u32 ndst)
{
	int cpu;

	for_each_online_cpu(cpu) {
		u32 id = cpu_physical_id(cpu);

		if (ndst == (x2apic_mode ? id : (id << 8) & 0xff00))
			return cpu;
	}
	return -1;
}

enum vrs_posted { VRS_OUTSTANDING, VRS_SUPPRESSED, VRS_NOTIFY };

/*
 * VT-d, "Interrupt-Posting Hardware Operation", after the request was set: sets
 * ON, unless it or SN is set. @sent has the control word that it is notified by.
 */
static inline enum vrs_posted vrs_set_on(struct pi_desc *desc, struct pi_desc *sent)
{
	struct pi_desc old;

	old.control = READ_ONCE(desc->control);
	do {
		if (pi_test_on(&old))
			return VRS_OUTSTANDING;
		if (pi_test_sn(&old))
			return VRS_SUPPRESSED;
		sent->control = old.control;
		pi_set_on(sent);
	} while (!try_cmpxchg64(&desc->control, &old.control, sent->control));
	return VRS_NOTIFY;
}

#endif
