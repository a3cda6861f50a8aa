// SPDX-License-Identifier: GPL-2.0
/*
 * Test only: IOMMUs made of software, each with VFIO devices behind it that
 * do DMA when user space says so. They need neither PCI nor an IOMMU of the
 * machine, and differ from each other as real ones do.
 *
 * What a device does goes through the page table each time, or through a
 * model of an IOTLB: what is cached there stays valid until it is flushed,
 * whatever became of the page table. A driver that forgets to flush lets the
 * device go on.
 *
 * Locks, in the order in which they are taken:
 *
 *   vrs_device::lock   background DMA, the device's own memory
 *   vrs_device::pin_lock  the page its driver has pinned; held across
 *                      vfio_pin_pages() and taken in dma_unmap
 *   vrs_domain::lock   ports that use a page table, tables that wait to be
 *                      freed, flags of the domain
 *   vrs_engine::lock   the page table an engine uses, and its IOTLB
 *
 * An engine holds its lock from the look-up of an address until it is done
 * with the memory, at most 4K of it. A flush takes the lock of each engine in
 * turn. So it waits for DMA in flight, as hardware does, and what was taken
 * out of a page table before a flush can be freed after it. All that reads
 * page tables on behalf of a device is an engine.
 *
 * Mapping and unmapping lock nothing. As everywhere, callers do not work on
 * one range at the same time; a table goes only with its whole range.
 */
#include <linux/debugfs.h>
#include <linux/highmem.h>
#include <linux/iommu.h>
#include <linux/iova_bitmap.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/platform_device.h>
#include <linux/prandom.h>
#include <linux/property.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/vfio.h>
#include <linux/workqueue.h>
#include <uapi/linux/iommufd.h>

#include "vrs_iommu.h"

#define VRS_PORTS_PER_UNIT	2
#define VRS_TLB_ENTRIES		64
#define VRS_REGION_ORDER	(22 - PAGE_SHIFT)

static_assert(PAGE_SIZE == SZ_4K);
static_assert(PAGE_SIZE << VRS_REGION_ORDER == VRS_IOMMU_REGION);
static_assert(VRS_REGION_ORDER <= MAX_PAGE_ORDER);

/* An entry of a page table: an address, a multiple of 4K, and these. */
#define VRS_READ	BIT_ULL(0)
#define VRS_WRITE	BIT_ULL(1)
#define VRS_CACHE	BIT_ULL(2)
#define VRS_ACCESSED	BIT_ULL(3)
#define VRS_DIRTY	BIT_ULL(4)
#define VRS_LEAF	BIT_ULL(5)
#define VRS_TABLE	BIT_ULL(6)
#define VRS_ADDRESS	GENMASK_ULL(63, 12)

#define VRS_TABLE_BITS	9
#define VRS_TABLE_SIZE	BIT(VRS_TABLE_BITS)

struct vrs_failure {
	atomic_t left;
	int error;
};

/* A kind of IOMMU. */
struct vrs_unit {
	const char *name;
	unsigned long page_sizes;
	unsigned int address_bits;
	/* Can make all DMA coherent. */
	bool coherent;
	/* Can track what devices write. */
	bool dirty;
	/* Has operations of its own: its domains serve no other unit. */
	bool foreign;

	struct iommu_device iommu;
	struct fwnode_handle *fwnode;
	struct vrs_failure failures[VRS_IOMMU_FAIL_KINDS];
	atomic_t open;
	atomic64_t domains, tables, leaves[3];
	atomic64_t maps, unmaps, flushes, attaches, faults, failed;
};

#define VRS_ALL_SIZES	(SZ_4K | SZ_2M | SZ_1G)

static struct vrs_unit vrs_units[] = {
	{ "plain", VRS_ALL_SIZES, 48, .coherent = true },
	{ "small", SZ_4K, 48, .coherent = true },
	{ "big", SZ_2M | SZ_1G, 48, .coherent = true },
	{ "noncoherent", VRS_ALL_SIZES, 48 },
	{ "dirty", VRS_ALL_SIZES, 48, .coherent = true, .dirty = true },
	{ "reserved", VRS_ALL_SIZES, 48, .coherent = true },
	{ "narrow", VRS_ALL_SIZES, 39, .coherent = true },
	{ "wide", VRS_ALL_SIZES, 64, .coherent = true },
	{ "foreign", VRS_ALL_SIZES, 48, .coherent = true, .foreign = true },
};

static const struct {
	const char *unit;
	unsigned int index;
	phys_addr_t start;
	size_t length;
	enum iommu_resv_type type;
} vrs_reserved[] = {
	{ "reserved", 0, 0x10000000, SZ_16M, IOMMU_RESV_RESERVED },
	{ "reserved", 0, 0x20000000, SZ_2M, IOMMU_RESV_DIRECT_RELAXABLE },
	{ "reserved", 0, 0xfee00000, SZ_1M, IOMMU_RESV_MSI },
	{ "reserved", 1, 0x08000000, SZ_1M, IOMMU_RESV_SW_MSI },
	{ "reserved", 1, 0x40003000, SZ_16K, IOMMU_RESV_RESERVED },
};

struct vrs_domain {
	struct iommu_domain domain;
	struct vrs_unit *unit;
	u64 *root;
	unsigned int levels;
	spinlock_t lock;
	struct list_head ports;
	/* Tables that are out of the page table, and may still be in use. */
	struct list_head limbo;
	bool enforced;
	bool tracking;
};

struct vrs_tlb {
	/* The address without its lowest 12 bits; below them, whether valid. */
	u64 tag;
	/* What the page table had, for 4K. */
	u64 entry;
	/* Writes need not look at the page table. */
	bool written;
};
#define VRS_TLB_VALID	1ULL

/* What does DMA, or reads a page table for other reasons. */
struct vrs_engine {
	spinlock_t lock;
	/* NULL if it is blocked. */
	struct vrs_domain *domain;
	struct vrs_tlb tlb[VRS_TLB_ENTRIES];
};

/* Where a device is connected to its unit. The last engine is for WALK. */
struct vrs_port {
	struct vrs_unit *unit;
	unsigned int index;
	struct platform_device *pdev;
	struct vrs_engine engines[VRS_IOMMU_ENGINES + 1];
	/* In vrs_domain::ports; protected by that domain's lock. */
	struct list_head node;
	/* The page table in use, if any; protected by the group's mutex. */
	struct vrs_domain *domain;
};

static struct vrs_port *vrs_ports[ARRAY_SIZE(vrs_units) * VRS_PORTS_PER_UNIT];

static struct iommu_ops *vrs_ops, *vrs_foreign_ops;
static const struct iommu_domain_ops vrs_domain_ops, vrs_foreign_domain_ops;
static const struct iommu_dirty_ops vrs_dirty_ops;
static struct workqueue_struct *vrs_wq;
static struct dentry *vrs_debugfs;

/* Marks memory of our devices among all reserved pages. */
static const char vrs_region_owner[1];

static struct vrs_domain *to_vrs_domain(struct iommu_domain *domain)
{
	return container_of(domain, struct vrs_domain, domain);
}

/* The error a call has to fail with, or 0. */
static int vrs_injected(struct vrs_unit *unit, enum vrs_iommu_what what)
{
	struct vrs_failure *failure = &unit->failures[what];

	if (!atomic_read(&failure->left) ||
	    atomic_dec_if_positive(&failure->left))
		return 0;
	atomic64_inc(&unit->failed);
	return -READ_ONCE(failure->error);
}

/* The page table. */

static unsigned int vrs_shift(unsigned int level)
{
	return PAGE_SHIFT + level * VRS_TABLE_BITS;
}

static u64 *vrs_slot(u64 *table, unsigned int level, u64 iova)
{
	return &table[(iova >> vrs_shift(level)) & (VRS_TABLE_SIZE - 1)];
}

static u64 *vrs_child(u64 entry)
{
	return phys_to_virt(entry & VRS_ADDRESS);
}

static u64 *vrs_table_alloc(struct vrs_unit *unit, gfp_t gfp)
{
	u64 *table;

	if (vrs_injected(unit, VRS_IOMMU_FAIL_TABLE))
		return NULL;
	table = (u64 *)get_zeroed_page(gfp);
	if (table)
		atomic64_inc(&unit->tables);
	return table;
}

static void vrs_table_free(struct vrs_unit *unit, u64 *table)
{
	atomic64_dec(&unit->tables);
	free_page((unsigned long)table);
}

/* The entry for @iova on the lowest level there is, and that level. */
static u64 *vrs_find(struct vrs_domain *dom, u64 iova, unsigned int *level)
{
	u64 *table = dom->root;

	for (*level = dom->levels - 1; ; --*level) {
		u64 *slot = vrs_slot(table, *level, iova);
		u64 entry = READ_ONCE(*slot);

		if (!(entry & VRS_TABLE))
			return slot;
		table = vrs_child(entry);
	}
}

/* The entry for @iova on a level, with tables made on the way there. */
static u64 *vrs_make(struct vrs_domain *dom, u64 iova, unsigned int wanted,
		     gfp_t gfp)
{
	unsigned int level = dom->levels - 1;
	u64 *table = dom->root;

	for (;;) {
		u64 *slot = vrs_slot(table, level, iova);
		u64 entry = READ_ONCE(*slot);

		if (level == wanted)
			return slot;
		if (entry & VRS_LEAF)
			return ERR_PTR(-EEXIST);
		if (!entry) {
			u64 *child = vrs_table_alloc(dom->unit, gfp);

			if (!child)
				return ERR_PTR(-ENOMEM);
			entry = cmpxchg(slot, 0, virt_to_phys(child) | VRS_TABLE);
			if (entry) {
				/* A neighbour was faster. */
				vrs_table_free(dom->unit, child);
				continue;
			}
			table = child;
		} else {
			table = vrs_child(entry);
		}
		level--;
	}
}

static bool vrs_table_empty(u64 *table)
{
	unsigned int i;

	for (i = 0; i < VRS_TABLE_SIZE; i++) {
		u64 entry = READ_ONCE(table[i]);

		if (entry & VRS_LEAF ||
		    (entry & VRS_TABLE && !vrs_table_empty(vrs_child(entry))))
			return false;
	}
	return true;
}

/* Puts a table and what hangs on it aside, to be freed after a flush. */
static void vrs_discard(struct vrs_domain *dom, u64 *table)
{
	unsigned int i;

	for (i = 0; i < VRS_TABLE_SIZE; i++) {
		u64 entry = READ_ONCE(table[i]);

		if (entry & VRS_TABLE)
			vrs_discard(dom, vrs_child(entry));
	}
	spin_lock(&dom->lock);
	list_add(&virt_to_page(table)->lru, &dom->limbo);
	spin_unlock(&dom->lock);
}

static void vrs_count_leaf(struct vrs_domain *dom, unsigned int level, int by)
{
	atomic64_add(by, &dom->unit->leaves[level]);
}

/* What a device reached until now nobody may have given back before. */
static void vrs_expect_pinned(const struct vrs_tlb *tlb)
{
	unsigned long pfn = PHYS_PFN(tlb->entry & VRS_ADDRESS);
	struct page *page;

	if (!pfn_valid(pfn))
		return;
	page = pfn_to_page(pfn);
	if (!PageReserved(page) && !folio_maybe_dma_pinned(page_folio(page)))
		pr_err("BUG: flushed %#llx after its page was unpinned\n",
		       tlb->tag & ~VRS_TLB_VALID);
}

/* Flushes a range, and frees what waited for that. */
static void vrs_flush(struct vrs_domain *dom, u64 first, u64 last)
{
	struct page *page, *next;
	struct vrs_port *port;
	LIST_HEAD(unused);

	atomic64_inc(&dom->unit->flushes);
	spin_lock(&dom->lock);
	list_splice_init(&dom->limbo, &unused);
	list_for_each_entry(port, &dom->ports, node) {
		struct vrs_engine *engine;

		for (engine = port->engines;
		     engine < port->engines + ARRAY_SIZE(port->engines);
		     engine++) {
			unsigned int i;

			spin_lock(&engine->lock);
			for (i = 0; i < VRS_TLB_ENTRIES; i++) {
				struct vrs_tlb *tlb = &engine->tlb[i];
				u64 iova = tlb->tag & ~VRS_TLB_VALID;

				if (!tlb->tag || iova > last ||
				    iova < round_down(first, SZ_4K))
					continue;
				vrs_expect_pinned(tlb);
				tlb->tag = 0;
			}
			spin_unlock(&engine->lock);
		}
	}
	spin_unlock(&dom->lock);

	list_for_each_entry_safe(page, next, &unused, lru) {
		list_del(&page->lru);
		vrs_table_free(dom->unit, page_address(page));
	}
}

/* Empty tables are left of smaller pages: makes room for a leaf. */
static int vrs_collapse(struct vrs_domain *dom, u64 *slot, u64 entry)
{
	u64 *table = vrs_child(entry);

	if (!vrs_table_empty(table))
		return -EEXIST;
	if (cmpxchg(slot, entry, 0) != entry)
		return -EEXIST;
	vrs_discard(dom, table);
	vrs_flush(dom, 1, 0);
	return 0;
}

static int vrs_map_pages(struct iommu_domain *domain, unsigned long iova,
			 phys_addr_t phys, size_t size, size_t count, int prot,
			 gfp_t gfp, size_t *mapped)
{
	struct vrs_domain *dom = to_vrs_domain(domain);
	unsigned int level;
	u64 flags = VRS_LEAF;
	u64 last;
	int ret;

	atomic64_inc(&dom->unit->maps);
	if (WARN_ON(!is_power_of_2(size) || !(size & domain->pgsize_bitmap)) ||
	    !IS_ALIGNED(iova | phys, size))
		return -EINVAL;
	if (check_add_overflow(iova, size * count - 1, &last) ||
	    last > domain->geometry.aperture_end)
		return -ERANGE;
	ret = vrs_injected(dom->unit, VRS_IOMMU_FAIL_MAP);
	if (ret)
		return ret;

	if (prot & IOMMU_READ)
		flags |= VRS_READ;
	if (prot & IOMMU_WRITE)
		flags |= VRS_WRITE;
	if (prot & IOMMU_CACHE)
		flags |= VRS_CACHE;
	level = (ilog2(size) - PAGE_SHIFT) / VRS_TABLE_BITS;

	while (count--) {
		u64 *slot = vrs_make(dom, iova, level, gfp);
		u64 entry;

		if (IS_ERR(slot))
			return PTR_ERR(slot);
		ret = vrs_injected(dom->unit, VRS_IOMMU_FAIL_LEAF);
		if (ret)
			return ret;
		entry = READ_ONCE(*slot);
		if (entry & VRS_TABLE) {
			ret = vrs_collapse(dom, slot, entry);
			if (ret)
				return ret;
		}
		if (cmpxchg(slot, 0, phys | flags))
			return -EEXIST;
		vrs_count_leaf(dom, level, 1);
		iova += size;
		phys += size;
		*mapped += size;
	}
	return 0;
}

/* Takes out all tables whose range is within [first, last]. */
static void vrs_prune(struct vrs_domain *dom, u64 *table, unsigned int level,
		      u64 base, u64 first, u64 last)
{
	u64 span = 1ULL << vrs_shift(level);
	unsigned int i;

	for (i = 0; i < VRS_TABLE_SIZE; i++, base += span) {
		u64 entry = READ_ONCE(table[i]);

		if (!(entry & VRS_TABLE) || base + (span - 1) < first ||
		    base > last)
			continue;
		if (base >= first && base + (span - 1) <= last) {
			WRITE_ONCE(table[i], 0);
			vrs_discard(dom, vrs_child(entry));
		} else if (level > 1) {
			vrs_prune(dom, vrs_child(entry), level - 1, base, first,
				  last);
		}
	}
}

static size_t vrs_unmap_pages(struct iommu_domain *domain, unsigned long iova,
			      size_t size, size_t count,
			      struct iommu_iotlb_gather *gather)
{
	struct vrs_domain *dom = to_vrs_domain(domain);
	struct vrs_unit *unit = dom->unit;
	size_t wanted = size * count, done = 0;

	atomic64_inc(&unit->unmaps);
	if (iova > domain->geometry.aperture_end ||
	    vrs_injected(unit, VRS_IOMMU_FAIL_UNMAP))
		return 0;
	if (vrs_injected(unit, VRS_IOMMU_FAIL_UNMAP_SHORT))
		wanted = 1;

	while (done < wanted) {
		unsigned int level;
		u64 *slot = vrs_find(dom, iova + done, &level);
		u64 leaf = 1ULL << vrs_shift(level);

		/* Leaves go as a whole or not at all. */
		if (!(READ_ONCE(*slot) & VRS_LEAF) ||
		    !IS_ALIGNED(iova + done, leaf))
			break;
		xchg(slot, 0);
		vrs_count_leaf(dom, level, -1);
		done += leaf;
		if (iova + done == 0)
			break;
	}
	if (!done)
		return 0;
	/* The core tries the rest at once, which has to fail too. */
	if (wanted == 1 && done < size * count)
		atomic_set(&unit->failures[VRS_IOMMU_FAIL_UNMAP].left, 1);
	iommu_iotlb_gather_add_range(gather, iova, done);
	if (done >= SZ_2M)
		vrs_prune(dom, dom->root, dom->levels - 1, 0, iova,
			  iova + (done - 1));
	return done;
}

static void vrs_iotlb_sync(struct iommu_domain *domain,
			   struct iommu_iotlb_gather *gather)
{
	vrs_flush(to_vrs_domain(domain), gather->start, gather->end);
}

static void vrs_flush_iotlb_all(struct iommu_domain *domain)
{
	vrs_flush(to_vrs_domain(domain), 0, U64_MAX);
}

static phys_addr_t vrs_leaf_phys(u64 entry, unsigned int level, u64 iova)
{
	return (entry & VRS_ADDRESS) | (iova & ((1ULL << vrs_shift(level)) - 1));
}

static phys_addr_t vrs_iova_to_phys(struct iommu_domain *domain, dma_addr_t iova)
{
	struct vrs_domain *dom = to_vrs_domain(domain);
	unsigned int level;
	u64 entry;

	if (iova > domain->geometry.aperture_end)
		return 0;
	entry = READ_ONCE(*vrs_find(dom, iova, &level));
	return entry & VRS_LEAF ? vrs_leaf_phys(entry, level, iova) : 0;
}

static int vrs_set_dirty_tracking(struct iommu_domain *domain, bool enable)
{
	struct vrs_domain *dom = to_vrs_domain(domain);

	WRITE_ONCE(dom->tracking, enable);
	vrs_flush(dom, 0, U64_MAX);
	return 0;
}

static int vrs_read_and_clear_dirty(struct iommu_domain *domain,
				    unsigned long iova, size_t size,
				    unsigned long flags,
				    struct iommu_dirty_bitmap *dirty)
{
	struct vrs_domain *dom = to_vrs_domain(domain);
	u64 at = iova, last = iova + (size - 1);

	if (!READ_ONCE(dom->tracking) && dirty->bitmap)
		return -EINVAL;

	while (at <= last && at <= domain->geometry.aperture_end) {
		unsigned int level;
		u64 *slot = vrs_find(dom, at, &level);
		u64 span = 1ULL << vrs_shift(level);
		u64 entry = READ_ONCE(*slot);

		at = round_down(at, span);
		while (entry & VRS_LEAF && entry & VRS_DIRTY) {
			u64 clean = entry & ~VRS_DIRTY;
			u64 found = entry;

			if (!(flags & IOMMU_DIRTY_NO_CLEAR))
				found = cmpxchg(slot, entry, clean);
			if (found == entry) {
				iommu_dirty_bitmap_record(dirty, at, span);
				break;
			}
			entry = found;
		}
		if (check_add_overflow(at, span, &at))
			break;
	}
	return 0;
}

static const struct iommu_dirty_ops vrs_dirty_ops = {
	.set_dirty_tracking = vrs_set_dirty_tracking,
	.read_and_clear_dirty = vrs_read_and_clear_dirty,
};

/* Domains and ports. */

static struct vrs_port *vrs_port_of(struct device *dev)
{
	return dev_iommu_priv_get(dev);
}

/* Makes all engines of a port use a page table, or none. */
static void vrs_switch(struct vrs_port *port, struct vrs_domain *dom)
{
	struct vrs_engine *engine;

	for (engine = port->engines;
	     engine < port->engines + ARRAY_SIZE(port->engines); engine++) {
		spin_lock(&engine->lock);
		engine->domain = dom;
		memset(engine->tlb, 0, sizeof(engine->tlb));
		spin_unlock(&engine->lock);
	}
}

/* DMA is blocked on return. */
static void vrs_leave(struct vrs_port *port)
{
	struct vrs_domain *dom = port->domain;

	vrs_switch(port, NULL);
	if (!dom)
		return;
	spin_lock(&dom->lock);
	list_del(&port->node);
	spin_unlock(&dom->lock);
	port->domain = NULL;
}

static int vrs_attach(struct iommu_domain *domain, struct device *dev,
		      struct iommu_domain *old)
{
	struct vrs_domain *dom = to_vrs_domain(domain);
	struct vrs_port *port = vrs_port_of(dev);
	struct vrs_unit *unit = port->unit;
	int ret;

	if (domain->pgsize_bitmap & ~unit->page_sizes ||
	    dom->unit->address_bits > unit->address_bits ||
	    (domain->dirty_ops && dom->unit != unit && !unit->dirty) ||
	    (READ_ONCE(dom->enforced) && !unit->coherent))
		return -EINVAL;
	ret = vrs_injected(unit, VRS_IOMMU_FAIL_ATTACH);
	if (ret)
		return ret;
	if (port->domain == dom)
		return 0;

	vrs_leave(port);
	spin_lock(&dom->lock);
	list_add_tail(&port->node, &dom->ports);
	spin_unlock(&dom->lock);
	port->domain = dom;
	vrs_switch(port, dom);
	atomic64_inc(&unit->attaches);
	return 0;
}

static int vrs_attach_none(struct iommu_domain *domain, struct device *dev,
			   struct iommu_domain *old)
{
	vrs_leave(vrs_port_of(dev));
	return 0;
}

static const struct iommu_domain_ops vrs_none_ops = {
	.attach_dev = vrs_attach_none,
};

/* The devices do no DMA but for VFIO, so identity need not be any better. */
static struct iommu_domain vrs_identity = {
	.type = IOMMU_DOMAIN_IDENTITY,
	.ops = &vrs_none_ops,
};

static struct iommu_domain vrs_blocked = {
	.type = IOMMU_DOMAIN_BLOCKED,
	.ops = &vrs_none_ops,
};

static bool vrs_enforce_cache_coherency(struct iommu_domain *domain)
{
	struct vrs_domain *dom = to_vrs_domain(domain);
	bool coherent = dom->unit->coherent;
	struct vrs_port *port;

	spin_lock(&dom->lock);
	list_for_each_entry(port, &dom->ports, node)
		coherent &= port->unit->coherent;
	dom->enforced |= coherent;
	spin_unlock(&dom->lock);
	return coherent;
}

static struct iommu_domain *
vrs_domain_alloc(struct device *dev, u32 flags,
		 const struct iommu_user_data *user_data)
{
	struct vrs_unit *unit = vrs_port_of(dev)->unit;
	bool dirty = flags & IOMMU_HWPT_ALLOC_DIRTY_TRACKING;
	struct vrs_domain *dom;
	int ret;

	/* As in arm-smmu-v3, who asks for dirty tracking has to know whether there is any. */
	if (user_data || flags & ~IOMMU_HWPT_ALLOC_DIRTY_TRACKING)
		return ERR_PTR(-EOPNOTSUPP);
	ret = vrs_injected(unit, VRS_IOMMU_FAIL_ALLOC);
	if (ret)
		return ERR_PTR(ret);

	dom = kzalloc_obj(*dom, GFP_KERNEL_ACCOUNT);
	if (!dom)
		return ERR_PTR(-ENOMEM);
	dom->root = vrs_table_alloc(unit, GFP_KERNEL_ACCOUNT);
	if (!dom->root) {
		kfree(dom);
		return ERR_PTR(-ENOMEM);
	}
	dom->unit = unit;
	dom->levels = DIV_ROUND_UP(unit->address_bits - PAGE_SHIFT,
				   VRS_TABLE_BITS);
	spin_lock_init(&dom->lock);
	INIT_LIST_HEAD(&dom->ports);
	INIT_LIST_HEAD(&dom->limbo);
	/* iommufd leaves that to the driver. */
	dom->domain.type = IOMMU_DOMAIN_UNMANAGED;
	dom->domain.pgsize_bitmap = unit->page_sizes;
	dom->domain.geometry.aperture_end =
		GENMASK_ULL(unit->address_bits - 1, 0);
	dom->domain.geometry.force_aperture = true;
	dom->domain.ops = unit->foreign ? &vrs_foreign_domain_ops :
					  &vrs_domain_ops;
	if (dirty)
		dom->domain.dirty_ops = &vrs_dirty_ops;
	atomic64_inc(&unit->domains);
	/*
	 * The devices hold no reference, see vrs_ops_make(); but users of
	 * iommufd and of groups can keep a domain without one.
	 */
	__module_get(THIS_MODULE);
	return &dom->domain;
}

/* Frees a table that nobody uses any more, and what hangs on it. */
static void vrs_free_tables(struct vrs_domain *dom, u64 *table,
			    unsigned int level)
{
	unsigned int i;

	for (i = 0; i < VRS_TABLE_SIZE; i++) {
		u64 entry = READ_ONCE(table[i]);

		if (entry & VRS_TABLE)
			vrs_free_tables(dom, vrs_child(entry), level - 1);
		else if (entry & VRS_LEAF)
			vrs_count_leaf(dom, level, -1);
	}
	vrs_table_free(dom->unit, table);
}

static void vrs_domain_free(struct iommu_domain *domain)
{
	struct vrs_domain *dom = to_vrs_domain(domain);

	WARN_ON(!list_empty(&dom->ports));
	/* Nobody is left to wait for. */
	vrs_flush(dom, 1, 0);
	vrs_free_tables(dom, dom->root, dom->levels - 1);
	atomic64_dec(&dom->unit->domains);
	kfree(dom);
	module_put(THIS_MODULE);
}

#define VRS_DOMAIN_OPS						\
	.attach_dev = vrs_attach,				\
	.map_pages = vrs_map_pages,				\
	.unmap_pages = vrs_unmap_pages,				\
	.flush_iotlb_all = vrs_flush_iotlb_all,			\
	.iotlb_sync = vrs_iotlb_sync,				\
	.iova_to_phys = vrs_iova_to_phys,			\
	.enforce_cache_coherency = vrs_enforce_cache_coherency,	\
	.free = vrs_domain_free

static const struct iommu_domain_ops vrs_domain_ops = {
	VRS_DOMAIN_OPS,
};

/* The same, but to others it looks like another driver's. */
static const struct iommu_domain_ops vrs_foreign_domain_ops = {
	VRS_DOMAIN_OPS,
};

static bool vrs_capable(struct device *dev, enum iommu_cap cap)
{
	struct vrs_unit *unit = vrs_port_of(dev)->unit;

	switch (cap) {
	case IOMMU_CAP_CACHE_COHERENCY:
		return true;
	case IOMMU_CAP_ENFORCE_CACHE_COHERENCY:
		return unit->coherent;
	case IOMMU_CAP_DIRTY_TRACKING:
		return unit->dirty;
	default:
		return false;
	}
}

static struct iommu_device *vrs_probe_device(struct device *dev)
{
	struct vrs_port *port = vrs_ports[to_platform_device(dev)->id];

	dev_iommu_priv_set(dev, port);
	return &port->unit->iommu;
}

static void vrs_get_resv_regions(struct device *dev, struct list_head *head)
{
	struct vrs_port *port = vrs_port_of(dev);
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(vrs_reserved); i++) {
		struct iommu_resv_region *region;
		int prot = 0;

		if (strcmp(vrs_reserved[i].unit, port->unit->name) ||
		    vrs_reserved[i].index != port->index)
			continue;
		if (vrs_reserved[i].type != IOMMU_RESV_RESERVED)
			prot = IOMMU_READ | IOMMU_WRITE;
		/* There is no way to say that the list is not complete. */
		region = iommu_alloc_resv_region(vrs_reserved[i].start,
						 vrs_reserved[i].length, prot,
						 vrs_reserved[i].type,
						 GFP_KERNEL | __GFP_NOFAIL);
		list_add_tail(&region->list, head);
	}
}

static int vrs_def_domain_type(struct device *dev)
{
	return IOMMU_DOMAIN_IDENTITY;
}

static const struct iommu_ops vrs_ops_template = {
	.capable = vrs_capable,
	.domain_alloc_paging_flags = vrs_domain_alloc,
	.probe_device = vrs_probe_device,
	.device_group = generic_device_group,
	.get_resv_regions = vrs_get_resv_regions,
	.def_domain_type = vrs_def_domain_type,
	.default_domain_ops = &vrs_domain_ops,
	.identity_domain = &vrs_identity,
	.blocked_domain = &vrs_blocked,
	.release_domain = &vrs_blocked,
};

/*
 * Operations in a module must name it as their owner, and then each device
 * keeps the module, which has the devices: it could not be unloaded. A copy
 * has no owner. Devices that are open and domains count as users instead.
 */
static struct iommu_ops *vrs_ops_make(const struct iommu_domain_ops *domain_ops)
{
	struct iommu_ops *ops;

	ops = kmemdup(&vrs_ops_template, sizeof(*ops), GFP_KERNEL);
	if (ops)
		ops->default_domain_ops = domain_ops;
	return ops;
}

/* DMA. */

/* The memory at an address, if it is any. */
static struct page *vrs_memory(phys_addr_t phys)
{
	struct page *page = pfn_to_online_page(PHYS_PFN(phys));

	if (!page)
		return NULL;
	/* Reserved frames need not even be there, unless they are known. */
	if (PageReserved(page) && !is_zero_pfn(PHYS_PFN(phys)) &&
	    page_private(page) != (unsigned long)vrs_region_owner)
		return NULL;
	return page;
}

/* Looks an address up as the IOMMU would. The engine is locked. */
static enum vrs_iommu_fault vrs_translate(struct vrs_engine *engine, u64 iova,
					  bool write, phys_addr_t *phys)
{
	struct vrs_tlb *tlb = &engine->tlb[(iova >> 12) % VRS_TLB_ENTRIES];
	u64 tag = round_down(iova, SZ_4K) | VRS_TLB_VALID;
	struct vrs_domain *dom = engine->domain;
	u64 entry, found;
	unsigned int level;
	bool track;
	u64 *slot;

	lockdep_assert_held(&engine->lock);
	if (!dom)
		return VRS_IOMMU_BLOCKED;
	if (iova > dom->domain.geometry.aperture_end)
		return VRS_IOMMU_WIDTH;
	if (tlb->tag == tag && (write ? tlb->written : tlb->entry & VRS_READ)) {
		*phys = (tlb->entry & VRS_ADDRESS) | (iova & ~PAGE_MASK);
		return VRS_IOMMU_OK;
	}

	slot = vrs_find(dom, iova, &level);
	entry = READ_ONCE(*slot);
	track = write && READ_ONCE(dom->tracking) && dom->unit->dirty;
	if (track && !(entry & VRS_DIRTY) &&
	    vrs_injected(dom->unit, VRS_IOMMU_FAIL_DIRTY))
		track = false;
	for (;;) {
		u64 seen = entry | VRS_ACCESSED;

		if (!(entry & VRS_LEAF))
			return VRS_IOMMU_ABSENT;
		if (write && !(entry & VRS_WRITE))
			return VRS_IOMMU_NO_WRITE;
		if (!write && !(entry & VRS_READ))
			return VRS_IOMMU_NO_READ;
		if (track)
			seen |= VRS_DIRTY;
		found = cmpxchg(slot, entry, seen);
		if (found == entry)
			break;
		entry = found;
	}

	*phys = vrs_leaf_phys(entry, level, iova);
	tlb->written = write || (tlb->tag == tag && tlb->written);
	tlb->tag = tag;
	tlb->entry = (*phys & PAGE_MASK) | (entry & ~VRS_ADDRESS);
	return VRS_IOMMU_OK;
}

/*
 * Users and other engines write there too, as they like; KCSAN need not tell.
 */
static __no_kcsan void vrs_copy(struct page *page, unsigned int offset,
				void *buffer, unsigned int len, bool write)
{
	void *at = kmap_local_page(page) + offset;

	if (write)
		memcpy(at, buffer, len);
	else
		memcpy(buffer, at, len);
	kunmap_local(at);
}

/* One access, within 4K. */
static enum vrs_iommu_fault vrs_access(struct vrs_engine *engine, u64 iova,
				       void *buffer, unsigned int len,
				       bool write)
{
	enum vrs_iommu_fault fault;
	struct page *page;
	phys_addr_t phys;

	spin_lock(&engine->lock);
	fault = vrs_translate(engine, iova, write, &phys);
	if (!fault) {
		page = vrs_memory(phys);
		if (page)
			vrs_copy(page, offset_in_page(phys), buffer, len, write);
		else
			fault = VRS_IOMMU_NO_MEMORY;
	}
	spin_unlock(&engine->lock);
	return fault;
}

/* A range, or a part of it, that one thread works on. */
struct vrs_job {
	struct work_struct work;
	struct vrs_port *port;
	struct vrs_engine *engine;
	enum vrs_iommu_op op;
	/* The whole range. */
	u64 iova, iova2, seed;
	/* Offsets in it. */
	u64 from, to;
	u64 done, sum, fault_at, fault_iova;
	enum vrs_iommu_fault fault;
	__le64 words[SZ_4K / sizeof(__le64)];
};

static unsigned int vrs_room(u64 iova)
{
	return SZ_4K - (iova & (SZ_4K - 1));
}

/* Fills the part of the buffer that goes to @iova. */
static void *vrs_fill_words(struct vrs_job *job, u64 iova, unsigned int len)
{
	unsigned int offset = iova & (SZ_4K - 1);
	u64 number = (iova & ~(u64)(SZ_4K - 1)) / 8;
	unsigned int i;

	for (i = offset / 8; i < DIV_ROUND_UP(offset + len, 8); i++)
		job->words[i] = cpu_to_le64(job->seed +
					    (number + i) * VRS_IOMMU_STEP);
	return (u8 *)job->words + offset;
}

/* Works on @len bytes, which do not cross a multiple of 4K anywhere. */
static enum vrs_iommu_fault vrs_piece(struct vrs_job *job, u64 offset,
				      unsigned int len)
{
	struct vrs_engine *engine = job->engine;
	u64 iova = job->iova + offset, from = job->iova2 + offset;
	enum vrs_iommu_fault fault = VRS_IOMMU_OK;
	u8 *bytes = (u8 *)job->words;
	u64 fault_iova = iova;
	unsigned int i;

	switch (job->op) {
	case VRS_IOMMU_TOUCH:
		len = min(len, 8U);
		fallthrough;
	case VRS_IOMMU_FILL:
	case VRS_IOMMU_CHURN:
		fault = vrs_access(engine, iova, vrs_fill_words(job, iova, len),
				   len, true);
		break;
	case VRS_IOMMU_COPY:
		fault = vrs_access(engine, from, bytes, len, false);
		if (fault) {
			fault_iova = from;
			break;
		}
		fault = vrs_access(engine, iova, bytes, len, true);
		break;
	case VRS_IOMMU_CHECKSUM:
		fault = vrs_access(engine, iova, bytes, len, false);
		if (fault)
			break;
		for (i = 0; i < len; i++)
			job->sum += (bytes[i] + 1ULL) * (offset + i + 1);
		break;
	}
	if (fault) {
		atomic64_inc(&job->port->unit->faults);
		job->fault = fault;
		job->fault_at = offset;
		job->fault_iova = fault_iova;
	}
	return fault;
}

/* Bytes from @offset on that can be worked on in one go. */
static unsigned int vrs_piece_len(struct vrs_job *job, u64 offset, u64 left)
{
	unsigned int len = vrs_room(job->iova + offset);

	if (job->op == VRS_IOMMU_COPY)
		len = min(len, vrs_room(job->iova2 + offset));
	return min_t(u64, len, left);
}

static void vrs_job_run(struct work_struct *work)
{
	struct vrs_job *job = container_of(work, struct vrs_job, work);
	u64 offset = job->from;

	while (offset < job->to) {
		unsigned int len = vrs_piece_len(job, offset, job->to - offset);

		if (vrs_piece(job, offset, len))
			break;
		offset += len;
		job->done += len;
		cond_resched();
	}
}

/* A VFIO device. */

struct vrs_background {
	unsigned int threads;
	struct vrs_background_thread {
		struct vrs_job job;
		struct task_struct *task;
		unsigned int threads;
		u64 pieces, faults;
	} thread[];
};

struct vrs_device {
	struct vfio_device vdev;
	struct vrs_port *port;
	struct mutex lock;
	struct vrs_background *background;
	/* Memory of its own; stays once it was made, as others may map it. */
	struct page *region;
	struct mutex pin_lock;
	bool pinned;
	u64 pin;
};

static struct vrs_device *to_vrs(struct vfio_device *vdev)
{
	return container_of(vdev, struct vrs_device, vdev);
}

static int vrs_dma_check(const struct vrs_iommu_dma *request)
{
	u64 last;

	if (request->op > VRS_IOMMU_CHURN || request->reserved ||
	    request->threads > VRS_IOMMU_ENGINES || !request->len)
		return -EINVAL;
	if (request->len > VRS_IOMMU_DMA_MAX)
		return -E2BIG;
	if (check_add_overflow(request->iova, request->len - 1, &last) ||
	    (request->op == VRS_IOMMU_COPY &&
	     check_add_overflow(request->iova2, request->len - 1, &last)))
		return -EINVAL;
	if (request->op == VRS_IOMMU_TOUCH && request->iova % SZ_4K)
		return -EINVAL;
	return 0;
}

static void vrs_job_init(struct vrs_job *job, struct vrs_device *vrs,
			 const struct vrs_iommu_dma *request,
			 unsigned int engine)
{
	job->port = vrs->port;
	job->engine = &vrs->port->engines[engine];
	job->op = request->op;
	job->iova = request->iova;
	job->iova2 = request->iova2;
	job->seed = request->seed;
}

static long vrs_ioctl_dma(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_iommu_dma request;
	struct vrs_job *jobs;
	unsigned int i, n;
	u64 share, fault_at = U64_MAX;
	int ret;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	ret = vrs_dma_check(&request);
	if (ret)
		return ret;

	n = max(request.threads, 1U);
	jobs = kvcalloc(n, sizeof(*jobs), GFP_KERNEL);
	if (!jobs)
		return -ENOMEM;
	share = round_up(DIV_ROUND_UP_ULL(request.len, n), SZ_4K);
	for (i = 0; i < n; i++) {
		struct vrs_job *job = &jobs[i];

		vrs_job_init(job, vrs, &request, i);
		job->from = min(i * share, request.len);
		job->to = min((i + 1) * share, request.len);
		if (request.threads) {
			INIT_WORK(&job->work, vrs_job_run);
			queue_work(vrs_wq, &job->work);
		} else {
			vrs_job_run(&job->work);
		}
	}

	request.done = 0;
	request.sum = 0;
	request.fault = VRS_IOMMU_OK;
	request.fault_iova = 0;
	for (i = 0; i < n; i++) {
		struct vrs_job *job = &jobs[i];

		if (request.threads)
			flush_work(&job->work);
		request.done += job->done;
		request.sum += job->sum;
		if (job->fault && job->fault_at < fault_at) {
			fault_at = job->fault_at;
			request.fault = job->fault;
			request.fault_iova = job->fault_iova;
		}
	}
	kvfree(jobs);
	return copy_to_user(arg, &request, sizeof(request)) ? -EFAULT : 0;
}

static int vrs_background_run(void *data)
{
	struct vrs_background_thread *thread = data;
	struct vrs_job *job = &thread->job;
	struct rnd_state random;

	prandom_seed_state(&random, job->seed ^ (uintptr_t)thread);
	set_user_nice(current, MAX_NICE / 2);
	while (!kthread_should_stop()) {
		u64 offset = prandom_u32_state(&random);
		unsigned int len;
		bool fault;

		offset = (offset << 12 ^ prandom_u32_state(&random)) % job->to;
		if (job->op == VRS_IOMMU_TOUCH)
			offset = round_down(offset, SZ_4K);
		len = vrs_piece_len(job, offset, job->to - offset);
		fault = vrs_piece(job, offset, len);
		if (job->op == VRS_IOMMU_CHURN)
			job->seed += thread->threads;
		WRITE_ONCE(thread->pieces, thread->pieces + 1);
		/* Who sees this fault sees its piece, see vrs_ioctl_stop(). */
		if (fault)
			smp_store_release(&thread->faults, thread->faults + 1);
		cond_resched();
	}
	return 0;
}

/* Stops what goes on; the caller holds the device's lock. */
static void vrs_background_stop(struct vrs_device *vrs)
{
	struct vrs_background *background = vrs->background;
	unsigned int i;

	for (i = 0; background && i < background->threads; i++)
		if (background->thread[i].task)
			kthread_stop_put(background->thread[i].task);
}

static long vrs_ioctl_start(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_background *background;
	struct vrs_iommu_dma request;
	unsigned int i;
	int ret;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	ret = vrs_dma_check(&request);
	if (ret)
		return ret;
	if (!request.threads)
		return -EINVAL;

	guard(mutex)(&vrs->lock);
	if (vrs->background)
		return -EBUSY;
	background = kvzalloc(struct_size(background, thread, request.threads),
			      GFP_KERNEL);
	if (!background)
		return -ENOMEM;
	background->threads = request.threads;
	vrs->background = background;
	for (i = 0; i < request.threads; i++) {
		struct vrs_background_thread *thread = &background->thread[i];
		struct task_struct *task;

		vrs_job_init(&thread->job, vrs, &request, i);
		thread->job.to = request.len;
		thread->threads = request.threads;
		if (request.op == VRS_IOMMU_CHURN)
			thread->job.seed += i;
		task = kthread_create(vrs_background_run, thread, "%s/%u",
				      dev_name(&vrs->port->pdev->dev), i);
		if (IS_ERR(task)) {
			vrs_background_stop(vrs);
			vrs->background = NULL;
			kvfree(background);
			return PTR_ERR(task);
		}
		get_task_struct(task);
		thread->task = task;
		wake_up_process(task);
	}
	return 0;
}

static long vrs_ioctl_stop(struct vrs_device *vrs, void __user *arg, bool stop)
{
	struct vrs_iommu_stopped stopped = {};
	unsigned int i;

	scoped_guard(mutex, &vrs->lock) {
		struct vrs_background *background = vrs->background;

		if (!background)
			return -ENOENT;
		if (stop)
			vrs_background_stop(vrs);
		for (i = 0; i < background->threads; i++) {
			struct vrs_background_thread *thread =
				&background->thread[i];

			stopped.faults += smp_load_acquire(&thread->faults);
			stopped.pieces += READ_ONCE(thread->pieces);
			/* The two may be of different faults while it runs. */
			if (READ_ONCE(thread->job.fault)) {
				stopped.fault = READ_ONCE(thread->job.fault);
				stopped.fault_iova =
					READ_ONCE(thread->job.fault_iova);
			}
		}
		if (stop) {
			vrs->background = NULL;
			kvfree(background);
		}
	}
	return copy_to_user(arg, &stopped, sizeof(stopped)) ? -EFAULT : 0;
}

/*
 * Leaves from @pos on; moves @pos behind what was looked at, and returns
 * their number. Looks at no more than can be done under a lock.
 */
static unsigned int vrs_walk(struct vrs_domain *dom, u64 *pos, bool *end,
		    struct vrs_iommu_leaf *leaves, unsigned int count)
{
	u64 last = dom->domain.geometry.aperture_end;
	unsigned int found = 0, steps = 0;

	while (found < count && steps++ < 1024) {
		unsigned int level;
		u64 entry, span;

		if (*pos > last) {
			*end = true;
			break;
		}
		entry = READ_ONCE(*vrs_find(dom, *pos, &level));
		span = 1ULL << vrs_shift(level);
		*pos = round_down(*pos, span);
		if (entry & VRS_LEAF) {
			struct vrs_iommu_leaf *leaf = &leaves[found++];
			struct page *page = vrs_memory(entry & VRS_ADDRESS);

			*leaf = (struct vrs_iommu_leaf) {
				.iova = *pos,
				.phys = entry & VRS_ADDRESS,
				.size = span,
			};
			if (entry & VRS_READ)
				leaf->prot |= IOMMU_READ;
			if (entry & VRS_WRITE)
				leaf->prot |= IOMMU_WRITE;
			if (entry & VRS_CACHE)
				leaf->flags |= VRS_IOMMU_LEAF_CACHE;
			if (entry & VRS_DIRTY)
				leaf->flags |= VRS_IOMMU_LEAF_DIRTY;
			if (page) {
				leaf->flags |= VRS_IOMMU_LEAF_MEMORY;
				vrs_copy(page, 0, &leaf->tag,
					 sizeof(leaf->tag), false);
			}
		}
		if (check_add_overflow(*pos, span, pos)) {
			*end = true;
			break;
		}
	}
	return found;
}

static long vrs_ioctl_walk(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_engine *engine = &vrs->port->engines[VRS_IOMMU_ENGINES];
	struct vrs_iommu_leaf *leaves __free(kfree) = NULL;
	const unsigned int room = SZ_4K / sizeof(*leaves);
	struct vrs_iommu_walk request;
	unsigned int done = 0;
	bool end = false;
	u64 pos;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.reserved || request.count > INT_MAX)
		return -EINVAL;
	leaves = kcalloc(room, sizeof(*leaves), GFP_KERNEL);
	if (!leaves)
		return -ENOMEM;

	pos = request.iova;
	while (!end && done < request.count) {
		struct vrs_iommu_leaf __user *user =
			u64_to_user_ptr(request.leaves);
		unsigned int found;

		spin_lock(&engine->lock);
		if (!engine->domain) {
			spin_unlock(&engine->lock);
			return -ENOENT;
		}
		found = vrs_walk(engine->domain, &pos, &end, leaves,
				 min(room, request.count - done));
		spin_unlock(&engine->lock);
		if (copy_to_user(user + done, leaves, found * sizeof(*leaves)))
			return -EFAULT;
		done += found;
		if (fatal_signal_pending(current))
			return -EINTR;
		cond_resched();
	}
	return done;
}

static long vrs_ioctl_fail(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_iommu_fail request;
	struct vrs_failure *failure;

	if (copy_from_user(&request, arg, sizeof(request)))
		return -EFAULT;
	if (request.what >= VRS_IOMMU_FAIL_KINDS || request.nth > INT_MAX ||
	    request.error > MAX_ERRNO || request.reserved)
		return -EINVAL;
	failure = &vrs->port->unit->failures[request.what];
	WRITE_ONCE(failure->error, request.error ?: ENOMEM);
	atomic_set(&failure->left, request.nth);
	return 0;
}

static void vrs_unit_stats(struct vrs_unit *unit, struct vrs_iommu_stats *stats)
{
	*stats = (struct vrs_iommu_stats) {
		.domains = atomic64_read(&unit->domains),
		.tables = atomic64_read(&unit->tables),
		.leaves_4k = atomic64_read(&unit->leaves[0]),
		.leaves_2m = atomic64_read(&unit->leaves[1]),
		.leaves_1g = atomic64_read(&unit->leaves[2]),
		.maps = atomic64_read(&unit->maps),
		.unmaps = atomic64_read(&unit->unmaps),
		.flushes = atomic64_read(&unit->flushes),
		.attaches = atomic64_read(&unit->attaches),
		.faults = atomic64_read(&unit->faults),
		.failed = atomic64_read(&unit->failed),
	};
}

static long vrs_ioctl_stats(struct vrs_device *vrs, void __user *arg)
{
	struct vrs_iommu_stats stats;

	vrs_unit_stats(vrs->port->unit, &stats);
	return copy_to_user(arg, &stats, sizeof(stats)) ? -EFAULT : 0;
}

static long vrs_ioctl_info(void __user *arg)
{
	const size_t minsz = offsetofend(struct vfio_device_info, num_irqs);
	struct vfio_device_info info;

	if (copy_from_user(&info, arg, minsz))
		return -EFAULT;
	if (info.argsz < minsz)
		return -EINVAL;
	info.flags = 0;
	info.num_regions = 1;
	info.num_irqs = 0;
	return copy_to_user(arg, &info, minsz) ? -EFAULT : 0;
}

/* Drivers of hardware could pin pages, too, though none in the kernel does. */
static long vrs_ioctl_pin(struct vrs_device *vrs, void __user *arg)
{
	struct page *page;
	u64 iova;
	int ret;

	if (copy_from_user(&iova, arg, sizeof(iova)))
		return -EFAULT;
	guard(mutex)(&vrs->pin_lock);
	if (vrs->pinned)
		return -EBUSY;
	ret = vfio_pin_pages(&vrs->vdev, iova, 1, IOMMU_READ | IOMMU_WRITE,
			     &page);
	if (ret < 0)
		return ret;
	vrs->pinned = true;
	vrs->pin = iova;
	return 0;
}

static long vrs_unpin(struct vrs_device *vrs)
{
	if (!vrs->pinned)
		return -ENOENT;
	vfio_unpin_pages(&vrs->vdev, vrs->pin, 1);
	vrs->pinned = false;
	return 0;
}

static long vrs_ioctl_unpin(struct vrs_device *vrs)
{
	guard(mutex)(&vrs->pin_lock);
	return vrs_unpin(vrs);
}

static void vrs_dma_unmap(struct vfio_device *vdev, u64 iova, u64 length)
{
	struct vrs_device *vrs = to_vrs(vdev);

	guard(mutex)(&vrs->pin_lock);
	if (vrs->pin - iova < length)
		vrs_unpin(vrs);
}

static long vrs_ioctl(struct vfio_device *vdev, unsigned int cmd,
		      unsigned long arg)
{
	struct vrs_device *vrs = to_vrs(vdev);
	void __user *user = (void __user *)arg;

	switch (cmd) {
	case VFIO_DEVICE_GET_INFO:
		return vrs_ioctl_info(user);
	case VRS_IOMMU_DMA:
		return vrs_ioctl_dma(vrs, user);
	case VRS_IOMMU_START:
		return vrs_ioctl_start(vrs, user);
	case VRS_IOMMU_STOP:
		return vrs_ioctl_stop(vrs, user, true);
	case VRS_IOMMU_PEEK:
		return vrs_ioctl_stop(vrs, user, false);
	case VRS_IOMMU_WALK:
		return vrs_ioctl_walk(vrs, user);
	case VRS_IOMMU_FAIL:
		return vrs_ioctl_fail(vrs, user);
	case VRS_IOMMU_STATS:
		return vrs_ioctl_stats(vrs, user);
	case VRS_IOMMU_PIN:
		return vrs_ioctl_pin(vrs, user);
	case VRS_IOMMU_UNPIN:
		return vrs_ioctl_unpin(vrs);
	default:
		return -ENOTTY;
	}
}

static int vrs_region_info(struct vfio_device *vdev,
			   struct vfio_region_info *info,
			   struct vfio_info_cap *caps)
{
	if (info->index)
		return -EINVAL;
	info->flags = VFIO_REGION_INFO_FLAG_MMAP;
	info->size = VRS_IOMMU_REGION;
	info->offset = 0;
	return 0;
}

/*
 * Memory of the device. To the kernel it is that of any device, to be mapped
 * but not counted; but it can be read and written as any other.
 */
static struct page *vrs_region(struct vrs_device *vrs)
{
	struct page *page;
	unsigned int i;

	guard(mutex)(&vrs->lock);
	if (vrs->region)
		return vrs->region;
	page = alloc_pages(GFP_KERNEL | __GFP_ZERO | __GFP_NOWARN,
			   VRS_REGION_ORDER);
	if (!page)
		return NULL;
	for (i = 0; i < 1 << VRS_REGION_ORDER; i++) {
		SetPageReserved(page + i);
		set_page_private(page + i, (unsigned long)vrs_region_owner);
	}
	vrs->region = page;
	return page;
}

static void vrs_region_free(struct page *page)
{
	unsigned int i;

	for (i = 0; i < 1 << VRS_REGION_ORDER; i++) {
		set_page_private(page + i, 0);
		ClearPageReserved(page + i);
	}
	__free_pages(page, VRS_REGION_ORDER);
}

static int vrs_mmap(struct vfio_device *vdev, struct vm_area_struct *vma)
{
	unsigned long pages = vma_pages(vma), first = vma->vm_pgoff;
	struct page *page;

	if (!(vma->vm_flags & VM_SHARED) || first >= 1 << VRS_REGION_ORDER ||
	    pages > (1 << VRS_REGION_ORDER) - first)
		return -EINVAL;
	page = vrs_region(to_vrs(vdev));
	if (!page)
		return -ENOMEM;
	return remap_pfn_range(vma, vma->vm_start, page_to_pfn(page) + first,
			       pages << PAGE_SHIFT, vma->vm_page_prot);
}

static int vrs_open(struct vfio_device *vdev)
{
	atomic_inc(&to_vrs(vdev)->port->unit->open);
	return 0;
}

static void vrs_close(struct vfio_device *vdev)
{
	struct vrs_device *vrs = to_vrs(vdev);
	struct vrs_unit *unit = vrs->port->unit;
	unsigned int i;

	scoped_guard(mutex, &vrs->lock) {
		vrs_background_stop(vrs);
		kvfree(vrs->background);
		vrs->background = NULL;
	}
	vrs_ioctl_unpin(vrs);
	if (atomic_dec_and_test(&unit->open))
		for (i = 0; i < VRS_IOMMU_FAIL_KINDS; i++)
			atomic_set(&unit->failures[i].left, 0);
}

static int vrs_init(struct vfio_device *vdev)
{
	struct vrs_device *vrs = to_vrs(vdev);

	vrs->port = vrs_ports[to_platform_device(vdev->dev)->id];
	mutex_init(&vrs->lock);
	mutex_init(&vrs->pin_lock);
	return 0;
}

static void vrs_release(struct vfio_device *vdev)
{
	struct vrs_device *vrs = to_vrs(vdev);

	if (vrs->region)
		vrs_region_free(vrs->region);
	mutex_destroy(&vrs->pin_lock);
	mutex_destroy(&vrs->lock);
}

static const struct vfio_device_ops vrs_vfio_ops = {
	.name = KBUILD_MODNAME,
	.init = vrs_init,
	.release = vrs_release,
	.bind_iommufd = vfio_iommufd_physical_bind,
	.unbind_iommufd = vfio_iommufd_physical_unbind,
	.attach_ioas = vfio_iommufd_physical_attach_ioas,
	.detach_ioas = vfio_iommufd_physical_detach_ioas,
	.open_device = vrs_open,
	.close_device = vrs_close,
	.dma_unmap = vrs_dma_unmap,
	.ioctl = vrs_ioctl,
	.get_region_info_caps = vrs_region_info,
	.mmap = vrs_mmap,
};

static int vrs_probe(struct platform_device *pdev)
{
	struct vrs_device *vrs;
	int ret;

	vrs = vfio_alloc_device(vrs_device, vdev, &pdev->dev, &vrs_vfio_ops);
	if (IS_ERR(vrs))
		return PTR_ERR(vrs);
	ret = vfio_register_group_dev(&vrs->vdev);
	if (ret) {
		vfio_put_device(&vrs->vdev);
		return ret;
	}
	platform_set_drvdata(pdev, vrs);
	return 0;
}

static void vrs_remove(struct platform_device *pdev)
{
	struct vrs_device *vrs = platform_get_drvdata(pdev);

	vfio_unregister_group_dev(&vrs->vdev);
	vfio_put_device(&vrs->vdev);
}

static ssize_t unit_show(struct device *dev, struct device_attribute *attr,
			 char *buf)
{
	struct vrs_port *port = vrs_ports[to_platform_device(dev)->id];

	return sysfs_emit(buf, "%s %u\n", port->unit->name, port->index);
}
static DEVICE_ATTR_RO(unit);

static struct attribute *vrs_attrs[] = {
	&dev_attr_unit.attr,
	NULL,
};
ATTRIBUTE_GROUPS(vrs);

static struct platform_driver vrs_driver = {
	.probe = vrs_probe,
	.remove = vrs_remove,
	.driver = {
		.name = KBUILD_MODNAME,
		.dev_groups = vrs_groups,
	},
	.driver_managed_dma = true,
};

/* The module. */

static int vrs_units_show(struct seq_file *file, void *unused)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(vrs_units); i++) {
		struct vrs_iommu_stats stats;

		vrs_unit_stats(&vrs_units[i], &stats);
		seq_printf(file, "%s domains %llu tables %llu leaves_4k %llu leaves_2m %llu leaves_1g %llu maps %llu unmaps %llu flushes %llu attaches %llu faults %llu failed %llu\n",
			   vrs_units[i].name, stats.domains, stats.tables,
			   stats.leaves_4k, stats.leaves_2m, stats.leaves_1g,
			   stats.maps, stats.unmaps, stats.flushes,
			   stats.attaches, stats.faults, stats.failed);
	}
	return 0;
}
DEFINE_SHOW_ATTRIBUTE(vrs_units);

/*
 * Says behind which IOMMU a device is, as firmware would. iommu_fwspec_init()
 * wants a lock that modules cannot take; nobody else knows this device yet.
 */
static int vrs_set_fwnode(struct device *dev, struct fwnode_handle *fwnode)
{
	struct iommu_fwspec *fwspec = kzalloc_flex(*fwspec, ids, 1);
	struct dev_iommu *iommu = kzalloc_obj(*iommu);

	if (!fwspec || !iommu) {
		kfree(fwspec);
		kfree(iommu);
		return -ENOMEM;
	}
	mutex_init(&iommu->lock);
	fwspec->iommu_fwnode = fwnode_handle_get(fwnode);
	iommu->fwspec = fwspec;
	dev->iommu = iommu;
	return 0;
}

static int vrs_port_add(unsigned int id)
{
	struct vrs_unit *unit = &vrs_units[id / VRS_PORTS_PER_UNIT];
	struct platform_device *pdev;
	struct vrs_port *port;
	unsigned int i;
	int ret;

	port = kzalloc_obj(*port);
	if (!port)
		return -ENOMEM;
	port->unit = unit;
	port->index = id % VRS_PORTS_PER_UNIT;
	for (i = 0; i < ARRAY_SIZE(port->engines); i++)
		spin_lock_init(&port->engines[i].lock);
	vrs_ports[id] = port;

	pdev = platform_device_alloc(KBUILD_MODNAME, id);
	if (!pdev)
		return -ENOMEM;
	ret = vrs_set_fwnode(&pdev->dev, unit->fwnode);
	if (!ret)
		ret = platform_device_add(pdev);
	if (ret) {
		struct dev_iommu *iommu = pdev->dev.iommu;

		if (iommu) {
			fwnode_handle_put(iommu->fwspec->iommu_fwnode);
			kfree(iommu->fwspec);
			kfree(iommu);
			pdev->dev.iommu = NULL;
		}
		platform_device_put(pdev);
		return ret;
	}
	port->pdev = pdev;
	/* Its driver is there already, so it is bound or will never be. */
	return device_is_bound(&pdev->dev) ? 0 : -ENODEV;
}

static int vrs_unit_add(struct vrs_unit *unit)
{
	struct fwnode_handle *fwnode;
	int ret;

	fwnode = fwnode_create_software_node(NULL, NULL);
	if (IS_ERR(fwnode))
		return PTR_ERR(fwnode);
	unit->iommu.fwnode = fwnode;
	ret = iommu_device_sysfs_add(&unit->iommu, NULL, NULL,
				     KBUILD_MODNAME "-%s", unit->name);
	if (ret)
		goto err_node;
	ret = iommu_device_register(&unit->iommu,
				    unit->foreign ? vrs_foreign_ops : vrs_ops,
				    NULL);
	if (ret)
		goto err_sysfs;
	unit->fwnode = fwnode;
	return 0;

err_sysfs:
	iommu_device_sysfs_remove(&unit->iommu);
err_node:
	fwnode_remove_software_node(fwnode);
	return ret;
}

/* Takes back all that vrs_module_init() did, or as far as it came. */
static void vrs_teardown(void)
{
	unsigned int i;

	debugfs_remove(vrs_debugfs);
	for (i = 0; i < ARRAY_SIZE(vrs_ports); i++)
		if (vrs_ports[i] && vrs_ports[i]->pdev)
			platform_device_unregister(vrs_ports[i]->pdev);
	for (i = 0; i < ARRAY_SIZE(vrs_units); i++) {
		struct vrs_unit *unit = &vrs_units[i];

		if (!unit->fwnode)
			continue;
		iommu_device_unregister(&unit->iommu);
		iommu_device_sysfs_remove(&unit->iommu);
		fwnode_remove_software_node(unit->fwnode);
	}
	for (i = 0; i < ARRAY_SIZE(vrs_ports); i++)
		kfree(vrs_ports[i]);
	platform_driver_unregister(&vrs_driver);
	destroy_workqueue(vrs_wq);
	kfree(vrs_foreign_ops);
	kfree(vrs_ops);
}

static int __init vrs_module_init(void)
{
	unsigned int i;
	int ret;

	vrs_wq = alloc_workqueue(KBUILD_MODNAME, WQ_UNBOUND, 0);
	if (!vrs_wq)
		return -ENOMEM;
	ret = platform_driver_register(&vrs_driver);
	if (ret) {
		destroy_workqueue(vrs_wq);
		return ret;
	}
	vrs_ops = vrs_ops_make(&vrs_domain_ops);
	vrs_foreign_ops = vrs_ops_make(&vrs_foreign_domain_ops);
	ret = vrs_ops && vrs_foreign_ops ? 0 : -ENOMEM;
	for (i = 0; !ret && i < ARRAY_SIZE(vrs_units); i++)
		ret = vrs_unit_add(&vrs_units[i]);
	for (i = 0; !ret && i < ARRAY_SIZE(vrs_ports); i++)
		ret = vrs_port_add(i);
	if (ret) {
		vrs_teardown();
		return ret;
	}
	vrs_debugfs = debugfs_create_dir(KBUILD_MODNAME, NULL);
	debugfs_create_file("units", 0444, vrs_debugfs, NULL, &vrs_units_fops);
	return 0;
}

static void __exit vrs_module_exit(void)
{
	vrs_teardown();
}

module_init(vrs_module_init);
module_exit(vrs_module_exit);

MODULE_IMPORT_NS("IOMMUFD");
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Test only: VFIO devices behind software IOMMUs");
MODULE_INFO(test, "Y");
