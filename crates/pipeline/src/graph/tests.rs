use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use zeropoint_models::{Model, ModelInput, PackedBatch};

use super::*;
use crate::Prepared;
use crate::config::{Config, OutputFormat};
use crate::deploy::tests::room;
use crate::events::Cancel;
use crate::statistics::{Origin, Pass, observe};

/// Largest absolute difference that a transform may make to outputs of order 1, in f32.
const TOLERANCE: f32 = 1e-4;

fn fixtures() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
    let mut fixtures: Vec<PathBuf> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    fixtures.retain(|path| {
        let name = path.file_name().unwrap().to_string_lossy();
        // Those of images are not calibrated on texts.
        let of_texts = ["clip", "deit", "vit"].iter().all(|start| !name.starts_with(start));
        path.join("config.json").is_file() && of_texts
    });
    fixtures.sort();
    fixtures
}

fn config(fixture: &Path, transforms: &str) -> Config {
    let mut config = Config::new(fixture.to_string_lossy());
    let name = fixture.to_string_lossy();
    let experts = if name.contains("mixtral") || name.contains("moe") {
        "\n[[overrides]]\nlayers = ['re:.*\\.experts\\.']\nscheme = 'none'"
    } else {
        ""
    };
    config.quantization = toml::from_str(&format!("transforms = [{transforms}]{experts}")).unwrap();
    config.output.formats = Some(vec![OutputFormat::Zeropoint]);
    config.calibration.samples = 6;
    config.evaluation.tasks.clear();
    config
}

/// Chooses the factors, from what the original shows.
fn settle(prepared: &Prepared, float: &Model) {
    let weights = prepared.directory.checkpoint().content_fingerprint().unwrap();
    let origin = Origin::of(prepared, weights).unwrap();
    let pass = Pass::whole(prepared.first_pass(), room());
    let statistics =
        observe(prepared, origin, float, pass, &mut |_| Ok(()), &(), &Cancel::default()).unwrap();
    let parts = FloatParts::new(&prepared.directory, u64::MAX).unwrap();
    let graph = prepared.transformed.as_ref().unwrap();
    graph.settle(prepared, &parts, &statistics, &Cancel::default()).unwrap();
}

/// The outputs of a model for every calibration sample.
fn outputs(prepared: &Prepared, model: &Model) -> Vec<f32> {
    let inputs = &prepared.calibration.inputs;
    let run = |input: &ModelInput| model.forward(&PackedBatch::new([input]).unwrap()).unwrap().values;
    inputs.iter().flat_map(run).collect()
}

/// How far the outputs move, how far they may, and how many Linears change; or why none can.
fn moved(fixture: &Path, transforms: &str) -> Result<(f32, f32, usize), String> {
    let prepared = Prepared::new(config(fixture, transforms))
        .map_err(|error| error.to_string().replace(&*fixture.to_string_lossy(), "[fixture]"))?;
    let float = Model::load(&prepared.directory).unwrap();
    settle(&prepared, &float);
    let graph = prepared.transformed.as_ref().unwrap();
    let transformed = Model::load(&graph.directory).unwrap();
    let (before, after) = (outputs(&prepared, &float), outputs(&prepared, &transformed));
    assert_eq!(before.len(), after.len());
    let scale = before.iter().fold(1f32, |max, v| max.max(v.abs()));
    let difference = before.iter().zip(&after).fold(0f32, |max, (a, b)| max.max((a - b).abs()));
    assert!(difference.is_finite());
    let is_rounded = |info: &TensorInfo| {
        let changes = graph.tensors.recipes.contains_key(&info.name);
        changes && info.shape.len() == 2 && matches!(info.dtype, Dtype::BF16 | Dtype::F16)
    };
    // Tables and output matrices that the original has in 16 bits are rounded to them again.
    let rounded = graph.directory.checkpoint().tensors().any(is_rounded);
    let tolerance = if rounded { 500.0 * TOLERANCE } else { TOLERANCE };
    Ok((difference / scale, tolerance, graph.plan.linears.len()))
}

#[test]
fn every_family_computes_what_it_did_under_every_transform_that_it_takes() {
    let transforms = [
        ("smoothquant", "{kind='smoothquant', strength=0.7}"),
        ("rotation", "{kind='rotation'}"),
        ("heads", "{kind='rotation', residual=false}"),
        ("online", "{kind='online-rotation'}"),
        ("all", "{kind='smoothquant'}, {kind='rotation'}, {kind='online-rotation'}"),
        ("searched", "{kind='online-rotation', search=true}"),
        ("awq", "{kind='awq'}"),
    ];
    let mut table = String::new();
    for fixture in fixtures() {
        let name = fixture.file_name().unwrap().to_string_lossy().into_owned();
        for (called, transforms) in transforms {
            match moved(&fixture, transforms) {
                Ok((difference, tolerance, changed)) => {
                    assert!(difference < tolerance, "{name}, {called}: {difference}");
                    let _ = writeln!(table, "{name}, {called}: {changed} Linears");
                }
                Err(reason) => {
                    let _ = writeln!(table, "{name}, {called}: {reason}");
                }
            }
        }
    }
    insta::assert_snapshot!(table);
}

/// Of logits before and after, the mean divergence in nats.
fn divergence(before: &[f32], after: &[f32], columns: usize) -> f64 {
    use zeropoint_evaluator::metrics::logits::kl_divergence;
    let rows = before.chunks_exact(columns).zip(after.chunks_exact(columns));
    let all: Vec<f64> = rows.map(|(before, after)| kl_divergence(before, after)).collect();
    all.iter().sum::<f64>() / all.len() as f64
}

#[test]
#[ignore = "needs ZEROPOINT_MODELS"]
fn smollm2_computes_what_it_did_under_every_transform() {
    let models = std::env::var_os("ZEROPOINT_MODELS").expect("ZEROPOINT_MODELS names a directory");
    let model = Path::new(&models).join("smollm2");
    for transforms in [
        "{kind='smoothquant'}, {kind='rotation'}",
        "{kind='online-rotation'}",
        "{kind='rotation'}, {kind='online-rotation', layers=['re:.*down_proj']}",
    ] {
        let mut config = config(&model, transforms);
        (config.calibration.samples, config.calibration.max_length) = (2, Some(128));
        let prepared = Prepared::new(config).unwrap();
        let float = Model::load(&prepared.directory).unwrap();
        settle(&prepared, &float);
        let transformed = Model::load(&prepared.transformed.as_ref().unwrap().directory).unwrap();
        let (before, after) = (outputs(&prepared, &float), outputs(&prepared, &transformed));
        let columns = prepared.directory.spec().linears.iter().map(|linear| linear.outputs).max().unwrap();
        let found = divergence(&before, &after, columns);
        assert!(found < 1e-6, "{transforms}: {found} nats");
    }
}

#[test]
fn a_rotation_that_is_asked_for_twice_is_made_once() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama-causal");
    let (difference, tolerance, _) = moved(&fixture, "{kind='rotation'}, {kind='rotation'}").unwrap();
    assert!(difference < tolerance, "{difference}");
}

#[test]
fn what_is_not_chosen_or_not_finite_is_no_weight() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/llama-causal");
    let prepared = Prepared::new(config(&fixture, "{kind='smoothquant'}")).unwrap();
    let checkpoint = prepared.graph().checkpoint();
    let error = checkpoint.read_f32("model.layers.0.self_attn.q_proj.weight").unwrap_err().to_string();
    assert!(error.ends_with("its smoothing is not chosen yet"), "{error}");
    // Rotations need nothing; parts of a tensor are those of the whole.
    let prepared = Prepared::new(config(&fixture, "{kind='rotation'}")).unwrap();
    let checkpoint = prepared.graph().checkpoint();
    for info in checkpoint.tensors().filter(|info| info.shape.len() == 2) {
        let whole = checkpoint.read_bytes(&info.name).unwrap();
        for range in [0..4, 3..70, 128..whole.len() as u64] {
            let part = checkpoint.read_range(&info.name, range.clone()).unwrap();
            assert_eq!(part, whole[range.start as usize..range.end as usize], "{}", info.name);
        }
        assert!(checkpoint.read_range(&info.name, 0..whole.len() as u64 + 1).is_err());
    }
    let error = finite("w", &[1.0, 2.0, 3.0, f32::NAN], 2, 5).unwrap_err().to_string();
    assert!(error.contains("NaN at row 6, column 1"), "{error}");
}
