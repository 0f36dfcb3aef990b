//! A deployable directory loads and computes what its simulation computes; a damaged one is refused in one sentence.

use std::path::Path;

use candle_core::{Device, Module, Tensor};
use zeropoint_core::{ActivationMode, ActivationScheme, Granularity, Scheme, Symmetry};
use zeropoint_formats::{Dtype, TensorSpec};
use zeropoint_models::{Model, PackedBatch, Tables, Task};
use zeropoint_runtime::{Encoder, Int8Linear, QuantizedModel};

use crate::deployed::{self, Deployed, TEXTS, Tensors, batch, fixture, open};

const QUERY: &str = "encoder.layer.1.attention.self.query";

fn scheme(mode: ActivationMode, symmetry: Symmetry, granularity: Granularity) -> Scheme {
    Scheme::int8(granularity, ActivationScheme { mode, symmetry })
}

const DYNAMIC: Scheme = Scheme::int8(
    Granularity::Channel,
    ActivationScheme { mode: ActivationMode::Dynamic, symmetry: Symmetry::Symmetric },
);
const STATIC: Scheme = Scheme::int8(
    Granularity::Channel,
    ActivationScheme { mode: ActivationMode::Static, symmetry: Symmetry::Asymmetric },
);

#[test]
fn a_loaded_model_is_its_simulation_bit_for_bit() {
    use ActivationMode::{Dynamic, Static};
    use Granularity::{Channel, Tensor};
    use Symmetry::{Asymmetric, Symmetric};
    type SchemeOf = Box<dyn Fn(&str) -> Option<Scheme>>;
    let all = |scheme: Scheme| -> SchemeOf { Box::new(move |_| Some(scheme)) };
    let mixed = || -> SchemeOf {
        Box::new(|path| match path {
            _ if path.ends_with("key") || path.contains("pooler") => None,
            _ if path.ends_with("value") => Some(DYNAMIC),
            _ => Some(STATIC),
        })
    };
    for fixture in ["bert-mean", "bert-cls-sharded", "bert-classifier-bf16"] {
        let schemes = [
            ("dynamic symmetric", all(scheme(Dynamic, Symmetric, Channel))),
            ("dynamic asymmetric", all(scheme(Dynamic, Asymmetric, Channel))),
            ("static symmetric", all(scheme(Static, Symmetric, Channel))),
            ("static asymmetric, per tensor", all(scheme(Static, Asymmetric, Tensor))),
            ("mixed", mixed()),
        ];
        for (what, scheme_of) in schemes {
            let deployed = Deployed::new(fixture, scheme_of);
            let loaded = deployed.load().unwrap();
            assert_eq!(loaded.quantized_linears(), deployed.linears.len(), "{fixture}, {what}");
            let batch = batch(loaded.directory());
            let (found, expected) =
                (loaded.forward(&batch).unwrap(), deployed.simulation().forward(&batch).unwrap());
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&found.values), bits(&expected.values), "{fixture}, {what}");
            let float = Model::load_with(
                loaded.directory().spec(),
                open(&deployed::fixture(fixture)).checkpoint(),
                &mut |_| Ok(None),
                Tables::Read,
            );
            assert_ne!(
                found,
                float.unwrap().forward(&batch).unwrap(),
                "{fixture}, {what}: nothing was quantised"
            );
        }
    }
}

#[test]
fn a_model_that_is_not_quantised_is_refused() {
    let Err(error) = QuantizedModel::load(&fixture("bert-mean"), Task::Auto) else { panic!("loaded") };
    let message = error.to_string();
    assert!(message.ends_with(
        "bert-mean: config.json has no `quantization_config`; a directory written by `zeropoint run` is expected"
    ));
    let Err(error) = QuantizedModel::load(Path::new("./no/such/directory"), Task::Auto) else {
        panic!("loaded")
    };
    assert!(error.to_string().contains("no such model directory"), "{error}");
}

#[test]
fn a_damaged_directory_is_refused() {
    struct Case {
        what: &'static str,
        scheme: Scheme,
        damage: fn(&mut Tensors, &mut String),
        says: &'static [&'static str],
    }
    fn named(suffix: &str) -> String {
        format!("{QUERY}.{suffix}")
    }
    fn set_f32(tensors: &mut Tensors, suffix: &str, value: f32) {
        tensors.get_mut(&named(suffix)).expect("a tensor").1[..4].copy_from_slice(&value.to_le_bytes());
    }
    // The first place is that of the weights: they come before the activations.
    fn swap(config: &mut String, from: &str, to: &str) {
        assert!(config.contains(from), "{from} is not in {config}");
        *config = config.replacen(from, to, 1);
    }
    let cases = [
        Case {
            what: "no weight_scale",
            scheme: DYNAMIC,
            damage: |tensors, _| drop(tensors.remove(&named("weight_scale"))),
            says: &["there is no tensor `encoder.layer.1.attention.self.query.weight_scale`"],
        },
        Case {
            what: "no input_scale",
            scheme: STATIC,
            damage: |tensors, _| drop(tensors.remove(&named("input_scale"))),
            says: &["there is no tensor `encoder.layer.1.attention.self.query.input_scale`"],
        },
        Case {
            what: "no input_zero_point",
            scheme: STATIC,
            damage: |tensors, _| drop(tensors.remove(&named("input_zero_point"))),
            says: &["there is no tensor `encoder.layer.1.attention.self.query.input_zero_point`"],
        },
        Case {
            what: "a scale of zero",
            scheme: DYNAMIC,
            damage: |tensors, _| set_f32(tensors, "weight_scale", 0.0),
            says: &[
                QUERY,
                "has a bad `weight_scale`: scale 0 is 0 where a positive, finite, normal number is needed",
            ],
        },
        Case {
            what: "a scale of NaN",
            scheme: DYNAMIC,
            damage: |tensors, _| set_f32(tensors, "weight_scale", f32::NAN),
            says: &[QUERY, "has a bad `weight_scale`: scale 0 is NaN"],
        },
        Case {
            what: "a negative input scale",
            scheme: STATIC,
            damage: |tensors, _| set_f32(tensors, "input_scale", -1.0),
            says: &[QUERY, "has a bad `input_scale`: scale 0 is -1"],
        },
        Case {
            what: "scales of another shape",
            scheme: DYNAMIC,
            damage: |tensors, _| {
                tensors.get_mut(&named("weight_scale")).expect("scales").0.shape = vec![1, 32];
            },
            says: &["weight_scale` in ", "has shape [1, 32] where [32, 1] or [32] is needed"],
        },
        Case {
            what: "a float weight under an INT8 scheme",
            scheme: DYNAMIC,
            damage: |tensors, _| {
                let spec = TensorSpec::new(named("weight"), Dtype::F32, [32, 32]);
                tensors.insert(named("weight"), (spec, vec![0; 4 * 32 * 32]));
            },
            says: &["encoder.layer.1.attention.self.query.weight` in ", "has dtype F32 where I8 is needed"],
        },
        Case {
            what: "an INT8 weight that config.json leaves float",
            scheme: DYNAMIC,
            damage: |_, config| swap(config, "\"ignore\":[", &format!("\"ignore\":[\"{QUERY}\",")),
            says: &["encoder.layer.1.attention.self.query.weight` in ", "has dtype I8 where "],
        },
        Case {
            what: "static parameters under a dynamic scheme",
            scheme: STATIC,
            damage: |_, config| {
                swap(
                    config,
                    "\"strategy\":\"tensor\",\"dynamic\":false",
                    "\"strategy\":\"token\",\"dynamic\":true",
                );
            },
            says: &["has a tensor `input_scale` that its scheme does not account for"],
        },
        Case {
            what: "a tensor that no scheme has",
            scheme: DYNAMIC,
            damage: |tensors, _| {
                let name = named("weight_global_scale");
                tensors.insert(name.clone(), (TensorSpec::new(name, Dtype::F32, [1]), vec![0; 4]));
            },
            says: &[
                "tensor `encoder.layer.1.attention.self.query.weight_global_scale` is not part of the architecture",
            ],
        },
        Case {
            what: "zero points of weights",
            scheme: DYNAMIC,
            damage: |tensors, _| {
                let name = named("weight_zero_point");
                tensors.insert(name.clone(), (TensorSpec::new(name, Dtype::I8, [32, 1]), vec![5; 32]));
            },
            says: &[QUERY, "has a `weight_zero_point` that is not 0, where its scheme is symmetric"],
        },
        Case {
            what: "4 bits",
            scheme: DYNAMIC,
            damage: |_, config| swap(config, "\"num_bits\":8", "\"num_bits\":4"),
            says: &["`quantization_config.config_groups.group_0.weights.num_bits` is 4; only 8 is allowed"],
        },
        Case {
            what: "asymmetric weights",
            scheme: DYNAMIC,
            damage: |_, config| swap(config, "\"symmetric\":true", "\"symmetric\":false"),
            says: &["weights.symmetric` is false; only symmetric weights (true) can be run"],
        },
        Case {
            what: "groups",
            scheme: DYNAMIC,
            damage: |_, config| swap(config, "\"channel\"", "\"group\""),
            says: &["weights.strategy` is \"group\"; only \"channel\" or \"tensor\" is allowed"],
        },
        Case {
            what: "another method",
            scheme: DYNAMIC,
            damage: |_, config| swap(config, "\"compressed-tensors\"", "\"gptq\""),
            says: &["`quantization_config.quant_method` is \"gptq\"; only \"compressed-tensors\" is allowed"],
        },
        Case {
            what: "another format",
            scheme: DYNAMIC,
            damage: |_, config| swap(config, "\"int-quantized\"", "\"nvfp4-pack-quantized\""),
            says: &["`quantization_config.format` is \"nvfp4-pack-quantized\"; only int-quantized models"],
        },
    ];
    for Case { what, scheme, damage, says } in cases {
        let deployed = Deployed::damaged("bert-mean", |_| Some(scheme), damage);
        let Err(message) = deployed.load() else { panic!("{what}: loaded") };
        for phrase in says {
            assert!(message.contains(phrase), "{what}: {phrase:?} is not in: {message}");
        }
        assert!(!message.contains('\n'), "{what}: one sentence is expected: {message}");
    }
}

#[test]
fn an_encoder_gives_each_text_its_vector_from_any_number_of_threads() {
    let deployed = Deployed::new("bert-mean", |_| Some(DYNAMIC));
    let encoder = Encoder::load(deployed.dir.path()).unwrap();
    // More than a batch, short ones among long ones.
    let texts: Vec<String> = (0..70).map(|i| TEXTS[i % TEXTS.len()].repeat(1 + i % 3)).collect();
    let alone: Vec<Vec<f32>> =
        texts.iter().map(|text| encoder.encode(&[text]).unwrap().pop().expect("a vector")).collect();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(encoder.encode(&texts).unwrap(), alone));
        }
    });
    assert_eq!(encoder.encode::<&str>(&[]).unwrap(), Vec::<Vec<f32>>::new());

    let classifier = Deployed::new("bert-classifier-bf16", |_| Some(DYNAMIC));
    let Err(error) = Encoder::load(classifier.dir.path()) else { panic!("loaded") };
    assert!(error.to_string().contains("gives no vectors of texts"), "{error}");
}

#[test]
fn one_linear_is_a_candle_module() {
    for scheme in [DYNAMIC, STATIC] {
        let deployed = Deployed::new("bert-mean", |path| (!path.ends_with("key")).then_some(scheme));
        let directory = open(deployed.dir.path());
        let path = "encoder.layer.0.attention.self.query";
        let linear = Int8Linear::load(&directory, path).unwrap();
        assert_eq!(linear.scheme(), scheme);
        let (site, spec) = {
            let (_, spec) = directory.spec().linear(path).expect("a Linear");
            (spec.site.expect("a site"), spec)
        };
        let x = Tensor::randn(0f32, 1.0, (2, 5, spec.inputs), &Device::Cpu).unwrap();
        let y = linear.forward(&x).unwrap();
        assert_eq!(y.dims(), [2, 5, spec.outputs]);
        let rows = x.reshape((10, spec.inputs)).unwrap();
        let expected = deployed.simulation().run_site(site, &rows).unwrap().remove(0);
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(values(&y), values(&expected));

        for (path, reason) in [
            ("encoder.layer.0.attention.self.key", "is not quantised"),
            ("encoder.layer.9.attention.self.query", "is not a Linear of this model"),
        ] {
            let Err(error) = Int8Linear::load(&directory, path) else { panic!("loaded") };
            assert!(error.to_string().contains(reason), "{error}");
        }
    }
}

#[test]
fn a_forward_after_the_first_allocates_no_memory_for_its_blocks() {
    let deployed = Deployed::new("bert-mean", Box::new(|_: &str| Some(DYNAMIC)));
    let loaded = deployed.load().unwrap();
    let hidden = loaded.directory().spec().towers[0].hidden;
    let texts: Vec<(&str, Option<&str>)> = TEXTS.iter().cycle().take(200).map(|text| (*text, None)).collect();
    let tokenizer = loaded.directory().tokenizer(None).expect("a tokenizer");
    let batch = PackedBatch::new(&tokenizer.encode_all(&texts).expect("tokens")).expect("a batch");
    // One thread, so that all of the work is counted.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a thread");
    let bytes =
        || pool.install(|| allocation_counter::measure(|| drop(loaded.forward(&batch).unwrap())).bytes_total);
    let (first, _, later) = (bytes(), bytes(), bytes());
    // What is left are the stream, the numbers of the rows that are looked up, and the vectors.
    let stream = (batch.tokens() * hidden * size_of::<f32>()) as u64;
    let vectors = (texts.len() * hidden * size_of::<f32>()) as u64;
    let rows = 8 * (batch.tokens() * size_of::<u32>()) as u64;
    assert!(later < stream + 3 * vectors + rows + 4096, "{later} bytes of {stream} and {vectors}");
    assert!(first > later + stream, "{first} bytes at first, {later} later");
}
