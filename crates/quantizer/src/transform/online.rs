//! Rotations that run with the model.

use zeropoint_kernels::ChannelRotation;
use zeropoint_models::LinearRole;

use super::{Edit, Planner, Smoothing, Strength, TransformError};
use crate::Pattern;

impl Planner<'_> {
    /// Plans the rotation of every site that is asked for and that a quantised Linear reads.
    pub(super) fn rotate_online(
        &mut self,
        place: &str,
        strength: Option<Strength>,
        layers: &[Pattern],
    ) -> Result<(), TransformError> {
        let mut done = 0;
        let mut odd = None;
        for (site, spec) in self.spec.sites.iter().enumerate() {
            let linears = &spec.consumers;
            let role = self.spec.linears[linears[0]].role;
            if !self.is_asked(layers, linears)
                || !self.any_quantized(linears)
                // Neither has a weight of its own that could be turned back.
                || matches!(role, LinearRole::TiedDecoder | LinearRole::PatchEmbedding)
                || self.plan.rotations.contains_key(&site)
            {
                continue;
            }
            // Without a word of the user what is rotated already is not rotated again.
            if layers.is_empty() && self.turned.contains(&site) {
                continue;
            }
            if ChannelRotation::new(spec.channels).is_none() {
                odd = Some(spec.channels);
                continue;
            }
            // Ranges of channels are those of the model as it was: a rotated one has others.
            let known = !self.turned.contains(&site) && !self.smoothed.contains(&site);
            let smoothing = strength.filter(|_| known).map(|strength| {
                self.plan.smoothings.push(Smoothing {
                    site,
                    linears: linears.clone(),
                    strength,
                    heads: None,
                    norm: None,
                    factors: spec.channels,
                });
                self.smoothed.insert(site);
                self.plan.smoothings.len() - 1
            });
            for id in linears {
                if let Some(smoothing) = smoothing {
                    self.edit(*id, Edit::ScaleColumns { smoothing });
                }
                self.edit(*id, Edit::RotateColumns { order: spec.channels, online: true });
            }
            self.plan.rotations.insert(site, smoothing);
            done += 1;
        }
        match (done, odd) {
            (0, Some(channels)) => {
                Err(self.impossible(place, format!("{channels} channels have a prime factor above 257")))
            }
            (0, None) => {
                Err(self
                    .impossible(place, "every input that it is for is rotated already, or none is quantised"))
            }
            (_, Some(channels)) => {
                self.plan.notes.push(format!(
                    "inputs of {channels} channels are not rotated: the number has a prime factor above 257"
                ));
                Ok(())
            }
            _ => Ok(()),
        }
    }
}
