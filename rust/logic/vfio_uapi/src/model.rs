// SPDX-License-Identifier: GPL-2.0

//! The two behaviours of a type1 container.

use crate::{
    extension,
    Refusal, //
};

/// The behaviour that user space chose with `VFIO_SET_IOMMU`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Model {
    /// `VFIO_TYPE1_IOMMU`: unmapping takes whole mappings silently, there is no dirty tracking.
    V1,
    /// `VFIO_TYPE1v2_IOMMU`: unmapping refuses to bisect a mapping.
    V2,
}

impl Model {
    /// Returns the model that an argument of `VFIO_SET_IOMMU` names.
    ///
    /// The reserved nesting number implies v2, as in the C driver's `open`.
    pub const fn from_extension(number: u64) -> Option<Self> {
        match number {
            extension::TYPE1 => Some(Self::V1),
            extension::TYPE1V2 | extension::TYPE1_NESTING => Some(Self::V2),
            _ => None,
        }
    }

    /// Refuses, with `EACCES`, what only v2 containers can do: dirty tracking and pinning.
    pub const fn require_v2(self) -> Result<(), Refusal> {
        match self {
            Self::V1 => Err(Refusal::V1Container),
            Self::V2 => Ok(()),
        }
    }
}
