//! The command line.

use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use zeropoint_evaluator::compare::MetricName;
use zeropoint_kernels::KvPrecision;
use zeropoint_pipeline::config::{Preset, byte_size};
use zeropoint_pipeline::{Candidate, Memory, Shard};

use crate::compare;

/// Post-training quantisation of Hugging Face models to INT8 and INT4, on the CPU: one config in, a deployable model and its
/// accuracy report out.
#[derive(Debug, Parser)]
#[command(name = "zeropoint", version, max_term_width = 100, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) global: Global,
}

const EXIT_CODES: &str = "\
Exit codes: 0 done; 1 failed; 2 wrong usage or config, or one that names a model or file that does not exist; 3 an \
accuracy gate was not met (the outputs are kept); 130 stopped by a signal.
Environment: ZEROPOINT_ISA=scalar|avx2|avxvnni|avx512vnni|avx512bf16|neon|neon-dotprod chooses the instruction set, NO_COLOR \
turns colour off; HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE are those of the Hugging Face hub.";

const SUPPORTED: &str = "\
Supported models: encoders of texts (BERT, RoBERTa, XLM-RoBERTa, DistilBERT, MPNet, ALBERT, ELECTRA, ModernBERT, \
Nomic-BERT, GTE) as sentence encoders, classifiers, cross-encoders, token classifiers, masked language models or for \
question answering; of images (ViT, DeiT) and of both (CLIP); decoders (Llama, Mistral, Qwen, SmolLM3, Phi-3, Gemma, \
GPT-NeoX, GPT-2); in f32, f16 or bf16 safetensors, one file or sharded. \
docs/families.md has every class and its limits.
Models come from a directory or, as owner/name, from the Hugging Face hub.
Limits: weights are INT8 or, with float activations, INT8 or INT4; transformers \
expands quantised weights to float when it loads them, so the speed-up is in Zeropoint's own runtime.";

/// Options of every command.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// Threads to use (default: one for each processor); results do not depend on it
    #[arg(
        long,
        global = true,
        value_name = "N",
        value_delimiter = ',',
        num_args = 1,
        action = clap::ArgAction::Set,
        value_parser = clap::value_parser!(u16).range(1..=1024)
    )]
    pub(crate) threads: Vec<u16>,
    /// Tell more; twice for details of every step
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
    /// Show errors only
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub(crate) quiet: bool,
    /// Use no network: models and data of the hub must be in its cache
    #[arg(long, global = true)]
    pub(crate) offline: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Calibrate, quantise, check, evaluate, and write the run directory
    #[command(after_help = SUPPORTED)]
    Run(RunArgs),
    /// Make the runs of a config's `[sweep]`, many schemes of one model, and compare them: one calibration for each graph, one
    /// evaluation of the original
    Sweep(SweepArgs),
    /// Choose a scheme for each group of Linears within a limit on the loss or on the bytes, by what each costs alone and by real
    /// runs; the result is a run directory, whose config makes it again
    Auto(AutoArgs),
    /// Collect activation statistics only
    Calibrate(CalibrateArgs),
    /// Merge the statistics of shards, or show what a statistics file holds
    #[command(subcommand)]
    Statistics(StatisticsCommand),
    /// Quantise with statistics from a file, without evaluation
    Quantize(QuantizeArgs),
    /// Measure a quantised model against the original of a config
    Evaluate(EvaluateArgs),
    /// Embed, classify, score, label, answer or fill in texts with a quantised model on the INT8 runtime, one JSON
    /// object a line
    Encode(EncodeArgs),
    /// Continue a text with a decoder, quantised or not, token by token
    Generate(GenerateArgs),
    /// Vectors of the lines of standard input with a quantised sentence encoder, in order, as they come
    Embed(EmbedArgs),
    /// Measure latency and throughput of a quantised model on the INT8 runtime, beside its original; `--threads` takes several
    /// numbers here, as in `--threads 1,2`
    Bench(BenchArgs),
    /// Compare runs of one model: accuracy against size, and which runs no other one beats
    Compare(CompareArgs),
    /// Describe a model: architecture, Linears, parameters, bytes, what is quantised already
    Inspect(InspectArgs),
    /// Write a commented config for a model, which it inspects
    Init(InitArgs),
    /// Put a quantised model on the Hugging Face hub: a private repository unless --public is given, one commit
    #[cfg(feature = "hub")]
    Push(PushArgs),
    /// Print the JSON Schema of the config
    Schema,
}

/// A config and changes to it.
#[derive(Debug, Args)]
pub(crate) struct ConfigArgs {
    /// The config, a TOML file
    pub(crate) config: PathBuf,
    /// Change a key of the config, as in `quantization.weights.observer=min-max`; may be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<String>,
}

/// Where statistics and the log-probabilities of originals are kept.
#[derive(Debug, Args)]
pub(crate) struct CacheArgs {
    /// Keep statistics, and the log-probabilities of a decoder's original, in this directory (default: zeropoint in the user's
    /// cache directory)
    #[arg(long, value_name = "DIR")]
    pub(crate) cache: Option<PathBuf>,
    /// Neither look for what an earlier run has kept nor keep anything
    #[arg(long, conflicts_with = "cache")]
    pub(crate) no_cache: bool,
}

/// What may be in memory.
#[derive(Debug, Args)]
pub(crate) struct MemoryArgs {
    /// Hidden states that may be in memory while all samples go through one block of the model after the other, such as
    /// 500MB or 4GiB; more goes into a file. A model whose weights take an eighth of it in f32 is loaded as a whole
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = memory)]
    pub(crate) memory: Memory,
}

fn memory(text: &str) -> Result<Memory, String> {
    let expected = || "a number of bytes is expected, such as 500MB or 4GiB".to_owned();
    byte_size(text).map(Memory).ok_or_else(expected)
}

/// The run directory.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// The run directory (default: `output.dir` of the config)
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<String>,
    /// Replace the directory if an earlier run wrote it
    #[arg(long)]
    pub(crate) force: bool,
    /// Begin anew instead of going on with what an interrupted run has left
    #[arg(long)]
    pub(crate) restart: bool,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    /// Print the plan (layers, schemes, sizes, passes, memory, time) and do nothing; reads no weights, and of a model on
    /// the hub fetches no more than their headers
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the report (or the plan) as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SweepArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Take the sweep from this TOML file, which says what `[sweep]` may, in place of the config's
    #[arg(long, value_name = "FILE")]
    pub(crate) grid: Option<PathBuf>,
    /// The directory of the runs and of their comparison (default: `output.dir` of the config); runs that are there already, of
    /// the same config, are taken as they are
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<String>,
    /// Make all runs anew, in place of those that earlier sweeps wrote
    #[arg(long)]
    pub(crate) force: bool,
    /// Begin a run anew instead of going on with what an interrupted one has left
    #[arg(long)]
    pub(crate) restart: bool,
    /// The metric to compare (default: the first that most of the runs have measured against labels)
    #[arg(long, value_name = "TASK.METRIC", value_parser = compare::metric)]
    pub(crate) metric: Option<MetricName>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    /// Plan every run, list them with their sizes, and do nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the comparison as JSON on standard output instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("budget").required(true).args(["max_drop", "target_bytes"]))]
pub(crate) struct AutoArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Let the metric lose at most so much, in its own unit, and find what is cheapest within that
    #[arg(long, value_name = "LOSS", value_parser = not_negative)]
    pub(crate) max_drop: Option<f64>,
    /// Let the weight files have at most so many bytes, such as 120MB, and find what loses least within that
    #[arg(long, value_name = "SIZE", value_parser = bytes)]
    pub(crate) target_bytes: Option<u64>,
    /// The metric whose loss counts (default: that of the first gate, else the first of the first task)
    #[arg(long, value_name = "TASK.METRIC", value_parser = compare::metric)]
    pub(crate) metric: Option<MetricName>,
    /// The schemes to choose from; "none" leaves Linears float
    #[arg(
        long,
        value_name = "SCHEME",
        value_delimiter = ',',
        default_values = Candidate::ALL.map(Candidate::as_str),
        value_parser = PossibleValuesParser::new(Candidate::ALL.map(Candidate::as_str))
    )]
    pub(crate) candidates: Vec<String>,
    /// With --max-drop, what makes a model cheap: little work at run time and few bytes, or few bytes alone
    #[arg(long, value_enum, default_value = "speed")]
    pub(crate) prefer: Cheap,
    /// The run directory (default: `output.dir` of the config)
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<String>,
    /// Replace the directory if an earlier run wrote it
    #[arg(long)]
    pub(crate) force: bool,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    /// Print what was tried and the report as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

/// What makes a model cheap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Cheap {
    Speed,
    Size,
}

fn bytes(text: &str) -> Result<u64, String> {
    let expected = || "a number of bytes is expected, such as 500MB or 4GiB".to_owned();
    byte_size(text).filter(|bytes| *bytes > 0).ok_or_else(expected)
}

fn not_negative(text: &str) -> Result<f64, String> {
    let number = text.parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "a number that is at least 0 is expected, such as 0.005".to_owned())
}

#[derive(Debug, Args)]
pub(crate) struct CalibrateArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// The statistics file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
    /// Take one part of the set only, as in 2/4 for the second of four; `statistics merge` makes all
    /// N files into one
    #[arg(long, value_name = "I/N", conflicts_with = "cache")]
    pub(crate) shard: Option<Shard>,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
}

#[derive(Debug, Subcommand)]
pub(crate) enum StatisticsCommand {
    /// Merge all shards of a calibration set into the statistics of the whole
    ///
    /// The file is the same, byte for byte, as one that `zeropoint calibrate` writes without `--shard`, in whatever
    /// order the shards are given.
    Merge(MergeArgs),
    /// Show what a statistics file holds: what it belongs to, and each site's range and outlier channels
    Show(ShowArgs),
}

#[derive(Debug, Args)]
pub(crate) struct MergeArgs {
    /// The files of `zeropoint calibrate --shard 1/N` to `--shard N/N`, each once, in any order
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// The statistics file to write
    #[arg(long, value_name = "FILE")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The statistics file, of a whole set or of a shard
    pub(crate) file: PathBuf,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct QuantizeArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// Statistics that `zeropoint calibrate` wrote for this config
    #[arg(long, value_name = "FILE")]
    pub(crate) statistics: PathBuf,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    /// Print the report as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EvaluateArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
    /// The quantised model, such as runs/NAME/model, or owner/name of the hub
    #[arg(long, value_name = "DIR")]
    pub(crate) model: PathBuf,
    #[command(flatten)]
    pub(crate) cache: CacheArgs,
    #[command(flatten)]
    pub(crate) memory: MemoryArgs,
    /// Print metrics and gates as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EncodeArgs {
    /// The quantised model, such as runs/NAME/model, or owner/name of the hub
    pub(crate) model: PathBuf,
    /// Branch, tag or commit of a model on the hub (default: main)
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    /// The texts: jsonl, txt, csv or parquet, or hub:owner/name/path; pairs as `text_a` and `text_b`, questions as `question`
    /// and `context`
    #[arg(long, value_name = "FILE")]
    pub(crate) data: PathBuf,
    /// Write here instead of to standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// For sentence encoders: put this prompt of the model before each text, by its name in
    /// `config_sentence_transformers.json` (default: the one that the file names as its default)
    #[arg(long, value_name = "NAME", conflicts_with = "prompt_text")]
    pub(crate) prompt: Option<String>,
    /// For sentence encoders: put this text before each text; "" for no prompt
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt_text: Option<String>,
    /// Texts in a batch
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) batch_size: u16,
}

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvCache {
    F32,
    Bf16,
    Int8,
}

impl From<KvCache> for KvPrecision {
    fn from(cache: KvCache) -> Self {
        match cache {
            KvCache::F32 => Self::F32,
            KvCache::Bf16 => Self::Bf16,
            KvCache::Int8 => Self::Int8,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// The model, such as runs/NAME/model or an original, or owner/name of the hub
    pub(crate) model: PathBuf,
    /// Branch, tag or commit of a model on the hub (default: main)
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    /// The text to continue: as it is, or with --chat what a user says
    #[arg(
        long,
        value_name = "TEXT",
        required_unless_present = "prompt_file",
        conflicts_with = "prompt_file"
    )]
    pub(crate) prompt: Option<String>,
    /// Take the text from a file, UTF-8 of at most 16 MiB, or with - from standard input; a line break at its end is left out
    #[arg(long, value_name = "FILE")]
    pub(crate) prompt_file: Option<PathBuf>,
    /// Put the prompt into the model's chat template, as what a user says, and let the model answer; where a template asks
    /// for the date, it is told 26 July 2024
    #[arg(long)]
    pub(crate) chat: bool,
    /// With --chat, what the system says before the prompt
    #[arg(long, value_name = "TEXT", requires = "chat")]
    pub(crate) system: Option<String>,
    /// Most new tokens
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub(crate) max_tokens: usize,
    /// What logits are divided by before one of the tokens is drawn; 0 takes the most probable
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub(crate) temperature: f64,
    /// Draw among the most probable tokens that have this share of the probability together
    #[arg(long, value_name = "P", default_value_t = 1.0, requires = "temperature")]
    pub(crate) top_p: f64,
    /// Of the draws; the same seed gives the same text
    #[arg(long, value_name = "N", default_value_t = 0, requires = "temperature")]
    pub(crate) seed: u64,
    /// Go on behind the tokens that end a text (`eos_token_id` of `generation_config.json` or `config.json`)
    #[arg(long)]
    pub(crate) ignore_stop: bool,
    /// How keys and values of the tokens before are held (default: as attention multiplies them, f32 in an original and bf16 in a
    /// quantised model)
    #[arg(long, value_enum, value_name = "TYPE")]
    pub(crate) kv_cache: Option<KvCache>,
    /// Write the logits of every token of the prompt here, f32 `[tokens, vocabulary]` as `numpy.load` reads them
    #[arg(long, value_name = "FILE")]
    pub(crate) logits: Option<PathBuf>,
    /// Print token ids, text and how it ended as JSON on standard output, at the end
    #[arg(long)]
    pub(crate) json: bool,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VectorFormat {
    /// A JSON object a line, `{"embedding": [...]}`
    Jsonl,
    /// A matrix of f32 that `numpy.load` reads, a row a line; needs --out
    Npy,
}

#[derive(Debug, Args)]
pub(crate) struct EmbedArgs {
    /// The quantised model, such as runs/NAME/model, or owner/name of the hub
    pub(crate) model: PathBuf,
    /// Branch, tag or commit of a model on the hub (default: main)
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    /// Write here instead of to standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// How vectors are written (default: npy where --out ends in .npy, else jsonl)
    #[arg(long, value_enum)]
    pub(crate) format: Option<VectorFormat>,
    /// Put this prompt of the model before each text, by its name in `config_sentence_transformers.json` (default: the one
    /// that the file names as its default)
    #[arg(long, value_name = "NAME", conflicts_with = "prompt_text")]
    pub(crate) prompt: Option<String>,
    /// Put this text before each text; "" for no prompt
    #[arg(long, value_name = "TEXT")]
    pub(crate) prompt_text: Option<String>,
    /// Texts in a batch
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) batch_size: u16,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The quantised model, such as runs/NAME/model, or owner/name of the hub
    pub(crate) model: PathBuf,
    /// Branch, tag or commit of a model on the hub (default: main)
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    /// Measure this original too, in turns: a model directory, owner/name of the hub, or "embedded"
    #[arg(long, value_name = "ORIGINAL")]
    pub(crate) against: Option<String>,
    /// Samples in a batch; several with commas
    #[arg(long, value_name = "N", value_delimiter = ',', default_value = "1,32")]
    pub(crate) batch: Vec<usize>,
    /// Tokens of each sample, specials included; several with commas (default: 32,128; images have their own number)
    #[arg(long, value_name = "N", value_delimiter = ',')]
    pub(crate) tokens: Option<Vec<usize>>,
    /// For decoders: measure how a text of --tokens tokens is read (phase prefill) and so many new ones are made, one by one
    /// (phase decode)
    #[arg(long, value_name = "N", conflicts_with_all = ["batch", "texts"])]
    pub(crate) generate: Option<usize>,
    /// With --generate: how keys and values of the tokens before are held (default: as attention multiplies them)
    #[arg(long, value_enum, value_name = "TYPE", requires = "generate")]
    pub(crate) kv_cache: Option<KvCache>,
    /// Measure passes over the texts of this file instead, in batches of like length; read as by encode
    #[arg(long, value_name = "FILE", conflicts_with = "tokens")]
    pub(crate) texts: Option<PathBuf>,
    /// Measured passes of each engine and combination (default: a second's worth, from 5 to 101)
    #[arg(long, value_name = "N")]
    pub(crate) runs: Option<usize>,
    /// Print the rows as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// Run directories, such as runs/NAME
    #[arg(required = true, value_name = "RUN")]
    pub(crate) runs: Vec<PathBuf>,
    /// The metric to compare (default: the first that most of the runs have measured against labels)
    #[arg(long, value_name = "TASK.METRIC", value_parser = compare::metric)]
    pub(crate) metric: Option<MetricName>,
    /// The directory for compare.html, compare.csv, compare.json and compare.svg; an earlier comparison is replaced
    #[arg(long, value_name = "DIR", default_value = "compare")]
    pub(crate) out: PathBuf,
    /// Print the comparison as JSON on standard output instead of a table
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    /// A model directory, owner/name of the hub, or "embedded"
    pub(crate) model: String,
    /// Branch, tag or commit of a model on the hub (default: main)
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    /// Print as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// A model directory, owner/name of the hub, or "embedded"
    pub(crate) model: String,
    /// Write here instead of to standard output
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// The scheme
    #[arg(
        long,
        default_value = Preset::default().as_str(),
        value_parser = PossibleValuesParser::new(Preset::ALL.map(Preset::as_str))
    )]
    pub(crate) scheme: String,
    /// Write the JSON Schema beside the config, and a line that names it to editors
    #[arg(long, requires = "out")]
    pub(crate) schema: bool,
    /// Replace files that are there
    #[arg(long, requires = "out")]
    pub(crate) force: bool,
}

#[cfg(feature = "hub")]
#[derive(Debug, Args)]
pub(crate) struct PushArgs {
    /// The run directory, or the model/ in it
    pub(crate) dir: PathBuf,
    /// The repository, as owner/name
    pub(crate) target: String,
    /// Let everyone see a repository that is made
    #[arg(long)]
    pub(crate) public: bool,
    /// The branch, made if it is not there (default: main)
    #[arg(long, value_name = "NAME")]
    pub(crate) revision: Option<String>,
    /// The message of the commit
    #[arg(long, value_name = "TEXT")]
    pub(crate) message: Option<String>,
    /// Check the directory, list what would be sent, and send nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Print the plan or the result as JSON on standard output
    #[arg(long)]
    pub(crate) json: bool,
}
