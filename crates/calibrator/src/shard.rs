//! One of several processes, or machines, that observe a calibration set together.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;
use thiserror::Error;

/// Shard `index` of `of`, counted from 1 and written `index/of`: the part of a calibration set that one process
/// observes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct Shard {
    of: u32,
    index: u32,
}

/// Why a text names no shard.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ShardError {
    /// Not two whole numbers with a stroke between them.
    #[error("a shard is written I/N, two whole numbers, such as 2/4 for the second of four")]
    Form,
    /// No shards at all, or none of this number.
    #[error("there is no shard {index} of {of}: shards of {of} are counted from 1 to {of}")]
    Range {
        /// The number of the shard.
        index: u32,
        /// How many there are.
        of: u32,
    },
    /// A set cannot be cut into nothing.
    #[error("a set cannot be cut into 0 shards: give at least 1, as in 1/1")]
    None,
}

impl Shard {
    /// Shard `index` of `of`, where `1 <= index <= of`.
    pub fn new(index: u32, of: u32) -> Result<Self, ShardError> {
        match (index, of) {
            (_, 0) => Err(ShardError::None),
            _ if (1..=of).contains(&index) => Ok(Self { of, index }),
            _ => Err(ShardError::Range { index, of }),
        }
    }

    /// Which shard, from 1.
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many shards there are, at least 1.
    pub fn of(self) -> u32 {
        self.of
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl From<Shard> for String {
    fn from(shard: Shard) -> Self {
        shard.to_string()
    }
}

impl FromStr for Shard {
    type Err = ShardError;

    fn from_str(text: &str) -> Result<Self, ShardError> {
        // `u32::from_str` would also take a sign.
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|_| digits).ok_or(ShardError::Form)
        };
        let (index, of) = text.split_once('/').ok_or(ShardError::Form)?;
        Self::new(number(index)?, number(of)?)
    }
}

/// The shard, from 1, that takes each of the batches of these weights.
///
/// The heaviest batch that is left goes to the shard that has least so far, the first of those (Graham, "Bounds on
/// Multiprocessing Timing Anomalies", 1969). Two shards therefore differ by at most the heaviest batch, and shards
/// beyond the number of batches are empty.
pub(crate) fn assign(weights: &[usize], of: u32) -> Vec<u32> {
    let mut order: Vec<usize> = (0..weights.len()).collect();
    order.sort_by_key(|&batch| Reverse(weights[batch]));
    let shards = u32::try_from(weights.len()).unwrap_or(u32::MAX).min(of);
    let mut loads: BinaryHeap<Reverse<(u128, u32)>> = (1..=shards).map(|shard| Reverse((0, shard))).collect();
    let mut taken = vec![0; weights.len()];
    for batch in order {
        if let Some(mut least) = loads.peek_mut() {
            taken[batch] = least.0.1;
            least.0.0 += weights[batch] as u128;
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn shards_are_written_as_they_are_read() {
        for text in ["1/1", "2/4", "4/4", "4294967295/4294967295"] {
            assert_eq!(text.parse::<Shard>().map(|shard| shard.to_string()), Ok(text.to_owned()));
        }
        let cases = [
            ("0/4", ShardError::Range { index: 0, of: 4 }),
            ("5/4", ShardError::Range { index: 5, of: 4 }),
            ("1/0", ShardError::None),
            ("0/0", ShardError::None),
            ("a/b", ShardError::Form),
            ("", ShardError::Form),
            ("3", ShardError::Form),
            ("/", ShardError::Form),
            ("1/", ShardError::Form),
            ("1/2/3", ShardError::Form),
            ("+1/2", ShardError::Form),
            ("-1/2", ShardError::Form),
            (" 1/2", ShardError::Form),
            ("1/4294967296", ShardError::Form),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Shard>(), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn the_heaviest_batch_goes_to_the_lightest_shard() {
        let cases: [(&[usize], u32, &[u32]); 6] = [
            (&[], 3, &[]),
            (&[5, 4, 3], 1, &[1, 1, 1]),
            (&[5, 4, 3, 3], 2, &[1, 2, 2, 1]),
            (&[1, 9, 1, 1], 2, &[2, 1, 2, 2]),
            (&[2, 2, 2], 3, &[1, 2, 3]),
            (&[7, 1], 4_000_000_000, &[1, 2]),
        ];
        for (weights, of, expected) in cases {
            assert_eq!(assign(weights, of), expected, "{weights:?} over {of}");
        }
    }

    proptest! {
        #[test]
        fn every_batch_is_in_one_shard_and_loads_are_even(
            weights in prop::collection::vec(1usize..10_000, 0..60),
            of in 1u32..12,
        ) {
            let taken = assign(&weights, of);
            prop_assert_eq!(taken.len(), weights.len());
            prop_assert!(taken.iter().all(|shard| (1..=of).contains(shard)));
            prop_assert_eq!(&assign(&weights, of), &taken, "the same plan, the same shards");
            let load = |shard: u32| -> usize {
                weights.iter().zip(&taken).filter(|(_, taker)| **taker == shard).map(|(weight, _)| weight).sum()
            };
            let loads: Vec<usize> = (1..=of).map(load).collect();
            let spread = loads.iter().max().unwrap() - loads.iter().min().unwrap();
            prop_assert!(spread <= weights.iter().copied().max().unwrap_or(0), "{:?}", loads);
        }
    }
}
