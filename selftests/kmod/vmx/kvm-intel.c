// SPDX-License-Identifier: GPL-2.0
/*
 * Posted interrupts without VMX: kernel threads take the place of vCPUs, and
 * this module that of kvm-intel, whose name it needs to be let near KVM's
 * provider of posted interrupts. It calls the provider as kvm-intel does, from
 * preemption notifiers, and posts as an IOMMU would: into the descriptor, then
 * by an interrupt to the CPU that the descriptor names, on the real vectors.
 */
#include <kunit/test.h>
#include <linux/cpu.h>
#include <linux/cpumask.h>
#include <linux/delay.h>
#include <linux/kthread.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/prandom.h>
#include <linux/sched.h>
#include <linux/sched/task.h>
#include <linux/slab.h>

#include <asm/apic.h>
#include <asm/irq.h>
#include <asm/kvm_pi_provider.h>
#include <asm/posted_intr.h>
#include <asm/smp.h>

#include "../vrs_vtd.h"

static unsigned int posts = 20000;
module_param(posts, uint, 0444);
MODULE_PARM_DESC(posts, "Interrupts posted to each vCPU in each test (20000).");

#define VCPUS		3
#define VECTOR		0x41
/* An interrupt that takes longer is lost. */
#define PATIENCE	(20 * HZ)

static const struct kvm_pi_provider *provider;

/* CPUs come and go. */
static bool offlining;

struct vcpu {
	struct kvm_pi_vcpu pi;
	struct preempt_notifier notifier;
	struct task_struct *task;
	int cpu;
	bool blocking;
	/* A device may post, and the vCPU is to leave its CPU once more. */
	bool bypass;
	bool unblock;
	unsigned long taken;
	unsigned long slept;
};

/* What the vCPU is told at any time is one interrupt after the other. */
static void take(struct vcpu *vcpu)
{
	struct pi_desc *desc = &vcpu->pi.desc;
	unsigned long pir[NR_PIR_WORDS];

	if (!pi_test_on(desc))
		return;
	pi_clear_on(desc);
	smp_mb__after_atomic();
	if (pi_harvest_pir(desc->pir, pir) && test_bit(VECTOR, pir))
		WRITE_ONCE(vcpu->taken, vcpu->taken + 1);
}

static void load(struct vcpu *vcpu, int cpu)
{
	provider->vcpu_load(&vcpu->pi, vcpu->cpu, cpu);
	vcpu->cpu = cpu;
}

static void put(struct vcpu *vcpu)
{
	if (!READ_ONCE(vcpu->bypass))
		return;
	if (vcpu->blocking && !task_is_runnable(current))
		provider->vcpu_block(&vcpu->pi);
	else
		provider->vcpu_put(&vcpu->pi);
}

static void sched_in(struct preempt_notifier *notifier, int cpu)
{
	load(container_of(notifier, struct vcpu, notifier), cpu);
}

static void sched_out(struct preempt_notifier *notifier, struct task_struct *next)
{
	put(container_of(notifier, struct vcpu, notifier));
}

static struct preempt_ops notifiers = {
	.sched_in = sched_in,
	.sched_out = sched_out,
};

/* As kvm_vcpu_block(). */
static void block(struct vcpu *vcpu)
{
	WRITE_ONCE(vcpu->blocking, true);
	for (;;) {
		set_current_state(TASK_INTERRUPTIBLE);
		if (provider->has_pending(&vcpu->pi) || xchg(&vcpu->unblock, false) ||
		    kthread_should_stop())
			break;
		vcpu->slept++;
		schedule();
	}
	__set_current_state(TASK_RUNNING);
	WRITE_ONCE(vcpu->blocking, false);
}

static int run(void *data)
{
	struct vcpu *vcpu = data;
	int cpu = get_cpu();

	preempt_notifier_init(&vcpu->notifier, &notifiers);
	preempt_notifier_register(&vcpu->notifier);
	load(vcpu, cpu);
	put_cpu();

	while (!kthread_should_stop()) {
		take(vcpu);
		block(vcpu);
	}

	get_cpu();
	preempt_notifier_unregister(&vcpu->notifier);
	put(vcpu);
	put_cpu();
	return 0;
}

static void post(struct vcpu *vcpu)
{
	struct pi_desc *desc = &vcpu->pi.desc;
	struct pi_desc sent;
	int cpu;

	pi_test_and_set_pir(VECTOR, desc);
	if (vrs_set_on(desc, &sent) != VRS_NOTIFY)
		return;

	cpu = vrs_cpu_of(sent.ndst);
	if (cpu < 0) {
		/* The CPU is offline, and its APIC deaf. */
		WARN_ONCE(!READ_ONCE(offlining), "no CPU has NDST %#x\n", sent.ndst);
		return;
	}
	migrate_disable();
	__apic_send_IPI_mask(cpumask_of(cpu), sent.nv);
	migrate_enable();
}

/* What the provider asks for. */
static void host_wake_up(struct kvm_pi_vcpu *pi)
{
	wake_up_process(container_of(pi, struct vcpu, pi)->task);
}

static struct vcpu *vcpus[VCPUS];

static void host_unblock(struct kvm *kvm)
{
	for (int i = 0; i < VCPUS; i++) {
		if (!vcpus[i])
			continue;
		WRITE_ONCE(vcpus[i]->unblock, true);
		wake_up_process(vcpus[i]->task);
	}
}

static const struct kvm_pi_host host = {
	.wake_up = host_wake_up,
	.unblock = host_unblock,
};

static void wakeup_handler(void)
{
	const struct kvm_pi_provider *now = READ_ONCE(provider);

	if (now)
		now->wakeup();
}

static int create(struct kunit *test, bool bypass)
{
	for (int i = 0; i < VCPUS; i++) {
		struct vcpu *vcpu = kzalloc(sizeof(*vcpu), GFP_KERNEL);

		if (!vcpu)
			return -ENOMEM;
		INIT_LIST_HEAD(&vcpu->pi.wakeup_list);
		vcpu->pi.desc.nv = POSTED_INTR_VECTOR;
		__pi_set_sn(&vcpu->pi.desc);
		vcpu->cpu = -1;
		vcpu->bypass = bypass;
		vcpu->task = kthread_create(run, vcpu, "vcpu/%d", i);
		if (IS_ERR(vcpu->task)) {
			kfree(vcpu);
			return -ENOMEM;
		}
		get_task_struct(vcpu->task);
		vcpus[i] = vcpu;
		wake_up_process(vcpu->task);
	}
	return 0;
}

static void destroy(struct kunit *test)
{
	for (int i = 0; i < VCPUS; i++) {
		struct vcpu *vcpu = vcpus[i];

		if (!vcpu)
			continue;
		kthread_stop(vcpu->task);
		put_task_struct(vcpu->task);
		vcpus[i] = NULL;
		kfree(vcpu);
	}
}

static bool arrives(struct vcpu *vcpu, unsigned long number)
{
	unsigned long end = jiffies + PATIENCE;

	while (READ_ONCE(vcpu->taken) < number) {
		if (time_after(jiffies, end))
			return false;
		/* It may be this CPU that it is to run on. */
		yield();
	}
	return true;
}

/* What else happens between two interrupts. */
enum { STAYING, MOVING };

static void post_all(struct kunit *test, int how)
{
	struct rnd_state random;
	unsigned long slept = 0;

	prandom_seed_state(&random, 1);
	for (unsigned int n = 1; n <= posts; n++) {
		for (int i = 0; i < VCPUS; i++) {
			struct vcpu *vcpu = vcpus[i];

			if (how == MOVING && !(prandom_u32_state(&random) & 3))
				set_cpus_allowed_ptr(vcpu->task,
						     cpumask_of(n & 1 ? cpumask_first(cpu_online_mask) :
									cpumask_last(cpu_online_mask)));
			/* Sometimes it sleeps by now, sometimes it is about to. */
			if (prandom_u32_state(&random) & 1)
				ndelay(prandom_u32_state(&random) & 0x3fff);
			post(vcpu);
		}
		for (int i = 0; i < VCPUS; i++) {
			if (!arrives(vcpus[i], n)) {
				KUNIT_FAIL(test, "interrupt %u of vCPU %d is lost: control %#llx, it was on CPU %d\n",
					   n, i, vcpus[i]->pi.desc.control, vcpus[i]->cpu);
				return;
			}
		}
	}
	for (int i = 0; i < VCPUS; i++) {
		KUNIT_EXPECT_EQ(test, vcpus[i]->taken, posts);
		slept += vcpus[i]->slept;
	}
	kunit_info(test, "%u interrupts, %lu times asleep or nearly so", posts * VCPUS, slept);
	/* It is about those that come to a vCPU that sleeps. */
	KUNIT_EXPECT_GT(test, slept, (unsigned long)posts);
}

static void staying(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, create(test, true), 0);
	post_all(test, STAYING);
}

static void moving(struct kunit *test)
{
	KUNIT_ASSERT_EQ(test, create(test, true), 0);
	post_all(test, MOVING);
}

/* The first device comes while all vCPUs halt, again and again. */
static void first_device(struct kunit *test)
{
	for (unsigned int n = 1; n <= posts / 10; n++) {
		KUNIT_ASSERT_EQ(test, create(test, false), 0);
		for (int i = 0; i < VCPUS; i++)
			WRITE_ONCE(vcpus[i]->bypass, true);
		smp_mb();
		provider->start_bypass(NULL);
		for (int i = 0; i < VCPUS; i++)
			post(vcpus[i]);
		for (int i = 0; i < VCPUS; i++) {
			if (!arrives(vcpus[i], 1)) {
				KUNIT_FAIL(test, "round %u: the first interrupt of vCPU %d is lost\n", n, i);
				return;
			}
		}
		destroy(test);
	}
}

/* Does it wait on that CPU for the wakeup vector? */
static bool waits_on(struct vcpu *vcpu, int cpu)
{
	unsigned long end = jiffies + PATIENCE;

	while (READ_ONCE(vcpu->pi.desc.nv) != POSTED_INTR_WAKEUP_VECTOR ||
	       READ_ONCE(vcpu->cpu) != cpu) {
		if (time_after(jiffies, end))
			return false;
		yield();
	}
	return true;
}

/* The CPU that all halt on goes, and the next interrupt is posted to it all the same. */
static void offline_rounds(struct kunit *test, unsigned int cpu)
{
	unsigned long number = 0;

	for (unsigned int n = 1; n <= max(posts / 1000, 5u); n++) {
		number++;
		for (int i = 0; i < VCPUS; i++) {
			set_cpus_allowed_ptr(vcpus[i]->task, cpumask_of(cpu));
			post(vcpus[i]);
			KUNIT_ASSERT_TRUE(test, arrives(vcpus[i], number));
		}
		for (int i = 0; i < VCPUS; i++)
			KUNIT_ASSERT_TRUE(test, waits_on(vcpus[i], cpu));

		KUNIT_ASSERT_EQ(test, remove_cpu(cpu), 0);
		number++;
		for (int i = 0; i < VCPUS; i++) {
			post(vcpus[i]);
			if (!arrives(vcpus[i], number))
				KUNIT_FAIL(test, "round %u: interrupt %lu of vCPU %d is lost: control %#llx\n",
					   n, number, i, vcpus[i]->pi.desc.control);
		}
		KUNIT_ASSERT_EQ(test, add_cpu(cpu), 0);
	}
}

static void offline(struct kunit *test)
{
	unsigned int cpu = cpumask_last(cpu_online_mask);

	if (cpu == cpumask_first(cpu_online_mask))
		kunit_skip(test, "there is one CPU");
	KUNIT_ASSERT_EQ(test, create(test, true), 0);
	WRITE_ONCE(offlining, true);
	offline_rounds(test, cpu);
}

static struct kunit_case cases[] = {
	KUNIT_CASE_SLOW(staying),
	KUNIT_CASE_SLOW(moving),
	KUNIT_CASE_SLOW(first_device),
	KUNIT_CASE_SLOW(offline),
	{}
};

static int begin(struct kunit *test)
{
	if (!provider)
		kunit_skip(test, "no provider of posted interrupts is registered");
	return 0;
}

static void end(struct kunit *test)
{
	destroy(test);
	/* A failed assertion has left it so. */
	if (xchg(&offlining, false))
		add_cpu(cpumask_last(cpu_present_mask));
}

/* Called by KVM at once, and when a provider comes or goes. */
static void update(const struct kvm_pi_provider *now)
{
	if (now)
		now->bind(&host);
	WRITE_ONCE(provider, now);
}

static int suite_init(struct kunit_suite *unused)
{
	preempt_notifier_inc();
	kvm_pi_vendor_init(update);
	kvm_set_posted_intr_wakeup_handler(wakeup_handler);
	return 0;
}

static void suite_exit(struct kunit_suite *unused)
{
	kvm_set_posted_intr_wakeup_handler(NULL);
	kvm_pi_vendor_exit();
	preempt_notifier_dec();
}

static struct kunit_suite suite = {
	.name = "posted_intr_threads",
	.suite_init = suite_init,
	.suite_exit = suite_exit,
	.init = begin,
	.exit = end,
	.test_cases = cases,
};
kunit_test_suite(suite);

MODULE_DESCRIPTION("Posted interrupts without VMX, for tests");
MODULE_LICENSE("GPL");
