//! A first config for a model: what was found in it, what would happen to it, and the keys worth knowing.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use zeropoint_core::WeightBits;
use zeropoint_formats::write_file_atomically;
use zeropoint_models::{HeadOutput, Problem};
use zeropoint_quantizer::Decision;

use crate::config::{Calibration, Config, Preset, Transform, WeightGranularity};
use crate::deploy::planned_output;
use crate::{PipelineError, Prepared, Sources, inspect};

/// What [`SCHEMA_FILE`] is called beside a config.
pub const SCHEMA_FILE: &str = "zeropoint.schema.json";

/// A commented config for the model of `source`, which is inspected: no weight is read. With `schema`, its first line
/// names [`SCHEMA_FILE`] for editors. It runs as it is, on texts built into the program.
pub fn starter(
    source: &str,
    scheme: Preset,
    schema: bool,
    sources: &Sources<'_>,
) -> Result<String, PipelineError> {
    let mut config = Config::new(source);
    config.quantization = scheme.into();
    config.validate()?;
    let found = inspect(source, None, sources)?;
    let prepared = prepared(config, sources)?;
    let name = plain(&found.name);

    let mut text = String::new();
    if schema {
        let _ = writeln!(text, "#:schema ./{SCHEMA_FILE}\n");
    }
    let _ = writeln!(
        text,
        "# A config of Zeropoint for {name}, as `zeropoint init` writes it. `zeropoint run CONFIG --dry-run` shows what it\n\
         # would do, `zeropoint run CONFIG` does it. Paths start at the directory that the program is run in.\n#"
    );
    text.push_str(&header(&prepared, &found));
    if !schema {
        let _ = writeln!(
            text,
            "#\n# An editor that knows TOML completes the keys with `zeropoint schema > {SCHEMA_FILE}` and a first line\n\
             # `#:schema ./{SCHEMA_FILE}`."
        );
    }
    for part in [
        model(source, &prepared),
        calibration(&prepared),
        quantization(scheme, &prepared),
        evaluation(&prepared),
        output(&prepared),
    ] {
        text.push('\n');
        text.push_str(&part);
    }
    Ok(text)
}

/// Writes a [`starter`] config to `path`, and with `schema` the schema beside it; each file whole or not at all. What is
/// there already is replaced only when `force` says so, and never when it belongs to the model of `source`.
pub fn write_starter(
    text: &str,
    path: &Path,
    source: &str,
    schema: bool,
    force: bool,
) -> Result<(), PipelineError> {
    let beside = path.with_file_name(SCHEMA_FILE);
    let mut files: Vec<(PathBuf, String)> = Vec::new();
    if schema {
        if path.file_name() == beside.file_name() {
            let reason = "this is the name of the schema, which is written beside the config; give the config another one";
            let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, reason);
            return Err(PipelineError::Io { path: beside, source });
        }
        let schema = format!("{:#}\n", Config::json_schema());
        // The same schema may lie there for another config.
        if std::fs::read_to_string(&beside).ok().as_ref() != Some(&schema) {
            files.push((beside, schema));
        }
    }
    files.push((path.to_owned(), text.to_owned()));
    for (path, _) in &files {
        if path.is_dir() {
            return Err(PipelineError::Exists { path: path.clone(), what: "a directory" });
        }
        let Ok(real) = path.canonicalize() else { continue };
        if !force {
            return Err(PipelineError::Exists { path: path.clone(), what: "a file" });
        }
        if Path::new(source).canonicalize().is_ok_and(|model| real.starts_with(model)) {
            return Err(PipelineError::InputInside { output: path.clone(), input: source.into() });
        }
    }
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent)
            .map_err(|source| PipelineError::Io { path: parent.to_owned(), source })?;
    }
    for (path, content) in files {
        write_file_atomically(path, content)?;
    }
    Ok(())
}

/// What was found, a line each.
fn header(prepared: &Prepared, found: &inspect::Inspection) -> String {
    let quantized = prepared.plan.quantized().count();
    let four = prepared.plan.quantized().any(|(_, layer)| layer.scheme.weights.bits == WeightBits::Four);
    let integers = if four { "INT4" } else { "INT8" };
    let bytes = planned_output(prepared).weight_bytes();
    let ratio = found.bytes as f64 / bytes.max(1) as f64;
    let mut text = String::new();
    for (what, content) in [
        ("architecture", format!("{}: {}", found.architecture, found.head)),
        (
            "shape",
            match found.max_tokens {
                Some(tokens) => {
                    format!("{} blocks, {} wide, at most {tokens} tokens", found.blocks, found.hidden)
                }
                None => format!("{} blocks, {} wide", found.blocks, found.hidden),
            },
        ),
        (
            "parameters",
            format!(
                "{}, of them {} in {} Linears",
                grouped(found.parameters),
                grouped(found.linear_parameters as u64),
                found.linears.len()
            ),
        ),
        (
            "weight file",
            format!(
                "{} bytes; {} bytes with {quantized} Linears as {integers}, {ratio:.2} times smaller",
                grouped(found.bytes),
                grouped(bytes)
            ),
        ),
    ] {
        let _ = writeln!(text, "#     {what:13} {}", plain(&content));
    }
    text
}

fn model(source: &str, prepared: &Prepared) -> String {
    let head = prepared.directory.spec().head();
    let about = match &head.output {
        HeadOutput::Embedding { .. } => "one vector for each text",
        HeadOutput::Classification { problem: Problem::Regression, .. } => "one score for each text or pair",
        HeadOutput::Classification { .. } => "one class for each text",
        HeadOutput::TokenClassification { .. } => "one class for each token",
        HeadOutput::MaskedLm => "logits over the vocabulary for each token",
        HeadOutput::CausalLm => "logits over the vocabulary for the token after each",
        HeadOutput::QuestionAnswering => "the span of a text that answers a question",
    };
    format!(
        "version = 1\n\n[model]\nsource = {}\n{}",
        basic_string(source),
        commented(
            &format!("task = \"{}\"", head.task().name()),
            &format!("{about}; read from the model's files")
        )
    )
}

fn calibration(prepared: &Prepared) -> String {
    let Calibration { samples, batch_size, seed, .. } = &prepared.config.calibration;
    let mut text = "[calibration]\n\
                    # Texts as the model will see them calibrate it best: jsonl, txt or csv files. Without any, English sentences\n\
                    # built into the program.\n\
                    # data = [\"texts.jsonl\"]\n"
        .to_owned();
    text.push_str(&commented(
        &format!("samples = {samples}"),
        "texts taken from the data; which ones, the seed decides",
    ));
    if let Some(length) = prepared.config.calibration.max_length {
        let about = if prepared.directory.spec().head().output == HeadOutput::CausalLm {
            "tokens; longer texts are several samples"
        } else {
            "tokens, the most that the model takes; longer texts are cut"
        };
        text.push_str(&commented(&format!("max_length = {length}"), about));
    }
    text.push_str(&commented(&format!("batch_size = {batch_size}"), "texts in one forward"));
    let _ = writeln!(text, "seed = {seed}");
    text
}

/// The run of a config whose groups, where the preset has some that do not come out even, are the usual size that does.
fn prepared(mut config: Config, sources: &Sources<'_>) -> Result<Prepared, PipelineError> {
    const USUAL: [usize; 5] = [64, 32, 128, 16, 8];
    let error = match Prepared::with_sources(config.clone(), sources) {
        Err(error) => error,
        Ok(prepared) => return Ok(prepared),
    };
    let Some(sizes) = error.group_sizes() else { return Err(error) };
    let weights = &mut config.quantization.weights;
    weights.group_size = USUAL.into_iter().find(|size| sizes.contains(size)).map(|size| size as u32);
    if weights.group_size.is_none() {
        weights.granularity = WeightGranularity::Channel;
    }
    Prepared::with_sources(config, sources)
}

fn quantization(scheme: Preset, prepared: &Prepared) -> String {
    let mut text = "[quantization]\n".to_owned();
    let about = match scheme {
        Preset::W8a8Dynamic => {
            "activations get a scale for each token at run time; \"w8a8-static\": one from calibration"
        }
        Preset::W8a8Static => {
            "activations get their scale from calibration; \"w8a8-dynamic\": for each token at run time"
        }
        Preset::W8a16 => "weights alone are INT8; \"w4a16\": INT4, half the bytes of that",
        Preset::W4a16 => "weights alone are INT4, in groups of inputs; \"w8a16\": INT8",
        Preset::BestInt8 => "as \"w8a8-dynamic\", with what loses least and loads everywhere",
        Preset::BestInt8Runtime => "as \"w8a8-dynamic\", with what loses least in Zeropoint's runtime",
    };
    text.push_str(&commented(&format!("scheme = \"{}\"", scheme.as_str()), about));
    match scheme {
        Preset::W4a16 => {
            let size = prepared.config.quantization.weights.group_size;
            let groups =
                size.map_or("granularity = \"channel\"".to_owned(), |size| format!("group_size = {size}"));
            let _ = writeln!(text, "weights = {{ {groups}, observer = \"mse\" }}");
        }
        _ => text.push_str("weights = { granularity = \"channel\", observer = \"mse\" }\n"),
    }
    if scheme == Preset::W8a8Static {
        text.push_str(&commented(
            "activations = { symmetric = false, observer = \"min-max\" }",
            "\"mse\" and \"percentile\" clip outliers",
        ));
    }
    if !scheme.transforms().is_empty() {
        let kinds: Vec<String> =
            prepared.config.quantization.transforms.iter().flatten().map(Transform::in_words).collect();
        let kinds = if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") };
        text.push_str(&commented(
            "algorithm = { kind = \"gptq\" }",
            &format!("and of the scheme's transforms those exact here: {kinds}"),
        ));
    }
    let spec = prepared.directory.spec();
    let checkpoint = prepared.directory.checkpoint();
    let tables: u64 = spec
        .tables()
        .filter_map(|table| checkpoint.get(&table.tensor))
        .map(zeropoint_formats::TensorInfo::bytes)
        .sum();
    let is_decoder = spec.head().output == HeadOutput::CausalLm;
    if is_decoder && scheme == Preset::W8a8Dynamic {
        text.push_str(&commented(
            "# activations = { symmetric = false }",
            "decoders lose about half as much with a zero point for each token",
        ));
    }
    text.push_str(&commented(
        "embeddings = \"keep\"",
        &format!("embedding tables, {} bytes; \"bf16\" halves those in f32", grouped(tables)),
    ));
    if is_decoder {
        text.push_str(
            "# With `lm_head = \"int8\"` the head is INT8 as well: new tokens come faster, and the model loses somewhat more.\n",
        );
    }
    text.push_str(
        "# Norms and biases are never INT8, embedding tables in the format \"zeropoint\" alone.\n#",
    );
    let kept: Vec<(&str, &str)> = prepared
        .plan
        .linears
        .iter()
        .filter_map(|linear| match &linear.decision {
            Decision::Keep { reason } => Some((linear.path.as_str(), reason.as_str())),
            Decision::Quantize(_) => None,
        })
        .collect();
    if kept.is_empty() {
        text.push_str(" Every Linear is; `ignore` would leave some float:\n# ignore = []\n");
    } else {
        text.push_str(" By default these Linears stay float as well; a list of one's\n# own replaces the default:\n# ignore = [\n");
        for (path, reason) in kept {
            let _ = writeln!(text, "#     {}, # {}", basic_string(path), plain(reason));
        }
        text.push_str("# ]\n");
    }
    // The last reads its activation alone; of those that share one, all would have to be named.
    let example =
        prepared.plan.quantized().last().map(|(linear, _)| linear.path.as_str()).unwrap_or_default();
    let _ = writeln!(
        text,
        "\n# Another scheme for some layers, by exact name or by a pattern (`re:` and a regular expression):\n\
         # [[quantization.overrides]]\n# layers = [{}]\n# scheme = \"none\"",
        basic_string(example)
    );
    if let Some((_, module)) = example.rsplit_once('.').filter(|_| is_decoder && scheme == Preset::W8a8Static)
    {
        let _ = writeln!(
            text,
            "#\n# The inputs of these have the largest outliers: dynamic, they lose much less.\n\
             # [[quantization.overrides]]\n# layers = [{}]\n# scheme = \"w8a8-dynamic\"",
            basic_string(&format!("re:.*\\.{module}$"))
        );
    }
    text
}

fn evaluation(prepared: &Prepared) -> String {
    let spec = prepared.directory.spec();
    let mut text = "[[evaluation.tasks]]\n".to_owned();
    text.push_str(&commented(
        "kind = \"fidelity\"",
        "the INT8 outputs against the float ones, by default on the calibration texts",
    ));
    let with_gold = match &spec.head().output {
        HeadOutput::Embedding { .. } => Some((
            "Pairs of sentences with the similarity that people gave them say what INT8 costs where it is used:",
            "sts",
            "the fields text_a, text_b and score",
            "spearman",
        )),
        HeadOutput::Classification { problem: Problem::SingleLabel, .. } => Some((
            "Texts with their right class say what INT8 costs where it is used:",
            "classification",
            "the fields text and label",
            "accuracy",
        )),
        HeadOutput::Classification { problem: Problem::MultiLabel, .. } => Some((
            "Texts with their right labels say what INT8 costs where it is used:",
            "classification",
            "the fields text and label, a list",
            "micro_f1",
        )),
        HeadOutput::Classification { labels, .. } if labels.len() == 1 => Some((
            "Pairs of texts with the score that people gave them say what INT8 costs where it is used:",
            "sts",
            "the fields text_a, text_b and score",
            "spearman",
        )),
        HeadOutput::CausalLm => Some((
            "A text of the kind that it will continue says what INT8 costs where it is used:",
            "perplexity",
            "plain text, cut into windows",
            "kl_mean",
        )),
        HeadOutput::Classification { .. } => None,
        HeadOutput::TokenClassification { .. } => Some((
            "Sentences with the label of each word say what INT8 costs where it is used:",
            "token-classification",
            "the fields tokens and labels, two lists",
            "accuracy",
        )),
        HeadOutput::QuestionAnswering => Some((
            "Questions with their answers say what INT8 costs where it is used:",
            "question-answering",
            "the fields question, context and answers",
            "f1",
        )),
        HeadOutput::MaskedLm => Some((
            "Texts of one's own say what INT8 costs where it is used:",
            "masked-lm",
            "the field text",
            "accuracy",
        )),
    };
    if let Some((about, kind, columns, _)) = with_gold {
        let extension = if kind == "perplexity" { "txt" } else { "jsonl" };
        let _ = writeln!(
            text,
            "\n# {about}\n# [[evaluation.tasks]]\n# kind = \"{kind}\"\n# data = \"{kind}.{extension}\"  # {columns}"
        );
        if spec.head().output == HeadOutput::CausalLm {
            let _ = writeln!(text, "# window = {}\n# windows = 40", prepared.directory.max_tokens().min(512));
        }
    }
    // One score has no direction.
    let head = spec.head();
    let nearness = if head.labels().len() == 1 && !head.is_per_token() { "pearson" } else { "cosine_mean" };
    let unit = match &head.output {
        HeadOutput::CausalLm => "metrics are fractions, or nats a token",
        _ => "metrics are fractions",
    };
    let _ = write!(
        text,
        "\n# A gate ends the run with exit code 3 when more than this is lost; {unit}:\n\
         # [[evaluation.gate]]\n# task = \"fidelity\"\n# metric = \"{nearness}\"\n# max_drop = 0.01\n",
    );
    if let Some((_, kind, _, metric)) = with_gold {
        // Nats a token, or a fraction.
        let most = if metric == "kl_mean" { "0.05" } else { "0.005" };
        let _ = writeln!(
            text,
            "#\n# [[evaluation.gate]]\n# task = \"{kind}\"\n# metric = \"{metric}\"\n# max_drop = {most}"
        );
    }
    text
}

fn output(prepared: &Prepared) -> String {
    format!("[output]\ndir = {}\n", basic_string(&prepared.config.output_dir()))
}

/// A line with a comment in a column of its own.
fn commented(line: &str, about: &str) -> String {
    const COLUMN: usize = 31;
    format!("{line:COLUMN$} # {about}\n")
}

/// A string as TOML has it in one line.
fn basic_string(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// Text from a model's files, fit for a comment.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `1234567` as `1,234,567`.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_in_threes() {
        for (number, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(number), text);
        }
    }

    #[test]
    fn strings_are_read_back_as_they_are() {
        for text in ["", "models/mini lm", "C:\\models", "a\"b", "é\u{7f}\u{1b}\n# not a comment"] {
            let line = format!("x = {}", basic_string(text));
            assert_eq!(line.lines().count(), 1);
            let table: toml::Table = toml::from_str(&line).unwrap();
            assert_eq!(table["x"].as_str(), Some(text));
        }
    }
}
