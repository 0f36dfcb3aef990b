//! How far up relevant documents are in a list sorted by score.

/// Whether each document is relevant, best score first. Of equal scores irrelevant documents come first: a model that
/// gives all the same score has ranked nothing, and is not paid for the order of the file.
///
/// `None` when a score is NaN.
fn ranked(positives: &[f64], negatives: &[f64]) -> Option<Vec<bool>> {
    let of = |scores: &[f64], relevant| scores.iter().map(|&score| (score, relevant)).collect::<Vec<_>>();
    let mut all = [of(negatives, false), of(positives, true)].concat();
    if all.iter().any(|(score, _)| score.is_nan()) {
        return None;
    }
    // -0.0 and 0.0 are equal.
    all.sort_by(|a, b| (b.0 + 0.0).total_cmp(&(a.0 + 0.0)).then(a.1.cmp(&b.1)));
    Some(all.into_iter().map(|(_, relevant)| relevant).collect())
}

/// 1 divided by the rank of the first relevant document, from 1. The mean over queries is the mean reciprocal rank.
///
/// Source: E. M. Voorhees, "The TREC-8 Question Answering Track Report", 1999. `None` when there is no relevant document
/// or a score is NaN.
pub fn reciprocal_rank(positives: &[f64], negatives: &[f64]) -> Option<f64> {
    let first = ranked(positives, negatives)?.into_iter().position(|relevant| relevant)?;
    Some(1.0 / (first + 1) as f64)
}

/// Normalised discounted cumulative gain of the first `depth` documents with gains 0 and 1: `sum 1 / log2(rank + 1)` over
/// the relevant ones among them, divided by its largest possible value.
///
/// Source: K. Järvelin, J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20, 2002. `None` when
/// there is no relevant document, `depth` is 0, or a score is NaN.
pub fn ndcg(positives: &[f64], negatives: &[f64], depth: usize) -> Option<f64> {
    let discount = |index: usize| 1.0 / ((index + 2) as f64).log2();
    let ranked = ranked(positives, negatives)?;
    let found: f64 = ranked
        .iter()
        .take(depth)
        .enumerate()
        .filter(|(_, relevant)| **relevant)
        .map(|(i, _)| discount(i))
        .sum();
    let ideal: f64 = (0..positives.len().min(depth)).map(discount).sum();
    (ideal > 0.0).then(|| found / ideal)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        assert_eq!(reciprocal_rank(&[0.5], &[0.9, 0.1]), Some(0.5));
        assert_eq!(reciprocal_rank(&[0.5], &[0.5, 0.5]), Some(1.0 / 3.0), "ties are no merit");
        assert_eq!(reciprocal_rank(&[0.0], &[-0.0]), Some(0.5));
        assert_eq!(reciprocal_rank(&[], &[1.0]), None);
        assert_eq!(reciprocal_rank(&[f64::NAN], &[1.0]), None);
        assert_eq!(ndcg(&[2.0, 1.0], &[0.0], 10), Some(1.0));
        // The only relevant document is second: log2(2) / log2(3).
        assert!((ndcg(&[1.0], &[2.0], 10).unwrap() - 1.0 / 3f64.log2()).abs() < 1e-12);
        assert_eq!(ndcg(&[1.0], &[2.0], 1), Some(0.0));
        assert_eq!(ndcg(&[1.0], &[2.0], 0), None);
    }

    proptest! {
        #[test]
        fn both_follow_from_the_ranks(
            positives in prop::collection::vec(0i8..8, 1..6), negatives in prop::collection::vec(0i8..8, 1..15), depth in 1usize..12,
        ) {
            let float = |scores: &[i8]| scores.iter().map(|&s| f64::from(s)).collect::<Vec<_>>();
            let (p, n) = (float(&positives), float(&negatives));
            // Rank by counting: every negative that is not worse, and every positive that is better or an earlier equal.
            let ranks: Vec<usize> = (0..p.len())
                .map(|i| {
                    let before = (0..p.len()).filter(|&j| p[j] > p[i] || (p[j] == p[i] && j < i)).count();
                    1 + n.iter().filter(|&&score| score >= p[i]).count() + before
                })
                .collect();
            let first = *ranks.iter().min().unwrap();
            prop_assert_eq!(reciprocal_rank(&p, &n), Some(1.0 / first as f64));
            let gain: f64 = ranks.iter().filter(|&&rank| rank <= depth).map(|&rank| 1.0 / (rank as f64 + 1.0).log2()).sum();
            let ideal: f64 = (1..=p.len().min(depth)).map(|rank| 1.0 / (rank as f64 + 1.0).log2()).sum();
            prop_assert!((ndcg(&p, &n, depth).unwrap() - gain / ideal).abs() < 1e-12);
        }
    }
}
