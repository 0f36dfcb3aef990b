//! The range of each calibration sample, by which a moving average runs in sampling order whatever the batches were.

use std::collections::BTreeMap;

use zeropoint_kernels::Extremes;

/// How many of the rows that are observed together belong to a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SampleRows {
    /// Number of the sample in sampling order, from 0.
    pub sample: u32,
    /// Its rows: its tokens, or one where a model has pooled them.
    pub rows: usize,
}

/// The range of one sample's values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleRange {
    /// Rows observed of it.
    pub rows: u64,
    /// The smallest value of them.
    pub min: f32,
    /// The largest value.
    pub max: f32,
}

/// Ranges by the number of the sample.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Samples(BTreeMap<u32, SampleRange>);

impl Samples {
    pub(crate) fn new(ranges: BTreeMap<u32, SampleRange>) -> Self {
        Self(ranges)
    }

    pub(crate) fn ranges(&self) -> &BTreeMap<u32, SampleRange> {
        &self.0
    }

    /// Adds rows, of which each sample has as many as it says, one after the other.
    pub(crate) fn observe(&mut self, samples: &[SampleRows], rows: &[Extremes]) {
        let mut rest = rows;
        for sample in samples.iter().filter(|sample| sample.rows > 0) {
            let (own, others) = rest.split_at(sample.rows);
            rest = others;
            let range = own.iter().fold((f32::INFINITY, f32::NEG_INFINITY), |(min, max), row| {
                (min.min(row.min), max.max(row.max))
            });
            self.add(sample.sample, SampleRange { rows: own.len() as u64, min: range.0, max: range.1 });
        }
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        for (&sample, &range) in &other.0 {
            self.add(sample, range);
        }
    }

    fn add(&mut self, sample: u32, more: SampleRange) {
        self.0
            .entry(sample)
            .and_modify(|range| {
                range.rows += more.rows;
                range.min = range.min.min(more.min);
                range.max = range.max.max(more.max);
            })
            .or_insert(more);
    }

    /// Rows that belong to a sample.
    pub(crate) fn rows(&self) -> u64 {
        self.0.values().map(|range| range.rows).fold(0, u64::saturating_add)
    }

    /// Whether these can be the samples of `rows` rows between `min` and `max`: of some of them, or of all, which then
    /// reach both ends.
    pub(crate) fn are_possible(&self, rows: u64, (min, max): (f32, f32)) -> bool {
        let inside = |range: &SampleRange| {
            range.rows > 0 && min <= range.min && range.min <= range.max && range.max <= max
        };
        let reach = self.0.values().fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), range| {
            (low.min(range.min), high.max(range.max))
        });
        self.0.values().all(inside) && (self.rows() < rows || (self.rows() == rows && reach == (min, max)))
    }
}
