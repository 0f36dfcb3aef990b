//! Data files of a config as samples, one at a time, and those of them that calibration draws.

use std::cell::OnceCell;
use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use zeropoint_calibrator::dataset::{self, DatasetError, Fields, Format, Problem, Sample};
use zeropoint_calibrator::{Inputs, SequenceDraw, Sequences, choose_samples};
use zeropoint_models::{ChatTemplate, HeadOutput, ModelDirectory, ModelError, Tokenizer};

use crate::PipelineError;
use crate::config::{self, Config, DataFormat};
use crate::modality::{check_towers, fit_samples, place};
use crate::sources::Sources;
use crate::{blame, convert};

/// Calibration text for configs that name none: the repository's own.
const BUILT_IN_TEXT: &str = include_str!("../../../calibration-data/general-en.jsonl");
const BUILT_IN_NAME: &str = "built-in calibration text";

/// Tokens of a sample of a decoder language model where nothing is said: what GPTQ and its successors calibrate with.
const DEFAULT_SEQUENCE: usize = 2048;

/// What takes samples one at a time.
type Each<'a> = dyn FnMut(Sample) -> Result<(), PipelineError> + 'a;

/// What the calibration data of a config come to.
pub(crate) struct CalibrationSamples {
    /// The samples to observe, in the order of the data.
    pub(crate) drawn: Vec<Sample>,
    /// How many there were to draw from.
    pub(crate) available: usize,
    /// For tasks without data of their own: the first samples of the data, or of a decoder the drawn ones.
    pub(crate) first: Vec<Sample>,
    /// The names of the data.
    pub(crate) origin: String,
}

/// How texts become samples: as the config says, otherwise as the model needs it.
pub(crate) fn sequences(config: &Config, directory: &ModelDirectory) -> config::Sequences {
    let default = match directory.spec().head().output {
        HeadOutput::CausalLm => config::Sequences::Chunked,
        _ => config::Sequences::Truncated,
    };
    config.calibration.sequences.unwrap_or(default)
}

/// The longest sample in tokens: as the config says, otherwise as the model needs it; never more than it takes.
pub(crate) fn longest(config: &Config, directory: &ModelDirectory) -> usize {
    let most = directory.max_tokens();
    let default = match directory.spec().head().output {
        HeadOutput::CausalLm => DEFAULT_SEQUENCE,
        _ => most,
    };
    config.calibration.max_length.unwrap_or(default).min(most)
}

/// Reads the calibration data, all of it, and keeps what is needed: the samples that are drawn, and the first `first` ones.
pub(crate) fn calibration_samples(
    config: &Config,
    directory: &ModelDirectory,
    inputs: &Inputs,
    first: usize,
    sources: &Sources<'_>,
) -> Result<CalibrationSamples, PipelineError> {
    let mode = match sequences(config, directory) {
        config::Sequences::Truncated => return whole_samples(config, directory, first, sources),
        mode if directory.spec().head().output != HeadOutput::CausalLm => {
            let error = PipelineError::Sequences {
                sequences: mode.as_str(),
                architecture: directory.spec().architecture.clone(),
            };
            return Err(error.named_by(config, &["calibration.sequences"], "not for this model"));
        }
        config::Sequences::Chunked => Sequences::Chunked,
        config::Sequences::Packed => {
            Sequences::Packed { separator: directory.stop_tokens()?.first().copied() }
        }
    };
    let settings = &config.calibration;
    let mut draw = SequenceDraw::new(inputs.tokenizer()?, mode, settings.samples, settings.seed)?;
    let data = CalibrationData::new(config, directory, sources);
    data.each_text(&mut draw)?;
    let drawn = draw.finish()?;
    let mut of_tasks = drawn.samples.clone();
    of_tasks.truncate(first);
    let (drawn, available) = (drawn.samples, drawn.available);
    Ok(CalibrationSamples { drawn, available, first: of_tasks, origin: data.origin() })
}

/// Every text is a sample. Which ones are drawn depends on how many there are, so they are read twice, unless the first
/// ones are all.
fn whole_samples(
    config: &Config,
    directory: &ModelDirectory,
    first: usize,
    sources: &Sources<'_>,
) -> Result<CalibrationSamples, PipelineError> {
    let settings = &config.calibration;
    let data = CalibrationData::new(config, directory, sources);
    let origin = data.origin();
    let held = first.max(settings.samples);
    let (mut kept, mut towers, mut available) = (Vec::new(), Towers::default(), 0);
    data.each(&mut |sample| {
        available += 1;
        towers.see(&sample);
        if kept.len() < held {
            kept.push(sample);
        }
        Ok(())
    })?;
    if available > 0 {
        check_towers(&towers.seen, directory.spec(), &origin)
            .map_err(|error| error.named_by(config, &["calibration.data"], "not all that the model takes"))?;
    }
    let chosen = choose_samples(available, settings.samples, settings.seed);
    let drawn: Vec<Sample> = if available <= kept.len() {
        chosen.into_iter().map(|i| kept[i].clone()).collect()
    } else {
        let (mut number, mut chosen) = (0, chosen.into_iter().peekable());
        let mut drawn = Vec::with_capacity(settings.samples);
        data.each(&mut |sample| {
            if chosen.next_if_eq(&number).is_some() {
                drawn.push(sample);
            }
            number += 1;
            Ok(())
        })?;
        if number != available {
            return Err(PipelineError::DataChanged { origin });
        }
        drawn
    };
    kept.truncate(first);
    Ok(CalibrationSamples { drawn, available, first: kept, origin })
}

/// One sample of each kind that was seen.
#[derive(Default)]
struct Towers {
    seen: Vec<Sample>,
}

impl Towers {
    fn see(&mut self, sample: &Sample) {
        let is_new = |seen: &Sample| seen.image.is_some() != sample.image.is_some();
        if self.seen.iter().all(is_new) {
            self.seen.push(Sample { image: sample.image.clone(), ..Sample::default() });
        }
    }
}

/// The data of `[calibration]`, or the built-in text.
struct CalibrationData<'a> {
    config: &'a Config,
    directory: &'a ModelDirectory,
    sources: &'a Sources<'a>,
    conversations: Conversations<'a>,
}

impl<'a> CalibrationData<'a> {
    fn new(config: &'a Config, directory: &'a ModelDirectory, sources: &'a Sources<'a>) -> Self {
        Self { config, directory, sources, conversations: Conversations::of(directory) }
    }

    fn origin(&self) -> String {
        let data = &self.config.calibration.data;
        let names: Vec<&str> = data.iter().map(|source| source.path.as_str()).collect();
        if names.is_empty() { BUILT_IN_NAME.to_owned() } else { names.join(", ") }
    }

    /// Hands over every sample. A pair is one sample to a classifier and two texts to an encoder.
    fn each(&self, each: &mut Each<'_>) -> Result<(), PipelineError> {
        let pairs_together = !self.directory.spec().head().is_embedding();
        let mut each = |sample: Sample| {
            if pairs_together { each(sample) } else { split_pair(sample).try_for_each(&mut *each) }
        };
        if self.config.calibration.data.is_empty() {
            return self.built_in(&mut each);
        }
        for (index, source) in self.config.calibration.data.iter().enumerate() {
            self.each_of(source, &mut each).map_err(|error| self.blame(error, index))?;
        }
        Ok(())
    }

    /// Draws from every text, both texts of a pair, and of files that are one text piece by piece.
    fn each_text(&self, draw: &mut SequenceDraw<'_>) -> Result<(), PipelineError> {
        fn take(draw: &mut SequenceDraw<'_>, sample: Sample) -> Result<(), PipelineError> {
            Ok(split_pair(sample).try_for_each(|text| draw.sample(text))?)
        }
        if self.config.calibration.data.is_empty() {
            return self.built_in(&mut |sample| take(draw, sample));
        }
        for (index, source) in self.config.calibration.data.iter().enumerate() {
            let read = if source.format == DataFormat::Document {
                self.pieces(source, draw)
            } else {
                self.each_of(source, &mut |sample| take(draw, sample))
            };
            read.map_err(|error| self.blame(error, index))?;
        }
        Ok(())
    }

    fn blame(&self, error: PipelineError, index: usize) -> PipelineError {
        blame::data(error, self.config, &format!("calibration.data.{index}"))
    }

    fn built_in(&self, each: &mut Each<'_>) -> Result<(), PipelineError> {
        // A text, for models that take nothing else.
        check_towers(&[Sample::default()], self.directory.spec(), BUILT_IN_NAME)
            .map_err(|error| error.named_by(self.config, &["model.source"], "takes images"))?;
        let prompts = prompts(None, self.directory)?;
        let name = BUILT_IN_NAME.into();
        dataset::parse_each(
            BUILT_IN_TEXT.as_bytes(),
            &name,
            Format::Jsonl,
            &Fields::default(),
            &mut |sample| each(prompted(sample, &prompts)),
        )
    }

    fn each_of(&self, source: &config::DataSource, each: &mut Each<'_>) -> Result<(), PipelineError> {
        read_source(source, self.directory, &self.conversations, self.sources, &mut |sample| {
            fit_samples(vec![sample], self.directory.spec())?.into_iter().try_for_each(&mut *each)
        })
    }

    fn pieces(&self, source: &config::DataSource, draw: &mut SequenceDraw<'_>) -> Result<(), PipelineError> {
        let file = self.sources.data(&source.path)?;
        draw.begin(file.path.display().to_string().into(), 1);
        dataset::read_pieces(&file.path, &mut |piece| Ok::<_, PipelineError>(draw.text(piece)?))?;
        draw.end();
        Ok(())
    }
}

/// Both texts of a pair, or the sample as it is.
fn split_pair(mut sample: Sample) -> impl Iterator<Item = Sample> {
    let prompt_a = sample.prompt_b.take();
    let second = sample.text_b.take().map(|text_a| Sample { text_a, prompt_a, ..sample.clone() });
    std::iter::once(sample).chain(second)
}

/// Both texts of each pair, and the samples that are none.
pub(crate) fn split_pairs(samples: Vec<Sample>) -> Vec<Sample> {
    samples.into_iter().flat_map(split_pair).collect()
}

/// What makes token ids of conversations: the model's chat template and tokenizer, loaded when the first one comes.
pub(crate) struct Conversations<'a> {
    directory: &'a ModelDirectory,
    loaded: OnceCell<(ChatTemplate, Tokenizer)>,
}

impl<'a> Conversations<'a> {
    pub(crate) fn of(directory: &'a ModelDirectory) -> Self {
        Self { directory, loaded: OnceCell::new() }
    }

    fn load(&self) -> Result<&(ChatTemplate, Tokenizer), ModelError> {
        if let Some(loaded) = self.loaded.get() {
            return Ok(loaded);
        }
        let path = || self.directory.path().to_owned();
        let template =
            self.directory.chat_template()?.ok_or_else(|| ModelError::NoChatTemplate { path: path() })?;
        let tokenizer = self.directory.tokenizer(None)?;
        Ok(self.loaded.get_or_init(|| (template, tokenizer)))
    }

    fn token_ids(&self, messages: &[Value]) -> Result<Vec<u32>, ModelError> {
        let (template, tokenizer) = self.load()?;
        tokenizer.token_ids(&template.render(messages, false)?)
    }

    /// The sample with the tokens of its conversation in the place of that, if it is one.
    fn resolve(&self, mut sample: Sample) -> Result<Sample, PipelineError> {
        if let Some(messages) = sample.messages.take() {
            let tokens = self.token_ids(&messages);
            let failed = |error| PipelineError::Conversation { place: place(&sample), error };
            sample.tokens = Some(tokens.map_err(failed)?);
        }
        Ok(sample)
    }
}

/// Reads a data file, conversations as token ids. What the config gives no place to is not there, whatever the file's other
/// columns hold.
pub(crate) fn read_source(
    source: &config::DataSource,
    directory: &ModelDirectory,
    conversations: &Conversations<'_>,
    sources: &Sources<'_>,
    each: &mut Each<'_>,
) -> Result<(), PipelineError> {
    let is_folder = source.format == DataFormat::Images;
    if let Some(Err(error)) = is_folder.then(|| Path::new(&source.path).read_dir()) {
        let file = source.path.as_str().into();
        return Err(DatasetError { file, line: 0, problem: Problem::Io(error) }.into());
    }
    let file = sources.data(&source.path)?;
    let prompts = prompts(Some(source), directory)?;
    dataset::read_each(&file.path, &convert::read_options(source), &mut |mut sample| {
        if !is_folder {
            if source.image.is_none() {
                sample.image = None;
            }
            if source.text_b.is_none() {
                sample.text_b = None;
            }
            if source.score.is_none() {
                sample.score = None;
            }
            if source.label.is_none() {
                (sample.label, sample.labels) = (None, None);
            }
        }
        each(prompted(conversations.resolve(sample)?, &prompts))
    })
}

/// The texts of prompts before the first and before the second text.
type Prompts = [Option<Arc<str>>; 2];

/// The texts of the prompts that a data source asks for.
pub(crate) fn prompts(
    source: Option<&config::DataSource>,
    directory: &ModelDirectory,
) -> Result<Prompts, PipelineError> {
    let [first, second] = convert::prompts(source);
    Ok([directory.prompt(&first)?.map(Into::into), directory.prompt(&second)?.map(Into::into)])
}

fn prompted(sample: Sample, [first, second]: &Prompts) -> Sample {
    Sample { prompt_a: first.clone(), prompt_b: second.clone(), ..sample }
}
