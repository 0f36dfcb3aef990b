//! Transforms: changes of a model's weights that leave what it computes as it is and make it easier to quantise.
//!
//! A [`TransformPlan`] says for every tensor what is to be done to it, by the description of the model alone. The factors of smoothing
//! are chosen from calibration later; nothing else of the plan depends on it.

mod edit;
mod folded;
mod online;
mod smoothing;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use thiserror::Error;
use zeropoint_kernels::ChannelRotation;
use zeropoint_models::{LinearId, ModelSpec, NormSpec, SiteId};

use crate::{Pattern, PlanError};

pub use edit::{EditedRows, edit_bias, edit_norm, edit_table, edit_weight};
pub use smoothing::{activation_aware_factors, column_maxima, smoothing_factors};

/// What is asked for.
#[derive(Debug, Clone)]
pub enum Transform {
    /// Channels of activations divided, and columns of weights multiplied, by factors that go into what comes before (Xiao et al.
    /// 2023, "`SmoothQuant`: Accurate and Efficient Post-Training Quantization for Large Language Models", equation 4).
    SmoothQuant {
        /// How much of the range goes from activations to weights.
        strength: Strength,
        /// Only inputs of these Linears; all that can be where it is empty.
        layers: Vec<Pattern>,
    },
    /// The same, with factors that spare the weights that meet large activations: AWQ.
    ActivationAware {
        /// Only inputs of these Linears; all that can be where it is empty.
        layers: Vec<Pattern>,
    },
    /// Rotations that go into weights alone (Ashkboos et al. 2024, "`QuaRot`: Outlier-Free 4-Bit Inference in Rotated LLMs").
    Rotation {
        /// Of the residual stream.
        residual: bool,
        /// Of each head between the value and the output projection.
        heads: bool,
    },
    /// Inputs of Linears rotated when the model runs, and the weights back.
    OnlineRotation {
        /// Before it channels are divided as by [`Transform::SmoothQuant`] of that strength, which costs nothing more.
        smoothing: Option<Strength>,
        /// Only inputs of these Linears; all where it is empty.
        layers: Vec<Pattern>,
    },
}

/// How much of the range smoothing moves from activations to weights: alpha in the paper, from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Strength {
    /// So much everywhere.
    Fixed(f64),
    /// For each activation what leaves the least error of the Linears that read it, to be searched for.
    Search,
    /// Likewise, of factors that go by the mean magnitudes of activations alone (Lin et al. 2023, "AWQ: Activation-aware Weight
    /// Quantization for LLM Compression and Acceleration", equation 5).
    ActivationAware,
}

/// A change of a matrix `[outputs, inputs]`, and of the bias beside it. Index into [`TransformPlan::smoothings`] where there is one.
#[derive(Debug, Clone, PartialEq)]
pub enum Edit {
    /// Each column times its channel's factor.
    ScaleColumns {
        /// Which factors.
        smoothing: usize,
    },
    /// Each row, and its bias, divided by its channel's factor.
    DivideRows {
        /// Which factors.
        smoothing: usize,
        /// The rows, as many as there are factors.
        rows: Range<usize>,
    },
    /// Each column times the gain of the norm before.
    FoldGain {
        /// By its index in [`TransformPlan::norms`].
        norm: usize,
    },
    /// Each row rotated, so many columns at a time.
    RotateColumns {
        /// Columns.
        order: usize,
        /// Whether by the rotation that activations get when the model runs, and not by that of weights.
        online: bool,
    },
    /// Each column rotated, so many rows at a time, and the bias.
    RotateRows {
        /// Rows.
        order: usize,
        /// Those that are.
        rows: Range<usize>,
    },
}

impl Edit {
    /// Whether rows change without others.
    pub fn is_by_row(&self) -> bool {
        !matches!(self, Self::RotateRows { .. })
    }

    /// What rotates rows of columns, and the activation that they meet.
    pub fn rotation(&self) -> Option<ChannelRotation> {
        match self {
            Self::RotateColumns { order, online: true } => ChannelRotation::new(*order),
            Self::RotateColumns { order, online: false } => ChannelRotation::of_weights(*order),
            _ => None,
        }
    }
}

/// What becomes of a norm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormEdit {
    /// Gain and shift divided by these factors.
    Divide(usize),
    /// A gain of 1.
    Fold,
}

/// Factors to be chosen: one for each channel of an activation, shared by the query heads of a group where there are such.
#[derive(Debug, Clone, PartialEq)]
pub struct Smoothing {
    /// Where the activation is.
    pub site: SiteId,
    /// The Linears that read it.
    pub linears: Vec<LinearId>,
    /// As it is asked for.
    pub strength: Strength,
    /// Channels of a head, and heads that share factors.
    pub heads: Option<SharedHeads>,
    /// The factors are divisors of this norm's gain.
    pub norm: Option<usize>,
    /// How many there are.
    pub factors: usize,
}

/// Heads of a context whose channels have the factors of one head of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SharedHeads {
    /// Channels of a head.
    pub head_dim: usize,
    /// Heads that share.
    pub share: usize,
}

impl Smoothing {
    /// Channels of the activation.
    pub fn channels(&self) -> usize {
        self.factors * self.heads.map_or(1, |heads| heads.share)
    }

    /// The factor of a channel of the activation.
    pub fn factor_of(&self, channel: usize) -> usize {
        match self.heads {
            None => channel,
            Some(SharedHeads { head_dim, share }) => {
                channel / (head_dim * share) * head_dim + channel % head_dim
            }
        }
    }
}

/// Every change of a model.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TransformPlan {
    /// Factors to be chosen from calibration.
    pub smoothings: Vec<Smoothing>,
    /// Of Linears, in the order in which they are made.
    pub linears: BTreeMap<LinearId, Vec<Edit>>,
    /// Of norms.
    pub norms: Vec<(NormSpec, Vec<NormEdit>)>,
    /// Of embedding tables, by their tensors: their rows are rotated.
    pub tables: BTreeSet<String>,
    /// The output matrix that was the embedding table and gets a tensor of its own.
    pub untied: Option<LinearId>,
    /// Sites that are rotated online, with the factors that divide their channels before.
    pub rotations: BTreeMap<SiteId, Option<usize>>,
    /// What was asked for and is left out where it is not exact, for the user.
    pub notes: Vec<String>,
}

/// Why transforms do not fit a model.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TransformError {
    /// A pattern that names no Linear.
    #[error(transparent)]
    Pattern(#[from] PlanError),
    /// Nothing of it can be done here.
    #[error("`{place}` cannot be done in {architecture}: {reason}")]
    Impossible {
        /// Where in the config.
        place: String,
        /// The architecture.
        architecture: String,
        /// Why.
        reason: String,
    },
    /// Linears that are named and whose input cannot be smoothed.
    #[error("`{place}` names `{path}`, whose input cannot be smoothed: {reason}")]
    Layer {
        /// Where in the config.
        place: String,
        /// The Linear.
        path: String,
        /// Why.
        reason: String,
    },
}

/// A plan in the making.
struct Planner<'a> {
    spec: &'a ModelSpec,
    is_quantized: &'a dyn Fn(LinearId) -> bool,
    plan: TransformPlan,
    /// Sites whose channels are smoothed.
    smoothed: BTreeSet<SiteId>,
    /// Sites that the residual stream's rotation reaches.
    turned: BTreeSet<SiteId>,
}

impl TransformPlan {
    /// Decides what is done to each tensor of `spec`, of which `is_quantized` says which Linears become integers.
    ///
    /// Smoothing comes first, then rotations that go into weights, then those that run, whatever their order in `transforms`.
    ///
    /// # Errors
    ///
    /// A pattern that matches nothing, a transform that is exact nowhere in the model, a Linear that is named and cannot be
    /// smoothed.
    pub fn new(
        spec: &ModelSpec,
        transforms: &[Transform],
        is_quantized: &dyn Fn(LinearId) -> bool,
    ) -> Result<Self, TransformError> {
        let mut planner = Planner {
            spec,
            is_quantized,
            plan: Self::default(),
            smoothed: BTreeSet::new(),
            turned: BTreeSet::new(),
        };
        let at = |index: usize| format!("quantization.transforms.{index}");
        let each = || transforms.iter().enumerate();
        for (index, transform) in each() {
            let layers = match transform {
                Transform::SmoothQuant { layers, .. }
                | Transform::ActivationAware { layers }
                | Transform::OnlineRotation { layers, .. } => layers,
                Transform::Rotation { .. } => continue,
            };
            let paths: Vec<&str> = spec.linears.iter().map(|linear| linear.path.as_str()).collect();
            crate::plan::check_patterns(&paths, &format!("{}.layers", at(index)), layers)?;
        }
        // What a rotation of the residual stream reaches is known before anything is smoothed.
        for (index, transform) in each() {
            if let Transform::Rotation { residual: true, .. } = transform {
                planner.find_turned(&at(index))?;
            }
        }
        for (index, transform) in each() {
            match transform {
                Transform::SmoothQuant { strength, layers } => {
                    planner.smooth(&at(index), *strength, layers)?;
                }
                Transform::ActivationAware { layers } => {
                    planner.smooth(&at(index), Strength::ActivationAware, layers)?;
                }
                _ => {}
            }
        }
        for (index, transform) in each() {
            if let Transform::Rotation { residual, heads } = transform {
                planner.rotate(&at(index), *residual, *heads)?;
            }
        }
        for (index, transform) in each() {
            if let Transform::OnlineRotation { smoothing, layers } = transform {
                planner.rotate_online(&at(index), *smoothing, layers)?;
            }
        }
        Ok(planner.plan)
    }

    /// Whether factors are to be chosen from calibration.
    pub fn needs_statistics(&self) -> bool {
        !self.smoothings.is_empty()
    }
}

impl Planner<'_> {
    fn edit(&mut self, linear: LinearId, edit: Edit) {
        self.plan.linears.entry(linear).or_default().push(edit);
    }

    /// The index of a norm among those that change.
    fn norm(&mut self, norm: &NormSpec) -> usize {
        let known = self.plan.norms.iter().position(|(known, _)| known.path == norm.path);
        known.unwrap_or_else(|| {
            self.plan.norms.push((norm.clone(), Vec::new()));
            self.plan.norms.len() - 1
        })
    }

    fn any_quantized(&self, linears: &[LinearId]) -> bool {
        linears.iter().any(|id| (self.is_quantized)(*id))
    }

    /// Whether a transform of these layers is about the Linears of a site.
    fn is_asked(&self, layers: &[Pattern], linears: &[LinearId]) -> bool {
        let path = |id: &LinearId| self.spec.linears[*id].path.as_str();
        layers.is_empty()
            || linears.iter().map(path).any(|path| layers.iter().any(|layer| layer.matches(path)))
    }

    fn impossible(&self, place: &str, reason: impl Into<String>) -> TransformError {
        TransformError::Impossible {
            place: place.to_owned(),
            architecture: self.spec.architecture.clone(),
            reason: reason.into(),
        }
    }
}
