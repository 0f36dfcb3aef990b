//! What could help a layer that lost much.

use super::Layer;

/// Decibels from which on a side is as good as exact beside the other.
const CLEARLY: f64 = 3.0;
/// Fraction of values from which on clipping counts.
const MUCH_CLIPPED: f64 = 1e-4;

/// What to try for a layer, by which side of it is the weaker and why; `by_gptq` says how it was rounded.
pub(super) fn suggestion(layer: &Layer, by_gptq: bool) -> &'static str {
    let is_static = layer.activation_range.is_some();
    let is_weight_only = layer.activations == "float";
    let inputs = layer.activation_sqnr_db.filter(|db| db.is_finite());
    let inputs_are_weaker = inputs.is_some_and(|db| db + CLEARLY < layer.weight_sqnr_db);
    let weights_are_weaker = is_weight_only || inputs.is_some_and(|db| layer.weight_sqnr_db + CLEARLY < db);
    let clipped = layer.clipped_fraction.is_some_and(|fraction| fraction > MUCH_CLIPPED);
    let outliers = layer.outliers() > 0;
    if weights_are_weaker {
        return match (layer.weights.contains("int4"), by_gptq) {
            (true, true) => "take smaller groups, or give it the scheme w8a16",
            (true, false) => "round it by gptq, take smaller groups, or give it the scheme w8a16",
            (false, _) if layer.weights.contains("per-tensor") => "take weights per channel",
            (false, true) => "leave it float",
            (false, false) => "round it by gptq, or leave it float",
        };
    }
    match (is_static, outliers, clipped) {
        (true, true, _) if inputs_are_weaker => {
            "give it dynamic activations, smooth its input, or rotate it when the model runs"
        }
        (true, _, true) => "choose its range by min-max, or give it dynamic activations",
        (true, ..) if inputs_are_weaker => "give it dynamic activations",
        (false, true, _) if inputs_are_weaker => "smooth its input, or rotate it when the model runs",
        (false, ..) if inputs_are_weaker => {
            "give its activations a zero point for each token, or leave it float"
        }
        _ if by_gptq => "leave it float where its loss counts",
        _ => "round it by gptq, or leave it float where its loss counts",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::OutlierChannel;

    #[test]
    fn the_weaker_side_decides() {
        let layer = |weight: f64, input: Option<f64>, is_static: bool, outliers: u64| Layer {
            path: "a".to_owned(),
            weights: "int8 per-channel symmetric".to_owned(),
            activations: if input.is_some() { "int8" } else { "float" }.to_owned(),
            weight_sqnr_db: weight,
            activation_sqnr_db: input,
            output_sqnr_db: None,
            input_range: None,
            activation_range: is_static.then_some([-1.0, 1.0]),
            clipped_fraction: is_static.then_some(0.0),
            weight_range: None,
            weight_clipped_fraction: None,
            outlier_channels: (0..outliers)
                .map(|channel| OutlierChannel { channel, absmax: 9.0, times_median: 9.0 })
                .collect(),
            outlier_count: outliers,
            bytes: 1,
            original_bytes: None,
        };
        let dynamic = suggestion(&layer(40.0, Some(20.0), false, 2), false);
        assert!(dynamic.starts_with("smooth its input"), "{dynamic}");
        let ranged = suggestion(&layer(40.0, Some(20.0), true, 2), false);
        assert!(ranged.starts_with("give it dynamic activations, smooth"), "{ranged}");
        assert_eq!(suggestion(&layer(40.0, Some(20.0), true, 0), false), "give it dynamic activations");
        assert!(suggestion(&layer(20.0, Some(40.0), true, 2), false).starts_with("round it by gptq"));
        let four =
            Layer { weights: "int4 per-group of 64 symmetric".to_owned(), ..layer(20.0, None, false, 0) };
        assert!(suggestion(&four, false).contains("smaller groups"));
        assert!(!suggestion(&four, true).contains("gptq"));
        let clipped = Layer { clipped_fraction: Some(0.01), ..layer(30.0, Some(29.0), true, 0) };
        assert!(suggestion(&clipped, false).starts_with("choose its range by min-max"));
    }
}
