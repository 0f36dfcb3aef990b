//! Model directories: a good one, the embedded model, with one file of it replaced by the input.

use std::path::{Path, PathBuf};

use serde_json::json;
use zeropoint_models::{ChatTemplate, EMBEDDED, MAX_RENDERED_BYTES, ModelDirectory, SourceRef, Task};

use crate::in_scratch;

/// The embedded model on disk, without one of its files.
fn directory_without(scratch: &Path, missing: &str) -> PathBuf {
    let dir = scratch.join(missing.replace(['.', '/'], "-"));
    if !dir.is_dir() {
        std::fs::create_dir(&dir).expect("a directory");
        for (name, content) in EMBEDDED.iter().filter(|(name, _)| *name != missing) {
            std::fs::write(dir.join(name), content).expect("the file can be written");
        }
    }
    dir
}

fn open(dir: &Path, task: Task) -> Option<ModelDirectory> {
    ModelDirectory::open(&SourceRef::Directory(dir.to_owned()), task).ok()
}

/// config.json, for every task.
pub(crate) fn config(input: &[u8]) {
    in_scratch(|scratch| {
        let dir = directory_without(scratch, "config.json");
        std::fs::write(dir.join("config.json"), input).expect("the file can be written");
        for task in [Task::Auto, Task::Embedding, Task::TokenClassification, Task::MaskedLm] {
            if let Some(directory) = open(&dir, task) {
                let spec = directory.spec();
                // Sites and Linears name each other.
                for (id, site) in spec.sites.iter().enumerate() {
                    for consumer in &site.consumers {
                        assert_eq!(spec.linears[*consumer].site, Some(id));
                    }
                }
            }
        }
    });
}

/// modules.json and the configs of its modules: the input is all of them.
pub(crate) fn modules(input: &[u8]) {
    in_scratch(|scratch| {
        let dir = directory_without(scratch, "modules.json");
        // Up to the first zero byte modules.json, then the pooling's config, then a dense module's.
        let mut parts = input.splitn(3, |byte| *byte == 0);
        for name in ["modules.json", "1_Pooling/config.json", "2_Dense/config.json"] {
            let path = dir.join(name);
            if let Some(parent) = path.parent() {
                std::fs::create_dir_all(parent).expect("a directory");
            }
            std::fs::write(path, parts.next().unwrap_or_default()).expect("the file can be written");
        }
        let _ = open(&dir, Task::Auto);
    });
}

/// tokenizer.json, and a few texts through what is accepted.
pub(crate) fn tokenizer(input: &[u8]) {
    in_scratch(|scratch| {
        let dir = directory_without(scratch, "tokenizer.json");
        std::fs::write(dir.join("tokenizer.json"), input).expect("the file can be written");
        let Some(directory) = open(&dir, Task::Auto) else { return };
        let Ok(tokenizer) = directory.tokenizer(Some(32)) else { return };
        for text in ["", "the river is on fire", "Caf\u{e9}s \u{6c34}\u{0} \u{1f600}"] {
            if let Ok(tokens) = tokenizer.encode(text, None) {
                assert!(tokens.len() <= 32, "cut at {} tokens", tokens.len());
                assert_eq!(tokens.ids.len(), tokens.type_ids.len());
            }
            let _ = tokenizer.encode(text, Some("and the model"));
        }
    });
}

/// A chat template, and two conversations through what is accepted.
pub(crate) fn chat_template(input: &[u8]) {
    let Ok(source) = std::str::from_utf8(input) else { return };
    let tokens = json!({ "bos_token": "<s>", "eos_token": { "content": "</s>" } });
    let tokens = tokens.as_object().expect("an object");
    let Ok(template) = ChatTemplate::new("fuzzed.jinja".into(), source, tokens) else { return };
    let question = json!({ "role": "user", "content": "Caf\u{e9}s \u{6c34}\u{0} \u{1f600}" });
    let system = json!({ "role": "system", "content": "" });
    let answer = json!({ "role": "assistant", "content": null, "calls": [{ "name": "a", "arguments": { "b": 1.5 } }] });
    for (messages, prompt) in [(vec![question.clone()], true), (vec![system, question, answer], false)] {
        if let Ok(text) = template.render(&messages, prompt) {
            assert!(text.len() <= MAX_RENDERED_BYTES, "{} bytes", text.len());
        }
    }
}
