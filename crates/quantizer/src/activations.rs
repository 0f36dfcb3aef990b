//! Statistics of a site to the parameters of its activation.

use thiserror::Error;
use zeropoint_core::{ActivationMode, ActivationScheme, ParamsError, QuantParams};
use zeropoint_models::ActivationQuantizer;
use zeropoint_observer::{ActivationStatistics, ObserveError};

use crate::LayerScheme;

/// Why a site gets no parameters.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ActivationError {
    /// A static scheme without statistics.
    #[error("no statistics were collected for it; calibrate with the same model and task")]
    Missing,
    /// The observer found no range.
    #[error(transparent)]
    Range(#[from] ObserveError),
    /// The range gives no parameters.
    #[error(transparent)]
    Params(#[from] ParamsError),
    /// The scheme is weight-only.
    #[error("its scheme leaves activations float, so there are no parameters of them")]
    Float,
}

/// Static parameters of a site: its statistics' range under the scheme's observer and symmetry.
pub fn site_params(
    statistics: &ActivationStatistics,
    scheme: &LayerScheme,
) -> Result<QuantParams, ActivationError> {
    let symmetry = scheme.scheme.activations.ok_or(ActivationError::Float)?.symmetry;
    let (min, max) = scheme.range_observer.range(statistics, symmetry)?;
    Ok(QuantParams::from_range(min, max, symmetry)?)
}

/// How the activation of a site is quantised under a scheme; static ones need its statistics.
pub fn site_quantizer(
    statistics: Option<&ActivationStatistics>,
    scheme: &LayerScheme,
) -> Result<ActivationQuantizer, ActivationError> {
    let ActivationScheme { mode, symmetry } = scheme.scheme.activations.ok_or(ActivationError::Float)?;
    match mode {
        ActivationMode::Dynamic => Ok(ActivationQuantizer::Dynamic(symmetry)),
        ActivationMode::Static => {
            Ok(ActivationQuantizer::Static(site_params(statistics.ok_or(ActivationError::Missing)?, scheme)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeropoint_core::{Granularity, Scheme, WeightBits};
    use zeropoint_observer::{RangeObserver, WeightObserver};

    #[test]
    fn a_weight_only_scheme_has_no_parameters_of_activations() {
        let scheme = LayerScheme {
            scheme: Scheme::weight_only(WeightBits::Four, Granularity::Group(32)),
            weight_observer: WeightObserver::MinMax,
            range_observer: RangeObserver::MinMax,
        };
        assert_eq!(site_quantizer(None, &scheme), Err(ActivationError::Float));
        assert_eq!(site_params(&ActivationStatistics::new(1), &scheme), Err(ActivationError::Float));
    }
}
