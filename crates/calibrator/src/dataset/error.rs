//! What can be wrong with a data set, said with the file and the line.

use std::fmt;
use std::io;
use std::sync::Arc;

use super::{FieldRef, MAX_FILE_BYTES, MAX_LINE_BYTES};

/// A data set that cannot be used.
#[derive(Debug, thiserror::Error)]
pub struct DatasetError {
    /// The file.
    pub file: Arc<str>,
    /// The line, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// What is wrong there.
    pub problem: Problem,
}

impl DatasetError {
    pub(super) fn new(file: &Arc<str>, line: usize, problem: Problem) -> Self {
        Self { file: Arc::clone(file), line, problem }
    }
}

/// `file:line: problem`, as editors read it.
impl fmt::Display for DatasetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.file, self.problem),
            line => write!(f, "{}:{line}: {}", self.file, self.problem),
        }
    }
}

/// What is wrong.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The file cannot be read.
    #[error("the data set cannot be read: {0}")]
    Io(io::Error),
    /// The extension says nothing.
    #[error(
        "the format does not follow from the file's extension; name it .jsonl, .txt, .csv, .tsv or .parquet, or give the format"
    )]
    UnknownFormat,
    /// No samples.
    #[error("the data set holds no samples; at least one is needed")]
    Empty,
    /// The file is too large.
    #[error("the data set is larger than {} GiB; split it or take a part of it", MAX_FILE_BYTES >> 30)]
    TooLarge,
    /// A line or record is too long.
    #[error("the line is longer than {} MiB; one sample a line is expected", MAX_LINE_BYTES >> 20)]
    LongLine,
    /// A whole file as one sample is too long.
    #[error(
        "the text is longer than {} MiB, and it is to be one sample; a decoder language model takes it with \
         `calibration.sequences` \"chunked\" or \"packed\"",
        MAX_LINE_BYTES >> 20
    )]
    LongText,
    /// The bytes are not UTF-8.
    #[error("the text is not valid UTF-8; convert the file to UTF-8")]
    NotUtf8,
    /// A line is not JSON.
    #[error("the line is not a JSON object: {message} (column {column})")]
    Json {
        /// What the parser says.
        message: String,
        /// The column, from 1.
        column: usize,
    },
    /// A line is JSON, but not an object.
    #[error("the line holds {found}; a JSON object such as {{\"text\": \"...\"}} is expected")]
    NotAnObject {
        /// The kind of value.
        found: &'static str,
    },
    /// A field is not there.
    #[error("the field {field} is missing; the fields here are {}{}", list(.present), nearest_hint(.nearest.as_deref()))]
    MissingField {
        /// Where it was expected.
        field: String,
        /// The names that are there.
        present: Vec<String>,
        /// The one that looks most alike.
        nearest: Option<String>,
    },
    /// A field has a value of another kind.
    #[error("the field {field} holds {found}; {expected} is expected")]
    WrongKind {
        /// Where the value was found.
        field: String,
        /// The kind of value that it holds.
        found: &'static str,
        /// The kind of value that it must hold.
        expected: &'static str,
    },
    /// A score that is no finite number.
    #[error("the score `{text}` is not a finite number")]
    Score {
        /// As it is written.
        text: String,
    },
    /// A column number where columns do not exist.
    #[error("{field} is a column number, and the objects of a JSON lines file have names; give a name")]
    ColumnInJson {
        /// The reference.
        field: FieldRef,
    },
    /// A column number where columns have names.
    #[error("{field} is a column number, and the columns of a parquet file have names; give a name")]
    ColumnInParquet {
        /// The reference.
        field: FieldRef,
    },
    /// A parquet file that is damaged or none.
    #[error("the file is not a whole parquet file: {message}")]
    Parquet {
        /// What the reader says.
        message: String,
    },
    /// A parquet file in a build that reads none.
    #[error("this build does not read parquet (it lacks the feature `parquet`); convert the file to jsonl")]
    NoParquet,
    /// A column that does not exist.
    #[error("the {role} is to be in column {column}, counted from 0, and there are {columns} columns")]
    NoSuchColumn {
        /// The field.
        role: &'static str,
        /// The column asked for.
        column: usize,
        /// How many there are.
        columns: usize,
    },
    /// A name without a header to look it up.
    #[error(
        "{field} is a column name, and the file is read without a header; give a column number, counted from 0"
    )]
    NameWithoutHeader {
        /// The reference.
        field: FieldRef,
    },
    /// More columns than have a meaning by default.
    #[error(
        "there is no header and {columns} columns; say which column holds which field, or name them in a first row"
    )]
    UnknownColumns {
        /// How many there are.
        columns: usize,
    },
    /// Two columns with one name.
    #[error("the header names the column `{name}` twice")]
    DuplicateColumn {
        /// The name.
        name: String,
    },
    /// A row with more or fewer columns.
    #[error(
        "the row has {found} columns, and the first row has {expected}; quote a field that contains the delimiter"
    )]
    ColumnCount {
        /// Of this row.
        found: usize,
        /// Of the first row.
        expected: usize,
    },
    /// A quote that is never closed.
    #[error("a quoted field begins in this row and is never closed; close it with `\"`")]
    OpenQuote,
    /// Text behind a closing quote.
    #[error(
        "a quoted field goes on behind its closing quote; write a quote within such a field twice, or the file as JSON lines"
    )]
    TextAfterQuote,
    /// A delimiter that cannot be one.
    #[error(
        "the byte {byte:#04x} cannot be the delimiter; one ASCII character other than a quote and an end of line is"
    )]
    Delimiter {
        /// The delimiter asked for.
        byte: u8,
    },
    /// A list of labels where one is needed.
    #[error("the label is a list, and the model gives each text one label")]
    LabelList,
    /// Rows that only JSON lines can hold.
    #[error("rows of this task hold lists, which only JSON lines have; give a .jsonl file")]
    NotJsonl,
    /// A list without entries.
    #[error("the list {field} is empty; at least one entry is needed")]
    EmptyList {
        /// The list.
        field: String,
    },
    /// A text that must say something.
    #[error("{field} is blank; a text is expected")]
    Blank {
        /// Where it was found.
        field: String,
    },
    /// Nothing to choose from.
    #[error("the list `choices` has {found} {}; two or more are expected", if *.found == 1 { "entry" } else { "entries" })]
    FewChoices {
        /// How many there are.
        found: usize,
    },
    /// An answer that is none of the choices.
    #[error("the answer is {found}, and there are {choices} choices; an index from 0 to {} is expected", .choices - 1)]
    Answer {
        /// As it is written.
        found: String,
        /// How many choices there are, at least two.
        choices: usize,
    },
    /// Two lists that belong together.
    #[error("there are {tokens} tokens and {labels} labels; each token has one")]
    Lengths {
        /// In one list.
        tokens: usize,
        /// In the other.
        labels: usize,
    },
    /// A folder without images.
    #[error(
        "the folder holds no images; .png, .jpg, .jpeg and .webp files are, in it or in one folder for each label"
    )]
    NoImages,
    /// Something in a folder of images that is none.
    #[error(
        "{name} is in a folder of images and is none; .png, .jpg, .jpeg and .webp files are, and hidden files are passed \
         over"
    )]
    NotAnImage {
        /// Its name.
        name: String,
    },
    /// A folder whose labels are not clear.
    #[error(
        "the folder holds images and folders; put every image into the folder of its label, or have no folders"
    )]
    HalfLabelled,
    /// A folder inside the folder of a label.
    #[error("{name} is a folder inside the folder of a label, which holds images only")]
    NestedFolder {
        /// Its name.
        name: String,
    },
    /// A name that no label and no message can hold.
    #[error("{name} is no valid Unicode; rename it")]
    NameNotUnicode {
        /// The name, as far as it can be shown.
        name: String,
    },
    /// A task needs a field that the sample does not have.
    #[error("the sample has no {field}, and the task needs one for every sample")]
    Required {
        /// The field's name.
        field: &'static str,
    },
}

impl Problem {
    /// A missing field, which could have been in several places, with the nearest of the names that are there; or one that is there
    /// and null.
    pub(super) fn missing<'a>(wanted: &[&FieldRef], present: impl Iterator<Item = &'a str>) -> Self {
        let present: Vec<String> = present.map(str::to_owned).collect();
        let is_wanted = |name: &&String| {
            wanted.iter().any(|field| matches!(field, FieldRef::Name(wanted) if wanted == *name))
        };
        if let Some(name) = present.iter().find(is_wanted) {
            return Self::WrongKind { field: format!("`{name}`"), found: "null", expected: "a value" };
        }
        let likeness = |name: &String| {
            let name = name.to_lowercase();
            let of = |wanted: &&FieldRef| match wanted {
                FieldRef::Name(wanted) => strsim::jaro_winkler(&wanted.to_lowercase(), &name),
                FieldRef::Column(_) => 0.0,
            };
            wanted.iter().map(of).fold(0.0, f64::max)
        };
        let field = wanted.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
        let nearest = present
            .iter()
            .map(|name| (likeness(name), name))
            .filter(|(likeness, _)| *likeness > 0.75)
            .reduce(|best, other| if other.0 > best.0 { other } else { best })
            .map(|(_, name)| name.clone());
        Self::MissingField { field, present, nearest }
    }
}

/// How many names of fields a message lists, and how much of each it shows.
const LISTED: usize = 20;
const SHOWN_CHARS: usize = 40;

fn shortened(name: &str) -> String {
    let shown: String =
        name.chars().take(SHOWN_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if name.chars().nth(SHOWN_CHARS).is_some() { format!("`{shown}...`") } else { format!("`{shown}`") }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        return "none".to_owned();
    }
    let mut listed: Vec<String> = names.iter().take(LISTED).map(|name| shortened(name)).collect();
    if names.len() > LISTED {
        listed.push(format!("{} more", names.len() - LISTED));
    }
    listed.join(", ")
}

fn nearest_hint(nearest: Option<&str>) -> String {
    nearest.map_or(String::new(), |name| format!("; did you mean {}?", shortened(name)))
}
