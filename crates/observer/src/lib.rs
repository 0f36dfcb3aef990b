//! What calibration remembers about activations, and the quantisation ranges chosen from it.
//!
//! [`ActivationStatistics`] summarises every value that passed one site: exact extremes, a histogram, the absolute
//! maximum and the distribution of each channel, the extremes of rows and of samples. Statistics are a pure function of the multiset of observed rows: any order, any batching,
//! any number of threads or shards gives the same bits, and [`ActivationStatistics::merge`] loses nothing. One
//! observing pass therefore serves every [`RangeObserver`], and [`StatisticsFile`] keeps it for later.
//!
//! Ranges of activations come from the statistics ([`RangeObserver`]); ranges of weights come from the weights
//! themselves ([`WeightObserver`]), which are at hand in full. This crate knows no model, no data set and no scheme
//! beyond [`zeropoint_core::Symmetry`].
//!
//! ```
//! use zeropoint_core::{QuantParams, Symmetry};
//! use zeropoint_kernels::Isa;
//! use zeropoint_observer::{ActivationStatistics, RangeObserver, expected_error};
//!
//! let mut statistics = ActivationStatistics::new(2);
//! statistics.observe(Isa::best(), &[0.5, -1.0, 0.25, 3.0]).unwrap(); // two rows of two channels
//! assert_eq!((statistics.min(), statistics.max()), (-1.0, 3.0));
//! assert_eq!(statistics.channel_absmax(), [0.5, 3.0]);
//!
//! let (min, max) = RangeObserver::MinMax.range(&statistics, Symmetry::Asymmetric).unwrap();
//! let params = QuantParams::from_range(min, max, Symmetry::Asymmetric).unwrap();
//! assert!(expected_error(&statistics, params).sqnr_db() > 40.0);
//! ```

mod average;
mod density;
mod entropy;
mod error;
mod file;
mod histogram;
mod merge;
mod outliers;
mod range;
mod samples;
mod search;
mod sketch;
mod statistics;
mod weights;

pub use density::{ExpectedError, clipped_fraction, expected_error, measured_error, sqnr_db};
pub use error::ObserveError;
pub use file::{STATISTICS_VERSION, StatisticsFile, StatisticsFileError};
pub use histogram::{BINS, Histogram, MAX_EXPONENT, MAX_VALUES, MIN_EXPONENT};
pub use merge::MergeError;
pub use outliers::{median_absmax, outlier_channels};
pub use range::RangeObserver;
pub use samples::{SampleRange, SampleRows};
pub use statistics::ActivationStatistics;
pub use weights::WeightObserver;
