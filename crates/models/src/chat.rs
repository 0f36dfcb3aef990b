//! Chat templates: conversations as the texts that a language model was trained on.
//!
//! A template is a Jinja program in the model's own files. It is rendered as `transformers` does in `apply_chat_template`:
//! with Jinja's own white space (`trim_blocks` and `lstrip_blocks`), Python's methods of strings and dictionaries, the
//! filter `tojson`, the functions `raise_exception` and `strftime_now`, and the model's special tokens as variables.
//!
//! It comes from outside, so its size, its steps, its recursion and what it writes are limited ([`MAX_TEMPLATE_BYTES`],
//! [`MAX_RENDERED_BYTES`]), and it runs on a stack of its own. It reaches no file and no clock. One thing is not
//! limited: a list that holds itself many times over takes memory when a template joins it to a string.

mod python;

use std::io;
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error, ErrorKind};
use serde_json::{Map, Value, json};
use zeropoint_core::contain;

use crate::ModelError;
use crate::source::{ModelDirectory, read_json_if_there};

/// The largest template, in bytes. The longest that models come with have half of it.
pub const MAX_TEMPLATE_BYTES: usize = 64 << 10;
/// The longest text that a template may make of a conversation, in bytes.
pub const MAX_RENDERED_BYTES: usize = 64 << 20;

/// The stack of a rendering. The engine calls itself for each operator of a chain and each list within a list: a template of
/// the largest size that is one such chain needs less, as a test shows.
const STACK_BYTES: usize = 256 << 20;
/// What a rendering may cost whatever the conversation is, in steps of the engine, which also counts 64 bytes as one. The
/// longest templates take about a hundred steps a message.
const STEPS: u64 = 200_000;
/// Steps for each message on top of that.
const STEPS_PER_MESSAGE: u64 = 2_000;
/// Steps for so many bytes of the conversation: it may be copied sixteen times.
const BYTES_PER_STEP: u64 = 4;
/// Nested calls of macros and recursive loops.
const RECURSION: usize = 100;

/// The template of a model for conversations.
pub struct ChatTemplate {
    path: PathBuf,
    environment: Environment<'static>,
    /// Special tokens by the names that templates know them by.
    tokens: Map<String, Value>,
}

/// The one template of an environment.
const NAME: &str = "chat_template";

/// The special tokens that a template may ask for (`SPECIAL_TOKENS_ATTRIBUTES` of `transformers`).
const SPECIAL_TOKENS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

impl ModelDirectory {
    /// The model's chat template: the file `chat_template.jinja`, otherwise `chat_template` of `tokenizer_config.json`, and
    /// where that is a list, the one of the name `default`. `None` where there is neither.
    ///
    /// # Errors
    ///
    /// A template that is too large or that Jinja does not understand.
    pub fn chat_template(&self) -> Result<Option<ChatTemplate>, ModelError> {
        let settings = self.path().join("tokenizer_config.json");
        let config: Map<String, Value> = read_json_if_there(&settings)?.unwrap_or_default();
        let file = self.path().join("chat_template.jinja");
        let (path, source) = if file.exists() {
            let source = read_template(&file)?;
            (file, source)
        } else {
            match default_template(config.get("chat_template")) {
                Ok(None) => return Ok(None),
                Ok(Some(source)) => (settings, source),
                Err(reason) => return Err(ModelError::ChatTemplate { path: settings, reason }),
            }
        };
        let mut tokens: Map<String, Value> =
            read_json_if_there(&self.path().join("special_tokens_map.json"))?.unwrap_or_default();
        tokens.extend(config);
        ChatTemplate::new(path, &source, &tokens).map(Some)
    }
}

/// A template file, which is not read when it is too large.
fn read_template(path: &Path) -> Result<String, ModelError> {
    let io = |source| ModelError::Io { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(io)?.len();
    if bytes > MAX_TEMPLATE_BYTES as u64 {
        return Err(ModelError::ChatTemplate { path: path.to_owned(), reason: too_large(bytes) });
    }
    std::fs::read_to_string(path).map_err(io)
}

fn too_large(bytes: u64) -> String {
    format!("is {bytes} bytes long; at most {MAX_TEMPLATE_BYTES} are taken")
}

/// `chat_template` of `tokenizer_config.json`: a template, or a list of them with their names.
fn default_template(value: Option<&Value>) -> Result<Option<String>, String> {
    let text = |value: &Value, key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(Some(source.clone())),
        Some(Value::Array(list)) => {
            let named: Option<Vec<(String, String)>> =
                list.iter().map(|entry| text(entry, "name").zip(text(entry, "template"))).collect();
            let named = named.ok_or("is a list in which not every entry has a `name` and a `template`")?;
            let names: Vec<String> = named.iter().map(|(name, _)| format!("`{name}`")).collect();
            let default = named.into_iter().find(|(name, _)| name == "default");
            let missing = || format!("is a list without the name `default`; there are {}", names.join(", "));
            default.map(|(_, source)| Some(source)).ok_or_else(missing)
        }
        Some(other) => {
            Err(format!("is neither a text nor a list of named texts: {}", shortened(&other.to_string())))
        }
    }
}

impl ChatTemplate {
    /// The template `source`, which came from the file `path`; `settings` has the special tokens among its keys, as
    /// `tokenizer_config.json` has them.
    ///
    /// # Errors
    ///
    /// A template that is too large or that Jinja does not understand.
    pub fn new(path: PathBuf, source: &str, settings: &Map<String, Value>) -> Result<Self, ModelError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            let reason = too_large(source.len() as u64);
            return Err(ModelError::ChatTemplate { path, reason });
        }
        let token = |name: &str| match settings.get(name)? {
            Value::String(token) => Some(token.clone()),
            // An `AddedToken` that was written out.
            added => added.get("content").and_then(Value::as_str).map(str::to_owned),
        };
        let tokens = SPECIAL_TOKENS
            .iter()
            .filter_map(|name| token(name).map(|token| ((*name).to_owned(), Value::String(token))))
            .collect();
        let source = python::as_understood(source);
        let compiled = on_large_stack(|| {
            let mut environment = environment();
            environment.add_template_owned(NAME, source)?;
            Ok(environment)
        });
        match compiled {
            Ok(environment) => Ok(Self { path, environment, tokens }),
            Err(failure) => {
                Err(ModelError::ChatTemplate { path, reason: failure.describe("is not understood") })
            }
        }
    }

    /// The text of a conversation, whose messages are objects such as `{"role": "user", "content": "..."}`; other keys are
    /// there for the template to use. With `generation_prompt`, the beginning of an answer is put at the end.
    ///
    /// Special tokens are part of the text: it is tokenised without adding any
    /// ([`Tokenizer::token_ids`](crate::Tokenizer::token_ids)).
    ///
    /// # Errors
    ///
    /// What the template refuses, such as a role that it does not know; a template that fails, or goes on for too long.
    pub fn render(&self, messages: &[Value], generation_prompt: bool) -> Result<String, ModelError> {
        let failed = |reason: String| ModelError::ChatTemplate { path: self.path.clone(), reason };
        if let Some(other) = messages.iter().find(|message| !message.is_object()) {
            let other = shortened(&other.to_string());
            return Err(failed(format!("takes messages that are objects, and one is {other}")));
        }
        let bytes: u64 = messages.iter().map(text_bytes).sum();
        let mut environment = self.environment.clone();
        environment.set_fuel(Some(
            STEPS
                .saturating_add(STEPS_PER_MESSAGE.saturating_mul(messages.len() as u64))
                .saturating_add(bytes / BYTES_PER_STEP),
        ));
        let mut variables = self.tokens.clone();
        variables.insert("messages".to_owned(), messages.into());
        variables.insert("add_generation_prompt".to_owned(), generation_prompt.into());
        // `transformers` hands both over, without a value.
        variables.insert("tools".to_owned(), json!(null));
        variables.insert("documents".to_owned(), json!(null));
        let rendered = on_large_stack(|| {
            let mut text = Limited(Vec::new());
            environment.get_template(NAME)?.render_captured_to(Serde(&variables), &mut text)?;
            Ok(text.0)
        });
        let text = rendered.map_err(|failure| failed(failure.describe("fails on a conversation")))?;
        // Only whole strings were written.
        String::from_utf8(text).map_err(|error| failed(format!("writes no UTF-8: {error}")))
    }
}

/// Bytes of every text in a message.
fn text_bytes(value: &Value) -> u64 {
    match value {
        Value::String(text) => text.len() as u64,
        Value::Array(entries) => entries.iter().map(text_bytes).sum(),
        Value::Object(entries) => {
            entries.iter().map(|(key, value)| key.len() as u64 + text_bytes(value)).sum()
        }
        _ => 0,
    }
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    // Only delimiters of one's own can be refused.
    environment.set_syntax(syntax.unwrap_or_default());
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_recursion_limit(RECURSION);
    python::add_to(&mut environment);
    environment
}

/// Why a template did not compile or render.
enum Failure {
    Template(Error),
    /// The library gave up.
    Panic(String),
    Thread(io::Error),
}

impl Failure {
    /// A sentence without its subject; `what` is said of faults of the template.
    fn describe(&self, what: &str) -> String {
        let error = match self {
            Self::Template(error) => error,
            Self::Panic(message) => return format!("{what}: the template engine gives up on it ({message})"),
            Self::Thread(error) => return format!("cannot be run, as there is no thread for it: {error}"),
        };
        if let Some(refusal) = python::refusal(error) {
            return format!("refuses the conversation: {refusal}");
        }
        match error.kind() {
            ErrorKind::OutOfFuel => {
                "takes more steps than any conversation of this length should need".to_owned()
            }
            ErrorKind::WriteFailure => {
                format!("writes more than {} MiB for one conversation", MAX_RENDERED_BYTES >> 20)
            }
            kind => {
                let line = error.line().map(|line| format!(" in line {line}")).unwrap_or_default();
                let detail = error.detail().map_or_else(|| kind.to_string(), str::to_owned);
                format!("{what}{line}: {}", shortened(&detail))
            }
        }
    }
}

/// The first line of a message of the engine or the template, of which a template decides the length.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 200;
    let line: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SHOWN).collect();
    if text.chars().nth(SHOWN).is_some() { line + "..." } else { line }
}

/// Calls `f` on a thread with a stack of [`STACK_BYTES`], panics caught.
fn on_large_stack<T: Send>(f: impl FnOnce() -> Result<T, Error> + Send) -> Result<T, Failure> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(NAME.to_owned())
            .stack_size(STACK_BYTES)
            .spawn_scoped(scope, || contain(f))
            .map_err(Failure::Thread)?;
        match thread.join() {
            Ok(Ok(result)) => result.map_err(Failure::Template),
            Ok(Err(panic)) => Err(Failure::Panic(panic)),
            Err(_) => Err(Failure::Panic("it panicked".to_owned())),
        }
    })
}

/// A text that refuses to become longer than [`MAX_RENDERED_BYTES`].
struct Limited(Vec<u8>);

impl io::Write for Limited {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len().saturating_add(bytes.len()) > MAX_RENDERED_BYTES {
            return Err(io::Error::other("the text is too long"));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
