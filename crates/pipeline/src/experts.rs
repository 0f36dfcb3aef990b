//! How calibration's rows were spread over the experts of a mixture.

use zeropoint_evaluator::report::ExpertRows;
use zeropoint_models::{ExpertsSpec, ModelSpec};
use zeropoint_observer::StatisticsFile;

/// Mixtures, and experts of each, that a warning names; the report lists them all.
const NAMED: usize = 16;

/// The mixtures of a model in their order, with what the routers sent to their experts.
pub(crate) fn expert_rows(spec: &ModelSpec, statistics: &StatisticsFile) -> Vec<ExpertRows> {
    let mixtures = spec.towers.iter().flat_map(|tower| &tower.blocks).filter_map(|block| block.mlp.experts());
    mixtures.map(|mixture| rows_of(mixture, spec, statistics)).collect()
}

fn rows_of(mixture: &ExpertsSpec, spec: &ModelSpec, statistics: &StatisticsFile) -> ExpertRows {
    let routed = mixture.experts.iter().map(|expert| {
        let observed = statistics.sites.get(&spec.sites[expert.input].id);
        observed.map_or(0, zeropoint_observer::ActivationStatistics::routed_rows)
    });
    let unused = routed.clone().zip(0..).filter(|(rows, _)| *rows == 0).map(|(_, expert)| expert);
    ExpertRows {
        path: mixture.path.clone(),
        experts: mixture.experts.len() as u64,
        per_row: mixture.top_k as u64,
        fewest: routed.clone().min().unwrap_or(0),
        most: routed.max().unwrap_or(0),
        unused: unused.collect(),
    }
}

/// Names the experts that no row was routed to.
pub(crate) fn unused_warning(mixtures: &[ExpertRows]) -> Option<String> {
    let (mut unused, mut all) = (0, 0);
    let mut named = Vec::new();
    for mixture in mixtures {
        unused += mixture.unused.len();
        all += mixture.experts;
        if !mixture.unused.is_empty() {
            let experts: Vec<String> = mixture.unused.iter().take(NAMED).map(u64::to_string).collect();
            let more = match mixture.unused.len() - experts.len() {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            named.push(format!("{}{more} of `{}`", experts.join(", "), mixture.path));
        }
    }
    let more = match named.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!("; and those of {more} more layers"),
    };
    named.truncate(NAMED);
    (unused > 0).then(|| {
        format!(
            "no calibration token was routed to {unused} of {all} experts: {}{more}; their ranges come from tokens that the \
             routers send elsewhere, so calibrate on more texts, or on texts like those that the model will see",
            named.join("; ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mixture(path: &str, unused: impl IntoIterator<Item = u64>) -> ExpertRows {
        let unused = unused.into_iter().collect();
        ExpertRows { path: path.to_owned(), experts: 64, per_row: 2, fewest: 0, most: 9, unused }
    }

    #[test]
    fn experts_without_a_token_are_named() {
        assert_eq!(unused_warning(&[]), None);
        assert_eq!(unused_warning(&[mixture("layers.0.mlp", [])]), None);
        let few =
            [mixture("layers.0.mlp", [3, 7]), mixture("layers.1.mlp", []), mixture("layers.2.mlp", [0])];
        assert_eq!(
            unused_warning(&few).expect("a warning"),
            "no calibration token was routed to 3 of 192 experts: 3, 7 of `layers.0.mlp`; 0 of `layers.2.mlp`; their ranges \
             come from tokens that the routers send elsewhere, so calibrate on more texts, or on texts like those that the \
             model will see"
        );
        let many = [mixture("layers.0.mlp", 0..20)];
        let text = unused_warning(&many).expect("a warning");
        assert!(
            text.contains("20 of 64 experts: 0, 1, ") && text.contains(", 15 and 4 more of `layers.0.mlp`;"),
            "{text}"
        );
        let layers: Vec<ExpertRows> =
            (0..20).map(|layer| mixture(&format!("layers.{layer}.mlp"), [1])).collect();
        let text = unused_warning(&layers).expect("a warning");
        assert!(
            text.contains("20 of 1280 experts")
                && text.contains("1 of `layers.15.mlp`; and those of 4 more layers;"),
            "{text}"
        );
    }
}
