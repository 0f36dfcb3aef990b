//! The parsed text before it is typed: values that know the place they were written at.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::Problem;

/// Where a key or value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// Nowhere in particular: the document itself.
    Document,
    /// Bytes of the config text.
    Text(Range<usize>),
    /// Bytes of the argument of this index.
    Argument(usize, Range<usize>),
}

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    String(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    List(Vec<Node>),
    Table(Vec<Entry>),
}

/// One `key = value` of a table.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key is written, which for a table may be elsewhere than its value.
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Value {
    /// The kind and content in words, for "expected ..., found ...".
    pub(super) fn in_words(&self) -> String {
        match self {
            Self::String(text) => format!("the string \"{}\"", super::error::short(text)),
            Self::Integer(number) => format!("the number {number}"),
            Self::Float(number) => format!("the number {number:?}"),
            Self::Boolean(flag) => flag.to_string(),
            Self::Datetime(text) => format!("the date {text}"),
            Self::List(_) => "a list".to_owned(),
            Self::Table(_) => "a table".to_owned(),
        }
    }
}

impl Node {
    /// Parses a TOML document.
    pub(super) fn parse(text: &str) -> Result<Self, (Place, Problem)> {
        let root = DeTable::parse(text).map_err(|error| syntax_error(&error))?;
        let value = table(root.into_inner(), &|span| Place::Text(span))?;
        Ok(Self { value, place: Place::Document })
    }

    /// The value of argument number `index`, which begins at its byte `offset`. It is TOML where it parses as TOML,
    /// else a string, unless it begins as a string, list or table of TOML does.
    pub(super) fn parse_value(text: &str, index: usize, offset: usize) -> Result<Self, (Place, Problem)> {
        let placing = |span: Range<usize>| Place::Argument(index, span.start + offset..span.end + offset);
        match DeValue::parse(text) {
            Ok(value) => node(value, &placing),
            Err(error) if text.starts_with(['[', '{', '"', '\'']) => {
                let (place, problem) = syntax_error(&error);
                let place = if let Place::Text(span) = place { placing(span) } else { place };
                Err((place, problem))
            }
            Err(_) => Ok(Self { value: Value::String(text.to_owned()), place: placing(0..text.len()) }),
        }
    }

    /// The entry or element called `segment`.
    pub(super) fn child(&self, segment: &str) -> Option<&Self> {
        match &self.value {
            Value::Table(entries) => {
                entries.iter().find(|entry| entry.key == segment).map(|entry| &entry.node)
            }
            Value::List(nodes) => nodes.get(segment.parse::<usize>().ok()?),
            _ => None,
        }
    }

    /// The place of the value of the dotted `path`, when it is written.
    pub(super) fn exact_place_of(&self, path: &str) -> Option<Place> {
        let node = path.split('.').try_fold(self, |node, segment| node.child(segment))?;
        Some(node.place.clone())
    }

    /// The place of the deepest part of the dotted `path` that is written somewhere.
    pub(super) fn place_of(&self, path: &str) -> Place {
        let mut node = self;
        for segment in path.split('.') {
            match node.child(segment) {
                Some(child) => node = child,
                None => break,
            }
        }
        node.place.clone()
    }
}

type Placing<'a> = &'a dyn Fn(Range<usize>) -> Place;

fn syntax_error(error: &toml::de::Error) -> (Place, Problem) {
    let message = error.message().lines().collect::<Vec<_>>().join(", ");
    let place = error.span().map_or(Place::Document, Place::Text);
    let label = if message.contains("duplicate") { "given already" } else { "not as TOML has it" };
    let hint = if message.contains("escape") {
        "in single quotes a backslash is itself: 're:encoder\\.layer\\.0'"
    } else if message.contains("duplicate key") {
        "each key is given once: keep one of them"
    } else {
        "`[name]` begins a table; a value is a \"string\", a number, `true`, `false`, `[a, list]` or `{ key = value }`"
    };
    let problem = Problem::new("", format!("this is not valid TOML: {message}"));
    (place, problem.label(label).hint(hint))
}

fn node(spanned: Spanned<DeValue<'_>>, placing: Placing<'_>) -> Result<Node, (Place, Problem)> {
    let place = placing(spanned.span());
    let too_large = |digits: &str| {
        let message = format!("the number {} does not fit into 64 bits", super::error::short(digits));
        let problem = Problem::new("", message).label("too large");
        (place.clone(), problem.hint(format!("allowed: up to {}", i64::MAX)))
    };
    let value = match spanned.into_inner() {
        DeValue::String(text) => Value::String(text.into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(Value::Integer)
            .map_err(|_| too_large(number.as_str()))?,
        DeValue::Float(number) => {
            number.as_str().parse().map(Value::Float).map_err(|_| too_large(number.as_str()))?
        }
        DeValue::Boolean(flag) => Value::Boolean(flag),
        DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
        DeValue::Array(array) => {
            Value::List(array.into_iter().map(|item| node(item, placing)).collect::<Result<_, _>>()?)
        }
        DeValue::Table(inner) => table(inner, placing)?,
    };
    Ok(Node { value, place })
}

fn table(table: DeTable<'_>, placing: Placing<'_>) -> Result<Value, (Place, Problem)> {
    let entry = |(key, value): (Spanned<std::borrow::Cow<'_, str>>, Spanned<DeValue<'_>>)| {
        Ok(Entry {
            place: placing(key.span()),
            key: key.into_inner().into_owned(),
            node: node(value, placing)?,
        })
    };
    table.into_iter().map(entry).collect::<Result<_, _>>().map(Value::Table)
}
