//! The keys of `[quantization]` as they are written, and how they refine a preset into a complete scheme.

use schemars::JsonSchema;
use serde::Deserialize;

use super::pattern::Pattern;
use super::quantization::{
    ActivationGranularity, ActivationMode, ActivationObserver, Activations, Algorithm, Embeddings,
    LayerScheme, LmHead, Override, OverrideScheme, Preset, Quantization, WeightGranularity, WeightObserver,
    Weights,
};
use super::transforms::Transform;

/// The percentile when an observer of activations is called for without one.
const PERCENTILE: f64 = 99.99;
/// The percentile of weights: of the few hundred of a channel, 99.99 would leave out none.
const WEIGHT_PERCENTILE: f64 = 99.9;
/// `PyTorch`'s.
const AVERAGING_CONSTANT: f64 = 0.01;
/// One sample after the other.
const AVERAGING_BATCH: u32 = 1;
/// Times the median token's extreme.
const OUTLIER_RATIO: f64 = 2.0;
/// In percent.
const CLIPPED_TOKENS: f64 = 1.0;

/// How weights and activations become INT8: a preset, refined by the keys beside it.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(super) struct QuantizationKeys {
    /// The preset. By default the one of `activations.mode`, else "w8a8-dynamic".
    scheme: Option<Preset>,
    /// How weights are quantised, where it differs from the preset.
    weights: WeightKeys,
    /// How activations are quantised, where it differs from the preset.
    activations: Option<ActivationKeys>,
    /// The Linears that stay float: exact names, or `re:` and a regular expression that matches from the start. By
    /// default those that the architecture says are not worth quantising (heads, poolers, classifiers); giving this
    /// replaces them.
    ignore: Option<Vec<Pattern>>,
    /// What becomes of embedding tables.
    embeddings: Embeddings,
    /// What becomes of the output matrix of a decoder.
    lm_head: LmHead,
    /// Changes of the weights that leave what the model computes as it is and make it easier to quantise. By default those of the
    /// preset that are exact in the model; giving this replaces them.
    transforms: Option<Vec<Transform>>,
    /// How weights are rounded. By default as the preset says.
    algorithm: Option<Algorithm>,
    /// Whether the biases of quantised Linears take up what rounding changes of the mean of each output over the calibration samples,
    /// behind the blocks as they are quantised.
    bias_correction: bool,
    /// Other schemes for some layers; where several match, the last one holds.
    overrides: Vec<OverrideKeys>,
}

/// How weights are quantised, where it differs from the preset.
#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct WeightKeys {
    /// Bits of an integer: 8, or 4 of "w4a16".
    #[schemars(range(min = 4, max = 8))]
    bits: Option<u8>,
    /// Over what a scale is shared. Default: "channel", of "w4a16" and where `group_size` is given "group".
    granularity: Option<WeightGranularity>,
    /// Neighbouring inputs that share a scale, of the granularity "group". Default: 64.
    #[schemars(range(min = 8, max = 4096))]
    group_size: Option<u32>,
    /// Whether the zero point is 0: true, as no INT8 runtime loads other weights.
    #[schemars(extend("const" = true))]
    symmetric: Option<bool>,
    /// How the range is found. Default: "mse".
    observer: Option<WeightObserver>,
    /// The percentile, in percent, of the observer "percentile". Default: 99.9.
    #[schemars(range(min = 50, max = 100))]
    percentile: Option<f64>,
}

/// How activations are quantised, where it differs from the preset.
#[derive(Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct ActivationKeys {
    /// Bits of an integer: 8.
    #[schemars(extend("const" = 8))]
    bits: Option<u8>,
    /// When the scale is found; must agree with the preset, if both are given.
    mode: Option<ActivationMode>,
    /// Over what a scale is shared: "tensor" for static activations, "token" for dynamic ones.
    granularity: Option<ActivationGranularity>,
    /// Whether the zero point is 0. Default: true for dynamic activations, false for static ones.
    symmetric: Option<bool>,
    /// How the range of static activations is found. Default: "min-max".
    observer: Option<ActivationObserver>,
    /// The percentile, in percent, of the observers "percentile" and "percentile-per-channel". Default: 99.99.
    #[schemars(range(min = 50, max = 100))]
    percentile: Option<f64>,
    /// How much a step of the observer "moving-average" weighs against all before it. Default: 0.01.
    #[schemars(range(min = 0.000_001, max = 1))]
    averaging_constant: Option<f64>,
    /// Samples that make a step of the observer "moving-average". Default: 1.
    #[schemars(range(min = 1, max = 1_000_000))]
    averaging_batch: Option<u32>,
    /// From how many times the median token's extreme a token is an outlier, for the observer "outlier-aware".
    /// Default: 2.
    #[schemars(range(min = 1, max = 1_000_000))]
    outlier_ratio: Option<f64>,
    /// Percentage of tokens of which the observer "outlier-aware" may clip values. Default: 1.
    #[schemars(range(min = 0, max = 50))]
    clipped_tokens: Option<f64>,
}

/// Another scheme for some layers.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct OverrideKeys {
    /// The layers it is about: exact names, or `re:` and a regular expression that matches from the start.
    #[schemars(length(min = 1))]
    layers: Vec<Pattern>,
    /// A preset, or "none" for layers that stay float. By default the scheme of all layers is refined.
    scheme: Option<OverrideScheme>,
    /// How their weights are quantised, where it differs.
    weights: Option<WeightKeys>,
    /// How their activations are quantised, where it differs.
    activations: Option<ActivationKeys>,
}

impl QuantizationKeys {
    /// A preset and nothing else.
    pub(super) fn of(scheme: Preset) -> Self {
        Self { scheme: Some(scheme), ..Self::default() }
    }
}

impl WeightKeys {
    fn refine(self, base: Weights) -> Weights {
        let observer = self.observer.unwrap_or(base.observer);
        let inherited =
            (observer == WeightObserver::Percentile).then(|| base.percentile.unwrap_or(WEIGHT_PERCENTILE));
        let by_size = self.group_size.map(|_| WeightGranularity::Group);
        let granularity = self.granularity.or(by_size).unwrap_or(base.granularity);
        let group_size =
            (granularity == WeightGranularity::Group).then(|| base.group_size.unwrap_or(Weights::GROUP_SIZE));
        Weights {
            bits: self.bits.unwrap_or(base.bits),
            granularity,
            group_size: self.group_size.or(group_size),
            symmetric: self.symmetric.unwrap_or(base.symmetric),
            observer,
            percentile: self.percentile.or(inherited),
        }
    }
}

impl ActivationKeys {
    /// A change of mode starts again from the usual activations of that mode. The settings of an observer are filled in
    /// where it takes them, and inherited where the base has them.
    fn refine(self, base: Option<Activations>) -> Activations {
        let base = base.unwrap_or_else(|| Activations::of(ActivationMode::Dynamic));
        let mode = self.mode.unwrap_or(base.mode);
        let base = if mode == base.mode { base } else { Activations::of(mode) };
        let observer = self.observer.or(base.observer);
        let by_percentile = observer.is_some_and(ActivationObserver::takes_percentile);
        let average = observer == Some(ActivationObserver::MovingAverage);
        let outlier_aware = observer == Some(ActivationObserver::OutlierAware);
        Activations {
            bits: self.bits.unwrap_or(base.bits),
            mode,
            granularity: self.granularity.unwrap_or(base.granularity),
            symmetric: self.symmetric.unwrap_or(base.symmetric),
            observer,
            percentile: self.percentile.or(by_percentile.then(|| base.percentile.unwrap_or(PERCENTILE))),
            averaging_constant: self
                .averaging_constant
                .or(average.then(|| base.averaging_constant.unwrap_or(AVERAGING_CONSTANT))),
            averaging_batch: self
                .averaging_batch
                .or(average.then(|| base.averaging_batch.unwrap_or(AVERAGING_BATCH))),
            outlier_ratio: self
                .outlier_ratio
                .or(outlier_aware.then(|| base.outlier_ratio.unwrap_or(OUTLIER_RATIO))),
            clipped_tokens: self
                .clipped_tokens
                .or(outlier_aware.then(|| base.clipped_tokens.unwrap_or(CLIPPED_TOKENS))),
        }
    }
}

impl OverrideKeys {
    /// A scheme that is named starts from its preset; without a name, from the scheme of all layers.
    fn refine(self, all: LayerScheme) -> Override {
        let weights = self.weights.unwrap_or_default();
        let mode = self.activations.and_then(|keys| keys.mode).or(all.activations.map(|usual| usual.mode));
        let scheme = self.scheme.unwrap_or_else(|| match mode {
            Some(ActivationMode::Dynamic) => OverrideScheme::W8a8Dynamic,
            Some(ActivationMode::Static) => OverrideScheme::W8a8Static,
            None if weights.bits.unwrap_or(all.weights.bits) == 4 => OverrideScheme::W4a16,
            None => OverrideScheme::W8a16,
        });
        let base = match self.scheme {
            None => all,
            Some(named) => named.preset().unwrap_or_default().scheme(),
        };
        let quantised = scheme != OverrideScheme::None;
        Override {
            layers: self.layers,
            scheme,
            weights: (quantised || self.weights.is_some()).then(|| weights.refine(base.weights)),
            activations: refined(self.activations, base.activations.filter(|_| quantised)),
        }
    }
}

/// Activations of a layer that has them, or is said to.
fn refined(keys: Option<ActivationKeys>, base: Option<Activations>) -> Option<Activations> {
    (keys.is_some() || base.is_some()).then(|| keys.unwrap_or_default().refine(base))
}

impl From<QuantizationKeys> for Quantization {
    fn from(keys: QuantizationKeys) -> Self {
        let mode = keys.activations.and_then(|keys| keys.mode);
        let scheme = keys.scheme.unwrap_or_else(|| mode.map_or(Preset::default(), Preset::of));
        let preset = scheme.scheme();
        let all = LayerScheme {
            weights: keys.weights.refine(preset.weights),
            activations: refined(keys.activations, preset.activations),
        };
        let by_preset = scheme.transforms();
        Self {
            scheme,
            weights: all.weights,
            activations: all.activations,
            ignore: keys.ignore,
            embeddings: keys.embeddings,
            lm_head: keys.lm_head,
            transforms: keys.transforms.or(by_preset.is_empty().then_some(by_preset)),
            algorithm: keys.algorithm.unwrap_or_else(|| scheme.algorithm()),
            bias_correction: keys.bias_correction,
            overrides: keys.overrides.into_iter().map(|keys| keys.refine(all)).collect(),
        }
    }
}
