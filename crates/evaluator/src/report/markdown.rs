//! `report.md`: the report for people.

use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use serde::Serialize;

use super::html::heat::{by_loss, name};
use super::latency::{self, LatencyView};
use super::suggestion::suggestion;
use super::{Layer, Metric, NotQuantized, OutlierChannel, Report, escape};

/// How many layers the list of the worst names.
const WORST_LAYERS: usize = 5;
/// How many outlier channels, or tensors of one reason, are named before "and N more".
const NAMED: usize = 3;

/// What the template of the report sees.
#[derive(Serialize)]
struct View<'a> {
    report: &'a Report,
    metrics: Vec<MetricRow<'a>>,
    worst: Option<WorstMetric<'a>>,
    gates_failed: usize,
    latency: Option<LatencyView<'a>>,
    schemes: Vec<SchemeRow<'a>>,
    layers: Vec<LayerRow<'a>>,
    layer_bytes: u64,
    worst_layers: Vec<WorstLayer<'a>>,
    sensitivity: Vec<SensitivityRow>,
    float_groups: Vec<FloatGroup<'a>>,
    float_bytes: u64,
    warnings: Vec<String>,
    unknown_errors: bool,
}

#[derive(Serialize)]
struct WorstMetric<'a> {
    metric: &'a Metric,
    loss: f64,
    significant: bool,
}

#[derive(Serialize)]
struct LayerRow<'a> {
    layer: &'a Layer,
    scheme: String,
    outliers: String,
}

impl Report {
    /// The report as Markdown (GitHub's tables).
    ///
    /// Names come from files of others: they are escaped, so that none can break out of its cell.
    pub fn to_markdown(&self) -> String {
        let schemes = schemes(&self.layers);
        let layer_row = |layer| LayerRow {
            layer,
            scheme: schemes
                .iter()
                .find(|row| row.is_of(layer))
                .map_or_else(String::new, |row| row.name.clone()),
            outliers: outlier_cell(layer),
        };
        let view = View {
            report: self,
            metrics: metric_rows(self),
            worst: self.worst_loss().map(|metric| WorstMetric {
                metric,
                loss: metric.loss(),
                significant: metric.is_significant_loss(),
            }),
            gates_failed: self.gates.iter().filter(|gate| !gate.passed).count(),
            latency: self
                .latency
                .as_ref()
                .map(|found| latency::view(found, |value| escape::activation(Some(value)))),
            layers: self.layers.iter().map(layer_row).collect(),
            layer_bytes: total(self.layers.iter().map(|layer| layer.bytes)),
            worst_layers: worst_layers(&self.layers, self.is_by_gptq()),
            sensitivity: by_loss(&self.sensitivity)
                .into_iter()
                .map(|group| SensitivityRow {
                    name: name(group),
                    scheme: group.scheme.clone(),
                    output_sqnr_db: group.output_sqnr_db,
                    loss: if group.loss.is_finite() { format!("{:.2e}", group.loss) } else { "-".to_owned() },
                })
                .collect(),
            float_groups: float_groups(&self.not_quantized),
            float_bytes: total(self.not_quantized.iter().map(|tensor| tensor.bytes)),
            warnings: warnings(self, str::to_owned),
            unknown_errors: has_unknown_errors(self),
            schemes,
        };
        render("report.md", include_str!("../templates/report.md.jinja"), view)
    }
}

/// Renders one of this crate's templates.
pub(super) fn render(name: &'static str, source: &'static str, view: impl Serialize) -> String {
    let mut environment = Environment::new();
    let syntax =
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("text", |text: &str| escape::text(text));
    environment.add_filter("code", |text: &str| escape::code(text));
    environment.add_filter("yaml", |text: &str| escape::yaml(text));
    environment.add_filter("quoted", |text: &str| escape::quoted(text));
    environment.add_filter("grouped", escape::grouped);
    environment.add_filter("bytes", escape::bytes);
    environment.add_filter("count", escape::count);
    environment.add_filter("metric", escape::metric);
    environment.add_filter("signed", escape::signed);
    environment.add_filter("decibels", escape::decibels);
    environment.add_filter("activation", escape::activation);
    environment.add_filter("percent", escape::percent);
    environment.add_filter("seconds", escape::seconds);
    environment
        .render_named_str(name, source, Serde(view))
        .expect("the templates are part of this crate and every branch of them is tested")
}

/// A row of the table of metrics.
#[derive(Serialize)]
pub(super) struct MetricRow<'a> {
    metric: &'a Metric,
    /// A measured loss beyond two standard errors.
    marked: bool,
}

/// The table of metrics, for the report and the card.
pub(super) fn metric_rows(report: &Report) -> Vec<MetricRow<'_>> {
    let row = |metric| MetricRow { metric, marked: !metric.ideal && metric.is_significant_loss() };
    report.metrics.iter().map(row).collect()
}

/// Whether a metric with a value has a standard error that is not known.
pub(super) fn has_unknown_errors(report: &Report) -> bool {
    report.metrics.iter().any(|metric| metric.delta.is_finite() && !metric.stderr.is_finite())
}

/// What the run warned about, and what its numbers warn about; these are put as `typeset` says.
pub(super) fn warnings(report: &Report, typeset: fn(&str) -> String) -> Vec<String> {
    /// Above this share of clipped values a layer is named.
    const CLIPPED: f64 = 0.01;
    let mut warnings = report.warnings.clone();
    for metric in report.metrics.iter().filter(|metric| !metric.ideal && metric.is_significant_loss()) {
        warnings.push(format!("{} {}: the loss is more than two standard errors.", metric.task, metric.name));
    }
    for gate in report.gates.iter().filter(|gate| !gate.passed) {
        let limit = typeset(&gate.max_drop.to_string());
        let task = format!("{} {}", gate.task, gate.metric);
        warnings.push(if gate.drop.is_nan() {
            format!("{task}: the gate of {limit} is not met, for the loss has no value.")
        } else {
            let drop = typeset(&escape::metric(Some(gate.drop)));
            format!("{task}: lost {drop}, and the gate allows {limit}.")
        });
    }
    let clipped = report
        .layers
        .iter()
        .filter(|layer| layer.clipped_fraction.is_some_and(|share| share > CLIPPED))
        .count();
    if clipped > 0 {
        let layers = if clipped == 1 { "layer clips" } else { "layers clip" };
        warnings.push(format!("{clipped} {layers} more than 1 % of the input's values."));
    }
    if report.metrics.is_empty() {
        warnings.push("No metric was measured: what the quantisation cost is not known.".to_owned());
    }
    if report.self_check.is_none() {
        warnings.push("The written model was not loaded back and compared.".to_owned());
    }
    warnings
}

/// Sizes of a hostile or broken report may not fit into 64 bits; the sum is the largest number then.
fn total(sizes: impl Iterator<Item = u64>) -> u64 {
    sizes.fold(0, u64::saturating_add)
}

/// Float tensors with the same reason and type.
#[derive(Debug, Serialize)]
pub(super) struct FloatGroup<'a> {
    reason: &'a str,
    dtype: &'a str,
    tensors: usize,
    bytes: u64,
    /// The first few names.
    named: Vec<&'a str>,
}

impl FloatGroup<'_> {
    pub(super) fn reason(&self) -> &str {
        self.reason
    }

    pub(super) fn dtype(&self) -> &str {
        self.dtype
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

/// Groups float tensors by reason and type, the most bytes first, equals in the order of the model.
pub(super) fn float_groups(tensors: &[NotQuantized]) -> Vec<FloatGroup<'_>> {
    let mut groups: Vec<FloatGroup<'_>> = Vec::new();
    for tensor in tensors {
        let index = groups
            .iter()
            .position(|group| group.reason == tensor.reason && group.dtype == tensor.dtype)
            .unwrap_or_else(|| {
                let (reason, dtype) = (tensor.reason.as_str(), tensor.dtype.as_str());
                groups.push(FloatGroup { reason, dtype, tensors: 0, bytes: 0, named: Vec::new() });
                groups.len() - 1
            });
        let group = &mut groups[index];
        group.tensors += 1;
        group.bytes = group.bytes.saturating_add(tensor.bytes);
        if group.named.len() < NAMED {
            group.named.push(&tensor.tensor);
        }
    }
    groups.sort_by_key(|group| std::cmp::Reverse(group.bytes));
    groups
}

/// One of the schemes among the layers.
#[derive(Serialize)]
struct SchemeRow<'a> {
    /// A to Z, then numbers.
    name: String,
    weights: &'a str,
    activations: &'a str,
    layers: usize,
}

impl SchemeRow<'_> {
    fn is_of(&self, layer: &Layer) -> bool {
        self.weights == layer.weights && self.activations == layer.activations
    }
}

/// The different schemes among the layers, in order of appearance.
fn schemes(layers: &[Layer]) -> Vec<SchemeRow<'_>> {
    let mut schemes: Vec<SchemeRow<'_>> = Vec::new();
    for layer in layers {
        if let Some(known) = schemes.iter_mut().find(|row| row.is_of(layer)) {
            known.layers += 1;
            continue;
        }
        let name = match u8::try_from(schemes.len()) {
            Ok(index @ 0..26) => char::from(b'A' + index).to_string(),
            _ => (schemes.len() + 1).to_string(),
        };
        schemes.push(SchemeRow { name, weights: &layer.weights, activations: &layer.activations, layers: 1 });
    }
    schemes
}

fn outlier_cell(layer: &Layer) -> String {
    let Some(largest) = largest_outliers(layer).first().copied() else { return String::new() };
    let absmax = escape::activation(Some(largest.absmax));
    match layer.outliers() {
        1 => format!("#{} at {absmax}", largest.channel),
        several => format!("{several}, largest #{} at {absmax}", largest.channel),
    }
}

/// Outlier channels, the largest first.
pub(super) fn largest_outliers(layer: &Layer) -> Vec<&OutlierChannel> {
    let mut channels: Vec<_> = layer.outlier_channels.iter().collect();
    channels.sort_by(|a, b| b.absmax.total_cmp(&a.absmax));
    channels
}

/// A group of Linears that was quantised alone.
#[derive(Serialize)]
struct SensitivityRow {
    name: String,
    scheme: String,
    output_sqnr_db: f64,
    loss: String,
}

/// An entry of the list of the worst layers.
#[derive(Serialize)]
struct WorstLayer<'a> {
    path: &'a str,
    sqnr: String,
    cause: String,
    suggestion: &'static str,
}

/// The layers with the lowest output SQNR, worst first, each with what the numbers say about the cause.
fn worst_layers(layers: &[Layer], by_gptq: bool) -> Vec<WorstLayer<'_>> {
    let mut measured: Vec<(f64, &Layer)> = layers
        .iter()
        .filter_map(|layer| Some((layer.output_sqnr_db.filter(|sqnr| sqnr.is_finite())?, layer)))
        .collect();
    measured.sort_by(|a, b| a.0.total_cmp(&b.0));
    measured.truncate(WORST_LAYERS);
    measured
        .into_iter()
        .map(|(sqnr, layer)| WorstLayer {
            path: &layer.path,
            sqnr: escape::with_unit(sqnr),
            cause: cause(layer),
            suggestion: suggestion(layer, by_gptq),
        })
        .collect()
}

/// What the numbers say about why a layer lost what it lost.
pub(super) fn cause(layer: &Layer) -> String {
    let mut causes = Vec::new();
    let outliers = largest_outliers(layer);
    if !outliers.is_empty() {
        let named: Vec<String> = outliers
            .iter()
            .take(NAMED)
            .map(|outlier| {
                format!("{} (up to {})", outlier.channel, escape::activation(Some(outlier.absmax)))
            })
            .collect();
        let more = match layer.outliers().saturating_sub(named.len() as u64) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let plural = if layer.outliers() == 1 { "" } else { "s" };
        causes.push(format!("outlier input channel{plural} {}{more}", named.join(", ")));
    }
    if let Some(clipped) = layer.clipped_fraction.filter(|&fraction| fraction > 0.0) {
        causes.push(format!("{} of the inputs clipped", escape::percent(Some(clipped))));
    }
    let weights = layer.weight_sqnr_db;
    if let Some(inputs) = layer.activation_sqnr_db
        && weights.is_finite()
        && inputs.is_finite()
    {
        let [w, i] = [weights, inputs].map(escape::with_unit);
        causes.push(match weights.total_cmp(&inputs) {
            std::cmp::Ordering::Less => format!("weights are the weaker side ({w}, inputs {i})"),
            std::cmp::Ordering::Equal => format!("weights and inputs alike ({w})"),
            std::cmp::Ordering::Greater => format!("inputs are the weaker side ({i}, weights {w})"),
        });
    }
    if causes.is_empty() { "no cause measured".to_owned() } else { causes.join("; ") }
}
