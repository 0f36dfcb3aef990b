//! Which of several points no other one beats.

/// For each point `(bytes, loss)` whether it is on the frontier: no other point is at least as good in both and better
/// in one. Less is better in both. Equal points are on it together or not at all.
///
/// A point without a loss (`None` or NaN) is neither on the frontier nor does it keep another from it.
pub fn frontier(points: &[(u64, Option<f64>)]) -> Vec<bool> {
    let known =
        |point: &(u64, Option<f64>)| point.1.filter(|loss| !loss.is_nan()).map(|loss| (point.0, loss));
    points
        .iter()
        .map(|point| {
            known(point).is_some_and(|(bytes, loss)| {
                !points.iter().filter_map(known).any(|(other_bytes, other_loss)| {
                    other_bytes <= bytes && other_loss <= loss && (other_bytes < bytes || other_loss < loss)
                })
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_frontier_of_a_few_points() {
        struct Case(&'static [(u64, Option<f64>)], &'static [bool]);
        for Case(points, expected) in [
            Case(&[], &[]),
            Case(&[(10, Some(0.5))], &[true]),
            // Smaller and worse, larger and better: both.
            Case(&[(10, Some(0.5)), (20, Some(0.1))], &[true, true]),
            // As large and worse, larger and as good: neither.
            Case(&[(10, Some(0.5)), (10, Some(0.6)), (11, Some(0.5))], &[true, false, false]),
            // Equal points stand or fall together.
            Case(&[(10, Some(0.5)), (10, Some(0.5))], &[true, true]),
            Case(&[(10, Some(0.5)), (10, Some(0.5)), (9, Some(0.5))], &[false, false, true]),
            // A gain is a negative loss; both zeros are equal.
            Case(&[(10, Some(-0.1)), (20, Some(0.0))], &[true, false]),
            Case(&[(10, Some(0.0)), (10, Some(-0.0))], &[true, true]),
            // What is not known says nothing about others.
            Case(&[(1, None), (2, Some(f64::NAN)), (3, Some(0.1))], &[false, false, true]),
        ] {
            assert_eq!(frontier(points), expected, "{points:?}");
        }
    }

    fn points() -> impl Strategy<Value = Vec<(u64, Option<f64>)>> {
        // Few different values, so that ties are common.
        let loss = prop_oneof![1 => Just(None), 6 => (-3i32..4).prop_map(|loss| Some(f64::from(loss)))];
        prop::collection::vec((0u64..5, loss), 0..12)
    }

    proptest! {
        #[test]
        fn a_point_is_off_the_frontier_exactly_when_a_point_on_it_beats_it(points in points()) {
            let on = frontier(&points);
            for (i, (bytes, loss)) in points.iter().enumerate() {
                let Some(loss) = loss else {
                    prop_assert!(!on[i]);
                    continue;
                };
                let beaten = points.iter().enumerate().any(|(j, (other_bytes, other_loss))| {
                    on[j] && other_loss.is_some_and(|other| {
                        other_bytes <= bytes && other <= *loss && (other_bytes, other) != (bytes, *loss)
                    })
                });
                prop_assert_eq!(on[i], !beaten, "point {} of {:?}", i, points);
            }
        }

        #[test]
        fn along_the_frontier_less_size_costs_more(points in points()) {
            let on = frontier(&points);
            let mut chosen: Vec<(u64, f64)> =
                points.iter().zip(&on).filter(|(_, on)| **on).filter_map(|((b, l), _)| Some((*b, (*l)?))).collect();
            chosen.sort_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)));
            chosen.dedup();
            prop_assert!(chosen.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 > pair[1].1), "{:?}", chosen);
            prop_assert_eq!(chosen.is_empty(), points.iter().all(|(_, loss)| loss.is_none()));
        }

        #[test]
        fn the_order_of_the_points_does_not_matter(points in points(), by in 0usize..12) {
            let mut turned = points.clone();
            let by = by % points.len().max(1);
            turned.rotate_left(by);
            let mut on = frontier(&points);
            on.rotate_left(by);
            prop_assert_eq!(frontier(&turned), on);
        }
    }
}
