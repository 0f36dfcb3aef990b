//! `zeropoint encode`: texts through the INT8 runtime.

use std::path::Path;

use serde_json::json;
use zeropoint_calibrator::BatchPlan;
use zeropoint_calibrator::dataset::{self, ReadOptions};
use zeropoint_evaluator::metrics::fidelity::argmax;
use zeropoint_formats::staged::check_writable;
use zeropoint_formats::write_file_atomically;
use zeropoint_models::{HeadOutput, ModelError, PackedBatch, Task};
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
    if let Some(out) = &args.out {
        keep_inputs(out, args)?;
        check_writable(out)?;
    }
    if !args.model.is_dir() {
        return Err(PipelineError::Absent { path: args.model.clone(), what: "quantised model directory" });
    }
    let samples = dataset::read(&args.data, &ReadOptions::default())?;
    let model = QuantizedModel::load(&args.model, Task::Auto)?;
    let encoder = model.directory().spec().head().is_embedding();
    if let Some(pair) = samples.iter().find(|sample| encoder && sample.text_b.is_some()) {
        let reason =
            format!("{}:{}: a pair of texts; a sentence encoder takes one text a line", pair.file, pair.line);
        return Err(ModelError::Sample { reason }.into());
    }
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
        for (&i, row) in indices.iter().zip(outputs.samples()) {
            if row.iter().any(|value| !value.is_finite()) {
                let reason =
                    format!("{}:{}: the model's output is not finite", samples[i].file, samples[i].line);
                return Err(ModelError::Sample { reason }.into());
            }
            rows[i] = row.to_vec();
        }
    }
    let lines =
        samples.iter().zip(&rows).map(|(sample, row)| match &model.directory().spec().head().output {
            HeadOutput::Embedding { .. } => json!({ "text": sample.text_a, "embedding": row }),
            HeadOutput::Classification { labels, .. } => {
                let label = argmax(row).map(|best| labels[best].as_str());
                json!({ "text": sample.text_a, "logits": row, "label": label })
            }
            _ => json!({ "text": sample.text_a, "logits": row }),
        });
    let text = lines.fold(String::new(), |text, line| text + &line.to_string() + "\n");
    match &args.out {
        Some(path) => {
            write_file_atomically(path, text)?;
            terminal.say(&format!("{} rows written to {}", rows.len(), path.display()));
        }
        None => terminal.print(&text)?,
    }
    Ok(Outcome::Done)
}

/// The output is neither the texts nor a file of the model.
fn keep_inputs(out: &Path, args: &EncodeArgs) -> Result<(), PipelineError> {
    let real = |path: &Path| path.canonicalize().ok();
    let Some(target) = real(out) else { return Ok(()) };
    let input = [&args.data, &args.model]
        .into_iter()
        .find(|input| real(input).is_some_and(|i| target.starts_with(i)));
    match input {
        None => Ok(()),
        Some(input) => Err(PipelineError::InputInside { output: out.to_owned(), input: input.clone() }),
    }
}
