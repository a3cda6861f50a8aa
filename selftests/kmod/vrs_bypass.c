// SPDX-License-Identifier: GPL-2.0
/*
 * Test only: an IOMMU that posts interrupts, made of software, and devices that
 * interrupt. No emulator has one beside a processor with posted interrupts.
 *
 * Its part of the kernel's interface is that of VT-d: an irqchip whose
 * irq_set_vcpu_affinity() takes a descriptor and a vector, and producers for
 * the IRQ bypass manager, so that KVM connects and redirects interrupts as it
 * does with vfio-pci. The devices' part is threads that post into descriptors
 * as the hardware does, but for one thing: it locks the descriptor's cache line
 * for all of it. Here the request and the control word are two steps, so what
 * KVM does may come between them.
 *
 * vrs_bypass::lock serializes the calls of user space. vrs_bypass::entry_lock
 * is held from the look-up of the entry to the notification, so that who has
 * changed the entry knows of no interrupt on its way to the old descriptor, as
 * after the invalidation of the interrupt entry cache. It is taken inside the
 * locks of KVM and of the interrupt's descriptor.
 */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/interrupt.h>
#include <linux/irq.h>
#include <linux/irqbypass.h>
#include <linux/irqdomain.h>
#include <linux/kthread.h>
#include <linux/kvm_host.h>
#include <linux/miscdevice.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/prandom.h>
#include <linux/slab.h>
#include <linux/spinlock.h>
#include <linux/uaccess.h>

#include <asm/apic.h>
#include <asm/irq_remapping.h>
#include <asm/posted_intr.h>
#include <asm/smp.h>

#include "vrs_bypass.h"
#include "vrs_symbol.h"
#include "vrs_vcpu.h"
#include "vrs_vtd.h"

#define VRS_DEVICES	64
#define VRS_MAX_SAMPLES	(1U << 20)

struct vrs_bypass {
	struct mutex lock;
	unsigned int number;
	int irq;
	struct eventfd_ctx *trigger;
	struct irq_bypass_producer producer;
	bool refuses;

	/* The entry: posted to desc as vector, or to the host if there is none. */
	raw_spinlock_t entry_lock;
	struct pi_desc *desc;
	unsigned int vector;
	struct vrs_bypass_counts counts;

	struct task_struct *thread;
	struct completion done;
	struct vrs_bypass_start job;
	struct vrs_bypass_mailbox *mailbox;
	struct page *page;
	struct vrs_bypass_wait outcome;
	u64 *samples;
	size_t nr_samples;
};

static struct irq_domain *vrs_domain;
static DEFINE_IDA(vrs_numbers);

/* KVM's idea of the machine, while there are files. */
static DEFINE_MUTEX(vrs_kvm_lock);
static unsigned int vrs_files;
static bool *vrs_kvm_posts;
static bool vrs_kvm_posted;

/* Both are KVM's, and meant for its own modules: they are not linked to, but looked up. */
static int vrs_convince_kvm(void)
{
	bool *apicv;
	int ret = 0;

	guard(mutex)(&vrs_kvm_lock);
	if (vrs_files) {
		vrs_files++;
		return 0;
	}

	/* KVM for SVM would come with other descriptors. */
	if (!boot_cpu_has(X86_FEATURE_VMX))
		return -ENODEV;
	apicv = symbol_get(enable_apicv);
	if (!apicv)
		return -ENODEV;
	if (!*apicv)
		ret = -EOPNOTSUPP;
	symbol_put(enable_apicv);
	if (ret)
		return ret;

	vrs_kvm_posts = symbol_get(enable_device_posted_irqs);
	if (!vrs_kvm_posts)
		return -ENODEV;
	vrs_kvm_posted = *vrs_kvm_posts;
	WRITE_ONCE(*vrs_kvm_posts, true);
	vrs_files = 1;
	return 0;
}

static void vrs_release_kvm(void)
{
	guard(mutex)(&vrs_kvm_lock);
	if (--vrs_files)
		return;
	WRITE_ONCE(*vrs_kvm_posts, vrs_kvm_posted);
	symbol_put(enable_device_posted_irqs);
}

/* Called with the interrupt's descriptor locked and interrupts disabled. */
static int vrs_set_vcpu_affinity(struct irq_data *data, void *info)
{
	struct vrs_bypass *vrs = irq_data_get_irq_chip_data(data);
	struct intel_iommu_pi_data *pi = info;

	guard(raw_spinlock)(&vrs->entry_lock);

	if (!pi) {
		vrs->desc = NULL;
		vrs->counts.cleared++;
		return 0;
	}
	if (vrs->refuses) {
		vrs->counts.refused++;
		return -ENOSPC;
	}
	if (WARN_ON_ONCE(!IS_ALIGNED(pi->pi_desc_addr, sizeof(struct pi_desc)) ||
			 !pfn_valid(PHYS_PFN(pi->pi_desc_addr)) || pi->vector >= NR_PIR_VECTORS))
		return -EINVAL;
	vrs->desc = phys_to_virt(pi->pi_desc_addr);
	vrs->vector = pi->vector;
	vrs->counts.set++;
	return 0;
}

static struct irq_chip vrs_chip = {
	.name			= "vrs_bypass",
	.irq_set_vcpu_affinity	= vrs_set_vcpu_affinity,
};

static int vrs_map(struct irq_domain *domain, unsigned int irq, irq_hw_number_t number)
{
	irq_set_chip_and_handler(irq, &vrs_chip, handle_simple_irq);
	return 0;
}

static void vrs_unmap(struct irq_domain *domain, unsigned int irq)
{
	irq_set_chip_and_handler(irq, NULL, NULL);
	irq_set_chip_data(irq, NULL);
}

static const struct irq_domain_ops vrs_domain_ops = {
	.map	= vrs_map,
	.unmap	= vrs_unmap,
};

/* As in vfio-pci. */
static irqreturn_t vrs_interrupt(int irq, void *trigger)
{
	eventfd_signal(trigger);
	return IRQ_HANDLED;
}

/* In two steps: the request, then the control word. */
static void vrs_post_to(struct vrs_bypass *vrs)
{
	struct vrs_bypass_counts *counts = &vrs->counts;
	struct pi_desc *desc = vrs->desc;
	struct pi_desc sent;
	int cpu;

	if (pi_test_and_set_pir(vrs->vector, desc))
		counts->merged++;

	switch (vrs_set_on(desc, &sent)) {
	case VRS_OUTSTANDING:
		counts->outstanding++;
		return;
	case VRS_SUPPRESSED:
		counts->suppressed++;
		return;
	case VRS_NOTIFY:
		break;
	}

	cpu = vrs_cpu_of(sent.ndst);
	if (cpu >= 0 && sent.nv == POSTED_INTR_VECTOR) {
		counts->notified_running++;
	} else if (cpu >= 0 && sent.nv == POSTED_INTR_WAKEUP_VECTOR) {
		counts->notified_waiting++;
	} else {
		counts->misdirected++;
		return;
	}
	__apic_send_IPI_mask(cpumask_of(cpu), sent.nv);
}

static void vrs_post(struct vrs_bypass *vrs)
{
	scoped_guard(raw_spinlock_irqsave, &vrs->entry_lock) {
		if (vrs->desc) {
			vrs_post_to(vrs);
			return;
		}
		vrs->counts.remapped++;
	}
	generic_handle_irq_safe(vrs->irq);
}

/* The descriptor's control word, 0 without a descriptor. NV is never 0. */
static u64 vrs_control(struct vrs_bypass *vrs)
{
	guard(raw_spinlock_irqsave)(&vrs->entry_lock);
	return vrs->desc ? READ_ONCE(vrs->desc->control) : 0;
}

static bool vrs_is_time(struct vrs_bypass *vrs)
{
	struct pi_desc desc = { .control = vrs_control(vrs) };

	switch (vrs->job.when) {
	case VRS_BYPASS_WAITING:
		return desc.nv == POSTED_INTR_WAKEUP_VECTOR;
	case VRS_BYPASS_SUPPRESSED:
		return pi_test_sn(&desc);
	case VRS_BYPASS_SET:
		return desc.control;
	default:
		return true;
	}
}

static bool vrs_is_seen(struct vrs_bypass *vrs)
{
	return READ_ONCE(vrs->mailbox->seen) == vrs->mailbox->posted;
}

static int vrs_wait(struct vrs_bypass *vrs, bool (*until)(struct vrs_bypass *), int too_late)
{
	unsigned long end = jiffies + msecs_to_jiffies(vrs->job.patience);

	for (unsigned int turn = 1; !until(vrs); turn++) {
		if (kthread_should_stop())
			return -EINTR;
		if (time_after(jiffies, end))
			return too_late;
		cpu_relax();
		/* It may be this CPU that the vCPU is to run on. */
		if (!(turn % 64))
			yield();
	}
	return 0;
}

static void vrs_dawdle(u32 cycles)
{
	u64 start = rdtsc();

	while (rdtsc() - start < cycles)
		cpu_relax();
}

static int vrs_work(struct vrs_bypass *vrs)
{
	struct vrs_bypass_mailbox *mailbox = vrs->mailbox;
	const struct vrs_bypass_start *job = &vrs->job;
	u64 left = job->posts;
	struct rnd_state random;

	prandom_seed_state(&random, job->seed);
	while (left) {
		u64 burst = min_t(u64, job->burst ?: 1, left);
		u64 start;
		int ret;

		if (kthread_should_stop())
			return -EINTR;
		cond_resched();
		ret = vrs_wait(vrs, vrs_is_time, -EAGAIN);
		if (ret)
			return ret;

		start = rdtsc_ordered();
		for (left -= burst; burst; burst--) {
			WRITE_ONCE(mailbox->posted, mailbox->posted + 1);
			vrs->outcome.posts++;
			vrs_post(vrs);
		}
		if (job->burst) {
			ret = vrs_wait(vrs, vrs_is_seen, -ETIMEDOUT);
			if (ret)
				return ret;
			if (vrs->nr_samples < VRS_MAX_SAMPLES)
				vrs->samples[vrs->nr_samples++] = READ_ONCE(mailbox->stamp) - start;
		}
		if (job->gap)
			vrs_dawdle(prandom_u32_state(&random) % job->gap);
	}
	return 0;
}

static int vrs_thread(void *data)
{
	struct vrs_bypass *vrs = data;

	vrs->outcome.error = vrs_work(vrs);
	vrs->outcome.control = vrs_control(vrs);
	complete_all(&vrs->done);
	/* kthread_stop() needs somebody to stop. */
	set_current_state(TASK_INTERRUPTIBLE);
	while (!kthread_should_stop()) {
		schedule();
		set_current_state(TASK_INTERRUPTIBLE);
	}
	__set_current_state(TASK_RUNNING);
	return 0;
}

static void vrs_stop(struct vrs_bypass *vrs)
{
	if (!vrs->thread)
		return;
	kthread_stop(vrs->thread);
	vrs->thread = NULL;
	unpin_user_pages_dirty_lock(&vrs->page, 1, true);
}

static int vrs_start(struct vrs_bypass *vrs, const struct vrs_bypass_start *job)
{
	struct task_struct *thread;
	int ret;

	if (!vrs->irq)
		return -ENXIO;
	if (job->when > VRS_BYPASS_SET || !job->patience ||
	    !IS_ALIGNED(job->mailbox, sizeof(struct vrs_bypass_mailbox)))
		return -EINVAL;
	if (job->cpu < -1 || (job->cpu >= 0 && (job->cpu >= nr_cpu_ids || !cpu_online(job->cpu))))
		return -EINVAL;
	if (vrs->thread && !completion_done(&vrs->done))
		return -EBUSY;
	vrs_stop(vrs);

	if (!vrs->samples)
		vrs->samples = kvmalloc_array(VRS_MAX_SAMPLES, sizeof(*vrs->samples), GFP_KERNEL);
	if (!vrs->samples)
		return -ENOMEM;
	ret = pin_user_pages_fast(job->mailbox & PAGE_MASK, 1, FOLL_WRITE | FOLL_LONGTERM, &vrs->page);
	if (ret != 1)
		return ret < 0 ? ret : -EFAULT;

	thread = kthread_create(vrs_thread, vrs, "vrs_bypass/%u", vrs->number);
	if (IS_ERR(thread)) {
		unpin_user_page(vrs->page);
		return PTR_ERR(thread);
	}
	if (job->cpu >= 0)
		kthread_bind(thread, job->cpu);
	vrs->mailbox = page_address(vrs->page) + offset_in_page(job->mailbox);
	vrs->job = *job;
	vrs->outcome = (struct vrs_bypass_wait){};
	vrs->nr_samples = 0;
	reinit_completion(&vrs->done);
	vrs->thread = thread;
	wake_up_process(thread);
	return 0;
}

static int vrs_trigger(struct vrs_bypass *vrs, int fd)
{
	struct eventfd_ctx *trigger;
	int irq, ret;

	if (vrs->irq)
		return -EBUSY;
	trigger = eventfd_ctx_fdget(fd);
	if (IS_ERR(trigger))
		return PTR_ERR(trigger);

	irq = irq_create_mapping(vrs_domain, vrs->number);
	if (!irq) {
		ret = -ENOMEM;
		goto out_trigger;
	}
	irq_set_chip_data(irq, vrs);
	ret = request_irq(irq, vrs_interrupt, 0, "vrs_bypass", trigger);
	if (ret)
		goto out_mapping;
	vrs->trigger = trigger;
	vrs->irq = irq;
	return 0;

out_mapping:
	irq_dispose_mapping(irq);
out_trigger:
	eventfd_ctx_put(trigger);
	return ret;
}

static long vrs_connect(struct vrs_bypass *vrs, bool refuse)
{
	if (!vrs->irq)
		return -ENXIO;
	if (vrs->producer.eventfd)
		return -EBUSY;
	vrs->refuses = refuse;
	return irq_bypass_register_producer(&vrs->producer, vrs->trigger, vrs->irq);
}

#define vrs_cost(costs, kind, call) do {			\
	u64 start = rdtsc_ordered();				\
								\
	call;							\
	(costs)[kind] += rdtsc_ordered() - start;		\
} while (0)

/* What the scheduler and the processor do in turn, on one CPU and without a guest. */
static void vrs_measure_once(struct vrs_bypass_measure *arg, struct kvm_vcpu *vcpu,
			     struct pi_desc *desc)
{
	void (*load)(struct kvm_vcpu *vcpu, int cpu) = (void *)arg->vmx_vcpu_pi_load;
	void (*put)(struct kvm_vcpu *vcpu) = (void *)arg->vmx_vcpu_pi_put;
	/* What calls the handler, and is called by the interrupt's entry. */
	void (*ipi)(struct pt_regs *regs) = (void *)arg->wakeup_ipi;
	int cpu = vcpu->cpu;

	vrs_cost(arg->costs, VRS_COST_NOTHING, );

	vcpu->preempted = true;
	vrs_cost(arg->costs, VRS_COST_PUT_PREEMPTED, put(vcpu));
	vcpu->preempted = false;
	vrs_cost(arg->costs, VRS_COST_LOAD_PREEMPTED, load(vcpu, cpu));

	vrs_cost(arg->costs, VRS_COST_WAKEUP_NOBODY, ipi(NULL));
	rcu_assign_pointer(vcpu->wait.task, current);
	vrs_cost(arg->costs, VRS_COST_PUT_WAITING, put(vcpu));
	vrs_cost(arg->costs, VRS_COST_WAKEUP_OTHER, ipi(NULL));
	pi_set_on(desc);
	vrs_cost(arg->costs, VRS_COST_WAKEUP, ipi(NULL));
	pi_clear_on(desc);
	rcu_assign_pointer(vcpu->wait.task, NULL);
	vrs_cost(arg->costs, VRS_COST_LOAD_WAITED, load(vcpu, cpu));

	vcpu->cpu = -1;
	vrs_cost(arg->costs, VRS_COST_LOAD_MOVED, load(vcpu, cpu));
	vcpu->cpu = cpu;
}

static long vrs_measure(struct vrs_bypass *vrs, struct vrs_bypass_measure *arg)
{
	void (*vcpu_load)(struct kvm_vcpu *vcpu) = (void *)arg->vcpu_load;
	void (*vcpu_put)(struct kvm_vcpu *vcpu) = (void *)arg->vcpu_put;
	struct kvm_vcpu *vcpu;
	struct file *file;
	long ret = 0;

	if (!arg->rounds)
		return -EINVAL;
	if (!vrs_is_at("vcpu_load", arg->vcpu_load) ||
	    !vrs_is_at("vcpu_put", arg->vcpu_put) ||
	    !vrs_is_at("vmx_vcpu_pi_load", arg->vmx_vcpu_pi_load) ||
	    !vrs_is_at("vmx_vcpu_pi_put", arg->vmx_vcpu_pi_put) ||
	    !vrs_is_at("__sysvec_kvm_posted_intr_wakeup_ipi", arg->wakeup_ipi))
		return -ESRCH;
	file = vrs_vcpu_file(arg->vcpu);
	if (IS_ERR(file))
		return PTR_ERR(file);
	vcpu = file->private_data;

	memset(arg->costs, 0, sizeof(arg->costs));
	mutex_lock(&vcpu->mutex);
	vcpu_load(vcpu);
	while (!ret && arg->rounds--) {
		/* Nor can the entry change now. */
		guard(raw_spinlock_irqsave)(&vrs->entry_lock);
		if (vrs->desc)
			vrs_measure_once(arg, vcpu, vrs->desc);
		else
			ret = -ENXIO;
	}
	vcpu_put(vcpu);
	mutex_unlock(&vcpu->mutex);
	fput(file);
	return ret;
}

static long vrs_copy_counts(struct vrs_bypass *vrs, void __user *user)
{
	struct vrs_bypass_counts counts;

	scoped_guard(raw_spinlock_irqsave, &vrs->entry_lock) {
		counts = vrs->counts;
		counts.is_set = !!vrs->desc;
	}
	counts.irq = vrs->irq;
	return copy_to_user(user, &counts, sizeof(counts)) ? -EFAULT : 0;
}

static long vrs_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct vrs_bypass *vrs = file->private_data;
	void __user *user = (void __user *)arg;
	struct vrs_bypass_measure measure;
	struct vrs_bypass_start job;
	s32 trigger;
	u32 refuse;
	int ret;

	/* Others may look at the counts meanwhile, connect and disconnect. */
	if (cmd == VRS_BYPASS_WAIT) {
		if (!READ_ONCE(vrs->thread))
			return -ENXIO;
		ret = wait_for_completion_interruptible(&vrs->done);
		if (ret)
			return ret;
	}

	guard(mutex)(&vrs->lock);

	switch (cmd) {
	case VRS_BYPASS_TRIGGER:
		if (copy_from_user(&trigger, user, sizeof(trigger)))
			return -EFAULT;
		return vrs_trigger(vrs, trigger);
	case VRS_BYPASS_CONNECT:
		if (copy_from_user(&refuse, user, sizeof(refuse)))
			return -EFAULT;
		return vrs_connect(vrs, refuse);
	case VRS_BYPASS_DISCONNECT:
		irq_bypass_unregister_producer(&vrs->producer);
		return 0;
	case VRS_BYPASS_START:
		if (copy_from_user(&job, user, sizeof(job)))
			return -EFAULT;
		return vrs_start(vrs, &job);
	case VRS_BYPASS_WAIT:
		return copy_to_user(user, &vrs->outcome, sizeof(vrs->outcome)) ? -EFAULT : 0;
	case VRS_BYPASS_COUNTS:
		return vrs_copy_counts(vrs, user);
	case VRS_BYPASS_MEASURE:
		if (copy_from_user(&measure, user, sizeof(measure)))
			return -EFAULT;
		ret = vrs_measure(vrs, &measure);
		if (!ret && copy_to_user(user, &measure, sizeof(measure)))
			return -EFAULT;
		return ret;
	default:
		return -ENOTTY;
	}
}

static ssize_t vrs_read(struct file *file, char __user *user, size_t size, loff_t *pos)
{
	struct vrs_bypass *vrs = file->private_data;

	guard(mutex)(&vrs->lock);
	if (!vrs->thread || !completion_done(&vrs->done))
		return -EAGAIN;
	return simple_read_from_buffer(user, size, pos, vrs->samples,
				       vrs->nr_samples * sizeof(*vrs->samples));
}

static int vrs_open(struct inode *inode, struct file *file)
{
	struct vrs_bypass *vrs;
	int ret;

	vrs = kzalloc(sizeof(*vrs), GFP_KERNEL);
	if (!vrs)
		return -ENOMEM;
	ret = ida_alloc_max(&vrs_numbers, VRS_DEVICES - 1, GFP_KERNEL);
	if (ret < 0)
		goto out_free;
	vrs->number = ret;
	ret = vrs_convince_kvm();
	if (ret)
		goto out_number;
	mutex_init(&vrs->lock);
	raw_spin_lock_init(&vrs->entry_lock);
	init_completion(&vrs->done);
	file->private_data = vrs;
	return 0;

out_number:
	ida_free(&vrs_numbers, vrs->number);
out_free:
	kfree(vrs);
	return ret;
}

static int vrs_release(struct inode *inode, struct file *file)
{
	struct vrs_bypass *vrs = file->private_data;

	vrs_stop(vrs);
	irq_bypass_unregister_producer(&vrs->producer);
	if (vrs->irq) {
		free_irq(vrs->irq, vrs->trigger);
		irq_dispose_mapping(vrs->irq);
		eventfd_ctx_put(vrs->trigger);
	}
	WARN_ON(vrs->desc);
	vrs_release_kvm();
	ida_free(&vrs_numbers, vrs->number);
	kvfree(vrs->samples);
	kfree(vrs);
	return 0;
}

static const struct file_operations vrs_fops = {
	.owner		= THIS_MODULE,
	.open		= vrs_open,
	.release	= vrs_release,
	.read		= vrs_read,
	.unlocked_ioctl	= vrs_ioctl,
};

static struct miscdevice vrs_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "vrs_bypass",
	.mode	= 0600,
	.fops	= &vrs_fops,
};

static int __init vrs_init(void)
{
	int ret;

	vrs_domain = irq_domain_create_linear(NULL, VRS_DEVICES, &vrs_domain_ops, NULL);
	if (!vrs_domain)
		return -ENOMEM;
	ret = misc_register(&vrs_misc);
	if (ret)
		irq_domain_remove(vrs_domain);
	return ret;
}
module_init(vrs_init);

static void __exit vrs_exit(void)
{
	misc_deregister(&vrs_misc);
	irq_domain_remove(vrs_domain);
	ida_destroy(&vrs_numbers);
}
module_exit(vrs_exit);

MODULE_DESCRIPTION("Test only: an IOMMU of software that posts interrupts to vCPUs");
MODULE_LICENSE("GPL");
