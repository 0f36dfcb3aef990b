//! Comma-separated values, and those separated by another character.

use std::path::PathBuf;

use super::{FieldRef, Fields, MAX_LINE_BYTES, Parsed, Problem, Role, Sample, lines};

/// Hands over the sample of each record until `each` says no.
pub(super) fn each(
    text: &str,
    header: Option<bool>,
    delimiter: u8,
    fields: &Fields,
    each: &mut dyn FnMut(Sample) -> bool,
) -> Parsed<()> {
    let mut records = Records::new(text, delimiter).map_err(|problem| (0, problem))?;
    let Some((line, first)) = records.next()? else { return Ok(()) };
    let has_header = match header {
        Some(header) => header,
        None => is_header(&first, fields).map_err(|problem| (line, problem))?,
    };
    let columns =
        if has_header { Columns::named(&first, fields) } else { Columns::unnamed(first.len(), fields) };
    let columns = columns.map_err(|problem| (line, problem))?;
    let mut next = if has_header { records.next()? } else { Some((line, first.clone())) };
    while let Some((line, record)) = next {
        if record.len() != first.len() {
            return Err((line, Problem::ColumnCount { found: record.len(), expected: first.len() }));
        }
        let sample = columns.sample(&record).map_err(|problem| (line, problem))?;
        if !each(Sample { line, ..sample }) {
            break;
        }
        next = records.next()?;
    }
    Ok(())
}

/// Whether the first row contains one of the field names. When it does not, and a name was chosen, the file is not the
/// one that was meant: reading its columns by their places would mix them up silently.
fn is_header(first: &csv::StringRecord, fields: &Fields) -> Result<bool, Problem> {
    let names = |role: Role| matches!(fields.get(role), FieldRef::Name(name) if first.iter().any(|cell| cell.trim() == name));
    if Role::ALL.into_iter().any(names) {
        return Ok(true);
    }
    let chosen = |role: &Role| fields.is_chosen(*role);
    for role in Role::ALL.into_iter().filter(chosen) {
        if matches!(fields.get(role), FieldRef::Name(_)) {
            return Err(Problem::missing(&[fields.get(role)], first.iter()));
        }
    }
    Ok(false)
}

/// The column of every field.
struct Columns {
    /// Only a row with an image may have none.
    text_a: Option<usize>,
    image: Option<usize>,
    text_b: Option<usize>,
    score: Option<usize>,
    label: Option<usize>,
}

impl Columns {
    /// By the names in a header.
    fn named(header: &csv::StringRecord, fields: &Fields) -> Result<Self, Problem> {
        let find = |role: Role| match fields.get(role) {
            FieldRef::Column(_) => chosen_column(role, fields, header.len()),
            FieldRef::Name(name) => {
                let mut places = (0..header.len()).filter(|&place| header[place].trim() == name);
                match (places.next(), places.next()) {
                    (_, Some(_)) => Err(Problem::DuplicateColumn { name: name.clone() }),
                    (None, _) if fields.is_chosen(role) => {
                        Err(Problem::missing(&[fields.get(role)], header.iter()))
                    }
                    (place, None) => Ok(place),
                }
            }
        };
        let mut text_a = None;
        for &role in fields.first_text() {
            text_a = text_a.or(find(role)?);
        }
        let image = find(Role::Image)?;
        if text_a.or(image).is_none() {
            return Err(fields.no_first_text(header.iter()));
        }
        let (text_b, score, label) = (find(Role::TextB)?, find(Role::Score)?, find(Role::Label)?);
        Ok(Self { text_a, image, text_b, score, label })
    }

    /// By their places: those that were chosen or, when none was, those that the number of columns stands for.
    fn unnamed(columns: usize, fields: &Fields) -> Result<Self, Problem> {
        for role in Role::ALL.into_iter().filter(|&role| fields.is_chosen(role)) {
            if let field @ FieldRef::Name(_) = fields.get(role) {
                return Err(Problem::NameWithoutHeader { field: field.clone() });
            }
        }
        let find = |role| chosen_column(role, fields, columns);
        if Role::ALL.into_iter().any(|role| fields.is_chosen(role)) {
            let (text_a, image) = (find(Role::TextA)?.or(find(Role::Text)?), find(Role::Image)?);
            if text_a.or(image).is_none() {
                return Err(Problem::UnknownColumns { columns });
            }
            let (text_b, score, label) = (find(Role::TextB)?, find(Role::Score)?, find(Role::Label)?);
            return Ok(Self { text_a, image, text_b, score, label });
        }
        let default = Self { text_a: Some(0), image: None, text_b: None, score: None, label: None };
        match columns {
            1 => Ok(default),
            2 => Ok(Self { label: Some(1), ..default }),
            3 => Ok(Self { text_b: Some(1), score: Some(2), ..default }),
            _ => Err(Problem::UnknownColumns { columns }),
        }
    }

    /// Texts are taken as they are; an empty score or label is an absent one.
    fn sample(&self, record: &csv::StringRecord) -> Result<Sample, Problem> {
        let cell = |column: usize| record.get(column).unwrap_or_default();
        let filled = |column: Option<usize>| column.map(cell).filter(|cell| !cell.trim().is_empty());
        if self.text_a.is_none() && filled(self.image).is_none() {
            return Err(Problem::Required { field: Role::Image.name() });
        }
        let score = filled(self.score)
            .map(|text| match text.trim().parse::<f64>() {
                Ok(score) if score.is_finite() => Ok(score),
                _ => Err(Problem::Score { text: text.chars().take(40).collect() }),
            })
            .transpose()?;
        Ok(Sample {
            text_a: self.text_a.map(|column| cell(column).to_owned()).unwrap_or_default(),
            image: filled(self.image).map(PathBuf::from),
            text_b: self.text_b.map(|column| cell(column).to_owned()),
            score,
            label: filled(self.label).map(str::to_owned),
            ..Sample::default()
        })
    }
}

/// The column that was chosen for a field, if one was.
fn chosen_column(role: Role, fields: &Fields, columns: usize) -> Result<Option<usize>, Problem> {
    match *fields.get(role) {
        FieldRef::Column(column) if column >= columns => {
            Err(Problem::NoSuchColumn { role: role.name(), column, columns })
        }
        FieldRef::Column(column) => Ok(Some(column)),
        FieldRef::Name(_) => Ok(None),
    }
}

/// The records of a text with the lines where they begin.
struct Records<'a> {
    text: &'a str,
    delimiter: u8,
    reader: csv::Reader<&'a [u8]>,
    /// How far lines are counted, in bytes, and the number of the line there.
    counted: (usize, usize),
}

impl<'a> Records<'a> {
    fn new(text: &'a str, delimiter: u8) -> Result<Self, Problem> {
        if !delimiter.is_ascii() || matches!(delimiter, b'"' | b'\n' | b'\r' | 0) {
            return Err(Problem::Delimiter { byte: delimiter });
        }
        Ok(Self { text, delimiter, reader: reader(text.as_bytes(), delimiter), counted: (0, 1) })
    }

    fn next(&mut self) -> Parsed<Option<(usize, csv::StringRecord)>> {
        let mut record = csv::StringRecord::new();
        let found = self.reader.read_record(&mut record);
        let Some(position) = record.position() else { return Ok(None) };
        // The reader's position lies behind the last record, before the end of line and blank lines that it skips; its
        // own line numbers are off by these.
        let bytes = self.text.as_bytes();
        let mut start = usize::try_from(position.byte()).unwrap_or(usize::MAX).min(bytes.len());
        while matches!(bytes.get(start), Some(b'\r' | b'\n')) {
            start += 1;
        }
        let (from, line) = self.counted;
        let line = line + lines::ends(&bytes[from..start]);
        self.counted = (start, line);
        match found {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            // Memory cannot fail to be read, and cutting UTF-8 at ASCII bytes leaves UTF-8.
            Err(_) => return Err((line, Problem::NotUtf8)),
        }
        let end = usize::try_from(self.reader.position().byte()).unwrap_or(usize::MAX).min(bytes.len());
        if end - start > MAX_LINE_BYTES {
            return Err((line, Problem::LongLine));
        }
        if self.closes_too_early(&bytes[start..end]) {
            return Err((line, Problem::TextAfterQuote));
        }
        if end == bytes.len() && self.swallows_more(&bytes[start..]) {
            return Err((line, Problem::OpenQuote));
        }
        Ok(Some((line, record)))
    }

    /// Whether a quoted field of the record goes on behind its closing quote. The reader takes that as a part of the field,
    /// and of two such fields in different lines it makes one record.
    fn closes_too_early(&self, record: &[u8]) -> bool {
        let mut rest = record;
        loop {
            if let [b'"', quoted @ ..] = rest {
                rest = quoted;
                loop {
                    let Some(quote) = rest.iter().position(|&byte| byte == b'"') else { return false };
                    rest = &rest[quote + 1..];
                    match rest {
                        [b'"', more @ ..] => rest = more,
                        [] | [b'\r' | b'\n', ..] => return false,
                        [next, ..] if *next == self.delimiter => break,
                        _ => return true,
                    }
                }
            }
            match rest.iter().position(|&byte| byte == self.delimiter) {
                Some(end) => rest = &rest[end + 1..],
                None => return false,
            }
        }
    }

    /// Whether the last record takes in whatever follows it, which is how an open quote shows.
    fn swallows_more(&self, last: &[u8]) -> bool {
        use std::io::Read as _;
        let mut reader = csv_builder(self.delimiter).from_reader(last.chain(&b"\nx"[..]));
        reader.byte_records().count() == 1
    }
}

fn reader(bytes: &[u8], delimiter: u8) -> csv::Reader<&[u8]> {
    csv_builder(delimiter).from_reader(bytes)
}

fn csv_builder(delimiter: u8) -> csv::ReaderBuilder {
    let mut builder = csv::ReaderBuilder::new();
    builder.has_headers(false).flexible(true).delimiter(delimiter);
    builder
}
