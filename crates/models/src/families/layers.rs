//! Blocks and heads that several families have in common, apart from the names of their parts.

use super::builder::{Builder, Draft};
use crate::ModelError;
use crate::heads::{HeadBranch, HeadOutput, HeadSpec, HeadStep, RowSelection};
use crate::spec::{
    ActivationFn, AttentionSpec, BlockSpec, EmbeddingTable, FeedForward, LinearId, LinearRole, MlpSpec,
    NormPlacement, Positions, Reach,
};

/// Sizes of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) head_dim: usize,
    pub(super) inner: usize,
}

/// How a family names the parts of its blocks, relative to the block's path.
pub(super) struct BlockNames {
    /// Query, key and value.
    pub(super) qkv: [&'static str; 3],
    pub(super) attention_output: &'static str,
    pub(super) attention_norm: &'static str,
    pub(super) up: &'static str,
    pub(super) down: &'static str,
    pub(super) mlp_norm: &'static str,
}

impl Builder<'_> {
    /// A block with separate query, key and value and a feed-forward half without a gate, all with biases.
    pub(super) fn plain_block(
        &mut self,
        path: &str,
        names: &BlockNames,
        sizes: Sizes,
        activation: ActivationFn,
        placement: NormPlacement,
        positions: Positions,
    ) -> Result<BlockSpec, ModelError> {
        let Sizes { hidden, inner, .. } = sizes;
        let mut plain = |name: &str, outputs, inputs, activation| {
            let path = format!("{path}.{name}");
            self.linear(&Draft::new(&path, outputs, inputs, LinearRole::Block).activation(activation))
        };
        let none = ActivationFn::Identity;
        let query = plain(names.qkv[0], hidden, hidden, none)?;
        let key = plain(names.qkv[1], hidden, hidden, none)?;
        let value = plain(names.qkv[2], hidden, hidden, none)?;
        let output = plain(names.attention_output, hidden, hidden, none)?;
        let up = plain(names.up, inner, hidden, activation)?;
        let down = plain(names.down, hidden, inner, none)?;
        Ok(BlockSpec {
            placement,
            attention: AttentionSpec {
                heads: sizes.heads,
                kv_heads: sizes.heads,
                head_dim: sizes.head_dim,
                scale: 1.0 / (sizes.head_dim as f32).sqrt(),
                input: self.site(vec![query, key, value]),
                query: self.whole(query),
                key: self.whole(key),
                value: self.whole(value),
                cap: None,
                query_norm: None,
                key_norm: None,
                positions,
                reach: Reach::Full,
                context: self.site(vec![output]),
                output,
            },
            attention_norm: Some(self.norm(&format!("{path}.{}", names.attention_norm), hidden)?),
            attention_output_norm: None,
            mlp_output_norm: None,
            mlp: FeedForward::Dense(MlpSpec {
                input: self.site(vec![up]),
                up: self.whole(up),
                gate: None,
                inner: self.site(vec![down]),
                down,
            }),
            mlp_norm: self.norm(&format!("{path}.{}", names.mlp_norm), hidden)?,
            path: self.in_module(path),
        })
    }

    /// `steps`, then the classifier at `path`, over the first token of each sequence.
    pub(super) fn sequence_head(
        &mut self,
        rows: RowSelection,
        mut steps: Vec<HeadStep>,
        path: &str,
        hidden: usize,
    ) -> Result<HeadSpec, ModelError> {
        let labels = self.labels()?;
        let problem = self.problem(labels.len())?;
        steps.push(self.classifier(path, labels.len(), hidden)?);
        let output = HeadOutput::Classification { labels, problem };
        Ok(HeadSpec { output, branches: vec![HeadBranch { rows, steps }] })
    }

    /// `steps`, then the classifier at `path`, over every token.
    pub(super) fn token_head(
        &mut self,
        mut steps: Vec<HeadStep>,
        path: &str,
        hidden: usize,
    ) -> Result<HeadSpec, ModelError> {
        let labels = self.labels()?;
        steps.push(self.classifier(path, labels.len(), hidden)?);
        Ok(per_token(HeadOutput::TokenClassification { labels }, steps))
    }

    /// `steps`, then the two logits of a span at `path`, over every token.
    pub(super) fn span_head(
        &mut self,
        mut steps: Vec<HeadStep>,
        path: &str,
        hidden: usize,
    ) -> Result<HeadSpec, ModelError> {
        if self.labels()?.len() != 2 {
            return Err(self.input.config_error(
                "question answering has two outputs, start and end; `num_labels` or `id2label` says otherwise",
            ));
        }
        steps.push(self.classifier(path, 2, hidden)?);
        Ok(per_token(HeadOutput::QuestionAnswering, steps))
    }

    /// `steps`, then the decoder at `path`, over every token.
    pub(super) fn masked_lm_head(
        &mut self,
        mut steps: Vec<HeadStep>,
        path: &str,
        biases: &[&str],
        words: &EmbeddingTable,
    ) -> Result<HeadSpec, ModelError> {
        let decoder = self.decoder(path, biases, words, self.tied(true))?;
        steps.push(self.step(decoder, None));
        Ok(per_token(HeadOutput::MaskedLm, steps))
    }

    /// A Linear of a head with its non-linearity, and no norm after it.
    pub(super) fn head_step(
        &mut self,
        path: &str,
        outputs: usize,
        inputs: usize,
        activation: ActivationFn,
    ) -> Result<HeadStep, ModelError> {
        let draft = Draft::new(path, outputs, inputs, LinearRole::Head).activation(activation);
        let linear = self.head_linear(&draft)?;
        Ok(self.step(linear, None))
    }

    /// As [`Builder::head_step`], with a norm after it.
    pub(super) fn transform_step(
        &mut self,
        path: &str,
        outputs: usize,
        inputs: usize,
        activation: ActivationFn,
        norm: &str,
    ) -> Result<HeadStep, ModelError> {
        let step = self.head_step(path, outputs, inputs, activation)?;
        Ok(HeadStep { norm: Some(self.head_norm(norm, outputs, true)?), ..step })
    }

    fn classifier(&mut self, path: &str, outputs: usize, inputs: usize) -> Result<HeadStep, ModelError> {
        let linear = self.head_linear(&Draft::new(path, outputs, inputs, LinearRole::Classifier))?;
        Ok(self.step(linear, None))
    }

    /// A pooler of the base model as a step.
    pub(super) fn pooler_step(&mut self, path: &str, hidden: usize) -> Result<HeadStep, ModelError> {
        let pooler: LinearId = self
            .linear(&Draft::new(path, hidden, hidden, LinearRole::Pooler).activation(ActivationFn::Tanh))?;
        Ok(self.step(pooler, None))
    }
}

fn per_token(output: HeadOutput, steps: Vec<HeadStep>) -> HeadSpec {
    HeadSpec { output, branches: vec![HeadBranch { rows: RowSelection::Every, steps }] }
}
