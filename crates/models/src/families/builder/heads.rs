//! Heads, and what stands before them: poolers, decoders that are a table, labels.

use super::{Builder, Draft};
use crate::ModelError;
use crate::families::{MAX_WIDTH, SentenceModules};
use crate::heads::{
    HeadBranch, HeadOutput, HeadSpec, HeadStep, Pooling, Problem, RowSelection, SentenceStep,
};
use crate::spec::{ActivationFn, EmbeddingTable, LinearId, LinearRole, LinearSpec};

impl Builder<'_> {
    /// Logits over the vocabulary by the word embedding table, or by a matrix of its own at `path`, where `tied` is what
    /// config.json's silence means; `cap` is [`HeadStep::cap`].
    pub(in crate::families) fn language_head(
        &mut self,
        path: &str,
        words: &EmbeddingTable,
        tied: bool,
        cap: Option<f32>,
    ) -> Result<HeadSpec, ModelError> {
        let tied = self.tied(tied);
        if !tied && self.packed_weight(path).is_none() {
            self.expect(&format!("{path}.weight"), &[words.rows, words.width])?;
        }
        let linear = self.decoder(path, &[], words, tied)?;
        let steps = vec![HeadStep { cap, ..self.step(linear, None) }];
        Ok(HeadSpec {
            output: HeadOutput::CausalLm,
            branches: vec![HeadBranch { rows: RowSelection::Every, steps }],
        })
    }

    /// The head of an encoder that gives vectors: as modules.json says, otherwise `default`.
    pub(in crate::families) fn embedding_head(&self, default: Pooling) -> HeadSpec {
        let sentence = self.input.sentence.clone().unwrap_or_else(|| SentenceModules {
            poolings: vec![default],
            include_prompt: true,
            after: Vec::<SentenceStep>::new(),
        });
        HeadSpec {
            output: HeadOutput::Embedding { after: sentence.after, include_prompt: sentence.include_prompt },
            branches: vec![HeadBranch { rows: RowSelection::Pooled(sentence.poolings), steps: Vec::new() }],
        }
    }

    /// A Linear that stays float and that some releases of `transformers` build under this name, which is not the file's.
    pub(in crate::families) fn also_called(&mut self, path: &str) {
        self.absent.push(path.to_owned());
    }

    /// A pooler that is carried along but not run. The base model has one in `transformers` even where the file has not.
    pub(in crate::families) fn idle_pooler(&mut self, path: &str, hidden: usize) -> Result<(), ModelError> {
        if self.has_weight(path) {
            self.linear(
                &Draft::new(path, hidden, hidden, LinearRole::Pooler).activation(ActivationFn::Tanh),
            )?;
        } else if self.in_module.is_empty() {
            self.absent.push(path.to_owned());
        }
        Ok(())
    }

    /// The decoder of a masked language model: the word embedding table, or a matrix of its own where the file has one
    /// that config.json does not tie.
    ///
    /// Old files hold what is tied twice. Which of the two runs would depend on whether they are equal; so they must be.
    pub(in crate::families) fn decoder(
        &mut self,
        path: &str,
        biases: &[&str],
        table: &EmbeddingTable,
        tied: bool,
    ) -> Result<LinearId, ModelError> {
        let own = format!("{path}.weight");
        let has_own = self.input.checkpoint.contains(&own) || self.packed_weight(path).is_some();
        let mut biases: Vec<&str> =
            biases.iter().copied().filter(|bias| self.input.checkpoint.contains(bias)).collect();
        if tied {
            let has_copy = self.input.checkpoint.contains(&own);
            let weights = has_copy.then_some((own.as_str(), table.tensor.as_str()));
            let others = biases.iter().skip(1).map(|other| (*other, biases[0]));
            for (copy, original) in weights.into_iter().chain(others) {
                let shape = [table.rows, table.width];
                self.expect(copy, if copy == own { &shape[..] } else { &shape[..1] })?;
                self.copies.push((copy.to_owned(), original.to_owned()));
            }
        } else {
            // The decoder runs with its own, not with the one that it would be tied to.
            biases.sort_by_key(|bias| bias.strip_prefix(path) != Some(".bias"));
        }
        let bias = biases.first().map(|bias| (*bias).to_owned());
        let weight = if tied || !has_own { table.tensor.clone() } else { own };
        let linear = LinearSpec {
            path: path.to_owned(),
            tensor: path.to_owned(),
            role: if weight == table.tensor { LinearRole::TiedDecoder } else { LinearRole::Classifier },
            weight,
            weight_shape: vec![table.rows, table.width],
            transposed: false,
            rows: 0..table.rows,
            bias,
            outputs: table.rows,
            inputs: table.width,
            activation: ActivationFn::Identity,
            site: None,
        };
        self.push(linear)
    }

    /// Whether config.json ties the output matrix to the word embeddings, where `default` is what its silence means.
    pub(in crate::families) fn tied(&self, default: bool) -> bool {
        let key = self.input.config.get("tie_word_embeddings");
        key.and_then(serde_json::Value::as_bool).unwrap_or(default)
    }

    /// Label names in logit order: `id2label`, or as many `LABEL_i` as `num_labels` says (2 by default).
    pub(in crate::families) fn labels(&self) -> Result<Vec<String>, ModelError> {
        let config = self.input.config;
        let allowed = |count: usize| match count {
            1..=MAX_WIDTH => Ok(()),
            _ => Err(self
                .input
                .config_error(format!("there are {count} labels; a classifier has 1 to {MAX_WIDTH}"))),
        };
        let count = config.get("num_labels").filter(|value| !value.is_null());
        let Some(map) = config.get("id2label").filter(|value| !value.is_null()) else {
            let count = match count {
                None => 2,
                Some(value) => {
                    value.as_u64().and_then(|count| usize::try_from(count).ok()).ok_or_else(|| {
                        self.input
                            .config_error(format!("`num_labels` is {value}; a whole number is expected"))
                    })?
                }
            };
            allowed(count)?;
            return Ok((0..count).map(|i| format!("LABEL_{i}")).collect());
        };
        let Some(map) = map.as_object() else {
            return Err(self.input.config_error("`id2label` is not a table from label numbers to names"));
        };
        allowed(map.len())?;
        let name = |i: usize| map.get(&i.to_string()).and_then(serde_json::Value::as_str).map(str::to_owned);
        (0..map.len())
            .map(|i| {
                name(i).ok_or_else(|| {
                    self.input.config_error(format!(
                        "`id2label` has {} entries but none with a name for label {i}",
                        map.len()
                    ))
                })
            })
            .collect()
    }

    /// What the logits of a sequence classifier are: `problem_type`, or what `transformers` takes when it is not given.
    pub(in crate::families) fn problem(&self, labels: usize) -> Result<Problem, ModelError> {
        match self.input.config.get("problem_type").and_then(serde_json::Value::as_str) {
            None if labels == 1 => Ok(Problem::Regression),
            None | Some("single_label_classification") if labels > 1 => Ok(Problem::SingleLabel),
            Some("multi_label_classification") => Ok(Problem::MultiLabel),
            Some("regression") => Ok(Problem::Regression),
            Some("single_label_classification") | None => {
                Err(self.input.config_error("`problem_type` is single_label_classification with a single label; give it labels, or `regression`"))
            }
            Some(other) => Err(self.input.config_error(format!(
                "`problem_type` `{other}` is not supported; single_label_classification, multi_label_classification and \
                 regression are"
            ))),
        }
    }
}
