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
    /// One scale for each token (row) of an activation.
    Token,
}

impl fmt::Display for Granularity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tensor => "per-tensor",
            Self::Channel => "per-channel",
            Self::Token => "per-token",
        })
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

/// How a weight is quantised to INT8. Weights are symmetric: no runtime that loads the deployable format takes others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WeightScheme {
    /// [`Granularity::Tensor`] or [`Granularity::Channel`].
    pub granularity: Granularity,
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

/// The scheme of one Linear: INT8 weights and INT8 activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Scheme {
    /// How its weight is quantised.
    pub weights: WeightScheme,
    /// How its input is quantised.
    pub activations: ActivationScheme,
}

impl fmt::Display for WeightScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "int8 {} symmetric", self.granularity)
    }
}

impl fmt::Display for ActivationScheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "int8 {} {} {}", self.mode, self.granularity(), self.symmetry)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "weights {}, activations {}", self.weights, self.activations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_read_as_people_say_them() {
        let scheme = Scheme {
            weights: WeightScheme { granularity: Granularity::Channel },
            activations: ActivationScheme { mode: ActivationMode::Dynamic, symmetry: Symmetry::Symmetric },
        };
        assert_eq!(
            scheme.to_string(),
            "weights int8 per-channel symmetric, activations int8 dynamic per-token symmetric"
        );
    }
}
