"""A decoder by Zeropoint and by transformers, on the same directory: logits of each position, and greedy texts.

    decoder.py MODEL [ORIGINAL] --zeropoint PROGRAM

MODEL is a directory that Zeropoint wrote and ORIGINAL the float model it came from, or MODEL alone is a float model. For the
prompts of prompts.py, transformers in f32 with quantised activations (check.py says how), it checks that

- every tensor of a quantised directory finds its place, the layers stored as integers are held as integers, bit for bit, are
  q * scale after the first forward, quantise their inputs where the scheme says so, and the other layers are the original's;
- both cut the prompts into the same tokens;
- `zeropoint generate --logits` agrees with transformers at each position of the prompts: mean cosine at least --min-cosine;
- both continue at least --min-texts of the prompts with the same --tokens tokens, the likeliest at each step;
- Zeropoint's distributions are as near to the original's as transformers' (mean divergence, within DIVERGENCE_SLACK).

Rounding parts two correct programs that quantise activations (check.py), and the more so the deeper the model. How far is
measured: transformers runs once more in double precision, and once with queries, keys, exponentials and values rounded to
bfloat16 before they are multiplied, as Zeropoint does. Where these agree with its first run less than the bounds ask, Zeropoint may
be as far from it as the farther of them. --strict does not allow that. Where two texts part, it prints the step, and by how much transformers' logit
of its own token exceeds that of the other's. The last line is JSON. Exit code 1 when a check fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import check
import numpy
import torch
from prompts import PROMPTS
from transformers import AttentionInterface, AttentionMaskInterface, AutoModelForCausalLM, AutoTokenizer
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

# How much larger the mean divergence from the original may be than transformers': between its own two runs it differs by as much.
DIVERGENCE_SLACK = 0.25
EXACT = check.EXACT
BFLOAT16 = "transformers, bf16 attention"


def load(directory):
    """A decoder in f32 with what the loader says about missing and unexpected tensors."""
    options = check.loading_options(directory)
    model, info = AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True, **options)
    return model.eval(), info


def check_directory(model, info, original, directory, failures):
    """The checks of a quantised directory's layers; the model is decompressed after them."""
    check.check_loading(info, failures)
    tensors = check.read_tensors(directory)
    quantised, floats = check.check_layers(model, tensors, failures)
    simulated = check.check_activations(model, torch.tensor([[1, 2, 3, 4, 5, 6, 7, 8]]), failures)
    check.check_decompressed(model, original, tensors, quantised, floats, failures)
    print(f"{len(quantised)} quantised Linears, {simulated} of them quantise their inputs; {len(floats)} float")


def bfloat16_attention(module, query, key, value, mask, scaling, dropout=0.0, **_):
    """Attention with queries, keys, values and exponentials rounded to bfloat16 and sums in the dtype of the model; what makes
    the shares sum to 1 is added from exponentials that are not rounded."""

    def rounded(x):
        return x.to(torch.bfloat16).to(x.dtype)

    groups = query.shape[1] // key.shape[1]
    key, value = (rounded(x).repeat_interleave(groups, dim=1) for x in (key, value))
    scores = rounded(query) @ key.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + mask[..., : key.shape[2]]
    exponentials = (scores - scores.amax(-1, keepdim=True)).exp()
    output = rounded(exponentials) @ value / exponentials.sum(-1, keepdim=True)
    return output.transpose(1, 2).contiguous(), None


def zeropoint_texts(program, directory, prompts, tokens):
    """Zeropoint's answer to each prompt: token ids of the prompt, of its continuation, and a row of logits for each of the
    prompt."""
    answers = []
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "logits.npy"
        for prompt in prompts:
            command = [program, "generate", str(directory), "--prompt", prompt, "--max-tokens", str(tokens)]
            command += ["--ignore-stop", "--json", "--quiet", "--logits", str(path)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise SystemExit(f"error: {' '.join(command)}: {done.stderr}")
            answer = json.loads(done.stdout)
            answers.append((answer["prompt_tokens"], answer["tokens"], torch.from_numpy(numpy.load(path))))
    return answers


@torch.no_grad()
def logits(model, ids):
    """A row of logits for each token of a prompt."""
    return model(input_ids=torch.tensor([ids])).logits[0]


@torch.no_grad()
def greedy(model, ids, tokens):
    """The likeliest continuation, and the logits that each of its tokens was the likeliest of."""
    found, rows, cache, fed = [], [], None, torch.tensor([ids])
    for _ in range(tokens):
        output = model(input_ids=fed, past_key_values=cache, use_cache=True)
        rows.append(output.logits[0, -1])
        found.append(int(rows[-1].argmax()))
        cache, fed = output.past_key_values, torch.tensor([found[-1:]])
    return found, rows


def position_cosines(left, right):
    """The cosine of two matrices of logits at each position."""
    pairs = zip(left, right, strict=True)
    return torch.cat([torch.nn.functional.cosine_similarity(a.double(), b.double()) for a, b in pairs])


def divergence(original, rows):
    """The mean divergence of the distributions of `rows` from the original's, in nats a position."""
    pairs = [(a.double().log_softmax(1), b.double().log_softmax(1)) for a, b in zip(original, rows, strict=True)]
    return torch.cat([(p.exp() * (p - q)).sum(1) for p, q in pairs]).mean().item()


def parting(ours, theirs, rows):
    """Where two continuations part, and the margin of the logits there; None when they do not. A full context ends one early."""
    for step, (a, b) in enumerate(zip(ours, theirs)):
        if a != b:
            return {"step": step, "margin": (rows[step][b] - rows[step][a]).item()}
    return None


def main():
    parser = argparse.ArgumentParser(description="A decoder by Zeropoint and by transformers.")
    parser.add_argument("model")
    parser.add_argument("original", nargs="?")
    parser.add_argument("--zeropoint", required=True, help="the program")
    parser.add_argument("--tokens", type=int, default=32, help="of each continuation")
    parser.add_argument("--min-cosine", type=float, default=0.999)
    parser.add_argument("--min-texts", type=int, default=9)
    parser.add_argument("--strict", action="store_true", help="never lower the bounds to what rounding allows")
    args = parser.parse_args()

    failures = []
    model, info = load(args.model)
    quantised = "quantization_config" in check.read_json(Path(args.model) / "config.json")
    if quantised and args.original is None:
        raise SystemExit(f"error: {args.model} is quantised: name the directory of its original as well")
    original = load(args.original)[0] if quantised else None
    if quantised:
        check_directory(model, info, original, args.model, failures)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    answers = zeropoint_texts(args.zeropoint, args.model, PROMPTS, args.tokens)
    prompts = [ids for ids, _, _ in answers]
    for prompt, ids in zip(PROMPTS, prompts):
        if tokenizer(prompt)["input_ids"] != ids:
            failures.append(f"transformers cuts {prompt!r} into other tokens")

    rows = {"zeropoint": [rows for _, _, rows in answers], "transformers": [logits(model, ids) for ids in prompts]}
    texts = [greedy(model, ids, args.tokens) for ids in prompts]
    if quantised:
        AttentionInterface.register("bfloat16_factors", bfloat16_attention)
        AttentionMaskInterface.register("bfloat16_factors", ALL_MASK_ATTENTION_FUNCTIONS["eager"])
        model.set_attn_implementation("bfloat16_factors")
        rows[BFLOAT16] = [logits(model, ids) for ids in prompts]
        model.set_attn_implementation("eager")
    rows[EXACT] = [logits(model.double(), ids) for ids in prompts]
    partings, exact_partings = [], []
    for prompt, (ids, tokens, _), (expected, steps) in zip(PROMPTS, answers, texts):
        partings.append(parting(tokens, expected, steps))
        exact_partings.append(parting(greedy(model, ids, args.tokens)[0], expected, steps))
        print(f"{prompt!r}: {tokenizer.decode(tokens)!r}")
        if partings[-1]:
            part = "parts from {!r} at token {step}, margin {margin:.4f}"
            print("    " + part.format(tokenizer.decode(expected), **partings[-1]), flush=True)

    others = [name for name in (EXACT, BFLOAT16) if name in rows]
    pairs = [("zeropoint", "transformers"), *(("zeropoint", name) for name in others), *(("transformers", name) for name in others)]
    cosines = {(left, right): position_cosines(rows[left], rows[right]) for left, right in pairs}
    print(f"{'positions of the prompts':44} {'mean':>9} {'median':>9} {'min':>9}")
    for (left, right), values in cosines.items():
        figures = " ".join(f"{figure.item():9.6f}" for figure in (values.mean(), values.median(), values.min()))
        print(f"{f'{left} : {right}':44} {figures}")
    same, itself = partings.count(None), exact_partings.count(None)
    print(f"{same} of {len(PROMPTS)} continuations of {args.tokens} tokens are the same, {itself} in transformers' two runs")
    required_cosine, required_texts = args.min_cosine, args.min_texts
    if quantised and not args.strict:
        required_cosine = min(required_cosine, *(cosines["transformers", name].mean().item() for name in others))
        required_texts = min(required_texts, itself)
    mean = cosines["zeropoint", "transformers"].mean().item()
    # The comparisons are written so that NaN fails.
    if not mean >= required_cosine:
        failures.append(f"mean cosine {mean:.6f} is below {required_cosine:.6f}")
    if same < required_texts:
        failures.append(f"{same} continuations are the same, at least {required_texts} are expected")
    divergences = {}
    if quantised:
        float_rows = [logits(original, ids) for ids in prompts]
        divergences = {name: divergence(float_rows, values) for name, values in rows.items()}
        for name, value in divergences.items():
            print(f"{name:44} {value:9.4f} nats from the original")
        if not divergences["zeropoint"] <= (1 + DIVERGENCE_SLACK) * divergences["transformers"]:
            failures.append("zeropoint is further from the original than transformers is")
    for failure in failures:
        print(f"FAILED: {failure}")
    found = {
        "model": args.model,
        "positions": len(cosines["zeropoint", "transformers"]),
        "cosines": [
            {"left": left, "right": right, "mean": v.mean().item(), "median": v.median().item(), "min": v.min().item()}
            for (left, right), v in cosines.items()
        ],
        "divergences": divergences,
        "same_texts": same,
        "same_texts_of_transformers": itself,
        "partings": [part for part in partings if part],
        "failures": failures,
        "versions": {name: version(name) for name in ("torch", "transformers", "compressed-tensors")},
    }
    print(json.dumps(found))
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
