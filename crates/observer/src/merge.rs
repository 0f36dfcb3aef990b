//! Statistics of two parts of a data set into those of both.

use thiserror::Error;

use crate::{ObserveError, StatisticsFile};

/// Why two files' statistics are not of one graph.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum MergeError {
    /// One of the two has never heard of a site of the other.
    #[error("one has a site `{}` and the other does not: they are of different models or tasks", .site.escape_debug())]
    Site {
        /// Name of the site.
        site: String,
    },
    /// The statistics of a site do not fit together.
    #[error("site `{}`: {source}", .site.escape_debug())]
    Statistics {
        /// Name of the site.
        site: String,
        /// Why not.
        source: ObserveError,
    },
}

impl StatisticsFile {
    /// Adds the statistics that `other` holds, site by site. The header stays as it is: what it means is the caller's.
    ///
    /// Both must have the same sites, seen or not. As [`ActivationStatistics::merge`](crate::ActivationStatistics::merge)
    /// does at each of them, any order of merging parts gives the statistics of one pass over all rows.
    pub fn merge(mut self, other: &Self) -> Result<Self, MergeError> {
        let stranger = |a: &Self, b: &Self| a.sites.keys().find(|site| !b.sites.contains_key(*site)).cloned();
        if let Some(site) = stranger(&self, other).or_else(|| stranger(other, &self)) {
            return Err(MergeError::Site { site });
        }
        for ((site, statistics), more) in self.sites.iter_mut().zip(other.sites.values()) {
            statistics.merge(more).map_err(|source| MergeError::Statistics { site: site.clone(), source })?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ActivationStatistics;
    use proptest::prelude::*;
    use zeropoint_kernels::Isa;

    fn file(header: &str, sites: &[(&str, usize, &[f32])]) -> StatisticsFile {
        let observed = |channels: usize, x: &[f32]| {
            let mut statistics = ActivationStatistics::new(channels);
            statistics.observe(Isa::SCALAR, x).unwrap();
            statistics
        };
        StatisticsFile {
            header: [("part".to_owned(), header.to_owned())].into(),
            sites: sites
                .iter()
                .map(|&(site, channels, x)| (site.to_owned(), observed(channels, x)))
                .collect(),
        }
    }

    #[test]
    fn each_site_gets_the_rows_of_its_name() {
        let a = file("a", &[("one", 2, &[1.0, -9.0]), ("two", 1, &[5.0]), ("unseen", 3, &[])]);
        let b = file("b", &[("one", 2, &[100.0, 4.0]), ("two", 1, &[]), ("unseen", 3, &[])]);
        let both = file("a", &[("one", 2, &[1.0, -9.0, 100.0, 4.0]), ("two", 1, &[5.0]), ("unseen", 3, &[])]);
        assert_eq!(a.merge(&b), Ok(both));
    }

    #[test]
    fn what_is_not_of_one_graph_is_named() {
        let a = || file("a", &[("one", 2, &[1.0, 2.0]), ("two", 1, &[5.0])]);
        let fewer = file("b", &[("one", 2, &[1.0, 2.0])]);
        let renamed = file("b", &[("one", 2, &[1.0, 2.0]), ("zwei", 1, &[5.0])]);
        let wider = file("b", &[("one", 2, &[1.0, 2.0]), ("two", 3, &[])]);
        let named = |site: &str| Err(MergeError::Site { site: site.to_owned() });
        assert_eq!(a().merge(&fewer), named("two"));
        assert_eq!(fewer.merge(&a()), named("two"));
        assert_eq!(a().merge(&renamed), named("two"));
        let source = ObserveError::Channels { left: 1, right: 3 };
        assert_eq!(a().merge(&wider), Err(MergeError::Statistics { site: "two".to_owned(), source }));
    }

    proptest! {
        #[test]
        fn files_merged_in_any_order_hold_one_pass(
            rows in prop::collection::vec((-1e6f32..1e6, 0usize..5), 0..40),
            order in Just([0usize, 1, 2, 3, 4]).prop_shuffle(),
        ) {
            let part = |wanted: Option<usize>| {
                let own = rows.iter().filter(|(_, part)| wanted.is_none_or(|wanted| wanted == *part));
                let x: Vec<f32> = own.flat_map(|(x, _)| [*x, x * 1e-3]).collect();
                file("", &[("wide", 2, &x), ("narrow", 1, &x)])
            };
            let parts = order.map(|i| part(Some(i)));
            let merged = parts.iter().try_fold(part(Some(usize::MAX)), StatisticsFile::merge);
            prop_assert_eq!(merged, Ok(part(None)));
        }
    }
}
