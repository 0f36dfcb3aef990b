//! From the placed tree to types: a serde deserializer whose errors say which key, where, and what is allowed.

use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};

use super::error::{Problem, name_hint, quoted};
use super::tree::{Entry, Node, Place, Value};

/// Types a tree.
pub(super) fn decode<'de, T: Deserialize<'de>>(root: &Node) -> Result<T, (Place, Problem)> {
    T::deserialize(Typing(root)).map_err(|error| {
        let place = error.place.clone().unwrap_or(Place::Document);
        (place, error.into_problem())
    })
}

/// An error on its way up: each level that it leaves adds its key, the innermost that knows a place gives it.
#[derive(Debug)]
struct Error {
    kind: Kind,
    /// From the innermost key outwards.
    path: Vec<String>,
    place: Option<Place>,
}

#[derive(Debug)]
enum Kind {
    UnknownKey { key: String, allowed: &'static [&'static str] },
    UnknownName { name: String, allowed: &'static [&'static str] },
    Missing(&'static str),
    WrongType { expected: String, found: String, hint: Option<String> },
    Other(String),
}

impl Error {
    fn new(kind: Kind) -> Self {
        Self { kind, path: Vec::new(), place: None }
    }

    fn at(mut self, place: &Place) -> Self {
        self.place.get_or_insert_with(|| place.clone());
        self
    }

    fn inside(mut self, key: impl Into<String>) -> Self {
        self.path.push(key.into());
        self
    }

    fn into_problem(mut self) -> Problem {
        self.path.reverse();
        let path = self.path.join(".");
        let here = quoted(&path);
        match self.kind {
            Kind::UnknownKey { key, allowed } => {
                let parent = match path.rsplit_once('.') {
                    Some((parent, _)) => format!(" in {}", quoted(parent)),
                    None => " at the top level".to_owned(),
                };
                let message = format!("unknown key {}{parent}", quoted(&key));
                Problem::new(path, message).label("unknown key").hint(name_hint(&key, allowed))
            }
            Kind::UnknownName { name, allowed } => {
                Problem::new(path, format!("{here} cannot be {}", quoted(&name)))
                    .label("not one of those allowed")
                    .hint(name_hint(&name, allowed))
            }
            Kind::Missing(key) => {
                let path = match (path.as_str(), key) {
                    ("", "model") => "model.source".to_owned(),
                    ("", key) => key.to_owned(),
                    (path, key) => format!("{path}.{key}"),
                };
                let problem = Problem::new(path.clone(), format!("{} is missing", quoted(&path)))
                    .label(format!("{} belongs here", quoted(key)));
                if path == "model.source" {
                    problem.hint(
                        "add `[model]` with `source = \"DIRECTORY\"`, or `source = \"embedded\"` for a trial",
                    )
                } else {
                    problem.hint(format!("add `{key} = ...`; `zeropoint schema` describes every key"))
                }
            }
            Kind::WrongType { expected, found, hint } => {
                let message = format!("{here} must be {expected}, but is {found}");
                let hint = hint.unwrap_or_else(|| match expected.as_str() {
                    "a table" => format!("write `[{path}]` with its keys below it, or `{{ key = value }}`"),
                    "a list" => "a list stands in brackets: `[\"one\", \"two\"]`".to_owned(),
                    "0 or more" => "the number has no sign here".to_owned(),
                    "a whole number" => "a whole number stands without quotes: 64".to_owned(),
                    _ => format!("write {expected}"),
                });
                Problem::new(path, message).label(found).hint(hint)
            }
            Kind::Other(message) if path.is_empty() => Problem::new(path, message),
            // A second line of a message is what to do.
            Kind::Other(message) => match message.split_once('\n') {
                Some((message, hint)) => {
                    Problem::new(path, format!("{here}: {message}")).label("not understood").hint(hint)
                }
                None => Problem::new(path, format!("{here}: {message}")),
            },
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.kind)
    }
}

impl std::error::Error for Error {}

impl de::Error for Error {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Other(message.to_string()))
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let found = match found {
            Unexpected::Seq => "a list".to_owned(),
            Unexpected::Map => "a table".to_owned(),
            Unexpected::Bool(flag) => flag.to_string(),
            Unexpected::Signed(number) => format!("the number {number}"),
            Unexpected::Unsigned(number) => format!("the number {number}"),
            Unexpected::Float(number) => format!("the number {number:?}"),
            other => other.to_string(),
        };
        Self::new(Kind::WrongType { expected: expected.to_string(), found, hint: None })
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        match found {
            // serde would name the Rust type here.
            Unexpected::Unsigned(_) => Self::invalid_type(found, &"a smaller whole number"),
            _ => Self::invalid_type(found, expected),
        }
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownName { name: variant.to_owned(), allowed: expected })
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey { key: field.to_owned(), allowed: expected })
    }

    fn missing_field(field: &'static str) -> Self {
        Self::new(Kind::Missing(field))
    }
}

/// Reads one node as the type that is asked for.
struct Typing<'a>(&'a Node);

impl Typing<'_> {
    fn wrong<T>(&self, expected: &str) -> Result<T, Error> {
        self.wrong_with(expected, None)
    }

    fn wrong_with<T>(&self, expected: &str, hint: Option<String>) -> Result<T, Error> {
        let kind = Kind::WrongType { expected: expected.to_owned(), found: self.0.value.in_words(), hint };
        Err(Error::new(kind).at(&self.0.place))
    }

    /// For a number or flag that was put in quotes.
    fn unquote<V: std::str::FromStr>(&self) -> Option<String> {
        match &self.0.value {
            Value::String(text) if text.parse::<V>().is_ok() => Some(format!("without the quotes: {text}")),
            _ => None,
        }
    }

    fn whole<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.value {
            Value::Integer(number) if number >= 0 => {
                visitor.visit_u64(number.unsigned_abs()).map_err(|error: Error| error.at(&self.0.place))
            }
            Value::Integer(_) => self.wrong("0 or more"),
            _ => self.wrong_with("a whole number", self.unquote::<u64>()),
        }
    }

    fn number<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.value {
            Value::Integer(number) => visitor.visit_i64(number),
            Value::Float(number) => visitor.visit_f64(number),
            _ => self.wrong_with("a number", self.unquote::<f64>()),
        }
    }

    fn string<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::String(text) => visitor.visit_str(text).map_err(|error: Error| error.at(&self.0.place)),
            Value::Integer(_) | Value::Float(_) | Value::Boolean(_) | Value::Datetime(_) => {
                let hint = match self.0.place {
                    Place::Argument(..) => "quote it twice: `--set 'key=\"value\"'`",
                    _ => "put it in quotes",
                };
                self.wrong_with("a string", Some(hint.to_owned()))
            }
            _ => self.wrong("a string"),
        }
    }

    fn table<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::Table(entries) => visitor
                .visit_map(Entries { rest: entries.iter(), current: None })
                .map_err(|error: Error| error.at(&self.0.place)),
            _ => self.wrong("a table"),
        }
    }

    fn list<'de, V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::List(nodes) => visitor
                .visit_seq(Items { rest: nodes.iter().enumerate() })
                .map_err(|error: Error| error.at(&self.0.place)),
            Value::String(text) => {
                self.wrong_with("a list", Some(format!("write `[\"{}\"]`", super::error::short(text))))
            }
            _ => self.wrong("a list"),
        }
    }
}

macro_rules! forward {
    ($to:ident: $($name:ident)*) => {
        $(fn $name<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
            self.$to(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for Typing<'_> {
    type Error = Error;

    forward!(whole: deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64);
    forward!(number: deserialize_f32 deserialize_f64);
    forward!(string: deserialize_str deserialize_string deserialize_identifier);
    forward!(table: deserialize_map);
    forward!(list: deserialize_seq);
    forward!(deserialize_any: deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_bytes
        deserialize_byte_buf deserialize_unit deserialize_ignored_any);

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let place = self.0.place.clone();
        match &self.0.value {
            Value::String(text) => visitor.visit_str(text),
            Value::Integer(number) => match u64::try_from(*number) {
                Ok(number) => visitor.visit_u64(number),
                Err(_) => visitor.visit_i64(*number),
            },
            Value::Float(number) => visitor.visit_f64(*number),
            Value::Boolean(flag) => visitor.visit_bool(*flag),
            Value::Datetime(_) => Err(de::Error::invalid_type(Unexpected::Other("a date"), &visitor)),
            Value::List(_) => self.list(visitor),
            Value::Table(_) => self.table(visitor),
        }
        .map_err(|error| error.at(&place))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.0.value {
            Value::Boolean(flag) => visitor.visit_bool(flag),
            _ => self.wrong_with("true or false", self.unquote::<bool>()),
        }
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let Value::String(text) = &self.0.value else { return self.wrong("one character in quotes") };
        let mut characters = text.chars();
        match (characters.next(), characters.next()) {
            (Some(character), None) => visitor.visit_char(character),
            _ => self.wrong("one character"),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.deserialize_any(visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        self.list(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.list(visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        self.table(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::String(name) => visitor
                .visit_enum(name.as_str().into_deserializer())
                .map_err(|error: Error| error.at(&self.0.place)),
            _ => self.wrong(&format!("one of {}", super::error::list(variants))),
        }
    }
}

struct Entries<'a> {
    rest: std::slice::Iter<'a, Entry>,
    current: Option<&'a Entry>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        self.current = self.rest.next();
        let Some(entry) = self.current else { return Ok(None) };
        seed.deserialize(entry.key.as_str().into_deserializer())
            .map(Some)
            .map_err(|error: Error| error.at(&entry.place).inside(&entry.key))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Error> {
        let Some(entry) = self.current.take() else {
            return Err(de::Error::custom("a value was asked for before its key"));
        };
        seed.deserialize(Typing(&entry.node)).map_err(|error| error.at(&entry.node.place).inside(&entry.key))
    }
}

struct Items<'a> {
    rest: std::iter::Enumerate<std::slice::Iter<'a, Node>>,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        let Some((index, node)) = self.rest.next() else { return Ok(None) };
        seed.deserialize(Typing(node))
            .map(Some)
            .map_err(|error| error.at(&node.place).inside(index.to_string()))
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.rest.len())
    }
}
