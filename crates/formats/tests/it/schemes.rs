//! Schemes that more than one subject goes through.

use zeropoint_core::{
    ActivationMode, ActivationScheme,
    Granularity::{self, Channel, Tensor},
    Scheme, Symmetry, WeightBits,
};

/// INT8 weights and activations.
pub(crate) fn scheme(granularity: Granularity, mode: ActivationMode, symmetry: Symmetry) -> Scheme {
    Scheme::int8(granularity, ActivationScheme { mode, symmetry })
}

/// Every weight-only scheme that a row of 12 inputs can have.
pub(crate) fn weight_only_schemes() -> impl Iterator<Item = Scheme> {
    let granularities =
        [Tensor, Channel, Granularity::Group(12), Granularity::Group(4), Granularity::Group(1)];
    [WeightBits::Four, WeightBits::Eight]
        .into_iter()
        .flat_map(move |bits| granularities.map(|granularity| Scheme::weight_only(bits, granularity)))
}
