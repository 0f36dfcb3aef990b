//! Models of which some weights alone are quantised compute what their real values compute, beside INT8 and float Linears.

use candle_core::{Device, Tensor};
use proptest::prelude::*;
use zeropoint_core::{ActivationMode, ActivationScheme, Granularity, Rng, Scheme, Symmetry, WeightBits};
use zeropoint_formats::{Dtype, QuantizedLinear, TensorSpec};
use zeropoint_kernels::{AttentionPrecision, Isa};
use zeropoint_models::{ActivationFn, Model, Outputs};
use zeropoint_runtime::{QuantizedModel, WeightOnlyLinear};

use crate::deployed::{self, Deployed, Tensors, batch, dequantized, open};

const FOUR: Scheme = Scheme::weight_only(WeightBits::Four, Granularity::Group(8));
const EIGHT: Scheme = Scheme::weight_only(WeightBits::Eight, Granularity::Channel);
const INT8: Scheme = Scheme::int8(
    Granularity::Channel,
    ActivationScheme { mode: ActivationMode::Dynamic, symmetry: Symmetry::Asymmetric },
);
const DOWN: &str = "model.layers.1.mlp.down_proj";

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Length of the difference over the length of what is expected.
fn deviation(found: &Outputs, expected: &Outputs) -> f64 {
    let length =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let pairs = found.values.iter().zip(&expected.values).map(|(f, e)| (f64::from(*f), f64::from(*e)));
    length(&mut pairs.clone().map(|(f, e)| f - e)) / length(&mut pairs.map(|(_, e)| e))
}

#[test]
fn a_model_computes_what_its_real_values_compute() {
    let schemes = [
        FOUR,
        EIGHT,
        Scheme::weight_only(WeightBits::Four, Granularity::Channel),
        Scheme::weight_only(WeightBits::Eight, Granularity::Group(4)),
        Scheme::weight_only(WeightBits::Eight, Granularity::Tensor),
    ];
    for fixture in ["llama-causal", "bert-mean", "phi3-causal"] {
        for scheme in schemes {
            let deployed = Deployed::new(fixture, |_| Some(scheme));
            let loaded = deployed.load().unwrap();
            assert_eq!(loaded.quantized_linears(), deployed.linears.len(), "{fixture}, {scheme}");
            assert_eq!(loaded.model().attention_precision(), AttentionPrecision::F32);
            let real = deployed.dequantized();
            let expected = Model::load(&open(real.path())).unwrap();
            let original = Model::load(&open(&deployed::fixture(fixture))).unwrap();
            let batch = batch(loaded.directory());
            let (found, expected) = (loaded.forward(&batch).unwrap(), expected.forward(&batch).unwrap());
            // The same operations but for the order of sums, which moves each by at most 2^-24 * 65 of its products; four such
            // steps follow each other. How far the original is shows that what is compared is not nothing.
            let (apart, quantised) =
                (deviation(&found, &expected), deviation(&expected, &original.forward(&batch).unwrap()));
            assert!(apart < 2f64.powi(-24) * 65.0 * 4.0, "{fixture}, {scheme}: {apart}");
            assert!(quantised > 1e-4, "{fixture}, {scheme}: {quantised}");
        }
    }
}

#[test]
fn a_text_has_the_same_bits_token_by_token_and_on_any_number_of_threads() {
    // The output matrix is packed as well: candle's products, which depend on the number of rows, have no part.
    for scheme in [FOUR, EIGHT] {
        let deployed = Deployed::new("llama-causal", |_| Some(scheme));
        let loaded = deployed.load().unwrap();
        let model = loaded.model();
        let ids: Vec<u32> = (0..40).map(|i| (i * 37 + 5) % 140).collect();
        let whole = model.extend(&ids, &mut model.new_cache().unwrap(), ids.len()).unwrap().values;
        let mut cache = model.new_cache().unwrap();
        let mut single = Vec::new();
        for id in &ids {
            single.extend(model.extend(&[*id], &mut cache, 1).unwrap().values);
        }
        assert_eq!(bits(&single), bits(&whole), "{scheme}");
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let found = pool.install(|| model.extend(&ids, &mut model.new_cache().unwrap(), ids.len()));
            assert_eq!(bits(&found.unwrap().values), bits(&whole), "{scheme}, {threads} threads");
        }
    }
}

/// Of each block's Linears three packed, in two ways, two in INT8 and two float.
fn mixed(path: &str) -> Option<Scheme> {
    match path {
        _ if path.ends_with("q_proj") || path.ends_with("up_proj") => Some(FOUR),
        _ if path.ends_with("k_proj") || path.ends_with("o_proj") => Some(INT8),
        _ if path.ends_with("down_proj") => Some(EIGHT),
        _ => None,
    }
}

#[test]
fn readers_of_one_activation_may_be_packed_and_int8_and_float() {
    let deployed = Deployed::new("llama-causal", mixed);
    let loaded = deployed.load().unwrap();
    assert_eq!(loaded.quantized_linears(), 10);
    assert_eq!(loaded.model().attention_precision(), AttentionPrecision::Bf16);
    let batch = batch(loaded.directory());
    assert!(!loaded.model().has_block_runner(&batch), "the engine is for INT8 alone");
    assert!(loaded.forward(&batch).unwrap().values.iter().all(|value| value.is_finite()));

    // The site alone: each reader as it is where all are like it.
    let alone = |scheme| Deployed::new("llama-causal", move |_| scheme).load().unwrap();
    let (site, input) = {
        let spec = loaded.directory().spec();
        let (_, query) = spec.linear("model.layers.0.self_attn.q_proj").expect("a Linear");
        let x = Tensor::randn(0f32, 1.0, (5, query.inputs), &Device::Cpu).unwrap();
        (query.site.expect("a site"), x)
    };
    let run = |model: &QuantizedModel| -> Vec<Vec<u32>> {
        let outputs = model.model().run_site(site, &input).unwrap();
        outputs.iter().map(|out| bits(&out.flatten_all().unwrap().to_vec1().unwrap())).collect()
    };
    let float = Model::load(&open(&deployed::fixture("llama-causal"))).unwrap();
    let value = float.run_site(site, &input).unwrap()[2].flatten_all().unwrap().to_vec1::<f32>().unwrap();
    assert_eq!(
        run(&loaded),
        [&run(&alone(Some(FOUR)))[0], &run(&alone(Some(INT8)))[1], &bits(&value)].map(Vec::clone)
    );
}

#[test]
fn a_damaged_packed_directory_is_refused() {
    struct Case {
        what: &'static str,
        damage: fn(&mut Tensors, &mut String),
        says: &'static [&'static str],
    }
    fn insert(tensors: &mut Tensors, suffix: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        let name = format!("{DOWN}.{suffix}");
        tensors.insert(name.clone(), (TensorSpec::new(name, dtype, shape), bytes));
    }
    fn swap(config: &mut String, from: &str, to: &str) {
        assert!(config.contains(from), "{from} is not in {config}");
        *config = config.replacen(from, to, 1);
    }
    let cases = [
        Case {
            what: "words that are missing",
            damage: |tensors, _| insert(tensors, "weight_packed", Dtype::I32, &[24, 4], vec![0; 4 * 24 * 4]),
            says: &[
                "down_proj.weight_packed",
                "has shape [24, 4]; [24, 40], as config.json says, is [24, 5] in 4 bits",
            ],
        },
        Case {
            what: "words of bytes",
            damage: |tensors, _| insert(tensors, "weight_packed", Dtype::I8, &[24, 5], vec![0; 24 * 5]),
            says: &["down_proj.weight_packed", "is stored as I8; packed weights are I32"],
        },
        Case {
            what: "words of 8 bits in a scheme of 4",
            damage: |tensors, _| {
                insert(tensors, "weight_packed", Dtype::I32, &[24, 10], vec![0; 4 * 24 * 10]);
            },
            says: &[DOWN, "which a `weight_packed` of [24, 10] words does not hold in int4"],
        },
        Case {
            what: "another shape of as many words",
            damage: |tensors, _| {
                let sizes = [24u64, 39].map(u64::to_le_bytes).concat();
                insert(tensors, "weight_shape", Dtype::I64, &[2], sizes);
            },
            says: &[DOWN, "has 39 inputs, which are no whole groups"],
        },
        Case {
            what: "groups of another size",
            damage: |_, config| swap(config, "\"group_size\":8", "\"group_size\":5"),
            says: &["has 24 inputs, which are no whole groups of its scheme (int4 per-group of 5 symmetric)"],
        },
        Case {
            what: "scales of another group size",
            damage: |_, config| swap(config, "\"group_size\":8", "\"group_size\":4"),
            says: &["weight_scale", "where [24, 6] is needed"],
        },
        Case {
            what: "asymmetric weights",
            damage: |_, config| swap(config, "\"symmetric\":true", "\"symmetric\":false"),
            says: &[
                "weights.symmetric` is false",
                "releases of compressed-tensors differ in how they pack zero points",
            ],
        },
        Case {
            what: "packed weights that config.json leaves float",
            damage: |_, config| swap(config, "\"ignore\":[", &format!("\"ignore\":[\"{DOWN}\",")),
            says: &["down_proj.weight_packed", "dtype I32"],
        },
    ];
    for Case { what, damage, says } in cases {
        let ends = |path: &str| path.starts_with("model.").then_some(FOUR);
        let Err(message) = Deployed::damaged("llama-causal", ends, damage).load() else {
            panic!("{what}: loaded")
        };
        for phrase in says {
            assert!(message.contains(phrase), "{what}: {phrase:?} is not in: {message}");
        }
        assert!(!message.contains('\n'), "{what}: one sentence is expected: {message}");
    }
    let one_group = Scheme::weight_only(WeightBits::Four, Granularity::Channel);
    let narrower = Deployed::damaged(
        "llama-causal",
        |path| (path == DOWN).then_some(one_group),
        |tensors, _| {
            insert(tensors, "weight_shape", Dtype::I64, &[2], [24u64, 39].map(u64::to_le_bytes).concat());
        },
    );
    let Err(message) = narrower.load() else { panic!("a narrower matrix of as many words: loaded") };
    let says =
        "down_proj.weight_packed` is of shape [24, 39] by its `weight_shape`; config.json says [24, 40]";
    assert!(message.contains(says), "{message}");
}

#[test]
fn groups_in_the_order_of_activations_multiply_their_own_inputs() {
    // Scales by the group that `weight_g_idx` names, not by the place.
    let groups: Vec<u32> = (0..40).map(|column| (column * 7 + 3) % 5).collect();
    let deployed = Deployed::damaged(
        "llama-causal",
        |path| (path == DOWN).then_some(FOUR),
        |tensors, _| {
            let name = format!("{DOWN}.weight_g_idx");
            let bytes = (0..40u32).flat_map(|column| ((column * 7 + 3) % 5).to_le_bytes()).collect();
            tensors.insert(name.clone(), (TensorSpec::new(name, Dtype::I32, [40]), bytes));
        },
    );
    let loaded = deployed.load().unwrap();
    let (_, linear) = loaded.directory().spec().linear(DOWN).expect("a Linear");
    let x = Tensor::randn(0f32, 1.0, (3, 40), &Device::Cpu).unwrap();
    let found = loaded.model().run_site(linear.site.expect("a site"), &x).unwrap().remove(0);
    let (found, x): (Vec<Vec<f32>>, Vec<Vec<f32>>) = (found.to_vec2().unwrap(), x.to_vec2().unwrap());
    let stored = &deployed.linears[DOWN].0;
    for (found, x) in found.iter().zip(&x) {
        for (output, found) in found.iter().enumerate() {
            let product = |k: usize| {
                let scale = stored.weight_scales[output * 5 + groups[k] as usize];
                f64::from(x[k]) * f64::from(stored.weight[output * 40 + k]) * f64::from(scale)
            };
            let exact: f64 = (0..40).map(product).sum();
            let magnitude: f64 = (0..40).map(|k| product(k).abs()).sum();
            // Five blocks.
            assert!((f64::from(*found) - exact).abs() <= 2f64.powi(-24) * 70.0 * magnitude);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn a_linear_is_its_real_values_whatever_the_shape(
        four: bool, rows in prop_oneof![1usize..10, 40usize..60, Just(100)], outputs in 1usize..300, group in 1usize..40,
        groups in 1usize..6, bias: bool, seed: u64,
    ) {
        let mut rng = Rng::new(seed);
        let inputs = group * groups;
        let bits = if four { WeightBits::Four } else { WeightBits::Eight };
        let mut value = || if four { rng.next_u64() as i8 >> 4 } else { rng.next_u64() as i8 };
        let weight = (0..outputs * inputs).map(|_| value()).collect();
        let weight_scales = (0..outputs * groups).map(|_| 1e-3 + rng.uniform() as f32 * 0.01).collect();
        let stored = QuantizedLinear { weight, outputs, inputs, weight_scales, column_groups: None, input: None };
        let bias = bias.then(|| (0..outputs).map(|_| rng.normal() as f32).collect::<Vec<f32>>());
        let x: Vec<f32> = (0..rows * inputs).map(|_| rng.normal() as f32).collect();
        let relu = ActivationFn::Relu;
        let linear = WeightOnlyLinear::new(Isa::best(), &stored, bits, bias.clone(), relu).unwrap();
        let found = linear.forward(&x, rows);
        prop_assert_eq!(found.len(), rows * outputs);
        let real = dequantized(&stored);
        for (i, found) in found.iter().enumerate() {
            let (row, weight) = (&x[i / outputs * inputs..][..inputs], &real[i % outputs * inputs..][..inputs]);
            let products = || row.iter().zip(weight).map(|(x, w)| f64::from(*x) * f64::from(*w));
            let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[i % outputs]));
            let magnitude = products().map(f64::abs).sum::<f64>() + bias.abs();
            // The kernel's bound, half a unit for each real weight and one for the sum with the bias.
            let bound = 2f64.powi(-24) * (67 + groups) as f64 * magnitude;
            let expected = (products().sum::<f64>() + bias).max(0.0);
            prop_assert!((f64::from(*found) - expected).abs() <= bound, "{} for {}", found, expected);
        }
        for threads in [1, 3] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            prop_assert_eq!(self::bits(&pool.install(|| linear.forward(&x, rows))), self::bits(&found));
        }
    }
}
