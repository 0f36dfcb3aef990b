//! Mixtures of experts: what is described, what a sink sees of them, and what is refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use zeropoint_formats::TensorSpec;
use zeropoint_models::{
    ExpertsSpec, LinearRole, Model, ModelDirectory, ModelSpec, PackedBatch, SiteId, SiteSink, SourceRef,
    Task, TokenSequence,
};

use crate::copies::{self, Copy};

const FIXTURES: [&str; 3] = ["mixtral-causal", "qwen3moe-causal", "qwen3moe-renormalized"];

fn directory(fixture: &str) -> ModelDirectory {
    let source = SourceRef::Directory(copies::fixture(fixture));
    ModelDirectory::open(&source, Task::Auto).expect("the fixture opens")
}

fn mixtures(spec: &ModelSpec) -> Vec<(usize, &ExpertsSpec)> {
    let blocks = spec.towers[0].blocks.iter().enumerate();
    blocks.filter_map(|(layer, block)| Some((layer, block.mlp.experts()?))).collect()
}

#[test]
fn a_description_says_which_layers_have_how_many_experts() {
    struct Case {
        name: &'static str,
        layers: &'static [usize],
        experts: usize,
        top_k: usize,
        renormalize: bool,
        path: &'static str,
        last: [&'static str; 3],
    }
    let cases = [
        Case {
            name: "mixtral-causal",
            layers: &[0, 1],
            experts: 4,
            top_k: 2,
            renormalize: true,
            path: "model.layers.1.block_sparse_moe",
            last: ["experts.3.w1", "experts.3.w3", "experts.3.w2"],
        },
        Case {
            name: "qwen3moe-causal",
            layers: &[0, 2],
            experts: 5,
            top_k: 3,
            renormalize: false,
            path: "model.layers.2.mlp",
            last: ["experts.4.gate_proj", "experts.4.up_proj", "experts.4.down_proj"],
        },
        Case {
            name: "qwen3moe-renormalized",
            layers: &[1],
            experts: 6,
            top_k: 3,
            renormalize: true,
            path: "model.layers.1.mlp",
            last: ["experts.5.gate_proj", "experts.5.up_proj", "experts.5.down_proj"],
        },
    ];
    for Case { name, layers, experts, top_k, renormalize, path, last } in cases {
        let directory = directory(name);
        let spec = directory.spec();
        let found = mixtures(spec);
        assert_eq!(found.iter().map(|(layer, _)| *layer).collect::<Vec<_>>(), layers, "{name}");
        let (_, mixture) = found.last().expect("a mixture");
        let settings = (mixture.experts.len(), mixture.top_k, mixture.renormalize, mixture.path.as_str());
        assert_eq!(settings, (experts, top_k, renormalize, path), "{name}");
        let expert = &mixture.experts[experts - 1];
        let gate = expert.gate.as_ref().expect("a gate").projection.linear;
        for (id, last) in [gate, expert.up.linear, expert.down].into_iter().zip(last) {
            assert_eq!(spec.linears[id].path, format!("{path}.{last}"));
            assert_eq!(spec.linears[id].role, LinearRole::Expert);
        }
        let router = &spec.sites[mixture.router].consumers;
        assert_eq!(router.len(), 1, "{name}");
        assert_eq!(spec.linears[router[0]].path, format!("{path}.gate"));
        assert_eq!(spec.linears[router[0]].role, LinearRole::Router);
    }
}

#[test]
fn a_row_is_multiplied_with_its_experts_and_shown_to_all() {
    let directory = directory("mixtral-causal");
    let (spec, tower) = (directory.spec(), &directory.spec().towers[0]);
    // Query and output of 24 x 24, key and value of 12 x 24, a router of 4 x 24, experts of three 16 x 24, and the head.
    let (attention, router, expert, head) = (2 * 24 * 24 + 2 * 12 * 24, 4 * 24, 3 * 16 * 24, 140 * 24);
    assert_eq!(spec.weights_per_row(tower), 2 * (attention + router + 2 * expert) + head);
    assert_eq!(
        spec.weights_per_observed_row(tower),
        2 * (attention + router + 2 * expert + 4 * 2 * 16 * 24) + head
    );
}

/// The rows that each site sees, and those that the router sends there.
#[derive(Default)]
struct Seen {
    rows: BTreeMap<SiteId, usize>,
    routed: BTreeMap<SiteId, usize>,
}

impl SiteSink for Seen {
    fn observe(&mut self, site: SiteId, values: &[f32], channels: usize) -> Result<(), String> {
        *self.rows.entry(site).or_default() += values.len() / channels;
        Ok(())
    }

    fn observe_expert(
        &mut self,
        site: SiteId,
        values: &[f32],
        channels: usize,
        routed: usize,
    ) -> Result<(), String> {
        *self.routed.entry(site).or_default() += routed;
        self.observe(site, values, channels)
    }
}

fn batch(lengths: &[u32]) -> PackedBatch {
    let sequence = |length: u32| TokenSequence {
        ids: (0..length).map(|i| (i * 37 + length * 11) % 140).collect(),
        type_ids: vec![0; length as usize],
        prompt: 0,
    };
    PackedBatch::new(&lengths.iter().copied().map(sequence).collect::<Vec<_>>())
        .expect("sequences have tokens")
}

#[test]
fn every_expert_sees_every_row_while_the_output_stays_that_of_the_routed_ones() {
    for name in FIXTURES {
        let directory = directory(name);
        let model = Model::load(&directory).expect("the model loads");
        let spec = model.spec();
        for lengths in [&[9, 1, 30][..], &[1]] {
            let batch = batch(lengths);
            let tokens = batch.tokens();
            let mut seen = Seen::default();
            let observed = model.forward_observed(&batch, &mut seen).expect("the model runs");
            let expected = model.forward(&batch).expect("the model runs");
            let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&observed.values), bits(&expected.values), "{name}");
            assert_eq!(seen.rows.len(), spec.sites.len(), "{name}: no site is left out");
            assert!(seen.rows.values().all(|rows| *rows == tokens), "{name}: {:?}", seen.rows);
            let mut of_experts = 0;
            for (_, mixture) in mixtures(spec) {
                let routed = |site: fn(&zeropoint_models::MlpSpec) -> SiteId| {
                    mixture.experts.iter().map(|expert| seen.routed[&site(expert)]).collect::<Vec<_>>()
                };
                let inputs = routed(|expert| expert.input);
                assert_eq!(inputs, routed(|expert| expert.inner), "{name}");
                assert_eq!(inputs.iter().sum::<usize>(), mixture.top_k * tokens, "{name}");
                assert!(inputs.iter().all(|rows| *rows <= tokens), "{name}");
                of_experts += 2 * mixture.experts.len();
            }
            assert_eq!(seen.routed.len(), of_experts, "{name}: other sites count nothing");
        }
    }
}

#[track_caller]
fn assert_says(copy: &Copy, says: &str) {
    let Err(message) = copy.open(Task::Auto) else { panic!("opened, where {says:?} was to be said") };
    assert!(message.contains(says), "{says:?} is not in: {message}");
    assert!(!message.contains('\n'), "one sentence is expected: {message}");
}

#[test]
fn a_config_that_does_not_fit_is_refused() {
    let cases: [(&str, &str, Value, &str); 13] = [
        (
            "mixtral-causal",
            "num_experts_per_tok",
            json!(5),
            "`num_experts_per_tok` is 5; there are 4 experts, of which each token goes through 1 to all",
        ),
        (
            "mixtral-causal",
            "num_experts_per_tok",
            json!(0),
            "`num_experts_per_tok` is 0; 1 to 4096 is allowed",
        ),
        ("mixtral-causal", "num_local_experts", json!(0), "`num_experts` is 0; 1 to 4096 is allowed"),
        ("mixtral-causal", "num_local_experts", json!(4097), "`num_experts` is 4097; 1 to 4096 is allowed"),
        (
            "mixtral-causal",
            "num_local_experts",
            json!(6),
            "tensor `model.layers.0.block_sparse_moe.gate.weight` has shape [4, 24]; config.json says [6, 24]",
        ),
        (
            "mixtral-causal",
            "num_experts",
            json!(3),
            "`num_local_experts` is 4 and `num_experts` 3; both mean the experts of a layer",
        ),
        ("mixtral-causal", "sliding_window", json!(0), "`sliding_window` is 0; null or a number of tokens"),
        (
            "mixtral-causal",
            "intermediate_size",
            json!(20),
            "tensor `model.layers.0.block_sparse_moe.experts.0.w1.weight` has shape [16, 24]; config.json says [20, 24]",
        ),
        (
            "qwen3moe-causal",
            "moe_intermediate_size",
            json!(0),
            "`moe_intermediate_size` is 0; 1 to 1048576 is allowed",
        ),
        ("qwen3moe-causal", "decoder_sparse_step", json!(0), "`decoder_sparse_step` is 0; 1 to"),
        ("qwen3moe-causal", "decoder_sparse_step", json!(-1), "invalid value: integer `-1`"),
        (
            "qwen3moe-causal",
            "mlp_only_layers",
            json!([0, 1]),
            "tensor `model.layers.0.mlp.gate_proj.weight` is missing; config.json describes one of shape [40, 24]",
        ),
        (
            "qwen3moe-causal",
            "mlp_only_layers",
            json!([]),
            "tensor `model.layers.1.mlp.gate.weight` is missing; config.json describes one of shape [5, 24]",
        ),
    ];
    for (fixture, key, value, says) in cases {
        let copy = Copy::of(fixture);
        copy.set(key, value);
        assert_says(&copy, says);
    }
}

#[test]
fn experts_that_are_missing_or_too_many_are_named() {
    let copy = Copy::of("mixtral-causal");
    copy.tensors(|tensors| {
        tensors.remove("model.layers.1.block_sparse_moe.experts.2.w3.weight").expect("it was there");
    });
    assert_says(
        &copy,
        "tensor `model.layers.1.block_sparse_moe.experts.2.w3.weight` is missing; config.json describes one of shape \
         [16, 24]",
    );
    let copy = Copy::of("qwen3moe-causal");
    let extra = "model.layers.0.mlp.experts.5.up_proj.weight";
    copy.tensors(|tensors| {
        let (spec, bytes) = tensors["model.layers.0.mlp.experts.4.up_proj.weight"].clone();
        let spec = TensorSpec::new(extra, spec.dtype, spec.shape.clone());
        tensors.insert(extra.to_owned(), (spec, bytes));
    });
    assert_says(&copy, &format!("tensor `{extra}` is not part of the architecture"));
}

#[test]
fn experts_in_one_tensor_are_refused_with_what_to_do() {
    for (fixture, layer) in [("mixtral-causal", 0), ("qwen3moe-causal", 2)] {
        let copy = Copy::of(fixture);
        let fused = format!("model.layers.{layer}.mlp.experts.gate_up_proj");
        copy.tensors(|tensors| {
            let lost = format!("model.layers.{layer}.");
            tensors.retain(|name, _| !(name.starts_with(&lost) && name.contains(".experts.")));
            let (inner, bytes) = if layer == 0 { (16, 4 * 32 * 24 * 4) } else { (12, 5 * 24 * 24 * 4) };
            let shape = vec![bytes / (2 * inner * 24 * 4), 2 * inner, 24];
            let spec = TensorSpec::new(&fused, zeropoint_formats::Dtype::F32, shape);
            tensors.insert(fused.clone(), (spec, vec![0; bytes]));
        });
        assert_says(
            &copy,
            &format!("tensor `{fused}` holds all experts of a layer; tensors for each expert are expected"),
        );
        assert_says(
            &copy,
            "`save_pretrained` of transformers writes it by default (`save_original_format=True`)",
        );
    }
}
