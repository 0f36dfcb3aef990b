//! The instruction sets of 64-bit Arm.

// An intrinsic's name says where it comes from.
#![allow(clippy::wildcard_imports)]

mod dot_tile;
mod neon;
mod neon_tile;

/// NEON.
pub(crate) type Neon = neon::Quads<neon_tile::Smull>;
/// NEON, with the dot product instructions for the integer product.
pub(crate) type NeonDotprod = neon::Quads<dot_tile::Sdot>;

impl Neon {
    pub(crate) fn detect() -> Option<Self> {
        neon_tile::Smull::detect().and_then(Self::new)
    }
}

impl NeonDotprod {
    pub(crate) fn detect() -> Option<Self> {
        dot_tile::Sdot::detect().and_then(Self::new)
    }

    /// The same with NEON's own integer product.
    pub(crate) fn without_product(self) -> Neon {
        Neon::beside(neon_tile::Smull::beside(self), self)
    }
}
