//! A data file as it is named in a config: the path, the format, and which column holds what.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de};
use zeropoint_calibrator::dataset;

use super::error::{Problem, list, not_blank};

/// A data file: its path alone, or a table that also says how to read it.
///
/// What the table leaves out follows from the path, and every field holds what will be used: the format is that of the
/// extension (`.jsonl`, `.txt`, `.csv`, `.tsv`, `.parquet`; a path that ends in `/` is a folder of images), and each column is
/// called as its key is (`text = "text"`). A CSV file
/// without a header has no names: there only the columns that are given by index exist.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "DataSourceKeys")]
pub struct DataSource {
    /// UTF-8, as everything in a config. Relative to the current directory; or a file of a data set of the hub,
    /// `hub:owner/name/path` or `hub:owner/name@revision/path`.
    pub path: String,
    /// How the file is read.
    pub format: DataFormat,
    /// Whether the first line names the columns; `Some` for CSV only.
    pub header: Option<bool>,
    /// What separates the columns, one ASCII character; `Some` for CSV only.
    pub delimiter: Option<char>,
    /// The column of single texts.
    pub text: Option<Column>,
    /// The column of the first text of a pair.
    pub text_a: Option<Column>,
    /// The column of the second text of a pair.
    pub text_b: Option<Column>,
    /// The column of the gold similarity of a pair, a number on any linear scale.
    pub score: Option<Column>,
    /// The column of the gold class of a text or image.
    pub label: Option<Column>,
    /// The name of the prompt before each text, of those in the model's files.
    pub prompt: Option<String>,
    /// The prompt itself; empty for none.
    pub prompt_text: Option<String>,
    /// As `prompt`, before the second text of a pair or the documents of a ranking.
    pub prompt_b: Option<String>,
    /// As `prompt_text`, before the second text of a pair or the documents of a ranking.
    pub prompt_text_b: Option<String>,
    /// The column of the path of an image, relative to the folder of the data file.
    pub image: Option<Column>,
    /// The field of a conversation, of JSON lines only.
    pub messages: Option<String>,
}

/// How a data file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DataFormat {
    /// One JSON object on each line.
    Jsonl,
    /// One text on each line.
    Txt,
    /// One text, the whole file.
    Document,
    /// Separated columns.
    Csv,
    /// Apache Parquet.
    Parquet,
    /// A folder of images, all in one or in a folder for each label.
    Images,
}

/// A column, or field of a JSON object: a name, or an index from 0 in a CSV file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
pub enum Column {
    /// By name.
    Name(String),
    /// By index, from 0.
    Index(#[schemars(range(max = MOST_COLUMNS - 1))] usize),
}

/// What a data file is used for, which decides the columns it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// Texts; a pair counts as two.
    Texts,
    /// Pairs of texts with a similarity.
    ScoredPairs,
    /// Texts or images with a class.
    LabelledTexts,
    /// JSON lines with fields of their own, for a task of this kind.
    Rows(&'static str),
    /// Images with a class.
    LabelledImages,
    /// One text, the whole file.
    Document(&'static str),
}

const MOST_COLUMNS: usize = 10_000;

/// A data source as it is written.
#[derive(JsonSchema)]
#[schemars(untagged)]
enum DataSourceKeys {
    /// A path; everything else by default.
    Path(String),
    /// A path and how to read the file.
    Table(Box<DataSourceTable>),
}

/// A path and how to read the file.
#[derive(Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct DataSourceTable {
    /// Relative paths start at the current directory; `hub:owner/name/path` is a file of a data set of the hub.
    path: String,
    /// By default from the extension: .jsonl, .txt, .csv, .tsv or .parquet; a path that ends in `/` is a folder of images.
    format: Option<DataFormat>,
    /// CSV only: whether the first line names the columns. Default: true.
    header: Option<bool>,
    /// CSV only: what separates the columns, one ASCII character. Default: a comma, or a tab for .tsv.
    delimiter: Option<char>,
    /// The column of single texts. Default: "text".
    text: Option<Column>,
    /// The column of the first text of a pair. Default: `text_a`.
    text_a: Option<Column>,
    /// The column of the second text of a pair. Default: `text_b`.
    text_b: Option<Column>,
    /// The column of the gold similarity of a pair. Default: "score".
    score: Option<Column>,
    /// The column of the gold class of a text or image, or of a list of labels (in csv with `|` between them). Default: "label".
    label: Option<Column>,
    /// For sentence encoders: the prompt that is put before each text, by its name in the model's
    /// `config_sentence_transformers.json`. Default: the one that the file names as its default, if any.
    prompt: Option<String>,
    /// Instead of `prompt`, the text itself, such as "query: "; "" for none.
    prompt_text: Option<String>,
    /// As `prompt`, for the second text of a pair and the documents of a reranking task. Default: that of the first.
    prompt_b: Option<String>,
    /// Instead of `prompt_b`, the text itself; "" for none.
    prompt_text_b: Option<String>,
    /// The column of the path of an image, relative to the folder of the data file. Default: "image".
    image: Option<Column>,
    /// JSON lines, for calibration and fidelity: the field of a conversation, a list of objects with `role` and `content`, of
    /// which the model's chat template makes a text. Default: "messages", read in rows without a text.
    messages: Option<String>,
}

impl TryFrom<DataSourceKeys> for DataSource {
    type Error = String;

    fn try_from(keys: DataSourceKeys) -> Result<Self, String> {
        let keys = match keys {
            DataSourceKeys::Path(path) => DataSourceTable { path, ..DataSourceTable::default() },
            DataSourceKeys::Table(table) => *table,
        };
        let extension = std::path::Path::new(&keys.path).extension().and_then(|extension| extension.to_str());
        let extension = extension.map(str::to_ascii_lowercase);
        let by_extension = match extension.as_deref() {
            Some("jsonl") => Some(DataFormat::Jsonl),
            Some("txt") => Some(DataFormat::Txt),
            Some("csv" | "tsv") => Some(DataFormat::Csv),
            Some("parquet") => Some(DataFormat::Parquet),
            _ if keys.path.ends_with('/') => Some(DataFormat::Images),
            _ => None,
        };
        let Some(format) = keys.format.or(by_extension) else {
            return Err(format!(
                "the format of {} does not follow from its extension\n\
                 use .jsonl, .txt, .csv, .tsv or .parquet, or write {{ path = \"...\", format = \"jsonl\" }} (or \"txt\", \
                 \"document\", \"csv\", \"parquet\"); \
                 a folder of images ends in \"/\"",
                super::error::quoted(&keys.path)
            ));
        };
        let is_csv = format == DataFormat::Csv;
        // A column number says that there are no names to go by.
        let given = [&keys.text, &keys.text_a, &keys.text_b, &keys.score, &keys.label, &keys.image];
        let numbered = given.iter().any(|column| matches!(column, Some(Column::Index(_))));
        let header = keys.header.or(is_csv.then_some(!numbered));
        let delimiter = if extension.as_deref() == Some("tsv") { '\t' } else { ',' };
        let named = match format {
            DataFormat::Jsonl | DataFormat::Parquet => true,
            DataFormat::Txt | DataFormat::Document | DataFormat::Images => false,
            DataFormat::Csv => header == Some(true),
        };
        let column = |given: Option<Column>, name: &str| {
            given.or_else(|| named.then(|| Column::Name(name.to_owned())))
        };
        Ok(Self {
            format,
            header,
            delimiter: keys.delimiter.or(is_csv.then_some(delimiter)),
            text: column(keys.text, "text"),
            text_a: column(keys.text_a, "text_a"),
            text_b: column(keys.text_b, "text_b"),
            score: column(keys.score, "score"),
            label: column(keys.label, "label"),
            prompt: keys.prompt,
            prompt_text: keys.prompt_text,
            prompt_b: keys.prompt_b,
            prompt_text_b: keys.prompt_text_b,
            image: column(keys.image, "image"),
            messages: keys
                .messages
                .or_else(|| (format == DataFormat::Jsonl).then(|| dataset::MESSAGES.to_owned())),
            path: keys.path,
        })
    }
}

impl DataSource {
    fn columns(&self) -> [(&'static str, Option<&Column>); 6] {
        [
            ("text", self.text.as_ref()),
            ("text_a", self.text_a.as_ref()),
            ("text_b", self.text_b.as_ref()),
            ("score", self.score.as_ref()),
            ("label", self.label.as_ref()),
            ("image", self.image.as_ref()),
        ]
    }

    pub(super) fn check(&self, at: &str, used_for: Use) -> Result<(), Problem> {
        not_blank(&format!("{at}.path"), &self.path)?;
        let is_csv = self.format == DataFormat::Csv;
        for (key, given) in [("header", self.header.is_some()), ("delimiter", self.delimiter.is_some())] {
            if given && !is_csv {
                let message = format!("`{at}.{key}` is given, but only a csv file has one");
                return Err(Problem::new(format!("{at}.{key}"), message)
                    .label("only for csv")
                    .related(format!("{at}.path"), "not a csv file")
                    .hint(format!("remove `{key}`")));
            }
        }
        if let Some(delimiter) = self.delimiter
            && (!delimiter.is_ascii()
                || (delimiter.is_ascii_control() && delimiter != '\t')
                || delimiter == '"')
        {
            let message = format!("`{at}.delimiter` must be one ASCII character, not a quote or a line end");
            return Err(Problem::new(format!("{at}.delimiter"), message)
                .label("cannot separate columns")
                .hint("allowed: for example \",\" or \"\\t\""));
        }
        for (key, column) in self.columns() {
            let path = format!("{at}.{key}");
            match column {
                None => {}
                Some(_) if self.format == DataFormat::Txt => {
                    let message =
                        format!("`{path}` is given, but a txt file has no columns: each line is a text");
                    return Err(Problem::new(path, message)
                        .label("there are no columns")
                        .related(format!("{at}.path"), "a txt file")
                        .hint(format!("remove `{key}`")));
                }
                Some(_) if self.format == DataFormat::Document => {
                    let message =
                        format!("`{path}` is given, but a document has no columns: the file is one text");
                    return Err(Problem::new(path, message)
                        .label("there are no columns")
                        .related(format!("{at}.path"), "a document")
                        .hint(format!("remove `{key}`")));
                }
                Some(_) if self.format == DataFormat::Images => {
                    let message = format!(
                        "`{path}` is given, but a folder of images has no columns: the folder of an image is its label"
                    );
                    return Err(Problem::new(path, message).hint(format!("remove `{key}`")));
                }
                Some(Column::Name(name)) => {
                    not_blank(&path, name)?;
                    if is_csv && self.header == Some(false) {
                        let message =
                            format!("`{path}` is a name, but this csv file has no header to find it in");
                        return Err(Problem::new(path, message)
                            .label("a name")
                            .related(format!("{at}.header"), "no names")
                            .hint("give the index of the column, from 0"));
                    }
                }
                Some(Column::Index(index)) => {
                    if !is_csv {
                        let message =
                            format!("`{path}` is an index, but the fields of jsonl and parquet have names");
                        return Err(Problem::new(path, message)
                            .label("an index")
                            .related(format!("{at}.path"), "not a csv file")
                            .hint("give the name of the field in quotes"));
                    }
                    super::error::within(&path, *index, 0..=MOST_COLUMNS - 1)?;
                }
            }
        }
        if let Some(name) = &self.messages {
            let path = format!("{at}.messages");
            not_blank(&path, name)?;
            if self.format != DataFormat::Jsonl {
                let message = format!("`{path}` is given, but only the rows of jsonl hold conversations");
                return Err(Problem::new(path, message)
                    .label("only for jsonl")
                    .related(format!("{at}.path"), "not a jsonl file")
                    .hint("remove `messages`"));
            }
        }
        self.check_prompts(at)?;
        self.check_columns(at, used_for)
    }

    fn check_prompts(&self, at: &str) -> Result<(), Problem> {
        let pairs = [
            ("prompt", &self.prompt, "prompt_text", &self.prompt_text),
            ("prompt_b", &self.prompt_b, "prompt_text_b", &self.prompt_text_b),
        ];
        for (key, name, text_key, text) in pairs {
            if let Some(name) = name {
                not_blank(&format!("{at}.{key}"), name)
                    .map_err(|problem| problem.hint(format!("for no prompt write `{text_key} = \"\"`")))?;
                if text.is_some() {
                    let path = format!("{at}.{text_key}");
                    let message = format!("`{path}` is given beside `{key}`, and only one can be used");
                    return Err(Problem::new(path, message)
                        .label("a prompt")
                        .related(format!("{at}.{key}"), "another")
                        .hint(format!("remove `{key}` or `{text_key}`")));
                }
            }
        }
        Ok(())
    }

    fn check_columns(&self, at: &str, used_for: Use) -> Result<(), Problem> {
        let (purpose, needed): (_, &[&str]) = match used_for {
            Use::Texts => ("", &["text"]),
            Use::ScoredPairs => ("an sts task", &["text_a", "text_b", "score"]),
            Use::LabelledTexts => ("a classification task", &["text", "label"]),
            Use::Rows(kind) => return self.check_rows(at, kind),
            Use::LabelledImages => ("a zero-shot task", &["image", "label"]),
            Use::Document(_) if matches!(self.format, DataFormat::Txt | DataFormat::Document) => {
                return Ok(());
            }
            Use::Document(task) => {
                let message = format!("`{at}` is not txt, and {task} reads the whole file as one text");
                return Err(Problem::new(at, message).label("not txt").hint("allowed: a txt file"));
            }
        };
        if self.format == DataFormat::Images && used_for != Use::ScoredPairs {
            return Ok(());
        }
        if matches!(self.format, DataFormat::Txt | DataFormat::Document | DataFormat::Images) {
            let kind = match self.format {
                DataFormat::Images => "a folder of images",
                DataFormat::Document => "a document",
                _ => "a txt file",
            };
            return match used_for {
                Use::Texts => Ok(()),
                _ => Err(Problem::new(
                    at,
                    format!("`{at}` is {kind}, but {purpose} needs {} of each sample", list(needed)),
                )
                .label(if self.format == DataFormat::Images { "images alone" } else { "texts alone" })
                .hint("allowed: a jsonl or csv file")),
            };
        }
        let columns = self.columns();
        let has = |key: &str| columns.iter().any(|(name, column)| *name == key && column.is_some());
        if used_for == Use::Texts && has("text_a") && has("text_b") {
            return Ok(());
        }
        let missing: Vec<&str> =
            needed.iter().copied().filter(|key| !(has(key) || *key == "text" && has("image"))).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let message =
            format!("`{at}` is a csv file without a header, so it needs the index of {}", list(&missing));
        let taken = |index: &usize| columns.iter().any(|(_, column)| *column == Some(&Column::Index(*index)));
        let free = (0..).filter(|index| !taken(index));
        let example: Vec<String> =
            missing.iter().zip(free).map(|(key, index)| format!("{key} = {index}")).collect();
        let hint = format!("for example `{}`", example.join(", "));
        Err(Problem::new(at, message).label("columns are missing").hint(hint))
    }
}

impl DataSource {
    /// Rows with lists have one form, under fixed names.
    fn check_rows(&self, at: &str, kind: &str) -> Result<(), Problem> {
        if self.format != DataFormat::Jsonl {
            let message = format!("`{at}` is not jsonl, and rows of a {kind} task hold lists");
            return Err(Problem::new(at, message).label("not jsonl").hint("allowed: a jsonl file"));
        }
        for (key, column) in self.columns() {
            if column.is_some_and(|column| *column != Column::Name(key.to_owned())) {
                let path = format!("{at}.{key}");
                let message = format!("`{path}` is given, but rows of a {kind} task have fixed names");
                return Err(Problem::new(path, message)
                    .label("the name is fixed")
                    .hint(format!("remove `{key}`")));
            }
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for DataSourceKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PathOrTable;
        impl<'de> de::Visitor<'de> for PathOrTable {
            type Value = DataSourceKeys;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a path in quotes, or a table with a `path`")
            }

            fn visit_str<E: de::Error>(self, path: &str) -> Result<Self::Value, E> {
                Ok(DataSourceKeys::Path(path.to_owned()))
            }

            fn visit_map<A: de::MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
                DataSourceTable::deserialize(de::value::MapAccessDeserializer::new(map))
                    .map(|table| DataSourceKeys::Table(Box::new(table)))
            }
        }
        deserializer.deserialize_any(PathOrTable)
    }
}

impl<'de> Deserialize<'de> for Column {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct NameOrIndex;
        impl de::Visitor<'_> for NameOrIndex {
            type Value = Column;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of a column in quotes, or its index from 0")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Column, E> {
                Ok(Column::Name(name.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, index: u64) -> Result<Column, E> {
                usize::try_from(index)
                    .map(Column::Index)
                    .map_err(|_| E::invalid_value(de::Unexpected::Unsigned(index), &self))
            }

            fn visit_i64<E: de::Error>(self, index: i64) -> Result<Column, E> {
                match u64::try_from(index) {
                    Ok(index) => self.visit_u64(index),
                    Err(_) => Err(E::invalid_value(de::Unexpected::Signed(index), &self)),
                }
            }
        }
        deserializer.deserialize_any(NameOrIndex)
    }
}
