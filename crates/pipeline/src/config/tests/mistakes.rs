//! What each mistake is answered with: a sentence, a place and a way out.

use super::*;

#[test]
fn mistakes_are_answered_with_a_place_and_a_way_out() {
    struct Case {
        text: &'static str,
        display: &'static str,
        hint: &'static str,
    }
    let cases = [
        Case { text: "", display: "c.toml: `model.source` is missing", hint: "add `[model]` with `source" },
        Case {
            text: "[model]\ntask = 'auto'",
            display: "c.toml:1:1: `model.source` is missing",
            hint: "add",
        },
        Case {
            text: "model = 'm'",
            display: "c.toml:1:9: `model` must be a table, but is the string \"m\"",
            hint: "",
        },
        Case {
            text: "version = 2\nmodle = 'm'",
            display: "c.toml:1:11: config version 2 is not known",
            hint: "allowed: `version = 1`",
        },
        Case {
            text: "version = '1'",
            display: "c.toml:1:11: `version` must be a whole number, but is the string \"1\"",
            hint: "without the quotes: 1",
        },
        Case {
            text: "[quantisation]",
            display: "c.toml:1:2: unknown key `quantisation` at the top level",
            hint: "did you mean `quantization`? allowed: `version`, `model`, ",
        },
        Case {
            text: "[calibration]\nsamplse = 1",
            display: "c.toml:2:1: unknown key `samplse` in `calibration`",
            hint: "did you mean `samples`? allowed: `data`, `samples`, `max_length`, `batch_size`, `seed`",
        },
        Case {
            text: "[quantization]\ntransforms = [{ kind = 'smoothquant' }]",
            display: "c.toml:2:1: unknown key `transforms` in `quantization`",
            hint: "allowed: `scheme`, `weights`, `activations`, ",
        },
        Case {
            text: "[quantization]\nalgorithm = { kind = 'gptq' }",
            display: "c.toml:2:22: `quantization.algorithm.kind` cannot be `gptq`",
            hint: "allowed: `rtn`",
        },
        Case {
            text: "[quantization]\nscheme = 'w8a8_static'",
            display: "c.toml:2:10: `quantization.scheme` cannot be `w8a8_static`",
            hint: "did you mean `w8a8-static`? allowed: `w8a8-dynamic`, `w8a8-static`",
        },
        Case {
            text: "quantization.weights.granularity = 'group'",
            display: "c.toml:1:36: `quantization.weights.granularity` cannot be `group`",
            hint: "allowed: `channel`, `tensor`",
        },
        Case {
            text: "quantization.scheme = 8",
            display: "c.toml:1:23: `quantization.scheme` must be one of `w8a8-dynamic`, `w8a8-static`, but is the number 8",
            hint: "",
        },
        Case {
            text: "model.source = 5",
            display: "c.toml:1:16: `model.source` must be a string, but is the number 5",
            hint: "put it in quotes",
        },
        Case {
            text: "calibration.samples = '256'",
            display: "c.toml:1:23: `calibration.samples` must be a whole number, but is the string \"256\"",
            hint: "without the quotes: 256",
        },
        Case {
            text: "calibration.samples = -3",
            display: "c.toml:1:23: `calibration.samples` must be 0 or more, but is the number -3",
            hint: "",
        },
        Case {
            text: "calibration.data = 'a.txt'",
            display: "c.toml:1:20: `calibration.data` must be a list, but is the string \"a.txt\"",
            hint: "write `[\"a.txt\"]`",
        },
        Case {
            text: "calibration.data = [\n  'a.txt',\n  3]",
            display: "c.toml:3:3: `calibration.data.1` must be a path in quotes, or a table with a `path`, but is the number 3",
            hint: "",
        },
        Case {
            text: "calibration.data = [{ path = 'a.csv', heder = false }]",
            display: "c.toml:1:39: unknown key `heder` in `calibration.data.0`",
            hint: "did you mean `header`?",
        },
        Case {
            text: "calibration.data = [{ path = 'a.csv', text = 1.5 }]",
            display: "c.toml:1:46: `calibration.data.0.text` must be the name of a column in quotes, or its index from 0, but is the number 1.5",
            hint: "",
        },
        Case {
            text: "calibration.data = ['a.parquet']",
            display: "c.toml:1:21: `calibration.data.0`: the format of `a.parquet` does not follow from its extension: use .jsonl, .txt, .csv or .tsv, or write { path = \"...\", format = \"jsonl\" } (or \"txt\", \"csv\")",
            hint: "",
        },
        Case {
            text: "quantization.weights.bits = 300",
            display: "c.toml:1:29: `quantization.weights.bits` must be a smaller whole number, but is the number 300",
            hint: "",
        },
        Case {
            text: "[model\nsource = 'm'",
            display: "c.toml:1:7: this is not valid TOML: unclosed table, expected `]`",
            hint: "",
        },
        Case {
            text: "model.source = 'm'\nmodel.source = 'n'",
            display: "c.toml:2:7: this is not valid TOML: duplicate key",
            hint: "",
        },
        Case {
            text: "quantization.ignore = [\"re:a\\.b\"]",
            display: "c.toml:1:30: this is not valid TOML: missing escaped value, expected `b`, `e`, `f`, `n`, `r`, `\\`, `\"`, `x`, `u`, `U`",
            hint: "in single quotes a backslash is itself",
        },
        Case {
            text: "calibration.seed = 99999999999999999999",
            display: "c.toml:1:20: the number 99999999999999999999 does not fit into 64 bits",
            hint: "",
        },
    ];
    for Case { text, display, hint } in cases {
        let error = parse(text).unwrap_err();
        assert_eq!(error.to_string(), display, "{text}");
        assert_hint(&error, hint);
    }
}

#[test]
fn contradictions_are_found_at_their_key() {
    /// The config, the key that is blamed and where, a part of the sentence, the start of the hint.
    type Case = (&'static str, &'static str, (usize, usize), &'static str, &'static str);
    let cases: &[Case] = &[
        ("[calibration]\nsamples = 0", "calibration.samples", (3, 11), "between 1 and 1000000, but is 0", ""),
        ("[calibration]\nmax_length = 2", "calibration.max_length", (3, 14), "between 5 and", ""),
        ("[calibration]\nbatch_size = 5000", "calibration.batch_size", (3, 14), "between 1 and 4096", ""),
        ("[output]\ndir = ''", "output.dir", (3, 7), "must not be empty", ""),
        (
            "[output]\ndir = 'm'",
            "output.dir",
            (3, 7),
            "is the directory of the model itself",
            "choose another",
        ),
        (
            "[output]\nformats = []",
            "output.formats",
            (3, 11),
            "names no format",
            "allowed: [\"compressed-tensors\"]",
        ),
        (
            "model.revision = \"a\\u001b[2J\"",
            "model.revision",
            (2, 18),
            "must not contain control characters",
            "",
        ),
        (
            "quantization.weights.bits = 4",
            "quantization.weights.bits",
            (2, 29),
            "must be 8, but is 4",
            "allowed: 8",
        ),
        (
            "quantization.weights.symmetric = false",
            "quantization.weights.symmetric",
            (2, 34),
            "no INT8 runtime loads asymmetric weights",
            "remove `symmetric`",
        ),
        (
            "quantization.scheme = 'w8a8-dynamic'\nquantization.activations.mode = 'static'",
            "quantization.activations.mode",
            (3, 33),
            "contradicts the scheme \"w8a8-dynamic\"",
            "write `scheme = \"w8a8-static\"`",
        ),
        (
            "quantization.activations = { mode = 'static', granularity = 'token' }",
            "quantization.activations.granularity",
            (2, 61),
            "must be \"tensor\" for static activations",
            "allowed: \"tensor\" for static activations",
        ),
        (
            "quantization.activations.observer = 'mse'",
            "quantization.activations.observer",
            (2, 37),
            "dynamic activations take their range at run time",
            "remove `observer`",
        ),
        (
            "quantization.activations = { mode = 'static', percentile = 99.9 }",
            "quantization.activations.percentile",
            (2, 60),
            "the observer is not \"percentile\"",
            "write `observer = \"percentile\"`",
        ),
        (
            "quantization.activations = { mode = 'static', observer = 'percentile', percentile = 0.999 }",
            "quantization.activations.percentile",
            (2, 85),
            "between 50 and 100, but is 0.999",
            "percentiles are in percent",
        ),
        ("quantization.ignore = ['a', 're:(b']", "quantization.ignore.1", (2, 29), "unclosed group", ""),
        (
            "quantization.ignore = ['re:']",
            "quantization.ignore.0",
            (2, 24),
            "no expression",
            "`re:.*` matches every",
        ),
        (
            "[[quantization.overrides]]\nlayers = []",
            "quantization.overrides.0.layers",
            (3, 10),
            "names no layer",
            "`re:.*` is every layer",
        ),
        (
            "[[quantization.overrides]]\nlayers = ['a']\nscheme = 'none'\nweights = { bits = 8 }",
            "quantization.overrides.0.weights",
            (5, 11),
            "these layers stay float",
            "remove `weights` or `scheme`",
        ),
        (
            "[[evaluation.tasks]]\nkind = 'sts'",
            "evaluation.tasks.0.data",
            (2, 1),
            "needs samples",
            "add `data",
        ),
        (
            "[[evaluation.tasks]]\nkind = 'sts'\ndata = 'a.txt'",
            "evaluation.tasks.0.data",
            (4, 8),
            "an sts task needs `text_a`, `text_b`, `score`",
            "allowed: a jsonl or csv file",
        ),
        (
            "[[evaluation.tasks]]\nkind = 'sts'\ndata = { path = 'a.csv', header = false, text_a = 0 }",
            "evaluation.tasks.0.data",
            (4, 8),
            "needs the index of `text_b`, `score`",
            "for example `text_b = 0, score = 1`",
        ),
        (
            "[[evaluation.tasks]]\nkind = 'fidelity'\nname = 'a b'",
            "evaluation.tasks.0.name",
            (4, 8),
            "is not a name",
            "allowed: up to 64 letters",
        ),
        (
            "[[evaluation.tasks]]\nkind = 'fidelity'\n[[evaluation.tasks]]\nkind = 'fidelity'",
            "evaluation.tasks.1.name",
            (4, 1),
            "two tasks are called `fidelity`",
            "give one of them another `name`",
        ),
        (
            "[[evaluation.gate]]\ntask = 'fidelty'\nmetric = 'cosine_min'\nmax_drop = 0.1",
            "evaluation.gate.0.task",
            (3, 8),
            "no task is called so",
            "did you mean `fidelity`?",
        ),
        (
            "evaluation.tasks = []\nevaluation.gate = [{ task = 'x', metric = 'accuracy', max_drop = 0 }]",
            "evaluation.gate.0.task",
            (3, 29),
            "no task is called so",
            "there are no tasks",
        ),
        (
            "[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'accuracy'\nmax_drop = 0.1",
            "evaluation.gate.0.metric",
            (4, 10),
            "which the fidelity task `fidelity` has not",
            "allowed: `cosine_mean`, `cosine_min`, `cosine_p01`, `top1_agreement`",
        ),
        (
            "[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_min'\nmax_drop = 2",
            "evaluation.gate.0.max_drop",
            (5, 12),
            "between 0 and 1, but is 2",
            "metrics are fractions: one percent is 0.01",
        ),
        (
            "[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_min'\nmax_drop = nan",
            "evaluation.gate.0.max_drop",
            (5, 12),
            "but is NaN",
            "metrics are fractions",
        ),
        (
            "calibration.data = [{ path = 'a.txt', text = 'x' }]",
            "calibration.data.0.text",
            (2, 46),
            "a txt file has no columns",
            "remove `text`",
        ),
        (
            "calibration.data = [{ path = 'a.jsonl', text = 0 }]",
            "calibration.data.0.text",
            (2, 48),
            "the fields of jsonl have names",
            "give the name of the field",
        ),
        (
            "calibration.data = [{ path = 'a.csv', header = false, text = 'x' }]",
            "calibration.data.0.text",
            (2, 62),
            "no header to find it in",
            "give the index",
        ),
        (
            "calibration.data = [{ path = 'a.jsonl', header = true }]",
            "calibration.data.0.header",
            (2, 50),
            "only a csv file has one",
            "remove `header`",
        ),
        (
            "calibration.data = [{ path = 'a.csv', delimiter = 'é' }]",
            "calibration.data.0.delimiter",
            (2, 51),
            "one ASCII character",
            "allowed",
        ),
    ];
    for (text, key, place, sentence, hint) in cases {
        let error = parse(&format!("{MODEL}{text}")).unwrap_err();
        assert_eq!(error.key(), Some(*key), "{text}: {error}");
        assert_eq!((error.line(), error.column()), (Some(place.0), Some(place.1)), "{text}: {error}");
        assert!(error.message().contains(sentence), "{text}: {error}");
        assert_hint(&error, hint);
    }
}

fn assert_hint(error: &ConfigError, start: &str) {
    let hint = error.hint().unwrap_or_default();
    assert!(
        hint.starts_with(start) && hint.is_empty() == start.is_empty(),
        "{error}: hint {hint:?}, not {start:?}"
    );
}

#[test]
fn a_mistake_is_shown_on_its_line() {
    let error = parse("[model]\nsource = 'm'\n\n[calibration]\n\tsamplse = 10 # ten").unwrap_err();
    assert_eq!(error.source_line(), Some("\tsamplse = 10 # ten"));
    assert_eq!(
        error.render(),
        "error: unknown key `samplse` in `calibration`\n\
         \x20--> c.toml:5:2\n\
         \x20 |\n\
         5 |  samplse = 10 # ten\n\
         \x20 |  ^^^^^^^\n\
         hint: did you mean `samples`? allowed: `data`, `samples`, `max_length`, `batch_size`, `seed`\n"
    );
    let error = with_sets(&["model.task=embeding"]).unwrap_err();
    assert_eq!(
        error.render(),
        "error: `model.task` cannot be `embeding`\n\
         --> --set model.task=embeding\n\
         hint: did you mean `embedding`? allowed: `auto`, `embedding`, `classification`, \
         `token-classification`, `masked-lm`, `question-answering`\n"
    );
}

#[test]
fn a_message_cannot_steer_the_terminal() {
    let error = parse("\"a\\u001b[2J\" = 1 # \u{1}").unwrap_err();
    assert!(!error.render().chars().any(|c| c.is_control() && c != '\n'), "{:?}", error.render());
    let error = parse("\"a\\u001b[2J\" = 1").unwrap_err();
    assert!(error.message().contains("\\u{1b}[2J"), "{error}");
}

#[test]
fn mistakes_in_set_name_it() {
    let cases = [
        ("samples", "there is no `=` in this `--set`", "write `--set key=value`"),
        ("calibration..samples=1", "`calibration..samples` is not a key", "write `--set key=value`"),
        ("=1", "`` is not a key", "write `--set key=value`"),
        ("calibration.sample=1", "unknown key `sample` in `calibration`", "did you mean `samples`?"),
        ("calibration.samples=0", "`calibration.samples` must be between 1 and 1000000, but is 0", ""),
        (
            "calibration.samples=few",
            "`calibration.samples` must be a whole number, but is the string \"few\"",
            "",
        ),
        ("model.source.x=1", "`model.source` is the string \"m\", so it has no key `x`", ""),
        ("calibration.data.1=a.txt", "`calibration.data` has no entry `1`", "the list is empty"),
        ("calibration.data=[", "the value of `calibration.data` is not valid TOML", "a plain string"),
        ("model.revision=7", "`model.revision` must be a string, but is the number 7", "quote it twice"),
        ("evaluation.tasks.0.limit=5", "`evaluation.tasks.0.kind` is missing", ""),
    ];
    for (set, message, hint) in cases {
        // The list exists in the case of index 1 only.
        let sets: &[&str] = if set.contains("data.1") { &["calibration.data=[]", set] } else { &[set] };
        let error = with_sets(sets).unwrap_err();
        assert_eq!(error.to_string(), format!("--set {set}: {message}"));
        assert_eq!(error.line(), None);
        assert_hint(&error, hint);
    }
}

#[test]
fn a_file_that_cannot_be_a_config_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let load = |name: &str, bytes: Option<&[u8]>| {
        let path = dir.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let result = Config::load(&path, &[]);
        if let Err(error) = &result {
            assert_eq!(error.origin(), path.display().to_string());
        }
        result.map_err(|error| error.message().to_owned())
    };
    assert_eq!(load("absent.toml", None).unwrap_err(), "there is no such config file");
    assert_eq!(load("", None).unwrap_err(), "this is a directory, not a config file");
    assert_eq!(load("latin1.toml", Some(b"# a\n# \xe9")).unwrap_err(), "line 2 of the config is not UTF-8");
    assert!(load("big.toml", Some(&vec![b'#'; (1 << 20) + 1])).unwrap_err().contains("larger than 1 MiB"));
    assert!(load("deep.toml", Some(format!("x = {}", "[".repeat(100_000)).as_bytes())).is_err());
    assert_eq!(
        load("bom.toml", Some(b"\xef\xbb\xbfmodel.source = 'm'\r\n")),
        parse(MODEL).map_err(|_| String::new())
    );
}
