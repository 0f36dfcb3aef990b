//! What `transformers` adds to Jinja for chat templates, and what Python has that the engine has not.

use std::error::Error as _;
use std::fmt::{self, Write as _};
use std::io;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, escape_formatter};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter};

use super::{MAX_RENDERED_BYTES, shortened};

/// Adds functions, filters, methods and how values are printed.
pub(super) fn add_to(environment: &mut Environment<'_>) {
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime);
    environment.add_filter("tojson", to_json);
    // The engine goes through nothing at all as through an empty list.
    environment.add_test("iterable", |value: &Value| !value.is_none() && value.try_iter().is_ok());
    environment.set_unknown_method_callback(method);
    environment.set_formatter(print);
}

/// The template with the line ends that Jinja makes of all others, and with the blocks `generation`, which mark the answers of
/// an assistant for training, as blocks that do nothing.
pub(super) fn as_understood(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut out = String::with_capacity(source.len());
    let mut rest = source.as_str();
    while let Some(start) = rest.find("{%") {
        let (before, block) = rest.split_at(start);
        out.push_str(before);
        let end = block.find("%}").map_or(block.len(), |end| end + 2);
        let (block, behind) = block.split_at(end);
        let inner = block.strip_prefix("{%").and_then(|inner| inner.strip_suffix("%}"));
        let word = inner.map_or("", |inner| inner.trim_matches(['-', '+']).trim());
        let stand_in = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        match stand_in {
            Some(stand_in) => out.push_str(&block.replacen(word, stand_in, 1)),
            None => out.push_str(block),
        }
        rest = behind;
    }
    out + rest
}

/// What a template says when it calls `raise_exception`.
#[derive(Debug)]
struct Refusal(String);

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

fn raise_exception(message: &str) -> Result<Value, Error> {
    let refusal = Refusal(shortened(message));
    Err(Error::new(ErrorKind::InvalidOperation, "the template refuses").with_source(refusal))
}

/// The template's own words, where an error is one that it raised.
pub(super) fn refusal(error: &Error) -> Option<&str> {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(Refusal(message)) = cause.downcast_ref() {
            return Some(message);
        }
        source = cause.source();
    }
    None
}

/// A moment as `strftime` of Python writes it, in the C locale. It is always the same one, midnight of 26 July 2024, so that
/// equal conversations have equal tokens; templates of Llama 3 fall back to that day where they are told none.
fn strftime(format: &str) -> Result<String, Error> {
    let mut text = String::with_capacity(format.len());
    let mut characters = format.chars().peekable();
    while let Some(c) = characters.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let padded = characters.next_if_eq(&'-').is_none();
        let directive = characters.next();
        text.push_str(match (directive, padded) {
            (Some('Y'), _) => "2024",
            (Some('y'), _) => "24",
            (Some('m'), true) => "07",
            (Some('m'), false) => "7",
            (Some('d' | 'e'), _) => "26",
            (Some('B'), _) => "July",
            (Some('b' | 'h'), _) => "Jul",
            (Some('A'), _) => "Friday",
            (Some('a'), _) => "Fri",
            (Some('j'), _) => "208",
            (Some('H' | 'M' | 'S'), true) => "00",
            (Some('H' | 'M' | 'S'), false) => "0",
            (Some('I'), _) => "12",
            (Some('p'), _) => "AM",
            (Some('F'), true) => "2024-07-26",
            (Some('T'), true) => "00:00:00",
            (Some('Z' | 'z'), true) => "",
            (Some('%'), true) => "%",
            _ => {
                let directive = directive.map_or_else(String::new, String::from);
                let message = format!("strftime_now does not know %{directive}");
                return Err(Error::new(ErrorKind::InvalidOperation, message));
            }
        });
    }
    Ok(text)
}

/// `json.dumps(value, ensure_ascii=False)` of Python, with its spaces, instead of Jinja's filter, which escapes for HTML.
#[expect(clippy::needless_pass_by_value, reason = "the engine hands over options by value")]
fn to_json(
    state: &State<'_, '_>,
    value: &Value,
    indent: Option<Value>,
    keys: Kwargs,
) -> Result<String, Error> {
    let wrong =
        |error: &dyn fmt::Display| Error::new(ErrorKind::InvalidOperation, format!("tojson: {error}"));
    let indent = match indent {
        Some(indent) => Some(indent),
        None => keys.get("indent")?,
    };
    let ascii: Option<bool> = keys.get("ensure_ascii")?;
    let sorted: Option<bool> = keys.get("sort_keys")?;
    let separators: Option<Value> = keys.get("separators")?;
    keys.assert_all_used()?;
    if ascii == Some(true) || sorted == Some(true) || separators.is_some_and(|value| !value.is_none()) {
        return Err(wrong(&"of its options only `indent` is supported"));
    }
    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => Some(usize::try_from(indent)?.min(16)),
    };
    let mut text = super::Limited(Vec::new());
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, Spaced)),
        Some(indent) => {
            let spaces = " ".repeat(indent);
            let formatter = PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
        }
    };
    written.map_err(|error| wrong(&error))?;
    state.consume_fuel(text.0.len() as u64 / 64)?;
    String::from_utf8(text.0).map_err(|error| wrong(&error))
}

/// Python's separators: a space behind commas and colons.
struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { writer.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, writer: &mut W) -> io::Result<()> {
        writer.write_all(b": ")
    }
}

/// Python's methods. `str.format` alone can make much of little without being charged for it, so it pays beforehand.
fn method(state: &mut State<'_, '_>, value: &Value, name: &str, arguments: &[Value]) -> Result<Value, Error> {
    if name == "format"
        && let Some(format) = value.as_str()
    {
        let widths = format.split(|c: char| !c.is_ascii_digit()).filter(|digits| !digits.is_empty());
        let widths = widths.map(|digits| digits.parse().unwrap_or(u64::MAX)).fold(0, u64::saturating_add);
        let longest = arguments.iter().map(printed_bytes).max().unwrap_or(0);
        let fields = format.matches('{').count() as u64;
        state.consume_fuel(widths.saturating_add(fields.saturating_mul(longest)) / 64)?;
    }
    minijinja_contrib::pycompat::unknown_method_callback(state, value, name, arguments)
}

/// Bytes of a value as it is printed, as far as a text may be long.
fn printed_bytes(value: &Value) -> u64 {
    let mut counted = Counted(0);
    if write!(counted, "{value}").is_err() { u64::MAX } else { counted.0 as u64 }
}

struct Counted(usize);

impl fmt::Write for Counted {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0 += text.len();
        if self.0 > MAX_RENDERED_BYTES { Err(fmt::Error) } else { Ok(()) }
    }
}

/// Prints a value as Python does, unless its text is [`MAX_RENDERED_BYTES`] long, wherever it goes.
fn print(out: &mut Output<'_>, state: &mut State<'_, '_>, value: &Value) -> Result<(), Error> {
    if value.kind() != ValueKind::String && printed_bytes(value) == u64::MAX {
        return Err(Error::from(ErrorKind::WriteFailure));
    }
    escape_formatter(out, state, value)
}
