// SPDX-License-Identifier: GPL-2.0

#include <linux/cpuhotplug.h>
#include <linux/cpumask.h>
#include <linux/percpu.h>
#include <linux/spinlock.h>

#include "helpers.h"

void vrs_raw_spin_lock_init(raw_spinlock_t *lock, const char *name, struct lock_class_key *key)
{
#ifdef CONFIG_DEBUG_SPINLOCK
	__raw_spin_lock_init(lock, name, key, LD_WAIT_SPIN);
#else
	*lock = __RAW_SPIN_LOCK_UNLOCKED(*lock);
#endif
}

void vrs_raw_spin_lock(raw_spinlock_t *lock)
{
	raw_spin_lock(lock);
}

void vrs_raw_spin_lock_nested(raw_spinlock_t *lock, int subclass)
{
	raw_spin_lock_nested(lock, subclass);
}

void vrs_raw_spin_unlock(raw_spinlock_t *lock)
{
	raw_spin_unlock(lock);
}

unsigned long vrs_raw_spin_lock_irqsave(raw_spinlock_t *lock)
{
	unsigned long flags;

	raw_spin_lock_irqsave(lock, flags);
	return flags;
}

void vrs_raw_spin_unlock_irqrestore(raw_spinlock_t *lock, unsigned long flags)
{
	raw_spin_unlock_irqrestore(lock, flags);
}

void vrs_raw_spin_also_acquired(raw_spinlock_t *lock, int subclass)
{
	spin_acquire(&lock->dep_map, subclass, 0, _RET_IP_);
}

void vrs_raw_spin_also_released(raw_spinlock_t *lock)
{
	spin_release(&lock->dep_map, _RET_IP_);
}

void __percpu *vrs_alloc_percpu(size_t size, size_t align)
{
	return __alloc_percpu(size, align);
}

bool vrs_cpu_possible(unsigned int cpu)
{
	return cpu_possible(cpu);
}

int vrs_cpu_dead_register(const char *name, int (*dead)(unsigned int cpu))
{
	return cpuhp_setup_state_nocalls(CPUHP_BP_PREPARE_DYN, name, NULL, dead);
}

void vrs_cpu_dead_unregister(int state)
{
	cpuhp_remove_state_nocalls(state);
}
