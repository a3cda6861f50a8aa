/* SPDX-License-Identifier: GPL-2.0 */
/* KVM's interface for a module that maps device memory; input to bindgen. */

#include <linux/kvm_host.h>
#include <asm/kvm_pgtable.h>
#include <asm/kvm_s2_device.h>

#include "../../helpers/kvm_arm64.h"
#include "../../../kvm_arm64_rs/params.h"
#include "../../../kvm_arm64_rs/trace_device_map.h"
