# SPDX-License-Identifier: GPL-2.0
"""A type1 driver's module is held by the container it serves, and only by it.

usage: lifecycle.py MODULE PCI-ADDRESS

The device's group goes into a container; the module must then refuse to
unload, and count one user again when the container is gone. That it loads and
unloads at all is shown by the runner, which does both around the tests.
"""

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import sys

# Python was told not to look beside this file.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

from kernel import locked, module_users, unload_module  # noqa: E402
from ktap import Results  # noqa: E402

VFIO_GET_API_VERSION = 0x3B64
VFIO_CHECK_EXTENSION = 0x3B65
VFIO_SET_IOMMU = 0x3B66
VFIO_GROUP_SET_CONTAINER = 0x3B68
VFIO_IOMMU_MAP_DMA = 0x3B71
VFIO_IOMMU_UNMAP_DMA = 0x3B72
VFIO_TYPE1v2_IOMMU = 3
READ_WRITE = 3

IOVA = 16 << 20
SIZE = 64 << 10


def main(module, address):
    results = Results()
    container = os.open("/dev/vfio/vfio", os.O_RDWR)
    number = os.path.basename(os.readlink(f"/sys/bus/pci/devices/{address}/iommu_group"))
    group = os.open(f"/dev/vfio/{number}", os.O_RDWR)
    results.expect("API version is 0", fcntl.ioctl(container, VFIO_GET_API_VERSION), 0)

    fcntl.ioctl(group, VFIO_GROUP_SET_CONTAINER, struct.pack("i", container))
    before = module_users(module)
    fcntl.ioctl(container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU)
    results.expect("a container in use holds the module", module_users(module), before + 1)
    results.expect("the module refuses to unload while in use", unload_module(module), errno.EWOULDBLOCK)

    memory = mmap.mmap(-1, SIZE)
    vaddr = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    before_map = locked()
    fcntl.ioctl(container, VFIO_IOMMU_MAP_DMA,
                struct.pack("IIQQQ", 32, READ_WRITE, vaddr, IOVA, SIZE))
    results.expect("a mapping is accounted as locked memory", locked() - before_map, SIZE)
    unmap = bytearray(struct.pack("IIQQ", 24, 0, IOVA, SIZE))
    fcntl.ioctl(container, VFIO_IOMMU_UNMAP_DMA, unmap)
    results.expect("unmapping reports the size", struct.unpack("IIQQ", unmap)[3], SIZE)
    results.expect("unmapping gives locked memory back", locked(), before_map)

    # The mapping left behind now goes with the container.
    fcntl.ioctl(container, VFIO_IOMMU_MAP_DMA,
                struct.pack("IIQQQ", 32, READ_WRITE, vaddr, IOVA, SIZE))
    os.close(group)
    os.close(container)
    results.expect("a closed container lets the module go", module_users(module), before)
    results.expect("a closed container gives locked memory back", locked(), before_map)
    return results.end()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
