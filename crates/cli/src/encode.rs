//! `zeropoint encode`: texts through the INT8 runtime.

use std::io::Write;
use std::path::Path;

use zeropoint_formats::FormatError;
use zeropoint_formats::staged::{OutputFile, check_writable};
use zeropoint_models::{PromptChoice, Task};
use zeropoint_pipeline::{
    Cancel, EncodeOptions, LocalModel, PipelineError, Record, Sources, encode as encode_texts, read_texts,
};
use zeropoint_runtime::QuantizedModel;

use crate::Outcome;
use crate::args::EncodeArgs;
use crate::terminal::Terminal;

pub(crate) fn encode(
    args: &EncodeArgs,
    sources: &Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    if let Some(out) = &args.out {
        keep_inputs(out, &[&args.data, &args.model])?;
        check_writable(out)?;
    }
    let (model, _kept) = load(sources, &args.model, args.revision.as_deref())?;
    let data = match args.data.to_str() {
        Some(data) => sources.data(data)?.path,
        None => args.data.clone(),
    };
    let samples = read_texts(&data, &model)?;
    let options = EncodeOptions {
        batch_size: usize::from(args.batch_size),
        prompt: prompt(args.prompt.as_ref(), args.prompt_text.as_ref()),
    };
    let line = |record: &Record| -> Result<String, PipelineError> {
        let json = serde_json::to_string(record)
            .map_err(|error| PipelineError::Io { path: "a record".into(), source: error.into() })?;
        Ok(json + "\n")
    };
    match &args.out {
        None => {
            // A reader that has gone away, as `head` does, wants no more of them.
            let mut gone = false;
            let done = encode_texts(&model, &samples, &options, cancel, &mut |record| {
                gone = !terminal.print_some(&line(&record)?)?;
                if gone { Err(PipelineError::Cancelled) } else { Ok(()) }
            });
            if !gone {
                done?;
            }
        }
        Some(path) => {
            let mut file = OutputFile::create(path)?;
            let failed =
                |reason| PipelineError::from(FormatError::Io { action: "write", path: path.clone(), reason });
            let mut rows = 0;
            encode_texts(&model, &samples, &options, cancel, &mut |record| {
                rows += 1;
                file.write_all(line(&record)?.as_bytes()).map_err(failed)
            })?;
            file.finish()?;
            terminal.say(&format!("{rows} rows written to {}", path.display()));
        }
    }
    Ok(Outcome::Done)
}

/// The quantised model that an argument names, and what keeps its files where they are.
pub(crate) fn load(
    sources: &Sources<'_>,
    name: &Path,
    revision: Option<&str>,
) -> Result<(QuantizedModel, LocalModel), PipelineError> {
    let (path, kept) = sources.directory(name, revision)?;
    if !path.is_dir() {
        return Err(PipelineError::Absent { path, what: "quantised model directory" });
    }
    Ok((QuantizedModel::load(&path, Task::Auto)?, kept))
}

/// What `--prompt` and `--prompt-text` come to.
pub(crate) fn prompt(name: Option<&String>, text: Option<&String>) -> PromptChoice {
    match (name, text) {
        (Some(name), _) => PromptChoice::Named(name.clone()),
        (None, Some(text)) => PromptChoice::Text(text.clone()),
        (None, None) => PromptChoice::ModelDefault,
    }
}

/// The output is neither the texts nor a file of the model.
pub(crate) fn keep_inputs(out: &Path, inputs: &[&Path]) -> Result<(), PipelineError> {
    let real = |path: &Path| path.canonicalize().ok();
    let Some(target) = real(out) else { return Ok(()) };
    let input = inputs.iter().find(|input| real(input).is_some_and(|i| target.starts_with(i)));
    match input {
        None => Ok(()),
        Some(input) => Err(PipelineError::InputInside { output: out.to_owned(), input: input.to_path_buf() }),
    }
}
