//! Rotations that go into weights alone.

use std::collections::BTreeSet;

use zeropoint_kernels::ChannelRotation;
use zeropoint_models::{
    ActivationFn, BlockSpec, HeadOutput, LinearId, LinearRole, ModelSpec, NormKind, NormPlacement, NormSpec,
    SiteId, TextInput, Tower,
};

use super::{Edit, NormEdit, Planner, TransformError};

/// What reads the residual stream: through which norm.
struct Reader<'a> {
    norm: &'a NormSpec,
    linears: Vec<LinearId>,
    sites: Vec<SiteId>,
}

/// The residual stream of a tower.
struct Residual<'a> {
    input: &'a TextInput,
    tower: &'a Tower,
    readers: Vec<Reader<'a>>,
    writers: BTreeSet<LinearId>,
}

impl Planner<'_> {
    /// Finds the sites that a rotation of the residual stream reaches.
    pub(super) fn find_turned(&mut self, place: &str) -> Result<(), TransformError> {
        let residual = residual(self.spec).map_err(|reason| self.impossible(place, reason))?;
        self.turned.extend(residual.readers.iter().flat_map(|reader| &reader.sites));
        Ok(())
    }

    /// Plans the rotation of the residual stream and that of heads.
    pub(super) fn rotate(&mut self, place: &str, stream: bool, heads: bool) -> Result<(), TransformError> {
        if stream {
            self.rotate_residual(place)?;
        }
        if heads {
            self.rotate_heads(place, stream)?;
        }
        Ok(())
    }

    fn rotate_residual(&mut self, place: &str) -> Result<(), TransformError> {
        // Gains that went into weights once are gone.
        if !self.plan.tables.is_empty() {
            return Ok(());
        }
        let residual = residual(self.spec).map_err(|reason| self.impossible(place, reason))?;
        let order = residual.tower.hidden;
        for Reader { norm, linears, .. } in &residual.readers {
            let norm = self.norm(norm);
            if !self.plan.norms[norm].1.contains(&NormEdit::Fold) {
                self.plan.norms[norm].1.push(NormEdit::Fold);
            }
            for id in linears {
                self.edit(*id, Edit::FoldGain { norm });
                self.edit(*id, Edit::RotateColumns { order, online: false });
                if self.spec.linears[*id].role == LinearRole::TiedDecoder {
                    self.plan.untied = Some(*id);
                }
            }
        }
        for id in residual.writers {
            self.edit(id, Edit::RotateRows { order, rows: 0..self.spec.linears[id].outputs });
        }
        self.plan.tables.extend(residual.input.tables.iter().map(|table| table.tensor.clone()));
        Ok(())
    }

    fn rotate_heads(&mut self, place: &str, stream: bool) -> Result<(), TransformError> {
        let mut seen = BTreeSet::new();
        let mut left_out = None;
        for block in self.spec.towers.iter().flat_map(|tower| &tower.blocks) {
            let attention = &block.attention;
            if !seen.insert(attention.output) || !self.any_quantized(&[attention.output]) {
                continue;
            }
            let value = &attention.value;
            let plain = self.spec.linears[value.linear].activation == ActivationFn::Identity;
            if value.stride.is_some() || !plain || ChannelRotation::of_weights(attention.head_dim).is_none() {
                left_out = Some("values do not stand alone, or the channels of a head cannot be rotated");
                continue;
            }
            let order = attention.head_dim;
            self.edit(value.linear, Edit::RotateRows { order, rows: value.outputs.clone() });
            self.edit(attention.output, Edit::RotateColumns { order, online: false });
        }
        match left_out {
            Some(reason) if !stream => Err(self.impossible(place, reason)),
            Some(reason) => {
                self.plan.notes.push(format!("heads are not rotated: {reason}"));
                Ok(())
            }
            None => Ok(()),
        }
    }
}

/// Everything that reads or writes the residual stream of a decoder, or the reason why its rotation is not exact.
fn residual(spec: &ModelSpec) -> Result<Residual<'_>, &'static str> {
    let [tower] = spec.towers.as_slice() else {
        return Err("the residual streams of models with two towers are not rotated");
    };
    let Some((_, input)) = spec.text() else {
        return Err("only the residual streams of models of texts are rotated");
    };
    if input.norm.is_some() || input.projection.is_some() {
        return Err("a norm or a projection stands before the residual stream");
    }
    let Some(final_norm) = &tower.final_norm else { return Err("no norm stands before its head") };
    if ChannelRotation::of_weights(tower.hidden).is_none() {
        return Err("the channels of its residual stream cannot be rotated");
    }
    if matches!(tower.head.output, HeadOutput::Embedding { .. }) {
        return Err("its output is the residual stream itself, which would come out rotated");
    }
    let mut residual = Residual { input, tower, readers: Vec::new(), writers: BTreeSet::new() };
    let mut seen = BTreeSet::new();
    for block in &tower.blocks {
        if !seen.insert(block.attention.output) {
            return Err("its blocks share layers");
        }
        of_block(spec, block, &mut residual)?;
    }
    let mut sites = Vec::new();
    for branch in &tower.head.branches {
        let Some(step) = branch.steps.first() else { return Err("no Linear stands behind its last norm") };
        sites.push(step.site);
    }
    let linears = sites.iter().flat_map(|site| spec.sites[*site].consumers.iter().copied()).collect();
    residual.readers.push(Reader { norm: final_norm, linears, sites });
    match residual.readers.iter().find(|reader| reader.norm.kind != NormKind::Rms) {
        Some(_) => Err("its norms subtract a mean, with which rotations do not commute"),
        None => Ok(residual),
    }
}

fn of_block<'a>(
    spec: &'a ModelSpec,
    block: &'a BlockSpec,
    residual: &mut Residual<'a>,
) -> Result<(), &'static str> {
    if block.placement == NormPlacement::Post {
        return Err("its norms stand in the residual stream (post-norm), so that gains cannot leave them");
    }
    if block.attention_output_norm.is_some() || block.mlp_output_norm.is_some() {
        return Err("norms stand before the residual stream, so that nothing can turn what they give");
    }
    let Some(attention_norm) = &block.attention_norm else {
        return Err("no norm stands before the first block");
    };
    let consumers =
        |sites: &[SiteId]| sites.iter().flat_map(|site| spec.sites[*site].consumers.clone()).collect();
    let sites = vec![block.attention.input];
    residual.readers.push(Reader { norm: attention_norm, linears: consumers(&sites), sites });
    let router = block.mlp.experts().map(|mixture| mixture.router);
    let sites: Vec<SiteId> = router.into_iter().chain(block.mlp.mlps().iter().map(|mlp| mlp.input)).collect();
    residual.readers.push(Reader { norm: &block.mlp_norm, linears: consumers(&sites), sites });
    residual.writers.insert(block.attention.output);
    residual.writers.extend(block.mlp.mlps().iter().map(|mlp| mlp.down));
    Ok(())
}
