/* SPDX-License-Identifier: GPL-2.0 */
/* For test-only modules that are given vCPUs by their file descriptors. */
#ifndef VRS_VCPU_H
#define VRS_VCPU_H

#include <linux/err.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/string.h>

/* The file of a vCPU, which its private_data is; to be put. */
static inline struct file *vrs_vcpu_file(int fd)
{
	struct file *file = fget(fd);

	if (!file)
		return ERR_PTR(-EBADF);
	if (strncmp(file->f_path.dentry->d_name.name, "kvm-vcpu:", strlen("kvm-vcpu:"))) {
		fput(file);
		return ERR_PTR(-EINVAL);
	}
	return file;
}

#endif
