//! What a statistics file holds, for readers.

use std::path::Path;

use serde::Serialize;
use zeropoint_evaluator::report::OutlierChannel;
use zeropoint_observer::{ActivationStatistics, STATISTICS_VERSION, StatisticsFile};

use crate::PipelineError;
use crate::header::{StatisticsHeader, expect_file};
use crate::report::outliers;

/// What a statistics file holds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownStatistics {
    /// Version of the file format.
    pub version: u32,
    /// What the statistics belong to.
    #[serde(flatten)]
    pub header: StatisticsHeader,
    /// Every site in the order of their names.
    pub sites: Vec<ShownSite>,
}

/// The statistics of one site.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ShownSite {
    /// Its name.
    pub site: String,
    /// Values in a row.
    pub channels: usize,
    /// Rows observed: tokens, or samples behind a pooling.
    pub rows: u64,
    /// Of them those that the router sent here, at an expert, to which all are shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routed_rows: Option<u64>,
    /// The smallest and the largest value, exactly; `None` where nothing was observed, as in an empty shard.
    pub range: Option<[f64; 2]>,
    /// Channels whose largest magnitude is more than six times the median channel's, largest first.
    pub outlier_channels: Vec<OutlierChannel>,
}

/// Reads and checks a statistics file, of a whole set or of a shard.
pub fn show_statistics(path: &Path) -> Result<ShownStatistics, PipelineError> {
    expect_file(path)?;
    let StatisticsFile { header, sites } = StatisticsFile::load(path)?;
    let header = StatisticsHeader::parse(header, path)?;
    let sites = sites.iter().map(|(site, statistics)| shown(site, statistics)).collect();
    Ok(ShownStatistics { version: STATISTICS_VERSION, header, sites })
}

fn shown(site: &str, statistics: &ActivationStatistics) -> ShownSite {
    let range = [f64::from(statistics.min()), f64::from(statistics.max())];
    ShownSite {
        site: site.to_owned(),
        channels: statistics.channels(),
        rows: statistics.rows(),
        routed_rows: statistics.counts_routed().then(|| statistics.routed_rows()),
        range: (!statistics.is_empty()).then_some(range),
        outlier_channels: outliers(statistics),
    }
}
