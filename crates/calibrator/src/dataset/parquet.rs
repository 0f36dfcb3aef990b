//! Parquet: the columns that hold a field, row by row, with the meaning that the same fields have in JSON lines.
//!
//! Only those columns are read, so that pictures and other ballast of a data set cost nothing.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use parquet::basic::{ConvertedType, LogicalType};
use parquet::errors::ParquetError;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::{Field, Row};
use parquet::schema::types::Type;
use serde_json::{Map, Number, Value};
use zeropoint_core::contain;

use super::{FieldRef, Fields, MAX_FILE_BYTES, MAX_LINE_BYTES, Parsed, Problem, Role, Sample, jsonl};

/// Hands over the sample of each row until `each` says no. Rows are counted from 1.
///
/// The parquet library panics on some damaged files; that is caught here and is an error like any other damage.
pub(super) fn each(path: &Path, fields: &Fields, each: &mut dyn FnMut(Sample) -> bool) -> Parsed<()> {
    let file = File::open(path).map_err(|error| (0, Problem::Io(error)))?;
    contain(|| rows(file, fields, each)).unwrap_or_else(|_| {
        Err((0, Problem::Parquet { message: "its structure contradicts itself".to_owned() }))
    })
}

fn rows(file: File, fields: &Fields, each: &mut dyn FnMut(Sample) -> bool) -> Parsed<()> {
    let reader = SerializedFileReader::new(file).map_err(|error| (0, damaged(&error)))?;
    let schema = reader.metadata().file_metadata().schema();
    let projection = projection(schema, fields).map_err(|problem| (0, problem))?;
    let rows = reader.get_row_iter(Some(projection)).map_err(|error| (0, damaged(&error)))?;
    let mut bytes = 0u64;
    for (index, row) in rows.enumerate() {
        let line = index + 1;
        let sample = row
            .map_err(|error| damaged(&error))
            .and_then(|row| jsonl::sample_of(object(row, fields)?, fields))
            .map_err(|problem| (line, problem))?;
        let length = sample.text_bytes();
        if length > MAX_LINE_BYTES {
            return Err((line, Problem::LongLine));
        }
        bytes += length as u64;
        if bytes > MAX_FILE_BYTES {
            return Err((0, Problem::TooLarge));
        }
        if !each(Sample { line, ..sample }) {
            break;
        }
    }
    Ok(())
}

/// The schema with the columns that are wanted and there, or which one is not there.
fn projection(schema: &Type, fields: &Fields) -> Result<Type, Problem> {
    let columns = schema.get_fields();
    let names = || columns.iter().map(|column| column.name());
    let is_there = |role: Role| match fields.get(role) {
        FieldRef::Name(name) => Ok(names().any(|column| column == name)),
        FieldRef::Column(_) => Err(Problem::ColumnInParquet { field: fields.get(role).clone() }),
    };
    let mut wanted: Vec<&FieldRef> = Vec::new();
    for role in Role::ALL {
        let there = is_there(role)?;
        let text = matches!(role, Role::Text | Role::TextA);
        if !there && !text && fields.is_chosen(role) {
            return Err(Problem::missing(&[fields.get(role)], names()));
        }
        // The pictures of a data set are bytes or a structure: they cost nothing unless they are asked for.
        let readable = role != Role::Image || fields.is_chosen(role) || is_text(columns, fields.get(role));
        if there && readable && (!text || fields.first_text().contains(&role)) {
            wanted.push(fields.get(role));
        }
    }
    if !fields.first_text().iter().any(|&role| wanted.contains(&fields.get(role))) {
        return Err(fields.no_first_text(names()));
    }
    let is_wanted = |column: &&Arc<Type>| {
        wanted.iter().any(|field| matches!(field, FieldRef::Name(name) if name == column.name()))
    };
    Type::group_type_builder(schema.name())
        .with_fields(columns.iter().filter(is_wanted).cloned().collect())
        .build()
        .map_err(|error| damaged(&error))
}

/// Whether the column of a field holds texts.
fn is_text(columns: &[Arc<Type>], field: &FieldRef) -> bool {
    let FieldRef::Name(name) = field else { return false };
    let column = columns.iter().find(|column| column.name() == name);
    column.is_some_and(|column| {
        column.is_primitive()
            && (column.get_basic_info().converted_type() == ConvertedType::UTF8
                || column.get_basic_info().logical_type_ref() == Some(&LogicalType::String))
    })
}

/// A row as the object that a line of JSON would hold; what is null is not in it.
fn object(row: Row, fields: &Fields) -> Result<Map<String, Value>, Problem> {
    let column = |(name, field): (String, Field)| {
        let value = value(field).map_err(|refusal| match refusal {
            Refusal::NotFinite(text) => Problem::Score { text },
            Refusal::Kind(found) => {
                let is_score = matches!(&fields.score, FieldRef::Name(score) if *score == name);
                let expected = if is_score { "a number" } else { "a string" };
                Problem::WrongKind { field: format!("`{name}`"), found, expected }
            }
        })?;
        Ok((name, value))
    };
    row.into_columns().into_iter().filter(|(_, field)| !matches!(field, Field::Null)).map(column).collect()
}

enum Refusal {
    NotFinite(String),
    Kind(&'static str),
}

fn value(field: Field) -> Result<Value, Refusal> {
    let float = |number: f64| {
        Number::from_f64(number).map(Value::Number).ok_or_else(|| Refusal::NotFinite(number.to_string()))
    };
    Ok(match field {
        Field::Null => Value::Null,
        Field::Bool(value) => Value::Bool(value),
        Field::Byte(value) => value.into(),
        Field::Short(value) => value.into(),
        Field::Int(value) => value.into(),
        Field::Long(value) => value.into(),
        Field::UByte(value) => value.into(),
        Field::UShort(value) => value.into(),
        Field::UInt(value) => value.into(),
        Field::ULong(value) => value.into(),
        Field::Float16(value) => float(value.into())?,
        Field::Float(value) => float(value.into())?,
        Field::Double(value) => float(value)?,
        Field::Str(text) => Value::String(text),
        Field::ListInternal(list) => {
            Value::Array(list.elements().iter().cloned().map(value).collect::<Result<_, _>>()?)
        }
        Field::Group(_) | Field::MapInternal(_) => Value::Object(Map::new()),
        Field::Bytes(_) => return Err(Refusal::Kind("bytes that are not marked as text")),
        Field::Decimal(_) => return Err(Refusal::Kind("a decimal number")),
        Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_)
        | Field::TimestampMillis(_)
        | Field::TimestampMicros(_) => return Err(Refusal::Kind("a time")),
    })
}

fn damaged(error: &ParquetError) -> Problem {
    let message = error.to_string();
    Problem::Parquet { message: message.trim_start_matches("Parquet error: ").to_owned() }
}

#[cfg(test)]
mod tests {
    use parquet::data_type::{BoolType, ByteArray, ByteArrayType, DoubleType, Int64Type};
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use proptest::prelude::*;
    use tempfile::NamedTempFile;

    use crate::dataset::{Fields, Format, ReadOptions, Sample, read};

    /// One column of optional values.
    enum Column<'a> {
        Text(&'a [Option<&'a str>]),
        Bytes(&'a [Option<&'a [u8]>]),
        Double(&'a [Option<f64>]),
        Long(&'a [Option<i64>]),
        Bool(&'a [Option<bool>]),
    }

    /// Which rows have a value, and those values.
    fn levels<T: Clone>(values: &[Option<T>]) -> (Vec<i16>, Vec<T>) {
        (values.iter().map(|v| i16::from(v.is_some())).collect(), values.iter().flatten().cloned().collect())
    }

    /// A file by parquet's own writer.
    fn file(columns: &[(&str, Column<'_>)]) -> NamedTempFile {
        let field = |(name, column): &(&str, Column<'_>)| match column {
            Column::Text(_) => format!("optional binary {name} (UTF8);"),
            Column::Bytes(_) => format!("optional binary {name};"),
            Column::Double(_) => format!("optional double {name};"),
            Column::Long(_) => format!("optional int64 {name};"),
            Column::Bool(_) => format!("optional boolean {name};"),
        };
        let schema = format!("message rows {{ {} }}", columns.iter().map(field).collect::<String>());
        let schema = parse_message_type(&schema).expect("a schema").into();
        let file = tempfile::Builder::new().suffix(".parquet").tempfile().expect("a file");
        let out = file.reopen().expect("writable");
        let properties = WriterProperties::builder().build().into();
        let mut writer = SerializedFileWriter::new(out, schema, properties).expect("a writer");
        let mut group = writer.next_row_group().expect("a row group");
        for (_, column) in columns {
            let mut writer = group.next_column().expect("a column").expect("one more");
            match column {
                Column::Text(values) => {
                    let (levels, values) = levels(values);
                    let values: Vec<ByteArray> = values.into_iter().map(ByteArray::from).collect();
                    writer.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)
                }
                Column::Bytes(values) => {
                    let (levels, values) = levels(values);
                    let values: Vec<ByteArray> =
                        values.into_iter().map(|bytes| ByteArray::from(bytes.to_vec())).collect();
                    writer.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None)
                }
                Column::Double(values) => {
                    let (levels, values) = levels(values);
                    writer.typed::<DoubleType>().write_batch(&values, Some(&levels), None)
                }
                Column::Long(values) => {
                    let (levels, values) = levels(values);
                    writer.typed::<Int64Type>().write_batch(&values, Some(&levels), None)
                }
                Column::Bool(values) => {
                    let (levels, values) = levels(values);
                    writer.typed::<BoolType>().write_batch(&values, Some(&levels), None)
                }
            }
            .expect("values written");
            writer.close().expect("column closed");
        }
        group.close().expect("group closed");
        writer.close().expect("file closed");
        file
    }

    fn samples(columns: &[(&str, Column<'_>)], fields: Fields) -> Result<Vec<Sample>, String> {
        let file = file(columns);
        let options = ReadOptions { format: None, fields };
        let name = file.path().display().to_string();
        read(file.path(), &options).map_err(|error| error.to_string().replace(&name, "data"))
    }

    #[test]
    fn rows_mean_what_they_mean_in_json_lines() {
        let columns = [
            ("picture", Column::Bytes(&[Some(b"\xff\xfe"), None])),
            ("image", Column::Bytes(&[Some(b"\x89PNG"), None])),
            ("text_a", Column::Text(&[Some("one"), Some("zwei")])),
            ("text_b", Column::Text(&[Some("two"), None])),
            ("score", Column::Double(&[Some(4.5), None])),
            ("label", Column::Long(&[Some(3), Some(-1)])),
        ];
        let read = samples(&columns, Fields::default()).expect("a good file");
        let facts: Vec<_> = read
            .iter()
            .map(|s| (s.line, s.text_a.as_str(), s.text_b.as_deref(), s.score, s.label.as_deref()))
            .collect();
        assert_eq!(
            facts,
            [(1, "one", Some("two"), Some(4.5), Some("3")), (2, "zwei", None, None, Some("-1"))]
        );
    }

    #[test]
    fn paths_of_images_start_at_the_file() {
        let image = ("image", Column::Text(&[Some("a.png"), None]));
        let columns = [image, ("text", Column::Text(&[Some("a"), Some("b")]))];
        let file = file(&columns);
        let read = read(file.path(), &ReadOptions::default()).expect("a good file");
        let images: Vec<_> = read.iter().map(|sample| sample.image.clone()).collect();
        assert_eq!(images, [Some(file.path().with_file_name("a.png")), None]);
    }

    #[test]
    fn columns_may_have_other_names() {
        let columns = [
            ("sentence", Column::Text(&[Some("a"), Some("b")])),
            ("good", Column::Bool(&[Some(true), Some(false)])),
        ];
        let fields = Fields { text: "sentence".into(), label: "good".into(), ..Fields::default() };
        let read = samples(&columns, fields).expect("a good file");
        let labels: Vec<_> = read.iter().map(|s| (s.text_a.as_str(), s.label.as_deref())).collect();
        assert_eq!(labels, [("a", Some("true")), ("b", Some("false"))]);
    }

    #[test]
    fn what_is_wrong_is_said_with_the_columns_that_there_are() {
        let other = |name: &str| Fields { text: name.into(), ..Fields::default() };
        let text = || Column::Text(&[Some("a"), Some("b")]);
        for (columns, fields, expected) in [
            (
                vec![("sentence", text()), ("label", Column::Long(&[None, None]))],
                Fields::default(),
                "data: the field `text_a` or `text` is missing; the fields here are `sentence`, `label`",
            ),
            (
                vec![("sentence", text())],
                other("sentences"),
                "data: the field `sentences` is missing; the fields here are `sentence`; did you mean `sentence`?",
            ),
            (
                vec![("text", text())],
                Fields { score: "similarity".into(), ..Fields::default() },
                "data: the field `similarity` is missing; the fields here are `text`",
            ),
            (
                vec![("text", Column::Text(&[Some("a"), None]))],
                Fields::default(),
                "data:2: the field `text_a` or `text` is missing; the fields here are none",
            ),
            (
                vec![("text", Column::Long(&[Some(1), Some(2)]))],
                Fields::default(),
                "data:1: the field `text` holds a number; a string is expected",
            ),
            (
                vec![("text", Column::Bytes(&[Some(b"a"), Some(b"b")]))],
                Fields::default(),
                "data:1: the field `text` holds bytes that are not marked as text; a string is expected",
            ),
            (
                vec![("text", text()), ("score", text())],
                Fields::default(),
                "data:1: the field `score` holds a string; a number is expected",
            ),
            (
                vec![("text", text()), ("score", Column::Double(&[Some(1.0), Some(f64::NAN)]))],
                Fields::default(),
                "data:2: the score `NaN` is not a finite number",
            ),
            (
                vec![("text", text())],
                Fields { text: 0.into(), ..Fields::default() },
                "data: column 0 is a column number, and the columns of a parquet file have names; give a name",
            ),
            (
                vec![("text", Column::Text(&[]))],
                Fields::default(),
                "data: the data set holds no samples; at least one is needed",
            ),
        ] {
            assert_eq!(samples(&columns, fields).expect_err("a bad file"), expected);
        }
    }

    #[test]
    fn a_file_that_is_no_parquet_says_so() {
        let file = tempfile::Builder::new().suffix(".parquet").tempfile().expect("a file");
        for content in [&b""[..], b"PAR1", b"{\"text\": \"one\"}\n", b"PAR1\xff\xff\xff\x7fPAR1"] {
            std::fs::write(file.path(), content).expect("written");
            let error = read(file.path(), &ReadOptions::default()).expect_err("a bad file").to_string();
            assert!(error.contains("the file is not a whole parquet file: "), "{error}");
        }
        assert_eq!(Format::from_extension(file.path()), Some(Format::Parquet));
    }

    proptest! {
        /// Damage anywhere is an error or another value, never a panic.
        #[test]
        fn damage_is_an_error_or_another_value(at in 0usize..1000, byte: u8, keep in 0usize..1000) {
            let good = file(&[
                ("text", Column::Text(&[Some("one"), None, Some("three")])),
                ("score", Column::Double(&[Some(1.0), Some(2.0), None])),
            ]);
            let mut bytes = std::fs::read(good.path()).expect("readable");
            let length = bytes.len();
            bytes[at % length] = byte;
            bytes.truncate(if keep % 3 == 0 { keep % length } else { length });
            std::fs::write(good.path(), bytes).expect("written");
            let _ = read(good.path(), &ReadOptions::default());
        }
    }
}
