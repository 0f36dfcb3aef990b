//! Mixtures of experts go the whole way: with float experts in compressed-tensors, and with INT8 experts where a plan has
//! them, which the runtime and its simulation compute alike.

use std::path::{Path, PathBuf};

use zeropoint_core::Rng;
use zeropoint_models::{LinearRole, Outputs, PackedBatch, Task, TokenSequence};
use zeropoint_pipeline::config::Config;
use zeropoint_pipeline::{CacheDir, Cancel, MODEL_DIR, Memory, Prepared, RunOptions, RunOutcome, run};
use zeropoint_quantizer::Decision;
use zeropoint_runtime::QuantizedModel;

const OPTIONS: RunOptions =
    RunOptions { force: false, restart: false, cache: CacheDir::None, memory: Memory(1 << 30) };

/// Fixtures with the numbers of their experts, all layers together, and of the experts of a token and layer.
const FIXTURES: [(&str, usize, u64); 3] =
    [("mixtral-causal", 8, 2), ("qwen3moe-causal", 10, 3), ("qwen3moe-renormalized", 6, 3)];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn config(dir: &Path, name: &str, scheme: &str) -> Config {
    let mut config = Config::new(fixture(name).to_string_lossy());
    config.output.dir = Some(dir.join("out").to_string_lossy().into_owned());
    let float = r"{ layers = ['re:.*\.experts\.'], scheme = 'none' }";
    config.quantization =
        toml::from_str(&format!("scheme = '{scheme}'\noverrides = [{float}]")).expect("a scheme");
    config.calibration.samples = 6;
    config.evaluation.tasks.iter_mut().for_each(|task| task.limit = Some(8));
    config
}

/// A plan with the experts in INT8, as a format of ours may carry them.
fn with_int8_experts(mut prepared: Prepared) -> Prepared {
    let scheme = *prepared.plan.quantized().next().expect("something is quantised").1;
    let linears = &prepared.directory.spec().linears;
    for plan in
        prepared.plan.linears.iter_mut().filter(|plan| linears[plan.linear].role == LinearRole::Expert)
    {
        plan.decision = Decision::Quantize(scheme);
    }
    prepared
}

fn ran(prepared: &Prepared, about: &str) -> (RunOutcome, QuantizedModel) {
    let outcome =
        run(prepared, &OPTIONS, &(), &Cancel::default()).unwrap_or_else(|error| panic!("{about}: {error}"));
    let check = outcome.report.self_check.as_ref().expect("every run checks itself");
    assert_eq!(check.cosine_min, 1.0, "{about}: simulation and runtime");
    let written = QuantizedModel::load(&outcome.dir.join(MODEL_DIR), Task::Auto)
        .unwrap_or_else(|error| panic!("{about}: {error}"));
    (outcome, written)
}

#[test]
fn a_mixture_goes_the_whole_way_with_float_experts_and_with_int8_ones() {
    for (name, experts, per_row) in FIXTURES {
        for scheme in ["w8a8-dynamic", "w8a8-static"] {
            for int8 in [false, true] {
                let about =
                    format!("{name}, {scheme}, {}", if int8 { "INT8 experts" } else { "float experts" });
                let dir = tempfile::tempdir().expect("a directory");
                let prepared = Prepared::new(config(dir.path(), name, scheme))
                    .unwrap_or_else(|error| panic!("{about}: {error}"));
                let prepared = if int8 { with_int8_experts(prepared) } else { prepared };
                let (outcome, written) = ran(&prepared, &about);
                let linears = &written.directory().spec().linears;
                let float = |role: LinearRole| match role {
                    LinearRole::Router | LinearRole::Classifier | LinearRole::TiedDecoder => true,
                    LinearRole::Expert => !int8,
                    _ => false,
                };
                let quantized = linears.iter().filter(|linear| !float(linear.role)).count();
                assert_eq!(written.quantized_linears(), quantized, "{about}");
                assert_eq!(outcome.report.layers.len(), quantized, "{about}");
                let report = outcome.report;
                assert_eq!(report.experts.iter().map(|mixture| mixture.experts).sum::<u64>(), experts as u64);
                for mixture in &report.experts {
                    assert_eq!(mixture.per_row, per_row, "{about}");
                    assert_eq!(mixture.unused.is_empty(), mixture.fewest > 0, "{about}");
                    let even = per_row * report.calibration.tokens / mixture.experts;
                    assert!((mixture.fewest..=mixture.most).contains(&even), "{about}: {mixture:?}");
                    assert!(mixture.most <= report.calibration.tokens, "{about}: {mixture:?}");
                }
                let cosine =
                    report.metrics.iter().find(|metric| metric.name == "cosine_mean").expect("fidelity");
                assert!((0.9..=1.0).contains(&cosine.quantized), "{about}: {}", cosine.quantized);
                if int8 {
                    // Every expert has a range, also those that no token went through.
                    let ranged = |layer: &zeropoint_evaluator::report::Layer| layer.input_range.is_some();
                    assert!(report.layers.iter().all(ranged), "{about}");
                }
                any_number_of_threads_gives_the_same_bits(&written, &about);
            }
        }
    }
}

fn bits(outputs: Outputs) -> Vec<u32> {
    outputs.values.into_iter().map(f32::to_bits).collect()
}

/// Blocks of experts run site by site: whole, packed and behind a cache.
fn any_number_of_threads_gives_the_same_bits(written: &QuantizedModel, about: &str) {
    let model = written.model();
    let mut rng = Rng::new(5);
    let ids: Vec<u32> = (0..48).map(|_| rng.below(140) as u32).collect();
    let sequence = |ids: &[u32]| TokenSequence { ids: ids.to_vec(), type_ids: vec![0; ids.len()], prompt: 0 };
    let batch =
        PackedBatch::new(&[sequence(&ids), sequence(&ids[..1]), sequence(&ids[3..20])]).expect("tokens");
    assert!(!model.has_block_runner(&batch), "{about}: the fused engine leaves experts to the sites");
    let found = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads");
        pool.install(|| {
            let mut all = vec![bits(written.forward(&batch).expect("the model runs"))];
            let mut cache = model.new_cache().expect("a decoder");
            for part in [&ids[..9], &ids[9..10], &ids[10..11], &ids[11..30]] {
                all.push(bits(model.extend(part, &mut cache, part.len()).expect("the model runs")));
            }
            all
        })
    };
    let expected = found(1);
    for threads in [2, 3] {
        assert!(found(threads) == expected, "{about}, {threads} threads");
    }
}

#[test]
fn experts_that_no_token_reaches_are_warned_of_and_have_ranges_all_the_same() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = config(dir.path(), "qwen3moe-renormalized", "w8a8-static");
    // A text of one or two tokens reaches three to six experts.
    let texts = dir.path().join("texts.txt");
    std::fs::write(&texts, "a\n").expect("written");
    config.calibration = toml::from_str(&format!("data = ['{}']", texts.display())).expect("a source");
    let prepared = with_int8_experts(Prepared::new(config).unwrap_or_else(|error| panic!("{error}")));
    let (outcome, _) = ran(&prepared, "one token");
    let unused = &outcome.report.experts[0].unused;
    assert!(!unused.is_empty() && outcome.report.experts[0].fewest == 0, "{:?}", outcome.report.experts);
    let named: Vec<String> = unused.iter().map(u64::to_string).collect();
    let says = format!(
        "no calibration token was routed to {} of 6 experts: {} of `model.layers.1.mlp`;",
        unused.len(),
        named.join(", ")
    );
    assert!(outcome.report.warnings.iter().any(|warning| warning.starts_with(&says)), "{says}");
    let experts = outcome.report.layers.iter().filter(|layer| layer.path.contains(".experts."));
    assert_eq!(experts.filter(|layer| layer.activation_range.is_some()).count(), 18);
}
