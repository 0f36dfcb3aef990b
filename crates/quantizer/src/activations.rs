//! Statistics of a site to the parameters of its activation.

use thiserror::Error;
use zeropoint_core::{ActivationMode, ParamsError, QuantParams};
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
}

/// Static parameters of a site: its statistics' range under the scheme's observer and symmetry.
pub fn site_params(
    statistics: &ActivationStatistics,
    scheme: &LayerScheme,
) -> Result<QuantParams, ActivationError> {
    let symmetry = scheme.scheme.activations.symmetry;
    let (min, max) = scheme.range_observer.range(statistics, symmetry)?;
    Ok(QuantParams::from_range(min, max, symmetry)?)
}

/// How the activation of a site is quantised under a scheme; static ones need its statistics.
pub fn site_quantizer(
    statistics: Option<&ActivationStatistics>,
    scheme: &LayerScheme,
) -> Result<ActivationQuantizer, ActivationError> {
    match scheme.scheme.activations.mode {
        ActivationMode::Dynamic => Ok(ActivationQuantizer::Dynamic(scheme.scheme.activations.symmetry)),
        ActivationMode::Static => {
            Ok(ActivationQuantizer::Static(site_params(statistics.ok_or(ActivationError::Missing)?, scheme)?))
        }
    }
}
