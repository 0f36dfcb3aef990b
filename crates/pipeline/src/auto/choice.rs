//! One of several items from each of many groups: the cheapest of little loss, or what loses least in little room.

/// A scheme of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Item {
    pub(super) bytes: u64,
    /// What is made small where a loss is the limit.
    pub(super) price: f64,
    pub(super) loss: f64,
}

/// The groups with their items.
pub(super) struct Choice(Vec<Vec<Item>>);

/// Halvings of the interval in which an exchange rate is looked for.
const HALVINGS: usize = 200;

impl Choice {
    /// Of groups of which none is empty.
    pub(super) fn new(groups: Vec<Vec<Item>>) -> Self {
        Self(groups)
    }

    /// The sum of the losses of a choice.
    pub(super) fn loss(&self, chosen: &[usize]) -> f64 {
        self.of(chosen).map(|item| item.loss).sum()
    }

    /// The sum of the bytes of a choice.
    pub(super) fn bytes(&self, chosen: &[usize]) -> u64 {
        self.of(chosen).map(|item| item.bytes).sum()
    }

    fn of<'a>(&'a self, chosen: &'a [usize]) -> impl Iterator<Item = &'a Item> {
        self.0.iter().zip(chosen).map(|(items, index)| &items[*index])
    }

    /// From each group the item of which that sum is least; of equal ones what loses less, and then the first.
    fn least(&self, sum: impl Fn(&Item) -> f64) -> Vec<usize> {
        let best = |items: &Vec<Item>| {
            let order = |a: &usize, b: &usize| {
                let (a, b) = (&items[*a], &items[*b]);
                sum(a).total_cmp(&sum(b)).then(a.loss.total_cmp(&b.loss))
            };
            (0..items.len()).min_by(order).unwrap_or(0)
        };
        self.0.iter().map(best).collect()
    }

    /// The cheapest choice that an exchange rate between price and loss gives within that loss; what loses least where none is within
    /// it.
    pub(super) fn cheapest_within(&self, loss: f64) -> Vec<usize> {
        let cheapest = self.least(|item| item.price);
        if self.loss(&cheapest) <= loss {
            return cheapest;
        }
        let priced = self.0.iter().flatten().map(|item| item.price).fold(0f64, f64::max).max(1.0);
        let choose = |rate: f64| self.least(|item| item.price / priced + rate * item.loss);
        let found = at_least_rate(choose, |chosen| self.loss(chosen) <= loss);
        if self.loss(&found) <= loss { found } else { self.least(|item| item.loss) }
    }

    /// What loses least of all choices in which an item `counts`; `None` where none does.
    pub(super) fn gentlest(&self, counts: impl Fn(usize, usize) -> bool) -> Option<Vec<usize>> {
        let mut chosen = self.least(|item| item.loss);
        if chosen.iter().enumerate().any(|(group, index)| counts(group, *index)) {
            return Some(chosen);
        }
        let more = |group: usize, index: usize| self.0[group][index].loss - self.0[group][chosen[group]].loss;
        let all = self.0.iter().enumerate();
        let all = all.flat_map(|(group, items)| (0..items.len()).map(move |index| (group, index)));
        let (group, index) = all
            .filter(|(group, index)| counts(*group, *index))
            .min_by(|a, b| more(a.0, a.1).total_cmp(&more(b.0, b.1)))?;
        chosen[group] = index;
        Some(chosen)
    }

    /// The choice in which the group that gains most loss for its price has its next better item; the same where there is none.
    pub(super) fn next_step(&self, chosen: &[usize]) -> Vec<usize> {
        let mut best: Option<(f64, usize, usize)> = None;
        for (group, items) in self.0.iter().enumerate() {
            let now = items[chosen[group]];
            for (index, item) in items.iter().enumerate().filter(|(_, item)| item.loss < now.loss) {
                let gain = (now.loss - item.loss) / (item.price - now.price).max(1.0);
                if best.is_none_or(|(most, ..)| gain > most) {
                    best = Some((gain, group, index));
                }
            }
        }
        let mut chosen = chosen.to_vec();
        if let Some((_, group, index)) = best {
            chosen[group] = index;
        }
        chosen
    }

    /// What loses least within so many bytes; the smallest where none is.
    pub(super) fn best_within(&self, bytes: u64) -> Vec<usize> {
        let best = self.least(|item| item.loss);
        if self.bytes(&best) <= bytes {
            return best;
        }
        let largest =
            self.0.iter().flatten().map(|item| item.loss).fold(0f64, f64::max).max(f64::MIN_POSITIVE);
        let most = self.0.iter().flatten().map(|item| item.bytes).max().unwrap_or(1).max(1) as f64;
        let choose = |rate: f64| self.least(|item| item.loss / largest + rate * item.bytes as f64 / most);
        let mut chosen = at_least_rate(choose, |chosen| self.bytes(chosen) <= bytes);
        if self.bytes(&chosen) > bytes {
            chosen = self.least(|item| item.bytes as f64);
        }
        self.fill(chosen, bytes)
    }

    /// Spends what is left: the exchange that gains most, as long as one fits.
    fn fill(&self, mut chosen: Vec<usize>, bytes: u64) -> Vec<usize> {
        loop {
            let left = bytes.saturating_sub(self.bytes(&chosen));
            let mut best: Option<(f64, usize, usize)> = None;
            for (group, items) in self.0.iter().enumerate() {
                let now = items[chosen[group]];
                for (index, item) in items.iter().enumerate() {
                    let gain = now.loss - item.loss;
                    let fits = item.bytes.saturating_sub(now.bytes) <= left;
                    if fits && gain > 0.0 && best.is_none_or(|(most, ..)| gain > most) {
                        best = Some((gain, group, index));
                    }
                }
            }
            let Some((_, group, index)) = best else { return chosen };
            chosen[group] = index;
        }
    }
}

/// The smallest rate, within rounding, for which what `choose` gives `fits`; the largest tried where none does.
fn at_least_rate(choose: impl Fn(f64) -> Vec<usize>, fits: impl Fn(&[usize]) -> bool) -> Vec<usize> {
    let (mut low, mut high) = (-60f64, 60f64);
    let mut found = choose(high.exp2());
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(low, high);
        let chosen = choose(middle.exp2());
        if fits(&chosen) {
            (high, found) = (middle, chosen);
        } else {
            low = middle;
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every choice there is.
    fn all(choice: &Choice) -> Vec<Vec<usize>> {
        choice.0.iter().fold(vec![Vec::new()], |before, items| {
            let with = |chosen: &Vec<usize>, index: usize| chosen.iter().copied().chain([index]).collect();
            before.iter().flat_map(|chosen| (0..items.len()).map(move |index| with(chosen, index))).collect()
        })
    }

    fn groups() -> impl Strategy<Value = Vec<Vec<Item>>> {
        let item = (1u64..100, 0u32..50).prop_map(|(bytes, loss)| Item {
            bytes,
            price: bytes as f64 * 1.5,
            loss: f64::from(loss) / 1000.0,
        });
        prop::collection::vec(prop::collection::vec(item, 1..4), 1..5)
    }

    #[test]
    fn what_costs_little_and_gains_much_is_given_up_first() {
        let item = |bytes, loss| Item { bytes, price: bytes as f64, loss };
        let choice =
            Choice::new(vec![vec![item(10, 0.5), item(20, 0.0)], vec![item(10, 0.1), item(40, 0.0)]]);
        assert_eq!(choice.cheapest_within(f64::INFINITY), [0, 0]);
        assert_eq!(choice.cheapest_within(0.2), [1, 0]);
        assert_eq!(choice.cheapest_within(0.05), [1, 1]);
        assert_eq!(choice.cheapest_within(-1.0), [1, 1], "what loses least");
        assert_eq!(choice.next_step(&[0, 0]), [1, 0]);
        assert_eq!(choice.next_step(&[1, 1]), [1, 1]);
        assert_eq!(choice.gentlest(|_, _| true), Some(vec![1, 1]));
        assert_eq!(choice.gentlest(|_, index| index == 0), Some(vec![1, 0]), "of those that count");
        assert_eq!(choice.gentlest(|_, _| false), None);
        assert_eq!(choice.best_within(60), [1, 1]);
        assert_eq!(choice.best_within(59), [1, 0]);
        assert_eq!(choice.best_within(3), [0, 0], "the smallest");
    }

    proptest! {
        #[test]
        fn a_limit_is_kept_where_any_choice_keeps_it(groups in groups(), loss in 0f64..0.15, bytes in 0u64..300) {
            let choice = Choice::new(groups);
            let all = all(&choice);
            let possible = all.iter().any(|chosen| choice.loss(chosen) <= loss);
            let found = choice.cheapest_within(loss);
            prop_assert_eq!(choice.loss(&found) <= loss, possible);
            let possible = all.iter().any(|chosen| choice.bytes(chosen) <= bytes);
            let found = choice.best_within(bytes);
            prop_assert_eq!(choice.bytes(&found) <= bytes, possible);
            // No single exchange would be better still.
            for (group, items) in choice.0.iter().enumerate() {
                for index in 0..items.len() {
                    let mut other = found.clone();
                    other[group] = index;
                    prop_assert!(!possible || choice.bytes(&other) > bytes || choice.loss(&other) >= choice.loss(&found));
                }
            }
        }
    }
}
