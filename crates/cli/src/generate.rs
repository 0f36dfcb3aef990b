//! `zeropoint generate`: a text that a decoder continues.

use std::io::{BufWriter, Read as _};
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use zeropoint_formats::staged::{AtomicFile, check_writable};
use zeropoint_formats::{FormatError, NpyWriter};
use zeropoint_models::{KvCache, Model, ModelDirectory, ModelError, SourceRef, Task, Tokenizer};
use zeropoint_pipeline::{Cancel, PipelineError, Sources};
use zeropoint_runtime::{Ending, QuantizedModel, Sampler, Sampling, generate as continue_tokens};

use crate::Outcome;
use crate::args::GenerateArgs;
use crate::commands::print_json;
use crate::encode::keep_inputs;
use crate::terminal::Terminal;

/// A decoder, quantised or not.
enum Decoder {
    Quantized(QuantizedModel),
    Float(ModelDirectory, Model),
}

impl Decoder {
    fn load(path: &Path) -> Result<Self, PipelineError> {
        if !path.is_dir() {
            return Err(PipelineError::Absent { path: path.to_owned(), what: "model directory" });
        }
        let directory = ModelDirectory::open(&SourceRef::Directory(path.to_owned()), Task::Auto)?;
        if directory.spec().head().task() != Task::CausalLm {
            let reason = format!("{} does not continue texts", directory.spec().architecture);
            return Err(ModelError::Sample { reason }.into());
        }
        if directory.quantization_config().is_some() {
            return Ok(Self::Quantized(QuantizedModel::from_directory(directory)?));
        }
        let model = Model::load(&directory)?;
        Ok(Self::Float(directory, model))
    }

    fn parts(&self) -> (&ModelDirectory, &Model) {
        match self {
            Self::Quantized(model) => (model.directory(), model.model()),
            Self::Float(directory, model) => (directory, model),
        }
    }
}

fn write_logits(path: &Path, model: &Model, mut cache: KvCache, prompt: &[u32]) -> Result<(), PipelineError> {
    let failed =
        |reason| PipelineError::from(FormatError::Io { action: "write", path: path.to_owned(), reason });
    let logits = model.extend(prompt, &mut cache, prompt.len())?;
    let file = BufWriter::new(AtomicFile::create(path)?);
    let mut matrix = NpyWriter::new(file, logits.columns).map_err(failed)?;
    for row in logits.values.chunks_exact(logits.columns) {
        matrix.write_row(row).map_err(failed)?;
    }
    let file = matrix.finish().map_err(failed)?;
    file.into_inner().map_err(|error| failed(error.into_error()))?.persist()?;
    Ok(())
}

/// Most bytes of a prompt in a file: more than any model reads.
const LONGEST_PROMPT: u64 = 16 << 20;

/// The prompt, from wherever it comes.
fn prompt(args: &GenerateArgs) -> Result<String, PipelineError> {
    let Some(path) = &args.prompt_file else { return Ok(args.prompt.clone().unwrap_or_default()) };
    let failed = |source| PipelineError::Io { path: path.clone(), source };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().lock().take(LONGEST_PROMPT + 1).read_to_end(&mut bytes).map_err(failed)?;
    } else {
        let file = std::fs::File::open(path).map_err(failed)?;
        file.take(LONGEST_PROMPT + 1).read_to_end(&mut bytes).map_err(failed)?;
    }
    let refused = |reason: &str| PipelineError::Option { option: "--prompt-file", reason: reason.to_owned() };
    if bytes.len() as u64 > LONGEST_PROMPT {
        return Err(refused("the text has more than 16 MiB"));
    }
    let mut text = String::from_utf8(bytes).map_err(|_| refused("the text is not UTF-8"))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    Ok(text)
}

/// Token ids of the prompt, or of the conversation that it begins.
fn prompt_ids(
    args: &GenerateArgs,
    prompt: &str,
    directory: &ModelDirectory,
    tokenizer: &Tokenizer,
) -> Result<Vec<u32>, ModelError> {
    if !args.chat {
        return tokenizer.prompt_ids(prompt);
    }
    let template = directory
        .chat_template()?
        .ok_or_else(|| ModelError::NoChatTemplate { path: directory.path().to_owned() })?;
    let said = |role: &str, content: &str| json!({ "role": role, "content": content });
    let system = args.system.iter().map(|text| said("system", text));
    let messages: Vec<_> = system.chain([said("user", prompt)]).collect();
    // The special tokens are in the text.
    tokenizer.token_ids(&template.render(&messages, true)?)
}

pub(crate) fn generate(
    args: &GenerateArgs,
    sources: &Sources<'_>,
    terminal: &Terminal,
    cancel: &Cancel,
) -> Result<Outcome, PipelineError> {
    let prompt = prompt(args)?;
    let sampling = Sampling { temperature: args.temperature, top_p: args.top_p, seed: args.seed };
    let option = if (0.0..=1000.0).contains(&args.temperature) { "--top-p" } else { "--temperature" };
    let mut sampler = Sampler::new(sampling)
        .map_err(|error| PipelineError::Option { option, reason: error.to_string() })?;
    if let Some(out) = &args.logits {
        keep_inputs(out, &[&args.model])?;
        check_writable(out)?;
    }
    let (path, _kept) = sources.directory(&args.model, args.revision.as_deref())?;
    let decoder = Decoder::load(&path)?;
    let (directory, model) = decoder.parts();
    let tokenizer = directory.tokenizer(None)?;
    let stop = if args.ignore_stop { Vec::new() } else { directory.stop_tokens()? };
    let prompt = prompt_ids(args, &prompt, directory, &tokenizer)?;
    let new_cache = || match args.kv_cache {
        None => model.new_cache(),
        Some(precision) => model.new_cache_in(precision.into()),
    };
    if let Some(path) = &args.logits {
        write_logits(path, model, new_cache()?, &prompt)?;
    }
    let mut cache = new_cache()?;
    let mut stream = tokenizer.stream();
    let (mut tokens, mut text) = (Vec::new(), String::new());
    let begun = Instant::now();
    let mut first = None;
    let ending = continue_tokens::<PipelineError>(
        model,
        &prompt,
        &mut cache,
        &mut sampler,
        (&stop, args.max_tokens),
        &mut |token| {
            first.get_or_insert_with(Instant::now);
            if cancel.is_requested() {
                return Err(PipelineError::Cancelled);
            }
            tokens.push(token);
            let piece = stream.push(token)?;
            text.push_str(&piece);
            if args.json || piece.is_empty() { Ok(true) } else { terminal.print_some(&piece) }
        },
    )?;
    let now = Instant::now();
    let ending = match ending {
        Ending::StopToken => "stop-token",
        Ending::ContextFull => "context-full",
        Ending::MaxTokens | Ending::Caller => "max-tokens",
    };
    if args.json {
        let found = json!({
            "prompt_tokens": prompt, "tokens": tokens, "text": text, "ending": ending,
        });
        print_json(&found, terminal)?;
    } else {
        terminal.print_some("\n")?;
    }
    let prefill = (first.unwrap_or(now) - begun).as_secs_f64();
    let rest = first.map_or(0.0, |first| (now - first).as_secs_f64());
    let decode = if tokens.len() > 1 {
        format!(", then {:.1} tokens/s", (tokens.len() - 1) as f64 / rest)
    } else {
        String::new()
    };
    terminal.say(&format!(
        "{} tokens read in {:.0} ms{decode}; {} new, ended by {ending}",
        prompt.len(),
        prefill * 1e3,
        tokens.len()
    ));
    Ok(Outcome::Done)
}
