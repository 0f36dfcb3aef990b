//! Rows that hold lists: words with their tags, questions with their answers or choices, queries with their documents.
//!
//! They come as JSON lines under fixed names, those of the data sets that made the tasks common.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Map, Value};

use super::jsonl::{kind, not_json, scalar};
use super::{DatasetError, FieldRef, Format, Problem, lines, read_bytes};

/// Where a row comes from, for messages.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origin {
    /// The file.
    pub file: Arc<str>,
    /// Its line there, from 1.
    pub line: usize,
}

/// A kind of row.
pub trait Record: Sized {
    /// Understands the object of a row.
    fn from_object(object: &Map<String, Value>, origin: Origin) -> Result<Self, Problem>;
}

/// The words of a sentence, each with its tag: `{"tokens": [...], "labels": [...]}`, where the second list may also be
/// called `tags` or `ner_tags`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaggedWords {
    /// The words, at least one.
    pub words: Vec<String>,
    /// The tag of each word; numbers as they are written.
    pub tags: Vec<String>,
    /// Where it comes from.
    pub origin: Origin,
}

/// A question, the text that answers it, and the answers that people gave: `{"question": ..., "context": ..., "answers":
/// [...]}`, or with SQuAD's `answers`, an object with the list `text`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Question {
    /// The question.
    pub question: String,
    /// The text to find the answer in.
    pub context: String,
    /// Answers that count as right; none where the text does not answer the question.
    pub answers: Vec<String>,
    /// Where it comes from.
    pub origin: Origin,
}

/// A query and documents, some of which answer it: `{"query": ..., "positives": [...], "negatives": [...]}`; the lists may
/// also be called `positive` and `negative`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranking {
    /// The query.
    pub query: String,
    /// Documents that belong at the top, at least one.
    pub positives: Vec<String>,
    /// Documents that belong below them, at least one.
    pub negatives: Vec<String>,
    /// Where it comes from.
    pub origin: Origin,
}

/// A text and continuations of it, one of which is right: `{"context": ..., "choices": [...], "answer": 0}`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choices {
    /// The text, not blank.
    pub context: String,
    /// Its continuations as they follow it, at least two, none blank.
    pub choices: Vec<String>,
    /// The index of the right one.
    pub answer: usize,
    /// Where it comes from.
    pub origin: Origin,
}

/// Reads every row of a JSON lines file, in its order. As [`read`](super::read), one broken row is an error.
pub fn read_records<T: Record>(path: &Path) -> Result<Vec<T>, DatasetError> {
    let name: Arc<str> = path.display().to_string().into();
    let whole_file = |problem| DatasetError::new(&name, 0, problem);
    if !matches!(Format::from_extension(path), None | Some(Format::Jsonl)) {
        return Err(whole_file(Problem::NotJsonl));
    }
    parse_records(&read_bytes(path).map_err(whole_file)?, &name)
}

/// Reads every row of a file's content; `file` is its name in messages. See [`read_records`].
pub fn parse_records<T: Record>(bytes: &[u8], file: &Arc<str>) -> Result<Vec<T>, DatasetError> {
    let text = lines::decode(bytes).map_err(|(line, problem)| DatasetError::new(file, line, problem))?;
    let row = |(line, text): (usize, &str)| {
        let origin = Origin { file: Arc::clone(file), line };
        let row = match serde_json::from_str(text) {
            Ok(Value::Object(object)) => T::from_object(&object, origin),
            Ok(other) => Err(Problem::NotAnObject { found: kind(&other) }),
            Err(error) => Err(not_json(&error)),
        };
        row.map_err(|problem| DatasetError::new(file, line, problem))
    };
    let rows: Vec<T> = lines::non_blank(text).map(row).collect::<Result<_, _>>()?;
    if rows.is_empty() {
        return Err(DatasetError::new(file, 0, Problem::Empty));
    }
    Ok(rows)
}

impl Record for TaggedWords {
    fn from_object(object: &Map<String, Value>, origin: Origin) -> Result<Self, Problem> {
        let words = list(object, &["tokens"])?;
        let tags = list(object, &["labels", "tags", "ner_tags"])?;
        if words.len() != tags.len() {
            return Err(Problem::Lengths { tokens: words.len(), labels: tags.len() });
        }
        non_empty("tokens", &words)?;
        Ok(Self { words, tags, origin })
    }
}

impl Record for Question {
    fn from_object(object: &Map<String, Value>, origin: Origin) -> Result<Self, Problem> {
        let (name, value) = field(object, &["answers"])?;
        let answers = match value {
            Value::Object(squad) => list(squad, &["text"])?,
            other => texts(name, other)?,
        };
        Ok(Self { question: text(object, "question")?, context: text(object, "context")?, answers, origin })
    }
}

impl Record for Ranking {
    fn from_object(object: &Map<String, Value>, origin: Origin) -> Result<Self, Problem> {
        let positives = list(object, &["positives", "positive"])?;
        let negatives = list(object, &["negatives", "negative"])?;
        non_empty("positives", &positives)?;
        non_empty("negatives", &negatives)?;
        Ok(Self { query: text(object, "query")?, positives, negatives, origin })
    }
}

impl Record for Choices {
    fn from_object(object: &Map<String, Value>, origin: Origin) -> Result<Self, Problem> {
        let context = text(object, "context")?;
        non_blank("`context`", &context)?;
        let choices = list(object, &["choices"])?;
        if choices.len() < 2 {
            return Err(Problem::FewChoices { found: choices.len() });
        }
        for (index, choice) in choices.iter().enumerate() {
            non_blank(&format!("`choices`, entry {index},"), choice)?;
        }
        let answer = match field(object, &["answer"])?.1 {
            Value::Number(number) => {
                let index = number.as_u64().and_then(|index| usize::try_from(index).ok());
                index
                    .filter(|index| *index < choices.len())
                    .ok_or_else(|| Problem::Answer { found: number.to_string(), choices: choices.len() })?
            }
            other => return Err(wrong_kind("answer", other, "the index of a choice, counted from 0,")),
        };
        Ok(Self { context, choices, answer, origin })
    }
}

fn non_blank(field: &str, text: &str) -> Result<(), Problem> {
    if text.trim().is_empty() { Err(Problem::Blank { field: field.to_owned() }) } else { Ok(()) }
}

fn non_empty(name: &str, list: &[String]) -> Result<(), Problem> {
    if list.is_empty() { Err(Problem::EmptyList { field: format!("`{name}`") }) } else { Ok(()) }
}

/// The first of the names that is there.
fn field<'a>(object: &'a Map<String, Value>, names: &[&'a str]) -> Result<(&'a str, &'a Value), Problem> {
    let found =
        names.iter().find_map(|name| Some((*name, object.get(*name).filter(|value| !value.is_null())?)));
    found.ok_or_else(|| {
        let wanted: Vec<FieldRef> = names.iter().map(|name| FieldRef::from(*name)).collect();
        Problem::missing(&wanted.iter().collect::<Vec<_>>(), object.keys().map(String::as_str))
    })
}

fn text(object: &Map<String, Value>, name: &str) -> Result<String, Problem> {
    match field(object, &[name])? {
        (_, Value::String(text)) => Ok(text.clone()),
        (_, other) => Err(wrong_kind(name, other, "a string")),
    }
}

fn list(object: &Map<String, Value>, names: &[&str]) -> Result<Vec<String>, Problem> {
    let (name, value) = field(object, names)?;
    texts(name, value)
}

fn texts(name: &str, value: &Value) -> Result<Vec<String>, Problem> {
    const EXPECTED: &str = "a list of strings";
    let Value::Array(entries) = value else { return Err(wrong_kind(name, value, EXPECTED)) };
    let one = |entry: &Value| match entry {
        Value::Bool(_) => Err(wrong_kind(name, entry, EXPECTED)),
        entry => scalar(entry).ok_or_else(|| wrong_kind(name, entry, EXPECTED)),
    };
    entries.iter().map(one).collect()
}

fn wrong_kind(name: &str, value: &Value, expected: &'static str) -> Problem {
    Problem::WrongKind { field: format!("`{name}`"), found: kind(value), expected }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<T: Record>(text: &str) -> Result<Vec<T>, String> {
        parse_records(text.as_bytes(), &"rows.jsonl".into()).map_err(|error| error.to_string())
    }

    #[test]
    fn every_kind_of_row_is_read_under_its_names() {
        let words: Vec<TaggedWords> =
            rows("{\"tokens\": [\"in\", \"Rome\"], \"ner_tags\": [0, 5]}\n\n{\"tokens\": [\"a\"], \"labels\": [\"O\"]}")
                .unwrap();
        assert_eq!((&words[0].words[1], &words[0].tags[1]), (&"Rome".to_owned(), &"5".to_owned()));
        assert_eq!((words[1].origin.line, &*words[1].origin.file), (3, "rows.jsonl"));

        let squad =
            r#"{"question": "q", "context": "c", "answers": {"text": ["a", "b"], "answer_start": [0, 1]}}"#;
        let plain = r#"{"question": "q", "context": "c", "answers": []}"#;
        let questions: Vec<Question> = rows(&format!("{squad}\n{plain}")).unwrap();
        assert_eq!((questions[0].answers.len(), questions[1].answers.len()), (2, 0));

        let rankings: Vec<Ranking> =
            rows(r#"{"query": "q", "positive": ["p"], "negatives": ["n", "m"]}"#).unwrap();
        assert_eq!((rankings[0].positives.len(), rankings[0].negatives.len()), (1, 2));

        let questions: Vec<Choices> =
            rows(r#"{"context": "one and one is ", "choices": ["one", 2], "answer": 1}"#).unwrap();
        assert_eq!((questions[0].choices[1].as_str(), questions[0].answer), ("2", 1));
    }

    #[test]
    fn a_broken_row_says_where_and_what_was_expected() {
        let tagged = |text: &str| rows::<TaggedWords>(text).unwrap_err();
        let cases = [
            (tagged("{\"tokens\": [\"a\"]}"), "the field `labels` or `tags` or `ner_tags` is missing"),
            (
                tagged("{\"tokens\": \"a b\", \"tags\": []}"),
                "the field `tokens` holds a string; a list of strings",
            ),
            (
                tagged("{\"tokens\": [\"a\"], \"tags\": []}"),
                "there are 1 tokens and 0 labels; each token has one",
            ),
            (tagged("{\"tokens\": [], \"tags\": []}"), "the list `tokens` is empty"),
            (tagged("[]"), "the line holds an array"),
            (tagged("{"), "the line is not a JSON object"),
            (
                rows::<Question>("{\"question\": \"q\", \"context\": 1, \"answers\": []}").unwrap_err(),
                "`context` holds a number",
            ),
            (
                rows::<Ranking>("{\"query\": \"q\", \"positives\": [\"a\"], \"negatives\": []}").unwrap_err(),
                "the list `negatives` is empty",
            ),
        ];
        let chosen = |text: &str| rows::<Choices>(text).unwrap_err();
        let of_choices = [
            (chosen(r#"{"choices": ["a", "b"], "answer": 0}"#), "the field `context` is missing"),
            (
                chosen(r#"{"context": " ", "choices": ["a", "b"], "answer": 0}"#),
                "`context` is blank; a text is expected",
            ),
            (
                chosen(r#"{"context": "c", "choices": ["a"], "answer": 0}"#),
                "the list `choices` has 1 entry; two or more are expected",
            ),
            (
                chosen(r#"{"context": "c", "choices": ["a", ""], "answer": 0}"#),
                "`choices`, entry 1, is blank; a text is expected",
            ),
            (
                chosen(r#"{"context": "c", "choices": ["a", ["b"]], "answer": 0}"#),
                "the field `choices` holds an array; a list of strings is expected",
            ),
            (
                chosen(r#"{"context": "c", "choices": ["a", "b"], "answer": "a"}"#),
                "the field `answer` holds a string; the index of a choice, counted from 0, is expected",
            ),
        ];
        let of_answers = ["2", "-1", "0.5", "1e400"].map(|answer| {
            let row = format!("{{\"context\": \"c\", \"choices\": [\"a\", \"b\"], \"answer\": {answer}}}");
            let expected =
                if answer == "1e400" { "not a JSON object" } else { "an index from 0 to 1 is expected" };
            (chosen(&row), expected)
        });
        for (found, expected) in cases.into_iter().chain(of_choices).chain(of_answers) {
            assert!(found.starts_with("rows.jsonl:1: ") && found.contains(expected), "{found}");
        }
        assert_eq!(tagged("\n"), "rows.jsonl: the data set holds no samples; at least one is needed");
    }
}
