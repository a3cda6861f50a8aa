/* SPDX-License-Identifier: GPL-2.0 */
/* KVM's interface for a module that handles posted interrupts; input to bindgen. */

#include <asm/irq_remapping.h>
#include <asm/kvm_pi_provider.h>

#include "../../helpers/kvm_x86.h"
#include "../../../kvm_x86_rs/trace.h"

/* What C knows of structures that Rust reads and writes. */
static const unsigned long VRS_SIZE_KVM_PI_VCPU = sizeof(struct kvm_pi_vcpu);
static const unsigned long VRS_OFFSET_KVM_PI_VCPU_LIST = offsetof(struct kvm_pi_vcpu, wakeup_list);
static const unsigned long VRS_SIZE_KVM_PI_PROVIDER = sizeof(struct kvm_pi_provider);
static const unsigned long VRS_SIZE_KVM_PI_HOST = sizeof(struct kvm_pi_host);
static const unsigned int VRS_KVM_PI_PUT_FROM_IPIS = KVM_PI_PUT_FROM_IPIS;
static const unsigned int VRS_KVM_PI_PUT_FROM_DEVICES = KVM_PI_PUT_FROM_DEVICES;
static const unsigned int VRS_KVM_PI_PUT_PREEMPTED = KVM_PI_PUT_PREEMPTED;
static const unsigned int VRS_KVM_PI_PUT_BLOCKING = KVM_PI_PUT_BLOCKING;
static const unsigned int VRS_KVM_PI_PUT_IRQS_ALLOWED = KVM_PI_PUT_IRQS_ALLOWED;
static const unsigned int VRS_POSTED_INTR_VECTOR = POSTED_INTR_VECTOR;
static const unsigned int VRS_POSTED_INTR_WAKEUP_VECTOR = POSTED_INTR_WAKEUP_VECTOR;
