"""OpenVINO's INT8 and Zeropoint's INT8, measured in turns on one model.

    tests/performance/openvino.sh [--venv DIR] ORIGINAL_DIR MODEL_DIR [--texts FILE] [OPTION...]

OpenVINO's model: ORIGINAL_DIR is loaded in f32 with transformers, mean (or CLS) pooling and L2 normalisation are put behind it,
as in Zeropoint's forward, and `openvino.convert_model` traces that. `nncf.quantize` makes it INT8, with NNCF's defaults for
model_type=TRANSFORMER: preset MIXED (weights symmetric per channel, activations asymmetric per tensor, static), SmoothQuant, fast
bias correction; activations are calibrated on the texts of --calibration, 300 of them at most. Before anything is timed, its
sentence vectors must have a mean cosine to torch's f32 of at least --min-cosine.

Cases: 32 x 128, 1 x 32 and 1 x 128 tokens, and, with --texts, a pass over all texts, sorted by length, 32 in a batch. Tokenising is
not timed. What is timed is the forward to sentence vectors, on inputs that are in memory. OpenVINO gets padded batches, as its
models take them, Zeropoint what it makes of the texts itself.

OpenVINO runs as it is fastest: for each case and number of threads all these ways are tried, and the best two are measured:

- attention traced as one operation (sdpa) or as its parts (eager);
- float operations in the precision OpenVINO chooses (bf16 where the processor has it) or in f32;
- one stream with all threads (hint LATENCY), or as many streams as threads with requests in flight (hint THROUGHPUT);
- a batch as one request, or as requests of 8 or of 1; texts are then padded to the longest of their request.

The model is compiled for the static shape of the case. For texts it is compiled with dynamic shapes, and INT8 is also tried with a
model compiled for each shape of the batches, as far as --shapes goes; only the time to run it counts. Measuring goes in rounds,
OpenVINO for about --seconds, then `zeropoint bench` with as many passes; a time in the table is the median of the rounds' medians,
the ratio that of these times, with the lowest and the highest of the rounds behind it. Above 1 Zeropoint is faster.

Exit code 1 when OpenVINO's INT8 is too far from the original, 2 when something is missing.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

HERE = Path(__file__).resolve().parent
# This file's name must not hide the package openvino.
sys.path[:] = [path for path in sys.path if Path(path).resolve() != HERE]

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")

PACKAGES = ["openvino", "nncf", "torch", "transformers"]
# Sentences of a batch and their tokens.
SHAPES = [(32, 128), (1, 32), (1, 128)]
TEXTS_AT_ONCE = 32
# NNCF's own default number of calibration samples.
CALIBRATION_TEXTS = 300
# Texts whose sentence vectors are compared with the original's.
COMPARED_TEXTS = 200
# A trial of a way to run OpenVINO: milliseconds, least and most passes, of which the fastest counts, and how many batches of
# texts make one.
TRIAL_MS = 700
TRIAL_PASSES = (2, 20)
TRIAL_BATCHES = 12
ATTENTIONS = ["sdpa", "eager"]


class Unusable(Exception):
    """What the user gave cannot be used, or something needed is missing."""


def note(text):
    print(text, file=sys.stderr, flush=True)


def parse_arguments():
    parser = argparse.ArgumentParser(
        prog="openvino.sh",
        description="Measure OpenVINO's INT8 and Zeropoint's INT8 in turns, on one model.",
        epilog="openvino.sh itself takes --venv DIR, before all else, and reads ZEROPOINT and PYTHON; see its first lines.",
    )
    parser.add_argument("original", type=Path, metavar="ORIGINAL_DIR", help="float sentence encoder of the BERT kind")
    parser.add_argument("model", type=Path, metavar="MODEL_DIR", help="what zeropoint run made of it")
    parser.add_argument("--texts", type=Path, metavar="FILE",
                        help="measure these texts too: .txt, one a line, or .jsonl with the key text")
    parser.add_argument("--calibration", type=Path, metavar="FILE",
                        default=HERE.parent.parent / "calibration-data" / "general-en.jsonl",
                        help="texts for NNCF, as in --texts (default: calibration-data/general-en.jsonl)")
    parser.add_argument("--threads", default="1,2", metavar="N,...", help="numbers of threads (default: 1,2)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="rounds of a case (default: 5)")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S",
                        help="what an engine takes of a round, about; three passes at least (default: 1)")
    parser.add_argument("--shapes", type=int, default=32, metavar="N",
                        help="try OpenVINO's INT8 compiled for each of this many shapes of the texts' batches, which takes "
                             "N times the model's memory; 0 for dynamic shapes alone (default: 32)")
    parser.add_argument("--min-cosine", type=float, default=0.98, metavar="C",
                        help="least mean cosine of OpenVINO's INT8 to the original (default: 0.98)")
    parser.add_argument("--no-float", action="store_true", help="leave OpenVINO's float model out")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was measured here")
    parser.add_argument("--zeropoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--check-arguments", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        args.threads = [int(count) for count in args.threads.split(",")]
    except ValueError:
        parser.error(f"--threads takes numbers with commas, not {args.threads}")
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    for count in args.threads:
        if not 1 <= count <= processors:
            parser.error(f"--threads {count}: this machine has {processors} processors to use")
    if args.rounds < 1 or not args.seconds > 0 or args.shapes < 0:
        parser.error("--rounds and --seconds must be above 0, --shapes not below")
    for path in [args.original / "config.json", args.original / "model.safetensors", args.model / "config.json",
                 args.calibration, args.texts]:
        if path is not None and not path.is_file():
            parser.error(f"{path} is not there")
    return args


def read_json(path, otherwise=None):
    if otherwise is not None and not path.is_file():
        return otherwise
    return json.loads(path.read_text(encoding="utf-8"))


def read_texts(path):
    """The texts of a jsonl or txt file, white space collapsed, blank lines left out."""
    texts = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if line.strip() and path.suffix == ".jsonl":
            try:
                line = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                raise Unusable(f"{path}, line {number}: not an object with the key text") from None
        if line.strip():
            texts.append(" ".join(line.split()))
    if not texts:
        raise Unusable(f"{path} has no text")
    return texts


class Original:
    """The float model with its tokenizer and pooling."""

    def __init__(self, directory):
        from transformers import AutoTokenizer

        self.directory = directory
        config = read_json(directory / "config.json")
        sentence = read_json(directory / "sentence_bert_config.json", {})
        longest = sentence.get("max_seq_length") or config.get("max_position_embeddings") or 512
        self.longest = min(longest, config.get("max_position_embeddings") or longest)
        pooling = read_json(directory / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
        modes = [name for name, on in pooling.items() if name.startswith("pooling_mode_") and on]
        if modes not in (["pooling_mode_mean_tokens"], ["pooling_mode_cls_token"]):
            raise Unusable(f"{directory}: pooling must be of the mean or of the CLS token, it is {modes or pooling}")
        self.mean = modes == ["pooling_mode_mean_tokens"]
        modules = [module["type"].rsplit(".", 1)[-1] for module in read_json(directory / "modules.json", [])]
        if "Dense" in modules:
            raise Unusable(f"{directory} has a Dense behind its pooling, which this script does not convert")
        self.vocabulary = config["vocab_size"]
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.names = [name for name in ("input_ids", "attention_mask", "token_type_ids")
                      if name in self.tokenizer.model_input_names]

    def encode(self, texts):
        """A padded batch, as arrays by input name."""
        encoded = self.tokenizer(texts, padding=True, truncation=True, max_length=self.longest, return_tensors="np")
        return {name: encoded[name].astype("int64") for name in self.names}

    def random_batch(self, sentences, tokens):
        """Tokens of a small vocabulary; their values do not change the time."""
        import numpy as np

        ids = np.random.default_rng(1).integers(0, min(1000, self.vocabulary), (sentences, tokens))
        batch = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        return {name: batch[name] for name in self.names}

    def torch_module(self, attention):
        import torch
        from transformers import AutoModel

        mean = self.mean

        class Encoder(torch.nn.Module):
            def __init__(self, inner):
                super().__init__()
                self.inner = inner

            def forward(self, input_ids, attention_mask, token_type_ids=None):
                types = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
                hidden = self.inner(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state
                if mean:
                    weights = attention_mask.unsqueeze(-1).to(hidden.dtype)
                    pooled = (hidden * weights).sum(1) / weights.sum(1)
                else:
                    pooled = hidden[:, 0]
                return torch.nn.functional.normalize(pooled, dim=-1)

        inner = AutoModel.from_pretrained(self.directory, dtype=torch.float32, attn_implementation=attention)
        return Encoder(inner.eval()).eval()

    def vectors(self, texts):
        import torch

        module = self.torch_module("sdpa")
        with torch.inference_mode():
            return in_batches(texts, lambda batch: module(**tensors(self.encode(batch))).numpy())


def tensors(batch):
    import torch

    return {name: torch.from_numpy(values) for name, values in batch.items()}


def in_batches(texts, run):
    import numpy as np

    return np.concatenate([run(texts[at:at + TEXTS_AT_ONCE]) for at in range(0, len(texts), TEXTS_AT_ONCE)])


def mean_cosine(these, those):
    import numpy as np

    return float(np.mean((these * those).sum(1) / np.linalg.norm(these, axis=1) / np.linalg.norm(those, axis=1)))


def convert(original, attention, calibration):
    """OpenVINO's float model and its INT8 model."""
    import nncf
    import openvino

    example = original.encode(calibration[:2])
    shapes = [(name, openvino.PartialShape([-1, -1]), openvino.Type.i64) for name in original.names]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about tracing
        plain = openvino.convert_model(
            original.torch_module(attention), example_input=tensors(example), input=shapes)
    samples = calibration[:CALIBRATION_TEXTS]
    with contextlib.redirect_stdout(sys.stderr):  # its progress; standard output is for the table
        quantized = nncf.quantize(
            plain,
            nncf.Dataset(samples, lambda text: original.encode([text])),
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(samples),
        )
    return plain, quantized


class Way:
    """One way to run an OpenVINO model on batches: traced attention, precision, streams, and sentences of a request.

    `shape` is the batch's where all have one. Else shapes are dynamic, but for the first `shapes` that come, for each of which the
    model is compiled.
    """

    def __init__(self, core, models, threads, attention, precision, streams, at_once, shape=None, shapes=0):
        import openvino

        self.core, self.model = core, models[attention]
        self.config = {
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": streams,
        }
        if precision is not None:
            self.config["INFERENCE_PRECISION_HINT"] = precision
        self.at_once, self.shapes = at_once, shapes
        self.compiled = self.compile((min(at_once, shape[0]), shape[1]) if shape else None)
        self.precision = self.compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        self.name = (f"{attention}, {self.precision}, {streams} stream{'s' * (streams > 1)}, "
                     f"{at_once} sentence{'s' * (at_once > 1)} a request{', compiled for each shape' * (shapes > 0)}")
        self.request = self.compiled.create_infer_request() if streams == 1 else None
        self.queue = None if streams == 1 else openvino.AsyncInferQueue(self.compiled, 2 * streams)
        self.by_shape = {}

    def compile(self, shape):
        model = self.model
        if shape is not None:
            model = model.clone()
            model.reshape({port.any_name: list(shape) for port in model.inputs})
        return self.core.compile_model(model, "CPU", self.config)

    def request_of(self, inputs):
        if not self.shapes:
            return self.request
        shape = inputs["input_ids"].shape
        if shape not in self.by_shape and len(self.by_shape) < self.shapes:
            self.by_shape[shape] = self.compile(shape).create_infer_request()
        return self.by_shape.get(shape, self.request)

    def run(self, requests):
        if self.queue is None:
            for inputs in requests:
                self.request_of(inputs).infer(inputs, share_inputs=True, share_outputs=True)
        else:
            for inputs in requests:
                self.queue.start_async(inputs, share_inputs=True)
            self.queue.wait_all()

    def times(self, work, passes):
        """Milliseconds of each pass."""
        requests, times = work[self.at_once], []
        for _ in range(passes):
            start = time.perf_counter()
            self.run(requests)
            times.append((time.perf_counter() - start) * 1e3)
        return times


class Case:
    """A line of the table: work by the number of sentences of a request."""

    def __init__(self, name, work, tokens, trial=None, shape=None):
        self.name, self.work, self.tokens, self.shape = name, work, tokens, shape
        self.trial = trial or work


def split(batch, at_once):
    sentences = len(batch["input_ids"])
    return [{name: values[at:at + at_once].copy() for name, values in batch.items()} for at in range(0, sentences, at_once)]


def shape_case(original, sentences, tokens):
    batch = original.random_batch(sentences, tokens)
    sizes = {at_once for at_once in (sentences, 8, 1) if at_once <= sentences}
    work = {at_once: split(batch, at_once) for at_once in sizes}
    return Case(f"{sentences} x {tokens}", work, sentences * tokens, shape=(sentences, tokens))


def texts_case(original, texts):
    lengths = [len(ids) for ids in
               original.tokenizer(texts, truncation=True, max_length=original.longest)["input_ids"]]
    # The longest first, so that several streams end together.
    order = sorted(range(len(texts)), key=lambda index: -lengths[index])
    work, trial = {}, {}
    for at_once in (TEXTS_AT_ONCE, 8, 1):
        work[at_once] = [original.encode([texts[index] for index in order[at:at + at_once]])
                         for at in range(0, len(order), at_once)]
        # Every n-th group of as many texts as a batch has, so that each size is tried on the same texts.
        step = max(1, len(order) // TEXTS_AT_ONCE // TRIAL_BATCHES)
        group = TEXTS_AT_ONCE // at_once
        trial[at_once] = [item for at in range(0, len(work[at_once]), group * step) for item in work[at_once][at:at + group]]
    return Case(f"{len(texts)} texts, {TEXTS_AT_ONCE} at once", work, sum(lengths), trial)


def best_ways(core, models, case, threads, precisions, keep, shapes=0):
    """The fastest ways of those there are, after a short trial."""
    tried = []
    for attention in models:
        for precision in precisions:
            choices = [(streams, at_once, 0) for streams in sorted({1, threads}) for at_once in case.work
                       # A single request keeps a single stream busy.
                       if streams == 1 or len(case.work[at_once]) > 1]
            if shapes and not case.shape:
                # Models of several shapes do not share threads, so one request runs at a time.
                choices.append((1, TEXTS_AT_ONCE, shapes))
            for streams, at_once, each in choices:
                way = Way(core, models, threads, attention, precision, streams, at_once, case.shape, each)
                first = way.times(case.trial, 2)[1]
                passes = int(min(max(TRIAL_MS / first, TRIAL_PASSES[0]), TRIAL_PASSES[1]))
                tried.append((min(way.times(case.trial, passes)), way))
                tried = sorted(tried, key=lambda pair: pair[0])[:keep]
    return [way for _, way in tried]


class Zeropoint:
    def __init__(self, binary, model):
        self.binary, self.model = binary, model

    def call(self, *arguments):
        return subprocess.run([self.binary, *map(str, arguments)], capture_output=True, text=True, check=False)

    def version(self):
        return self.call("--version").stdout.strip()

    def takes_texts(self):
        return "--texts" in self.call("bench", "--help").stdout

    def vectors(self, texts):
        import numpy as np

        with tempfile.TemporaryDirectory() as work:
            source, target = Path(work, "texts.txt"), Path(work, "vectors.jsonl")
            source.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
            done = self.call("encode", self.model, "--data", source, "--out", target, "--offline", "--quiet")
            if done.returncode:
                raise Unusable(f"zeropoint encode: {done.stderr.strip()}")
            rows = [json.loads(line) for line in target.read_text(encoding="utf-8").splitlines()]
        if not rows or "embedding" not in rows[0]:
            raise Unusable(f"{self.model} gives no sentence vectors")
        return np.array([row["embedding"] for row in rows])

    def bench(self, case, threads, passes, texts):
        """The row that `zeropoint bench` prints."""
        work = (["--batch", case.shape[0], "--tokens", case.shape[1]] if case.shape
                else ["--texts", texts, "--batch", TEXTS_AT_ONCE])
        done = self.call("bench", self.model, *work, "--threads", threads, "--runs", passes, "--json", "--offline",
                         "--quiet")
        if done.returncode:
            raise Unusable(f"zeropoint bench: {done.stderr.strip()}")
        found = json.loads(done.stdout)
        rows = [row for row in (found if isinstance(found, list) else [found]) if row["engine"] == "int8"]
        if len(rows) != 1:
            raise Unusable(f"zeropoint bench printed {len(rows)} rows of int8 where one was expected")
        return rows[0]


def measure(case, threads, ways, zeropoint, args):
    """Rounds of all ways and of Zeropoint; a list of medians by name."""
    medians = {(kind, way.name): [] for kind, kept in ways.items() for way in kept}
    rows, warmed, cores = [], {}, 0.0
    for kind, kept in ways.items():
        for way in kept:
            warmed[kind, way.name] = min(way.times(case.work, 2))
    fastest = min(ms for (kind, _), ms in warmed.items() if kind == "int8")
    passes = lambda ms: int(min(max(args.seconds * 1e3 / ms, 3), 301))
    for _ in range(args.rounds):
        for kind, kept in ways.items():
            for way in kept:
                used, start = time.process_time(), time.perf_counter()
                times = way.times(case.work, passes(warmed[kind, way.name]))
                cores = max(cores, (time.process_time() - used) / (time.perf_counter() - start))
                medians[kind, way.name].append(statistics.median(times))
        if zeropoint is not None:
            rows.append(zeropoint.bench(case, threads, passes(fastest), args.texts))
    best = {}
    for (kind, name), found in medians.items():
        if kind not in best or statistics.median(found) < statistics.median(best[kind]["ms"]):
            best[kind] = {"way": name, "ms": found}
    return {"case": case.name, "threads": threads, "tokens": case.tokens, "openvino": best, "openvino_cores": round(cores, 2),
            "zeropoint": rows}


def check_rows(result, case):
    """Says where the two sides did not do the same work."""
    rows = result["zeropoint"]
    if result["openvino_cores"] > result["threads"] + 0.3:
        note(f"warning: OpenVINO used {result['openvino_cores']} cores where {result['threads']} were allowed")
    if rows and not case.shape:
        tokens = rows[0]["tokens_per_s"] * rows[0]["median_ms"] / 1e3
        if abs(tokens / case.tokens - 1) > 0.001:
            note(f"warning: Zeropoint ran {tokens:.0f} tokens of the texts, OpenVINO {case.tokens} without padding")


def figure(ms):
    return f"{ms:.2f}" if ms < 10 else f"{ms:.1f}" if ms < 100 else f"{ms:.0f}"


def table(results, kinds):
    head = ["case", "threads", *(f"OpenVINO {kind}, ms" for kind in kinds), "OpenVINO INT8, ms", "Zeropoint INT8, ms",
            "OpenVINO / Zeropoint", "OpenVINO INT8 ran as"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 2) + "---|"]
    for result in results:
        theirs = result["openvino"]["int8"]["ms"]
        ours = [row["median_ms"] for row in result["zeropoint"]]
        ratios = [their / our for their, our in zip(theirs, ours)]
        cells = [result["case"], str(result["threads"])]
        cells += [figure(statistics.median(result["openvino"][kind]["ms"])) for kind in kinds]
        cells.append(figure(statistics.median(theirs)))
        cells += [figure(statistics.median(ours)), f"{statistics.median(theirs) / statistics.median(ours):.2f} "
                  f"({min(ratios):.2f} to {max(ratios):.2f})"] if ours else ["not measured", ""]
        cells.append(result["openvino"]["int8"]["way"])
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def run(args):
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise Unusable(f"the Python package {name} is missing; openvino.sh makes an environment with it")
    import nncf
    import openvino
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    nncf.set_log_level("ERROR")
    calibration = read_texts(args.calibration)
    texts = read_texts(args.texts) if args.texts else None
    zeropoint = Zeropoint(args.zeropoint, args.model)
    original = Original(args.original)
    core = openvino.Core()
    processor = core.get_property("CPU", "FULL_DEVICE_NAME")

    # Texts that NNCF has not seen, where there are any.
    compared = (texts or calibration[CALIBRATION_TEXTS:] or calibration)[:COMPARED_TEXTS]
    wanted = original.vectors(compared)
    floats, quantized = {}, {}
    for attention in ATTENTIONS:
        note(f"converting and quantising with OpenVINO and NNCF, attention as {attention}")
        floats[attention], quantized[attention] = convert(original, attention, calibration)

    precisions = [None]
    native = Way(core, floats, 1, "sdpa", None, 1, 1).precision
    if native != "f32":
        precisions.append("f32")
    kinds = {} if args.no_float else {"f32": ["f32"], **({} if native == "f32" else {native: [None]})}
    cosines = {}
    for name, models, asked in [("f32", floats, ["f32"]), ("INT8", quantized, precisions)]:
        for attention in ATTENTIONS:
            for precision in asked:
                way = Way(core, models, max(args.threads), attention, precision, 1, TEXTS_AT_ONCE)
                found = in_batches(compared, lambda batch: way.compiled(original.encode(batch))[0].copy())
                cosines[f"OpenVINO {name} ({attention}, {way.precision})"] = mean_cosine(found, wanted)
    cosines["Zeropoint INT8"] = mean_cosine(zeropoint.vectors(compared), wanted)
    for name, cosine in cosines.items():
        note(f"mean cosine to torch's f32 over {len(compared)} texts: {name} {cosine:.5f}")
    far = [name for name, cosine in cosines.items() if not cosine >= args.min_cosine]
    if far:
        note(f"error: below --min-cosine {args.min_cosine}: {', '.join(far)}")
        return 1

    cases = [shape_case(original, sentences, tokens) for sentences, tokens in SHAPES]
    if texts:
        cases.append(texts_case(original, texts))
    skip = bool(texts) and not zeropoint.takes_texts()
    if skip:
        note(f"this zeropoint ({zeropoint.version()}) has no bench --texts: the texts are measured with OpenVINO alone")
    results = []
    for threads in args.threads:
        for case in cases:
            note(f"{case.name}, threads {threads}: trying OpenVINO's ways")
            ways = {"int8": best_ways(core, quantized, case, threads, precisions, keep=2, shapes=args.shapes)}
            for kind, asked in kinds.items():
                ways[kind] = best_ways(core, floats, case, threads, asked, keep=1)
            note(f"{case.name}, threads {threads}: {args.rounds} rounds")
            results.append(measure(case, threads, ways, None if skip and not case.shape else zeropoint, args))
            check_rows(results[-1], case)

    isa = next((row["isa"] for result in results for row in result["zeropoint"]), "unknown")
    print(table(results, list(kinds)))
    print()
    print(f"{processor}, {os.cpu_count()} processors, {platform.system()}; Zeropoint's instruction set {isa}. OpenVINO "
          f"{openvino.__version__.split('-')[0]}, NNCF {nncf.__version__}, torch {torch.__version__}, transformers "
          f"{transformers.__version__}, {zeropoint.version()}. {args.rounds} rounds in turns.")
    print(f"NNCF: model_type TRANSFORMER, all else its defaults, {min(len(calibration), CALIBRATION_TEXTS)} texts of "
          f"{args.calibration.name}. Mean cosine to torch's f32 over {len(compared)} texts: "
          + ", ".join(f"{name} {cosine:.4f}" for name, cosine in cosines.items()) + ".")
    if args.json:
        args.json.write_text(json.dumps({"results": results, "cosines": cosines, "processor": processor}, indent=1) + "\n")
    return 0


def main():
    if sys.argv[1:] == ["--check-packages"]:
        return any(importlib.util.find_spec(name) is None for name in PACKAGES)
    args = parse_arguments()
    if args.check_arguments:
        return 0
    if args.zeropoint is None:
        note("error: start openvino.sh, which says where zeropoint is")
        return 2
    try:
        return run(args)
    except Unusable as error:
        note(f"error: {error}")
        return 2


if __name__ == "__main__":
    sys.exit(main())
