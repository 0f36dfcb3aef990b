//! One pass over the description: residual stream, blocks, sites that a sink may watch.

use std::collections::BTreeMap;
use std::ops::Range;

use candle_core::{Device, Tensor};

use super::{BlockNorms, Model, Outputs, SiteSink, TowerParts, loaded, misplaced};
use crate::ModelError;
use crate::attention::{Attention, AttentionContext, part};
use crate::batch::{PackedBatch, TokenSequence};
use crate::cache::{CachedAttention, KvCache};
use crate::ops::{ActivateInPlace, AddInPlace, MultiplyInPlace, Norm};
use crate::parts::{Hidden, State};
use crate::positions::PositionTables;
use crate::rotation::rotated;
use crate::spec::{BlockSpec, FeedForward, LinearId, MlpSpec, NormPlacement, SiteId, Tower};

/// One forward pass.
pub(crate) struct Pass<'a, 's> {
    pub(crate) model: &'a Model,
    pub(crate) sink: &'a mut Option<&'s mut dyn SiteSink>,
    /// Whether what the last Linears give is of no use.
    pub(crate) observes_only: bool,
    /// Whether what blocks give is of no use: their last Linears do not run then, and the hidden states are none.
    pub(crate) drops_states: bool,
}

impl<'a, 's> Pass<'a, 's> {
    pub(crate) fn new(model: &'a Model, sink: &'a mut Option<&'s mut dyn SiteSink>) -> Self {
        Self { model, sink, observes_only: false, drops_states: false }
    }

    /// From the state before what is loaded to the hidden states behind its blocks, the final norm included where the head is
    /// loaded.
    pub(super) fn encode(
        &mut self,
        tower: &Tower,
        parts: &TowerParts,
        batch: &PackedBatch,
        state: State,
        fused: bool,
    ) -> Result<Hidden, ModelError> {
        let part = self.model.part;
        let mut hidden = match (state, part.has_input()) {
            (State::Begin, true) => {
                let embedding = loaded(parts.embedding.as_ref(), "input")?;
                let (values, offsets) = embedding.forward(&tower.input, self, batch, 0)?;
                Hidden { values, offsets }
            }
            (State::Hidden(hidden), false) if hidden.fits(batch, tower) => hidden,
            _ => return Err(misplaced(part)),
        };
        let blocks = part.blocks(tower);
        if let Some(runner) = parts.runner.as_ref().filter(|_| fused && !blocks.is_empty()) {
            // It has the final norm of a whole model.
            runner.run(&mut hidden.values, &hidden.offsets)?;
            return Ok(hidden);
        }
        let Hidden { values, offsets } = hidden;
        let mut stream = Tensor::from_vec(values, (offsets[offsets.len() - 1], tower.hidden), &Device::Cpu)?;
        if !blocks.is_empty() {
            let longest = offsets.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(0);
            let tables = PositionTables::new(tower, parts.bias.as_ref(), longest);
            let mut context = AttentionContext::new(self.model.isa, self.model.attention, &offsets, &tables);
            stream = self.blocks(tower, parts, blocks, &mut context, stream)?;
        }
        if let Some(norm) = parts.final_norm.as_ref().filter(|_| part.has_output()) {
            stream = norm.forward(&stream, None)?;
        }
        Ok(Hidden { values: stream.flatten_all()?.to_vec1()?, offsets })
    }

    /// The output of the last `rows` of some tokens behind those of a cache.
    pub(super) fn extend(
        &mut self,
        tower: &Tower,
        parts: &TowerParts,
        ids: &[u32],
        cache: &mut KvCache,
        rows: usize,
        fused: bool,
    ) -> Result<Outputs, ModelError> {
        let tokens = ids.len();
        let sequence = TokenSequence { ids: ids.to_vec(), type_ids: vec![0; tokens], prompt: 0 };
        let batch = PackedBatch::new(&[sequence])?;
        let embedding = loaded(parts.embedding.as_ref(), "input")?;
        let (mut stream, _) = embedding.forward(&tower.input, self, &batch, cache.len())?;
        let shape = (tokens, tower.hidden);
        let hidden = if let Some(runner) = parts.runner.as_ref().filter(|_| fused) {
            runner.extend(&mut stream, cache)?;
            Tensor::from_vec(stream, shape, &Device::Cpu)?
        } else {
            let hidden = Tensor::from_vec(stream, shape, &Device::Cpu)?;
            let mut attention = CachedAttention::new(self.model.isa, tower, cache, tokens);
            let all = 0..tower.blocks.len();
            let hidden = self.blocks(tower, parts, all, &mut attention, hidden)?;
            normalized(parts.final_norm.as_ref(), hidden)?
        };
        let hidden = hidden.narrow(0, tokens - rows, rows)?.contiguous()?;
        let head = loaded(parts.head.as_ref(), "output")?;
        head.run(&tower.head, self, &hidden, &[0, rows], &batch)
    }

    /// The residual stream behind some blocks.
    fn blocks(
        &mut self,
        tower: &Tower,
        parts: &TowerParts,
        blocks: Range<usize>,
        attention: &mut dyn Attention,
        mut hidden: Tensor,
    ) -> Result<Tensor, ModelError> {
        for index in blocks {
            let block = &tower.blocks[index];
            let norms = loaded(parts.norms.get(&index), &block.path)?;
            hidden = self.block((index, block), norms, attention, &hidden)?;
        }
        Ok(hidden)
    }

    fn block(
        &mut self,
        (index, block): (usize, &BlockSpec),
        norms: &BlockNorms,
        attention: &mut dyn Attention,
        hidden: &Tensor,
    ) -> Result<Tensor, ModelError> {
        match block.placement {
            NormPlacement::Post => {
                let mixed = self.attention((index, block), norms, attention, hidden)?;
                let hidden = match &norms.attention {
                    Some(norm) => norm.forward(&mixed, Some(hidden))?,
                    None => self.add(mixed, hidden)?,
                };
                let out = self.feed_forward(&block.mlp, &hidden)?;
                Ok(norms.mlp.forward(&out, Some(&hidden))?)
            }
            NormPlacement::Pre | NormPlacement::Parallel => {
                let normed = normalized(norms.attention.as_ref(), hidden.clone())?;
                let mixed = self.attention((index, block), norms, attention, &normed)?;
                let mixed = normalized(norms.attention_output.as_ref(), mixed)?;
                if block.placement == NormPlacement::Parallel {
                    let out = self.feed_forward(&block.mlp, &norms.mlp.forward(hidden, None)?)?;
                    let out = normalized(norms.mlp_output.as_ref(), out)?;
                    let hidden = self.add(out, hidden)?;
                    return self.add(mixed, &hidden);
                }
                let hidden = self.add(mixed, hidden)?;
                let out = self.feed_forward(&block.mlp, &norms.mlp.forward(&hidden, None)?)?;
                self.add(normalized(norms.mlp_output.as_ref(), out)?, &hidden)
            }
        }
    }

    fn attention(
        &mut self,
        (index, block): (usize, &BlockSpec),
        norms: &BlockNorms,
        attention: &mut dyn Attention,
        input: &Tensor,
    ) -> Result<Tensor, ModelError> {
        let spec = &block.attention;
        let outputs = self.site(spec.input, input)?;
        let (query, key, value) =
            (part(&outputs, &spec.query)?, part(&outputs, &spec.key)?, part(&outputs, &spec.value)?);
        // A norm is as long as a head: it goes over each.
        let query = normalized(norms.query.as_ref(), query)?;
        let key = normalized(norms.key.as_ref(), key)?;
        let mixed = attention.attend(index, spec, [&query, &key, &value])?;
        self.single(spec.context, &mixed)
    }

    fn feed_forward(&mut self, spec: &FeedForward, input: &Tensor) -> Result<Tensor, ModelError> {
        match spec {
            FeedForward::Dense(mlp) => self.mlp(mlp, input),
            FeedForward::Experts(mixture) => self.experts(mixture, input),
        }
    }

    pub(crate) fn mlp(&mut self, spec: &MlpSpec, input: &Tensor) -> Result<Tensor, ModelError> {
        let outputs = self.site(spec.input, input)?;
        let inner = self.inner(spec, &outputs)?;
        if self.drops_states {
            let rotated = self.rotated(spec.inner, &inner)?;
            self.observe(spec.inner, rotated.as_ref().unwrap_or(&inner))?;
            return Ok(input.zeros_like()?);
        }
        self.single(spec.inner, &inner)
    }

    /// What `down` reads, of the outputs of the Linears before it.
    pub(crate) fn inner(
        &self,
        spec: &MlpSpec,
        outputs: &BTreeMap<LinearId, Tensor>,
    ) -> Result<Tensor, ModelError> {
        let isa = self.model.isa;
        let up = part(outputs, &spec.up)?;
        let Some(gate) = &spec.gate else { return Ok(up.contiguous()?) };
        let gated = part(outputs, &gate.projection)?;
        // One row of a fused Linear is contiguous as it is, and would share the memory of `up`.
        let fused = gate.projection.linear == spec.up.linear;
        let gated = if fused { gated.force_contiguous()? } else { gated };
        gated.inplace_op1(&ActivateInPlace { isa, activation: gate.activation })?;
        gated.inplace_op2(&up.contiguous()?, &MultiplyInPlace)?;
        Ok(gated)
    }

    /// `x + y`, in the memory of `x`.
    fn add(&self, x: Tensor, y: &Tensor) -> Result<Tensor, ModelError> {
        x.inplace_op2(y, &AddInPlace(self.model.isa))?;
        Ok(x)
    }

    /// The outputs of a site's Linears by their ids.
    pub(crate) fn site(
        &mut self,
        site: SiteId,
        input: &Tensor,
    ) -> Result<BTreeMap<LinearId, Tensor>, ModelError> {
        let rotated = self.rotated(site, input)?;
        let input = rotated.as_ref().unwrap_or(input);
        self.observe(site, input)?;
        let outputs = self.model.site(site)?.forward(input)?;
        Ok(self.model.spec.sites[site].consumers.iter().copied().zip(outputs).collect())
    }

    /// The activation of a site that is rotated.
    fn rotated(&self, site: SiteId, input: &Tensor) -> Result<Option<Tensor>, ModelError> {
        let rotation = self.model.rotation(site);
        Ok(rotation.map(|rotation| rotated(self.model.isa, rotation, input)).transpose()?)
    }

    /// Shows the activation of a site, rotated where it is, to the sink.
    pub(crate) fn observe(&mut self, site: SiteId, input: &Tensor) -> Result<(), ModelError> {
        let spec = &self.model.spec.sites[site];
        if let Some(sink) = &mut self.sink {
            crate::rows_of(input, |values| sink.observe(site, values, spec.channels))?
                .map_err(|reason| ModelError::Site { site: spec.id.clone(), reason })?;
        }
        Ok(())
    }

    /// The output of a site that one Linear reads.
    pub(crate) fn single(&mut self, site: SiteId, input: &Tensor) -> Result<Tensor, ModelError> {
        let mut outputs = self.site(site, input)?;
        match outputs.pop_first() {
            Some((_, output)) if outputs.is_empty() => Ok(output),
            _ => Err(ModelError::Candle(candle_core::Error::Msg(
                "a site with one reader is expected".to_owned(),
            ))),
        }
    }
}

/// `x`, or its norm where there is one.
fn normalized(norm: Option<&Norm>, x: Tensor) -> Result<Tensor, ModelError> {
    match norm {
        Some(norm) => Ok(norm.forward(&x.contiguous()?, None)?),
        None => Ok(x),
    }
}
