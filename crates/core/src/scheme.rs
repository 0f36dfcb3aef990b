//! Schemes: how weights and activations are quantised, apart from any number.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Smallest INT8 value.
pub const QMIN: i32 = -128;
/// Largest INT8 value.
pub const QMAX: i32 = 127;

/// Whether real zero must fall on integer zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Symmetry {
    /// Zero point 0; the range is `[-absmax, absmax]`.
    Symmetric,
    /// Any zero point; the range is `[min, max]`.
    Asymmetric,
}

impl Symmetry {
    /// `true` gives [`Symmetry::Symmetric`].
    pub fn from_flag(symmetric: bool) -> Self {
        if symmetric { Self::Symmetric } else { Self::Asymmetric }
    }

    /// Whether this is [`Symmetry::Symmetric`].
    pub fn is_symmetric(self) -> bool {
        self == Self::Symmetric
    }
}

impl fmt::Display for Symmetry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Symmetric => "symmetric",
            Self::Asymmetric => "asymmetric",
        })
    }
}

/// Over which part of a tensor one scale is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Granularity {
    /// One scale for the whole tensor.
    Tensor,
    /// One scale for each output channel (row) of a weight.
    Channel,
    /// One scale for so many neighbouring inputs (columns) of each row of a weight; at least 1, and a divisor of the columns.
    Group(usize),
    /// One scale for each token (row) of an activation.
    Token,
}

impl Granularity {
    /// How many scales each row of a weight with so many columns has; `None` where they are not whole groups.
    pub fn groups(self, columns: usize) -> Option<usize> {
        match self {
            Self::Group(size) => (size > 0 && columns.is_multiple_of(size)).then(|| columns / size),
            _ => Some(1),
        }
    }
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor => f.write_str("per-tensor"),
            Self::Channel => f.write_str("per-channel"),
            Self::Group(size) => write!(f, "per-group of {size}"),
            Self::Token => f.write_str("per-token"),
        }
    }
}

/// When activation parameters are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ActivationMode {
    /// Once, from calibration data.
    Static,
    /// From the values themselves, each time.
    Dynamic,
}

impl fmt::Display for ActivationMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Static => "static",
            Self::Dynamic => "dynamic",
        })
    }
}

/// Bits of a quantised weight, a signed integer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightBits {
    /// Values in `-8..=7`.
    Four,
    /// Values in `-128..=127`.
    Eight,
}

impl WeightBits {
    /// Bits of one value.
    pub const fn width(self) -> usize {
        match self {
            Self::Four => 4,
            Self::Eight => 8,
        }
    }

    /// The smallest and the largest value.
    pub const fn range(self) -> (i8, i8) {
        match self {
            Self::Four => (-8, 7),
            Self::Eight => (-128, 127),
        }
    }

    /// Whether a value has so many bits.
    pub const fn holds(self, q: i8) -> bool {
        let (low, high) = self.range();
        low <= q && q <= high
    }

    /// Half the width of the range in steps: a symmetric scale is the largest magnitude divided by it.
    pub const fn half_range(self) -> f32 {
        match self {
            Self::Four => 7.5,
            Self::Eight => 127.5,
        }
    }
}

impl fmt::Display for WeightBits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "int{}", self.width())
    }
}

/// How a weight is quantised. Weights are symmetric: no runtime that loads the deployable format takes others in INT8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WeightScheme {
    /// Bits of a value.
    pub bits: WeightBits,
    /// [`Granularity::Tensor`], [`Granularity::Channel`] or [`Granularity::Group`].
    pub granularity: Granularity,
}

impl WeightScheme {
    /// INT8 values.
    pub const fn int8(granularity: Granularity) -> Self {
        Self { bits: WeightBits::Eight, granularity }
    }
}

/// How an activation is quantised to INT8. Static activations share one scale per tensor, dynamic ones one per token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ActivationScheme {
    /// Static or dynamic.
    pub mode: ActivationMode,
    /// Symmetric or asymmetric.
    pub symmetry: Symmetry,
}

impl ActivationScheme {
    /// Over what one scale is shared: follows from the mode.
    pub fn granularity(self) -> Granularity {
        match self.mode {
            ActivationMode::Static => Granularity::Tensor,
            ActivationMode::Dynamic => Granularity::Token,
        }
    }
}

/// The scheme of one Linear.
///
/// With INT8 activations its weight is INT8, per tensor or channel. Without, it is weight-only: the weight's integers are
/// multiplied by their scales and by activations in floating point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scheme {
    /// How its weight is quantised.
    pub weights: WeightScheme,
    /// How its input is quantised; `None` where it stays floating point.
    pub activations: Option<ActivationScheme>,
}

impl Scheme {
    /// INT8 weights and INT8 activations.
    pub const fn int8(granularity: Granularity, activations: ActivationScheme) -> Self {
        Self { weights: WeightScheme::int8(granularity), activations: Some(activations) }
    }

    /// Quantised weights alone.
    pub const fn weight_only(bits: WeightBits, granularity: Granularity) -> Self {
        Self { weights: WeightScheme { bits, granularity }, activations: None }
    }

    /// Whether activations stay floating point.
    pub fn is_weight_only(self) -> bool {
        self.activations.is_none()
    }

    /// Whether activations have parameters that calibration finds.
    pub fn is_static(self) -> bool {
        self.activations.is_some_and(|activations| activations.mode == ActivationMode::Static)
    }

    /// How activations are quantised, in words: as [`ActivationScheme`] displays itself, or `float`.
    pub fn activations_in_words(self) -> String {
        self.activations.map_or_else(|| "float".to_owned(), |activations| activations.to_string())
    }
}

impl fmt::Display for WeightScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} symmetric", self.bits, self.granularity)
    }
}

impl fmt::Display for ActivationScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "int8 {} {} {}", self.mode, self.granularity(), self.symmetry)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weights {}, activations {}", self.weights, self.activations_in_words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_read_as_people_say_them() {
        let activations = ActivationScheme { mode: ActivationMode::Dynamic, symmetry: Symmetry::Symmetric };
        let cases = [
            (
                Scheme::int8(Granularity::Channel, activations),
                "weights int8 per-channel symmetric, activations int8 dynamic per-token symmetric",
            ),
            (
                Scheme::weight_only(WeightBits::Four, Granularity::Group(64)),
                "weights int4 per-group of 64 symmetric, activations float",
            ),
            (
                Scheme::weight_only(WeightBits::Eight, Granularity::Channel),
                "weights int8 per-channel symmetric, activations float",
            ),
        ];
        for (scheme, text) in cases {
            assert_eq!(scheme.to_string(), text);
        }
    }

    #[test]
    fn rows_have_whole_groups_or_none() {
        let cases = [
            (Granularity::Tensor, 7, Some(1)),
            (Granularity::Channel, 7, Some(1)),
            (Granularity::Group(32), 96, Some(3)),
            (Granularity::Group(32), 100, None),
            (Granularity::Group(1), 5, Some(5)),
            (Granularity::Group(0), 5, None),
        ];
        for (granularity, columns, groups) in cases {
            assert_eq!(granularity.groups(columns), groups, "{granularity} over {columns}");
        }
    }
}
