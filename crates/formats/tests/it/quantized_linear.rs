//! The tensors of a quantised Linear: written, read back, read as other programs write them, and refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{collections::BTreeMap, path::Path};

use zeropoint_core::{
    ActivationMode::{Dynamic, Static},
    Granularity::{self, Channel, Tensor},
    QuantParams, Scheme,
    Symmetry::{Asymmetric, Symmetric},
    WeightBits,
};
use zeropoint_formats::{
    Checkpoint, CheckpointWriter, Dtype, QuantizedLinear, TensorSpec, linear_tensor_bytes,
    linear_tensor_specs, read_linear,
    safetensors::element::{bf16_bytes, f16_bytes, f32_bytes},
};

use crate::schemes::{scheme, weight_only_schemes};

#[test]
fn tensors_of_a_linear_are_those_of_the_table() {
    let weight = ("p.weight", Dtype::I8, vec![3, 5]);
    let per_channel = ("p.weight_scale", Dtype::F32, vec![3, 1]);
    let per_tensor = ("p.weight_scale", Dtype::F32, vec![1]);
    let input_scale = ("p.input_scale", Dtype::F32, vec![1]);
    let zero_point = ("p.input_zero_point", Dtype::I8, vec![1]);
    let cases = [
        (scheme(Channel, Dynamic, Symmetric), vec![&weight, &per_channel]),
        (scheme(Channel, Dynamic, Asymmetric), vec![&weight, &per_channel]),
        (scheme(Tensor, Dynamic, Symmetric), vec![&weight, &per_tensor]),
        (scheme(Channel, Static, Symmetric), vec![&weight, &per_channel, &input_scale]),
        (scheme(Channel, Static, Asymmetric), vec![&weight, &per_channel, &input_scale, &zero_point]),
        (scheme(Tensor, Static, Asymmetric), vec![&weight, &per_tensor, &input_scale, &zero_point]),
    ];
    for (scheme, expected) in cases {
        let expected: Vec<TensorSpec> = expected
            .into_iter()
            .map(|(name, dtype, shape)| TensorSpec::new(*name, *dtype, shape.clone()))
            .collect();
        assert_eq!(linear_tensor_specs("p", 3, 5, scheme), expected, "{scheme}");
    }
    for (bits, granularity, words, scales) in [
        (WeightBits::Four, Granularity::Group(5), 2, vec![3, 2]),
        (WeightBits::Eight, Granularity::Group(2), 3, vec![3, 5]),
        (WeightBits::Eight, Channel, 3, vec![3, 1]),
        (WeightBits::Four, Tensor, 2, vec![1]),
    ] {
        let expected = [
            TensorSpec::new("p.weight_packed", Dtype::I32, [3, words]),
            TensorSpec::new("p.weight_scale", Dtype::F32, scales),
            TensorSpec::new("p.weight_shape", Dtype::I64, [2]),
        ];
        let scheme = Scheme::weight_only(bits, granularity);
        assert_eq!(linear_tensor_specs("p", 3, 10, scheme), expected, "{scheme}");
    }
}

fn linear(scheme: Scheme) -> QuantizedLinear {
    let asymmetric = scheme.activations.is_some_and(|activations| activations.symmetry == Asymmetric);
    let zero_point = if asymmetric { -7 } else { 0 };
    let (outputs, inputs) = if scheme.is_weight_only() { (2, 12) } else { (2, 3) };
    let values =
        if scheme.weights.bits == WeightBits::Four { [-8, -1, 0, 1, 2, 7] } else { [-128, -1, 0, 1, 2, 127] };
    let scales = outputs * scheme.weights.granularity.groups(inputs).unwrap();
    QuantizedLinear {
        weight: values.into_iter().cycle().take(outputs * inputs).collect(),
        outputs,
        inputs,
        weight_scales: match scheme.weights.granularity {
            Tensor => vec![0.5; scales],
            _ => (1..).map(|i| 0.5 / i as f32).take(scales).collect(),
        },
        column_groups: None,
        input: scheme.is_static().then_some(QuantParams { scale: 0.125, zero_point }),
    }
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(scheme: Scheme) -> Tensors {
    let linear = linear(scheme);
    let bytes = linear_tensor_bytes("p", &linear, scheme).unwrap();
    let specs = linear_tensor_specs("p", linear.outputs, linear.inputs, scheme);
    assert_eq!(bytes.len(), specs.len());
    specs
        .into_iter()
        .zip(bytes)
        .map(|(spec, (name, bytes))| {
            assert_eq!(spec.name, name);
            assert_eq!(spec.bytes(), bytes.len() as u64);
            (spec.name, (spec.dtype, spec.shape, bytes.into_owned()))
        })
        .collect()
}

fn checkpoint(dir: &Path, tensors: &Tensors) -> Checkpoint {
    let specs = tensors.iter().map(|(name, (dtype, shape, _))| TensorSpec::new(name, *dtype, shape.clone()));
    let mut writer = CheckpointWriter::create(dir, specs.collect(), u64::MAX).unwrap();
    for (name, (_, _, bytes)) in tensors {
        writer.write(name, bytes).unwrap();
    }
    writer.finish().unwrap();
    Checkpoint::open(dir).unwrap()
}

#[test]
fn a_linear_survives_the_round_trip_under_every_scheme() {
    for granularity in [Channel, Tensor] {
        for mode in [Static, Dynamic] {
            for symmetry in [Symmetric, Asymmetric] {
                let scheme = scheme(granularity, mode, symmetry);
                let dir = tempfile::tempdir().unwrap();
                let mut tensors = tensors(scheme);
                // Neighbours and a bias do not disturb.
                tensors.insert("p.bias".to_owned(), (Dtype::BF16, vec![2], vec![0; 4]));
                tensors.insert("p2.weight_zero_point".to_owned(), (Dtype::I8, vec![1], vec![0]));
                let read = read_linear(&checkpoint(dir.path(), &tensors), "p", scheme).unwrap();
                assert_eq!(read, linear(scheme), "{scheme}");
            }
        }
    }
}

#[test]
fn a_weight_only_linear_survives_the_round_trip_under_every_scheme() {
    for scheme in weight_only_schemes() {
        let dir = tempfile::tempdir().unwrap();
        let read = read_linear(&checkpoint(dir.path(), &tensors(scheme)), "p", scheme).unwrap();
        assert_eq!(read, linear(scheme), "{scheme}");
    }
}

/// Reads the Linear of a scheme after a change of its tensors.
fn read_changed(scheme: Scheme, change: impl FnOnce(&mut Tensors)) -> Result<QuantizedLinear, String> {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tensors(scheme);
    change(&mut tensors);
    read_linear(&checkpoint(dir.path(), &tensors), "p", scheme).map_err(|error| error.to_string())
}

fn i32_bytes(values: &[i32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn i64_bytes(values: &[i64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// A tensor as it is stored: type, shape, bytes.
type Stored = (Dtype, Vec<usize>, Vec<u8>);

#[test]
fn what_other_programs_write_beside_the_usual_is_read() {
    let int8 = scheme(Channel, Dynamic, Symmetric);
    let fixed = scheme(Tensor, Static, Symmetric);
    let skewed = scheme(Channel, Static, Asymmetric);
    let four = Scheme::weight_only(WeightBits::Four, Granularity::Group(4));
    let whole = Scheme::weight_only(WeightBits::Eight, Channel);
    let scales = |scheme| linear(scheme).weight_scales;
    let cases: [(&str, Scheme, &str, Stored); 13] = [
        ("bf16 scales", int8, "weight_scale", (Dtype::BF16, vec![2, 1], bf16_bytes(&scales(int8)))),
        ("f16 scales", int8, "weight_scale", (Dtype::F16, vec![2, 1], f16_bytes(&scales(int8)))),
        ("a vector of scales", int8, "weight_scale", (Dtype::F32, vec![2], f32_bytes(&scales(int8)))),
        ("a scale without dimensions", fixed, "weight_scale", (Dtype::F32, vec![], f32_bytes(&[0.5]))),
        (
            "an input scale without dimensions",
            fixed,
            "input_scale",
            (Dtype::BF16, vec![], bf16_bytes(&[0.125])),
        ),
        ("a zero point without dimensions", skewed, "input_zero_point", (Dtype::I8, vec![], vec![0xf9])),
        ("zero points of weights", int8, "weight_zero_point", (Dtype::I8, vec![2, 1], vec![0; 2])),
        ("a zero point of symmetric inputs", fixed, "input_zero_point", (Dtype::I8, vec![1], vec![0])),
        ("zero points of groups", four, "weight_zero_point", (Dtype::I8, vec![2, 3], vec![0; 6])),
        (
            "groups in order",
            four,
            "weight_g_idx",
            (Dtype::I32, vec![12], i32_bytes(&[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2])),
        ),
        (
            "groups that nothing has filled in",
            four,
            "weight_g_idx",
            (Dtype::I32, vec![12], i32_bytes(&[-1; 12])),
        ),
        ("one group", whole, "weight_g_idx", (Dtype::I32, vec![12], i32_bytes(&[0; 12]))),
        ("a shape in 32 bits", four, "weight_shape", (Dtype::I32, vec![2], i32_bytes(&[2, 12]))),
    ];
    for (what, scheme, suffix, tensor) in cases {
        let read = read_changed(scheme, |tensors| drop(tensors.insert(format!("p.{suffix}"), tensor)));
        assert_eq!(read, Ok(linear(scheme)), "{what}");
    }
}

#[test]
fn groups_of_inputs_that_are_no_neighbours_are_read() {
    let scheme = Scheme::weight_only(WeightBits::Eight, Granularity::Group(4));
    let groups = [2, 0, 1, 1, 0, 2, 2, 0, 1, 0, 1, 2];
    let read = read_changed(scheme, |tensors| {
        tensors.insert("p.weight_g_idx".to_owned(), (Dtype::I32, vec![12], i32_bytes(&groups)));
    });
    let column_groups = Some(groups.map(|group| group as u32).to_vec());
    assert_eq!(read.unwrap(), QuantizedLinear { column_groups, ..linear(scheme) });
}

#[test]
fn a_packed_linear_that_contradicts_its_scheme_is_refused() {
    let scheme = Scheme::weight_only(WeightBits::Four, Granularity::Group(4));
    let shape = |sizes: [i64; 2]| Some((Dtype::I64, vec![2], i64_bytes(&sizes)));
    let packed = |shape: Vec<usize>| {
        let bytes = 4 * shape.iter().product::<usize>();
        Some((Dtype::I32, shape, vec![0; bytes]))
    };
    let groups = |values: &[i32]| Some((Dtype::I32, vec![values.len()], i32_bytes(values)));
    let cases = [
        ("weight_packed", None, "no tensor `p.weight_packed`"),
        ("weight_packed", Some((Dtype::I8, vec![2, 8], vec![0; 16])), "dtype I8 where I32"),
        ("weight_packed", packed(vec![4]), "has shape [4] where [outputs, words] without a zero"),
        ("weight_packed", packed(vec![0, 2]), "without a zero"),
        (
            "weight_packed",
            packed(vec![2, 3]),
            "a `weight_shape` of [2, 12], which a `weight_packed` of [2, 3] words does not hold in int4",
        ),
        ("weight_packed", packed(vec![3, 2]), "which a `weight_packed` of [3, 2] words does not hold"),
        ("weight_shape", None, "no tensor `p.weight_shape`"),
        ("weight_shape", Some((Dtype::F32, vec![2], vec![0; 8])), "dtype F32 where I64 or I32"),
        ("weight_shape", Some((Dtype::I64, vec![3], vec![0; 24])), "shape [3] where [2]"),
        ("weight_shape", shape([2, 24]), "a `weight_shape` of [2, 24], which"),
        ("weight_shape", shape([1, 12]), "a `weight_shape` of [1, 12], which"),
        ("weight_shape", shape([2, i64::MAX]), "which a `weight_packed` of [2, 2] words does not hold"),
        ("weight_shape", shape([2, -12]), "a bad `weight_shape`"),
        ("weight_shape", shape([0, 12]), "a bad `weight_shape`"),
        (
            "weight_shape",
            shape([2, 13]),
            "has 13 inputs, which are no whole groups of its scheme (int4 per-group of 4",
        ),
        ("weight_scale", None, "no tensor `p.weight_scale`"),
        ("weight_scale", Some((Dtype::F32, vec![2, 1], f32_bytes(&[1.0; 2]))), "where [2, 3] is needed"),
        ("weight_scale", Some((Dtype::F32, vec![3, 2], f32_bytes(&[1.0; 6]))), "where [2, 3] is needed"),
        ("weight_scale", Some((Dtype::F32, vec![2, 3], f32_bytes(&[0.0; 6]))), "scale 0 is 0"),
        ("weight_scale", Some((Dtype::BF16, vec![2, 3], [1, 0].repeat(6))), "has a bad `weight_scale`"),
        (
            "weight_zero_point",
            Some((Dtype::I8, vec![2, 3], vec![0, 0, 0, 1, 0, 0])),
            "a `weight_zero_point` that is not 0",
        ),
        ("weight_zero_point", Some((Dtype::I32, vec![1, 3], vec![0; 12])), "has shape [1, 3] where [2, 3]"),
        ("weight_zero_point", Some((Dtype::F32, vec![2, 3], vec![0; 24])), "dtype F32 where I8, I32 or I64"),
        ("weight_g_idx", groups(&[0; 11]), "has shape [11] where [12]"),
        ("weight_g_idx", groups(&[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 3]), "group 3 where there are 3"),
        ("weight_g_idx", groups(&[0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, -2]), "group -2 where there are 3"),
        (
            "weight_g_idx",
            groups(&[0, 0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2]),
            "group 0 has 5 inputs where each has 4",
        ),
        (
            "weight",
            Some((Dtype::I8, vec![2, 12], vec![0; 24])),
            "a tensor `weight` that its scheme does not account for",
        ),
        (
            "input_scale",
            Some((Dtype::F32, vec![1], f32_bytes(&[1.0]))),
            "a tensor `input_scale` that its scheme",
        ),
    ];
    for (suffix, tensor, expected) in cases {
        let message = read_changed(scheme, |tensors| {
            match tensor {
                Some(tensor) => tensors.insert(format!("p.{suffix}"), tensor),
                None => tensors.remove(&format!("p.{suffix}")),
            };
        });
        let message = message.expect_err(expected);
        assert!(message.contains(expected), "{suffix}: {message}");
    }
}

#[test]
fn a_linear_that_contradicts_its_scheme_is_refused() {
    let full = scheme(Channel, Static, Asymmetric);
    let scales = |values: &[f32]| Some((Dtype::F32, vec![2, 1], f32_bytes(values)));
    let scale = |value: f32| Some((Dtype::F32, vec![1], f32_bytes(&[value])));
    let cases = [
        ("weight", None, "no tensor `p.weight`"),
        ("weight", Some((Dtype::U8, vec![2, 3], vec![0; 6])), "dtype U8 where I8"),
        ("weight", Some((Dtype::I8, vec![6], vec![0; 6])), "shape [6]"),
        ("weight", Some((Dtype::I8, vec![0, 3], vec![])), "without a zero"),
        ("weight_scale", None, "no tensor `p.weight_scale`"),
        ("weight_scale", Some((Dtype::F64, vec![2, 1], vec![1; 16])), "dtype F64"),
        (
            "weight_scale",
            Some((Dtype::F32, vec![1, 2], f32_bytes(&[1.0; 2]))),
            "where [2, 1] or [2] is needed",
        ),
        ("weight_scale", scale(1.0), "where [2, 1] or [2] is needed"),
        ("weight_scale", scales(&[1.0, 0.0]), "scale 1 is 0"),
        ("weight_scale", scales(&[-1.0, 1.0]), "scale 0 is -1"),
        ("weight_scale", scales(&[1.0, f32::NAN]), "scale 1 is NaN"),
        ("weight_scale", scales(&[f32::INFINITY, 1.0]), "scale 0 is inf"),
        ("weight_scale", scales(&[1.0, 1e-40]), "normal"),
        ("input_scale", None, "no tensor `p.input_scale`"),
        ("input_scale", scale(0.0), "bad `input_scale`"),
        ("input_zero_point", None, "no tensor `p.input_zero_point`"),
        ("input_zero_point", Some((Dtype::U8, vec![1], vec![0])), "dtype U8"),
        ("input_zero_point", Some((Dtype::I8, vec![1, 1], vec![0])), "shape [1, 1]"),
        ("weight_zero_point", Some((Dtype::I8, vec![2, 1], vec![0, 1])), "`weight_zero_point` that is not 0"),
        ("weight_g_idx", Some((Dtype::I32, vec![3], vec![0; 12])), "`weight_g_idx`"),
    ];
    for (suffix, tensor, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut tensors = tensors(full);
        match tensor {
            Some(tensor) => tensors.insert(format!("p.{suffix}"), tensor),
            None => tensors.remove(&format!("p.{suffix}")),
        };
        let message = read_linear(&checkpoint(dir.path(), &tensors), "p", full).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains('p'), "{suffix}: {message}");
    }
    // Parameters that a dynamic scheme would silently leave unused.
    let dir = tempfile::tempdir().unwrap();
    let dynamic = scheme(Channel, Dynamic, Symmetric);
    let message = read_linear(&checkpoint(dir.path(), &tensors(full)), "p", dynamic).unwrap_err().to_string();
    assert!(message.contains("`input_scale`"), "{message}");
    let message = read_changed(scheme(Channel, Static, Symmetric), |tensors| {
        tensors.insert("p.input_zero_point".to_owned(), (Dtype::I8, vec![1], vec![3]));
    });
    assert!(message.unwrap_err().contains("has a `input_zero_point` that is not 0"));
}

#[test]
fn a_linear_that_contradicts_itself_is_not_written() {
    let full = scheme(Channel, Static, Symmetric);
    let broken = |change: fn(&mut QuantizedLinear)| {
        let mut linear = linear(full);
        change(&mut linear);
        linear
    };
    let four = Scheme::weight_only(WeightBits::Four, Granularity::Group(4));
    let packed = |change: fn(&mut QuantizedLinear)| {
        let mut linear = linear(four);
        change(&mut linear);
        linear
    };
    let cases = [
        (broken(|l| l.weight.truncate(5)), full, "5 values where [2, 3]"),
        (broken(|l| l.weight_scales.truncate(1)), full, "1 weight scales where 2"),
        (broken(|l| l.weight_scales[1] = f32::NAN), full, "scale 1 is NaN"),
        (broken(|l| l.input = None), full, "calibrate"),
        (broken(|l| l.input = Some(QuantParams { scale: 0.0, zero_point: 0 })), full, "scale 0 is 0"),
        (broken(|l| l.input = Some(QuantParams { scale: 1.0, zero_point: 3 })), full, "zero point is 3"),
        (linear(full), scheme(Tensor, Static, Symmetric), "differ"),
        (linear(full), scheme(Channel, Dynamic, Symmetric), "give none"),
        (linear(full), Scheme::weight_only(WeightBits::Eight, Channel), "stay float; give none"),
        (packed(|l| l.weight[3] = 8), four, "holds 8"),
        (packed(|l| l.weight_scales.truncate(l.weight_scales.len() - 1)), four, "5 weight scales where 6"),
        (
            packed(|_| ()),
            Scheme::weight_only(WeightBits::Four, Granularity::Group(5)),
            "12 inputs are no whole groups",
        ),
        (packed(|l| l.column_groups = Some(vec![0; 12])), four, "not of neighbouring inputs"),
    ];
    for (linear, scheme, expected) in cases {
        let message = linear_tensor_bytes("p", &linear, scheme).unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("`p`"), "{message}");
    }
}
