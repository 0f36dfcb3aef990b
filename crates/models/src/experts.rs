//! Mixtures of experts at work: rows gathered for each expert, and its outputs added to theirs.

use candle_core::{Device, Tensor};
use zeropoint_kernels::{Isa, exp_nonpositive_in_place};

use crate::ModelError;
use crate::model::Pass;
use crate::ops::rows_of;
use crate::spec::{ExpertsSpec, MlpSpec, SiteId};

/// A row that goes through an expert, and the factor on what comes out.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Routed {
    row: usize,
    weight: f32,
}

/// For each expert the rows that go through it, rising.
///
/// `logits` are the router's, `[rows, experts]`. A row takes the experts of its `top_k` largest, of equal ones the first; the
/// factors are their shares of the softmax over all experts or, renormalised, over those that are taken.
fn route(isa: Isa, logits: &[f32], spec: &ExpertsSpec) -> Vec<Vec<Routed>> {
    let experts = spec.experts.len();
    let mut routed = vec![Vec::new(); experts];
    let mut shares = vec![0f32; experts];
    for (row, logits) in logits.chunks_exact(experts).enumerate() {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        shares.iter_mut().zip(logits).for_each(|(share, logit)| *share = logit - largest);
        exp_nonpositive_in_place(isa, &mut shares);
        let mut order: Vec<usize> = (0..experts).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
        let taken = &order[..spec.top_k];
        let total: f32 = if spec.renormalize {
            taken.iter().map(|&expert| shares[expert]).sum()
        } else {
            shares.iter().sum()
        };
        for &expert in taken {
            routed[expert].push(Routed { row, weight: shares[expert] / total });
        }
    }
    routed
}

impl Pass<'_, '_> {
    /// Each row through its experts. What they give is added up in the order of the experts, whatever the number of threads.
    ///
    /// A sink sees at each expert's sites all rows, as the expert would have them; the output has none of it.
    pub(crate) fn experts(&mut self, spec: &ExpertsSpec, input: &Tensor) -> Result<Tensor, ModelError> {
        let (rows, hidden) = input.dims2()?;
        let logits = self.single(spec.router, input)?;
        let routed = rows_of(&logits, |logits| route(self.model.isa(), logits, spec))?;
        let mut sum = vec![0f32; rows * hidden];
        for (expert, routed) in spec.experts.iter().zip(&routed) {
            self.show_all(expert, input, routed.len())?;
            if routed.is_empty() {
                continue;
            }
            let gathered = rows_of(input, |x| {
                let row = |routed: &Routed| &x[routed.row * hidden..][..hidden];
                routed.iter().flat_map(row).copied().collect::<Vec<f32>>()
            })?;
            let gathered = Tensor::from_vec(gathered, (routed.len(), hidden), &Device::Cpu)?;
            let output = Pass::new(self.model, &mut None).mlp(expert, &gathered)?;
            rows_of(&output, |output| {
                for (Routed { row, weight }, output) in routed.iter().zip(output.chunks_exact(hidden)) {
                    let sum = &mut sum[row * hidden..][..hidden];
                    sum.iter_mut().zip(output).for_each(|(sum, x)| *sum += weight * x);
                }
            })?;
        }
        Ok(Tensor::from_vec(sum, (rows, hidden), &Device::Cpu)?)
    }

    /// Shows a sink the activations that all rows have at the sites of an expert, to which `routed` of them go.
    fn show_all(&mut self, expert: &MlpSpec, input: &Tensor, routed: usize) -> Result<(), ModelError> {
        if self.sink.is_none() {
            return Ok(());
        }
        self.show(expert.input, input, routed)?;
        let sink = &mut None;
        let mut unwatched = Pass::new(self.model, sink);
        let outputs = unwatched.site(expert.input, input)?;
        let inner = unwatched.inner(expert, &outputs)?;
        self.show(expert.inner, &inner, routed)
    }

    fn show(&mut self, site: SiteId, values: &Tensor, routed: usize) -> Result<(), ModelError> {
        let spec = &self.model.spec().sites[site];
        let Some(sink) = &mut self.sink else { return Ok(()) };
        rows_of(values, |values| sink.observe_expert(site, values, spec.channels, routed))?
            .map_err(|reason| ModelError::Site { site: spec.id.clone(), reason })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::Projection;

    fn mixture(experts: usize, top_k: usize, renormalize: bool) -> ExpertsSpec {
        let up = Projection { linear: 0, outputs: 0..1, stride: None };
        let expert = MlpSpec { input: 0, up, gate: None, inner: 0, down: 0 };
        ExpertsSpec { path: "mlp".to_owned(), router: 0, top_k, renormalize, experts: vec![expert; experts] }
    }

    /// The rows of each expert with their factors to three digits.
    fn routed(logits: &[f32], spec: &ExpertsSpec) -> Vec<Vec<(usize, i32)>> {
        let rounded = |Routed { row, weight }: &Routed| (*row, (weight * 1000.0).round() as i32);
        let routed = route(Isa::SCALAR, logits, spec);
        routed.iter().map(|rows| rows.iter().map(rounded).collect()).collect()
    }

    #[test]
    fn a_row_goes_through_the_experts_of_its_largest_logits() {
        // e^0 : e^1 : e^2 = 0.090 : 0.245 : 0.665
        let logits = [0.0, 1.0, 2.0, 2.0, 0.0, 1.0];
        let shares = vec![vec![(1, 665)], vec![(0, 245)], vec![(0, 665), (1, 245)]];
        assert_eq!(routed(&logits, &mixture(3, 2, false)), shares);
        let renormalized = vec![vec![(1, 731)], vec![(0, 269)], vec![(0, 731), (1, 269)]];
        assert_eq!(routed(&logits, &mixture(3, 2, true)), renormalized);
        assert_eq!(routed(&logits, &mixture(3, 1, true)), [vec![(1, 1000)], vec![], vec![(0, 1000)]]);
        let all = [vec![(0, 90), (1, 665)], vec![(0, 245), (1, 90)], vec![(0, 665), (1, 245)]];
        assert_eq!(routed(&logits, &mixture(3, 3, true)), all);
    }

    #[test]
    fn of_equal_logits_the_first_experts_are_taken_and_large_ones_do_not_overflow() {
        assert_eq!(routed(&[5.0; 4], &mixture(4, 2, true)), [vec![(0, 500)], vec![(0, 500)], vec![], vec![]]);
        assert_eq!(routed(&[3e38, -3e38], &mixture(2, 2, true)), [vec![(0, 1000)], vec![(0, 0)]]);
    }
}
