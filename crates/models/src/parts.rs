//! A model part by part: what stands before its blocks, each block, what comes behind them. Only one part need be in memory when
//! all samples go through one before any goes through the next.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::OnceLock;

use candle_core::{Device, Tensor};

use crate::ModelError;
use crate::batch::PackedBatch;
use crate::model::{Model, Outputs, Pass, SiteSink};
use crate::read::check_copies;
use crate::source::ModelDirectory;
use crate::spec::{BlockSpec, InputSpec, LinearSpec, ModelSpec, NormSpec, SiteId, Tower};
use crate::tables::Tables;

/// What of a model is loaded and run together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// All of it.
    Whole,
    /// What makes the residual stream of tokens: tables, norm, projection.
    Input,
    /// The transformer block of that index.
    Block(usize),
    /// What is behind the last block: final norm and head.
    Output,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("the whole"),
            Self::Input => f.write_str("the input"),
            Self::Block(index) => write!(f, "block {}", index + 1),
            Self::Output => f.write_str("the output"),
        }
    }
}

impl Part {
    /// The parts of a model in the order of a forward; `None` where it has to stay whole: with two towers, or layers that
    /// several blocks share.
    pub fn of(spec: &ModelSpec) -> Option<Vec<Self>> {
        let [tower] = spec.towers.as_slice() else { return None };
        let mut sites = BTreeSet::new();
        let mut shared = false;
        for site in tower.blocks.iter().flat_map(|block| block.sites().collect::<BTreeSet<_>>()) {
            shared |= !sites.insert(site);
        }
        let blocks = (0..tower.blocks.len()).map(Self::Block);
        (!shared).then(|| [Self::Input].into_iter().chain(blocks).chain([Self::Output]).collect())
    }

    /// Whether it begins with samples.
    pub fn has_input(self) -> bool {
        matches!(self, Self::Whole | Self::Input)
    }

    /// Whether it ends with outputs.
    pub fn has_output(self) -> bool {
        matches!(self, Self::Whole | Self::Output)
    }

    /// Its blocks.
    pub fn blocks(self, tower: &Tower) -> Range<usize> {
        match self {
            Self::Whole => 0..tower.blocks.len(),
            Self::Block(index) => index..index + 1,
            Self::Input | Self::Output => 0..0,
        }
    }

    /// The sites that it runs.
    pub fn sites(self, spec: &ModelSpec) -> BTreeSet<SiteId> {
        let mut sites = BTreeSet::new();
        for tower in &spec.towers {
            if self.has_input() {
                sites.extend(match &tower.input {
                    InputSpec::Text(input) => input.projection,
                    InputSpec::Image(input) => Some(input.patches),
                });
            }
            sites.extend(tower.blocks[self.blocks(tower)].iter().flat_map(BlockSpec::sites));
            if self.has_output() {
                sites.extend(
                    tower.head.branches.iter().flat_map(|branch| &branch.steps).map(|step| step.site),
                );
            }
        }
        sites
    }
}

impl ModelSpec {
    /// The part of a model, of those that it is run in, to which each tensor belongs that a block or the output reads. Every
    /// other tensor of the checkpoint belongs to the first part.
    pub fn tensors_by_part<'a>(&'a self, parts: &[Part]) -> BTreeMap<&'a str, Part> {
        let mut places = BTreeMap::new();
        let first = parts.first().copied().unwrap_or(Part::Whole);
        for &part in parts.iter().rev().filter(|part| **part != first) {
            let sites = part.sites(self);
            let linears =
                self.linears.iter().filter(|linear| linear.site.is_some_and(|site| sites.contains(&site)));
            for linear in linears {
                places.insert(linear.weight.as_str(), part);
                places.extend(linear.bias.as_deref().map(|bias| (bias, part)));
            }
            for tower in &self.towers {
                let norms = tower.blocks[part.blocks(tower)].iter().flat_map(BlockSpec::norms);
                places.extend(norms.flat_map(NormSpec::tensors).map(|tensor| (tensor, part)));
            }
        }
        // A tied weight is a table, which the input reads before.
        for table in self.tables() {
            places.remove(table.tensor.as_str());
        }
        places
    }
}

impl BlockSpec {
    /// The sites of its Linears. Two may be one.
    pub fn sites(&self) -> impl Iterator<Item = SiteId> {
        let router = self.mlp.experts().map(|mixture| mixture.router);
        let halves = self.mlp.mlps().iter().flat_map(|mlp| [mlp.input, mlp.inner]);
        [self.attention.input, self.attention.context].into_iter().chain(router).chain(halves)
    }
}

/// How far the samples of a batch have come.
#[derive(Debug, Clone, PartialEq)]
pub enum State {
    /// Nowhere.
    Begin,
    /// Between two parts.
    Hidden(Hidden),
    /// Through the model.
    Done(Outputs),
}

/// The residual stream of a batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Hidden {
    /// `[rows, hidden]`, row-major.
    pub values: Vec<f32>,
    /// First row of each sample, and the number of rows at the end.
    pub offsets: Vec<usize>,
}

impl Hidden {
    /// Whether it can be of that batch.
    pub(crate) fn fits(&self, batch: &PackedBatch, tower: &Tower) -> bool {
        let ordered = self.offsets.is_sorted() && self.offsets.first() == Some(&0);
        let rows = self.offsets.last().copied().unwrap_or(0);
        ordered && self.offsets.len() == batch.len() + 1 && self.values.len() == rows * tower.hidden
    }

    pub(crate) fn into_tensor(self, hidden: usize) -> Result<Tensor, ModelError> {
        let rows = self.values.len() / hidden;
        Ok(Tensor::from_vec(self.values, (rows, hidden), &Device::Cpu)?)
    }
}

impl Model {
    /// Takes a batch through what is loaded of the model, from the state that the part before has left.
    pub fn advance(&self, batch: &PackedBatch, state: State) -> Result<State, ModelError> {
        self.step(batch, state, Pass::new(self, &mut None), true)
    }

    /// As [`Model::advance`], showing every site's activation to `sink`. The last Linears of a head do not run, since nothing
    /// is behind them to observe: outputs are empty.
    pub fn observe(
        &self,
        batch: &PackedBatch,
        state: State,
        sink: &mut dyn SiteSink,
    ) -> Result<State, ModelError> {
        let mut sink = Some(sink);
        let mut pass = Pass::new(self, &mut sink);
        pass.observes_only = true;
        self.step(batch, state, pass, false)
    }
}

impl Model {
    /// Shows every site's activation of a batch to `sink`, as [`Model::observe`] does, where the state behind is of no use: what
    /// nothing reads is not computed.
    pub fn show(&self, batch: &PackedBatch, state: State, sink: &mut dyn SiteSink) -> Result<(), ModelError> {
        let mut sink = Some(sink);
        let mut pass = Pass::new(self, &mut sink);
        pass.observes_only = true;
        pass.drops_states = matches!(self.part(), Part::Block(_));
        self.step(batch, state, pass, false).map(|_| ())
    }
}

/// A part that was loaded for its use alone, or one of a model that stays in memory.
pub enum PartModel<'a> {
    /// It is dropped with this.
    Loaded(Box<Model>),
    /// It stays.
    Kept(&'a Model),
}

impl Deref for PartModel<'_> {
    type Target = Model;

    fn deref(&self) -> &Model {
        match self {
            Self::Loaded(model) => model,
            Self::Kept(model) => model,
        }
    }
}

/// A model that is run part by part.
pub trait ModelParts: Sync {
    /// The description of the model.
    fn spec(&self) -> &ModelSpec;

    /// The parts in the order of a forward.
    fn parts(&self) -> &[Part];

    /// One of them.
    fn load(&self, part: Part) -> Result<PartModel<'_>, ModelError>;
}

impl ModelParts for Model {
    fn spec(&self) -> &ModelSpec {
        self.spec()
    }

    fn parts(&self) -> &[Part] {
        &[Part::Whole]
    }

    fn load(&self, part: Part) -> Result<PartModel<'_>, ModelError> {
        if part == Part::Whole {
            return Ok(PartModel::Kept(self));
        }
        Err(ModelError::Sample {
            reason: format!("{part} of a model that is loaded as a whole was asked for"),
        })
    }
}

/// The float model of a directory, whole in memory or part by part.
pub struct FloatParts<'a> {
    directory: &'a ModelDirectory,
    parts: Vec<Part>,
    whole: OnceLock<Model>,
}

impl<'a> FloatParts<'a> {
    /// Kept whole, once it is loaded, where its weights take at most `whole_bytes` in f32 or it has no parts. Reads nothing
    /// but tensors that must be equal.
    pub fn new(directory: &'a ModelDirectory, whole_bytes: u64) -> Result<Self, ModelError> {
        let spec = directory.spec();
        check_copies(spec, directory.checkpoint())?;
        let parts = Part::of(spec).filter(|_| spec.float_bytes() > whole_bytes);
        Ok(Self { directory, parts: parts.unwrap_or_else(|| vec![Part::Whole]), whole: OnceLock::new() })
    }

    /// Whether it is loaded part by part.
    pub fn is_split(&self) -> bool {
        self.parts != [Part::Whole]
    }
}

impl ModelParts for FloatParts<'_> {
    fn spec(&self) -> &ModelSpec {
        self.directory.spec()
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn load(&self, part: Part) -> Result<PartModel<'_>, ModelError> {
        let read = || {
            let (spec, checkpoint) = (self.directory.spec(), self.directory.checkpoint());
            Model::load_part(spec, checkpoint, part, &mut |_| Ok(None), Tables::Read)
        };
        if part != Part::Whole {
            return Ok(PartModel::Loaded(Box::new(read()?)));
        }
        if self.whole.get().is_none() {
            // Of two threads that both load it one model stays.
            let _ = self.whole.set(read()?);
        }
        self.whole.get().map(PartModel::Kept).ok_or_else(|| ModelError::Sample {
            reason: "the float model was lost while it was loaded".to_owned(),
        })
    }
}

impl ModelSpec {
    /// Bytes of its Linears and tables in f32.
    pub fn float_bytes(&self) -> u64 {
        let linears: usize = self.linears.iter().map(LinearSpec::weights).sum();
        let tables: usize = self.tables().map(|table| table.rows * table.width).sum();
        4 * (linears as u64 + tables as u64)
    }
}
