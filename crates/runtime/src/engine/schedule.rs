//! Which thread takes which rows.

use std::ops::Range;

use super::ROWS;

/// How a batch is split. No split changes a bit: every row has its own sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Schedule {
    /// Whole sequences, by number, that share nothing until the end.
    Groups(Vec<Range<usize>>),
    /// All rows in strips of this many, which wait for each other in every block.
    Together {
        /// Rows of a strip.
        strip: usize,
    },
}

impl Schedule {
    /// For sequences that begin at `offsets` (the number of rows at the end) on so many threads.
    pub(super) fn of(offsets: &[usize], threads: usize) -> Self {
        let sequences = offsets.len().saturating_sub(1);
        let rows = offsets.last().copied().unwrap_or(0) - offsets.first().copied().unwrap_or(0);
        // As many groups for each thread, each as large as the caches like.
        let groups = threads * rows.div_ceil(threads * ROWS).max(1);
        let share = rows.div_ceil(groups).max(1);
        let mut split = Vec::with_capacity(groups + 1);
        let mut start = 0;
        for next in 1..=sequences {
            if offsets[next] - offsets[start] >= share || next == sequences {
                split.push(start..next);
                start = next;
            }
        }
        let size = |group: &Range<usize>| offsets[group.end] - offsets[group.start];
        let largest = split.iter().map(size).max().unwrap_or(0);
        // The threads end together when groups are many, or even.
        let waiting = largest * threads > rows + rows / 8 && split.len() < 4 * threads;
        if threads > 1 && (split.len() < threads || waiting) && rows >= 2 * threads {
            return Self::Together { strip: rows.div_ceil(threads) };
        }
        Self::Groups(split)
    }
}
