//! What attention knows of positions beside the residual stream: rotations and learnt biases.

use zeropoint_formats::Checkpoint;

use crate::ModelError;
use crate::read::read_finite;
use crate::spec::{Positions, RelativeBias, Rotary, RotaryScaling, Tower};

/// The values of a [`RelativeBias`].
#[derive(Debug, Clone)]
pub struct BiasTable {
    spec: RelativeBias,
    heads: usize,
    /// `[buckets, heads]`.
    values: Vec<f32>,
}

impl BiasTable {
    /// Reads the values, of which every one is finite.
    pub fn read(spec: &RelativeBias, checkpoint: &Checkpoint) -> Result<Self, ModelError> {
        let values = read_finite(checkpoint, &spec.tensor)?;
        Ok(Self { spec: spec.clone(), heads: values.len() / spec.buckets, values })
    }

    /// For each head the bias of the distances `-(length - 1)..length`, key minus query.
    fn by_distance(&self, length: usize) -> Vec<Vec<f32>> {
        let buckets: Vec<usize> =
            (0..2 * length - 1).map(|i| self.spec.bucket(i as i64 - (length as i64 - 1))).collect();
        let of_head = |head| buckets.iter().map(|bucket| self.values[bucket * self.heads + head]).collect();
        (0..self.heads).map(of_head).collect()
    }
}

impl RelativeBias {
    /// The bucket of a distance, key minus query: exact up to a quarter of the buckets, then logarithmic up to
    /// `max_distance`; the upper half of the buckets is for keys that come later.
    pub(crate) fn bucket(&self, distance: i64) -> usize {
        let half = self.buckets / 2;
        let exact = half / 2;
        let side = if distance > 0 { half } else { 0 };
        let far = distance.unsigned_abs() as usize;
        if far < exact {
            return side + far;
        }
        // In f32 as the reference computes it, since the quotient is cut to a whole number.
        let octaves = (far as f32 / exact as f32).ln() / (self.max_distance as f32 / exact as f32).ln();
        side + (exact + (octaves * (half - exact) as f32) as usize).min(half - 1)
    }
}

/// Rotations and biases of a tower for sequences up to some length.
#[derive(Debug, Clone, Default)]
pub struct PositionTables {
    longest: usize,
    /// For each kind that occurs.
    rotations: Vec<Rotation>,
    /// For each head by distance, `-(longest - 1)` first; none where the tower has no such bias.
    biases: Vec<Vec<f32>>,
}

/// Cosines and sines of one kind's angles.
#[derive(Debug, Clone)]
pub struct Rotation {
    rotary: Rotary,
    /// Half of the channels that turn.
    half: usize,
    /// `[longest, half]`, cosine and sine.
    turns: Vec<(f32, f32)>,
    /// The same for sequences of more than so many tokens, where those turn otherwise.
    longer: Option<(usize, Vec<(f32, f32)>)>,
}

impl PositionTables {
    /// For sequences of up to `longest` tokens.
    pub fn new(tower: &Tower, bias: Option<&BiasTable>, longest: usize) -> Self {
        let mut rotations: Vec<Rotation> = Vec::new();
        for spec in tower.blocks.iter().map(|block| &block.attention) {
            if let Positions::Rotary(rotary) = &spec.positions
                && rotations.iter().all(|known| known.rotary != *rotary)
            {
                rotations.push(Rotation::new(rotary, longest));
            }
        }
        let biases = bias.filter(|_| longest > 0).map(|bias| bias.by_distance(longest)).unwrap_or_default();
        Self { longest, rotations, biases }
    }

    /// Tokens of the longest sequence that they serve.
    pub fn longest(&self) -> usize {
        self.longest
    }

    /// The rotations of a kind that a block of the tower has.
    pub fn rotation(&self, rotary: &Rotary) -> Option<&Rotation> {
        self.rotations.iter().find(|known| known.rotary == *rotary)
    }

    /// What is added to the scores of a head in a sequence of so many tokens, by distance; `None` where nothing is.
    pub fn bias(&self, positions: &Positions, head: usize, tokens: usize) -> Option<&[f32]> {
        if *positions != Positions::RelativeBias {
            return None;
        }
        let by_distance = self.biases.get(head)?;
        Some(&by_distance[self.longest - tokens..self.longest + tokens - 1])
    }
}

impl Rotation {
    fn new(rotary: &Rotary, longest: usize) -> Self {
        let turns = |tokens: usize| -> Vec<(f32, f32)> {
            let (frequencies, factor) = rotary.frequencies(tokens);
            (0..longest)
                .flat_map(|position| frequencies.iter().map(move |f| position as f32 * f))
                .map(|angle| (angle.cos() * factor, angle.sin() * factor))
                .collect()
        };
        let longer = match rotary.scaling {
            RotaryScaling::Long { original, .. } if longest > original => Some((original, turns(longest))),
            _ => None,
        };
        Self { rotary: rotary.clone(), half: rotary.channels / 2, turns: turns(0), longer }
    }

    /// Turns the heads in `row`, queries or keys of one token of which each begins `stride` values after the one before, by
    /// the token's place in its sequence of so many tokens.
    pub fn turn(&self, place: usize, tokens: usize, row: &mut [f32], stride: usize) {
        let turns = match &self.longer {
            Some((original, turns)) if tokens > *original => turns,
            _ => &self.turns,
        };
        let turns = &turns[place * self.half..(place + 1) * self.half];
        for head in row.chunks_mut(stride) {
            let (low, high) = head[..2 * self.half].split_at_mut(self.half);
            for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(turns) {
                (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
            }
        }
    }
}

impl Rotary {
    /// Radians a token of each pair of channels in a sequence of so many tokens, and the factor on cosines and sines.
    ///
    /// In f32 as the reference computes them: far positions turn by the rounded frequency's multiple.
    fn frequencies(&self, tokens: usize) -> (Vec<f32>, f32) {
        let pairs = 0..self.channels / 2;
        let period = |i: usize| self.theta.powf((2 * i) as f32 / self.channels as f32);
        match &self.scaling {
            RotaryScaling::None => (pairs.map(|i| 1.0 / period(i)).collect(), 1.0),
            RotaryScaling::Linear { factor } => (pairs.map(|i| 1.0 / period(i) / factor).collect(), 1.0),
            RotaryScaling::Llama3 { factor, low, high, original } => {
                let stretched = |frequency: f32| {
                    let length = 2.0 * std::f32::consts::PI / frequency;
                    if length < original / high {
                        frequency
                    } else if length > original / low {
                        frequency / factor
                    } else {
                        let kept = (original / length - low) / (high - low);
                        (1.0 - kept) * (frequency / factor) + kept * frequency
                    }
                };
                (pairs.map(|i| stretched(1.0 / period(i))).collect(), 1.0)
            }
            RotaryScaling::Yarn { factor, ramp: [low, high], attention } => {
                let stretched = |i: usize| {
                    let kept = 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
                    1.0 / (factor * period(i)) * (1.0 - kept) + 1.0 / period(i) * kept
                };
                (pairs.map(stretched).collect(), *attention)
            }
            RotaryScaling::Long { short, long, original, attention } => {
                let factors = if tokens > *original { long } else { short };
                (pairs.zip(factors).map(|(i, factor)| 1.0 / (factor * period(i))).collect(), *attention)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mpnet() -> RelativeBias {
        RelativeBias { tensor: String::new(), buckets: 32, max_distance: 128 }
    }

    #[test]
    fn near_distances_have_buckets_of_their_own_and_far_ones_share() {
        let bias = mpnet();
        for (distance, bucket) in [
            (0, 0),
            (-1, 1),
            (-7, 7),
            (-8, 8),
            (-11, 8),
            (-12, 9),
            (-16, 10),
            (-127, 15),
            (-128, 15),
            (-5000, 15),
            (1, 17),
            (7, 23),
            (8, 24),
            (90, 30),
            (91, 31),
            (5000, 31),
        ] {
            assert_eq!(bias.bucket(distance), bucket, "{distance}");
        }
    }

    fn rotary(head_dim: usize, longest: usize) -> PositionTables {
        let rotations = vec![Rotation::new(&Rotary::plain(10_000.0, head_dim), longest)];
        PositionTables { longest, rotations, biases: Vec::new() }
    }

    #[test]
    fn rotation_keeps_lengths_and_depends_on_the_difference_of_positions_alone() {
        let x: Vec<f32> = (0..8).map(|i| (i as f32 * 0.7).sin()).collect();
        let y: Vec<f32> = (0..8).map(|i| (i as f32 * 1.3).cos()).collect();
        let tables = rotary(4, 106);
        let turned = |v: &[f32], place: usize| -> Vec<f32> {
            let mut row = v.to_vec();
            tables.rotation(&Rotary::plain(10_000.0, 4)).unwrap().turn(place, 106, &mut row, 4);
            row
        };
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        assert_eq!(turned(&x, 0), x);
        assert!((dot(&turned(&x, 9), &turned(&x, 9)) - dot(&x, &x)).abs() < 1e-5);
        let far = dot(&turned(&x, 105), &turned(&y, 102));
        assert!((dot(&turned(&x, 3), &y) - far).abs() < 1e-4);
        assert!((dot(&turned(&x, 4), &y) - far).abs() > 1e-2);
    }

    #[test]
    fn only_the_first_channels_of_a_head_turn() {
        let mut row: Vec<f32> = (1..13).map(|i| i as f32).collect();
        Rotation::new(&Rotary::plain(10_000.0, 4), 9).turn(8, 9, &mut row, 6);
        for head in 0..2 {
            assert_eq!(row[head * 6 + 4..head * 6 + 6], [(head * 6 + 5) as f32, (head * 6 + 6) as f32]);
            assert!((0..4).all(|i| row[head * 6 + i] != (head * 6 + i + 1) as f32));
        }
    }

    #[test]
    fn frequencies_of_long_sequences_are_their_own() {
        let scaling =
            RotaryScaling::Long { short: vec![1.0, 2.0], long: vec![4.0, 8.0], original: 5, attention: 1.5 };
        let rotation = Rotation::new(&Rotary { theta: 100.0, channels: 4, scaling }, 9);
        let turned = |tokens: usize| {
            let mut row = [1.0, 1.0, 0.0, 0.0];
            rotation.turn(3, tokens, &mut row, 4);
            row
        };
        let expected = |[a, b]: [f32; 2]| [a.cos(), b.cos(), a.sin(), b.sin()].map(|v| v * 1.5);
        assert_eq!(turned(5), expected([3.0, 3.0 * (1.0 / 20.0)]));
        assert_eq!(turned(6), expected([3.0 * 0.25, 3.0 * (1.0 / 80.0)]));
    }

    #[test]
    fn the_bias_of_a_short_sequence_is_the_middle_of_a_long_ones() {
        let values = (0..64).map(|i| i as f32).collect();
        let bias = BiasTable { spec: mpnet(), heads: 2, values };
        let tables =
            |longest| PositionTables { longest, rotations: Vec::new(), biases: bias.by_distance(longest) };
        let (long, short) = (tables(40), tables(7));
        for head in 0..2 {
            let found = long.bias(&Positions::RelativeBias, head, 7).unwrap();
            assert_eq!(found.len(), 13);
            assert_eq!(Some(found), short.bias(&Positions::RelativeBias, head, 7));
        }
        assert_eq!(long.bias(&Positions::Embedded, 0, 7), None);
    }
}
