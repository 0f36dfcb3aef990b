//! `[quantization]`: how weights and activations become INT8.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeropoint_core as core;

use super::pattern::Pattern;
use super::refine::QuantizationKeys;
use super::transforms::Transform;

/// `[quantization]`: how weights and activations become INT8.
///
/// Read from a config, every field is filled in: a preset, refined by the keys that are given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "QuantizationKeys")]
pub struct Quantization {
    /// The preset.
    pub scheme: Preset,
    /// How weights are quantised.
    pub weights: Weights,
    /// How activations are quantised.
    pub activations: Activations,
    /// The Linears that stay float; `None` for those that the architecture says are not worth quantising.
    pub ignore: Option<Vec<Pattern>>,
    /// What becomes of embedding tables.
    pub embeddings: Embeddings,
    /// What becomes of the output matrix of a decoder.
    pub lm_head: LmHead,
    /// What is done to weights before they are rounded, and to activations with them.
    pub transforms: Vec<Transform>,
    /// How weights are rounded.
    pub algorithm: Algorithm,
    /// Other schemes for some layers; where several match, the last one holds.
    pub overrides: Vec<Override>,
}

/// A complete scheme by one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
pub enum Preset {
    /// INT8 weights per channel; INT8 activations per token, scaled at run time. Needs no calibration for its numbers.
    #[default]
    #[serde(rename = "w8a8-dynamic")]
    W8a8Dynamic,
    /// INT8 weights per channel; INT8 activations per tensor, scaled once from calibration data.
    #[serde(rename = "w8a8-static")]
    W8a8Static,
}

/// How weights are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Weights {
    /// 8.
    pub bits: u8,
    /// Over what a scale is shared.
    pub granularity: WeightGranularity,
    /// `true`.
    pub symmetric: bool,
    /// How the range is found.
    pub observer: WeightObserver,
    /// The percentile, in percent, of the observer of that name; `None` for others.
    pub percentile: Option<f64>,
}

/// Over what one scale of a weight is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WeightGranularity {
    /// One output channel (row).
    Channel,
    /// The whole tensor.
    Tensor,
}

/// How the range of a weight is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WeightObserver {
    /// The smallest and largest value.
    MinMax,
    /// The given percentile of the magnitudes, of each channel or of the tensor.
    Percentile,
    /// The clipped range with the least squared error.
    Mse,
}

/// How activations are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Activations {
    /// 8.
    pub bits: u8,
    /// When the scale is found.
    pub mode: ActivationMode,
    /// Over what a scale is shared; follows from the mode.
    pub granularity: ActivationGranularity,
    /// Whether the zero point is 0.
    pub symmetric: bool,
    /// How a static range is found; `None` for dynamic activations.
    pub observer: Option<ActivationObserver>,
    /// The percentile, in percent, of the observers that take one; `None` for others.
    pub percentile: Option<f64>,
    /// Weight of a step of the observer "moving-average"; `None` for others.
    pub averaging_constant: Option<f64>,
    /// Samples that make a step of the observer "moving-average"; `None` for others.
    pub averaging_batch: Option<u32>,
    /// From how many times the median token's extreme a token is an outlier to the observer "outlier-aware"; `None` for
    /// others.
    pub outlier_ratio: Option<f64>,
    /// Percentage of tokens that the observer "outlier-aware" may clip; `None` for others.
    pub clipped_tokens: Option<f64>,
}

/// When the scale of an activation is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationMode {
    /// Once, from calibration data.
    Static,
    /// At run time, from the values themselves.
    Dynamic,
}

/// Over what one scale of an activation is shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationGranularity {
    /// The whole tensor; for static activations.
    Tensor,
    /// One token (row); for dynamic activations.
    Token,
}

/// How the range of a static activation is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationObserver {
    /// The smallest and largest value seen.
    MinMax,
    /// Moving averages of the smallest and largest value of each sample, in sampling order.
    MovingAverage,
    /// The range that holds the given percentage of the values seen.
    Percentile,
    /// The range that holds the given percentage of the values of every channel.
    PercentilePerChannel,
    /// The range whose INT8 distribution diverges least from the one seen (Kullback-Leibler).
    Entropy,
    /// The range of all tokens but a few that reach out far beyond the others.
    OutlierAware,
    /// The clipped range with the least squared error.
    Mse,
}

/// What becomes of embedding tables.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Embeddings {
    /// The source's own type.
    #[default]
    Keep,
    /// Rounded to bfloat16.
    Bf16,
    /// INT8, a scale for each row; in the format "zeropoint" alone.
    Int8,
}

impl Embeddings {
    /// The name used in configs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Keep => "keep",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

/// What becomes of the output matrix of a decoder, which makes the logits of the next token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LmHead {
    /// What the other keys say of it, which is to stay float by default.
    #[default]
    Keep,
    /// INT8, a scale for each output and for each token at run time, whatever the other keys say of it.
    Int8,
}

/// How weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(from = "AlgorithmKeys")]
pub struct Algorithm {
    /// Which algorithm.
    pub kind: AlgorithmKind,
    /// gptq: what is added to the diagonal of the second moments, as a fraction of its mean; `None` of others.
    pub damping: Option<f64>,
}

/// An algorithm as it is written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AlgorithmKeys {
    /// Which algorithm.
    kind: AlgorithmKind,
    /// gptq: what is added to the diagonal of the second moments of a Linear's inputs, as a fraction of its mean. Default: 0.01.
    #[schemars(range(min = 0, max = 1))]
    damping: Option<f64>,
}

impl From<AlgorithmKeys> for Algorithm {
    fn from(AlgorithmKeys { kind, damping }: AlgorithmKeys) -> Self {
        const DAMPING: f64 = 0.01;
        Self { kind, damping: damping.or((kind == AlgorithmKind::Gptq).then_some(DAMPING)) }
    }
}

/// Which rounding algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AlgorithmKind {
    /// Round to nearest.
    #[default]
    Rtn,
    /// GPTQ: column by column, each error made good by the columns behind it, for the inputs that calibration shows.
    Gptq,
}

/// Another scheme for some layers.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Override {
    /// The layers it is about.
    pub layers: Vec<Pattern>,
    /// The preset, or none at all.
    pub scheme: OverrideScheme,
    /// How their weights are quantised; `None` for what the preset says, and when the layers stay float.
    pub weights: Option<Weights>,
    /// How their activations are quantised; `None` for what the preset says, and when the layers stay float.
    pub activations: Option<Activations>,
}

/// A preset, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
pub enum OverrideScheme {
    /// The preset of this name.
    #[serde(rename = "w8a8-dynamic")]
    W8a8Dynamic,
    /// The preset of this name.
    #[serde(rename = "w8a8-static")]
    W8a8Static,
    /// The layers stay float.
    #[serde(rename = "none")]
    None,
}

/// The complete scheme of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerScheme {
    /// How its weight is quantised.
    pub weights: Weights,
    /// How its input is quantised.
    pub activations: Activations,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 2] = [Self::W8a8Dynamic, Self::W8a8Static];

    /// The name used in configs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::W8a8Dynamic => "w8a8-dynamic",
            Self::W8a8Static => "w8a8-static",
        }
    }

    /// The preset whose activations have this mode.
    pub fn of(mode: ActivationMode) -> Self {
        match mode {
            ActivationMode::Dynamic => Self::W8a8Dynamic,
            ActivationMode::Static => Self::W8a8Static,
        }
    }

    /// When the scales of its activations are found.
    pub fn mode(self) -> ActivationMode {
        match self {
            Self::W8a8Dynamic => ActivationMode::Dynamic,
            Self::W8a8Static => ActivationMode::Static,
        }
    }

    /// What the preset stands for.
    pub fn scheme(self) -> LayerScheme {
        LayerScheme { weights: Weights::default(), activations: Activations::of(self.mode()) }
    }
}

impl WeightObserver {
    /// The name used in configs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MinMax => "min-max",
            Self::Percentile => "percentile",
            Self::Mse => "mse",
        }
    }
}

impl ActivationObserver {
    /// Every observer.
    pub const ALL: [Self; 7] = [
        Self::MinMax,
        Self::MovingAverage,
        Self::Percentile,
        Self::PercentilePerChannel,
        Self::Entropy,
        Self::OutlierAware,
        Self::Mse,
    ];

    /// The name used in configs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MinMax => "min-max",
            Self::MovingAverage => "moving-average",
            Self::Percentile => "percentile",
            Self::PercentilePerChannel => "percentile-per-channel",
            Self::Entropy => "entropy",
            Self::OutlierAware => "outlier-aware",
            Self::Mse => "mse",
        }
    }

    /// Whether it takes a percentile.
    pub fn takes_percentile(self) -> bool {
        matches!(self, Self::Percentile | Self::PercentilePerChannel)
    }
}

impl Default for Weights {
    /// Per channel with the least squared error, which costs about an eighth less of it than the full range.
    fn default() -> Self {
        Self {
            bits: 8,
            granularity: WeightGranularity::Channel,
            symmetric: true,
            observer: WeightObserver::Mse,
            percentile: None,
        }
    }
}

impl Activations {
    /// Dynamic: symmetric per token. Static: asymmetric per tensor over the full range, since clipping the few outlier
    /// channels of a transformer costs more accuracy than finer steps give back.
    pub fn of(mode: ActivationMode) -> Self {
        match mode {
            ActivationMode::Dynamic => Self {
                bits: 8,
                mode,
                granularity: ActivationGranularity::Token,
                symmetric: true,
                observer: None,
                percentile: None,
                averaging_constant: None,
                averaging_batch: None,
                outlier_ratio: None,
                clipped_tokens: None,
            },
            ActivationMode::Static => Self {
                bits: 8,
                mode,
                granularity: ActivationGranularity::Tensor,
                symmetric: false,
                observer: Some(ActivationObserver::MinMax),
                percentile: None,
                averaging_constant: None,
                averaging_batch: None,
                outlier_ratio: None,
                clipped_tokens: None,
            },
        }
    }
}

impl From<Preset> for Quantization {
    /// The preset as it is.
    fn from(scheme: Preset) -> Self {
        QuantizationKeys::of(scheme).into()
    }
}

impl Default for Quantization {
    fn default() -> Self {
        QuantizationKeys::default().into()
    }
}

impl OverrideScheme {
    /// The preset, unless the layers stay float.
    pub fn preset(self) -> Option<Preset> {
        match self {
            Self::W8a8Dynamic => Some(Preset::W8a8Dynamic),
            Self::W8a8Static => Some(Preset::W8a8Static),
            Self::None => None,
        }
    }
}

impl Override {
    /// The scheme of the layers, or `None` when they stay float.
    pub fn layer_scheme(&self) -> Option<LayerScheme> {
        let preset = self.scheme.preset()?.scheme();
        Some(LayerScheme {
            weights: self.weights.unwrap_or(preset.weights),
            activations: self.activations.unwrap_or(preset.activations),
        })
    }
}

impl Quantization {
    /// The scheme of every layer that no override is about.
    pub fn layer_scheme(&self) -> LayerScheme {
        LayerScheme { weights: self.weights, activations: self.activations }
    }
}

impl From<WeightGranularity> for core::Granularity {
    fn from(granularity: WeightGranularity) -> Self {
        match granularity {
            WeightGranularity::Channel => Self::Channel,
            WeightGranularity::Tensor => Self::Tensor,
        }
    }
}

impl From<ActivationMode> for core::ActivationMode {
    fn from(mode: ActivationMode) -> Self {
        match mode {
            ActivationMode::Static => Self::Static,
            ActivationMode::Dynamic => Self::Dynamic,
        }
    }
}

impl From<LayerScheme> for core::Scheme {
    fn from(scheme: LayerScheme) -> Self {
        let activations = core::ActivationScheme {
            mode: scheme.activations.mode.into(),
            symmetry: core::Symmetry::from_flag(scheme.activations.symmetric),
        };
        Self::int8(scheme.weights.granularity.into(), activations)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_the_schemes_of_their_names() {
        let cases = [
            (
                Preset::W8a8Dynamic,
                "weights int8 per-channel symmetric, activations int8 dynamic per-token symmetric",
            ),
            (
                Preset::W8a8Static,
                "weights int8 per-channel symmetric, activations int8 static per-tensor asymmetric",
            ),
        ];
        assert_eq!(cases.map(|(preset, _)| preset), Preset::ALL);
        for (preset, text) in cases {
            assert_eq!(Quantization::from(preset).layer_scheme(), preset.scheme());
            assert_eq!(serde_json::to_value(preset).unwrap(), preset.as_str());
            assert_eq!(core::Scheme::from(preset.scheme()).to_string(), text);
            assert_eq!(Preset::of(preset.mode()), preset);
        }
    }
}
