"""Every small checkpoint of tests/fixtures, quantised by Zeropoint and loaded by transformers.

    tests/interop/families.sh [--venv DIR] [NAME...]

For each fixture with a text model (or those named) and for dynamic and static W8A8 it runs `zeropoint run` and checks that

- the class named by `architectures` loads the result, every tensor finds its place, and the layers stored as integers are
  those that compressed-tensors holds as integers, bit for bit (check.py has the checks);
- transformers' outputs, with activations quantised, are near the original's: the mean cosine over the reference texts is at
  least --min-original;
- what `zeropoint encode` prints, or for a decoder the logits that `zeropoint generate` writes, agrees with transformers to a mean cosine of --min-cosine, or of what transformers in f32 and in
  f64 agree to, whichever is lower; the weights are random, which magnifies rounding. Logits are compared as they are, vectors of
  sentence encoders with sentence-transformers' own prompts, pooling and Dense, and heads over tokens by the probabilities of
  what was printed: each token's label, each mask's first tokens, the answer's start and end.

Exit code 1 when a check fails.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")

import check

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures"
# Tensors that carry another name in the file than their module has, as transformers renames them while loading.
RENAMED = {
    "nomic_bert": [
        (r"^layers\.", "encoder.layers."),
        (r"self_attn\.o_proj$", "attn.out_proj"),
        (r"mlp\.up_proj$", "mlp.fc11"),
        (r"mlp\.gate_proj$", "mlp.fc12"),
        (r"mlp\.down_proj$", "mlp.fc2"),
    ],
    "gte": [(r"^layers\.(\d+)\.self_attn\.o_proj$", r"encoder.layer.\1.attention.o_proj"),
            (r"^layers\.(\d+)\.mlp\.down_proj$", r"encoder.layer.\1.mlp.down_proj")],
}
RENAMED["vit"] = RENAMED["deit"] = [
    (r"^((?:vit|deit)\.)?layers\.", r"\1encoder.layer."),
    (r"attention\.q_proj$", "attention.attention.query"),
    (r"attention\.k_proj$", "attention.attention.key"),
    (r"attention\.v_proj$", "attention.attention.value"),
    (r"attention\.o_proj$", "attention.output.dense"),
    (r"mlp\.fc1$", "intermediate.dense"),
    (r"mlp\.fc2$", "output.dense"),
]


def with_module_names(tensors, model_type, modules):
    """The file's tensors under the names of the modules."""
    aliases = {}
    for module in modules:
        name = module
        for pattern, replacement in RENAMED.get(model_type, []):
            name = re.sub(pattern, replacement, name)
        for suffix in ("weight", "weight_scale", "input_scale", "input_zero_point", "bias"):
            if f"{name}.{suffix}" in tensors and name != module:
                aliases[f"{name}.{suffix}"] = f"{module}.{suffix}"
    return {aliases.get(name, name): tensor for name, tensor in tensors.items()}


def outputs(model, reference, texts):
    """The output for each reference text alone, flattened."""
    import torch

    rows = []
    for i in texts:
        ids = torch.tensor([reference["input_ids"][i]])
        kinds = torch.tensor([reference["token_type_ids"][i]])
        inputs = {"input_ids": ids}
        if getattr(model.config, "type_vocab_size", 0) > 1:
            inputs["token_type_ids"] = kinds
        with torch.no_grad():
            output = model(**inputs)
        if hasattr(output, "start_logits"):
            rows.append(torch.stack([output.start_logits[0], output.end_logits[0]], -1).flatten())
        elif hasattr(output, "logits"):
            rows.append(output.logits[0].flatten())
        else:
            rows.append(output.last_hidden_state[0].flatten())
    return rows


def mean_cosine(left, right):
    import torch

    cosines = [torch.nn.functional.cosine_similarity(a.double(), b.double(), dim=0).item() for a, b in zip(left, right)]
    return sum(cosines) / len(cosines)


def run(zeropoint, fixture, scheme, work):
    """Quantises a fixture and returns the directory of the model."""
    out = work / f"{fixture.name}-{scheme}"
    config = work / "config.toml"
    config.write_text(
        f'version = 1\nmodel.source = {json.dumps(str(fixture))}\noutput.dir = {json.dumps(str(out))}\n'
        f'calibration.samples = 16\nquantization.scheme = "w8a8-{scheme}"\nevaluation.tasks = []\n',
        encoding="utf-8",
    )
    subprocess.run([zeropoint, "run", str(config), "--no-cache", "--quiet"], check=True)
    return out / "model"


def logits_of_tokens(zeropoint, model, reference, texts, work):
    """The logits of every token of the reference texts as `zeropoint generate` reads them."""
    import numpy

    rows, path = [], work / "logits.npy"
    for i in texts:
        command = [zeropoint, "generate", str(model), "--prompt", reference["texts"][i], "--max-tokens", "1", "--json"]
        done = subprocess.run([*command, "--logits", str(path), "--quiet"], capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(done.stderr)
        if json.loads(done.stdout)["prompt_tokens"] != reference["input_ids"][i]:
            raise RuntimeError(f"the tokens of {reference['texts'][i]!r} are not those of the reference")
        rows.append({"logits": numpy.load(path).flatten().tolist()})
    return rows


def encoded(zeropoint, model, reference, texts, work):
    """The rows of `zeropoint encode` for the reference texts."""
    data, rows = work / "texts.jsonl", work / "rows.jsonl"
    question = "start_logits" in reference
    with open(data, "w", encoding="utf-8") as file:
        for i in texts:
            text = reference["texts"][i]
            if isinstance(text, str):
                row = {"text": text}
            elif question:
                row = {"question": text[0], "context": text[1]}
            else:
                row = {"text_a": text[0], "text_b": text[1]}
            file.write(json.dumps(row) + "\n")
    command = [zeropoint, "encode", str(model), "--data", str(data), "--out", str(rows), "--quiet"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]


def sentence_vectors(directory, reference, texts, double):
    """What sentence-transformers makes of the reference texts, its own prompts, pooling and Dense applied."""
    import torch
    from sentence_transformers import SentenceTransformer

    options = {"attn_implementation": "eager", "dtype": torch.float64 if double else torch.float32}
    encoder = SentenceTransformer(str(directory), device="cpu", model_kwargs=options)
    if double:
        encoder = encoder.double()
    with torch.no_grad():
        encoder[0].auto_model(torch.tensor([[0]]))
        return [torch.tensor(encoder.encode([reference["texts"][i]])[0]) for i in texts]


def printed(row, output, tokenizer, ids, text, labels):
    """Two vectors: the numbers that Zeropoint printed for a text, and transformers' for the same labels, tokens and places."""
    import torch

    if "logits" in row:
        return torch.tensor(row["logits"]), output
    pair = () if isinstance(text, str) else (text[1],)
    first = text if isinstance(text, str) else text[0]
    encoding = tokenizer(first, *pair, return_offsets_mapping=True, truncation=True, max_length=len(ids))
    if encoding["input_ids"] != ids:
        raise RuntimeError(f"the tokens of {text!r} are not those of the reference")
    if "answer" in row:
        logits = output.reshape(len(ids), 2)
        context = [i for i, part in enumerate(encoding.sequence_ids()) if part == 1]
        probabilities = torch.softmax(logits[context], 0)
        offsets = [encoding["offset_mapping"][i] for i in context]
        if row["end"] > offsets[-1][1]:  # the answer is of a window that transformers, which cuts, has not seen
            return torch.tensor([]), torch.tensor([])
        start = next((i for i, span in enumerate(offsets) if span[0] == row["start"] < span[1]), None)
        end = next((i for i, span in enumerate(offsets) if span[0] < span[1] == row["end"]), None)
        if start is None or end is None:
            raise RuntimeError(f"the answer {row} of {text!r} begins or ends within a token of {offsets}")
        return torch.tensor([row["score"]]), (probabilities[start, 0] * probabilities[end, 1]).reshape(1)
    probabilities = torch.softmax(output.reshape(len(ids), -1), -1)
    ours, theirs = [], []
    if "masks" in row:
        places = [i for i, token in enumerate(ids) if token == tokenizer.mask_token_id]
        if len(places) != len(row["masks"]):
            raise RuntimeError(f"{len(row['masks'])} masks were printed for {text!r}, which has {len(places)}")
        for place, tokens in zip(places, row["masks"]):
            ours += [token["score"] for token in tokens]
            theirs += [probabilities[place, token["id"]] for token in tokens]
    else:
        places = [i for i, part in enumerate(encoding.sequence_ids()) if part is not None]
        if len(places) != len(row["tokens"]):
            raise RuntimeError(f"{len(row['tokens'])} tokens were printed for {text!r}, which has {len(places)}")
        for place, token in zip(places, row["tokens"]):
            ours.append(token["score"])
            theirs.append(probabilities[place, labels[token["label"]]])
    return torch.tensor(ours), torch.stack(theirs) if theirs else torch.tensor([])


def agreement_with_encode(rows, model, directory, reference, texts):
    """Mean cosine of what Zeropoint printed with transformers in f32, and of transformers in f32 with itself in f64."""
    import torch
    import transformers

    if "embedding" in rows[0]:
        single = sentence_vectors(directory, reference, texts, False)
        double = sentence_vectors(directory, reference, texts, True)
        return mean_cosine([torch.tensor(row["embedding"]) for row in rows], single), mean_cosine(single, double)
    single = outputs(model, reference, texts)
    double = outputs(model.double(), reference, texts)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    ours, theirs, exact = [], [], []
    for k, (i, row) in enumerate(zip(texts, rows, strict=True)):
        shared = (tokenizer, reference["input_ids"][i], reference["texts"][i], model.config.label2id)
        left, right = printed(row, single[k], *shared)
        if left.numel():
            ours.append(left)
            theirs.append(right)
            exact.append(printed(row, double[k], *shared)[1])
    if ours[0].numel() == 1:  # one number a text has no direction: all texts are one vector
        ours, theirs, exact = ([torch.cat(vectors)] for vectors in (ours, theirs, exact))
    return mean_cosine(ours, theirs), mean_cosine(theirs, exact)


def one(zeropoint, fixture, scheme, args, work):
    """Checks one fixture with one scheme; returns a line for the table and what failed."""
    import torch
    import transformers

    reference = check.read_json(fixture / "reference.json")
    directory = run(zeropoint, fixture, scheme, work)
    config = check.read_json(directory / "config.json")
    factory = getattr(transformers, config["architectures"][0])
    failures = []

    def load(path, **options):
        return factory.from_pretrained(path, dtype=torch.float32, attn_implementation="eager", **options)

    model, info = load(directory, output_loading_info=True)
    model.eval()
    check.check_loading(info, failures)
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    tensors = with_module_names(check.read_tensors(directory), config["model_type"], linears)
    quantised, floats = check.check_layers(model, tensors, failures)
    texts = range(len(reference["texts"]))
    ours = outputs(model, reference, texts)
    original = outputs(load(fixture).eval(), reference, texts)
    to_original = mean_cosine(ours, original)
    if not to_original >= args.min_original:
        failures.append(f"mean cosine to the original {to_original:.5f}, at least {args.min_original} is expected")
    if config["architectures"][0].endswith(("ForTokenClassification", "ForMaskedLM", "Model")):
        texts = [i for i in texts if isinstance(reference["texts"][i], str)]
    if config["architectures"][0].endswith("ForCausalLM"):
        longest = max(len(ids) for ids in reference["input_ids"])  # a text that was cut
        texts = [i for i in texts if len(reference["input_ids"][i]) < longest]
        rows = logits_of_tokens(zeropoint, directory, reference, texts, work)
    else:
        rows = encoded(zeropoint, directory, reference, texts, work)
    agreement, itself = agreement_with_encode(rows, model, directory, reference, texts)
    required = min(args.min_cosine, itself)
    if not agreement >= required:
        failures.append(f"mean cosine of zeropoint and transformers {agreement:.5f}, at least {required:.5f} is expected")
    line = f"{fixture.name:28} {scheme:8} {len(quantised):3} {len(floats):3} {to_original:9.5f} {agreement:9.5f}"
    return line, failures


def table(zeropoint, names, check_one, args):
    """Checks each fixture with both schemes and prints a line for each; the exit code."""
    print(f"{'fixture':28} {'scheme':8} {'int':>3} {'flt':>3} {'original':>9} {'zeropoint':>9}")
    failed = 0
    for name in names:
        for scheme in ("dynamic", "static"):
            with tempfile.TemporaryDirectory() as work:
                line, failures = check_one(zeropoint, FIXTURES / name, scheme, args, Path(work))
            print(line, flush=True)
            for failure in failures:
                print(f"    FAILED: {failure}")
            failed += bool(failures)
    print(f"{2 * len(names)} directories, {failed} with failures")
    return 1 if failed else 0


def main():
    parser = argparse.ArgumentParser(description="Quantised fixtures in transformers.")
    parser.add_argument("names", nargs="*", help="fixtures (default: all with a text model)")
    parser.add_argument("--zeropoint", required=True, help="the program")
    parser.add_argument("--min-original", type=float, default=0.99)
    parser.add_argument("--min-cosine", type=float, default=0.999)
    args = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    names = args.names or sorted(
        path.parent.name for path in FIXTURES.glob("*/reference.json")
        if "input_ids" in check.read_json(path) and not path.parent.name.endswith("-remote")
        # Of GPT-2 nothing can be quantised; mixtures of experts do not load from compressed-tensors with INT8 Linears.
        and check.read_json(path.parent / "config.json")["model_type"] not in ("clip", "gpt2", "mixtral", "qwen3_moe")
    )
    return table(args.zeropoint, names, one, args)


if __name__ == "__main__":
    sys.exit(main())
