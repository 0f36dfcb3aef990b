//! What a plan decides for every Linear of a model, and which requests it refuses.

use std::path::Path;

use zeropoint_core::{ActivationMode, ActivationScheme, Granularity, Scheme, Symmetry, WeightBits};
use zeropoint_formats::DirectoryFormat;
use zeropoint_models::{ModelDirectory, ModelSpec, SourceRef, Task};
use zeropoint_observer::{RangeObserver, WeightObserver};
use zeropoint_quantizer::{
    Decision, EmbeddingPrecision, HeadPrecision, LayerOverride, LayerScheme, Pattern, Plan, PlanError,
    PlanRequest, WeightAlgorithm,
};

const BLOCK_LINEARS: [&str; 6] = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
];

fn spec(fixture: &str) -> ModelSpec {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(fixture);
    let directory = ModelDirectory::open(&SourceRef::Directory(path), Task::Auto).expect("the fixture opens");
    directory.spec().clone()
}

fn scheme(mode: ActivationMode) -> LayerScheme {
    LayerScheme {
        scheme: Scheme::int8(Granularity::Channel, ActivationScheme { mode, symmetry: Symmetry::Symmetric }),
        weight_observer: WeightObserver::MinMax,
        range_observer: RangeObserver::MinMax,
    }
}

const DYNAMIC: ActivationMode = ActivationMode::Dynamic;
const STATIC: ActivationMode = ActivationMode::Static;

fn patterns(texts: &[&str]) -> Vec<Pattern> {
    texts.iter().map(|text| Pattern::parse(text).expect("a pattern")).collect()
}

fn request(mode: ActivationMode) -> PlanRequest {
    PlanRequest {
        scheme: scheme(mode),
        ignore: None,
        overrides: Vec::new(),
        algorithm: WeightAlgorithm::Rtn,
        bias_correction: false,
        embeddings: EmbeddingPrecision::Keep,
        lm_head: HeadPrecision::Keep,
        format: DirectoryFormat::CompressedTensors,
    }
}

fn ignoring(mode: ActivationMode, ignore: &[&str]) -> PlanRequest {
    PlanRequest { ignore: Some(patterns(ignore)), ..request(mode) }
}

fn overriding(mode: ActivationMode, overrides: &[(&[&str], Option<LayerScheme>)]) -> PlanRequest {
    let overrides =
        overrides.iter().map(|(layers, scheme)| LayerOverride { layers: patterns(layers), scheme: *scheme });
    PlanRequest { overrides: overrides.collect(), ..request(mode) }
}

fn quantized(plan: &Plan) -> Vec<&str> {
    plan.quantized().map(|(linear, _)| linear.path.as_str()).collect()
}

fn reason<'a>(plan: &'a Plan, path: &str) -> &'a str {
    match &plan.linears.iter().find(|linear| linear.path == path).expect("a Linear").decision {
        Decision::Keep { reason } => reason,
        Decision::Quantize(_) => panic!("{path} is quantised"),
    }
}

fn mode_of(plan: &Plan, path: &str) -> Option<ActivationMode> {
    let linear = plan.linears.iter().find(|linear| linear.path == path).expect("a Linear");
    linear.scheme()?.scheme.activations.map(|activations| activations.mode)
}

/// The Linears of the two blocks, in the order of the description.
fn block_linears(prefix: &str) -> Vec<String> {
    (0..2)
        .flat_map(|layer| BLOCK_LINEARS.map(|name| format!("{prefix}encoder.layer.{layer}.{name}")))
        .collect()
}

#[test]
fn by_default_poolers_and_classifiers_stay_float() {
    for (fixture, prefix, kept) in [
        ("bert-mean", "", &["pooler.dense"][..]),
        ("bert-cls-sharded", "", &[]),
        ("bert-classifier-bf16", "bert.", &["bert.pooler.dense", "classifier"]),
    ] {
        for mode in [DYNAMIC, STATIC] {
            let spec = spec(fixture);
            let plan = Plan::new(&spec, &request(mode)).unwrap();
            assert_eq!(quantized(&plan), block_linears(prefix), "{fixture}");
            assert!(plan.quantized().all(|(_, of)| *of == scheme(mode)));
            assert_eq!(plan.linears.len(), spec.linears.len());
            for (id, linear) in plan.linears.iter().enumerate() {
                assert_eq!((linear.linear, &linear.path), (id, &spec.linears[id].path));
            }
            for path in kept {
                let why = reason(&plan, path);
                assert!(why.starts_with("pooler: ") || why.starts_with("classifier: "), "{why}");
            }
            assert_eq!(plan.needs_statistics(), mode == STATIC);
            assert_eq!(plan.warnings, [""; 0]);
            assert_eq!(plan.embeddings, EmbeddingPrecision::Keep);
        }
    }
}

#[test]
fn a_given_ignore_replaces_the_default() {
    let spec = spec("bert-classifier-bf16");
    let all = Plan::new(&spec, &ignoring(STATIC, &[])).unwrap();
    assert_eq!(quantized(&all).len(), 14, "an empty list ignores nothing, not even the classifier");

    let one = Plan::new(&spec, &ignoring(STATIC, &["classifier"])).unwrap();
    assert_eq!(mode_of(&one, "bert.pooler.dense"), Some(STATIC));
    let by_default = Plan::new(&spec, &request(STATIC)).unwrap();
    assert_eq!(
        reason(&one, "classifier"),
        reason(&by_default, "classifier"),
        "its role is the better reason"
    );

    let layer = r"re:bert\.encoder\.layer\.1\.";
    let plan = Plan::new(&spec, &ignoring(DYNAMIC, &[layer, "re:.*dense"])).unwrap();
    let expected =
        ["query", "key", "value"].map(|name| format!("bert.encoder.layer.0.attention.self.{name}"));
    assert_eq!(quantized(&plan), [&expected[..], &["classifier".to_owned()]].concat());
    let why = format!("`quantization.ignore` names it (`{layer}`)");
    assert_eq!(
        reason(&plan, "bert.encoder.layer.1.output.dense"),
        why,
        "the first pattern that matches is named"
    );
}

#[test]
fn a_pattern_that_matches_nothing_is_an_error_with_the_nearest_names() {
    let spec = spec("bert-mean");
    let none = Some(scheme(DYNAMIC));
    let cases = [
        (ignoring(DYNAMIC, &["pooler.dens"]), "quantization.ignore", "pooler.dens", "`pooler.dense`"),
        (ignoring(DYNAMIC, &["re:pooler$"]), "quantization.ignore", "re:pooler$", "`pooler.dense`"),
        // `re:` is matched from the start, as by Python's `re.match`.
        (ignoring(DYNAMIC, &["re:layer"]), "quantization.ignore", "re:layer", "`encoder.layer."),
        (
            ignoring(DYNAMIC, &["pooler.dense", "bert.pooler.dense"]),
            "quantization.ignore",
            "bert.pooler.dense",
            "`pooler.dense`",
        ),
        (
            overriding(
                DYNAMIC,
                &[(&["pooler.dense"], none), (&["re:encoder", r"re:encoder\.layer\.2\."], none)],
            ),
            "quantization.overrides.1.layers",
            r"re:encoder\.layer\.2\.",
            "`encoder.layer.",
        ),
        (
            overriding(DYNAMIC, &[(&["encoder.layer.0.output.dence"], None)]),
            "quantization.overrides.0.layers",
            "encoder.layer.0.output.dence",
            "`encoder.layer.0.output.dense`",
        ),
    ];
    for (request, place, pattern, name) in cases {
        let error = Plan::new(&spec, &request).unwrap_err();
        let message = error.to_string();
        assert_eq!(message, format!("{place}: pattern `{pattern}` matches no Linear of the model"));
        let PlanError::NoMatch { nearest, .. } = error else { panic!("{message}") };
        assert_eq!(nearest.split(", ").count(), 3, "{nearest}");
        assert!(nearest.contains(name), "{name} is not among {nearest}");
    }
}

#[test]
fn the_last_override_that_matches_wins() {
    let request = overriding(
        STATIC,
        &[
            (&["re:encoder"], Some(scheme(DYNAMIC))),
            (&["re:.*output"], None),
            (&["encoder.layer.1.output.dense", "encoder.layer.0.intermediate.dense"], Some(scheme(STATIC))),
        ],
    );
    let plan = Plan::new(&spec("bert-mean"), &request).unwrap();
    for (path, mode) in [
        ("encoder.layer.0.attention.self.query", Some(DYNAMIC)),
        ("encoder.layer.0.attention.output.dense", None),
        ("encoder.layer.0.intermediate.dense", Some(STATIC)),
        ("encoder.layer.0.output.dense", None),
        ("encoder.layer.1.intermediate.dense", Some(DYNAMIC)),
        ("encoder.layer.1.output.dense", Some(STATIC)),
        ("pooler.dense", None),
    ] {
        assert_eq!(mode_of(&plan, path), mode, "{path}");
    }
    assert!(plan.needs_statistics());
    assert_eq!(reason(&plan, "encoder.layer.0.output.dense"), "an override gives it the scheme `none`");
}

#[test]
fn an_override_that_later_ones_decide_is_warned_of() {
    struct Case {
        /// The layers of each override.
        overrides: &'static [&'static [&'static str]],
        /// Which of them decide what the first names, if it has no effect.
        deciding: Option<&'static str>,
    }
    const QUERY_0: &str = "encoder.layer.0.attention.self.query";
    let cases = [
        Case { overrides: &[&["re:.*query"], &[QUERY_0]], deciding: None },
        Case {
            overrides: &[&[QUERY_0], &["re:.*query"]],
            deciding: Some("`quantization.overrides.1` (`re:.*query`)"),
        },
        Case {
            overrides: &[&["re:.*query"], &["re:encoder.layer.0"], &["re:encoder.layer.1", "re:.*key"]],
            deciding: Some(
                "`quantization.overrides.1` (`re:encoder.layer.0`) and `quantization.overrides.2` \
                 (`re:encoder.layer.1`, `re:.*key`)",
            ),
        },
        // Of several later ones only the last has a say.
        Case {
            overrides: &[&[QUERY_0], &["re:.*query"], &["re:encoder"]],
            deciding: Some("`quantization.overrides.2` (`re:encoder`)"),
        },
        // What is ignored anyway, here the pooler, does not keep an override alive.
        Case {
            overrides: &[&["re:.*dense"], &["re:encoder"]],
            deciding: Some("`quantization.overrides.1` (`re:encoder`)"),
        },
    ];
    for Case { overrides, deciding } in cases {
        let request: Vec<(&[&str], _)> =
            overrides.iter().map(|layers| (*layers, Some(scheme(DYNAMIC)))).collect();
        let plan = Plan::new(&spec("bert-mean"), &overriding(DYNAMIC, &request)).unwrap();
        let expected = deciding.map(|deciding| {
            format!(
                "`quantization.overrides.0` (`{}`) has no effect: every layer it names is decided by {deciding}, where \
                 the last one holds",
                overrides[0][0]
            )
        });
        let of_the_first = plan.warnings.iter().find(|text| text.starts_with("`quantization.overrides.0`"));
        assert_eq!(of_the_first, expected.as_ref());
    }
}

#[test]
fn statistics_are_needed_for_what_is_quantised_only() {
    let request = overriding(STATIC, &[(&["re:encoder"], Some(scheme(DYNAMIC)))]);
    assert!(!Plan::new(&spec("bert-mean"), &request).unwrap().needs_statistics());
}

#[test]
fn an_override_of_ignored_layers_alone_is_an_error() {
    let spec = spec("bert-classifier-bf16");
    let other = Some(scheme(STATIC));
    let says = |request: &PlanRequest| Plan::new(&spec, request).unwrap_err().to_string();
    let message =
        says(&overriding(DYNAMIC, &[(&["re:bert"], other), (&["re:.*(pooler|classifier)"], other)]));
    assert_eq!(
        message,
        "quantization.overrides.1.layers: pattern `re:.*(pooler|classifier)` matches only layers that \
         `quantization.ignore` leaves float (bert.pooler.dense; by default poolers and \
         classifiers); give `ignore` without them"
    );
    let named = PlanRequest {
        ignore: Some(patterns(&["bert.encoder.layer.0.output.dense"])),
        ..overriding(DYNAMIC, &[(&["bert.encoder.layer.0.output.dense"], other)])
    };
    assert!(says(&named).contains("matches only layers that `quantization.ignore` leaves float"));
    // The same with `none` has no effect either.
    assert!(says(&overriding(DYNAMIC, &[(&["classifier"], None)])).contains("(classifier; "));
    // An override beside another that leaves its layers float is in order.
    let twice = overriding(DYNAMIC, &[(&["re:.*query"], other), (&["re:.*query"], None)]);
    assert_eq!(quantized(&Plan::new(&spec, &twice).unwrap()).len(), 10);
    // So is one that reaches ignored layers among others.
    assert!(Plan::new(&spec, &overriding(DYNAMIC, &[(&["re:.*dense"], other)])).is_ok());
}

#[test]
fn static_activations_of_a_linear_that_never_runs_are_refused() {
    let spec = spec("bert-mean");
    let error = Plan::new(&spec, &ignoring(STATIC, &[])).unwrap_err();
    assert_eq!(error, PlanError::NeverObserved { path: "pooler.dense".to_owned() });
    assert!(
        error
            .to_string()
            .contains("its input is never observed; add it to `quantization.ignore` or give it ")
    );
    // Dynamic activations need no observation.
    assert_eq!(quantized(&Plan::new(&spec, &ignoring(DYNAMIC, &[])).unwrap()).len(), 13);
    let advice = PlanRequest {
        ignore: Some(Vec::new()),
        ..overriding(STATIC, &[(&["pooler.dense"], Some(scheme(DYNAMIC)))])
    };
    assert_eq!(mode_of(&Plan::new(&spec, &advice).unwrap(), "pooler.dense"), Some(DYNAMIC));
}

#[test]
fn a_model_whose_linears_are_none_of_torch_is_refused() {
    let spec = spec("gpt2-causal");
    for request in [ignoring(DYNAMIC, &[]), PlanRequest { ignore: None, ..ignoring(DYNAMIC, &[]) }] {
        let error = Plan::new(&spec, &request).unwrap_err();
        let message = error.to_string();
        let says = "none of the 9 Linears can be quantised, such as `transformer.h.0.attn.c_attn`: Conv1D: not a torch";
        assert!(message.starts_with(says), "{message}");
    }
}

#[test]
fn experts_in_int8_are_refused_and_left_float_by_the_override_that_is_named() {
    for (fixture, module, experts) in
        [("mixtral-causal", "block_sparse_moe", 8), ("qwen3moe-causal", "mlp", 10)]
    {
        let spec = spec(fixture);
        let error = Plan::new(&spec, &request(DYNAMIC)).unwrap_err().to_string();
        let name = if module == "mlp" { "gate_proj" } else { "w1" };
        let says = format!("`model.layers.0.{module}.experts.0.{name}` cannot be quantised (expert: ");
        assert!(error.starts_with(&says), "{error}");
        let pattern = r"re:.*\.experts\.";
        assert!(error.contains(&format!("`layers = [{pattern:?}]` and `scheme = \"none\"`")), "{error}");
        let plan = Plan::new(&spec, &overriding(DYNAMIC, &[(&[pattern], None)])).unwrap();
        let kept =
            |path: &str| plan.linears.iter().any(|linear| linear.path == path && linear.scheme().is_none());
        assert!(kept("lm_head") && kept(&format!("model.layers.0.{module}.gate")));
        assert!(reason(&plan, &format!("model.layers.0.{module}.gate")).starts_with("router: "));
        let float = plan.linears.iter().filter(|linear| linear.path.contains(".experts.")).count();
        assert_eq!((float, plan.warnings.len()), (3 * experts, 1), "{fixture}");
        assert!(plan.warnings[0].starts_with("the experts stay float: "), "{:?}", plan.warnings);
        assert!(
            quantized(&plan).iter().all(|path| !path.contains("experts") && !path.ends_with(".mlp.gate"))
        );
    }
}

#[test]
fn a_router_is_quantised_by_no_plan() {
    let spec = spec("mixtral-causal");
    let error =
        Plan::new(&spec, &ignoring(DYNAMIC, &["lm_head", r"re:.*\.experts\."])).unwrap_err().to_string();
    let says = "`model.layers.0.block_sparse_moe.gate` cannot be quantised (router: no torch Linear, ";
    assert!(error.starts_with(says), "{error}");
}

#[test]
fn a_plan_that_quantises_nothing_is_refused() {
    let spec = spec("bert-mean");
    for request in [ignoring(STATIC, &["re:"]), overriding(DYNAMIC, &[(&["re:encoder"], None)])] {
        assert_eq!(Plan::new(&spec, &request).unwrap_err(), PlanError::Nothing { count: 13 });
    }
    let message = Plan::new(&spec, &ignoring(STATIC, &["re:.*"])).unwrap_err().to_string();
    assert!(message.starts_with("the plan quantises nothing: `quantization.ignore` and `quantization.overrides` leave all 13 Linears float"), "{message}");
}

#[test]
fn readers_of_one_activation_that_differ_are_warned_of() {
    let spec = spec("bert-mean");
    let of = |layers: &[&str], scheme| {
        Plan::new(&spec, &overriding(DYNAMIC, &[(layers, scheme)])).unwrap().warnings
    };
    let none = of(&["encoder.layer.1.attention.self.key"], None);
    assert_eq!(
        none,
        ["encoder.layer.1.attention.self.query, encoder.layer.1.attention.self.key, \
          encoder.layer.1.attention.self.value read one activation but are quantised differently; vLLM, which fuses \
          them, cannot load the result"]
    );
    let both = of(&["re:.*value"], Some(scheme(STATIC)));
    assert_eq!(both.len(), 1);
    assert!(both[0].contains("layer.0.attention.self.value (and 1 more such groups) read one"), "{both:?}");
    // Whole sites may differ from each other.
    assert_eq!(of(&["re:.*self"], Some(scheme(STATIC))), [""; 0]);
    assert_eq!(of(&["encoder.layer.0.output.dense"], None), [""; 0]);
}

#[test]
fn an_int8_head_is_planned_whatever_else_is_said_of_it() {
    let asked = |request: PlanRequest| PlanRequest { lm_head: HeadPrecision::Int8, ..request };
    for (fixture, path) in
        [("llama-causal", "lm_head"), ("smollm3-causal", "lm_head"), ("neox-causal", "embed_out")]
    {
        let spec = spec(fixture);
        for request in [request(STATIC), ignoring(STATIC, &[path]), overriding(STATIC, &[(&["re:.*"], None)])]
        {
            let nothing_else = request.overrides.len() == 1;
            let plan = Plan::new(&spec, &asked(request));
            if nothing_else && fixture == "smollm3-causal" {
                assert_eq!(plan.unwrap_err(), PlanError::Nothing { count: spec.linears.len() }, "{fixture}");
                continue;
            }
            let plan = plan.unwrap();
            assert_eq!(mode_of(&plan, path), Some(DYNAMIC), "{fixture}");
            assert_eq!(plan.tied_head(&spec).is_some(), fixture == "smollm3-causal");
            let others = plan.quantized().filter(|(linear, _)| linear.path != path);
            assert!(others.into_iter().all(|(_, of)| *of == scheme(STATIC)), "{fixture}");
        }
    }
    let warned =
        Plan::new(&spec("llama-causal"), &asked(overriding(DYNAMIC, &[(&["lm_head"], None)]))).unwrap();
    let says = "`quantization.overrides.0` has no effect: `quantization.lm_head` decides `lm_head`, which is all it names";
    assert_eq!(warned.warnings, [says]);
    let error = Plan::new(&spec("bert-mlm"), &asked(request(DYNAMIC))).unwrap_err().to_string();
    assert!(error.contains("but BertForMaskedLM has no output matrix that continues texts"), "{error}");
}

#[test]
fn the_own_format_carries_what_compressed_tensors_does_not() {
    let int8 = PlanRequest { embeddings: EmbeddingPrecision::Int8, ..request(DYNAMIC) };
    assert_eq!(Plan::new(&spec("bert-mean"), &int8).unwrap_err(), PlanError::Int8Tables);
    let own = |request: PlanRequest| PlanRequest { format: DirectoryFormat::Zeropoint, ..request };
    let plan = Plan::new(&spec("bert-mean"), &own(int8)).unwrap();
    assert_eq!(plan.embeddings, EmbeddingPrecision::Int8);
    assert!(plan.warnings[0].contains("only Zeropoint loads the result"), "{:?}", plan.warnings);
    let gpt2 = spec("gpt2-causal");
    let plan = Plan::new(&gpt2, &own(request(DYNAMIC))).unwrap();
    assert_eq!(quantized(&plan).len(), gpt2.linears.len() - 1, "all but the head");
}

#[test]
fn groups_that_do_not_come_out_even_are_refused_with_the_sizes_that_do() {
    let grouped = |size| LayerScheme {
        scheme: Scheme::weight_only(WeightBits::Four, Granularity::Group(size)),
        ..scheme(DYNAMIC)
    };
    let spec = spec("bert-mean");
    let plan = |size| Plan::new(&spec, &PlanRequest { scheme: grouped(size), ..request(DYNAMIC) });
    assert_eq!(plan(16).unwrap().quantized().count(), 6 * spec.towers[0].blocks.len());
    let error = plan(24).unwrap_err();
    let PlanError::Groups { path, inputs, size: 24, sizes } = &error else { panic!("{error}") };
    assert!(path.ends_with("query") && inputs % 24 != 0 && sizes.contains(&16), "{error}");
    assert!(
        error.to_string().contains("sizes that divide the inputs of all Linears with groups: 8, 16"),
        "{error}"
    );
}

#[test]
fn biases_are_corrected_where_there_are_some() {
    let corrected = PlanRequest { bias_correction: true, ..request(DYNAMIC) };
    assert!(Plan::new(&spec("bert-mean"), &corrected).unwrap().bias_correction);
    let error = Plan::new(&spec("llama-causal"), &corrected).unwrap_err().to_string();
    assert!(error.contains("no Linear of LlamaForCausalLM that is quantised has a bias"), "{error}");
}
