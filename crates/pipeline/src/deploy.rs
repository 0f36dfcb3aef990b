//! Writing the deployable directory: every tensor of the source, one at a time, the planned Linears in INT8.

mod config;
mod fate;
mod linear;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use zeropoint_core::Fingerprint;
use zeropoint_formats::safetensors::element::{bf16_bytes, f32_bytes};
use zeropoint_formats::staged::{bytes_digest, copy_companions};
use zeropoint_formats::{CheckpointWriter, SafetensorsFile, TensorInfo};
use zeropoint_kernels::Isa;
use zeropoint_models::{HeadOutput, Part, SentenceStep};
use zeropoint_observer::StatisticsFile;
use zeropoint_quantizer::LayerScheme;

use crate::events::{Cancel, Event, Events};
use crate::run::MARKER;
use crate::sequence::PartInputs;
use crate::tables::Stored;
use crate::written::{RangesHasher, WrittenRanges};
use crate::{PipelineError, Prepared};

use config::write_config;
use fate::{Fate, Fates, specs_of};
use linear::{finite_into, quantize_linear};

pub(crate) use fate::{largest_copy, output_specs, planned_output};
pub(crate) use linear::{DeployedLinear, Write, check_finite, finite, input_quantizer};

/// The deployable directory inside a run directory.
pub const MODEL_DIR: &str = "model";
/// Bytes of a tensor whose memory is kept for the next one.
const MOST_KEPT: usize = 128 << 20;
/// What the source's own card is called beside ours.
const SOURCE_CARD: &str = "README.source.md";

/// Whether a path in a model directory is a run of ours, or the lock of one: no part of the model.
pub(crate) fn is_output(source: &Path, path: &Path) -> bool {
    source.join(path).join(MARKER).is_file() || path.to_string_lossy().ends_with(".partial.lock")
}

/// What a part of the model became.
#[derive(Default)]
pub(crate) struct DeployedPart {
    /// Its quantised Linears, by their index in the description.
    pub(crate) linears: BTreeMap<usize, DeployedLinear>,
    /// Where its tensors are, and what they hold.
    pub(crate) written: WrittenRanges,
    /// BLAKE3 of the source's tensors, where it is asked for.
    pub(crate) sources: BTreeMap<String, Fingerprint>,
}

/// A deployable directory in the making, part by part of the model.
pub(crate) struct Deployment<'a> {
    prepared: &'a Prepared,
    isa: Isa,
    fates: Fates<'a>,
    writer: CheckpointWriter,
    tensors: BTreeMap<Part, Vec<&'a TensorInfo>>,
    dir: PathBuf,
    /// The INT8 head that is made of a table, until the part comes that runs it.
    head: Option<(usize, DeployedLinear)>,
    /// Whether the source's tensors are hashed on their way.
    hashes: bool,
    done: usize,
    total: usize,
    /// Memory for the values of a tensor.
    values: Vec<f32>,
}

impl<'a> Deployment<'a> {
    /// Writes config.json and the source's other files into `dir`, which exists, and makes room for all tensors. What an earlier
    /// deployment has written there stays.
    pub(crate) fn begin(
        prepared: &'a Prepared,
        isa: Isa,
        dir: &Path,
        parts: &[Part],
        max_shard_bytes: u64,
    ) -> Result<Self, PipelineError> {
        let spec = prepared.graph().spec();
        let places = spec.tensors_by_part(parts);
        let first = parts.first().copied().unwrap_or(Part::Whole);
        let mut tensors: BTreeMap<Part, Vec<&TensorInfo>> = BTreeMap::new();
        for info in prepared.graph().checkpoint().tensors() {
            let part = places.get(info.name.as_str()).copied().unwrap_or(first);
            tensors.entry(part).or_default().push(info);
        }
        let writer = CheckpointWriter::in_place(dir, output_specs(prepared), max_shard_bytes)?;
        write_config(prepared, dir)?;
        let source = prepared.graph().path();
        // Runs of ours that lie inside the source, this one among them, are not a part of it.
        copy_companions(source, dir, |path| path == Path::new("README.md") || is_output(source, path))?;
        for folder in dense_folders(prepared) {
            // Not a weight file of the transformer, and so never left out.
            let file = Path::new(folder).join(DENSE_WEIGHTS);
            std::fs::copy(source.join(&file), dir.join(&file))
                .map_err(|error| PipelineError::Io { path: dir.join(&file), source: error })?;
        }
        let card = source.join("README.md");
        if card.is_file() {
            let to = dir.join(SOURCE_CARD);
            std::fs::copy(&card, &to).map_err(|source| PipelineError::Io { path: to, source })?;
        }
        let (fates, total) = (Fates::of(prepared), prepared.plan.quantized().count());
        Ok(Self {
            prepared,
            isa,
            fates,
            writer,
            tensors,
            dir: dir.to_owned(),
            head: None,
            hashes: false,
            done: 0,
            total,
            values: Vec::new(),
        })
    }

    /// Hashes the source's tensors on their way.
    pub(crate) fn hash_sources(&mut self) {
        self.hashes = true;
    }

    /// Takes a part for written, with so many quantised Linears. A head that is made of one of its tables is made anew, with
    /// what it has of its own: a later part runs it, and the journal knows files of the directory itself alone.
    pub(crate) fn is_written(&mut self, part: Part, linears: usize) -> Result<(), PipelineError> {
        for name in self.output_names(part) {
            self.writer.is_written(&name)?;
        }
        for info in self.tensors.get(&part).into_iter().flatten() {
            if let Fate::Table(fate) = self.fates.get(&info.name)
                && let Some(head) = fate.head_anew(self.prepared, self.isa, info, &self.dir)?
            {
                self.head = Some(head);
            }
        }
        self.done += linears;
        Ok(())
    }

    fn output_names(&self, part: Part) -> Vec<String> {
        let tensors = self.tensors.get(&part).map_or(&[][..], Vec::as_slice);
        let specs = tensors.iter().flat_map(|info| specs_of(self.prepared, self.fates.get(&info.name), info));
        specs.map(|spec| spec.name).collect()
    }

    /// Writes the tensors of a part. The next one is read while one is worked on.
    pub(crate) fn part(
        &mut self,
        part: Part,
        found: (&StatisticsFile, &PartInputs),
        events: &dyn Events,
        cancel: &Cancel,
    ) -> Result<DeployedPart, PipelineError> {
        let mut deployed = DeployedPart::default();
        let mut tensors = self.tensors.remove(&part).unwrap_or_default();
        // What a bias takes up is known when its weight is rounded.
        tensors.sort_by_key(|info| self.fates.get(&info.name).follows_weights(self.prepared));
        let (checkpoint, hashes) = (self.prepared.graph().checkpoint(), self.hashes);
        let mut hasher = RangesHasher::default();
        std::thread::scope(|scope| {
            let (send, receive) = std::sync::mpsc::sync_channel(0);
            let (give_back, spare) = std::sync::mpsc::channel::<Vec<u8>>();
            let to_read = tensors.clone();
            scope.spawn(move || {
                for info in to_read {
                    let mut bytes = spare.try_recv().unwrap_or_default();
                    let read = checkpoint.read_bytes_into(&info.name, &mut bytes);
                    let read = read.map(|()| (hashes.then(|| bytes_digest(&bytes)), bytes));
                    // Nobody waits for it after an error.
                    if send.send(read).is_err() {
                        return;
                    }
                }
            });
            for info in tensors {
                if cancel.is_requested() {
                    return Err(PipelineError::Cancelled);
                }
                let Ok(read) = receive.recv() else { return Err(PipelineError::Cancelled) };
                let (hash, bytes) = read?;
                deployed.sources.extend(hash.map(|hash| (info.name.clone(), hash)));
                self.tensor(info, &bytes, found, &mut deployed.linears, &mut hasher, events)?;
                if bytes.capacity() <= MOST_KEPT {
                    // After the last tensor nobody takes it.
                    let _ = give_back.send(bytes);
                }
            }
            Ok(())
        })?;
        if part.has_output()
            && let Some((id, head)) = self.head.take()
        {
            deployed.linears.insert(id, head);
            self.done += 1;
            events.event(Event::Quantized { done: self.done, total: self.total });
        }
        deployed.written = hasher.finish();
        Ok(deployed)
    }

    fn tensor(
        &mut self,
        info: &TensorInfo,
        bytes: &[u8],
        found: (&StatisticsFile, &PartInputs),
        deployed: &mut BTreeMap<usize, DeployedLinear>,
        hasher: &mut RangesHasher,
        events: &dyn Events,
    ) -> Result<(), PipelineError> {
        let (prepared, isa, total) = (self.prepared, self.isa, self.total);
        let spec = prepared.graph().spec();
        let (writer, done) = (&mut self.writer, &mut self.done);
        let mut write = |name: &str, bytes: &[u8]| {
            writer.write(name, bytes)?;
            if let Some((file, place)) = writer.place_of(name) {
                hasher.add(file, &place, bytes);
            }
            Ok::<(), PipelineError>(())
        };
        let mut quantize = |id: usize, scheme: &LayerScheme, values: &[f32], write: &mut Write<'_>| {
            let linear = &spec.linears[id];
            let weight = linear.weight_among(values);
            deployed.insert(id, quantize_linear(prepared, found, isa, linear, scheme, &weight, write)?);
            *done += 1;
            events.event(Event::Quantized { done: *done, total });
            Ok::<(), PipelineError>(())
        };
        match self.fates.get(&info.name) {
            Fate::Quantized(id, scheme) => {
                finite_into(prepared, isa, info, bytes, &mut self.values)?;
                quantize(*id, scheme, &self.values, &mut write)?;
                if size_of_val(self.values.as_slice()) > 2 * MOST_KEPT {
                    self.values = Vec::new();
                }
            }
            Fate::Split(parts) => {
                let values = finite(prepared, isa, info, bytes)?;
                for (id, scheme) in parts {
                    if let Some(scheme) = scheme {
                        quantize(*id, scheme, &values, &mut write)?;
                        continue;
                    }
                    let linear = &spec.linears[*id];
                    let columns = linear.inputs * info.dtype.size();
                    let rows = linear.rows.start * columns..linear.rows.end * columns;
                    write(&format!("{}.weight", linear.tensor), &bytes[rows])?;
                }
            }
            Fate::Bias(id) => {
                check_finite(prepared, info, bytes)?;
                match deployed.get(id).and_then(|done| done.bias.as_ref()) {
                    Some(bias) => write(&info.name, &f32_bytes(bias))?,
                    None => write(&info.name, &f32_bytes(&finite(prepared, isa, info, bytes)?))?,
                }
            }
            Fate::SplitBias(parts) => {
                check_finite(prepared, info, bytes)?;
                for id in parts {
                    let linear = &spec.linears[*id];
                    if prepared.plan.bias_correction {
                        let name = format!("{}.bias", linear.tensor);
                        if let Some(bias) = deployed.get(id).and_then(|done| done.bias.as_ref()) {
                            write(&name, &f32_bytes(bias))?;
                        } else {
                            let all = finite(prepared, isa, info, bytes)?;
                            write(&name, &f32_bytes(&all[linear.rows.clone()]))?;
                        }
                        continue;
                    }
                    let size = info.dtype.size();
                    let part = &bytes[linear.rows.start * size..linear.rows.end * size];
                    write(&format!("{}.bias", linear.tensor), part)?;
                }
            }
            Fate::Table(fate) => {
                let head = fate.write(prepared, isa, info, bytes, &self.dir, &mut write)?;
                self.head = head.or(self.head.take());
            }
            Fate::Copy(Stored::Bf16) => write(&info.name, &bf16_bytes(&finite(prepared, isa, info, bytes)?))?,
            Fate::Copy(Stored::Int8) => {}
            Fate::Kept | Fate::Copy(Stored::AsItIs) => {
                check_finite(prepared, info, bytes)?;
                write(&info.name, bytes)?;
            }
        }
        Ok(())
    }

    /// Syncs the weight files and writes their index.
    pub(crate) fn finish(self) -> Result<(), PipelineError> {
        Ok(self.writer.finish()?)
    }
}

/// The file of weights in the folder of a dense module.
pub(crate) const DENSE_WEIGHTS: &str = "model.safetensors";

/// The folders of dense modules, which keep weights of their own.
pub(crate) fn dense_folders(prepared: &Prepared) -> impl Iterator<Item = &str> {
    let after = match &prepared.graph().spec().head().output {
        HeadOutput::Embedding { after, .. } => after.as_slice(),
        _ => &[],
    };
    after.iter().filter_map(|step| match step {
        SentenceStep::Dense { folder, .. } => Some(folder.as_str()),
        SentenceStep::Normalize => None,
    })
}

/// The weight files of dense modules in `dir`, the source or the output, by their folders: they are copied as they are.
pub(crate) fn dense_files<'a>(
    prepared: &'a Prepared,
    dir: &Path,
) -> Result<BTreeMap<&'a str, SafetensorsFile>, PipelineError> {
    dense_folders(prepared)
        .map(|folder| Ok((folder, SafetensorsFile::open(dir.join(folder).join(DENSE_WEIGHTS))?)))
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::{self, Config};
    use crate::events::Cancel;
    use crate::statistics::{Origin, Pass, observe};
    use serde_json::{Value, json};
    use zeropoint_calibrator::Room;
    use zeropoint_formats::compressed_tensors::QuantizationConfig;
    use zeropoint_formats::{Checkpoint, PlannedCheckpoint};
    use zeropoint_models::Model;

    /// Everything in memory.
    pub(crate) fn room() -> Room<'static> {
        Room { memory: u64::MAX, dir: Path::new("") }
    }

    /// The deployed directory of a whole model.
    pub(crate) fn deploy(
        prepared: &Prepared,
        statistics: &StatisticsFile,
        isa: Isa,
        dir: &Path,
    ) -> BTreeMap<usize, DeployedLinear> {
        deploy_in_shards(prepared, statistics, isa, dir, 5_000_000_000)
    }

    fn deploy_in_shards(
        prepared: &Prepared,
        statistics: &StatisticsFile,
        isa: Isa,
        dir: &Path,
        max_shard_bytes: u64,
    ) -> BTreeMap<usize, DeployedLinear> {
        let mut deployment = Deployment::begin(prepared, isa, dir, &[Part::Whole], max_shard_bytes).unwrap();
        let deployed = deployment
            .part(Part::Whole, (statistics, &PartInputs::default()), &(), &Cancel::default())
            .unwrap();
        deployment.finish().unwrap();
        deployed.linears
    }

    #[test]
    fn a_head_is_the_same_under_every_name_that_loaders_give_it() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/neox-causal");
        let mut config = Config::new(fixture.to_string_lossy());
        config.calibration.samples = 4;
        let written = |config: Config| -> Value {
            let prepared = Prepared::new(config).unwrap();
            let dir = tempfile::tempdir().unwrap();
            write_config(&prepared, dir.path()).unwrap();
            let text = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
            serde_json::from_str::<Value>(&text).unwrap()["quantization_config"].take()
        };
        // transformers 5.23 moves the tensors of `embed_out` to a module of the other name, and would take it for INT8.
        let ignored = written(config.clone())["ignore"].take();
        assert_eq!(ignored, json!(["embed_out", "lm_head"]));
        config.quantization.lm_head = config::LmHead::Int8;
        let written = written(config);
        let read = QuantizationConfig::from_json(&written).unwrap();
        assert_eq!(read.scheme_of("embed_out"), Some(zeropoint_formats::deployed::INT8_HEAD), "{written}");
        assert_eq!(read.scheme_of("lm_head"), read.scheme_of("embed_out"), "{written}");
    }

    #[test]
    fn the_planned_files_are_the_written_ones_to_the_byte_in_any_number_of_shards() {
        let fixtures = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures");
        let portable = ["scheme = 'w8a8-dynamic'", "scheme = 'w8a8-static'\nembeddings = 'bf16'"];
        for name in ["bert-mean", "bert-cls-sharded", "bert-max-f16", "bert-classifier-bf16", "bert-mlm"] {
            for quantization in portable.into_iter().chain(["embeddings = 'int8'"]) {
                let mut config = Config::new(fixtures.join(name).to_string_lossy());
                config.quantization = toml::from_str(quantization).unwrap();
                config.calibration.samples = 4;
                if config.quantization.embeddings == config::Embeddings::Int8 {
                    config.output.formats = Some(vec![config::OutputFormat::Zeropoint]);
                }
                let prepared = Prepared::new(config).unwrap();
                let float = Model::load(&prepared.directory).unwrap();
                let weights = prepared.directory.checkpoint().content_fingerprint().unwrap();
                let (origin, cancel) = (Origin::of(&prepared, weights).unwrap(), Cancel::default());
                let pass = Pass::whole(prepared.last_pass(), room());
                let statistics =
                    observe(&prepared, origin, &float, pass, &mut |_| Ok(()), &(), &cancel).unwrap();
                for max_shard_bytes in [5_000_000_000, 20_000, 3_000, 0] {
                    let planned = PlannedCheckpoint::new(output_specs(&prepared), max_shard_bytes);
                    let dir = tempfile::tempdir().unwrap();
                    deploy_in_shards(&prepared, &statistics, float.isa(), dir.path(), max_shard_bytes);
                    let size = |name: &str| std::fs::metadata(dir.path().join(name)).map_or(0, |m| m.len());
                    let written: Vec<(String, u64)> =
                        planned.files.iter().map(|(name, _)| (name.clone(), size(name))).collect();
                    assert_eq!(written, planned.files, "{name} {quantization} {max_shard_bytes}");
                    assert_eq!(size("model.safetensors.index.json"), planned.index_bytes);
                    let checkpoint = Checkpoint::open(dir.path()).unwrap();
                    assert_eq!(checkpoint.files().len(), planned.files.len());
                    assert_eq!(checkpoint.weight_bytes(), planned.weight_bytes());
                }
            }
        }
    }
}
