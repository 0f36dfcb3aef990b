//! `report.html`: the report as one page that needs nothing beside itself.
//!
//! Everything is drawn here and readable without a script; the page's script adds choosing a layer, sorting and the
//! choice of colours. A content security policy forbids the page every connection and every script but its own: it
//! names them by the report's fingerprint, which a hostile name inside the report cannot know.

pub(super) mod heat;
mod histogram;
mod layers;
mod metrics;
mod size;

use minijinja::{Environment, UndefinedBehavior, syntax::SyntaxConfig, value::Serde};
use serde::{Deserialize, Serialize};
use zeropoint_core::Fingerprint;

use super::latency::{self, LatencyView};
use super::{Report, escape, markdown};
use crate::svg;

/// The style of every page.
pub(crate) const STYLE: &str = include_str!("../templates/page.css");
/// Colours and the sorting of tables.
pub(crate) const PAGE_SCRIPT: &str = include_str!("../templates/page.js");
/// The choice of a layer.
const PICKER_SCRIPT: &str = include_str!("../templates/picker.js");
/// Metrics that the sentence at the top names.
const METRICS_IN_VERDICT: usize = 3;

/// Counts over equal bins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bins {
    /// Lower end of the first bin.
    pub min: f64,
    /// Upper end of the last bin.
    pub max: f64,
    /// Values in each bin.
    pub counts: Vec<u64>,
}

/// The distributions behind one layer, each `None` when it is not at hand.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayerDetails {
    /// Of the float weight.
    pub weights: Option<Bins>,
    /// Of the input, over the calibration data.
    pub activations: Option<Bins>,
    /// Of the float weight before the transforms that changed it.
    pub weights_before: Option<Bins>,
    /// Of the input before the transforms that changed it.
    pub activations_before: Option<Bins>,
}

/// What the page shows beyond `report.json`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Details {
    /// In the order of [`Report::layers`].
    pub layers: Vec<LayerDetails>,
    /// The resolved config, as TOML.
    pub config: Option<String>,
}

/// What the template sees.
#[derive(Serialize)]
struct View<'a> {
    name: &'a str,
    report: &'a Report,
    verdict: Verdict,
    size: size::SizeView,
    metrics: Vec<metrics::MetricRow<'a>>,
    unknown_errors: bool,
    latency: Option<LatencyView<'a>>,
    layers: Vec<layers::LayerRow<'a>>,
    heat: Option<heat::Heat>,
    low_db: f64,
    histograms: bool,
    float_groups: Vec<markdown::FloatGroup<'a>>,
    outliers: bool,
    warnings: Vec<String>,
    scheme: &'a str,
    config: Option<&'a str>,
}

/// The sentence at the top.
#[derive(Serialize)]
struct Verdict {
    /// `good`, `same` or `bad`.
    tone: &'static str,
    ratio: String,
    kept: String,
    losses: Vec<String>,
    more: usize,
    gates: String,
}

impl Report {
    /// The report as one HTML page without any reference outside itself.
    ///
    /// Names come from files of others; they can be nothing but text in it. The same report and details give the same
    /// bytes.
    pub fn to_html(&self, details: &Details) -> String {
        let layers = layers::rows(self, details);
        let view = View {
            name: last_part(&self.model.source),
            report: self,
            verdict: verdict(self),
            size: size::view(self),
            metrics: metrics::rows(self),
            unknown_errors: markdown::has_unknown_errors(self),
            latency: self.latency.as_ref().map(|found| latency::view(found, significant)),
            histograms: details.layers.iter().any(|layer| {
                layer.weights.is_some() || layer.activations.is_some() || layer.activations_before.is_some()
            }),
            heat: heat::heat(self),
            low_db: layers::LOW_DB,
            float_groups: markdown::float_groups(&self.not_quantized),
            outliers: self.layers.iter().any(|layer| !layer.outlier_channels.is_empty()),
            warnings: markdown::warnings(self, svg::typeset),
            // Its name; what it stands for is among the settings.
            scheme: self.settings.scheme.split(':').next().unwrap_or_default(),
            config: details.config.as_deref(),
            layers,
        };
        let title = format!("{}, quantised", last_part(&self.model.source));
        let body = render("report.html", include_str!("../templates/report.html.jinja"), view);
        page(&title, &body, &[STYLE], &[PAGE_SCRIPT, PICKER_SCRIPT])
    }
}

/// A page around its body, which is HTML.
pub(crate) fn page(title: &str, body: &str, styles: &[&str], scripts: &[&str]) -> String {
    #[derive(Serialize)]
    struct Page<'a> {
        title: &'a str,
        body: &'a str,
        style: String,
        script: String,
        nonce: String,
    }
    let nonce = Fingerprint::builder("page").field("title", title).field("body", body).finish().to_string();
    let page = Page { title, body, style: styles.concat(), script: scripts.concat(), nonce };
    render("page.html", include_str!("../templates/page.html.jinja"), page)
}

/// Renders one of this crate's HTML templates. Their names end in `.html`: what is put in is escaped.
pub(crate) fn render(name: &'static str, source: &'static str, view: impl Serialize) -> String {
    let mut environment = Environment::new();
    let syntax =
        SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).keep_trailing_newline(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.add_filter("plain", |text: &str| svg::plain(text));
    environment.add_filter("lines", |text: &str| svg::plain_lines(text));
    environment.add_filter("path", |path: &str| {
        // A long path may break after its parts.
        let path = svg::escape(&svg::plain(path));
        minijinja::Value::from_safe_string(path.replace('.', ".<wbr>").replace('/', "/<wbr>"))
    });
    environment.add_filter("grouped", escape::grouped);
    environment.add_filter("bytes", |bytes: u64| svg::typeset(&escape::bytes(bytes)));
    environment.add_filter("count", |count: u64| svg::typeset(&escape::count(count)));
    environment.add_filter("seconds", |seconds: Option<f64>| svg::typeset(&escape::seconds(seconds)));
    environment
        .render_named_str(name, source, Serde(view))
        .expect("the templates are part of this crate and every branch of them is tested")
}

/// `all-MiniLM-L6-v2` of a Hub id or path that ends so.
fn last_part(source: &str) -> &str {
    source.trim_end_matches('/').rsplit('/').next().unwrap_or(source)
}

fn verdict(report: &Report) -> Verdict {
    let measured: Vec<_> = report.metrics.iter().filter(|metric| !metric.ideal).collect();
    let of_interest = if measured.is_empty() { report.metrics.iter().collect() } else { measured };
    let losses = of_interest
        .iter()
        .take(METRICS_IN_VERDICT)
        .map(|metric| format!("{} {} {}", metric.task, metric.name, metrics::result(metric)))
        .collect();
    let failed = report.gates.iter().filter(|gate| !gate.passed).count();
    let gates = match (report.gates.len(), failed) {
        (0, _) => "No gate was set.".to_owned(),
        (1, 0) => "The gate was met.".to_owned(),
        (1, _) => "The gate was not met.".to_owned(),
        (all, 0) => format!("All {all} gates were met."),
        (all, failed) => format!("{failed} of {all} gates not met."),
    };
    let lost = report.metrics.iter().any(|metric| !metric.ideal && metric.is_significant_loss());
    Verdict {
        tone: match (failed, report.gates.is_empty(), lost) {
            (1.., _, _) => "bad",
            (0, true, true) => "same",
            (0, ..) => "good",
        },
        ratio: ratio(report.size.ratio),
        kept: kept(report.size.original_bytes, report.size.quantized_bytes),
        losses,
        more: of_interest.len().saturating_sub(METRICS_IN_VERDICT),
        gates,
    }
}

/// Three significant digits.
fn significant(value: f64) -> String {
    if value.is_finite() { svg::typeset(&escape::activation(Some(value))) } else { "–".to_owned() }
}

/// `2.64 times smaller`.
fn ratio(ratio: f64) -> String {
    match ratio {
        _ if !ratio.is_finite() => "of unknown size".to_owned(),
        1.0.. => format!("{ratio:.2} times smaller"),
        _ => "not smaller".to_owned(),
    }
}

/// `37.9 % of the bytes`.
pub(crate) fn kept(original: u64, quantized: u64) -> String {
    if original == 0 {
        return "–".to_owned();
    }
    format!("{:.1}\u{a0}%", quantized as f64 / original as f64 * 100.0)
}
