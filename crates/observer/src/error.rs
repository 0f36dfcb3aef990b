//! What can go wrong while observing, merging and choosing a range.

use thiserror::Error;

/// Why values could not be observed, statistics not merged, or a range not chosen.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ObserveError {
    /// The values do not form whole rows.
    #[error("{values} values are not whole rows of {channels} channels: pass complete rows, channels last")]
    Ragged {
        /// Values given.
        values: usize,
        /// Channels in one row.
        channels: usize,
    },
    /// A value is NaN or infinite.
    #[error(
        "the activation in row {row}, channel {channel} is {value}: statistics need finite values, so look for an \
         overflow in the layers before it"
    )]
    NotFinite {
        /// Row within the observed batch, from 0.
        row: usize,
        /// Channel within the row, from 0.
        channel: usize,
        /// NaN or an infinity.
        value: f32,
    },
    /// Two statistics are of different widths.
    #[error(
        "statistics of {left} channels cannot be merged with statistics of {right}: they are of different sites"
    )]
    Channels {
        /// Channels of the receiver.
        left: usize,
        /// Channels of the other.
        right: usize,
    },
    /// More values than a count may hold.
    #[error("more than 2^53 values at one site: counts would no longer be exact, so observe fewer samples")]
    TooMany,
    /// No value was ever observed.
    #[error(
        "no value was observed, so there is no range to choose: run calibration data through this site first"
    )]
    Empty,
    /// The percentile is out of its range.
    #[error("a percentile of {percentile} is not allowed: give more than 50 and at most 100, such as 99.99")]
    Percentile {
        /// As given.
        percentile: f64,
    },
}
