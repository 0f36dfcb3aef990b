//! The model that the binary carries: a small BERT that tells twelve topics apart, trained by `cargo xtask
//! train-fixture` on `calibration-data/topics-train.jsonl`.

/// Its files: name in the model directory, content.
pub const EMBEDDED: &[(&str, &[u8])] = &[
    ("config.json", include_bytes!("../embedded/config.json")),
    ("model.safetensors", include_bytes!("../embedded/model.safetensors")),
    ("tokenizer.json", include_bytes!("../embedded/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../embedded/tokenizer_config.json")),
];
