//! The instruction sets of x86-64.

// An intrinsic's name says where it comes from.
#![allow(clippy::wildcard_imports)]

/// Folds two registers of 256 bits to one lane, over the tree of [`crate::simd::Simd::fold`]: lane `i` with `i + 8`, then
/// `i + 4`, `i + 2`, `i + 1`.
macro_rules! fold {
    ($halves:expr, $wide:ident, $narrow:ident) => {{
        let [low, high] = $halves;
        intrinsics!({
            let eight = $wide(low, high);
            let four = $narrow(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = $narrow(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32($narrow(two, _mm_shuffle_ps::<1>(two, two)))
        })
    }};
}

mod avx2;
mod avx2_tile;
mod avx512;
mod avx512_tile;
mod avx_vnni_tile;

pub(crate) use avx512::Avx512;

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

    /// The same with AVX2's own integer product.
    pub(crate) fn without_product(self) -> Avx2 {
        Avx2::beside(avx2_tile::Madd::beside(self), self)
    }
}
