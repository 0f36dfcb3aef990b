//! Finding the best range by a criterion, from coarse to fine.

use zeropoint_core::Symmetry;

/// A search over `(l, h)` in `[0, 1]^2` for the range `[l * min, h * max]` that is best by a criterion.
pub(crate) struct Search<'a> {
    /// What a range costs; less is better.
    pub(crate) criterion: &'a dyn Fn(f32, f32) -> f64,
    /// The range of the fractions 1 and 1.
    pub(crate) widest: (f32, f32),
    /// A symmetric range has one fraction for both ends.
    pub(crate) symmetry: Symmetry,
}

/// A pair of fractions and what it costs.
#[derive(Clone, Copy)]
struct Candidate {
    low: f64,
    high: f64,
    cost: f64,
}

/// Fractions tried first are spaced by 1/32 to 1/16 of themselves when there is one end to choose, by 1/8 to 1/4 when
/// there are two. The refinements below bridge the gaps: the error is smooth apart from small ripples.
const STEPS_PER_OCTAVE_ONE: u32 = 16;
const STEPS_PER_OCTAVE_TWO: u32 = 4;

/// Fractions go down to 2^-9. Less would leave a handful of bins to all 256 integers.
const OCTAVES: i32 = 9;

impl Search<'_> {
    /// The best range found: never worse than the widest one.
    pub(crate) fn best(&self) -> (f32, f32) {
        let best = match self.symmetry {
            Symmetry::Symmetric => self.one_end(|f| (f, f)),
            Symmetry::Asymmetric if self.widest.0 == 0.0 => self.one_end(|f| (1.0, f)),
            Symmetry::Asymmetric if self.widest.1 == 0.0 => self.one_end(|f| (f, 1.0)),
            Symmetry::Asymmetric => self.two_ends(),
        };
        self.range(best.low, best.high)
    }

    fn range(&self, low: f64, high: f64) -> (f32, f32) {
        let (min, max) = self.widest;
        ((f64::from(min) * low) as f32, (f64::from(max) * high) as f32)
    }

    fn try_at(&self, low: f64, high: f64) -> Candidate {
        let (min, max) = self.range(low, high);
        Candidate { low, high, cost: (self.criterion)(min, max) }
    }

    /// The wider range stays where a narrower one is no better.
    fn keep_better(&self, best: &mut Candidate, low: f64, high: f64) {
        let candidate = self.try_at(low, high);
        if candidate.cost < best.cost {
            *best = candidate;
        }
    }

    /// Searches over one fraction; `ends` makes it the fractions of both ends.
    fn one_end(&self, ends: impl Fn(f64) -> (f64, f64)) -> Candidate {
        let mut best = self.try_at(1.0, 1.0);
        let mut visit = |fraction: f64| {
            let (low, high) = ends(fraction);
            self.keep_better(&mut best, low, high);
            // The end that is not searched stays at 1.
            best.low.min(best.high)
        };
        let mut centre = 1.0;
        for fraction in octave_grid(STEPS_PER_OCTAVE_ONE) {
            centre = visit(fraction);
        }
        let mut spacing = centre / f64::from(STEPS_PER_OCTAVE_ONE);
        for _ in 0..3 {
            spacing /= 4.0;
            let around = centre;
            for i in neighbours() {
                centre = visit((around + i * spacing).min(1.0));
            }
        }
        best
    }

    fn two_ends(&self) -> Candidate {
        let mut best = self.try_at(1.0, 1.0);
        let grid: Vec<f64> = octave_grid(STEPS_PER_OCTAVE_TWO).chain([0.0]).collect();
        for &low in &grid {
            for &high in &grid {
                self.keep_better(&mut best, low, high);
            }
        }
        // One end after the other, at a spacing that shrinks once neither gains.
        let mut spacing = 1.0 / f64::from(STEPS_PER_OCTAVE_TWO);
        for _ in 0..5 {
            spacing /= 3.0;
            for _ in 0..4 {
                let before = best.cost;
                let centre = best;
                for i in neighbours() {
                    self.keep_better(&mut best, (centre.low * (1.0 + i * spacing)).min(1.0), centre.high);
                }
                let centre = best;
                for i in neighbours() {
                    self.keep_better(&mut best, centre.low, (centre.high * (1.0 + i * spacing)).min(1.0));
                }
                // Both together: the valley of equal scales runs along the diagonal.
                let centre = best;
                for i in neighbours() {
                    let factor = 1.0 + i * spacing;
                    self.keep_better(
                        &mut best,
                        (centre.low * factor).min(1.0),
                        (centre.high * factor).min(1.0),
                    );
                }
                if best.cost >= before {
                    break;
                }
            }
        }
        best
    }
}

/// Fractions from 1 down to `2^-OCTAVES`, evenly spaced within each octave. All are exact in binary, so that no
/// platform's `pow` decides a range.
fn octave_grid(steps: u32) -> impl Iterator<Item = f64> {
    (0..OCTAVES).flat_map(move |octave| {
        let top = 1.0 / (1u64 << octave) as f64;
        (0..steps).map(move |i| top * (1.0 - f64::from(i) / f64::from(2 * steps)))
    })
}

/// Four points on each side, in units of the spacing.
fn neighbours() -> impl Iterator<Item = f64> {
    [4.0, 3.0, 2.0, 1.0, -1.0, -2.0, -3.0, -4.0].into_iter()
}
