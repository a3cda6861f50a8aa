# SPDX-License-Identifier: GPL-2.0
#
# `make help` lists the targets.

# The build tree of the kernel the modules are for.
KDIR ?= /lib/modules/$(shell uname -r)/build

RUSTFMT ?= rustfmt

# What KDIR was built for and with; each can be given on the command line.
kdir-goals := $(filter-out help check check-% fuzz demo setup fmt doc,$(or $(MAKECMDGOALS),modules))
ifneq ($(kdir-goals),)
kdir-tools := $(shell scripts/kdir-tools '$(KDIR)')
ARCH ?= $(patsubst ARCH=%,%,$(filter ARCH=%,$(kdir-tools)))
LLVM ?= $(patsubst LLVM=%,%,$(filter LLVM=%,$(kdir-tools)))
RUSTC ?= $(patsubst RUSTC=%,%,$(filter RUSTC=%,$(kdir-tools)))
CLIPPY_DRIVER ?= $(patsubst CLIPPY_DRIVER=%,%,$(filter CLIPPY_DRIVER=%,$(kdir-tools)))
BINDGEN ?= $(patsubst BINDGEN=%,%,$(filter BINDGEN=%,$(kdir-tools)))
endif
kbuild = $(MAKE) -C '$(KDIR)' M='$(CURDIR)' $(if $(ARCH),ARCH='$(ARCH)') LLVM='$(LLVM)' RUSTC='$(RUSTC)' HOSTRUSTC='$(RUSTC)' \
	CLIPPY_DRIVER='$(CLIPPY_DRIVER)' BINDGEN='$(BINDGEN)'

checks := check-host check-build check-kunit check-uml check-vm check-leaks check-iommus check-dpdk check-debug check-arm64 check-stage2 check-clients check-hwdbm check-kvm check-vmx

.PHONY: modules modules_install clean kdir-ok
modules: kdir-ok
	+@$(kbuild) modules

modules_install: kdir-ok
	+@$(kbuild) modules_install

clean:
	+@$(kbuild) clean

kdir-ok:
	@RUSTC='$(RUSTC)' scripts/check-kdir '$(KDIR)'

.PHONY: setup demo fuzz check $(checks)
setup:
	@scripts/dev setup

demo:
	@scripts/dev demo

check:
	@scripts/dev check

fuzz:
	@scripts/dev fuzz

$(checks): check-%:
	@scripts/dev check $*

.PHONY: check-foreign
check-foreign:
	@scripts/dev foreign $(if $(CHECKOUT),--checkout '$(CHECKOUT)')

.PHONY: fmt help
fmt:
	@git ls-files -z '*.rs' | xargs -0 $(RUSTFMT) --edition 2021

help:
	@echo  'Modules, built against KDIR (a built Linux 7.3 tree, LLVM=1):'
	@echo  '  modules          - build all modules (default)'
	@echo  '  modules_install  - install them under INSTALL_MOD_PATH'
	@echo  '  clean            - remove what a build left here'
	@echo  ''
	@echo  'Everything from scratch (packages, kernels, cached outside this tree):'
	@echo  '  demo             - QEMU passes a disk to a guest through vfio_type1_rs'
	@echo  '  check            - all tests, or one stage of them:'
	@echo  '                     $(checks)'
	@echo  '  check-foreign    - VFIO programs of others; CHECKOUT=DIR if there is no network'
	@echo  '  fuzz             - random calls on both drivers, compared, for an hour at most'
	@echo  '  setup            - only fetch and build what these need'
	@echo  ''
	@echo  'Source:'
	@echo  '  fmt              - format all Rust code'
	@echo  ''
	@echo  '  KDIR=$(KDIR)'
	@echo  '  ARCH=, LLVM=, RUSTC=, BINDGEN= override what was found for KDIR'
	@echo  '  CLIPPY=1 lints, V=1 shows the commands'
