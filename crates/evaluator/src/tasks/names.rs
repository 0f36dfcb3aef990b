//! The names of metrics in reports and gates.

/// Share of samples, words or masked tokens that are right.
pub const ACCURACY: &str = "accuracy";
/// Share of questions whose right answer has the largest log-likelihood a byte.
pub const ACCURACY_NORM: &str = "accuracy_norm";
/// Share of questions for which both models choose the same answer.
pub const CHOICE_AGREEMENT: &str = "choice_agreement";
/// Share of images whose gold class is among the five likeliest.
pub const TOP5_ACCURACY: &str = "top5_accuracy";
/// F1 averaged over classes with equal weight.
pub const MACRO_F1: &str = "macro_f1";
/// F1 over all labels together.
pub const MICRO_F1: &str = "micro_f1";
/// Share of samples whose labels or answer are exactly right.
pub const EXACT_MATCH: &str = "exact_match";
/// F1 of the words of an answer.
pub const F1: &str = "f1";
/// F1 of entities.
pub const ENTITY_F1: &str = "entity_f1";
/// Linear correlation.
pub const PEARSON: &str = "pearson";
/// Rank correlation.
pub const SPEARMAN: &str = "spearman";
/// Mean of the absolute error; lower is better.
pub const MEAN_ABSOLUTE_ERROR: &str = "mean_absolute_error";
/// Mean negative log-likelihood of a masked token in nats; lower is better.
pub const LOSS: &str = "loss";
/// Exponential of the mean negative log-likelihood of a token; lower is better.
pub const PERPLEXITY: &str = "perplexity";
/// Mean reciprocal rank.
pub const MRR: &str = "mrr";
/// Normalised discounted cumulative gain of the first ten.
pub const NDCG: &str = "ndcg_at_10";
/// Mean cosine of the two models' outputs.
pub const COSINE_MEAN: &str = "cosine_mean";
/// Smallest cosine.
pub const COSINE_MIN: &str = "cosine_min";
/// First percentile of the cosine.
pub const COSINE_P01: &str = "cosine_p01";
/// Share of distributions with the same likeliest entry in both models.
pub const TOP1_AGREEMENT: &str = "top1_agreement";
/// Mean Kullback-Leibler divergence in nats; lower is better.
pub const KL_MEAN: &str = "kl_mean";
/// 99th percentile of the Kullback-Leibler divergence of a token in nats; lower is better.
pub const KL_P99: &str = "kl_p99";
/// 99.9th percentile of the Kullback-Leibler divergence of a token in nats; lower is better.
pub const KL_P999: &str = "kl_p999";
/// Mean change of the right token's probability; below 0 where it has become less likely.
pub const PROBABILITY_CHANGE: &str = "probability_change";
/// Root mean square of the change of the right token's probability; lower is better.
pub const PROBABILITY_CHANGE_RMS: &str = "probability_change_rms";
/// Mean absolute difference of the two models' scores; lower is better.
pub const DIFFERENCE_MEAN: &str = "difference_mean";
