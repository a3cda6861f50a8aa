// SPDX-License-Identifier: GPL-2.0
/*
 * Test only: stands in for the hardware of SEV-ES, which no emulator has.
 *
 * KVM takes a vCPU for protected if a flag in it says so. With the flag set,
 * and exits passed to KVM's own handler in place of the processor, all that
 * KVM does about the registers of such a vCPU can be seen, but for running it.
 */
#include <linux/file.h>
#include <linux/kvm_host.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/slab.h>
#include <linux/uaccess.h>

#include "mmu.h"
#include "svm/svm.h"

#include "vrs_protected.h"
#include "vrs_symbol.h"
#include "vrs_vcpu.h"

struct vrs_protected {
	struct mutex lock;
	struct file *file;
	struct kvm_vcpu *vcpu;
	bool sealed;
	int (*invoke_exit_handler)(struct kvm_vcpu *vcpu, u64 exit_code);
	void (*load)(struct kvm_vcpu *vcpu);
	void (*put)(struct kvm_vcpu *vcpu);
};

static long vrs_protect(struct vrs_protected *vrs, const struct vrs_protect *arg)
{
	struct kvm_vcpu *vcpu;
	struct file *file;

	if (vrs->vcpu)
		return -EBUSY;
	if (arg->flags & ~VRS_PROTECT_SEALED)
		return -EINVAL;
	if (!vrs_is_at("svm_invoke_exit_handler", arg->svm_invoke_exit_handler) ||
	    !vrs_is_at("vcpu_load", arg->vcpu_load) ||
	    !vrs_is_at("vcpu_put", arg->vcpu_put))
		return -ESRCH;

	file = vrs_vcpu_file(arg->vcpu);
	if (IS_ERR(file))
		return PTR_ERR(file);

	vcpu = file->private_data;
	vrs->invoke_exit_handler = (void *)arg->svm_invoke_exit_handler;
	vrs->load = (void *)arg->vcpu_load;
	vrs->put = (void *)arg->vcpu_put;
	vrs->sealed = arg->flags & VRS_PROTECT_SEALED;
	/* Keeps the VM, too: it must not be taken down as a protected one. */
	vrs->file = file;

	mutex_lock(&vcpu->mutex);
	if (vcpu->arch.guest_state_protected) {
		mutex_unlock(&vcpu->mutex);
		fput(file);
		return -EBUSY;
	}
	vcpu->arch.guest_state_protected = true;
	if (vrs->sealed)
		vcpu->kvm->arch.has_protected_state = true;
	mutex_unlock(&vcpu->mutex);

	vrs->vcpu = vcpu;
	return 0;
}

static long vrs_trap(struct vrs_protected *vrs, struct vrs_trap *arg)
{
	struct kvm_vcpu *vcpu = vrs->vcpu;
	struct vcpu_svm *svm = to_svm(vcpu);

	switch (arg->exit_code) {
	case SVM_EXIT_CR0_WRITE_TRAP:
	case SVM_EXIT_CR4_WRITE_TRAP:
	case SVM_EXIT_CR8_WRITE_TRAP:
	case SVM_EXIT_EFER_WRITE_TRAP:
		break;
	default:
		return -EINVAL;
	}

	mutex_lock(&vcpu->mutex);
	vrs->load(vcpu);

	/* The guest has had the exception of the last time. */
	vcpu->arch.exception.pending = false;

	svm->vmcb->control.exit_code = arg->exit_code;
	svm->vmcb->control.exit_info_1 = arg->exit_info_1;
	/* The instruction is not KVM's to skip: where it is, is encrypted. */
	svm->vmcb->control.next_rip = 0;
	svm->next_rip = vcpu->arch.rip + 3;

	arg->result = vrs->invoke_exit_handler(vcpu, arg->exit_code);
	arg->exception = vcpu->arch.exception.pending ? vcpu->arch.exception.vector : -1;

	vrs->put(vcpu);
	mutex_unlock(&vcpu->mutex);
	return 0;
}

static void vrs_state(struct vrs_protected *vrs, struct vrs_state *arg)
{
	struct kvm_vcpu *vcpu = vrs->vcpu;

	mutex_lock(&vcpu->mutex);
	arg->requests = vcpu->requests;
	vcpu->requests = 0;
	arg->cpu_role = vcpu->arch.gva_walk.cpu_role.as_u64;
	mutex_unlock(&vcpu->mutex);

	arg->flush_guest = KVM_REQ_TLB_FLUSH_GUEST & KVM_REQUEST_MASK;
	arg->flush_current = KVM_REQ_TLB_FLUSH_CURRENT & KVM_REQUEST_MASK;
	arg->async_pf = KVM_REQ_APF_READY & KVM_REQUEST_MASK;
	arg->tdp = vcpu->arch.root_mmu.root_role.direct;
}

static long vrs_ioctl(struct file *file, unsigned int cmd, unsigned long arg)
{
	struct vrs_protected *vrs = file->private_data;
	void __user *user = (void __user *)arg;
	struct vrs_protect protect;
	struct vrs_state state = {};
	struct vrs_trap trap;
	long ret;

	guard(mutex)(&vrs->lock);

	if (cmd != VRS_PROTECT && !vrs->vcpu)
		return -ENXIO;

	switch (cmd) {
	case VRS_PROTECT:
		if (copy_from_user(&protect, user, sizeof(protect)))
			return -EFAULT;
		return vrs_protect(vrs, &protect);
	case VRS_TRAP:
		if (copy_from_user(&trap, user, sizeof(trap)))
			return -EFAULT;
		ret = vrs_trap(vrs, &trap);
		if (!ret && copy_to_user(user, &trap, sizeof(trap)))
			return -EFAULT;
		return ret;
	case VRS_STATE:
		vrs_state(vrs, &state);
		return copy_to_user(user, &state, sizeof(state)) ? -EFAULT : 0;
	default:
		return -ENOTTY;
	}
}

static int vrs_open(struct inode *inode, struct file *file)
{
	struct vrs_protected *vrs = kzalloc(sizeof(*vrs), GFP_KERNEL);

	if (!vrs)
		return -ENOMEM;
	mutex_init(&vrs->lock);
	file->private_data = vrs;
	return 0;
}

static int vrs_release(struct inode *inode, struct file *file)
{
	struct vrs_protected *vrs = file->private_data;

	if (vrs->vcpu) {
		mutex_lock(&vrs->vcpu->mutex);
		vrs->vcpu->arch.guest_state_protected = false;
		if (vrs->sealed)
			vrs->vcpu->kvm->arch.has_protected_state = false;
		vrs->vcpu->arch.exception.pending = false;
		mutex_unlock(&vrs->vcpu->mutex);
		fput(vrs->file);
	}
	kfree(vrs);
	return 0;
}

static const struct file_operations vrs_fops = {
	.owner		= THIS_MODULE,
	.open		= vrs_open,
	.release	= vrs_release,
	.unlocked_ioctl	= vrs_ioctl,
};

static struct miscdevice vrs_misc = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "vrs_protected",
	.mode	= 0600,
	.fops	= &vrs_fops,
};
module_misc_device(vrs_misc);

MODULE_DESCRIPTION("Test only: vCPUs whose state is protected, without the hardware");
MODULE_LICENSE("GPL");
