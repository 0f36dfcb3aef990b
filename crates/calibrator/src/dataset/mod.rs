//! Data sets: texts and images with their scores or labels, from JSON lines, CSV, plain text, parquet and folders of
//! images.
//!
//! A file is checked as a whole: one broken row is an error that names the file, the line and what was expected there.
//! Nothing is skipped silently, because a metric over the rows that happened to parse is not the metric that was asked
//! for. [`read_each`] and [`read_pieces`] hold one row or piece at a time (of csv the whole file), [`read`] all.

mod delimited;
mod error;
mod folder;
mod jsonl;
mod lines;
#[cfg(feature = "parquet")]
mod parquet;
mod pieces;
mod records;

pub use error::{DatasetError, Problem};
pub use pieces::{PIECE_BYTES, Pieces, read_pieces, split};
pub use records::{Choices, Origin, Question, Ranking, Record, TaggedWords, parse_records, read_records};

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use zeropoint_core::{Fingerprint, FingerprintBuilder};
use zeropoint_models::TextRef;

use lines::Lines;

/// The longest line (of csv: the longest record), in bytes.
pub const MAX_LINE_BYTES: usize = 16 << 20;
/// The largest file, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 30;

/// One sample: a text or a pair of texts, with what is known about it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    /// The text, or the first of a pair.
    pub text_a: String,
    /// The second text of a pair.
    pub text_b: Option<String>,
    /// The reference score, finite.
    pub score: Option<f64>,
    /// The reference label; numbers and booleans as they are written.
    pub label: Option<String>,
    /// The reference labels, where the file holds a list of them.
    pub labels: Option<Vec<String>>,
    /// Prepended to the first text.
    pub prompt_a: Option<Arc<str>>,
    /// Prepended to the second text, where that is encoded on its own.
    pub prompt_b: Option<Arc<str>>,
    /// The file of an image; a sample that has one may have an empty text.
    pub image: Option<PathBuf>,
    /// A conversation, each message an object with at least a `role`. Its text is what a chat template makes of it, and
    /// until then empty.
    pub messages: Option<Vec<Value>>,
    /// The sample as token ids that nothing is added to, where it has been tokenised already; the texts do not count then.
    pub tokens: Option<Vec<u32>>,
    /// The file it comes from, for messages.
    pub file: Arc<str>,
    /// Its line there, from 1 (of csv: where the record begins; of parquet: the row).
    pub line: usize,
}

impl Sample {
    /// The texts as one input: a pair goes together.
    pub fn text(&self) -> TextRef<'_> {
        TextRef { text: &self.text_a, pair: self.text_b.as_deref(), prompt: self.prompt_a.as_deref() }
    }

    /// Bytes of all its texts, labels and paths.
    #[cfg(feature = "parquet")]
    fn text_bytes(&self) -> usize {
        let labels = self.labels.iter().flatten().chain(&self.label).chain(&self.text_b);
        let image = self.image.as_ref().map_or(0, |path| path.as_os_str().len());
        self.text_a.len() + image + labels.map(String::len).sum::<usize>()
    }

    /// Both texts of a pair as inputs of their own.
    pub fn texts(&self) -> Option<[TextRef<'_>; 2]> {
        let text = |text, prompt| TextRef { text, pair: None, prompt };
        Some([
            text(self.text_a.as_str(), self.prompt_a.as_deref()),
            text(self.text_b.as_deref()?, self.prompt_b.as_deref()),
        ])
    }
}

/// Where a field is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FieldRef {
    /// A key of a JSON object, a name in the csv header or a column of a parquet file.
    Name(String),
    /// A column of a csv file, from 0.
    Column(usize),
}

impl From<&str> for FieldRef {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl From<usize> for FieldRef {
    fn from(column: usize) -> Self {
        Self::Column(column)
    }
}

impl fmt::Display for FieldRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => write!(f, "`{name}`"),
            Self::Column(column) => write!(f, "column {column}"),
        }
    }
}

/// Where the fields of a sample are found. By default each has its own name.
///
/// The first text is `text_a` or else `text`; when only one of them was given a place, it is that one. A field that still has its default may be absent from the file; one that
/// was given another place must be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fields {
    /// The text of a single-text sample.
    pub text: FieldRef,
    /// The first text of a pair.
    pub text_a: FieldRef,
    /// The second text of a pair.
    pub text_b: FieldRef,
    /// The reference score.
    pub score: FieldRef,
    /// The reference label.
    pub label: FieldRef,
    /// The path of an image, relative to the folder of the file that names it.
    pub image: FieldRef,
    /// The name of a conversation in JSON lines; `None` where none is read. A row without a text may have one under the
    /// name `messages`; under another name every row must.
    pub messages: Option<FieldRef>,
}

impl Default for Fields {
    fn default() -> Self {
        let [text, text_a, text_b, score, label, image] = Role::ALL.map(|role| FieldRef::from(role.name()));
        Self { text, text_a, text_b, score, label, image, messages: None }
    }
}

/// The name of a conversation where it has no other.
pub const MESSAGES: &str = "messages";

/// The part that a field plays in a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Text,
    TextA,
    TextB,
    Score,
    Label,
    Image,
}

impl Role {
    const ALL: [Self; 6] = [Self::Text, Self::TextA, Self::TextB, Self::Score, Self::Label, Self::Image];

    /// The name that a field has by default.
    fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::TextA => "text_a",
            Self::TextB => "text_b",
            Self::Score => "score",
            Self::Label => "label",
            Self::Image => "image",
        }
    }
}

impl Fields {
    fn get(&self, role: Role) -> &FieldRef {
        match role {
            Role::Text => &self.text,
            Role::TextA => &self.text_a,
            Role::TextB => &self.text_b,
            Role::Score => &self.score,
            Role::Label => &self.label,
            Role::Image => &self.image,
        }
    }

    /// Where the first text may be, most wanted first. A place that was chosen for one excludes the other's default.
    fn first_text(&self) -> &'static [Role] {
        match (self.is_chosen(Role::TextA), self.is_chosen(Role::Text)) {
            (true, _) => &[Role::TextA],
            (false, true) => &[Role::Text],
            (false, false) => &[Role::TextA, Role::Text],
        }
    }

    /// Whether conversations were given a name of their own, which must then exist.
    fn wants_messages(&self) -> bool {
        self.messages.as_ref().is_some_and(|field| *field != FieldRef::from(MESSAGES))
    }

    /// The error for a first text that is nowhere among the names that are present.
    fn no_first_text<'a>(&self, present: impl Iterator<Item = &'a str>) -> Problem {
        let wanted: Vec<&FieldRef> = self.first_text().iter().map(|&role| self.get(role)).collect();
        Problem::missing(&wanted, present)
    }

    /// Whether the field was given a place of its own, which must then exist.
    fn is_chosen(&self, role: Role) -> bool {
        !matches!(self.get(role), FieldRef::Name(name) if name == role.name())
    }
}

/// How a file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON object a line.
    Jsonl,
    /// One text a line.
    Txt,
    /// One text, the whole file.
    Document,
    /// Comma-separated values with quoting as in RFC 4180.
    Csv {
        /// Whether the first row names the columns. `None`: it does when it contains one of the field names. Without a
        /// header, columns are `text_a, text_b, score` when there are three, `text, label` when there are two and `text`
        /// when there is one.
        header: Option<bool>,
        /// One ASCII character; not a quote, not an end of line.
        delimiter: u8,
    },
    /// Parquet, read from its file alone and only with the feature `parquet`.
    Parquet,
}

impl Format {
    /// The format that a file's extension stands for: jsonl, ndjson, txt, csv, tsv, parquet.
    pub fn from_extension(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "jsonl" | "ndjson" => Some(Self::Jsonl),
            "txt" => Some(Self::Txt),
            "csv" => Some(Self::Csv { header: None, delimiter: b',' }),
            "tsv" => Some(Self::Csv { header: None, delimiter: b'\t' }),
            "parquet" => Some(Self::Parquet),
            _ => None,
        }
    }
}

/// How to read a data set; by default the extension says the format and each field has its own name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// `None`: by the extension.
    pub format: Option<Format>,
    /// Where the fields are found.
    pub fields: Fields,
}

/// Reads every sample of a file, in its order.
///
/// UTF-8, with or without a byte order mark, lines ending in LF or CRLF, blank lines skipped. A file without samples, over
/// [`MAX_FILE_BYTES`] or with a line over [`MAX_LINE_BYTES`] is an error, as is a score that is not finite.
///
/// Of a folder, every image in it, in the order of their names, or those of its sub-folders with these as labels. Images are
/// not opened here.
pub fn read(path: &Path, options: &ReadOptions) -> Result<Vec<Sample>, DatasetError> {
    let mut samples = Vec::new();
    read_each(path, options, &mut |sample| {
        samples.push(sample);
        Ok::<_, DatasetError>(())
    })?;
    Ok(samples)
}

/// As [`read`], one sample at a time: of JSON lines, text and parquet no more than that is held. An error of `each` ends it.
pub fn read_each<E: From<DatasetError>>(
    path: &Path,
    options: &ReadOptions,
    each: &mut dyn FnMut(Sample) -> Result<(), E>,
) -> Result<(), E> {
    let name: Arc<str> = path.display().to_string().into();
    let whole_file = |problem| DatasetError::new(&name, 0, problem);
    if path.is_dir() {
        return folder::read(path)?.into_iter().try_for_each(each);
    }
    let format = options.format.or_else(|| Format::from_extension(path));
    let format = format.ok_or_else(|| whole_file(Problem::UnknownFormat))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    let mut each = |mut sample: Sample| {
        if let Some(image) = &mut sample.image {
            *image = folder.join(&*image);
        }
        each(sample)
    };
    if format == Format::Parquet {
        return hand_over(&name, &mut each, |each| read_parquet(path, &options.fields, each));
    }
    let file = File::open(path).map_err(|error| whole_file(Problem::Io(error)))?;
    parse_each(file, &name, format, &options.fields, &mut each)
}

/// Reads a whole file as one text: UTF-8, with or without a byte order mark, every line end as it is. A file without text
/// is an error, as is one over [`MAX_FILE_BYTES`].
pub fn read_document(path: &Path) -> Result<String, DatasetError> {
    let name: Arc<str> = path.display().to_string().into();
    let failed = |(line, problem)| DatasetError::new(&name, line, problem);
    let bytes = read_bytes(path).map_err(|problem| failed((0, problem)))?;
    let text = lines::text(&bytes).map_err(failed)?;
    if text.trim().is_empty() { Err(failed((0, Problem::Empty))) } else { Ok(text.to_owned()) }
}

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

fn read_bytes(path: &Path) -> Result<Vec<u8>, Problem> {
    all_bytes(File::open(path).map_err(Problem::Io)?, MAX_FILE_BYTES, || Problem::TooLarge)
}

/// Everything that a reader gives, which is too much from `most` bytes on.
fn all_bytes(reader: impl Read, most: u64, too_much: impl Fn() -> Problem) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    reader.take(most + 1).read_to_end(&mut bytes).map_err(Problem::Io)?;
    if bytes.len() as u64 > most { Err(too_much()) } else { Ok(bytes) }
}

/// Reads every sample of a file's content, in any format but parquet; `file` is its name in messages. Paths of images
/// stay as they are written. See [`read`].
pub fn parse(
    bytes: &[u8],
    file: &Arc<str>,
    format: Format,
    fields: &Fields,
) -> Result<Vec<Sample>, DatasetError> {
    let mut samples = Vec::new();
    parse_each(bytes, file, format, fields, &mut |sample| {
        samples.push(sample);
        Ok::<_, DatasetError>(())
    })?;
    Ok(samples)
}

/// As [`parse`], one sample at a time of what a reader gives. See [`read_each`].
pub fn parse_each<E: From<DatasetError>>(
    reader: impl Read,
    file: &Arc<str>,
    format: Format,
    fields: &Fields,
    each: &mut dyn FnMut(Sample) -> Result<(), E>,
) -> Result<(), E> {
    hand_over(file, each, |each| match format {
        Format::Jsonl => jsonl::each(&mut Lines::new(reader), fields, each),
        Format::Txt => {
            let mut lines = Lines::new(reader);
            while let Some((line, text)) = lines.next_non_blank()? {
                if !each(Sample { text_a: text.to_owned(), line, ..Sample::default() }) {
                    break;
                }
            }
            Ok(())
        }
        Format::Document => {
            let bytes = all_bytes(reader, MAX_LINE_BYTES as u64, || Problem::LongText);
            let bytes = bytes.map_err(|problem| (0, problem))?;
            let text = lines::text(&bytes)?;
            if !text.trim().is_empty() {
                each(Sample { text_a: text.to_owned(), line: 1, ..Sample::default() });
            }
            Ok(())
        }
        Format::Csv { header, delimiter } => {
            let bytes = all_bytes(reader, MAX_FILE_BYTES, || Problem::TooLarge);
            let bytes = bytes.map_err(|problem| (0, problem))?;
            delimited::each(lines::decode(&bytes)?, header, delimiter, fields, each)
        }
        Format::Parquet => Err((0, Problem::UnknownFormat)),
    })
}

#[cfg(feature = "parquet")]
fn read_parquet(path: &Path, fields: &Fields, each: &mut dyn FnMut(Sample) -> bool) -> Parsed<()> {
    parquet::each(path, fields, each)
}

#[cfg(not(feature = "parquet"))]
fn read_parquet(_path: &Path, _fields: &Fields, _each: &mut dyn FnMut(Sample) -> bool) -> Parsed<()> {
    Err((0, Problem::NoParquet))
}

/// Hands over what `read` reads, and gives samples and errors their file; no samples are an error.
fn hand_over<E: From<DatasetError>>(
    file: &Arc<str>,
    each: &mut dyn FnMut(Sample) -> Result<(), E>,
    read: impl FnOnce(&mut dyn FnMut(Sample) -> bool) -> Parsed<()>,
) -> Result<(), E> {
    let (mut any, mut failed) = (false, None);
    let outcome = read(&mut |sample| {
        any = true;
        failed = each(Sample { file: Arc::clone(file), ..sample }).err();
        failed.is_none()
    });
    if let Some(error) = failed {
        return Err(error);
    }
    outcome.map_err(|(line, problem)| DatasetError::new(file, line, problem))?;
    if any { Ok(()) } else { Err(DatasetError::new(file, 0, Problem::Empty).into()) }
}

/// What a reader of one format returns; an error has its line.
type Parsed<T> = Result<T, (usize, Problem)>;

/// The score of every sample, or which sample has none.
pub fn require_scores(samples: &[Sample]) -> Result<Vec<f64>, DatasetError> {
    require(samples, Role::Score, |sample| sample.score)
}

/// The label of every sample, or which sample has none or several.
pub fn require_labels(samples: &[Sample]) -> Result<Vec<&str>, DatasetError> {
    if let Some(sample) = samples.iter().find(|sample| sample.labels.is_some()) {
        return Err(DatasetError::new(&sample.file, sample.line, Problem::LabelList));
    }
    require(samples, Role::Label, |sample| sample.label.as_deref())
}

/// The image of every sample, or which sample has none.
pub fn require_images(samples: &[Sample]) -> Result<Vec<&Path>, DatasetError> {
    require(samples, Role::Image, |sample| sample.image.as_deref())
}

/// Both texts of every sample, or which sample has only one.
pub fn require_pairs(samples: &[Sample]) -> Result<Vec<(&str, &str)>, DatasetError> {
    require(samples, Role::TextB, |sample| Some((sample.text_a.as_str(), sample.text_b.as_deref()?)))
}

fn require<'a, T>(
    samples: &'a [Sample],
    role: Role,
    value: impl Fn(&'a Sample) -> Option<T>,
) -> Result<Vec<T>, DatasetError> {
    let checked = |sample: &'a Sample| {
        let missing =
            || DatasetError::new(&sample.file, sample.line, Problem::Required { field: role.name() });
        value(sample).ok_or_else(missing)
    };
    samples.iter().map(checked).collect()
}

/// The fingerprint of what the samples hold, in their order; files and lines do not count.
pub fn fingerprint(samples: &[Sample]) -> Fingerprint {
    let mut builder = Fingerprint::builder("samples");
    builder.field("count", (samples.len() as u64).to_le_bytes());
    for sample in samples {
        builder.field("text_a", &sample.text_a);
        optional(&mut builder, "text_b", sample.text_b.as_deref());
        optional(&mut builder, "score", sample.score.map(f64::to_le_bytes));
        optional(&mut builder, "label", sample.label.as_deref());
        optional(&mut builder, "labels", sample.labels.as_ref().map(|labels| format!("{labels:?}")));
        optional(&mut builder, "prompt_a", sample.prompt_a.as_deref());
        optional(&mut builder, "prompt_b", sample.prompt_b.as_deref());
        let image = sample.image.as_deref().map(|path| path.as_os_str().as_encoded_bytes());
        optional(&mut builder, "image", image);
        let messages = sample.messages.as_ref().map(|messages| Value::from(messages.clone()).to_string());
        optional(&mut builder, "messages", messages);
        let tokens = sample.tokens.as_ref();
        let tokens = tokens.map(|ids| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>());
        optional(&mut builder, "tokens", tokens);
    }
    builder.finish()
}

/// Absent fields leave no trace; every sample begins with its `text_a`, so the list can still be read in one way only.
fn optional(builder: &mut FingerprintBuilder, name: &str, value: Option<impl AsRef<[u8]>>) {
    if let Some(value) = value {
        builder.field(name, value);
    }
}

#[cfg(test)]
mod tests;
