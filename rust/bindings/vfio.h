/* SPDX-License-Identifier: GPL-2.0 */
/* What the kernel crate does not bind; input to bindgen. */

#include <linux/iommu.h>
#include <linux/vfio.h>
#include <../../drivers/vfio/vfio.h>

#include "../helpers/helpers.h"
#include "../../vfio_type1_rs/params.h"
