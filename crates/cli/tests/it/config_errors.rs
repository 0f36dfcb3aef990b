//! What each mistake in a config is answered with, in the file or on the command line, found at once or when what it names
//! turns out not to be there. The snapshots are documents to be read.
#![cfg(unix)] // the snapshots hold what the system says about files

use crate::scene::answers::Answers;

#[test]
fn config_files() {
    let mut answers = Answers::new();
    answers.scene.write("latin1.toml", b"version = 1\n# caf\xe9\n");
    answers.scene.write("directory/config.toml", "");
    for (mistake, file) in [
        ("a config that does not exist", "absent.toml"),
        ("a directory", "directory"),
        ("a config that is not UTF-8", "latin1.toml"),
    ] {
        answers.refused(2, mistake, &["run", file, "--no-cache", "--out", "out"]);
    }
    let model = "version = 1\nmodel.source = 'embedded'\n";
    for (mistake, text) in [
        ("not TOML", "version = 1\nmodel.source = 'embedded\n"),
        ("an unknown version", "version = 3\nmodel.source = 'embedded'\n"),
        ("no model", "version = 1\n"),
        ("a key that is nearly right", &format!("{model}[calibration]\nsamplse = 3\n")),
        ("a table that is nearly right", &format!("{model}[quantisation]\n")),
        ("a key from another tool", &format!("{model}[quantization]\ngroup_size = 128\n")),
        ("a value of another type", &format!("{model}calibration.samples = '64'\n")),
        ("a value that is not offered", &format!("{model}quantization.scheme = 'w4a4'\n")),
        ("a number out of range", &format!("{model}calibration.batch_size = 0\n")),
        (
            "keys that contradict each other",
            &format!("{model}[quantization]\nscheme = 'w8a8-dynamic'\nactivations.observer = 'mse'\n"),
        ),
        (
            "a scheme and a mode that contradict each other",
            &format!("{model}[quantization]\nscheme = 'w8a8-dynamic'\nactivations.mode = 'static'\n"),
        ),
        (
            "a percentile without its observer",
            &format!("{model}[quantization]\nscheme = 'w8a8-static'\nactivations.percentile = 99\n"),
        ),
        (
            "a gate on a task that does not exist",
            &format!("{model}[[evaluation.gate]]\ntask = 'sts'\nmetric = 'spearman'\nmax_drop = 0.1\n"),
        ),
        (
            "a gate on a metric that the task does not have",
            &format!("{model}[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'accuracy'\nmax_drop = 0.1\n"),
        ),
        (
            "a gate in percent",
            &format!("{model}[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_mean'\nmax_drop = 5\n"),
        ),
        ("a task without data", &format!("{model}[[evaluation.tasks]]\nkind = 'classification'\n")),
        (
            "a pattern that is no regular expression",
            &format!("{model}quantization.ignore = ['re:encoder.(layer']\n"),
        ),
        ("data in an unknown format", &format!("{model}calibration.data = ['texts.arrow']\n")),
    ] {
        answers.config(mistake, text);
    }
    answers.compare("config_errors__config_files");
}

#[test]
fn keys_and_values() {
    let mut answers = Answers::new();
    let model = "version = 1\nmodel.source = 'embedded'\n";
    for (mistake, text) in [
        ("a key given twice", "calibration.seed = 1\ncalibration.seed = 2\n"),
        ("a table that is not closed", "[calibration\nsamples = 3\n"),
        ("a backslash in double quotes", "quantization.ignore = [\"re:bert\\.pooler\"]\n"),
        ("a number that is too large", "calibration.seed = 99999999999999999999\n"),
        ("a negative number", "calibration.samples = -3\n"),
        ("a date", "model.revision = 2024-01-31\n"),
        ("a string in place of a table", "calibration = 'texts.txt'\n"),
        ("a string in place of a list", "calibration.data = 'texts.txt'\n"),
        ("a number among files", "calibration.data = [\n    'texts.txt',\n    3, # the third\n]\n"),
        ("a flag in quotes", "quantization.activations.symmetric = 'yes'\n"),
        ("characters of several bytes before it", "model.revision = '\u{2713} caf\u{e9}'; # \u{e4}\n"),
        ("a control character", "output.dir = \"runs/\\u001b[31m\"\n"),
        ("an empty path", "output.dir = ''\n"),
        ("a revision of the embedded model", "model.revision = 'main'\n"),
        ("a source with a prefix", "model = { source = 'hub:org/model' }\n"),
        ("a text of two tokens", "calibration.max_length = 2\n"),
        ("an empty batch", "evaluation.batch_size = 0\n"),
        ("a task that has nothing to measure on", "calibration.samples = 0\noutput.self_check = false\n"),
        ("no format", "output.formats = []\n"),
        ("an unknown format", "output.formats = ['onnx']\n"),
    ] {
        let head = if text.starts_with("model = ") { "version = 1\n" } else { model };
        answers.config(mistake, &format!("{head}{text}"));
    }
    answers.compare("config_errors__keys_and_values");
}

#[test]
fn schemes() {
    let mut answers = Answers::new();
    for (mistake, text) in [
        ("four bits", "[quantization]\nweights.bits = 4\n"),
        ("asymmetric weights", "[quantization]\nweights = { symmetric = false }\n"),
        ("groups", "[quantization]\nweights = { granularity = 'group' }\n"),
        (
            "static activations per token",
            "[quantization]\nactivations = { mode = 'static', granularity = 'token' }\n",
        ),
        (
            "a percentile as a fraction",
            "[quantization]\nscheme = 'w8a8-static'\n\n[quantization.activations]\nobserver = 'percentile'\n\
             percentile = 0.999\n",
        ),
        ("an algorithm that is not here", "[quantization]\nalgorithm = { kind = 'awq' }\n"),
        ("damping of rounding to nearest", "[quantization]\nalgorithm = { kind = 'rtn', damping = 0.01 }\n"),
        ("a transform that is not here", "[[quantization.transforms]]\nkind = 'spinquant'\n"),
        ("a rotation that the model does not take", "[[quantization.transforms]]\nkind = 'rotation'\n"),
        (
            "a smoothing where it is not exact",
            "[[quantization.transforms]]\nkind = 'smoothquant'\nlayers = ['re:.*query']\n",
        ),
        (
            "a transform of layers that are not there",
            "[[quantization.transforms]]\nkind = 'smoothquant'\nlayers = ['re:nowhere']\n",
        ),
        (
            "an online rotation in a portable directory",
            "[[quantization.transforms]]\nkind = 'online-rotation'\n",
        ),
        ("a pattern without an expression", "[quantization]\nignore = ['classifier', 're:']\n"),
        ("an override of nothing", "[[quantization.overrides]]\nlayers = []\nscheme = 'none'\n"),
        ("an override without layers", "[[quantization.overrides]]\nscheme = 'none'\n"),
        (
            "how to quantise what stays float",
            "[[quantization.overrides]]\nlayers = ['classifier']\nscheme = 'none'\nweights = { observer = 'mse' }\n",
        ),
        (
            "an observer of dynamic activations in an override",
            "[quantization]\nscheme = 'w8a8-static'\n\n[[quantization.overrides]]\nlayers = ['re:.*']\n\
             scheme = 'w8a8-dynamic'\nactivations = { observer = 'min-max' }\n",
        ),
    ] {
        answers.config(mistake, &format!("version = 1\nmodel.source = 'embedded'\n\n{text}"));
    }
    answers.compare("config_errors__schemes");
}

#[test]
fn data_and_tasks() {
    let mut answers = Answers::new();
    for (mistake, text) in [
        ("an unknown key of a file", "calibration.data = [{ path = 'a.csv', heder = false }]\n"),
        ("a file without its path", "calibration.data = [{ format = 'csv' }]\n"),
        ("a header of a jsonl file", "calibration.data = [{ path = 'a.jsonl', header = true }]\n"),
        ("a column of a txt file", "calibration.data = [{ path = 'a.txt', text = 'body' }]\n"),
        ("the number of a field", "calibration.data = [{ path = 'a.jsonl', text = 0 }]\n"),
        (
            "a name without a header",
            "[[calibration.data]]\npath = 'a.csv'\nheader = false\n\ntext = 'body'\n",
        ),
        ("half a column", "calibration.data = [{ path = 'a.csv', text = 1.5 }]\n"),
        ("a delimiter of two characters", "calibration.data = [{ path = 'a.csv', delimiter = '||' }]\n"),
        ("a quote as a delimiter", "calibration.data = [{ path = 'a.csv', delimiter = '\"' }]\n"),
        ("an unknown task", "[[evaluation.tasks]]\nkind = 'retrieval'\n"),
        ("a task without its kind", "[[evaluation.tasks]]\ndata = 'a.jsonl'\n"),
        ("pairs in a txt file", "[[evaluation.tasks]]\nkind = 'sts'\ndata = 'pairs.txt'\n"),
        (
            "pairs without a column for the score",
            "[[evaluation.tasks]]\nkind = 'sts'\ndata = { path = 'a.csv', header = false, text_a = 0, text_b = 1 }\n",
        ),
        (
            "two tasks of one name",
            "[[evaluation.tasks]]\nkind = 'fidelity'\n\n[[evaluation.tasks]]\nkind = 'fidelity'\ndata = 'a.txt'\n",
        ),
        ("a name with a space", "[[evaluation.tasks]]\nkind = 'fidelity'\nname = 'my task'\n"),
        ("no samples", "[[evaluation.tasks]]\nkind = 'fidelity'\nlimit = 0\n"),
        ("a gate without its limit", "[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_mean'\n"),
        (
            "two gates on one metric",
            "[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_min'\nmax_drop = 0.1\n\n\
             [[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'cosine_min'\nmax_drop = 0.2\n",
        ),
        (
            "a metric of another task",
            "[[evaluation.tasks]]\nkind = 'sts'\ndata = 'pairs.jsonl'\n\n[[evaluation.gate]]\ntask = 'sts'\n\
             metric = 'accuracy'\nmax_drop = 0.1\n",
        ),
        (
            "a gate without any task",
            "evaluation.tasks = []\n[[evaluation.gate]]\ntask = 'sts'\nmetric = 'spearman'\nmax_drop = 0.1\n",
        ),
    ] {
        answers.config(mistake, &format!("version = 1\nmodel.source = 'embedded'\n\n{text}"));
    }
    answers.compare("config_errors__data_and_tasks");
}

#[test]
fn what_a_config_names() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.write("texts.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n");
    scene.write("columns.csv", "sentence,points\nA cold day.,1\n");
    scene.write("labels.jsonl", "{\"text\": \"a\", \"label\": \"poetry\"}\n");
    scene.write("broken.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"\n");
    scene.copy_fixture("bert-mean", "encoder");
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);
    let embedded = "[model]\nsource = 'embedded'\n\n";
    let encoder = "[model]\nsource = 'encoder'\n\n";
    for (code, mistake, text) in [
        (2, "a model that does not exist", "[model]\nsource = './models/absent'\n".to_owned()),
        (1, "a model that is quantised already", "[model]\nsource = 'finished/model'\n".to_owned()),
        (
            2,
            "a task that the model does not fit",
            "[model]\nsource = 'encoder'\ntask = 'classification'\n".to_owned(),
        ),
        (
            2,
            "a data file that does not exist",
            format!(
                "{embedded}[calibration]\ndata = [\n    'texts.jsonl',\n    'absent.jsonl', # to be written\n]\n"
            ),
        ),
        (
            2,
            "a field that the data file does not have",
            format!("{embedded}[[calibration.data]]\npath = 'columns.csv'\ntext = 'body'\n"),
        ),
        (1, "a data file that is broken", format!("{embedded}[calibration]\ndata = ['broken.jsonl']\n")),
        (
            2,
            "a task on a file that does not exist",
            format!("{embedded}[[evaluation.tasks]]\nkind = 'classification'\ndata = 'absent.jsonl'\n"),
        ),
        (
            2,
            "a task on texts without labels",
            format!(
                "{embedded}[[evaluation.tasks]]\nkind = 'classification'\ndata = {{ path = 'texts.jsonl' }}\n"
            ),
        ),
        (
            1,
            "a task on labels of another model",
            format!("{embedded}[[evaluation.tasks]]\nkind = 'classification'\ndata = 'labels.jsonl'\n"),
        ),
        (
            2,
            "a task that the model does not do",
            format!("{encoder}[[evaluation.tasks]]\nkind = 'classification'\ndata = 'labels.jsonl'\n"),
        ),
        (
            2,
            "a gate that this model cannot hold",
            format!(
                "{encoder}[[evaluation.gate]]\ntask = 'fidelity'\nmetric = 'top1_agreement'\nmax_drop = 0.01\n"
            ),
        ),
        (
            2,
            "a pattern that matches nothing",
            format!("{encoder}[quantization]\nignore = [\n    'pooler.dense',\n    'classifier',\n]\n"),
        ),
        (
            2,
            "an override that matches nothing",
            format!(
                "{encoder}[[quantization.overrides]]\nlayers = ['re:encoder\\.layer\\.0', 're:encoder\\.layer\\.9']\n\
                 scheme = 'none'\n"
            ),
        ),
        (
            2,
            "an override of what stays float anyway",
            format!(
                "{encoder}[[quantization.overrides]]\nlayers = ['pooler.dense']\nscheme = 'w8a8-static'\n"
            ),
        ),
        (2, "nothing left to quantise", format!("{encoder}[quantization]\nignore = ['re:.*']\n")),
        (
            2,
            "static activations of what the task does not run",
            format!("{encoder}[quantization]\nscheme = 'w8a8-static'\nignore = []\n"),
        ),
        (1, "an output that exists", format!("{embedded}[output]\ndir = 'finished'\n")),
        (2, "an output that is the model", format!("{encoder}[output]\ndir = 'encoder'\n")),
    ] {
        answers.scene.write("mistake.toml", text);
        answers.refused(code, mistake, &["run", "mistake.toml", "--no-cache"]);
    }
    answers.compare("config_errors__what_a_config_names");
}

#[test]
fn first_configs() {
    let mut answers = Answers::new();
    let scene = &answers.scene;
    scene.copy_fixture("bert-mean", "model");
    scene.write("directory/config.toml", "");
    scene.succeeds(["run", "config.toml", "--no-cache", "--out", "finished", "--set", "evaluation.tasks=[]"]);
    for (code, mistake, arguments) in [
        (2, "no model", &["init"][..]),
        (2, "a model that does not exist", &["init", "absent"]),
        (2, "a file", &["init", "config.toml"]),
        (1, "a model that is quantised already", &["init", "finished/model"]),
        (2, "an unknown scheme", &["init", "embedded", "--scheme", "w4a4"]),
        (2, "a schema beside standard output", &["init", "embedded", "--schema"]),
        (1, "a file that is there", &["init", "embedded", "--out", "config.toml"]),
        (1, "a directory", &["init", "embedded", "--out", "directory", "--force"]),
        (2, "a file of the model", &["init", "model", "--out", "model/config.json", "--force"]),
        (1, "the name of the schema", &["init", "embedded", "--out", "zeropoint.schema.json", "--schema"]),
    ] {
        answers.refused(code, mistake, arguments);
    }
    answers.compare("config_errors__first_configs");
}

#[test]
fn changes_to_a_config() {
    let mut answers = Answers::new();
    for (mistake, change) in [
        ("no value", "calibration.samples"),
        ("an unknown key", "calibration.sample=3"),
        ("a value of another type", "calibration.samples=many"),
        ("a value that is not TOML", "calibration.data=['texts.txt'"),
        ("an entry beyond the end of a list", "evaluation.tasks.5.kind=sts"),
        ("a key of a value", "model.source.name=embedded"),
    ] {
        answers.set(2, mistake, change);
    }
    answers.compare("config_errors__changes_to_a_config");
}

#[test]
fn patterns() {
    let mut answers = Answers::new();
    for (mistake, change) in [
        ("a name without its prefix", "quantization.ignore=['encoder.layer.0.attention.self.query']"),
        ("a misspelt name", "quantization.ignore=['bert.encoder.layer.1.intermediate.dens']"),
        (
            "an expression that matches nothing",
            "quantization.overrides=[{layers=['re:bert\\.encoder\\.layer\\.7\\.'],scheme='none'}]",
        ),
        ("nothing left to quantise", "quantization.ignore=['re:.*']"),
        (
            "an override of what is ignored",
            "quantization.overrides=[{layers=['classifier'],scheme='w8a8-dynamic'}]",
        ),
    ] {
        answers.set(2, mistake, change);
    }
    answers.compare("config_errors__patterns");
}
