"""Compares Zeropoint's INT8 runtime with the Python libraries on the same compressed-tensors directory.

    check.py sentences SOURCE [--limit 200]                      one text per line, from .jsonl (`text`) or .txt
    check.py compare MODEL ORIGINAL SENTENCES OUTPUT.jsonl       OUTPUT is what `zeropoint encode` wrote

`compare` loads MODEL with transformers and, where modules.json is present, with sentence-transformers, and checks that

- every tensor of the directory finds its place in the model, and no quantised layer lacks one;
- the layers stored as integers are those that compressed-tensors holds as integers after loading, bit for bit;
- after the first forward, which decompresses them, their weights are q * scale, and the others are the original's;
- OUTPUT has the same texts, no NaN, and embeddings (or logits) that agree with transformers': mean cosine at least
  --min-cosine, or what rounding allows (below), and as close to ORIGINAL as transformers' are.

Rounding matters more than one would think: an activation beside a rounding boundary goes to one integer or to the other
by the last bit of a float, later layers amplify that, and two correct implementations drift apart although each is equally
close to the original. How far is measured: transformers runs a second time in double precision. Where its own two runs
agree less than --min-cosine, Zeropoint may be as far from its first as its second is. --strict does not allow that.

It prints a table and, as the last line, the same as JSON. Exit code 1 when a check fails.
"""

import argparse
import json
import os
import sys
from pathlib import Path

# How much further from the original (mean cosine) than transformers the runtime may be: a fifth of what dynamic INT8 costs
# all-MiniLM-L6-v2 (0.0027).
ACCURACY_SLACK = 0.0005
EXACT = "transformers in f64"

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TQDM_DISABLE", "1")


def read_texts(path, limit):
    """The first `limit` texts of a jsonl or txt file, white space collapsed so that each fits on a line."""
    texts = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if not line.strip():
                continue
            text = json.loads(line)["text"] if Path(path).suffix == ".jsonl" else line
            text = " ".join(text.split())
            if text:
                texts.append(text)
            if len(texts) == limit:
                break
    return texts


def read_json(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def read_tensors(directory):
    """All tensors of a directory by name. The models compared here are small enough to hold twice."""
    from safetensors import safe_open

    tensors = {}
    for path in sorted(Path(directory).glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():
                tensors[name] = file.get_tensor(name)
    return tensors


def token_windows(directory, path, window):
    """The windows of `window` tokens of a text file, a tensor each: the file tokenised as a whole, without special tokens,
    as a `perplexity` task of `zeropoint run` does. What fills no window is left out."""
    import torch
    from tokenizers import Tokenizer

    text = Path(path).read_bytes().decode("utf-8")
    ids = Tokenizer.from_file(str(Path(directory) / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return list(torch.tensor(ids[: len(ids) // window * window]).reshape(-1, window))


def loading_options(directory):
    """What `from_pretrained` is given: f32, and layers left compressed, so that their integers can be examined and so
    that activations are quantised in the forward as well. With `dequantize` (which a directory may ask for) transformers
    restores float weights while loading and leaves activations alone: not the arithmetic of an INT8 runtime."""
    import torch
    from transformers import CompressedTensorsConfig

    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    quantization = read_json(Path(directory) / "config.json").get("quantization_config", {})
    if quantization.get("dequantize") or quantization.get("run_compressed") is False:
        options["quantization_config"] = CompressedTensorsConfig(dequantize=False)
    return options


def load(directory, is_classifier):
    """A model by transformers, with what the loader says about missing and unexpected tensors."""
    from transformers import AutoModel, AutoModelForSequenceClassification

    factory = AutoModelForSequenceClassification if is_classifier else AutoModel
    model, info = factory.from_pretrained(directory, output_loading_info=True, **loading_options(directory))
    return model.eval(), info


class Chain:
    """Tokenising, the model, and the pooling that modules.json asks for, without sentence-transformers."""

    def __init__(self, directory, is_classifier):
        from transformers import AutoTokenizer

        directory = Path(directory)
        self.is_classifier = is_classifier
        self.model, self.info = load(directory, is_classifier)
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        self.max_length = min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        self.pooling, self.normalize = "mean", False
        if (directory / "modules.json").exists():
            modules = read_json(directory / "modules.json")
            kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
            unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
            if unknown:
                raise SystemExit(f"error: modules.json has {sorted(unknown)}, which this check does not know")
            self.normalize = "Normalize" in kinds
            self.pooling = pooling_mode(read_json(directory / modules[kinds.index("Pooling")]["path"] / "config.json"))
        if (directory / "sentence_bert_config.json").exists():
            limit = read_json(directory / "sentence_bert_config.json").get("max_seq_length")
            self.max_length = min(self.max_length, limit or self.max_length)

    def __call__(self, texts):
        """One row per text. Each text is run alone, so that padding has no part in it."""
        import torch

        rows = []
        for text in texts:
            encoding = self.tokenizer(text, truncation=True, max_length=self.max_length, padding=False, return_tensors="pt")
            with torch.no_grad():
                output = self.model(**encoding)
            if self.is_classifier:
                row = output.logits[0]
            else:
                hidden = output.last_hidden_state[0]
                row = {"cls": lambda: hidden[0], "mean": lambda: hidden.mean(0), "max": lambda: hidden.max(0).values}[
                    self.pooling
                ]()
            rows.append(torch.nn.functional.normalize(row, dim=0) if self.normalize else row)
        return torch.stack(rows)


def pooling_mode(config):
    """cls, mean or max, from either generation of the pooling configuration."""
    mode = config.get("pooling_mode")
    if mode is None:
        names = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean", "pooling_mode_max_tokens": "max"}
        active = [key for key, value in config.items() if key.startswith("pooling_mode_") and value]
        mode = names.get(active[0]) if len(active) == 1 else active
    if mode not in ("cls", "mean", "max"):
        raise SystemExit(f"error: pooling {mode} is not one this check knows")
    return mode


def check_loading(info, failures):
    """A missing scale leaves uninitialised memory in a layer that then computes without an error."""
    for name in sorted(info["missing_keys"]):
        # A checkpoint without a pooler loads into a class with one; its float weights are random and unused.
        if not name.startswith("pooler.") or not name.endswith(("dense.weight", "dense.bias")):
            failures.append(f"{name} is not in the directory")
    for name in sorted(info["unexpected_keys"]):
        if name.endswith(("_scale", "_zero_point", "_packed", "_shape")):
            failures.append(f"{name} is in the directory, but the model has no place for it")
    for entry in sorted(info["mismatched_keys"], key=str):
        failures.append(f"{entry} has another shape in the model")


def stored_name(module, tensors, prefix):
    """The name a module has in the file: a base model's tensors may carry the prefix of the full model, or lack it."""
    for name in (module, f"{prefix}.{module}", module.removeprefix(f"{prefix}.")):
        if f"{name}.weight_scale" in tensors:
            return name
    return None


def check_layers(model, tensors, failures):
    """Compares each Linear, as loaded and still compressed, with the file. Returns counts and the quantised names."""
    import torch

    prefix = model.base_model_prefix
    quantised, floats = {}, []
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        stored = stored_name(name, tensors, prefix)
        scheme = getattr(module, "quantization_scheme", None)
        if stored is None:
            floats.append(name)
            if scheme is not None:
                failures.append(f"{name} is stored as floats, but the configuration says it is quantised: add it to `ignore`")
            continue
        quantised[name] = stored
        if scheme is None:
            failures.append(f"{name} is stored as integers, but the configuration leaves it out")
            continue
        for key in ("weight", "weight_packed", "weight_scale", "input_scale", "input_zero_point"):
            expected, loaded = tensors.get(f"{stored}.{key}"), getattr(module, key, None)
            if expected is None and (loaded is None or key == "weight"):
                continue
            if expected is None:
                failures.append(f"{name}.{key} is wanted by the configuration but not in the directory")
            elif loaded is None:
                failures.append(f"{name}.{key} is in the directory but was not loaded")
            elif loaded.shape != expected.shape or not torch.equal(loaded.cpu().to(expected.dtype), expected):
                failures.append(f"{name}.{key} was not loaded as stored")
            elif key == "weight" and (expected.dtype != torch.int8 or loaded.dtype != torch.int8):
                failures.append(f"{name}.weight is {expected.dtype} in the file and {loaded.dtype} in the model")
            elif key.endswith("_scale") and not (torch.isfinite(loaded).all() and (loaded > 0).all()):
                failures.append(f"{name}.{key} is not finite and positive everywhere")
    missing = {name[: -len(".weight_scale")] for name in tensors if name.endswith(".weight_scale")} - set(quantised.values())
    failures.extend(f"{name} is stored as integers but is no Linear of the model" for name in sorted(missing))
    if not quantised:
        failures.append("no layer is quantised")
    return quantised, floats


def check_decompressed(model, original, tensors, quantised, floats, failures):
    """After the first forward the weights are floats again, and these must be the right ones."""
    import torch

    sources = dict(original.named_parameters())
    modules = dict(model.named_modules())
    for name, stored in quantised.items():
        if f"{stored}.weight" in tensors:
            scale = tensors[f"{stored}.weight_scale"].float()
            expected = tensors[f"{stored}.weight"].float() * scale
            # A scale held in half precision would show here.
            if not torch.allclose(modules[name].weight.float(), expected, rtol=1e-6, atol=0):
                failures.append(f"{name}.weight is not q * scale after decompression")
    for name in floats:
        stored = any(f"{name}.weight".endswith(key) or key.endswith(f"{name}.weight") for key in tensors)
        if stored and not torch.equal(modules[name].weight, sources[f"{name}.weight"]):
            failures.append(f"{name}.weight differs from the original's")


def check_activations(model, ids, failures):
    """Whether each layer that is to quantise its inputs does: its output must not be that of its weights on the inputs as
    they came. Runs the model once; returns how many layers quantise."""
    import torch

    exact, expected, handles = [], 0, []

    def watch(name, module):
        def hook(module, inputs, output):
            plain = torch.nn.functional.linear(inputs[0], module.weight, module.bias)
            if torch.allclose(plain, output, rtol=1e-5, atol=1e-5 * output.abs().max().item()):
                exact.append(name)

        return module.register_forward_hook(hook)

    with torch.no_grad():
        model(input_ids=ids)  # decompresses the weights
    for name, module in model.named_modules():
        scheme = getattr(module, "quantization_scheme", None)
        if scheme is not None and scheme.input_activations is not None:
            expected += 1
            handles.append(watch(name, module))
    with torch.no_grad():
        model(input_ids=ids)
    for handle in handles:
        handle.remove()
    failures.extend(f"{name} does not quantise its inputs" for name in exact)
    return expected - len(exact)


def sentence_embeddings(directory, texts, notes):
    """The embeddings of sentence-transformers, with quantised activations, and those of a plain `SentenceTransformer(dir)`
    where that works.

    compressed-tensors decompresses the weights in a hook on the model's first call. sentence-transformers from 5.4 on calls
    `model.forward` itself, which runs no hook, so an untouched model ends in a dtype error; one ordinary call mends it."""
    import torch
    from sentence_transformers import SentenceTransformer

    def encode(library):
        return library.encode(texts, convert_to_tensor=True, show_progress_bar=False)

    library = SentenceTransformer(directory, device="cpu", model_kwargs=loading_options(directory))
    with torch.no_grad():
        library[0].auto_model(torch.tensor([[0]]))
    outputs = {"sentence-transformers": encode(library)}
    try:
        outputs["SentenceTransformer(dir)"] = encode(SentenceTransformer(directory, device="cpu"))
    except RuntimeError as error:
        notes.append(f"SentenceTransformer(dir).encode without a first call of the model: {error}")
    return outputs


def read_output(path, texts, is_classifier, labels, failures):
    """The rows of `zeropoint encode`, checked against the texts that went in."""
    import torch

    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    if len(rows) != len(texts):
        failures.append(f"zeropoint wrote {len(rows)} rows for {len(texts)} texts")
        return None
    wrong = [index for index, (row, text) in enumerate(zip(rows, texts)) if row["text"] != text]
    if wrong:
        failures.append(f"zeropoint's row {wrong[0]} has another text than the input ({len(wrong)} such rows)")
    key = "logits" if is_classifier else "embedding"
    # JSON has no NaN; a writer may put null in its place.
    values = torch.tensor([[float("nan") if value is None else value for value in row[key]] for row in rows])
    if is_classifier:
        for index, row in enumerate(rows):
            if row["label"] != labels[int(values[index].argmax())]:
                failures.append(f"zeropoint's row {index} has a label that is not its largest logit's")
                break
    return values


def compare(args):
    import torch
    import transformers

    transformers.logging.set_verbosity_error()
    architectures = read_json(Path(args.model) / "config.json")["architectures"]
    is_classifier = architectures[0].endswith("ForSequenceClassification")
    texts = read_texts(args.sentences, args.limit)
    tensors = read_tensors(args.model)
    failures, notes = [], []

    chain = Chain(args.model, is_classifier)
    check_loading(chain.info, failures)
    quantised, floats = check_layers(chain.model, tensors, failures)
    outputs = {"transformers": chain(texts)}
    original = Chain(args.original, is_classifier)
    outputs["original f32"] = original(texts)
    check_decompressed(chain.model, original.model, tensors, quantised, floats, failures)
    if not failures:
        # The same decompressed model without the noise of f32: what the file means.
        chain.model.double()
        outputs[EXACT] = chain(texts).float()
    labels = chain.model.config.id2label
    ours = read_output(args.output, texts, is_classifier, labels, failures)
    if ours is not None:
        outputs["zeropoint"] = ours

    has_modules = (Path(args.model) / "modules.json").exists()
    if has_modules:
        outputs.update(sentence_embeddings(args.model, texts, notes))

    for name, values in outputs.items():
        broken = int((~torch.isfinite(values)).any(1).sum())
        if broken:
            failures.append(f"{name}: {broken} of {len(values)} rows have NaN or infinity")

    pairs = [("zeropoint", "transformers"), ("zeropoint", "sentence-transformers"),
             ("sentence-transformers", "transformers"), ("zeropoint", EXACT), ("transformers", EXACT),
             ("zeropoint", "original f32"), ("transformers", "original f32"), ("SentenceTransformer(dir)", "original f32")]
    results = {}
    for left, right in pairs:
        if left not in outputs or right not in outputs:
            continue
        a, b = outputs[left].double(), outputs[right].double()
        if a.shape != b.shape:
            failures.append(f"{left} gives {list(a.shape)} values, {right} {list(b.shape)}")
            continue
        cosines = torch.nn.functional.cosine_similarity(a, b)
        entry = {"mean_cosine": cosines.mean().item(), "min_cosine": cosines.min().item()}
        if is_classifier:
            entry["same_label"] = (a.argmax(1) == b.argmax(1)).double().mean().item()
        results[left, right] = entry
    required = check_agreement(results, args, failures)
    report(args, results, required, quantised, floats, tensors, len(texts), failures, notes)
    return 1 if failures else 0


def number(value):
    """A float for JSON, which has no NaN."""
    return round(value, 7) if value == value else None


def check_agreement(results, args, failures):
    """Holds zeropoint's rows against the requirement, and returns it."""
    required = args.min_cosine
    floor = results.get(("transformers", EXACT))
    if floor and not args.strict:
        required = min(required, floor["mean_cosine"])
    # The comparisons are written so that NaN fails.
    for left, right, least in (
        ("zeropoint", "transformers", required),
        ("zeropoint", "sentence-transformers", required),
        ("sentence-transformers", "transformers", args.min_cosine),
    ):
        entry = results.get((left, right))
        if entry and not entry["mean_cosine"] >= least:
            failures.append(f"{left} against {right}: mean cosine {entry['mean_cosine']:.6f} is below {least:.6f}")
    ours, theirs = results.get(("zeropoint", "original f32")), results.get(("transformers", "original f32"))
    if ours and theirs and not ours["mean_cosine"] >= theirs["mean_cosine"] - ACCURACY_SLACK:
        failures.append("zeropoint is further from the original than transformers is")
    return required


def report(args, results, required, quantised, floats, tensors, count, failures, notes):
    from importlib.metadata import version

    int8 = sum(f"{stored}.weight" in tensors for stored in quantised.values())
    print(f"{len(quantised)} quantised Linears ({int8} I8, {len(quantised) - int8} packed), {len(floats)} float; {count} texts")
    labels = any("same_label" in entry for entry in results.values())
    print(f"{'':44} {'mean cosine':>12} {'min cosine':>12}" + (f" {'same label':>11}" if labels else ""))
    for (left, right), entry in results.items():
        line = f"{f'{left} : {right}':44} {entry['mean_cosine']:12.6f} {entry['min_cosine']:12.6f}"
        line += f" {entry['same_label']:11.3f}" if labels else ""
        gated = left == "zeropoint" and right in ("transformers", "sentence-transformers")
        print(f"{line}   at least {required:.6f}" if gated else line)
    for note in notes:
        print(f"note: {note}")
    for failure in failures:
        print(f"FAILED: {failure}")
    packages = ("torch", "transformers", "compressed-tensors", "sentence-transformers")
    summary = {
        "model": Path(args.model).name,
        "texts": count,
        "quantised_linears": len(quantised),
        "float_linears": sorted(floats),
        "required_mean_cosine": round(required, 7),
        "comparisons": [
            {"left": left, "right": right, **{key: number(value) for key, value in entry.items()}}
            for (left, right), entry in results.items()
        ],
        "failures": failures,
        "notes": notes,
        "versions": {name: version(name) for name in packages},
    }
    print(json.dumps(summary))


def main():
    parser = argparse.ArgumentParser(description="Zeropoint's INT8 runtime against the Python libraries.")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("sentences", help="print the texts of a jsonl or txt file, one per line")
    command.add_argument("source")
    command.add_argument("--limit", type=int, default=200)
    command = commands.add_parser("compare", help="compare the output of `zeropoint encode` with the libraries")
    for name in ("model", "original", "sentences", "output"):
        command.add_argument(name)
    command.add_argument("--limit", type=int, default=None)
    command.add_argument("--min-cosine", type=float, default=0.999)
    command.add_argument("--strict", action="store_true", help="never lower --min-cosine to what rounding allows")
    args = parser.parse_args()
    if args.command == "sentences":
        sys.stdout.reconfigure(encoding="utf-8")
        for text in read_texts(args.source, args.limit):
            print(text)
        return 0
    return compare(args)


if __name__ == "__main__":
    sys.exit(main())
