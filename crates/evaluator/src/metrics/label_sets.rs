//! Scores of predicted sets of labels, each label right or wrong on its own.

/// Labels of one sample, by index: whether it has each.
pub type LabelSet = Vec<bool>;

/// The fraction of samples whose set is predicted exactly. `None` when there are no samples.
pub fn exact_sets(pairs: &[(&LabelSet, &LabelSet)]) -> Option<f64> {
    let right = pairs.iter().filter(|(predicted, gold)| predicted == gold).count();
    (!pairs.is_empty()).then(|| right as f64 / pairs.len() as f64)
}

/// F1 over all labels of all samples together: `2 TP / (2 TP + FP + FN)`, as scikit-learn's `f1_score` with `average="micro"`.
/// Pairs are of predictions and gold. `None` when no label occurs on either side.
pub fn micro_f1(pairs: &[(&LabelSet, &LabelSet)]) -> Option<f64> {
    let (mut right, mut occurrences) = (0u64, 0u64);
    for (predicted, gold) in pairs {
        for (&p, &g) in predicted.iter().zip(*gold) {
            right += u64::from(p && g);
            occurrences += u64::from(p) + u64::from(g);
        }
    }
    (occurrences > 0).then(|| 2.0 * right as f64 / occurrences as f64)
}

/// The unweighted mean of the labels' F1 scores, over the labels that occur on either side; the same as
/// [`macro_f1`](super::classification::macro_f1) for one label a sample. `None` when none occurs.
pub fn macro_f1(pairs: &[(&LabelSet, &LabelSet)]) -> Option<f64> {
    let labels = pairs.first().map_or(0, |(predicted, _)| predicted.len());
    let mut counts = vec![(0u64, 0u64); labels];
    for (predicted, gold) in pairs {
        for ((right, occurrences), (&p, &g)) in counts.iter_mut().zip(predicted.iter().zip(*gold)) {
            *right += u64::from(p && g);
            *occurrences += u64::from(p) + u64::from(g);
        }
    }
    let scores: Vec<f64> =
        counts.iter().filter(|(_, n)| *n > 0).map(|(right, n)| 2.0 * *right as f64 / *n as f64).collect();
    (!scores.is_empty()).then(|| scores.iter().sum::<f64>() / scores.len() as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::classification;

    #[test]
    fn known_values() {
        let sets = |bits: &[[u8; 3]]| -> Vec<LabelSet> {
            bits.iter().map(|b| b.iter().map(|&x| x == 1).collect()).collect()
        };
        let (predicted, gold) = (sets(&[[1, 0, 1], [0, 1, 0]]), sets(&[[1, 0, 0], [0, 1, 0]]));
        let pairs: Vec<_> = predicted.iter().zip(&gold).collect();
        assert_eq!(exact_sets(&pairs), Some(0.5));
        assert_eq!(micro_f1(&pairs), Some(0.8));
        assert_eq!(macro_f1(&pairs), Some(2.0 / 3.0));
        let none = sets(&[[0, 0, 0]]);
        let nothing = [(&none[0], &none[0])];
        assert_eq!((exact_sets(&nothing), micro_f1(&nothing), macro_f1(&nothing)), (Some(1.0), None, None));
        assert_eq!(exact_sets(&[]), None);
    }

    proptest! {
        #[test]
        fn of_one_label_each_they_are_the_scores_of_classes(rows in prop::collection::vec((0..4usize, 0..4usize), 1..40)) {
            let one = |class: usize| -> LabelSet { (0..4).map(|i| i == class).collect() };
            let sets: Vec<(LabelSet, LabelSet)> = rows.iter().map(|&(p, g)| (one(p), one(g))).collect();
            let pairs: Vec<_> = sets.iter().map(|(p, g)| (p, g)).collect();
            let (p, g): (Vec<usize>, Vec<usize>) = rows.into_iter().unzip();
            let accuracy = classification::accuracy(&p, &g).unwrap();
            prop_assert!((micro_f1(&pairs).unwrap() - accuracy).abs() < 1e-12);
            prop_assert_eq!(exact_sets(&pairs), Some(accuracy));
            let macro_of_classes = classification::macro_f1(&p, &g, 4).unwrap();
            prop_assert!((macro_f1(&pairs).unwrap() - macro_of_classes).abs() < 1e-12);
        }
    }
}
