//! The model card: the README.md of the deployable directory.

use serde::Serialize;

use super::markdown::{self, FloatGroup, MetricRow};
use super::{FrontMatter, FrontValue, Report};

/// What a card says beyond the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CardInfo {
    /// The quantised model's name: the title, and the argument of the loading examples.
    pub name: String,
    /// The Hub id of the source; `None` for a local directory, which would mean nothing to a reader.
    pub base_model: Option<String>,
    /// Of the source's card, see [`parse_front_matter`](super::parse_front_matter).
    pub front_matter: FrontMatter,
    /// The transformers class that loads it: `AutoModel`, `AutoModelForSequenceClassification`, ...
    pub auto_class: String,
    /// The transformers class that prepares its inputs: `AutoTokenizer`, `AutoImageProcessor` or `AutoProcessor`.
    pub input_class: String,
    /// Whether it is a `SentenceTransformer` (it has a `modules.json`).
    pub sentence_transformers: bool,
    /// Whether Zeropoint alone loads it: it is not in the compressed-tensors format.
    pub zeropoint_only: bool,
}

/// Tags that say what the weights are, by how the numbers of a layer begin.
const BITS: [&str; 2] = ["int8", "int4"];

/// What the template of the card sees.
#[derive(Serialize)]
struct View<'a> {
    report: &'a Report,
    name: &'a str,
    base_model: Option<&'a str>,
    /// Whether `base_model` can stand in a link as it is.
    linked: bool,
    front: Vec<FrontEntry<'a>>,
    auto_class: &'a str,
    input_class: &'a str,
    /// What the example calls the object of that class.
    input_name: &'a str,
    takes_images: bool,
    sentence_transformers: bool,
    zeropoint_only: bool,
    metrics: Vec<MetricRow<'a>>,
    float_groups: Vec<FloatGroup<'a>>,
}

#[derive(Serialize)]
struct FrontEntry<'a> {
    key: &'a str,
    values: &'a [String],
    list: bool,
}

impl Report {
    /// The model card: YAML front matter as the Hub reads it, then what the model is, how it was made, what it costs
    /// and how to load it.
    ///
    /// The card lies among the model's files, whose bytes follow from config, model and data alone: no time, no machine
    /// and no local path goes into it.
    pub fn to_model_card(&self, card: CardInfo) -> String {
        let FrontMatter(mut front) = card.front_matter;
        let mut tags = front.remove("tags").map_or(Vec::new(), |tags| tags.values().to_vec());
        let format = (!card.zeropoint_only).then_some("compressed-tensors");
        let has = |bits: &&str| self.layers.iter().any(|layer| layer.weights.starts_with(*bits));
        // How the model came about, added to what the source says of itself.
        for tag in format.into_iter().chain(BITS.into_iter().filter(has)).chain(["zeropoint"]) {
            if !tags.iter().any(|known| known == tag) {
                tags.push(tag.to_owned());
            }
        }
        front.insert("tags".to_owned(), FrontValue::Many(tags));
        let view = View {
            report: self,
            name: &card.name,
            base_model: card.base_model.as_deref(),
            linked: card.base_model.as_deref().is_some_and(is_plain_id),
            front: front.iter().map(FrontEntry::new).collect(),
            auto_class: &card.auto_class,
            input_class: &card.input_class,
            input_name: if card.input_class == "AutoTokenizer" { "tokenizer" } else { "processor" },
            takes_images: card.input_class != "AutoTokenizer",
            sentence_transformers: card.sentence_transformers,
            zeropoint_only: card.zeropoint_only,
            metrics: markdown::metric_rows(self),
            float_groups: markdown::float_groups(&self.not_quantized),
        };
        markdown::render("card.md", include_str!("../templates/card.md.jinja"), view)
    }
}

impl<'a> FrontEntry<'a> {
    fn new((key, value): (&'a String, &'a FrontValue)) -> Self {
        Self { key, values: value.values(), list: matches!(value, FrontValue::Many(_)) }
    }
}

/// Whether an id consists of the characters that the Hub allows.
fn is_plain_id(id: &str) -> bool {
    id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'/'))
}
