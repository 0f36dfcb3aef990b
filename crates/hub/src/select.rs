//! Which files of a model repository are needed: configs, tokenizer, safetensors, what sentence-transformers keeps in
//! numbered folders, card and licence. Never a second copy of the weights in another format.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::tree::Entry;

/// One file with all weights.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of weights in several files.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// The files of a model that are needed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Needed<'a> {
    /// Everything but the weights.
    pub(crate) small: Vec<&'a Entry>,
    /// The weights.
    pub(crate) weights: WeightFiles<'a>,
}

/// Where the weights are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WeightFiles<'a> {
    /// In one file.
    Single(&'a Entry),
    /// In those that this index names.
    Index(&'a Entry),
    /// Nowhere that can be read.
    None,
}

/// Chooses from a listing. The single file is preferred where both it and an index exist, as `transformers` does.
pub(crate) fn needed(entries: &[Entry]) -> Needed<'_> {
    let find = |name: &str| entries.iter().find(|entry| entry.path == name);
    let weights = match (find(SINGLE), find(INDEX)) {
        (Some(single), _) => WeightFiles::Single(single),
        (None, Some(index)) => WeightFiles::Index(index),
        (None, None) => WeightFiles::None,
    };
    Needed { small: entries.iter().filter(|entry| is_small(&entry.path)).collect(), weights }
}

fn is_small(path: &str) -> bool {
    match path.split_once('/') {
        None => is_small_at_root(path),
        Some((folder, file)) => {
            let module = folder.split_once('_').is_some_and(|(number, name)| {
                !name.is_empty() && !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit())
            });
            let kept = ["json", "txt", "model", "safetensors"].contains(&extension(file));
            // What a run of ours keeps beside the weights.
            let own = folder == "zeropoint" && extension(file) == "safetensors";
            ((module && kept || own) && !file.contains('/'))
                || (folder == "additional_chat_templates" && extension(file) == "jinja")
        }
    }
}

fn is_small_at_root(file: &str) -> bool {
    let lower = file.to_ascii_lowercase();
    if ["readme", "license", "licence", "notice", "use_policy"].iter().any(|start| lower.starts_with(start)) {
        return ["", "md", "txt"].contains(&extension(&lower));
    }
    match extension(file) {
        // Indexes of weights in other formats, and what training left.
        "json" => !(file.ends_with(".index.json") || file == "trainer_state.json"),
        "txt" | "model" | "jinja" | "tiktoken" => true,
        _ => false,
    }
}

fn extension(file: &str) -> &str {
    file.rsplit_once('.').map_or("", |(_, extension)| extension)
}

#[derive(Deserialize)]
struct RawIndex {
    weight_map: std::collections::BTreeMap<String, String>,
}

/// The files that an index names.
pub(crate) fn shards(index: &[u8]) -> Result<BTreeSet<String>, String> {
    let index: RawIndex = serde_json::from_slice(index)
        .map_err(|error| format!("a `weight_map` of file names is expected (line {})", error.line()))?;
    let shards: BTreeSet<String> = index.weight_map.into_values().collect();
    if shards.is_empty() { Err("its weight_map is empty".to_owned()) } else { Ok(shards) }
}

/// What a repository without usable weights has, in words.
pub(crate) fn what_there_is<'a>(paths: impl Iterator<Item = &'a str>) -> String {
    const SHOWN: usize = 6;
    let weights = |path: &&str| {
        ["safetensors", "bin", "h5", "msgpack", "onnx", "gguf", "pt", "pth", "ckpt", "npz", "tflite"]
            .contains(&extension(path))
    };
    let found: Vec<&str> = paths.filter(weights).collect();
    if found.is_empty() {
        return "it has no weights at all".to_owned();
    }
    let shown: Vec<String> = found.iter().take(SHOWN).map(|path| format!("`{path}`")).collect();
    let more = match found.len() - shown.len() {
        0 => String::new(),
        more => format!(" and {more} more"),
    };
    format!("it has {}{more}", shown.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(paths: &[&str]) -> Vec<Entry> {
        let entry =
            |path: &&str| Entry { path: (*path).to_owned(), size: 1, oid: "0".repeat(40), stored: false };
        paths.iter().map(entry).collect()
    }

    /// The listing of sentence-transformers/all-MiniLM-L6-v2 in 2025.
    #[test]
    fn of_a_sentence_encoder_the_torch_files_are_taken_once() {
        let all = entries(&[
            ".gitattributes",
            "1_Pooling/config.json",
            "README.md",
            "config.json",
            "config_sentence_transformers.json",
            "data_config.json",
            "model.safetensors",
            "modules.json",
            "onnx/model.onnx",
            "onnx/model_O1.onnx",
            "openvino/openvino_model.bin",
            "openvino/openvino_model.xml",
            "pytorch_model.bin",
            "rust_model.ot",
            "sentence_bert_config.json",
            "special_tokens_map.json",
            "tf_model.h5",
            "tokenizer.json",
            "tokenizer_config.json",
            "train_script.py",
            "vocab.txt",
        ]);
        let needed = needed(&all);
        let small: Vec<&str> = needed.small.iter().map(|entry| entry.path.as_str()).collect();
        assert_eq!(
            small,
            [
                "1_Pooling/config.json",
                "README.md",
                "config.json",
                "config_sentence_transformers.json",
                "data_config.json",
                "modules.json",
                "sentence_bert_config.json",
                "special_tokens_map.json",
                "tokenizer.json",
                "tokenizer_config.json",
                "vocab.txt",
            ]
        );
        assert_eq!(needed.weights, WeightFiles::Single(&all[6]));
    }

    #[test]
    fn single_files_file_by_file() {
        for (path, taken) in [
            ("LICENSE", true),
            ("LICENSE.txt", true),
            ("Notice.md", true),
            ("chat_template.jinja", true),
            ("additional_chat_templates/tools.jinja", true),
            ("preprocessor_config.json", true),
            ("merges.txt", true),
            ("tokenizer.model", true),
            ("2_Dense/model.safetensors", true),
            ("2_Dense/pytorch_model.bin", false),
            ("zeropoint/model.safetensors", true),
            ("zeropoint/notes.txt", false),
            ("model.safetensors", false),
            ("model.fp16.safetensors", false),
            ("consolidated.safetensors", false),
            ("pytorch_model.bin.index.json", false),
            ("model.safetensors.index.json", false),
            ("original/params.json", false),
            ("onnx/config.json", false),
            ("checkpoint-500/config.json", false),
            ("modeling_custom.py", false),
            ("flax_model.msgpack", false),
            ("license_scan.pkl", false),
        ] {
            assert_eq!(is_small(path), taken, "{path}");
        }
    }

    #[test]
    fn an_index_names_its_shards_once_and_in_order() {
        let index = br#"{"weight_map": {"b": "model-2.safetensors", "a": "model-1.safetensors", "c": "model-2.safetensors"}}"#;
        let names: Vec<String> = shards(index).expect("an index").into_iter().collect();
        assert_eq!(names, ["model-1.safetensors", "model-2.safetensors"]);
        for bad in ["", "{}", "[]", r#"{"weight_map": {}}"#, r#"{"weight_map": {"a": 1}}"#] {
            assert!(shards(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_weights_of_a_repository_are_named_when_none_can_be_used() {
        let say = |paths: &[&str]| what_there_is(paths.iter().copied());
        assert_eq!(say(&["config.json"]), "it has no weights at all");
        assert_eq!(say(&["config.json", "pytorch_model.bin"]), "it has `pytorch_model.bin`");
        let many: Vec<String> = (0..9).map(|i| format!("x{i}.gguf")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(say(&many).ends_with("`x5.gguf` and 3 more"), "{}", say(&many));
    }
}
