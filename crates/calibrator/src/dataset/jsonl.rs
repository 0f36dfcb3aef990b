//! JSON lines: one object a line.
//!
//! Scores of up to 15 significant digits are read exactly; a longer one may be off in its last bit.

use std::io::Read;
use std::path::PathBuf;

use serde_json::{Map, Value};

use super::lines::Lines;
use super::{FieldRef, Fields, Parsed, Problem, Role, Sample};

/// Hands over the sample of each line until `each` says no.
pub(super) fn each(
    lines: &mut Lines<impl Read>,
    fields: &Fields,
    each: &mut dyn FnMut(Sample) -> bool,
) -> Parsed<()> {
    for role in Role::ALL {
        if let field @ FieldRef::Column(_) = fields.get(role) {
            return Err((0, Problem::ColumnInJson { field: field.clone() }));
        }
    }
    while let Some((line, text)) = lines.next_non_blank()? {
        let sample = sample(text, fields).map_err(|problem| (line, problem))?;
        if !each(Sample { line, ..sample }) {
            break;
        }
    }
    Ok(())
}

fn sample(line: &str, fields: &Fields) -> Result<Sample, Problem> {
    match serde_json::from_str(line).map_err(|error| not_json(&error))? {
        Value::Object(row) => sample_of(row, fields),
        other => Err(Problem::NotAnObject { found: kind(&other) }),
    }
}

/// The sample that an object holds.
pub(super) fn sample_of(row: Map<String, Value>, fields: &Fields) -> Result<Sample, Problem> {
    let row = Row { row, fields };
    let mut text_a = None;
    for &role in fields.first_text() {
        text_a = text_a.or(row.text(role)?);
    }
    let image = row.text(Role::Image)?.map(PathBuf::from);
    let messages = if text_a.is_none() || fields.wants_messages() { row.messages()? } else { None };
    let text_a = match text_a {
        Some(text) if messages.is_none() => text,
        _ if messages.is_some() || image.is_some() => String::new(),
        text => text.ok_or_else(|| fields.no_first_text(row.names()))?,
    };
    Ok(Sample {
        text_a,
        image,
        messages,
        text_b: row.text(Role::TextB)?,
        score: row.score()?,
        label: row.label()?,
        labels: row.labels()?,
        ..Sample::default()
    })
}

/// One object and where its fields are.
struct Row<'a> {
    row: Map<String, Value>,
    fields: &'a Fields,
}

impl Row<'_> {
    /// The value of a field; `null` is as good as absent. An absent field is an error when its name was chosen.
    fn value(&self, role: Role) -> Result<Option<&Value>, Problem> {
        let FieldRef::Name(name) = self.fields.get(role) else { return Ok(None) };
        match self.row.get(name) {
            Some(Value::Null) | None if self.fields.is_chosen(role) => {
                Err(Problem::missing(&[self.fields.get(role)], self.names()))
            }
            Some(Value::Null) | None => Ok(None),
            value => Ok(value),
        }
    }

    fn text(&self, role: Role) -> Result<Option<String>, Problem> {
        match self.value(role)? {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(other) => Err(self.wrong_kind(role, other, "a string")),
        }
    }

    /// A conversation: a list of at least one object with a `role`.
    fn messages(&self) -> Result<Option<Vec<Value>>, Problem> {
        let Some(name) = field_name(self.fields.messages.as_ref()) else { return Ok(None) };
        let field = || format!("`{name}`");
        let messages = match self.row.get(name) {
            None | Some(Value::Null) if self.fields.wants_messages() => {
                let wanted = FieldRef::from(name);
                return Err(Problem::missing(&[&wanted], self.names()));
            }
            None | Some(Value::Null) => return Ok(None),
            Some(Value::Array(messages)) => messages,
            Some(other) => {
                return Err(Problem::WrongKind { field: field(), found: kind(other), expected: MESSAGES });
            }
        };
        if messages.is_empty() {
            return Err(Problem::EmptyList { field: field() });
        }
        for message in messages {
            match message {
                Value::Object(message) if message.get("role").is_some_and(Value::is_string) => {}
                Value::Object(message) => {
                    let role = FieldRef::from("role");
                    return Err(Problem::missing(&[&role], message.keys().map(String::as_str)));
                }
                other => {
                    return Err(Problem::WrongKind {
                        field: field(),
                        found: kind(other),
                        expected: MESSAGES,
                    });
                }
            }
        }
        Ok(Some(messages.clone()))
    }

    fn score(&self) -> Result<Option<f64>, Problem> {
        match self.value(Role::Score)? {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_f64().filter(|score| score.is_finite()) {
                Some(score) => Ok(Some(score)),
                None => Err(Problem::Score { text: number.to_string() }),
            },
            Some(other) => Err(self.wrong_kind(Role::Score, other, "a number")),
        }
    }

    fn label(&self) -> Result<Option<String>, Problem> {
        match self.value(Role::Label)? {
            None | Some(Value::Array(_)) => Ok(None),
            Some(Value::String(label)) => Ok(Some(label.clone())),
            Some(Value::Number(label)) => Ok(Some(label.to_string())),
            Some(Value::Bool(label)) => Ok(Some(label.to_string())),
            Some(other) => {
                Err(self.wrong_kind(Role::Label, other, "a string, a number, a boolean or a list of these"))
            }
        }
    }

    fn labels(&self) -> Result<Option<Vec<String>>, Problem> {
        let Some(Value::Array(labels)) = self.value(Role::Label)? else { return Ok(None) };
        let one = |label: &Value| {
            scalar(label).ok_or_else(|| self.wrong_kind(Role::Label, label, "a list of strings or numbers"))
        };
        labels.iter().map(one).collect::<Result<_, _>>().map(Some)
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.row.keys().map(String::as_str)
    }

    fn wrong_kind(&self, role: Role, value: &Value, expected: &'static str) -> Problem {
        Problem::WrongKind { field: self.fields.get(role).to_string(), found: kind(value), expected }
    }
}

/// What a conversation is.
const MESSAGES: &str = "a list of objects such as {\"role\": \"user\", \"content\": \"...\"}";

/// The name of a field that has one.
fn field_name(field: Option<&FieldRef>) -> Option<&str> {
    match field {
        Some(FieldRef::Name(name)) => Some(name),
        Some(FieldRef::Column(_)) | None => None,
    }
}

/// A label as it is written.
pub(super) fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// serde's message without its "at line 1 column n": the line is always 1 there.
pub(super) fn not_json(error: &serde_json::Error) -> Problem {
    let message = error.to_string();
    let message = message.split_once(" at line ").map_or(message.as_str(), |(message, _)| message);
    Problem::Json { message: message.to_owned(), column: error.column() }
}
