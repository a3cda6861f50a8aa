#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Each test spoils one thing in a KDIR that is otherwise good, and expects
# scripts/check-kdir to refuse it for that reason and to name a next step.
# Prints KTAP.

set -eu

check=$(CDPATH='' cd -- "$(dirname -- "$0")/.." && pwd)/check-kdir
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
kdir=$tmp/kdir
number=0
failed=0

# A compiler that reports a version is all check-kdir wants of it.
cat >"$tmp/rustc" <<'EOF'
#!/bin/sh
echo 'rustc 1.90.0 (abcdef012 2025-09-14)'
EOF
chmod +x "$tmp/rustc"
rustc=$tmp/rustc

source_in() {
	mkdir -p "$1/drivers/vfio" "$1/include/linux" "$1/arch/arm64/include/asm" \
		"$1/arch/x86/include/asm"
	: >"$1/drivers/vfio/vfio.h"
	echo '	void (*record)(struct iommu_dirty_bitmap *dirty);' >"$1/include/linux/iommu.h"
	: >"$1/arch/arm64/include/asm/kvm_s2_device.h"
	: >"$1/arch/x86/include/asm/kvm_pi_provider.h"
	: >"$1/arch/x86/include/asm/kvm_sregs_provider.h"
}

good_kdir() {
	rm -rf "$kdir" "$tmp/source"
	mkdir -p "$kdir/include/config" "$kdir/rust"
	source_in "$tmp/source"
	ln -s "$tmp/source" "$kdir/source"
	: >"$kdir/.config"
	: >"$kdir/rust/libkernel.rmeta"
	: >"$kdir/Module.symvers"
	echo 7.3.4 >"$kdir/include/config/kernel.release"
	cat >"$kdir/include/config/auto.conf" <<-'EOF'
	CONFIG_RUST=y
	CONFIG_CC_IS_CLANG=y
	CONFIG_VFIO=m
	CONFIG_VFIO_CONTAINER=y
	CONFIG_RUSTC_VERSION_TEXT=rustc 1.90.0 (abcdef012 2025-09-14)
	EOF
	rustc=$tmp/rustc
}

without() {
	sed -i "/^CONFIG_$1=/d" "$kdir/include/config/auto.conf"
}

result() {
	number=$((number + 1))
	if [ "$1" = ok ]; then
		echo "ok $number $2"
	else
		failed=$((failed + 1))
		echo "not ok $number $2"
		sed 's/^/# /' "$tmp/said"
	fi
}

accepts() {
	if RUSTC=$rustc "$check" "$kdir" >"$tmp/said" 2>&1 && [ ! -s "$tmp/said" ]; then
		result ok "$1"
	else
		result bad "$1"
	fi
	good_kdir
}

# refuses NAME WORDS-OF-THE-REASON [KDIR]
refuses() {
	if RUSTC=$rustc "$check" "${3-$kdir}" >"$tmp/said" 2>&1; then
		echo "accepted" >>"$tmp/said"
		result bad "$1"
	elif grep -qF -- "$2" "$tmp/said" && [ "$(wc -l <"$tmp/said")" -eq 2 ]; then
		result ok "$1"
	else
		result bad "$1"
	fi
	good_kdir
}

echo "KTAP version 1"
echo "1..23"
good_kdir

accepts "separate_source"

rm "$kdir/source"
source_in "$kdir"
accepts "built_in_source_tree"

echo 7.3.0-rc5+ >"$kdir/include/config/kernel.release"
accepts "release_candidate"

refuses "not_given" "none was given" ""
refuses "missing_folder" "does not exist" "$tmp/nowhere"
refuses "not_a_kernel" "is not a kernel build" "$tmp/source"

rm "$kdir/include/config/auto.conf"
refuses "only_configured" "is configured, but not built"

rm "$kdir/include/config/kernel.release"
refuses "not_built" "is configured, but not built"

echo 7.2.9 >"$kdir/include/config/kernel.release"
refuses "older_series" "is Linux 7.2.9"

echo 7.30.1 >"$kdir/include/config/kernel.release"
refuses "similar_series" "is Linux 7.30.1"

without RUST
refuses "no_rust" "without CONFIG_RUST"

without CC_IS_CLANG
refuses "built_with_gcc" "was built with GCC"

without VFIO_CONTAINER
refuses "no_container" "without CONFIG_VFIO_CONTAINER"

rm "$kdir/rust/libkernel.rmeta"
refuses "no_metadata" "has no rust/libkernel.rmeta"

rm "$kdir/Module.symvers"
refuses "unfinished_build" "has no Module.symvers"

sed -i 's/rustc 1\.90\.0/rustc 1.89.0/' "$kdir/include/config/auto.conf"
refuses "other_rustc" "built with rustc 1.89.0 (abcdef012 2025-09-14)"

rustc=$tmp/no-rustc
refuses "no_rustc" "does not run"

rm "$tmp/source/drivers/vfio/vfio.h"
refuses "headers_package" "has no drivers/vfio/vfio.h"

rm -r "$tmp/source"
refuses "source_gone" "has no drivers/vfio/vfio.h"

echo 'struct iommu_dirty_bitmap;' >"$tmp/source/include/linux/iommu.h"
refuses "not_patched" "lacks the patches"

source_in "$tmp/source"
rm "$tmp/source/arch/arm64/include/asm/kvm_s2_device.h"
refuses "half_patched" "lacks the patches"

source_in "$tmp/source"
rm "$tmp/source/arch/x86/include/asm/kvm_pi_provider.h"
refuses "patched_for_arm64" "lacks the patches"

source_in "$tmp/source"
rm "$tmp/source/arch/x86/include/asm/kvm_sregs_provider.h"
refuses "last_patch_missing" "lacks the patches"

[ "$failed" -eq 0 ]
