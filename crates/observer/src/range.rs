//! Choosing the range of a static activation from its statistics.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeropoint_core::{QuantParams, Symmetry};

use crate::density::Density;
use crate::entropy::Entropy;
use crate::search::Search;
use crate::{ActivationStatistics, ObserveError, average};

/// How the range of a static activation is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RangeObserver {
    /// From the smallest to the largest value: nothing saturates.
    #[default]
    MinMax,
    /// Exponential moving averages of the minimum and of the maximum, step after step in sampling order:
    /// `average += constant * (of this step - average)`, beginning with the first step's own.
    ///
    /// The `MovingAverageMinMaxObserver` of `PyTorch`, described by Jacob et al., "Quantization and Training of Neural
    /// Networks for Efficient Integer-Arithmetic-Only Inference" (2018), section 3.1. Symmetric ranges reach as far as
    /// the farther of the two averages.
    MovingAverage {
        /// Weight of a step against all before it, above 0 and at most 1; `PyTorch`'s is 0.01.
        constant: f64,
        /// Samples that make a step, at least 1; the last step may have fewer.
        batch: u32,
    },
    /// Leaves out the outermost values, `100 - percentile` per cent of them: symmetric ranges reach up to that
    /// percentile of the magnitudes, asymmetric ones leave out half of it at each end. The convention for asymmetric
    /// ranges is that of ONNX Runtime's percentile calibrator, `(100 - percentile) / 200` at each end; for symmetric
    /// ones it is that of histograms of magnitudes, as in `TensorRT`'s tools.
    Percentile {
        /// From 50 to 100 (which is [`RangeObserver::MinMax`]); usual are 99.9 to 99.9999.
        percentile: f64,
    },
    /// The smallest range that holds the percentile range of every channel: what is rare in its own channel is left
    /// out, and a channel whose values are large as a rule keeps them.
    ///
    /// The percentile is that of [`RangeObserver::Percentile`], over the values of one channel. That outliers of
    /// transformers keep to a few channels is described by Bondarenko, Nagel, Blankevoort, "Understanding and Overcoming
    /// the Challenges of Efficient Transformer Quantization" (2021).
    PercentilePerChannel {
        /// As for [`RangeObserver::Percentile`].
        percentile: f64,
    },
    /// The range whose quantised distribution diverges least (Kullback and Leibler) from the observed one.
    ///
    /// The calibration of `TensorRT`: Migacz, "8-bit Inference with `TensorRT`" (GTC 2017), for symmetric ranges;
    /// asymmetric ones are chosen alike over both ends. The module `entropy` says how.
    Entropy,
    /// The range of all tokens but outliers: those whose own extreme is more than `ratio` times as far out as the
    /// median token's. At most `clipped_tokens` per cent of all tokens count as outliers, half of it at each end of an
    /// asymmetric range. Without outliers it is [`RangeObserver::MinMax`].
    ///
    /// Ends among quantiles of the tokens' extremes are the token-wise clipping of Wei et al., "Outlier Suppression:
    /// Pushing the Limit of Low-bit Transformer Language Models" (2022), section 4.2: a few tokens reach far out and
    /// matter little, while an outlier channel shows in every token and stays. The comparison with the median follows
    /// Sun et al., "Massive Activations in Large Language Models" (2024), who ask for 1000 times; the paper on
    /// quantisation searches for the end with the least loss of the block's output instead.
    OutlierAware {
        /// At least 1: how many times as far out as the median token's extreme.
        ratio: f64,
        /// In per cent of all tokens: from 0, which is [`RangeObserver::MinMax`], to 50.
        clipped_tokens: f64,
    },
    /// The range of least [`expected_error`](crate::expected_error), trading rounding against saturation.
    ///
    /// The criterion is that of Nagel et al., "A White Paper on Neural Network Quantization" (2021), section 3.1, and
    /// of Choukroun et al., "Low-bit Quantization of Neural Networks for Efficient Inference" (2019); the search is
    /// over the clipped fractions of both ends, from coarse to fine. Never worse than min-max by that error.
    Mse,
}

impl fmt::Display for RangeObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::MinMax => f.write_str("min-max"),
            Self::MovingAverage { constant, batch: 1 } => write!(f, "moving average {constant}"),
            Self::MovingAverage { constant, batch } => {
                write!(f, "moving average {constant} over batches of {batch}")
            }
            Self::Percentile { percentile } => write!(f, "percentile {percentile}"),
            Self::PercentilePerChannel { percentile } => write!(f, "percentile {percentile} per channel"),
            Self::Entropy => f.write_str("entropy"),
            Self::OutlierAware { ratio, clipped_tokens } => {
                write!(f, "outlier-aware {ratio}x, at most {clipped_tokens}% of tokens")
            }
            Self::Mse => f.write_str("mse"),
        }
    }
}

impl RangeObserver {
    /// Whether the settings are allowed.
    pub fn validate(&self) -> Result<(), ObserveError> {
        match *self {
            Self::Percentile { percentile } | Self::PercentilePerChannel { percentile } => {
                check_percentile(percentile)
            }
            Self::MovingAverage { constant, .. } if !(constant > 0.0 && constant <= 1.0) => {
                Err(ObserveError::AveragingConstant { constant })
            }
            Self::MovingAverage { batch: 0, .. } => Err(ObserveError::AveragingBatch),
            Self::OutlierAware { ratio, .. } if !(ratio >= 1.0 && ratio.is_finite()) => {
                Err(ObserveError::OutlierRatio { ratio })
            }
            Self::OutlierAware { clipped_tokens, .. } if !(0.0..=50.0).contains(&clipped_tokens) => {
                Err(ObserveError::ClippedTokens { clipped_tokens })
            }
            _ => Ok(()),
        }
    }

    /// The range `(min, max)` that quantisation shall cover: finite, with `min <= 0 <= max`, `(-a, a)` if symmetric,
    /// never wider than the observed values and zero.
    pub fn range(
        &self,
        statistics: &ActivationStatistics,
        symmetry: Symmetry,
    ) -> Result<(f32, f32), ObserveError> {
        self.validate()?;
        if statistics.is_empty() {
            return Err(ObserveError::Empty);
        }
        let widest = match symmetry {
            Symmetry::Symmetric => (-statistics.absmax(), statistics.absmax()),
            Symmetry::Asymmetric => (statistics.min().min(0.0), statistics.max().max(0.0)),
        };
        let (min, max) = match *self {
            Self::MinMax => widest,
            Self::MovingAverage { constant, batch } => {
                let (min, max) = average::moving_average(statistics, constant, batch)?;
                around_zero((min, max), widest, symmetry)
            }
            Self::Percentile { percentile } => {
                let cut = 1.0 - percentile / 100.0;
                let range = match symmetry {
                    Symmetry::Symmetric => {
                        let absmax = statistics.absolute_quantile(1.0 - cut).unwrap_or(0.0);
                        (-absmax, absmax)
                    }
                    Symmetry::Asymmetric => {
                        let quantile = |q| statistics.quantile(q).unwrap_or(0.0);
                        (quantile(cut / 2.0), quantile(1.0 - cut / 2.0))
                    }
                };
                around_zero(range, widest, symmetry)
            }
            Self::PercentilePerChannel { percentile } => {
                let cut = 1.0 - percentile / 100.0;
                let range =
                    statistics.channel_lanes().fold(
                        (0.0, 0.0),
                        |(min, max): (f64, f64), lane| match symmetry {
                            Symmetry::Symmetric => {
                                let absmax = lane.absolute_quantile(1.0 - cut).max(max);
                                (-absmax, absmax)
                            }
                            Symmetry::Asymmetric => {
                                (lane.quantile(cut / 2.0).min(min), lane.quantile(1.0 - cut / 2.0).max(max))
                            }
                        },
                    );
                if percentile == 100.0 {
                    // The ends of bins lie beyond the values in them; nothing is left out, though.
                    widest
                } else {
                    around_zero((range.0 as f32, range.1 as f32), widest, symmetry)
                }
            }
            Self::Entropy => Entropy::new(statistics, symmetry).range(widest, symmetry),
            Self::OutlierAware { ratio, clipped_tokens } => {
                let Some([minima, maxima, magnitudes]) = statistics.row_lanes() else {
                    return Err(ObserveError::Empty);
                };
                let clipped = clipped_tokens / 100.0;
                let range = match symmetry {
                    Symmetry::Symmetric => {
                        let absmax = magnitudes.upper_end(clipped).max(ratio * magnitudes.quantile(0.5));
                        (-absmax, absmax)
                    }
                    Symmetry::Asymmetric => (
                        minima.lower_end(clipped / 2.0).min(ratio * minima.quantile(0.5)),
                        maxima.upper_end(clipped / 2.0).max(ratio * maxima.quantile(0.5)),
                    ),
                };
                around_zero((range.0 as f32, range.1 as f32), widest, symmetry)
            }
            Self::Mse => {
                let density = Density::new(statistics).ok_or(ObserveError::Empty)?;
                let error = |min, max| {
                    // A range inside finite ones and around zero always has parameters.
                    QuantParams::from_range(min, max, symmetry)
                        .map_or(f64::INFINITY, |params| density.expected_error(params).mean_squared_error)
                };
                Search { criterion: &error, widest, symmetry }.best()
            }
        };
        Ok((min + 0.0, max + 0.0)) // no -0.0
    }
}

/// From 50 to 100.
pub(crate) fn check_percentile(percentile: f64) -> Result<(), ObserveError> {
    if (50.0..=100.0).contains(&percentile) { Ok(()) } else { Err(ObserveError::Percentile { percentile }) }
}

/// The range with zero in it and nothing beyond the widest one; of equal ends if symmetric.
fn around_zero((min, max): (f32, f32), widest: (f32, f32), symmetry: Symmetry) -> (f32, f32) {
    match symmetry {
        Symmetry::Symmetric => {
            let absmax = max.max(-min).clamp(0.0, widest.1);
            (-absmax, absmax)
        }
        Symmetry::Asymmetric => (min.clamp(widest.0, 0.0), max.clamp(0.0, widest.1)),
    }
}

#[cfg(test)]
mod tests;
