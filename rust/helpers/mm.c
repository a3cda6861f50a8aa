// SPDX-License-Identifier: GPL-2.0

#include <linux/mm.h>
#include <linux/mm_inline.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>
#include <linux/uaccess.h>

#include "helpers.h"

int vrs_mmap_write_lock_killable(struct mm_struct *mm)
{
	return mmap_write_lock_killable(mm);
}

void vrs_mmap_write_lock(struct mm_struct *mm)
{
	mmap_write_lock(mm);
}

void vrs_mmap_write_unlock(struct mm_struct *mm)
{
	mmap_write_unlock(mm);
}

unsigned long vrs_untagged_addr_remote(struct mm_struct *mm, unsigned long addr)
{
	return untagged_addr_remote(mm, addr);
}

struct page *vrs_pfn_to_page(unsigned long pfn)
{
	return pfn_to_page(pfn);
}

bool vrs_pfn_has_page(unsigned long pfn)
{
	return pfn_valid(pfn);
}

bool vrs_pfn_is_reserved(unsigned long pfn)
{
	return !pfn_valid(pfn) || PageReserved(pfn_to_page(pfn));
}

/* One call for what is asked of every run of pages. */
size_t vrs_page_run(struct page **pages, size_t count, unsigned long *pfn, bool *reserved)
{
	*pfn = page_to_pfn(pages[0]);
	*reserved = PageReserved(pages[0]);
	return num_pages_contiguous(pages, count);
}

unsigned long vrs_memlock_limit(const struct task_struct *task)
{
	return task_rlimit(task, RLIMIT_MEMLOCK);
}

void vrs_task_comm(struct task_struct *task, char *buf, size_t len)
{
	strscpy_pad(buf, task->comm, len);
}

void vrs_cond_resched(void)
{
	cond_resched();
}

bool vrs_fatal_signal_pending(void)
{
	return fatal_signal_pending(current);
}

bool vrs_access_ok(const void __user *addr, unsigned long size)
{
	return access_ok(addr, size);
}
