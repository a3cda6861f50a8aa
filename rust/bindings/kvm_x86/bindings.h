/* SPDX-License-Identifier: GPL-2.0 */
/* What KVM on x86 offers a module; input to bindgen. */

#include <linux/kvm.h>

#include <asm/apic.h>
#include <asm/irq_remapping.h>
#include <asm/kvm_pi_provider.h>
#include <asm/kvm_sregs_provider.h>
#include <asm/percpu.h>
#include <asm/smp.h>

#include "../../helpers/kvm_x86.h"
#include "../../../kvm_x86_rs/params.h"
#include "../../../kvm_x86_rs/trace.h"
#include "../../../kvm_x86_rs/trace_sregs.h"

/* What C knows of structures that Rust reads and writes. */
static const unsigned long VRS_SIZE_KVM_PI_VCPU = sizeof(struct kvm_pi_vcpu);
static const unsigned long VRS_OFFSET_KVM_PI_VCPU_LIST = offsetof(struct kvm_pi_vcpu, wakeup_list);
static const unsigned long VRS_SIZE_KVM_PI_PROVIDER = sizeof(struct kvm_pi_provider);
static const unsigned long VRS_SIZE_KVM_PI_HOST = sizeof(struct kvm_pi_host);
static const unsigned int VRS_POSTED_INTR_VECTOR = POSTED_INTR_VECTOR;
static const unsigned int VRS_POSTED_INTR_WAKEUP_VECTOR = POSTED_INTR_WAKEUP_VECTOR;
static const unsigned long VRS_SIZE_KVM_SREGS = sizeof(struct kvm_sregs);
static const unsigned long VRS_OFFSET_KVM_SREGS_CR0 = offsetof(struct kvm_sregs, cr0);
static const unsigned long VRS_OFFSET_KVM_SREGS_APIC_BASE = offsetof(struct kvm_sregs, apic_base);
static const unsigned long VRS_OFFSET_KVM_SREGS2_APIC_BASE = offsetof(struct kvm_sregs2, apic_base);
static const unsigned long VRS_SIZE_KVM_SREGS_MODEL = sizeof(struct kvm_sregs_model);
static const unsigned long VRS_SIZE_KVM_SREGS_LIMITS = sizeof(struct kvm_sregs_limits);
static const unsigned long VRS_SIZE_KVM_SREGS_HOST = sizeof(struct kvm_sregs_host);
static const unsigned long VRS_SIZE_KVM_SREGS_PROVIDER = sizeof(struct kvm_sregs_provider);
static const unsigned int VRS_KVM_SREGS_RESET_MMU = KVM_SREGS_RESET_MMU;
static const unsigned int VRS_KVM_SREGS_INIT_MMU = KVM_SREGS_INIT_MMU;
static const unsigned int VRS_KVM_SREGS_UNLOAD_MMU = KVM_SREGS_UNLOAD_MMU;
static const unsigned int VRS_KVM_SREGS_FLUSH_GUEST = KVM_SREGS_FLUSH_GUEST;
static const unsigned int VRS_KVM_SREGS_FLUSH_CURRENT = KVM_SREGS_FLUSH_CURRENT;
static const unsigned int VRS_KVM_SREGS_ASYNC_PF = KVM_SREGS_ASYNC_PF;
