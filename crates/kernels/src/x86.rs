//! The instruction sets of x86-64.

// An intrinsic's name says where it comes from.
#![allow(clippy::wildcard_imports)]

mod avx2;
mod avx2_tile;
mod avx512;
mod avx512_tile;
mod avx_vnni_tile;

pub(crate) use avx512::Avx512Vnni;

/// AVX2 and FMA.
pub(crate) type Avx2 = avx2::Ymm<avx2_tile::Madd>;
/// AVX2 and FMA, with VNNI for the integer product.
pub(crate) type AvxVnni = avx2::Ymm<avx_vnni_tile::Dpbusd>;

impl Avx2 {
    pub(crate) fn detect() -> Option<Self> {
        avx2_tile::Madd::detect().and_then(Self::new)
    }
}

impl AvxVnni {
    pub(crate) fn detect() -> Option<Self> {
        avx_vnni_tile::Dpbusd::detect().and_then(Self::new)
    }
}
