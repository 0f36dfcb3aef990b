//! Which thread takes which rows.

use std::ops::Range;

use super::ROWS;

/// How a batch is split. No split changes a bit: every row has its own sums.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Schedule {
    /// Whole sequences, by number, that share nothing until the end.
    Groups(Vec<Range<usize>>),
    /// All rows in one strip a thread, which wait for each other in every block.
    Together,
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
            return Self::Together;
        }
        Self::Groups(split)
    }
}

/// Rows cut into strips for so many threads, of which each is as much work: a row is `of_row` of it, and `of_token` more for each
/// token that it attends to, which are those of `tokens(row)`. Given are where strips begin, and the end.
pub(super) fn strips(
    rows: usize,
    threads: usize,
    of_row: usize,
    of_token: usize,
    tokens: impl Fn(usize) -> usize,
) -> Vec<usize> {
    let work = |row: usize| of_row as f64 + of_token as f64 * tokens(row) as f64;
    let share = (0..rows).map(work).sum::<f64>() / threads.max(1) as f64;
    let (mut starts, mut done) = (vec![0], 0.0);
    for row in 0..rows {
        // A row stands where the middle of its work does.
        if row > 0 && starts.len() < threads && done + work(row) / 2.0 >= share * starts.len() as f64 {
            starts.push(row);
        }
        done += work(row);
    }
    starts.push(rows);
    starts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn strips_are_as_much_work_as_rows_allow(
            rows in 1usize..600, threads in 1usize..9, of_row in 1usize..5000, of_token in 0usize..50, known in 0usize..2000,
        ) {
            let tokens = |row: usize| known + row + 1;
            let starts = strips(rows, threads, of_row, of_token, tokens);
            prop_assert!(starts.len() <= threads + 1);
            prop_assert_eq!((starts[0], starts[starts.len() - 1]), (0, rows));
            prop_assert!(starts.windows(2).all(|strip| strip[0] < strip[1]), "{starts:?}");
            let work = |row: usize| of_row + of_token * tokens(row);
            let total: usize = (0..rows).map(work).sum();
            let most = starts.windows(2).map(|strip| (strip[0]..strip[1]).map(work).sum::<usize>()).max();
            let heaviest = (0..rows).map(work).max();
            prop_assert!(most <= heaviest.map(|row| total / threads + row + 1), "{starts:?}");
        }
    }

    #[test]
    fn strips_without_attention_are_equal() {
        assert_eq!(strips(12, 3, 5, 0, |_| 100), [0, 4, 8, 12]);
        assert_eq!(strips(512, 2, 1, 0, |_| 0), [0, 256, 512]);
        assert_eq!(strips(1, 4, 1, 1, |_| 1), [0, 1]);
    }
}
