//! `[quantization]`: how weights and activations become INT8.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use zeropoint_core as core;

use super::output::OutputFormat;
use super::pattern::Pattern;
use super::refine::QuantizationKeys;
use super::transforms::{Transform, TransformKind};

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
    /// How activations are quantised; `None` where weights alone are.
    pub activations: Option<Activations>,
    /// The Linears that stay float; `None` for those that the architecture says are not worth quantising.
    pub ignore: Option<Vec<Pattern>>,
    /// What becomes of embedding tables.
    pub embeddings: Embeddings,
    /// What becomes of the output matrix of a decoder.
    pub lm_head: LmHead,
    /// What is done to weights before they are rounded, and to activations with them; `None` for those of the preset that are exact in
    /// the model.
    pub transforms: Option<Vec<Transform>>,
    /// How weights are rounded.
    pub algorithm: Algorithm,
    /// Whether biases take up what rounding changes of the mean of each output.
    pub bias_correction: bool,
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
    /// INT8 weights per channel, activations float: half the bytes of bf16 and next to nothing lost.
    #[serde(rename = "w8a16")]
    W8a16,
    /// INT4 weights in groups of 64 inputs, rounded by GPTQ, activations float: a little over a quarter of the bytes of bf16.
    #[serde(rename = "w4a16")]
    W4a16,
    /// The least loss at "w8a8-dynamic" that still loads everywhere: what is exact in the model of smoothing and of rotations that go
    /// into weights, and GPTQ.
    #[serde(rename = "best-int8")]
    BestInt8,
    /// The least loss at "w8a8-dynamic" in Zeropoint's runtime: inputs rotated when the model runs, and GPTQ. Writes the format
    /// "zeropoint".
    #[serde(rename = "best-int8-runtime")]
    BestInt8Runtime,
}

/// How weights are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, JsonSchema)]
pub struct Weights {
    /// 8, or without quantised activations 4.
    pub bits: u8,
    /// Over what a scale is shared.
    pub granularity: WeightGranularity,
    /// Neighbouring inputs that share a scale, per group; `None` otherwise.
    pub group_size: Option<u32>,
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
    /// `group_size` neighbouring inputs of an output channel; of weight-only schemes.
    Group,
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
    /// The preset of this name.
    #[serde(rename = "w8a16")]
    W8a16,
    /// The preset of this name, its algorithm apart, which is one for all layers.
    #[serde(rename = "w4a16")]
    W4a16,
    /// The layers stay float.
    #[serde(rename = "none")]
    None,
}

/// The complete scheme of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerScheme {
    /// How its weight is quantised.
    pub weights: Weights,
    /// How its input is quantised; `None` where it stays float.
    pub activations: Option<Activations>,
}

impl Preset {
    /// Every preset.
    pub const ALL: [Self; 6] = [
        Self::W8a8Dynamic,
        Self::W8a8Static,
        Self::W8a16,
        Self::W4a16,
        Self::BestInt8,
        Self::BestInt8Runtime,
    ];

    /// The name used in configs and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::W8a8Dynamic => "w8a8-dynamic",
            Self::W8a8Static => "w8a8-static",
            Self::W8a16 => "w8a16",
            Self::W4a16 => "w4a16",
            Self::BestInt8 => "best-int8",
            Self::BestInt8Runtime => "best-int8-runtime",
        }
    }

    /// The plain preset whose activations have this mode.
    pub fn of(mode: ActivationMode) -> Self {
        match mode {
            ActivationMode::Dynamic => Self::W8a8Dynamic,
            ActivationMode::Static => Self::W8a8Static,
        }
    }

    /// When the scales of its activations are found; `None` where they stay float.
    pub fn mode(self) -> Option<ActivationMode> {
        match self {
            Self::W8a8Dynamic | Self::BestInt8 | Self::BestInt8Runtime => Some(ActivationMode::Dynamic),
            Self::W8a8Static => Some(ActivationMode::Static),
            Self::W8a16 | Self::W4a16 => None,
        }
    }

    /// What the preset stands for, layer by layer.
    pub fn scheme(self) -> LayerScheme {
        let weights = match self {
            Self::W4a16 => Weights {
                bits: 4,
                granularity: WeightGranularity::Group,
                group_size: Some(Weights::GROUP_SIZE),
                ..Weights::default()
            },
            _ => Weights::default(),
        };
        LayerScheme { weights, activations: self.mode().map(Activations::of) }
    }

    /// How the preset rounds weights.
    pub fn algorithm(self) -> Algorithm {
        let kind = match self {
            Self::W8a8Dynamic | Self::W8a8Static | Self::W8a16 => AlgorithmKind::Rtn,
            Self::W4a16 | Self::BestInt8 | Self::BestInt8Runtime => AlgorithmKind::Gptq,
        };
        AlgorithmKeys { kind, damping: None }.into()
    }

    /// The transforms of the preset, of which a run makes those that are exact in its model.
    pub fn transforms(self) -> Vec<Transform> {
        match self {
            Self::BestInt8 => {
                vec![Transform::of(TransformKind::Rotation), Transform::searched(TransformKind::Smoothquant)]
            }
            Self::BestInt8Runtime => vec![Transform::searched(TransformKind::OnlineRotation)],
            _ => Vec::new(),
        }
    }

    /// The format that carries what the preset makes.
    pub fn format(self) -> OutputFormat {
        if self == Self::BestInt8Runtime { OutputFormat::Zeropoint } else { OutputFormat::CompressedTensors }
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
            group_size: None,
            symmetric: true,
            observer: WeightObserver::Mse,
            percentile: None,
        }
    }
}

impl Weights {
    /// Inputs of a group where nothing is said.
    pub(super) const GROUP_SIZE: u32 = 64;
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
    /// The plain preset that a scheme refines.
    pub fn of(layer: &LayerScheme) -> Self {
        match (layer.activations.map(|activations| activations.mode), layer.weights.bits) {
            (Some(ActivationMode::Dynamic), _) => Self::W8a8Dynamic,
            (Some(ActivationMode::Static), _) => Self::W8a8Static,
            (None, 4) => Self::W4a16,
            (None, _) => Self::W8a16,
        }
    }

    /// The preset, unless the layers stay float.
    pub fn preset(self) -> Option<Preset> {
        match self {
            Self::W8a8Dynamic => Some(Preset::W8a8Dynamic),
            Self::W8a8Static => Some(Preset::W8a8Static),
            Self::W8a16 => Some(Preset::W8a16),
            Self::W4a16 => Some(Preset::W4a16),
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
            activations: self.activations.or(preset.activations),
        })
    }
}

impl Quantization {
    /// The scheme of every layer that no override is about.
    pub fn layer_scheme(&self) -> LayerScheme {
        LayerScheme { weights: self.weights, activations: self.activations }
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

impl From<Weights> for core::WeightScheme {
    fn from(weights: Weights) -> Self {
        let group_size = weights.group_size.unwrap_or(Weights::GROUP_SIZE);
        Self {
            bits: if weights.bits == 4 { core::WeightBits::Four } else { core::WeightBits::Eight },
            granularity: match weights.granularity {
                WeightGranularity::Channel => core::Granularity::Channel,
                WeightGranularity::Tensor => core::Granularity::Tensor,
                WeightGranularity::Group => core::Granularity::Group(group_size as usize),
            },
        }
    }
}

impl From<LayerScheme> for core::Scheme {
    fn from(scheme: LayerScheme) -> Self {
        let activations = scheme.activations.map(|activations| core::ActivationScheme {
            mode: activations.mode.into(),
            symmetry: core::Symmetry::from_flag(activations.symmetric),
        });
        Self { weights: scheme.weights.into(), activations }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_the_schemes_of_their_names() {
        let dynamic = "weights int8 per-channel symmetric, activations int8 dynamic per-token symmetric";
        let cases = [
            (Preset::W8a8Dynamic, dynamic),
            (
                Preset::W8a8Static,
                "weights int8 per-channel symmetric, activations int8 static per-tensor asymmetric",
            ),
            (Preset::W8a16, "weights int8 per-channel symmetric, activations float"),
            (Preset::W4a16, "weights int4 per-group of 64 symmetric, activations float"),
            (Preset::BestInt8, dynamic),
            (Preset::BestInt8Runtime, dynamic),
        ];
        assert_eq!(cases.map(|(preset, _)| preset), Preset::ALL);
        for (preset, text) in cases {
            assert_eq!(Quantization::from(preset).layer_scheme(), preset.scheme());
            assert_eq!(serde_json::to_value(preset).unwrap(), preset.as_str());
            assert_eq!(core::Scheme::from(preset.scheme()).to_string(), text);
            assert_eq!(Quantization::from(preset).transforms.is_none(), !preset.transforms().is_empty());
        }
        for mode in [ActivationMode::Dynamic, ActivationMode::Static] {
            assert_eq!(Preset::of(mode).mode(), Some(mode));
        }
    }
}
