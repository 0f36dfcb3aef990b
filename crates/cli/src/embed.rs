//! `zeropoint embed`: lines in, vectors out.

use std::io::{BufWriter, Write as _};
use std::path::Path;

use zeropoint_formats::staged::{AtomicFile, OutputFile, check_writable};
use zeropoint_formats::{FormatError, NpyWriter};
use zeropoint_pipeline::{Cancel, EncodeOptions, PipelineError, Sources, embed as embed_lines};

use crate::Outcome;
use crate::args::{EmbedArgs, VectorFormat};
use crate::encode::{keep_inputs, load, prompt};
use crate::terminal::Terminal;

pub(crate) fn embed(
    args: &EmbedArgs,
    sources: &Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let is_npy =
        |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("npy"));
    let by_name = match &args.out {
        Some(path) if is_npy(path) => VectorFormat::Npy,
        _ => VectorFormat::Jsonl,
    };
    let format = args.format.unwrap_or(by_name);
    if let Some(out) = &args.out {
        keep_inputs(out, &[&args.model])?;
        check_writable(out)?;
    }
    let (model, _kept) = load(sources, &args.model, args.revision.as_deref())?;
    let options = EncodeOptions {
        batch_size: usize::from(args.batch_size),
        prompt: prompt(args.prompt.as_ref(), args.prompt_text.as_ref()),
    };
    let mut input = std::io::stdin().lock();
    let mut run = |each: &mut dyn FnMut(&[f32]) -> Result<(), PipelineError>| {
        embed_lines(&model, &mut input, "standard input", &options, (terminal, cancel), each)
    };
    let (rows, out) = match (format, &args.out) {
        (VectorFormat::Npy, None) => {
            let reason =
                "npy begins with the number of rows, which is known at the end; give a file with --out";
            return Err(PipelineError::Option { option: "--format", reason: reason.to_owned() });
        }
        (VectorFormat::Npy, Some(path)) => {
            let failed = |reason| write_error(path, reason);
            let mut matrix = None;
            let rows = run(&mut |vector| {
                let matrix = match &mut matrix {
                    Some(begun) => begun,
                    // The first vector says how wide the matrix is.
                    none => {
                        let file = BufWriter::new(AtomicFile::create(path)?);
                        none.insert(NpyWriter::new(file, vector.len()).map_err(failed)?)
                    }
                };
                matrix.write_row(vector).map_err(failed)
            })?;
            if let Some(matrix) = matrix {
                let file = matrix.finish().map_err(failed)?;
                file.into_inner().map_err(|error| failed(error.into_error()))?.persist()?;
            }
            (rows, path)
        }
        (VectorFormat::Jsonl, Some(path)) => {
            let failed = |reason| write_error(path, reason);
            let mut file = BufWriter::new(OutputFile::create(path)?);
            let rows = run(&mut |vector| file.write_all(line(vector)?.as_bytes()).map_err(failed))?;
            file.into_inner().map_err(|error| failed(error.into_error()))?.finish()?;
            (rows, path)
        }
        (VectorFormat::Jsonl, None) => {
            // A reader that has gone away, as `head` does, wants no more of them.
            let mut gone = false;
            let done = run(&mut |vector| {
                gone = !terminal.print_some(&line(vector)?)?;
                if gone { Err(PipelineError::Cancelled) } else { Ok(()) }
            });
            if !gone {
                done?;
            }
            return Ok(Outcome::Done);
        }
    };
    terminal.say(&format!("{rows} vectors written to {}", out.display()));
    Ok(Outcome::Done)
}

fn write_error(path: &Path, reason: std::io::Error) -> PipelineError {
    FormatError::Io { action: "write", path: path.to_owned(), reason }.into()
}

/// A row of the output; its numbers are the shortest that are read back as the same f32.
fn line(vector: &[f32]) -> Result<String, PipelineError> {
    let values = serde_json::to_string(vector)
        .map_err(|error| PipelineError::Io { path: "a vector".into(), source: error.into() })?;
    Ok(format!("{{\"embedding\":{values}}}\n"))
}
