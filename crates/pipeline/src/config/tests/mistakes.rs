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
            hint: "write `[model]` with its keys below it",
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
            hint: "did you mean `samples`? allowed: `data`, `samples`, `sequences`, `max_length`, `batch_size`, `transform_tokens`, `seed`",
        },
        Case {
            text: "[quantization]\ntransform = [{ kind = 'smoothquant' }]",
            display: "c.toml:2:1: unknown key `transform` in `quantization`",
            hint: "did you mean `transforms`? allowed: `scheme`, `weights`, `activations`, ",
        },
        Case {
            text: "[quantization]\nalgorithm = { kind = 'awq' }",
            display: "c.toml:2:22: `quantization.algorithm.kind` cannot be `awq`",
            hint: "allowed: `rtn`, `gptq`",
        },
        Case {
            text: "model.source = 'm'\n[quantization]\nalgorithm = { kind = 'rtn', damping = 0.1 }",
            display: "c.toml:3:39: `quantization.algorithm.damping` is given, but the algorithm is not \"gptq\"",
            hint: "remove `damping`, or write `kind = \"gptq\"`",
        },
        Case {
            text: "model.source = 'm'\n[quantization]\nalgorithm = { kind = 'gptq', damping = 2 }",
            display: "c.toml:3:40: `quantization.algorithm.damping` must be between 0 and 1, but is 2",
            hint: "write a number of this range",
        },
        Case {
            text: "model.source = 'm'\n[calibration]\nsamples = 0\n[quantization]\nalgorithm.kind = 'gptq'",
            display: "c.toml:3:11: `calibration.samples` is 0, but `quantization.algorithm` goes by what calibration shows",
            hint: "ask for samples",
        },
        Case {
            text: "model.source = 'm'\n[calibration]\nsamples = 0\n[[quantization.transforms]]\nkind = 'smoothquant'",
            display: "c.toml:3:11: `calibration.samples` is 0, but `quantization.transforms.0` goes by what calibration shows",
            hint: "ask for samples",
        },
        Case {
            text: "model.source = 'm'\n[calibration]\nsamples = 0\n[quantization]\nscheme = 'best-int8'\nalgorithm.kind = 'rtn'",
            display: "c.toml:3:11: `calibration.samples` is 0, but `quantization.scheme` goes by what calibration shows",
            hint: "ask for samples",
        },
        Case {
            text: "model.source = 'm'\n[[quantization.transforms]]\nkind = 'rotation'\nlayers = ['a']",
            display: "c.toml:4:10: `quantization.transforms.0.layers` is given, but the transform is \"rotation\"",
            hint: "remove `layers`",
        },
        Case {
            text: "model.source = 'm'\n[[quantization.transforms]]\nkind = 'rotation'\nresidual = false\nheads = false",
            display: "c.toml:2:1: `quantization.transforms.0` rotates nothing: `residual` and `heads` are both false",
            hint: "remove it",
        },
        Case {
            text: "model.source = 'm'\n[[quantization.transforms]]\nkind = 'online-rotation'\nsmooth = false\nstrength = 0.5",
            display: "c.toml:5:12: `quantization.transforms.0.strength` is given, but `smooth` is false",
            hint: "remove `strength` or `smooth`",
        },
        Case {
            text: "model.source = 'm'\n[[quantization.transforms]]\nkind = 'smoothquant'\nstrength = 1.5",
            display: "c.toml:4:12: `quantization.transforms.0.strength` must be between 0 and 1, but is 1.5",
            hint: "write a number of this range",
        },
        Case {
            text: "model.source = 'm'\n[[evaluation.tasks]]\nkind = 'perplexity'\ndata = 'a.csv'",
            display: "c.toml:4:8: `evaluation.tasks.0.data` is not txt, and a perplexity task reads the whole file as one text",
            hint: "allowed: a txt file",
        },
        Case {
            text: "model.source = 'm'\n[[evaluation.tasks]]\nkind = 'perplexity'\ndata = 'a.txt'\nlimit = 4",
            display: "c.toml:5:9: `evaluation.tasks.0.limit` is given, but a perplexity task on windows has one text and no samples",
            hint: "write `windows` for the number of windows",
        },
        Case {
            text: "model.source = 'm'\n[[evaluation.tasks]]\nkind = 'perplexity'\ndata = 'a.txt'\nwindow = 1",
            display: "c.toml:5:10: `evaluation.tasks.0.window` must be between 2 and 1048576, but is 1",
            hint: "write a number of this range",
        },
        Case {
            text: "model.source = 'm'\n[[evaluation.tasks]]\nkind = 'masked-lm'\nstride = 4",
            display: "c.toml:4:10: `evaluation.tasks.0.stride` is given, but only perplexity and fidelity have windows",
            hint: "remove `stride`",
        },
        Case {
            text: "model.source = 'm'\n[[evaluation.tasks]]\nkind = 'sts'\ndata = 'a.csv'\ncounting = 'llama.cpp'",
            display: "c.toml:5:12: `evaluation.tasks.0.counting` is given, but only perplexity and fidelity have windows",
            hint: "remove `counting`",
        },
        Case {
            text: "model.source = 'm'\n[[evaluation.tasks]]\nkind = 'fidelity'\nstride = 4",
            display: "c.toml:2:1: `evaluation.tasks.0.data` is missing: the fidelity task needs a text",
            hint: "add `data = \"FILE\"`, txt",
        },
        Case {
            text: "model.source = 'm'\n[[evaluation.tasks]]\nkind = 'fidelity'\nwindows = 4\ndata = 'a.jsonl'",
            display: "c.toml:5:8: `evaluation.tasks.0.data` is not txt, and a fidelity task with windows reads the whole file as one text",
            hint: "allowed: a txt file",
        },
        Case {
            text: "model.source = 'm'\n[[evaluation.tasks]]\nkind = 'perplexity'\ndata = 'a.txt'\ncounting = 'llama.cpp'\nstride = 64",
            display: "c.toml:6:10: `evaluation.tasks.0.stride` is not `window`, but llama.cpp's windows do not overlap",
            hint: "remove `stride`",
        },
        Case {
            text: "model.source = 'm'\n[[evaluation.tasks]]\nkind = 'perplexity'\ndata = 'a.txt'\ncounting = 'llama.cpp'\nwindow = 2",
            display: "c.toml:6:10: `evaluation.tasks.0.window` must be between 3 and 1048576, but is 2",
            hint: "write a number of this range",
        },
        Case {
            text: "[quantization]\nscheme = 'w8a8_static'",
            display: "c.toml:2:10: `quantization.scheme` cannot be `w8a8_static`",
            hint: "did you mean `w8a8-static`? allowed: `w8a8-dynamic`, `w8a8-static`, `w8a16`, `w4a16`, `best-int8`",
        },
        Case {
            text: "quantization.weights.granularity = 'row'",
            display: "c.toml:1:36: `quantization.weights.granularity` cannot be `row`",
            hint: "allowed: `channel`, `tensor`, `group`",
        },
        Case {
            text: "quantization.scheme = 8",
            display: "c.toml:1:23: `quantization.scheme` must be one of `w8a8-dynamic`, `w8a8-static`, `w8a16`, `w4a16`, `best-int8`, `best-int8-runtime`, but is the number 8",
            hint: "write one of `w8a8-dynamic`",
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
            hint: "the number has no sign here",
        },
        Case {
            text: "calibration.data = 'a.txt'",
            display: "c.toml:1:20: `calibration.data` must be a list, but is the string \"a.txt\"",
            hint: "write `[\"a.txt\"]`",
        },
        Case {
            text: "calibration.data = [\n  'a.txt',\n  3]",
            display: "c.toml:3:3: `calibration.data.1` must be a path in quotes, or a table with a `path`, but is the number 3",
            hint: "write a path in quotes, or a table",
        },
        Case {
            text: "calibration.data = [{ path = 'a.csv', heder = false }]",
            display: "c.toml:1:39: unknown key `heder` in `calibration.data.0`",
            hint: "did you mean `header`?",
        },
        Case {
            text: "calibration.data = [{ path = 'a.csv', text = 1.5 }]",
            display: "c.toml:1:46: `calibration.data.0.text` must be the name of a column in quotes, or its index from 0, but is the number 1.5",
            hint: "write the name of a column",
        },
        Case {
            text: "calibration.data = ['a.arrow']",
            display: "c.toml:1:21: `calibration.data.0`: the format of `a.arrow` does not follow from its extension",
            hint: "use .jsonl, .txt, .csv, .tsv or .parquet, or write { path = ",
        },
        Case {
            text: "quantization.weights.bits = 300",
            display: "c.toml:1:29: `quantization.weights.bits` must be a smaller whole number, but is the number 300",
            hint: "write a smaller whole number",
        },
        Case {
            text: "[report]\nlatencies = true",
            display: "c.toml:2:1: unknown key `latencies` in `report`",
            hint: "did you mean `latency`?",
        },
        Case {
            text: "report.latency = 'true'",
            display: "c.toml:1:18: `report.latency` must be true or false, but is the string \"true\"",
            hint: "without the quotes: true",
        },
        Case {
            text: "[model\nsource = 'm'",
            display: "c.toml:1:7: this is not valid TOML: unclosed table, expected `]`",
            hint: "`[name]` begins a table; a value is",
        },
        Case {
            text: "model.source = 'm'\nmodel.source = 'n'",
            display: "c.toml:2:7: this is not valid TOML: duplicate key",
            hint: "each key is given once",
        },
        Case {
            text: "quantization.ignore = [\"re:a\\.b\"]",
            display: "c.toml:1:30: this is not valid TOML: missing escaped value, expected `b`, `e`, `f`, `n`, `r`, `\\`, `\"`, `x`, `u`, `U`",
            hint: "in single quotes a backslash is itself",
        },
        Case {
            text: "calibration.seed = 99999999999999999999",
            display: "c.toml:1:20: the number 99999999999999999999 does not fit into 64 bits",
            hint: "allowed: up to 9223372036854775807",
        },
    ];
    for Case { text, display, hint } in cases {
        let error = parse(text).unwrap_err();
        assert_eq!(error.to_string(), display, "{text}");
        assert_hint(&error, hint);
    }
}

#[test]
fn a_mistake_has_marks_with_labels() {
    type Marks = &'static [(&'static str, &'static str)];
    let cases: &[(&str, &[&str], Marks)] = &[
        ("[calibration]\n\tsamplse = 10 # ten", &[], &[("samplse", "unknown key")]),
        ("calibration.batch_size = 0", &[], &[("0", "out of range")]),
        ("", &["calibration.batch_size = 0"], &[("0", "out of range")]),
        ("", &["calibration.sample = 3"], &[("calibration.sample", "unknown key")]),
        ("", &["calibration.data = ['a.txt', 3]"], &[("3", "the number 3")]),
        ("", &["model.task=embeding"], &[("embeding", "not one of those allowed")]),
        (
            "[quantization]\nscheme = 'w8a8-dynamic'\nactivations.mode = 'static'",
            &[],
            &[("'static'", "not of \"w8a8-dynamic\""), ("'w8a8-dynamic'", "the scheme")],
        ),
        // What is written elsewhere cannot be shown beside it.
        (
            "quantization.scheme = 'w8a8-dynamic'",
            &["quantization.activations.mode=static"],
            &[("static", "not of \"w8a8-dynamic\"")],
        ),
        (
            "[[evaluation.tasks]]\nkind = 'fidelity'\n[[evaluation.tasks]]\nkind = 'fidelity'",
            &[],
            &[("[[evaluation.tasks]]", "the second"), ("[[evaluation.tasks]]", "the first")],
        ),
        ("output.dir = 'm'", &[], &[("'m'", "the output"), ("'m'", "the model")]),
        ("[quantization", &[], &[("", "not as TOML has it")]),
    ];
    for (text, sets, expected) in cases {
        let sets: Vec<String> = sets.iter().map(|set| (*set).to_owned()).collect();
        let error = Config::parse(&format!("{MODEL}{text}"), "c.toml", &sets).unwrap_err();
        let excerpt = error.excerpt().unwrap_or_else(|| panic!("{error}"));
        assert_eq!(excerpt.is_file(), sets.is_empty(), "{error}");
        let marks: Vec<(&str, &str)> = excerpt
            .marks()
            .iter()
            .map(|mark| (&excerpt.text()[mark.span.clone()], mark.label.as_str()))
            .collect();
        assert_eq!(&marks, expected, "{error}");
    }
}

#[test]
fn another_output_directory_is_checked_as_well() {
    let config = parse(MODEL).unwrap();
    let error = config.with_output_dir("m", "--out").unwrap_err();
    assert_eq!(error.to_string(), "--out m: `output.dir` is the directory of the model itself");
    assert_eq!(error.excerpt().map(|excerpt| (excerpt.origin(), excerpt.span())), Some(("--out", 0..1)));
    let made = Config::new("m");
    assert!(made.clone().with_output_dir("m", "--out").unwrap_err().excerpt().is_none());
    assert_eq!(made.with_output_dir("n", "--out").unwrap().output_dir(), "n");
}

#[test]
fn a_message_cannot_steer_the_terminal() {
    for text in ["\"a\\u001b[2J\" = 1 # \u{1}", "\"a\\u001b[2J\" = 1"] {
        let error = parse(text).unwrap_err();
        assert!(error.message().chars().all(|c| !c.is_control()), "{:?}", error.message());
    }
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
        (
            "calibration.batch_size=0",
            "`calibration.batch_size` must be between 1 and 4096, but is 0",
            "write a number of this range",
        ),
        (
            "calibration.samples=few",
            "`calibration.samples` must be a whole number, but is the string \"few\"",
            "a whole number stands without quotes",
        ),
        (
            "model.source.x=1",
            "`model.source` is the string \"m\", so it has no key `x`",
            "set `model.source` as a whole",
        ),
        ("calibration.data.1=a.txt", "`calibration.data` has no entry `1`", "the list is empty"),
        (
            "calibration.data=[",
            "the value of `calibration.data` is not valid TOML: unclosed array, expected `]`",
            "`[name]` begins a table",
        ),
        ("model.revision=7", "`model.revision` must be a string, but is the number 7", "quote it twice"),
        ("evaluation.tasks.0.limit=5", "`evaluation.tasks.0.kind` is missing", "add `kind = ...`"),
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
            assert!(error.location().starts_with(&path.display().to_string()), "{error}");
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
