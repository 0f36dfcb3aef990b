//! The plan: for every Linear, whether and how it becomes INT8, decided before any weight is read.

use std::collections::BTreeSet;

use thiserror::Error;
use zeropoint_core::{Granularity, Scheme};
use zeropoint_formats::DirectoryFormat;
use zeropoint_formats::deployed::INT8_HEAD;
use zeropoint_models::{LinearId, LinearRole, ModelSpec};
use zeropoint_observer::{RangeObserver, WeightObserver};

use crate::Pattern;

/// How weights are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum WeightAlgorithm {
    /// To nearest.
    #[default]
    Rtn,
    /// GPTQ: for the inputs that calibration shows.
    Gptq {
        /// What is added to the diagonal of the second moments, as a fraction of its mean.
        damping: f64,
    },
}

/// A scheme with the observers that choose its ranges.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerScheme {
    /// Number formats.
    pub scheme: Scheme,
    /// How weight ranges are chosen.
    pub weight_observer: WeightObserver,
    /// How static activation ranges are chosen; not used by dynamic activations.
    pub range_observer: RangeObserver,
}

/// Another scheme for some layers.
#[derive(Debug, Clone)]
pub struct LayerOverride {
    /// The layers it is for.
    pub layers: Vec<Pattern>,
    /// Their scheme; `None` leaves them float.
    pub scheme: Option<LayerScheme>,
}

/// How embedding tables are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EmbeddingPrecision {
    /// As in the source.
    Keep,
    /// Rounded to bfloat16 (a source that is 16-bit already is kept).
    Bf16,
    /// INT8, symmetric with a scale for each row. Zeropoint's own format carries it.
    Int8,
}

/// How the logits of a model that continues texts are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeadPrecision {
    /// As other Linears are: float, unless it is named.
    Keep,
    /// INT8, a scale for each output, activations dynamic and symmetric per token.
    Int8,
}

/// What the user asks for.
#[derive(Debug, Clone)]
pub struct PlanRequest {
    /// The scheme of every layer that nothing else is said of.
    pub scheme: LayerScheme,
    /// Layers left float; `None` means what the model's description advises: poolers and classifiers.
    pub ignore: Option<Vec<Pattern>>,
    /// Per-layer exceptions; the last one that matches wins.
    pub overrides: Vec<LayerOverride>,
    /// How weights are rounded.
    pub algorithm: WeightAlgorithm,
    /// Whether biases take up what rounding changes of the mean of each output.
    pub bias_correction: bool,
    /// How embedding tables are stored.
    pub embeddings: EmbeddingPrecision,
    /// How logits over a vocabulary are made; decides for that Linear whatever else is said of it.
    pub lm_head: HeadPrecision,
    /// Of the directory that is written.
    pub format: DirectoryFormat,
}

/// What happens to one Linear.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// It becomes INT8.
    Quantize(LayerScheme),
    /// It stays as it is, for this reason.
    Keep {
        /// For the report.
        reason: String,
    },
}

/// The plan of one Linear.
#[derive(Debug, Clone, PartialEq)]
pub struct LinearPlan {
    /// Which.
    pub linear: LinearId,
    /// Its module path.
    pub path: String,
    /// What happens to it.
    pub decision: Decision,
}

impl LinearPlan {
    /// Its scheme, if it becomes INT8.
    pub fn scheme(&self) -> Option<&LayerScheme> {
        match &self.decision {
            Decision::Quantize(scheme) => Some(scheme),
            Decision::Keep { .. } => None,
        }
    }
}

/// What happens to every Linear of a model, in the order of its description.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// One for each Linear, by [`LinearId`].
    pub linears: Vec<LinearPlan>,
    /// How weights are rounded, those of tables apart, which are rounded to nearest.
    pub algorithm: WeightAlgorithm,
    /// Whether biases take up what rounding changes of the mean of each output.
    pub bias_correction: bool,
    /// How embedding tables are stored.
    pub embeddings: EmbeddingPrecision,
    /// Of the directory that is written.
    pub format: DirectoryFormat,
    /// Things that work but that the user should know.
    pub warnings: Vec<String>,
}

/// Why a request does not fit a model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PlanError {
    /// A pattern names no layer.
    #[error("{place}: pattern `{pattern}` matches no Linear of the model")]
    NoMatch {
        /// Where in the config.
        place: String,
        /// The pattern.
        pattern: String,
        /// Up to three, comma-separated.
        nearest: String,
    },
    /// An override names only layers that are ignored.
    #[error(
        "{place}: pattern `{pattern}` matches only layers that `quantization.ignore` leaves float ({first}; by default \
         poolers and classifiers); give `ignore` without them"
    )]
    OnlyIgnored {
        /// Where in the config.
        place: String,
        /// The pattern.
        pattern: String,
        /// One such layer.
        first: String,
    },
    /// An INT8 head for a model that has none of its kind.
    #[error(
        "`quantization.lm_head` is \"int8\", but {architecture} has no output matrix that continues texts; remove `lm_head`"
    )]
    NoLanguageHead {
        /// The architecture.
        architecture: String,
    },
    /// INT8 tables in a format that does not carry them.
    #[error(
        "`quantization.embeddings` is \"int8\", which compressed-tensors does not carry; write `output.formats = \
         [\"zeropoint\"]` for a directory that only Zeropoint loads, or `embeddings = \"bf16\"`"
    )]
    Int8Tables,
    /// A static scheme for a Linear that no calibration reaches.
    #[error(
        "`{path}` is to have static activations, but the task does not run it, so its input is never observed; add it \
         to `quantization.ignore` or give it the scheme `w8a8-dynamic`"
    )]
    NeverObserved {
        /// The Linear.
        path: String,
    },
    /// A Linear that no deployable format carries in INT8.
    #[error("`{path}` cannot be quantised ({reason}); add it to `quantization.ignore`")]
    Impossible {
        /// The Linear.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// An expert of a mixture, which no deployable format carries in INT8.
    #[error(
        "`{path}` cannot be quantised ({reason}); leave the experts float: \
         `[[quantization.overrides]]` with `layers = [\"re:.*\\\\.experts\\\\.\"]` and `scheme = \"none\"`"
    )]
    Expert {
        /// The Linear.
        path: String,
        /// Why.
        reason: &'static str,
    },
    /// Biases to be corrected where there is none.
    #[error(
        "`quantization.bias_correction` is true, but no Linear of {architecture} that is quantised has a bias; remove it"
    )]
    NoBias {
        /// The architecture.
        architecture: String,
    },
    /// Groups of columns that do not come out even.
    #[error("`{path}` has {inputs} inputs, which are no whole groups of {size}; {}", group_advice(sizes))]
    Groups {
        /// The Linear.
        path: String,
        /// Its columns.
        inputs: usize,
        /// As asked for.
        size: usize,
        /// Sizes from 8 to 256 that divide the inputs of every Linear that is to have groups.
        sizes: Vec<usize>,
    },
    /// Rotated inputs in a format that does not carry them.
    #[error(
        "`quantization.transforms` rotates inputs when the model runs, which compressed-tensors does not carry; write \
         `output.formats = [\"zeropoint\"]` for a directory that only Zeropoint loads, or take `kind = \"rotation\"`, which goes \
         into the weights"
    )]
    OnlineRotation,
    /// Nothing at all can be quantised.
    #[error(
        "none of the {count} Linears can be quantised, such as `{path}`: {reason}; choose another model, or measure this one as it is"
    )]
    NothingPossible {
        /// How many Linears there are.
        count: usize,
        /// Module path of the first.
        path: String,
        /// What is in the way of the first.
        reason: &'static str,
    },
    /// Nothing at all would be quantised.
    #[error(
        "the plan quantises nothing: `quantization.ignore` and `quantization.overrides` leave all {count} Linears float; \
         take some out"
    )]
    Nothing {
        /// How many Linears there are.
        count: usize,
    },
}

fn group_advice(sizes: &[usize]) -> String {
    let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
    match sizes.as_slice() {
        [] => "no size from 8 to 256 divides the inputs of all of them: write `granularity = \"channel\"`, or leave some out with \
               `quantization.overrides`"
            .to_owned(),
        sizes => format!("sizes that divide the inputs of all Linears with groups: {}", sizes.join(", ")),
    }
}

impl Plan {
    /// Decides for every Linear of `spec`.
    pub fn new(spec: &ModelSpec, request: &PlanRequest) -> Result<Self, PlanError> {
        let paths: Vec<&str> = spec.linears.iter().map(|linear| linear.path.as_str()).collect();
        check_patterns(&paths, "quantization.ignore", request.ignore.iter().flatten())?;
        for (i, exception) in request.overrides.iter().enumerate() {
            check_patterns(&paths, &format!("quantization.overrides.{i}.layers"), &exception.layers)?;
        }
        let format = request.format;
        if request.embeddings == EmbeddingPrecision::Int8 && format == DirectoryFormat::CompressedTensors {
            return Err(PlanError::Int8Tables);
        }
        if spec.sites.iter().any(|site| site.rotation.is_some())
            && format == DirectoryFormat::CompressedTensors
        {
            return Err(PlanError::OnlineRotation);
        }
        let head = match request.lm_head {
            HeadPrecision::Keep => None,
            HeadPrecision::Int8 => Some(
                spec.language_head()
                    .ok_or_else(|| PlanError::NoLanguageHead { architecture: spec.architecture.clone() })?,
            ),
        };
        let obstacles = spec.linears.iter().map(|linear| linear.obstacle(format)).collect::<Option<Vec<_>>>();
        if let (Some(obstacles), Some(first)) = (obstacles, spec.linears.first()) {
            let (count, path) = (obstacles.len(), first.path.clone());
            return Err(PlanError::NothingPossible { count, path, reason: obstacles[0] });
        }
        let mut linears = Vec::with_capacity(spec.linears.len());
        for (id, linear) in spec.linears.iter().enumerate() {
            if head == Some(id) {
                let decision = Decision::Quantize(head_scheme(&request.scheme));
                linears.push(LinearPlan { linear: id, path: linear.path.clone(), decision });
                continue;
            }
            // The role says more than that a list names it, and the same whether the list is given or the default.
            let by_role = linear.default_ignore_reason(format).map(str::to_owned);
            let ignored = match &request.ignore {
                Some(patterns) => {
                    patterns.iter().find(|pattern| pattern.matches(&linear.path)).map(|pattern| {
                        by_role.unwrap_or_else(|| format!("`quantization.ignore` names it (`{pattern}`)"))
                    })
                }
                None => by_role,
            };
            let exception = request
                .overrides
                .iter()
                .rev()
                .find(|exception| exception.layers.iter().any(|pattern| pattern.matches(&linear.path)));
            let decision = match (ignored, exception) {
                (Some(reason), _) => Decision::Keep { reason },
                (None, Some(LayerOverride { scheme: None, .. })) => {
                    Decision::Keep { reason: "an override gives it the scheme `none`".to_owned() }
                }
                (None, Some(LayerOverride { scheme: Some(scheme), .. })) => Decision::Quantize(*scheme),
                (None, None) => Decision::Quantize(request.scheme),
            };
            if let (Decision::Quantize(_), Some(reason)) = (&decision, linear.obstacle(format)) {
                let path = linear.path.clone();
                return Err(match linear.role {
                    LinearRole::Expert => PlanError::Expert { path, reason },
                    _ => PlanError::Impossible { path, reason },
                });
            }
            if let (Decision::Quantize(scheme), None) = (&decision, linear.site)
                && scheme.scheme.is_static()
            {
                return Err(PlanError::NeverObserved { path: linear.path.clone() });
            }
            linears.push(LinearPlan { linear: id, path: linear.path.clone(), decision });
        }
        check_overrides(&linears, request)?;
        check_groups(spec, &linears)?;
        // A table that is rounded when it is loaded makes no quantised directory.
        let is_tied = |id: LinearId| spec.linears[id].role == LinearRole::TiedDecoder;
        if linears.iter().all(|linear| linear.scheme().is_none() || is_tied(linear.linear)) {
            return Err(PlanError::Nothing { count: linears.len() });
        }
        let mut warnings = without_effect(&linears, request);
        warnings.extend(head.and_then(|head| decided_by_head(&linears[head].path, &linears, request)));
        warnings.extend(split_sites(spec, &linears));
        warnings.extend(float_experts(spec, &linears));
        if format == DirectoryFormat::Zeropoint {
            warnings.push(
                "`output.formats` is [\"zeropoint\"]: only Zeropoint loads the result, transformers and vLLM refuse it"
                    .to_owned(),
            );
        }
        let (algorithm, bias_correction) = (request.algorithm, request.bias_correction);
        let has_bias =
            |plan: &LinearPlan| plan.scheme().is_some() && spec.linears[plan.linear].bias.is_some();
        if bias_correction && !linears.iter().any(has_bias) {
            return Err(PlanError::NoBias { architecture: spec.architecture.clone() });
        }
        Ok(Self { linears, algorithm, bias_correction, embeddings: request.embeddings, format, warnings })
    }

    /// The Linears that become INT8, with their schemes.
    pub fn quantized(&self) -> impl Iterator<Item = (&LinearPlan, &LayerScheme)> {
        self.linears.iter().filter_map(|linear| Some((linear, linear.scheme()?)))
    }

    /// The output matrix that becomes INT8 though it is an embedding table, with its scheme.
    pub fn tied_head(&self, spec: &ModelSpec) -> Option<(LinearId, &LayerScheme)> {
        let quantized = self.quantized().map(|(linear, scheme)| (linear.linear, scheme));
        quantized.into_iter().find(|(id, _)| spec.linears[*id].role == LinearRole::TiedDecoder)
    }

    /// Whether any activation needs calibration.
    pub fn needs_statistics(&self) -> bool {
        self.quantized().any(|(_, scheme)| scheme.scheme.is_static())
    }
}

/// Weights as those of the other layers have their ranges; each token has a scale of its own, whatever the others have.
fn head_scheme(layers: &LayerScheme) -> LayerScheme {
    LayerScheme { scheme: INT8_HEAD, ..*layers }
}

/// An override of the head alone, which `lm_head` decides.
fn decided_by_head(head: &str, linears: &[LinearPlan], request: &PlanRequest) -> Option<String> {
    let only_head = |exception: &LayerOverride| {
        let mut matched = linears
            .iter()
            .filter(|plan| exception.layers.iter().any(|pattern| pattern.matches(&plan.path)))
            .peekable();
        matched.peek().is_some() && matched.all(|plan| plan.path == head)
    };
    let index = request.overrides.iter().position(only_head)?;
    Some(format!(
        "`quantization.overrides.{index}` has no effect: `quantization.lm_head` decides `{head}`, which is all it names"
    ))
}

pub(crate) fn check_patterns<'a>(
    paths: &[&str],
    place: &str,
    patterns: impl IntoIterator<Item = &'a Pattern>,
) -> Result<(), PlanError> {
    for pattern in patterns {
        if !paths.iter().any(|path| pattern.matches(path)) {
            return Err(PlanError::NoMatch {
                place: place.to_owned(),
                pattern: pattern.to_string(),
                nearest: nearest(pattern.as_str(), paths),
            });
        }
    }
    Ok(())
}

/// The three names nearest to a pattern, as a list for a sentence.
fn nearest(pattern: &str, paths: &[&str]) -> String {
    let wanted = pattern.strip_prefix("re:").unwrap_or(pattern).replace('\\', "");
    let mut scored: Vec<(f64, &str)> =
        paths.iter().map(|path| (strsim::jaro_winkler(&wanted, path), *path)).collect();
    scored.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    scored.iter().take(3).map(|(_, path)| format!("`{path}`")).collect::<Vec<_>>().join(", ")
}

/// Every row of a weight with groups must have whole ones.
fn check_groups(spec: &ModelSpec, linears: &[LinearPlan]) -> Result<(), PlanError> {
    const SIZES: std::ops::RangeInclusive<usize> = 8..=256;
    let size_of = |plan: &LinearPlan| match plan.scheme()?.scheme.weights.granularity {
        Granularity::Group(size) => Some((plan.linear, size)),
        _ => None,
    };
    let grouped: Vec<(LinearId, usize)> = linears.iter().filter_map(size_of).collect();
    let divides = |size: usize, id: LinearId| size > 0 && spec.linears[id].inputs.is_multiple_of(size);
    let Some((id, size)) = grouped.iter().copied().find(|(id, size)| !divides(*size, *id)) else {
        return Ok(());
    };
    let sizes = SIZES.filter(|size| grouped.iter().all(|(id, _)| divides(*size, *id))).collect();
    Err(PlanError::Groups {
        path: spec.linears[id].path.clone(),
        inputs: spec.linears[id].inputs,
        size,
        sizes,
    })
}

/// An override whose every layer is ignored would be without effect, silently.
fn check_overrides(linears: &[LinearPlan], request: &PlanRequest) -> Result<(), PlanError> {
    for (i, exception) in request.overrides.iter().enumerate() {
        for pattern in &exception.layers {
            let mut matched = linears.iter().filter(|plan| pattern.matches(&plan.path)).peekable();
            let Some(first) = matched.peek().map(|plan| plan.path.clone()) else { continue };
            if matched.all(|plan| is_ignored(plan, request)) {
                return Err(PlanError::OnlyIgnored {
                    place: format!("quantization.overrides.{i}.layers"),
                    pattern: pattern.to_string(),
                    first,
                });
            }
        }
    }
    Ok(())
}

/// Whether `ignore`, given or by default, leaves a Linear float, whatever the overrides say of it.
fn is_ignored(plan: &LinearPlan, request: &PlanRequest) -> bool {
    match (&plan.decision, &request.ignore) {
        (Decision::Quantize(_), _) => false,
        (Decision::Keep { .. }, Some(patterns)) => patterns.iter().any(|p| p.matches(&plan.path)),
        (Decision::Keep { reason }, None) => !reason.starts_with("an override"),
    }
}

/// Overrides whose every layer a later one decides.
fn without_effect(linears: &[LinearPlan], request: &PlanRequest) -> Vec<String> {
    let matches =
        |i: usize, path: &str| request.overrides[i].layers.iter().any(|pattern| pattern.matches(path));
    let called = |i: usize| {
        let patterns: Vec<String> = request.overrides[i].layers.iter().map(|p| format!("`{p}`")).collect();
        format!("`quantization.overrides.{i}` ({})", patterns.join(", "))
    };
    let mut warnings = Vec::new();
    for i in 0..request.overrides.len() {
        let deciding = linears
            .iter()
            .filter(|plan| matches(i, &plan.path) && !is_ignored(plan, request))
            .map(|plan| (i..request.overrides.len()).rev().find(|&j| matches(j, &plan.path)));
        let deciding: BTreeSet<usize> = deciding.flatten().collect();
        if deciding.is_empty() || deciding.contains(&i) {
            continue;
        }
        let later: Vec<String> = deciding.into_iter().map(called).collect();
        warnings.push(format!(
            "{} has no effect: every layer it names is decided by {}, where the last one holds",
            called(i),
            later.join(" and ")
        ));
    }
    warnings
}

/// What a reader of the result sees of a scheme: how weight ranges were chosen is not part of it, and how activation
/// ranges were chosen only where they are static.
fn as_read(layer: &LayerScheme) -> (Scheme, Option<RangeObserver>) {
    (layer.scheme, layer.scheme.is_static().then_some(layer.range_observer))
}

/// Found with transformers 5.23 and 5.24 and compressed-tensors 0.20: whatever else a mixture's config quantises, its experts are
/// looked for in packed form.
fn float_experts(spec: &ModelSpec, linears: &[LinearPlan]) -> Option<String> {
    let is_float =
        |plan: &LinearPlan| spec.linears[plan.linear].role == LinearRole::Expert && plan.scheme().is_none();
    linears.iter().any(is_float).then(|| {
        "the experts stay float: Zeropoint loads the result, and transformers 5.23 and 5.24 do not, which look for packed \
         experts beside INT8 Linears"
            .to_owned()
    })
}

/// vLLM fuses Linears that read one activation; a site whose readers differ loads in `transformers` alone. Sites whose names
/// differ in numbers alone are told together.
fn split_sites(spec: &ModelSpec, linears: &[LinearPlan]) -> Vec<String> {
    let differs = |site: &&zeropoint_models::Site| {
        let mut seen = site.consumers.iter().map(|&id| linears[id].scheme().map(as_read));
        let first = seen.next().flatten();
        seen.any(|scheme| scheme != first)
    };
    let mut alike: Vec<(String, String, usize)> = Vec::new();
    for site in spec.sites.iter().filter(differs) {
        let names: Vec<&str> = site.consumers.iter().map(|&id| linears[id].path.as_str()).collect();
        let names = names.join(", ");
        let pattern: String = names.chars().filter(|c| !c.is_ascii_digit()).collect();
        match alike.iter_mut().find(|(other, ..)| *other == pattern) {
            Some((.., more)) => *more += 1,
            None => alike.push((pattern, names, 0)),
        }
    }
    let told = |(_, names, more): (String, String, usize)| {
        let more = if more == 0 { String::new() } else { format!(" (and {more} more such groups)") };
        format!(
            "{names}{more} read one activation but are quantised differently; vLLM, which fuses them, cannot load the result"
        )
    };
    alike.into_iter().map(told).collect()
}
