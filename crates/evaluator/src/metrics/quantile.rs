//! Percentiles of values that come in groups, for resamples of whole groups.

/// Values of groups, ordered once: a percentile near 100 of any resample of the groups is then a short walk from the
/// largest value down, instead of a sort.
#[derive(Debug, Clone)]
pub struct GroupedValues {
    /// Every value with its group, largest first.
    ordered: Vec<(f32, u32)>,
    sizes: Vec<usize>,
}

impl GroupedValues {
    /// Orders the values of all groups; `None` when one is NaN.
    pub fn new<'a>(groups: impl IntoIterator<Item = &'a [f32]>) -> Option<Self> {
        let (mut ordered, mut sizes) = (Vec::new(), Vec::new());
        for (group, values) in (0u32..).zip(groups) {
            ordered.extend(values.iter().map(|value| (*value, group)));
            sizes.push(values.len());
        }
        ordered.sort_unstable_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        (!ordered.iter().any(|(value, _)| value.is_nan())).then_some(Self { ordered, sizes })
    }

    /// The `percent`-th percentile of the values of the groups in `chosen`, which may name a group more than once. It is that
    /// of [`percentile`](super::fidelity::percentile) over all these values.
    ///
    /// `None` when they have no value, `percent` is outside `[0, 100]`, or there is no such group.
    pub fn percentile(&self, chosen: &[usize], percent: f64) -> Option<f64> {
        if !(0.0..=100.0).contains(&percent) {
            return None;
        }
        let mut times = vec![0usize; self.sizes.len()];
        let mut total = 0;
        for &group in chosen {
            *times.get_mut(group)? += 1;
            total += self.sizes[group];
        }
        let position = percent / 100.0 * total.checked_sub(1)? as f64;
        // Ranks from the top of the value at or above the position and of the one at or below it.
        let (above, below) = (total - 1 - position.ceil() as usize, total - 1 - position.floor() as usize);
        let (mut seen, mut high) = (0, None);
        for &(value, group) in &self.ordered {
            seen += times[group as usize];
            if seen > above && high.is_none() {
                high = Some(f64::from(value));
            }
            if seen > below {
                let (low, high) = (f64::from(value), high?);
                let fraction = position - position.floor();
                return Some(if low == high { low } else { low + (high - low) * fraction });
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::metrics::fidelity::percentile;

    #[test]
    fn nothing_has_no_percentile() {
        let none = GroupedValues::new([[].as_slice(), &[]]).unwrap();
        assert_eq!(none.percentile(&[0, 1], 99.0), None);
        let one = GroupedValues::new([[2.5].as_slice()]).unwrap();
        assert_eq!(one.percentile(&[], 99.0), None);
        assert_eq!(one.percentile(&[1], 99.0), None, "there is no such group");
        assert_eq!(one.percentile(&[0], 101.0), None);
        assert_eq!(one.percentile(&[0, 0], 99.9), Some(2.5));
        assert!(GroupedValues::new([[1.0, f32::NAN].as_slice()]).is_none());
    }

    proptest! {
        #[test]
        fn a_percentile_of_a_resample_is_that_of_its_values(
            groups in prop::collection::vec(prop::collection::vec(-3i8..4, 0..6), 1..6),
            chosen in prop::collection::vec(0usize..6, 0..8),
            percent in 0.0..=100.0f64,
        ) {
            let groups: Vec<Vec<f32>> =
                groups.into_iter().map(|group| group.into_iter().map(f32::from).collect()).collect();
            let chosen: Vec<usize> = chosen.into_iter().map(|group| group % groups.len()).collect();
            let grouped = GroupedValues::new(groups.iter().map(Vec::as_slice)).unwrap();
            let all: Vec<f64> = chosen.iter().flat_map(|&group| &groups[group]).map(|v| f64::from(*v)).collect();
            for percent in [percent, 0.0, 100.0] {
                prop_assert_eq!(grouped.percentile(&chosen, percent), percentile(&all, percent));
            }
        }
    }
}
