//! Moving averages of the extremes, in sampling order.

use crate::{ActivationStatistics, ObserveError};

/// Exponential moving averages of minimum and maximum over steps of `batch` samples.
///
/// The samples' own ranges are what statistics keep, and they are averaged here: the result depends on the samples and
/// their order, not on the batches that the model ran or how statistics were merged.
pub(crate) fn moving_average(
    statistics: &ActivationStatistics,
    constant: f64,
    batch: u32,
) -> Result<(f32, f32), ObserveError> {
    let attributed: u64 = statistics.samples().values().map(|sample| sample.rows).sum();
    if attributed != statistics.rows() {
        return Err(ObserveError::NoSamples { rows: statistics.rows(), attributed });
    }
    let ranges: Vec<_> = statistics.samples().values().collect();
    let mut average: Option<(f64, f64)> = None;
    for step in ranges.chunks(batch.max(1) as usize) {
        let min = f64::from(step.iter().fold(f32::INFINITY, |min, sample| min.min(sample.min)));
        let max = f64::from(step.iter().fold(f32::NEG_INFINITY, |max, sample| max.max(sample.max)));
        let (low, high) = average.unwrap_or((min, max));
        average = Some((low + constant * (min - low), high + constant * (max - high)));
    }
    average.map(|(min, max)| (min as f32, max as f32)).ok_or(ObserveError::Empty)
}
