//! Smoothing: which factors can go where, and what they are.

use std::collections::BTreeMap;

use rayon::prelude::*;
use zeropoint_kernels::{Isa, channel_absmax};
use zeropoint_models::{
    ActivationFn, BlockSpec, Edge, LinearId, MlpSpec, ModelSpec, NormSpec, SiteId, is_divisor,
};

use super::{Edit, NormEdit, Planner, SharedHeads, Smoothing, Strength, TransformError};
use crate::Pattern;

/// A site whose factors can go into what comes before, or the reason why not.
struct Place {
    site: SiteId,
    /// All Linears that read the activation.
    linears: Vec<LinearId>,
    before: Result<Before, &'static str>,
}

/// What takes the factors.
enum Before {
    Norm(NormSpec),
    /// Rows of a Linear.
    Rows(LinearId, std::ops::Range<usize>, Option<SharedHeads>),
}

impl Planner<'_> {
    /// Plans the smoothing of every site that is asked for.
    pub(super) fn smooth(
        &mut self,
        place: &str,
        strength: Strength,
        layers: &[Pattern],
    ) -> Result<(), TransformError> {
        let mut left_out: BTreeMap<&'static str, (String, usize)> = BTreeMap::new();
        let mut done = 0;
        for Place { site, linears, before } in places(self.spec) {
            if !self.is_asked(layers, &linears)
                || !self.any_quantized(&linears)
                || self.smoothed.contains(&site)
            {
                continue;
            }
            let before = if self.turned.contains(&site) {
                Err("the rotation of the residual stream undoes it")
            } else {
                before
            };
            let path = &self.spec.linears[linears[0]].path;
            match before {
                Ok(before) => self.smooth_site(site, linears, strength, before),
                Err(reason) if !layers.is_empty() => {
                    return Err(TransformError::Layer {
                        place: format!("{place}.layers"),
                        path: path.clone(),
                        reason: reason.to_owned(),
                    });
                }
                Err(reason) => {
                    left_out.entry(reason).or_insert_with(|| (path.clone(), 0)).1 += 1;
                    continue;
                }
            }
            done += 1;
        }
        if done == 0 {
            let reason =
                left_out.keys().next().copied().unwrap_or("no Linear that is quantised reads a site");
            return Err(self.impossible(place, reason));
        }
        for (reason, (path, count)) in left_out {
            let others = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            self.plan.notes.push(format!("the input of `{path}`{others} is not smoothed: {reason}"));
        }
        Ok(())
    }

    fn smooth_site(&mut self, site: SiteId, linears: Vec<LinearId>, strength: Strength, before: Before) {
        let smoothing = self.plan.smoothings.len();
        let channels = self.spec.sites[site].channels;
        let (heads, norm, factors) = match &before {
            Before::Norm(norm) => (None, Some(self.norm(norm)), channels),
            Before::Rows(_, rows, heads) => (*heads, None, rows.len()),
        };
        for id in &linears {
            self.edit(*id, Edit::ScaleColumns { smoothing });
        }
        match before {
            Before::Norm(norm) => {
                let norm = self.norm(&norm);
                self.plan.norms[norm].1.push(NormEdit::Divide(smoothing));
            }
            Before::Rows(linear, rows, _) => self.edit(linear, Edit::DivideRows { smoothing, rows }),
        }
        self.smoothed.insert(site);
        self.plan.smoothings.push(Smoothing { site, linears, strength, heads, norm, factors });
    }
}

/// Every activation that Linears of blocks read, once.
fn places(spec: &ModelSpec) -> Vec<Place> {
    let mut places: Vec<Place> = Vec::new();
    let norms: BTreeMap<&str, &NormSpec> = spec.norms().map(|norm| (norm.path.as_str(), norm)).collect();
    for block in spec.towers.iter().flat_map(|tower| &tower.blocks) {
        let first_mlp = block.mlp.mlps().first();
        let readers = [Some(block.attention.input), first_mlp.map(|mlp| mlp.input)];
        for site in readers.into_iter().flatten() {
            push(&mut places, normed(spec, &norms, site));
        }
        push(&mut places, context(spec, block));
        for mlp in block.mlp.mlps() {
            push(&mut places, inner(spec, mlp));
        }
    }
    places
}

fn push(places: &mut Vec<Place>, place: Place) {
    if places.iter().all(|known| known.site != place.site) {
        places.push(place);
    }
}

/// What a norm gives.
fn normed(spec: &ModelSpec, norms: &BTreeMap<&str, &NormSpec>, site: SiteId) -> Place {
    let first = spec.sites[site].consumers[0];
    let edge = spec.edges.iter().find_map(|edge| match edge {
        Edge::NormToLinears { norm, linears, residual } if linears.contains(&first) => {
            Some((norm, linears, *residual))
        }
        _ => None,
    });
    let Some((norm, linears, residual)) = edge else {
        let linears = spec.sites[site].consumers.clone();
        return Place { site, linears, before: Err("no norm stands before it alone") };
    };
    let shared = spec.norms().filter(|other| other.path == *norm).count() > 1;
    let before = match norms.get(norm.as_str()) {
        _ if residual => Err("the residual stream takes the output of the norm before it, too"),
        _ if shared => Err("blocks share the norm before it"),
        Some(norm) => Ok(Before::Norm((*norm).clone())),
        None => Err("no norm stands before it alone"),
    };
    Place { site, linears: linears.clone(), before }
}

/// What attention gives: each channel a sum of one channel of the values.
fn context(spec: &ModelSpec, block: &BlockSpec) -> Place {
    let attention = &block.attention;
    let share = attention.heads / attention.kv_heads;
    let head_dim = attention.head_dim;
    let heads = (share > 1).then_some(SharedHeads { head_dim, share });
    let value = &attention.value;
    let before = if value.stride.is_some() {
        Err("values lie between queries and keys")
    } else if spec.linears[value.linear].activation != ActivationFn::Identity {
        Err("a non-linearity stands between")
    } else {
        Ok(Before::Rows(value.linear, value.outputs.clone(), heads))
    };
    Place { site: attention.context, linears: spec.sites[attention.context].consumers.clone(), before }
}

/// What the narrowing Linear of a feed-forward half reads.
fn inner(spec: &ModelSpec, mlp: &MlpSpec) -> Place {
    let up = &spec.linears[mlp.up.linear];
    // A gate is multiplied with what is scaled; max(x, 0) of a positive multiple is that multiple.
    let linear = up.activation == ActivationFn::Identity && mlp.gate.is_some();
    let before = if mlp.up.stride.is_none() && (linear || up.activation == ActivationFn::Relu) {
        Ok(Before::Rows(mlp.up.linear, mlp.up.outputs.clone(), None))
    } else {
        Err("a non-linearity stands before it")
    };
    Place { site: mlp.inner, linears: spec.sites[mlp.inner].consumers.clone(), before }
}

/// The largest magnitude of each column of `weight`, `[rows, columns]`, added to what `maxima` has.
pub fn column_maxima(isa: Isa, weight: &[f32], maxima: &mut [f32]) {
    const ROWS: usize = 256;
    let columns = maxima.len();
    let of_part = |part: &[f32]| {
        let mut maxima = vec![0f32; columns];
        channel_absmax(isa, part, columns, &mut maxima);
        maxima
    };
    let larger = |a: Vec<f32>, b: Vec<f32>| a.iter().zip(&b).map(|(a, b)| a.max(*b)).collect();
    let found = weight.par_chunks(columns * ROWS).map(of_part).reduce(|| vec![0.0; columns], larger);
    maxima.iter_mut().zip(&found).for_each(|(max, found)| *max = max.max(*found));
}

/// Beyond these the numbers of a norm or a row would lose digits.
const RANGE: (f64, f64) = (1e-5, 1e5);

/// `mean|x|^a` of each channel for the strength `a`, over the geometric mean of the largest and the smallest of them (Lin et al. 2023,
/// equation 5, and the normalisation of the authors' code): what channels are divided by and columns multiplied.
///
/// A channel in which nothing is seen has the factor of one of magnitude `1e-4`.
pub fn activation_aware_factors(strength: f64, means: &[f32]) -> Vec<f32> {
    const LEAST: f64 = 1e-4;
    let powers: Vec<f64> = means.iter().map(|mean| f64::from(*mean).max(LEAST).powf(strength)).collect();
    let (least, most) =
        powers.iter().fold((f64::INFINITY, 0f64), |(a, b), power| (a.min(*power), b.max(*power)));
    let middle = (least * most).sqrt();
    let factor = |power: &f64| (power / middle).clamp(RANGE.0, RANGE.1) as f32;
    powers.iter().map(factor).map(|factor| if is_divisor(factor) { factor } else { 1.0 }).collect()
}

/// `max|x|^a / max|w|^(1-a)` of each channel for the strength `a` (Xiao et al. 2023, equation 4): what channels are divided by and
/// columns multiplied. `activations` and `weights` are the largest magnitudes of the channels.
///
/// A channel in which nothing is seen, or whose weights are zero, has the factor 1.
pub fn smoothing_factors(strength: f64, activations: &[f32], weights: &[f32]) -> Vec<f32> {
    let factor = |(x, w): (&f32, &f32)| {
        let factor = (f64::from(*x).powf(strength) / f64::from(*w).powf(1.0 - strength))
            .clamp(RANGE.0, RANGE.1) as f32;
        if *x > 0.0 && *w > 0.0 && is_divisor(factor) { factor } else { 1.0 }
    };
    activations.iter().zip(weights).map(factor).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn factors_are_those_of_the_paper() {
        // 16^0.5 / 4^0.5, 16^0.5 / 1, and channels of which nothing is known.
        assert_eq!(
            smoothing_factors(0.5, &[16.0, 16.0, 0.0, 3.0], &[4.0, 1.0, 1.0, 0.0]),
            [2.0, 4.0, 1.0, 1.0]
        );
        assert_eq!(smoothing_factors(1.0, &[16.0], &[4.0]), [16.0]);
        assert_eq!(smoothing_factors(0.0, &[16.0], &[4.0]), [0.25]);
        assert_eq!(smoothing_factors(1.0, &[1e30, 1e-30], &[1.0, 1.0]), [1e5, 1e-5]);
    }

    #[test]
    fn activation_aware_factors_are_powers_around_one() {
        assert_eq!(activation_aware_factors(0.5, &[16.0, 1.0, 4.0]), [2.0, 0.5, 1.0]);
        assert_eq!(activation_aware_factors(0.0, &[16.0, 1.0, 0.0]), [1.0; 3]);
        assert_eq!(activation_aware_factors(1.0, &[0.0, 1.0]), [1e-2, 1e2]);
    }

    #[test]
    fn maxima_go_over_all_rows_and_what_was_there() {
        let weight: Vec<f32> = (0..600).flat_map(|row| [row as f32, -0.5]).collect();
        let mut maxima = [0.0, 2.0];
        column_maxima(Isa::best(), &weight, &mut maxima);
        assert_eq!(maxima, [599.0, 2.0]);
    }
}
