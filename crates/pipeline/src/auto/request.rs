//! What a search is asked for, and what it tells.

use std::collections::BTreeMap;

use zeropoint_evaluator::compare::MetricName;

use crate::config::{OverrideScheme, Preset};
use crate::run::RunOutcome;

/// A scheme that a search may give to a group of Linears.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Candidate {
    /// INT8 weights and activations, ranges from calibration.
    W8a8Static,
    /// INT8 weights and activations, scales at run time.
    W8a8Dynamic,
    /// INT8 weights, float activations.
    W8a16,
    /// INT4 weights in groups, float activations.
    W4a16,
    /// As in the source.
    Float,
}

impl Candidate {
    /// Every one.
    pub const ALL: [Self; 5] = [Self::W8a8Static, Self::W8a8Dynamic, Self::W8a16, Self::W4a16, Self::Float];

    /// The name on command lines and in configs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::W8a8Static => "w8a8-static",
            Self::W8a8Dynamic => "w8a8-dynamic",
            Self::W8a16 => "w8a16",
            Self::W4a16 => "w4a16",
            Self::Float => "none",
        }
    }

    pub(super) fn preset(self) -> Option<Preset> {
        match self {
            Self::W8a8Static => Some(Preset::W8a8Static),
            Self::W8a8Dynamic => Some(Preset::W8a8Dynamic),
            Self::W8a16 => Some(Preset::W8a16),
            Self::W4a16 => Some(Preset::W4a16),
            Self::Float => None,
        }
    }

    pub(super) fn scheme(self) -> OverrideScheme {
        match self {
            Self::W8a8Static => OverrideScheme::W8a8Static,
            Self::W8a8Dynamic => OverrideScheme::W8a8Dynamic,
            Self::W8a16 => OverrideScheme::W8a16,
            Self::W4a16 => OverrideScheme::W4a16,
            Self::Float => OverrideScheme::None,
        }
    }

    /// What multiplying with a weight takes, in reads of a byte: integers go several times as fast as floats, and a static scale needs
    /// no look at the values.
    pub(super) fn work(self) -> f64 {
        match self {
            Self::W8a8Static => 1.0,
            Self::W8a8Dynamic => 1.05,
            Self::W8a16 | Self::W4a16 => 3.0,
            Self::Float => 4.0,
        }
    }
}

/// What a search keeps to.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// The metric loses at most so much, in its own unit; of what is within that, the cheapest.
    MaxDrop(f64),
    /// The weight files have at most so many bytes; of what is within that, what loses least.
    TargetBytes(u64),
}

/// What makes a model cheap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prefer {
    /// Little work and few bytes.
    Speed,
    /// Few bytes.
    Size,
}

/// What is searched for.
#[derive(Debug, Clone, PartialEq)]
pub struct AutoRequest {
    /// What it keeps to.
    pub budget: Budget,
    /// The metric whose loss counts; `None` for that of the first gate, or the first of the first task.
    pub metric: Option<MetricName>,
    /// The schemes it chooses from.
    pub candidates: Vec<Candidate>,
    /// What makes a model cheap, where a loss is the limit.
    pub prefer: Prefer,
}

/// One run of a search.
#[derive(Debug, Clone, PartialEq)]
pub struct Try {
    /// Linears of each scheme.
    pub linears: BTreeMap<&'static str, usize>,
    /// Bytes of the weight files.
    pub bytes: u64,
    /// The sum of what its groups cost alone.
    pub predicted: f64,
    /// What the metric lost.
    pub drop: f64,
    /// Whether that is within the budget.
    pub met: bool,
}

/// What a search found.
#[derive(Debug, Clone)]
pub struct AutoOutcome {
    /// The metric whose loss counted.
    pub metric: MetricName,
    /// What was tried, in order; the last one is the result.
    pub tries: Vec<Try>,
    /// The last run, an ordinary one.
    pub run: RunOutcome,
}

impl AutoOutcome {
    /// Whether the result is within the budget.
    pub fn met(&self) -> bool {
        self.tries.last().is_some_and(|last| last.met)
    }
}
