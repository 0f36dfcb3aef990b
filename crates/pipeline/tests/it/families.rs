//! Every supported family and head goes the whole way: calibrated, quantised, written, loaded back by the runtime, equal to
//! its simulation, and measured against the original.

use std::path::{Path, PathBuf};

use zeropoint_core::Rng;
use zeropoint_kernels::KvPrecision;
use zeropoint_models::{EmbeddingRole, ImagePixels, ModelSpec, Outputs, PackedBatch, Task, TokenSequence};
use zeropoint_pipeline::config::{Config, OutputFormat};
use zeropoint_pipeline::{
    CacheDir, Cancel, MODEL_DIR, Memory, Prepared, RunOptions, RunOutcome, dry_run, run,
};
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
    prepared_in(out, fixture, &format!("scheme = \"{scheme}\""), OutputFormat::CompressedTensors)
}

fn prepared_in(out: &Path, fixture: &str, scheme: &str, format: OutputFormat) -> Prepared {
    let mut config = Config::new(repository().join("tests/fixtures").join(fixture).to_string_lossy());
    config.output.dir = Some(out.to_string_lossy().into_owned());
    config.output.formats = Some(vec![format]);
    config.quantization = toml::from_str(scheme).expect("a scheme");
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

            let parts = self::prepared(&dir.path().join("parts"), name, scheme);
            part_by_part_it_is_the_same(&outcome, &parts, &format!("{name}, {scheme}"));

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

/// A fixture, what is asked of it, in which format, and the Linears that stay float.
type OwnCase = (&'static str, &'static str, OutputFormat, &'static [&'static str]);

const PORTABLE: OutputFormat = OutputFormat::CompressedTensors;
const OWN: OutputFormat = OutputFormat::Zeropoint;

const OWN_CASES: [OwnCase; 26] = [
    ("neox-causal", "lm_head = 'int8'", PORTABLE, &[]),
    ("llama-causal", "lm_head = 'int8'", PORTABLE, &[]),
    ("llama-scaled", "lm_head = 'int8'", PORTABLE, &[]),
    ("qwen2-causal", "scheme = 'w8a8-static'\nlm_head = 'int8'\nembeddings = 'bf16'", PORTABLE, &[]),
    ("gemma2-causal", "lm_head = 'int8'\nweights.observer = 'min-max'", PORTABLE, &[]),
    ("qwen2-causal", "lm_head = 'int8'\nembeddings = 'bf16'", OWN, &[]),
    ("smollm3-causal", "embeddings = 'int8'", OWN, &["lm_head"]),
    ("gemma3-causal", "scheme = 'w8a8-static'\nembeddings = 'int8'\nlm_head = 'int8'", OWN, &[]),
    ("bert-mlm", "embeddings = 'int8'", OWN, &["cls.predictions.transform.dense", "cls.predictions.decoder"]),
    ("gpt2-causal", "scheme = 'w8a8-static'", OWN, &["lm_head"]),
    ("gpt2-causal", "embeddings = 'int8'\nlm_head = 'int8'", OWN, &[]),
    (
        "llama-causal",
        "transforms = [{ kind = 'smoothquant', search = true }, { kind = 'rotation' }]\nalgorithm.kind = 'gptq'",
        PORTABLE,
        &["lm_head"],
    ),
    (
        "qwen2-causal",
        "scheme = 'w8a8-static'\ntransforms = [{ kind = 'smoothquant' }, { kind = 'rotation' }]",
        PORTABLE,
        &["lm_head"],
    ),
    ("gemma-causal", "lm_head = 'int8'\ntransforms = [{ kind = 'rotation' }]", PORTABLE, &[]),
    ("mistral-causal", "lm_head = 'int8'\nalgorithm = { kind = 'gptq', damping = 0.1 }", PORTABLE, &[]),
    (
        "phi3-causal",
        "scheme = 'w8a8-static'\n\
         transforms = [{ kind = 'rotation' }, { kind = 'online-rotation', layers = ['re:.*down_proj'] }]",
        OWN,
        &["lm_head"],
    ),
    (
        "gpt2-causal",
        "scheme = 'w8a8-static'\ntransforms = [{ kind = 'online-rotation' }]\nalgorithm.kind = 'gptq'",
        OWN,
        &["lm_head"],
    ),
    (
        "bert-mean",
        "scheme = 'w8a8-static'\ntransforms = [{ kind = 'online-rotation', search = true }]",
        OWN,
        &["pooler.dense"],
    ),
    ("modernbert-mean", "transforms = [{ kind = 'online-rotation', smooth = false }]", OWN, &[]),
    ("albert-mean", "transforms = [{ kind = 'online-rotation' }]\nalgorithm.kind = 'gptq'", OWN, &["pooler"]),
    ("qwen3-causal", "scheme = 'best-int8'", PORTABLE, &["lm_head"]),
    ("bert-mean", "scheme = 'best-int8'", PORTABLE, &["pooler.dense"]),
    ("bert-mean", "scheme = 'best-int8-runtime'", OWN, &["pooler.dense"]),
    ("bert-mean", "scheme = 'w8a8-static'\nbias_correction = true", PORTABLE, &["pooler.dense"]),
    ("gte-mean", "bias_correction = true\nalgorithm.kind = 'gptq'", PORTABLE, &[]),
    (
        "gpt2-causal",
        "bias_correction = true\ntransforms = [{ kind = 'online-rotation' }]\nlm_head = 'int8'",
        OWN,
        &[],
    ),
];

/// Schemes whose activations stay float, all or some, for which there is no engine.
const WEIGHT_ONLY_CASES: [OwnCase; 7] = [
    ("llama-causal", "scheme = 'w8a16'", PORTABLE, &["lm_head"]),
    ("qwen2-causal", "scheme = 'w4a16'\nweights.group_size = 8", PORTABLE, &["lm_head"]),
    (
        "bert-mean",
        "scheme = 'w4a16'\nweights.granularity = 'channel'\nalgorithm.kind = 'rtn'\nbias_correction = true\n\
         transforms = [{ kind = 'awq' }]",
        PORTABLE,
        &["pooler.dense"],
    ),
    ("phi3-causal", "scheme = 'w8a16'\nweights.group_size = 8", PORTABLE, &["lm_head"]),
    ("gpt2-causal", "scheme = 'w4a16'\nweights.group_size = 8\nlm_head = 'int8'", OWN, &[]),
    (
        "gemma2-causal",
        "scheme = 'w8a16'\nembeddings = 'bf16'\noverrides = [\
         { layers = ['re:.*mlp'], scheme = 'w8a8-static' }, { layers = ['re:.*o_proj'], scheme = 'w8a8-dynamic' }, \
         { layers = ['re:.*0.*down_proj'], scheme = 'w4a16', weights = { group_size = 8 } }]",
        PORTABLE,
        &["lm_head"],
    ),
    (
        "modernbert-mean",
        "scheme = 'w4a16'\nweights.group_size = 8\ntransforms = [{ kind = 'online-rotation', smooth = false }]",
        OWN,
        &[],
    ),
];

#[test]
fn int8_heads_tables_conv1d_transforms_and_gptq_go_the_whole_way() {
    for case in OWN_CASES {
        goes_the_whole_way(case, true);
    }
}

#[test]
fn weight_only_and_mixed_schemes_go_the_whole_way() {
    for case in WEIGHT_ONLY_CASES {
        goes_the_whole_way(case, false);
    }
}

fn goes_the_whole_way((name, quantization, format, float): OwnCase, has_engine: bool) {
    let about = format!("{name}, {quantization}, {format:?}");
    let dir = tempfile::tempdir().expect("a temporary directory");
    let prepared = prepared_in(&dir.path().join("whole"), name, quantization, format);
    let kept = prepared.plan.linears.iter().filter(|linear| linear.scheme().is_none());
    assert_eq!(kept.map(|linear| linear.path.as_str()).collect::<Vec<_>>(), float, "{about}");
    let plan = dry_run(&prepared, &OPTIONS).expect("a plan");
    let outcome =
        run(&prepared, &OPTIONS, &(), &Cancel::default()).unwrap_or_else(|error| panic!("{about}: {error}"));
    let check = outcome.report.self_check.as_ref().expect("every run checks itself");
    assert_eq!(check.cosine_min, 1.0, "{about}: simulation and runtime");
    let layers: Vec<&str> = outcome.report.layers.iter().map(|layer| layer.path.as_str()).collect();
    let linears = &prepared.directory.spec().linears;
    assert_eq!(layers.len(), linears.len() - float.len(), "{about}: {layers:?}");
    assert!(outcome.report.layers.iter().all(|layer| layer.output_sqnr_db.is_some()), "{about}");

    let parts = prepared_in(&dir.path().join("parts"), name, quantization, format);
    part_by_part_it_is_the_same(&outcome, &parts, &about);

    let model = outcome.dir.join(MODEL_DIR);
    for (file, bytes) in &plan.files {
        assert_eq!(model.join(file).metadata().expect(file).len(), *bytes, "{about}: {file}");
    }
    assert_eq!(plan.quantized_bytes, outcome.report.size.quantized_bytes, "{about}");
    #[cfg(feature = "hub")]
    every_file_would_be_pushed(&plan, &model, &about);
    let written = QuantizedModel::load(&model, Task::Auto).unwrap_or_else(|e| panic!("{about}: {e}"));
    assert_eq!(written.quantized_linears(), layers.len(), "{about}");
    let config = &written.directory().config()["quantization_config"];
    if format == OWN {
        assert_eq!((&config["format"], config.get("quant_method")), (&"zeropoint".into(), None), "{about}");
    } else {
        assert_eq!(config["quant_method"], "compressed-tensors", "{about}");
    }
    if has_engine {
        the_engine_has_the_bits_of_the_sites(&written, &about);
    }
    if written.directory().spec().head().task() == Task::CausalLm {
        a_cache_has_the_bits_of_the_sites(&written, &about);
    }
}

#[cfg(feature = "hub")]
fn every_file_would_be_pushed(plan: &zeropoint_pipeline::DryRun, model: &Path, about: &str) {
    use zeropoint_pipeline::{PushRequest, plan_push};

    let target = "owner/model".to_owned();
    let request = PushRequest { target, revision: None, public: false, message: None };
    let push = plan_push(model, &request).unwrap_or_else(|error| panic!("{about}: {error}"));
    let pushed = |wanted: &str| push.files.iter().any(|(path, _)| path == wanted);
    assert!(plan.files.iter().all(|(file, _)| pushed(file)), "{about}: {:?}", push.files);
}

/// Without memory for hidden states no model is kept whole, and everything between two blocks is in a file.
fn part_by_part_it_is_the_same(whole: &RunOutcome, prepared: &Prepared, about: &str) {
    let options = RunOptions { memory: Memory(0), ..OPTIONS };
    let parts =
        run(prepared, &options, &(), &Cancel::default()).unwrap_or_else(|error| panic!("{about}: {error}"));
    assert_eq!(files(&parts.dir.join(MODEL_DIR)), files(&whole.dir.join(MODEL_DIR)), "{about}");
    let statistics = |outcome: &RunOutcome| {
        std::fs::read(outcome.dir.join("statistics.safetensors")).expect("it is there")
    };
    assert!(statistics(&parts) == statistics(whole), "{about}: statistics");
    let metrics = |outcome: &RunOutcome| format!("{:?}", outcome.report.metrics);
    assert_eq!(metrics(&parts), metrics(whole), "{about}");
    let layers = |outcome: &RunOutcome| format!("{:?}", outcome.report.layers);
    assert_eq!(layers(&parts), layers(whole), "{about}");
    let inside = std::fs::read_dir(&parts.dir).expect("the directory is there").count();
    assert_eq!(
        inside,
        std::fs::read_dir(&whole.dir).expect("the directory is there").count(),
        "{about}: files"
    );
}

/// The names of the files of a directory and its folders, with what they hold in 32 bytes.
fn files(dir: &Path) -> Vec<(PathBuf, String)> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir).expect("the directory is there") {
        let path = entry.expect("it can be listed").path();
        let name = PathBuf::from(path.file_name().expect("it has a name"));
        if path.is_dir() {
            files.extend(self::files(&path).into_iter().map(|(inside, digest)| (name.join(inside), digest)));
        } else {
            let digest = zeropoint_formats::staged::file_digest(&path).expect("it is read");
            files.push((name, digest.blake3.to_string()));
        }
    }
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

/// A text in parts, with the bits of the sites, however its keys and values are held.
fn a_cache_has_the_bits_of_the_sites(written: &QuantizedModel, name: &str) {
    for precision in [KvPrecision::Bf16, KvPrecision::Int8] {
        a_cache_in_that_precision(written, precision, &format!("{name}, {precision:?}"));
    }
}

fn a_cache_in_that_precision(written: &QuantizedModel, precision: KvPrecision, name: &str) {
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
    let mut cache = model.new_cache_in(precision).expect("a decoder");
    let expected: Vec<_> = parts()
        .map(|ids| bits(model.extend_by_sites(ids, &mut cache, ids.len()).expect("the sites run")))
        .collect();
    for threads in [1, 2, 3] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        let mut cache = model.new_cache_in(precision).expect("a decoder");
        for (ids, expected) in parts().zip(&expected) {
            let found = pool.install(|| model.extend(ids, &mut cache, ids.len())).expect("the engine runs");
            assert!(
                bits(found) == *expected,
                "{name}: {} tokens behind others, {threads} threads",
                ids.len()
            );
        }
    }
    // Token by token, the last ones taken back and given again.
    let last = expected.last().expect("there are parts");
    let count = cache.len();
    for kept in [0, count - 2] {
        cache.truncate(kept);
        let steps = ids[kept..count].chunks(1);
        let found = steps.map(|ids| bits(model.extend(ids, &mut cache, 1).expect("a step"))).last();
        assert!(found.as_ref() == Some(last), "{name}: token by token behind {kept}");
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
