//! Scaling of 8-bit images, as Pillow does it (`Resample.c` and, for the nearest pixel, `Geometry.c`): a filter as wide as
//! the scaling asks for, in whole numbers, along the rows and along the columns, rounded to 8 bits after each.

use super::Rgb;

/// The filters of Pillow that image processors name by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// Pillow's `Image.Resampling`.
    pub(crate) fn from_number(number: u64) -> Option<Self> {
        [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming]
            .get(usize::try_from(number).ok()?)
            .copied()
    }

    /// Half its width in pixels of the larger image.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| {
            let x = x * std::f64::consts::PI;
            if x == 0.0 { 1.0 } else { x.sin() / x }
        };
        let far = x.abs();
        match self {
            Self::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Self::Bilinear => (1.0 - far).max(0.0),
            Self::Hamming if far == 0.0 => 1.0,
            Self::Hamming if far < 1.0 => sinc(far) * (0.54 + 0.46 * (far * std::f64::consts::PI).cos()),
            // Keys' cubic convolution with a = -0.5.
            Self::Bicubic if far < 1.0 => ((1.5 * far) - 2.5) * far * far + 1.0,
            Self::Bicubic if far < 2.0 => (((far - 5.0) * far + 8.0) * far - 4.0) * -0.5,
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            _ => 0.0,
        }
    }
}

/// Bits after the point of a coefficient: 8 of a sum of 32 are the value's, 2 are room for overshoot.
const PRECISION: u32 = 32 - 8 - 2;

/// What goes into one pixel: the first it is made of, and the coefficient of each.
struct Window {
    first: usize,
    coefficients: Vec<i32>,
}

fn windows(from: usize, to: usize, filter: Filter) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let filter_scale = scale.max(1.0);
    let support = filter.support() * filter_scale;
    (0..to)
        .map(|at| {
            let centre = (at as f64 + 0.5) * scale;
            let first = ((centre - support + 0.5) as i64).max(0) as usize;
            let last = ((centre + support + 0.5) as usize).min(from);
            let weight = |i: usize| filter.weight((i as f64 - centre + 0.5) * (1.0 / filter_scale));
            let weights: Vec<f64> = (first..last).map(weight).collect();
            let sum: f64 = weights.iter().sum();
            let fixed = |weight: &f64| {
                let weight = if sum == 0.0 { *weight } else { weight / sum };
                let scaled = weight * f64::from(1 << PRECISION);
                (if weight < 0.0 { scaled - 0.5 } else { scaled + 0.5 }) as i32
            };
            Window { first, coefficients: weights.iter().map(fixed).collect() }
        })
        .collect()
}

/// The pixel nearest to the centre of each; the reference adds the steps up.
fn nearest(from: usize, to: usize) -> Vec<usize> {
    let step = from as f64 / to as f64;
    let mut centre = step * 0.5;
    (0..to)
        .map(|_| {
            let at = (centre as usize).min(from - 1);
            centre += step;
            at
        })
        .collect()
}

/// An image of another size; both sizes are at least 1.
pub(crate) fn resize(image: &Rgb, width: usize, height: usize, filter: Filter) -> Rgb {
    if (width, height) == (image.width, image.height) {
        return image.clone();
    }
    if filter == Filter::Nearest {
        let (columns, rows) = (nearest(image.width, width), nearest(image.height, height));
        let pixel = |y: usize, x: usize| {
            let at = (y * image.width + x) * 3;
            [image.values[at], image.values[at + 1], image.values[at + 2]]
        };
        let values = rows.iter().flat_map(|y| columns.iter().flat_map(move |x| pixel(*y, *x))).collect();
        return Rgb { width, height, values };
    }
    if columns_first(image, width, height) {
        scale_rows(&scale_columns(image, height, filter), width, filter)
    } else {
        scale_columns(&scale_rows(image, width, filter), height, filter)
    }
}

/// Whether the height shrinks by more than twice the pixels that the width does. Pillow 13 then scales columns first, which
/// is faster; earlier versions always scaled rows first. The roundings, and what is cut off at black and white in between,
/// make the two differ.
fn columns_first(image: &Rgb, width: usize, height: usize) -> bool {
    let shrinks = |from: usize, to: usize| from as i64 - to as i64;
    let by = shrinks(image.height, height);
    by > 0 && by > 2 * shrinks(image.width, width)
}

fn scale_rows(image: &Rgb, width: usize, filter: Filter) -> Rgb {
    if width == image.width {
        return image.clone();
    }
    let windows = windows(image.width, width, filter);
    let mut values = Vec::with_capacity(image.height * width * 3);
    for row in image.values.chunks_exact(image.width * 3) {
        for window in &windows {
            let mut sums = [HALF; 3];
            let pixels = row[window.first * 3..].chunks_exact(3);
            for (coefficient, pixel) in window.coefficients.iter().zip(pixels) {
                for (sum, value) in sums.iter_mut().zip(pixel) {
                    *sum += i32::from(*value) * coefficient;
                }
            }
            values.extend(sums.map(to_8_bits));
        }
    }
    Rgb { width, values, ..*image }
}

fn scale_columns(image: &Rgb, height: usize, filter: Filter) -> Rgb {
    if height == image.height {
        return image.clone();
    }
    let windows = windows(image.height, height, filter);
    let stride = image.width * 3;
    let mut values = Vec::with_capacity(windows.len() * stride);
    let mut sums = vec![HALF; stride];
    for window in &windows {
        sums.fill(HALF);
        let rows = image.values[window.first * stride..].chunks_exact(stride);
        for (coefficient, row) in window.coefficients.iter().zip(rows) {
            for (sum, value) in sums.iter_mut().zip(row) {
                *sum += i32::from(*value) * coefficient;
            }
        }
        values.extend(sums.iter().copied().map(to_8_bits));
    }
    Rgb { height, values, ..*image }
}

/// One half, for rounding.
const HALF: i32 = 1 << (PRECISION - 1);

fn to_8_bits(sum: i32) -> u8 {
    (sum >> PRECISION).clamp(0, 255) as u8
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: [Filter; 6] =
        [Filter::Nearest, Filter::Lanczos, Filter::Bilinear, Filter::Bicubic, Filter::Box, Filter::Hamming];

    #[test]
    fn numbers_are_those_of_pillow() {
        assert_eq!([0, 1, 2, 3, 4, 5].map(Filter::from_number), [0, 1, 2, 3, 4, 5].map(|i| Some(ALL[i])));
        assert_eq!(Filter::from_number(6), None);
    }

    #[test]
    fn columns_come_first_where_the_height_shrinks_by_more_than_twice_as_much() {
        struct Case([usize; 2], [usize; 2], bool);
        // Found with Pillow 13.0.0 on images of noise: width and height before and after.
        for Case([width, height], [to_width, to_height], expected) in [
            Case([40, 40], [35, 30], false),
            Case([40, 40], [35, 29], true),
            Case([300, 400], [200, 200], false),
            Case([300, 400], [200, 199], true),
            Case([11, 56], [60, 54], true),
            Case([12, 40], [58, 55], false),
            Case([41, 10], [24, 5], false),
        ] {
            let image = Rgb { width, height, values: Vec::new() };
            assert_eq!(columns_first(&image, to_width, to_height), expected, "{width} x {height}");
        }
    }

    proptest! {
        #[test]
        fn one_colour_stays_that_colour(
            (width, height) in (1..40usize, 1..40usize),
            (to_width, to_height) in (1..40usize, 1..40usize),
            colour in any::<[u8; 3]>(),
            filter in prop::sample::select(&ALL[..]),
        ) {
            let image = Rgb { width, height, values: colour.repeat(width * height) };
            let resized = resize(&image, to_width, to_height, filter);
            prop_assert_eq!((resized.width, resized.height), (to_width, to_height));
            prop_assert_eq!(resized.values, colour.repeat(to_width * to_height));
        }

        #[test]
        fn columns_are_scaled_as_rows_are(
            values in prop::collection::vec(any::<[u8; 3]>(), 1..30),
            to in 1..40usize,
            filter in prop::sample::select(&ALL[..]),
        ) {
            let length = values.len();
            let values = values.concat();
            let row = resize(&Rgb { width: length, height: 1, values: values.clone() }, to, 1, filter);
            let column = resize(&Rgb { width: 1, height: length, values }, 1, to, filter);
            prop_assert_eq!(row.values, column.values);
        }
    }
}
