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
    /// The samples have another number of rows than were observed.
    #[error(
        "the samples of a batch have {claimed} rows, but {rows} were observed: give each sample its rows"
    )]
    Samples {
        /// Rows observed.
        rows: usize,
        /// Rows of all samples together.
        claimed: usize,
    },
    /// More values than a count may hold.
    #[error(
        "more than 2^32 - 1 rows or 2^53 values at one site: counts would no longer be exact, so observe fewer samples"
    )]
    TooMany,
    /// No value was ever observed.
    #[error(
        "no value was observed, so there is no range to choose: run calibration data through this site first"
    )]
    Empty,
    /// It is not known to which samples the rows belong.
    #[error(
        "of {rows} rows {attributed} belong to a known sample, and a moving average runs over samples: take another \
         observer for this site"
    )]
    NoSamples {
        /// Rows observed.
        rows: u64,
        /// Rows of known samples.
        attributed: u64,
    },
    /// The averaging constant is out of its range.
    #[error(
        "an averaging constant of {constant} is not allowed: give more than 0 and at most 1, such as 0.01"
    )]
    AveragingConstant {
        /// As given.
        constant: f64,
    },
    /// A moving average over steps of no sample.
    #[error("a moving average over batches of 0 samples is not allowed: give at least 1")]
    AveragingBatch,
    /// The ratio from which tokens are outliers is out of its range.
    #[error("an outlier ratio of {ratio} is not allowed: give at least 1, such as 2")]
    OutlierRatio {
        /// As given.
        ratio: f64,
    },
    /// The share of clipped tokens is out of its range.
    #[error("{clipped_tokens}% of tokens that may be clipped is not allowed: give 0 to 50, such as 1")]
    ClippedTokens {
        /// As given, in per cent.
        clipped_tokens: f64,
    },
    /// The percentile is out of its range.
    #[error("a percentile of {percentile} is not allowed: give 50 to 100, such as 99.99")]
    Percentile {
        /// As given.
        percentile: f64,
    },
}
