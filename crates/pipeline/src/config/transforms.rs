//! `[[quantization.transforms]]`: changes of the weights that leave what a model computes as it is and make it easier to quantise.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::{Problem, within};
use super::pattern::Pattern;

/// alpha of `SmoothQuant` where nothing is said.
const STRENGTH: f64 = 0.5;

/// One transform, every setting of its kind filled in and those of others absent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(from = "TransformKeys")]
pub struct Transform {
    /// What is done.
    pub kind: TransformKind,
    /// How much of the range goes from activations to weights, from 0 to 1; of kinds that smooth.
    pub strength: Option<f64>,
    /// Whether the strength is searched for at each input, in place of one for all; of kinds that smooth.
    pub search: Option<bool>,
    /// Whether an online rotation divides channels before.
    pub smooth: Option<bool>,
    /// Whether a rotation turns the residual stream.
    pub residual: Option<bool>,
    /// Whether a rotation turns each head between the value and the output projection.
    pub heads: Option<bool>,
    /// The Linears whose inputs it is for; empty for all; `None` of kinds that are for the whole model.
    pub layers: Option<Vec<Pattern>>,
}

/// What a transform does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum TransformKind {
    /// Channels of activations divided, and weights multiplied, by factors that go into what comes before.
    Smoothquant,
    /// The same, by factors that spare the weights that meet large activations, for weight-only schemes; a strength is searched for at
    /// each input.
    Awq,
    /// Rotations that go into weights: of the residual stream of decoders whose norms are `RMSNorm`, and of heads.
    Rotation,
    /// Inputs rotated when the model runs, which Zeropoint's runtime alone does.
    OnlineRotation,
}

impl TransformKind {
    /// The name used in configs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Smoothquant => "smoothquant",
            Self::Awq => "awq",
            Self::Rotation => "rotation",
            Self::OnlineRotation => "online-rotation",
        }
    }
}

/// A transform as it is written.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct TransformKeys {
    /// What is done.
    kind: TransformKind,
    /// smoothquant and online-rotation: how much of the range goes from activations to weights. Default: 0.5.
    #[schemars(range(min = 0, max = 1))]
    strength: Option<f64>,
    /// smoothquant and online-rotation: whether the strength is searched for at each input, by the error of the Linears that read it
    /// over a few calibration samples. Default: false.
    search: Option<bool>,
    /// online-rotation: whether channels are divided before as by smoothquant, which costs nothing more. Default: true.
    smooth: Option<bool>,
    /// rotation: whether the residual stream is turned. Default: true.
    residual: Option<bool>,
    /// rotation: whether each head is turned between the value and the output projection. Default: true.
    heads: Option<bool>,
    /// smoothquant, awq and online-rotation: only inputs of these Linears: exact names, or `re:` and a regular expression that matches
    /// from the start. Default: all that can be.
    layers: Option<Vec<Pattern>>,
}

impl From<TransformKeys> for Transform {
    fn from(keys: TransformKeys) -> Self {
        let TransformKeys { kind, strength, search, smooth, residual, heads, layers } = keys;
        let is_online = kind == TransformKind::OnlineRotation;
        let is_folded = kind == TransformKind::Rotation;
        let smooth = smooth.or(is_online.then_some(true));
        let smooths = kind == TransformKind::Smoothquant || (is_online && smooth == Some(true));
        Self {
            kind,
            strength: strength.or((smooths && search != Some(true)).then_some(STRENGTH)),
            search: search.or(smooths.then_some(false)),
            smooth,
            residual: residual.or(is_folded.then_some(true)),
            heads: heads.or(is_folded.then_some(true)),
            layers: layers.or((!is_folded).then(Vec::new)),
        }
    }
}

impl Transform {
    /// One of a kind with what is usual.
    pub fn of(kind: TransformKind) -> Self {
        TransformKeys {
            kind,
            strength: None,
            search: None,
            smooth: None,
            residual: None,
            heads: None,
            layers: None,
        }
        .into()
    }

    /// One whose strength is searched for.
    pub fn searched(kind: TransformKind) -> Self {
        Self { strength: None, search: Some(true), ..Self::of(kind) }
    }

    pub(super) fn check(&self, at: &str) -> Result<(), Problem> {
        let is_folded = self.kind == TransformKind::Rotation;
        let is_online = self.kind == TransformKind::OnlineRotation;
        let takes_strength = is_online || self.kind == TransformKind::Smoothquant;
        for (key, given, belongs) in [
            ("strength", self.strength.is_some(), takes_strength),
            ("search", self.search.is_some(), takes_strength),
            ("smooth", self.smooth.is_some(), is_online),
            ("residual", self.residual.is_some(), is_folded),
            ("heads", self.heads.is_some(), is_folded),
            ("layers", self.layers.is_some(), !is_folded),
        ] {
            if given && !belongs {
                let path = format!("{at}.{key}");
                let message = format!("`{path}` is given, but the transform is \"{}\"", self.kind.as_str());
                return Err(Problem::new(path, message)
                    .label("of another kind")
                    .related(format!("{at}.kind"), "the kind")
                    .hint(format!("remove `{key}`")));
            }
        }
        if is_folded && self.residual == Some(false) && self.heads == Some(false) {
            let message = format!("`{at}` rotates nothing: `residual` and `heads` are both false");
            return Err(Problem::new(at, message).label("does nothing").hint("remove it"));
        }
        for (key, given) in [("strength", self.strength.is_some()), ("search", self.search.is_some())] {
            if given && self.smooth == Some(false) {
                let path = format!("{at}.{key}");
                let message = format!("`{path}` is given, but `smooth` is false");
                return Err(Problem::new(path, message)
                    .label("of smoothing")
                    .related(format!("{at}.smooth"), "which this leaves out")
                    .hint(format!("remove `{key}` or `smooth`")));
            }
        }
        if self.strength.is_some() && self.search == Some(true) {
            let path = format!("{at}.strength");
            let message = format!("`{path}` is given, but `search` is true");
            return Err(Problem::new(path, message)
                .label("to be searched for")
                .related(format!("{at}.search"), "by this")
                .hint("remove `strength` or `search`"));
        }
        for (index, pattern) in self.layers.iter().flatten().enumerate() {
            pattern.check(&format!("{at}.layers.{index}"))?;
        }
        self.strength.map_or(Ok(()), |strength| within(&format!("{at}.strength"), strength, 0.0..=1.0))
    }

    /// For the name of a scheme in reports.
    pub fn in_words(&self) -> String {
        let mut words = self.kind.as_str().to_owned();
        if let Some(strength) = self.strength {
            words = format!("{words} {strength}");
        }
        if self.search == Some(true) {
            words.push_str(" searched");
        }
        match (self.residual, self.heads) {
            (Some(true), Some(false)) => words.push_str(" of the residual stream"),
            (Some(false), Some(true)) => words.push_str(" of heads"),
            _ => {}
        }
        match self.layers.as_deref() {
            Some([]) | None => words,
            Some([one]) => format!("{words} of `{}`", one.as_str()),
            Some(several) => format!("{words} of {} patterns", several.len()),
        }
    }
}
