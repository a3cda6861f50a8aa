// SPDX-License-Identifier: GPL-2.0

//! What KVM lets a module take over.
