//! What observing costs: the bare f32 forward pass of a calibration set against the same pass with statistics, on 256
//! samples of 128 tokens.
//!
//! `ZEROPOINT_MODELS=DIR cargo bench -p zeropoint-calibrator` measures DIR/minilm; without it, the embedded model with
//! samples of 64 tokens.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::OnceLock;

use divan::Bencher;
use zeropoint_calibrator::{BatchPlan, CalibrationSet, calibrate};
use zeropoint_core::Rng;
use zeropoint_models::{
    EmbeddingRole, Model, ModelDirectory, ModelInput, PackedBatch, SourceRef, Task, TokenSequence,
};

const SAMPLES: usize = 256;
const LENGTH: usize = 128;
const BATCH: usize = 16;

struct Setup {
    model: Model,
    set: CalibrationSet,
}

fn setup() -> &'static Setup {
    static SETUP: OnceLock<Setup> = OnceLock::new();
    SETUP.get_or_init(|| {
        let source = match std::env::var_os("ZEROPOINT_MODELS") {
            Some(dir) => SourceRef::Directory(PathBuf::from(dir).join("minilm")),
            None => SourceRef::Embedded,
        };
        let directory = ModelDirectory::open(&source, Task::Auto).expect("the model opens");
        let words = directory.spec().tables().find(|table| table.role == EmbeddingRole::Word);
        let vocabulary = words.expect("a model has words").rows as u64;
        let length = LENGTH.min(directory.max_tokens());
        let mut rng = Rng::new(1);
        let inputs: Vec<ModelInput> = (0..SAMPLES)
            .map(|_| {
                let ids = (0..length).map(|_| rng.below(vocabulary) as u32).collect();
                TokenSequence { ids, type_ids: vec![0; length], prompt: 0 }.into()
            })
            .collect();
        let plan = BatchPlan::new(&inputs, BATCH);
        let model = Model::load(&directory).expect("the model loads");
        Setup { model, set: CalibrationSet { inputs, plan, available: SAMPLES } }
    })
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn bare_forward(bencher: Bencher<'_, '_>) {
    let Setup { model, set } = setup();
    bencher.bench(|| {
        for indices in set.plan.batches() {
            let batch =
                PackedBatch::new(indices.iter().map(|&i| &set.inputs[i])).expect("samples have tokens");
            divan::black_box(model.forward(&batch).expect("the model runs"));
        }
    });
}

#[divan::bench(sample_count = 5, sample_size = 1)]
fn observed_forward(bencher: Bencher<'_, '_>) {
    let Setup { model, set } = setup();
    bencher.bench(|| calibrate(model, set, &mut |_| ControlFlow::Continue(())).expect("calibration runs"));
}

fn main() {
    divan::main();
}
