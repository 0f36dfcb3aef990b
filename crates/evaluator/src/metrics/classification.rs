//! Scores of predicted classes.

/// The fraction of predictions that equal their label.
///
/// `None` when there are no samples or the lengths differ.
pub fn accuracy(predictions: &[usize], labels: &[usize]) -> Option<f64> {
    if labels.is_empty() || predictions.len() != labels.len() {
        return None;
    }
    let right = predictions.iter().zip(labels).filter(|(p, l)| p == l).count();
    Some(right as f64 / labels.len() as f64)
}

/// The unweighted mean of the classes' F1 scores, as scikit-learn's `f1_score(labels, predictions, average="macro",
/// zero_division=0)` defines it.
///
/// The mean is over the classes that occur among the labels or the predictions; a class that only one of them has
/// scores 0. Class numbers lie in `0..classes`. `None` when there are no samples, the lengths differ, or a class number
/// is `classes` or more.
pub fn macro_f1(predictions: &[usize], labels: &[usize], classes: usize) -> Option<f64> {
    let highest = predictions.iter().chain(labels).copied().max()?;
    if predictions.len() != labels.len() || highest >= classes {
        return None;
    }
    let mut predicted = vec![0u64; highest + 1];
    let mut labelled = vec![0u64; highest + 1];
    let mut right = vec![0u64; highest + 1];
    for (&p, &l) in predictions.iter().zip(labels) {
        predicted[p] += 1;
        labelled[l] += 1;
        right[l] += u64::from(p == l);
    }
    let mut present = 0u64;
    let mut sum = 0.0;
    for class in 0..=highest {
        let occurrences = predicted[class] + labelled[class];
        if occurrences > 0 {
            // F1 = 2 TP / (2 TP + FP + FN), and TP + FP + TP + FN is the number of occurrences on both sides.
            sum += (2 * right[class]) as f64 / occurrences as f64;
            present += 1;
        }
    }
    Some(sum / present as f64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_values() {
        struct Case(&'static [usize], &'static [usize], f64, f64);
        // scikit-learn 1.9: accuracy_score, f1_score(average="macro", zero_division=0).
        for Case(predictions, labels, expected_accuracy, expected_f1) in [
            Case(&[0, 1, 2, 0], &[0, 1, 2, 0], 1.0, 1.0),
            Case(&[0, 2, 1, 0, 0, 1], &[0, 1, 2, 0, 1, 2], 1.0 / 3.0, 0.8 / 3.0),
            Case(&[1, 1, 1], &[0, 0, 0], 0.0, 0.0),
            // Class 1 occurs in neither side and does not count; class 3 is predicted only and counts as 0.
            Case(&[0, 0, 2, 3], &[0, 0, 2, 2], 0.75, (1.0 + 2.0 / 3.0) / 3.0),
        ] {
            assert_eq!(accuracy(predictions, labels), Some(expected_accuracy));
            let f1 = macro_f1(predictions, labels, 5).expect("defined");
            assert!((f1 - expected_f1).abs() < 1e-12, "{predictions:?} {labels:?}: {f1}");
        }
    }

    #[test]
    fn what_has_no_value_is_none() {
        assert_eq!(accuracy(&[], &[]), None);
        assert_eq!(accuracy(&[1], &[1, 2]), None);
        assert_eq!(macro_f1(&[], &[], 2), None);
        assert_eq!(macro_f1(&[0], &[0, 1], 2), None);
        assert_eq!(macro_f1(&[0], &[2], 2), None);
        assert_eq!(macro_f1(&[usize::MAX], &[0], 2), None);
    }

    proptest! {
        #[test]
        fn both_scores_ignore_the_names_of_classes(
            rows in prop::collection::vec((0..4usize, 0..4usize), 1..40),
            names in Just(vec![0usize, 1, 2, 3]).prop_shuffle(),
        ) {
            let (p, l): (Vec<usize>, Vec<usize>) = rows.into_iter().unzip();
            let rename = |side: &[usize]| side.iter().map(|&c| names[c]).collect::<Vec<_>>();
            prop_assert_eq!(accuracy(&p, &l), accuracy(&rename(&p), &rename(&l)));
            let (plain, renamed) = (macro_f1(&p, &l, 4), macro_f1(&rename(&p), &rename(&l), 4));
            prop_assert!((plain.expect("defined") - renamed.expect("defined")).abs() < 1e-12);
            prop_assert_eq!(macro_f1(&l, &l, 4), Some(1.0));
        }
    }
}
