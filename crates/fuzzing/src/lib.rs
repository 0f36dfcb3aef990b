//! What fuzzing calls: readers of files from outside, each as a function of bytes that may fail and must not panic.
//!
//! Covered are checkpoints, their index and the quantised Linears in them, configs of models and of quantisation, modules,
//! tokenizers, chat templates, JSON lines, CSV, statistics and model cards. Parquet, images and the program's own config are not: their parsers are other people's, which
//! fuzz them.
//!
//! The fuzzer itself lives in `fuzz/`, a workspace of its own because it wants a nightly toolchain. The targets are here so
//! that a test on the stable toolchain replays what the fuzzer has kept (`fuzz/seeds`), and so that a finding becomes a
//! file there and a test at once.
//!
//! A reader that accepts an input is asked for everything it offers: a header that lies is often believed first and found
//! out when its tensors are read.

mod checkpoint;
mod model;

use std::cell::RefCell;
use std::path::PathBuf;

use tempfile::TempDir;
use zeropoint_calibrator::dataset::{Fields, Format, parse};
use zeropoint_core::Symmetry;
use zeropoint_evaluator::report::parse_front_matter;
use zeropoint_formats::{QuantizationConfig, SafetensorsFile};
use zeropoint_observer::{RangeObserver, StatisticsFile};

/// A target: its name, which is that of its folder of seeds, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const TARGETS: &[Target] = &[
    ("safetensors", safetensors),
    ("index", checkpoint::index),
    ("quantized_linear", checkpoint::quantized_linear),
    ("quantization_config", quantization_config),
    ("model_config", model::config),
    ("modules", model::modules),
    ("tokenizer", model::tokenizer),
    ("chat_template", model::chat_template),
    ("jsonl", jsonl),
    ("csv", csv),
    ("statistics", statistics),
    ("front_matter", front_matter),
];

/// Runs the target of that name.
///
/// # Panics
///
/// When there is none, and when the target does: that is a finding.
pub fn run(name: &str, input: &[u8]) {
    let (_, target) = TARGETS.iter().find(|(known, _)| *known == name).expect("the target exists");
    target(input);
}

thread_local! {
    /// Where inputs become files. Shared memory where the system has it: a fuzzer writes thousands of files a second.
    static SCRATCH: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

/// Calls `f` with a directory for this thread.
fn in_scratch<T>(f: impl FnOnce(&std::path::Path) -> T) -> T {
    SCRATCH.with_borrow_mut(|scratch| {
        let dir = scratch.get_or_insert_with(|| {
            let memory = PathBuf::from("/dev/shm");
            let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
            tempfile::tempdir_in(parent).expect("a temporary directory")
        });
        f(dir.path())
    })
}

/// Calls `f` with a file that holds `input`.
fn with_file<T>(name: &str, input: &[u8], f: impl FnOnce(&std::path::Path) -> T) -> T {
    in_scratch(|dir| {
        let path = dir.join(name);
        std::fs::write(&path, input).expect("the file can be written");
        f(&path)
    })
}

/// A weight file: header, and every tensor in every form.
fn safetensors(input: &[u8]) {
    with_file("fuzzed.safetensors", input, |path| {
        let Ok(file) = SafetensorsFile::open(path) else { return };
        let names: Vec<String> = file.tensors().map(|info| info.name.clone()).collect();
        for name in names {
            let bytes = file.read_bytes(&name);
            let _ = file.read_f32(&name);
            let _ = file.read_i8(&name);
            let whole = bytes.expect("a header that was accepted describes bytes that are there");
            let half = whole.len() as u64 / 2;
            assert_eq!(file.read_range(&name, 0..half).expect("a part of it"), whole[..half as usize]);
        }
    });
}

/// `quantization_config` of config.json, and the round trip of what is accepted.
fn quantization_config(input: &[u8]) {
    let Ok(value) = serde_json::from_slice(input) else { return };
    let Ok(config) = QuantizationConfig::from_json(&value) else { return };
    for name in ["encoder.layer.0.attention.self.query", "lm_head", ""] {
        let _ = config.scheme_of(name);
    }
    let again = QuantizationConfig::from_json(&config.to_json());
    assert_eq!(again.expect("what is written is read"), config);
}

fn jsonl(input: &[u8]) {
    let _ = parse(input, &"fuzzed.jsonl".into(), Format::Jsonl, &Fields::default());
}

/// A csv file, with and without a header, with usual and unusual delimiters.
fn csv(input: &[u8]) {
    for header in [None, Some(true), Some(false)] {
        for delimiter in [b',', b'\t', b';'] {
            let format = Format::Csv { header, delimiter };
            let _ = parse(input, &"fuzzed.csv".into(), format, &Fields::default());
        }
    }
}

/// A statistics file: what is accepted can be saved again, and gives ranges or says why not.
fn statistics(input: &[u8]) {
    with_file("fuzzed.statistics", input, |path| {
        let _ = StatisticsFile::load_header(path);
        let Ok(file) = StatisticsFile::load(path) else { return };
        for site in file.sites.values() {
            for symmetry in [Symmetry::Symmetric, Symmetry::Asymmetric] {
                for observer in [
                    RangeObserver::MinMax,
                    RangeObserver::MovingAverage { constant: 0.5, batch: 2 },
                    RangeObserver::Percentile { percentile: 99.9 },
                    RangeObserver::PercentilePerChannel { percentile: 99.9 },
                    RangeObserver::Entropy,
                    RangeObserver::OutlierAware { ratio: 2.0, clipped_tokens: 1.0 },
                    RangeObserver::Mse,
                ] {
                    let _ = observer.range(site, symmetry);
                }
            }
        }
        let again = path.with_extension("again");
        file.save(&again).expect("it can be saved");
        let loaded = StatisticsFile::load(&again).expect("what is saved is loaded");
        assert_eq!(loaded.header, file.header);
    });
}

/// The front matter of a model card.
fn front_matter(input: &[u8]) {
    if let Ok(text) = std::str::from_utf8(input) {
        let _ = parse_front_matter(text);
    }
}
