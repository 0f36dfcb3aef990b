//! `zeropoint encode`: texts through the INT8 runtime.

use serde_json::json;
use zeropoint_calibrator::BatchPlan;
use zeropoint_calibrator::dataset::{self, ReadOptions};
use zeropoint_evaluator::metrics::fidelity::argmax;
use zeropoint_formats::write_file_atomically;
use zeropoint_models::{HeadSpec, PackedBatch, Task};
use zeropoint_pipeline::{Cancel, PipelineError};
use zeropoint_runtime::QuantizedModel;

use crate::Outcome;
use crate::args::EncodeArgs;
use crate::terminal::Terminal;

pub(crate) fn encode(
    args: &EncodeArgs,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let samples = dataset::read(&args.data, &ReadOptions::default())?;
    let model = QuantizedModel::load(&args.model, Task::Auto)?;
    let tokenizer = model.directory().tokenizer(None)?;
    let texts: Vec<_> =
        samples.iter().map(|sample| (sample.text_a.as_str(), sample.text_b.as_deref())).collect();
    let sequences = tokenizer.encode_all(&texts)?;
    let mut rows = vec![Vec::new(); sequences.len()];
    for indices in BatchPlan::new(&sequences, usize::from(args.batch_size)).batches() {
        if cancel.is_requested() {
            return Err(PipelineError::Cancelled);
        }
        let outputs = model.forward(&PackedBatch::new(indices.iter().map(|&i| &sequences[i]))?)?;
        for (&i, row) in indices.iter().zip(outputs.rows()) {
            rows[i] = row.to_vec();
        }
    }
    let lines = samples.iter().zip(&rows).map(|(sample, row)| match &model.directory().spec().head {
        HeadSpec::Embedding { .. } => json!({ "text": sample.text_a, "embedding": row }),
        HeadSpec::Classification { labels, .. } => {
            let label = argmax(row).map(|best| labels[best].as_str());
            json!({ "text": sample.text_a, "logits": row, "label": label })
        }
    });
    let text: String = lines.map(|line| format!("{line}\n")).collect();
    match &args.out {
        Some(path) => {
            write_file_atomically(path, text)?;
            terminal.say(&format!("{} rows written to {}", rows.len(), path.display()));
        }
        None => terminal.print(&text),
    }
    Ok(Outcome::Done)
}
