//! Every supported family and head goes the whole way: calibrated, quantised, written, loaded back by the runtime, equal to
//! its simulation, and measured against the original.

use std::path::{Path, PathBuf};

use zeropoint_core::Rng;
use zeropoint_models::{EmbeddingRole, ImagePixels, ModelSpec, Outputs, PackedBatch, Task, TokenSequence};
use zeropoint_pipeline::config::Config;
use zeropoint_pipeline::{CacheDir, Cancel, MODEL_DIR, Memory, Prepared, RunOptions, RunOutcome, run};
use zeropoint_runtime::QuantizedModel;

const OPTIONS: RunOptions =
    RunOptions { force: false, restart: false, cache: CacheDir::None, memory: Memory(1 << 30) };

/// A fixture, and the Linears that stay float by default.
struct Case {
    name: &'static str,
    float: &'static [&'static str],
}

const fn case(name: &'static str, float: &'static [&'static str]) -> Case {
    Case { name, float }
}

const CASES: &[Case] = &[
    case("roberta-mean", &["pooler.dense"]),
    case("roberta-classifier", &["classifier.dense", "classifier.out_proj"]),
    case("roberta-tokens", &["classifier"]),
    case("roberta-mlm", &["lm_head.dense", "lm_head.decoder"]),
    case("roberta-qa", &["qa_outputs"]),
    case("xlm-roberta-mean", &["pooler.dense"]),
    case("xlm-roberta-cross-encoder", &["classifier.dense", "classifier.out_proj"]),
    case("distilbert-mean", &[]),
    case("distilbert-classifier", &["pre_classifier", "classifier"]),
    case("distilbert-tokens", &["classifier"]),
    case("distilbert-mlm", &["vocab_transform", "vocab_projector"]),
    case("distilbert-qa", &["qa_outputs"]),
    case("mpnet-mean", &["pooler.dense"]),
    case("mpnet-classifier", &["classifier.dense", "classifier.out_proj"]),
    case("mpnet-mlm", &["lm_head.dense", "lm_head.decoder"]),
    case("albert-mean", &["pooler"]),
    case("albert-two-groups", &["pooler"]),
    case("albert-classifier", &["albert.pooler", "classifier"]),
    case("albert-mlm", &["predictions.dense", "predictions.decoder"]),
    case("electra-mean", &[]),
    case("electra-classifier", &["classifier.dense", "classifier.out_proj"]),
    case("electra-discriminator", &[]),
    case("modernbert-mean", &[]),
    case("modernbert-old-config", &[]),
    case("modernbert-classifier", &["head.dense", "classifier"]),
    case("modernbert-classifier-cls", &["head.dense", "classifier"]),
    case("modernbert-tokens", &["head.dense", "classifier"]),
    case("modernbert-mlm", &["head.dense", "decoder"]),
    case("nomic-mean", &[]),
    case("gte-mean", &[]),
    case("bert-tokens", &["classifier"]),
    case("bert-mlm", &["cls.predictions.transform.dense", "cls.predictions.decoder"]),
    case("bert-qa", &["qa_outputs"]),
    case("bert-cross-encoder", &["bert.pooler.dense", "classifier"]),
    case("bert-regression", &["bert.pooler.dense", "classifier"]),
    case("bert-multilabel", &["bert.pooler.dense", "classifier"]),
    case("bert-dense", &["pooler.dense"]),
    case("bert-prompts", &["pooler.dense"]),
    case("llama-causal", &["lm_head"]),
    case("llama-scaled", &["lm_head"]),
    case("mistral-causal", &["lm_head"]),
    case("qwen2-causal", &["lm_head"]),
    case("llama-yarn", &["lm_head"]),
    case("qwen3-causal", &["lm_head"]),
    case("smollm3-causal", &["lm_head"]),
    case("phi3-causal", &["lm_head"]),
    case("phi3-long", &["lm_head"]),
    case("gemma-causal", &["lm_head"]),
    case("gemma2-causal", &["lm_head"]),
    case("gemma3-causal", &["lm_head"]),
    case("neox-causal", &["embed_out"]),
    case("neox-serial", &["embed_out"]),
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn prepared(out: &Path, fixture: &str, scheme: &str) -> Prepared {
    let mut config = Config::new(repository().join("tests/fixtures").join(fixture).to_string_lossy());
    config.output.dir = Some(out.to_string_lossy().into_owned());
    config.quantization = toml::from_str(&format!("scheme = \"{scheme}\"")).expect("a scheme");
    config.calibration.samples = 6;
    config.evaluation.tasks.iter_mut().for_each(|task| task.limit = Some(8));
    Prepared::new(config).unwrap_or_else(|error| panic!("{fixture}, {scheme}: {error}"))
}

#[test]
fn every_family_and_head_goes_the_whole_way() {
    for Case { name, float } in CASES {
        for scheme in ["w8a8-dynamic", "w8a8-static"] {
            let dir = tempfile::tempdir().expect("a temporary directory");
            let prepared = prepared(&dir.path().join("whole"), name, scheme);
            let kept: Vec<&str> = prepared
                .plan
                .linears
                .iter()
                .filter(|linear| linear.scheme().is_none())
                .map(|linear| linear.path.as_str())
                .collect();
            assert_eq!(kept, *float, "{name}: what stays float");
            let outcome = run(&prepared, &OPTIONS, &(), &Cancel::default())
                .unwrap_or_else(|error| panic!("{name}, {scheme}: {error}"));
            let check = outcome.report.self_check.as_ref().expect("every run checks itself");
            assert_eq!(check.cosine_min, 1.0, "{name}, {scheme}: simulation and runtime");
            let metric = |wanted: &str| outcome.report.metrics.iter().find(|metric| metric.name == wanted);
            // One score has no direction: it is measured by how far it moves.
            match (metric("cosine_mean"), metric("difference_mean")) {
                // The weights are random and wide, so INT8 costs more than it does on a trained model.
                (Some(cosine), None) => {
                    assert!(
                        (0.9..=1.0).contains(&cosine.quantized),
                        "{name}, {scheme}: {}",
                        cosine.quantized
                    );
                }
                (None, Some(difference)) => {
                    assert!(difference.quantized < 1.0, "{name}, {scheme}: {}", difference.quantized);
                }
                _ => panic!("{name}: fidelity is measured by default"),
            }

            part_by_part_it_is_the_same(&outcome, &dir.path().join("parts"), name, scheme);

            let written = QuantizedModel::load(&outcome.dir.join(MODEL_DIR), Task::Auto)
                .unwrap_or_else(|error| panic!("{name}, {scheme}: {error}"));
            let linears = &written.directory().spec().linears;
            let paths = |linears: &[zeropoint_models::LinearSpec]| -> Vec<String> {
                linears.iter().map(|linear| linear.path.clone()).collect()
            };
            assert_eq!(paths(linears), paths(&prepared.directory.spec().linears), "{name}");
            assert_eq!(written.quantized_linears(), linears.len() - float.len(), "{name}, {scheme}");
            the_engine_has_the_bits_of_the_sites(&written, &format!("{name}, {scheme}"));
            if written.directory().spec().head().task() == Task::CausalLm {
                a_cache_has_the_bits_of_the_sites(&written, &format!("{name}, {scheme}"));
            }
        }
    }
}

/// Without memory for hidden states no model is kept whole, and everything between two blocks is in a file.
fn part_by_part_it_is_the_same(whole: &RunOutcome, out: &Path, name: &str, scheme: &str) {
    let options = RunOptions { memory: Memory(0), ..OPTIONS };
    let parts = run(&prepared(out, name, scheme), &options, &(), &Cancel::default())
        .unwrap_or_else(|error| panic!("{name}, {scheme}: {error}"));
    assert_eq!(files(&parts.dir.join(MODEL_DIR)), files(&whole.dir.join(MODEL_DIR)), "{name}, {scheme}");
    let statistics = |outcome: &RunOutcome| {
        std::fs::read(outcome.dir.join("statistics.safetensors")).expect("it is there")
    };
    assert!(statistics(&parts) == statistics(whole), "{name}, {scheme}: statistics");
    let metrics = |outcome: &RunOutcome| format!("{:?}", outcome.report.metrics);
    assert_eq!(metrics(&parts), metrics(whole), "{name}, {scheme}");
    let layers = |outcome: &RunOutcome| format!("{:?}", outcome.report.layers);
    assert_eq!(layers(&parts), layers(whole), "{name}, {scheme}");
    let inside = std::fs::read_dir(&parts.dir).expect("the directory is there").count();
    assert_eq!(
        inside,
        std::fs::read_dir(&whole.dir).expect("the directory is there").count(),
        "{name}: files"
    );
}

/// The names of the files of a directory, with what they hold in 32 bytes.
fn files(dir: &Path) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = std::fs::read_dir(dir)
        .expect("the directory is there")
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.is_file())
        .map(|path| {
            let digest = zeropoint_formats::staged::file_digest(&path).expect("it is read");
            (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), digest.blake3.to_string())
        })
        .collect();
    files.sort();
    files
}

/// Batches of random samples: sequences of many lengths, one long one, and images where the model takes them.
fn batches(spec: &ModelSpec, longest: usize) -> Vec<PackedBatch> {
    let mut rng = Rng::new(7);
    let mut batches = Vec::new();
    if let Some((_, text)) = spec.text() {
        let words = text.tables.iter().find(|table| table.role == EmbeddingRole::Word).expect("words");
        let mut sequence = |tokens: usize| TokenSequence {
            ids: (0..tokens).map(|_| rng.below(words.rows as u64) as u32).collect(),
            type_ids: vec![0; tokens],
            prompt: 0,
        };
        let lengths = [9, 2, 40, 1, 17, 33, 5, 5, 64, 3, 28].map(|length: usize| length.min(longest));
        for lengths in [&lengths[..], &[longest.min(150)], &[longest, 1], &[1]] {
            let sequences: Vec<TokenSequence> = lengths.iter().map(|length| sequence(*length)).collect();
            batches.push(PackedBatch::new(&sequences).expect("sequences have tokens"));
        }
    }
    if let Some((_, image)) = spec.image() {
        let [height, width] = image.image_size;
        let shape = [image.channels, height, width];
        let mut pixels = || (0..shape.iter().product()).map(|_| rng.normal() as f32).collect();
        let images: Vec<ImagePixels> = (0..3).map(|_| ImagePixels { values: pixels(), shape }).collect();
        batches.push(PackedBatch::new(&images).expect("images have one shape"));
    }
    batches
}

/// A text in parts, with the bits of the sites.
fn a_cache_has_the_bits_of_the_sites(written: &QuantizedModel, name: &str) {
    let model = written.model();
    let mut rng = Rng::new(9);
    let words = written.directory().spec().tables().next().expect("words").rows as u64;
    let ids: Vec<u32> = (0..written.directory().max_tokens()).map(|_| rng.below(words) as u32).collect();
    let bits = |outputs: Outputs| outputs.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let parts = || {
        [1, 1, 9, 1, 5, 1, 1].into_iter().scan(0, |start, part| {
            *start += part;
            Some(&ids[*start - part..*start])
        })
    };
    let mut cache = model.new_cache().expect("a decoder");
    let expected: Vec<_> = parts()
        .map(|ids| bits(model.extend_by_sites(ids, &mut cache, ids.len()).expect("the sites run")))
        .collect();
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let mut cache = model.new_cache().expect("a decoder");
        for (ids, expected) in parts().zip(&expected) {
            let found = pool.install(|| model.extend(ids, &mut cache, ids.len())).expect("the engine runs");
            assert!(
                bits(found) == *expected,
                "{name}: {} tokens behind others, {threads} threads",
                ids.len()
            );
        }
    }
}

fn the_engine_has_the_bits_of_the_sites(written: &QuantizedModel, name: &str) {
    for batch in batches(written.directory().spec(), written.directory().max_tokens()) {
        assert!(written.model().has_block_runner(&batch), "{name}");
        let bits = |outputs: Outputs| outputs.values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        let expected = bits(written.model().forward_by_sites(&batch).expect("the sites run"));
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
            // Twice: the second forward works in memory that the first has used.
            for _ in 0..2 {
                let found = bits(pool.install(|| written.forward(&batch)).expect("the engine runs"));
                assert!(found == expected, "{name}: {} rows, {threads} threads", batch.tokens());
            }
        }
    }
}
