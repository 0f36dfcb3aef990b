"""How far quantised decoders are from their original on a text, computed by transformers and compressed-tensors in f32.

    perplexity.py ORIGINAL TEXT MODEL... [--window 512] [--windows 40]

Each MODEL is a compressed-tensors directory, of Zeropoint or of another program. TEXT is tokenised as a whole, without
special tokens, and cut into windows, as `zeropoint run` does for a `perplexity` task, so the figures can be set beside its: the
perplexities, the mean Kullback-Leibler divergence KL(original || quantised) in nats per token, and the share of tokens for
which both find the same one likeliest. Each token of a window but the first counts, with those before it in the window.

Layers whose scheme quantises activations are seen to do so before anything is measured. A line of JSON for each model.
"""

import argparse
import json
import os
from importlib.metadata import version

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import check
import torch
from transformers import AutoModelForCausalLM


def load(directory):
    return AutoModelForCausalLM.from_pretrained(directory, **check.loading_options(directory)).eval()


def log_probabilities(model, ids):
    """Of the token after each but the last of a window: a row for each."""
    return model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)


def sums(p, q, told):
    """Negative log-likelihood of `told` by q, divergence of q from p, and agreement on the likeliest, over the rows."""
    losses = -q.gather(1, told[:, None]).double()
    divergences = (p.exp() * (p - q)).sum(1).double()
    return torch.stack([losses.sum(), divergences.sum(), (p.argmax(1) == q.argmax(1)).double().sum()])


def main():
    parser = argparse.ArgumentParser(description="Quantised decoders against their original, by transformers.")
    parser.add_argument("original")
    parser.add_argument("text")
    parser.add_argument("models", nargs="+", metavar="model")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window")
    parser.add_argument("--windows", type=int, default=40, help="at most so many, from the start of the text")
    args = parser.parse_args()

    windows = check.token_windows(args.original, args.text, args.window)[: args.windows]
    models = [load(args.original)] + [load(directory) for directory in args.models]
    simulated, failures = [], []
    for model in models:
        simulated.append(check.check_activations(model, windows[0][None], failures))
    if failures:
        raise SystemExit(f"error: {'; '.join(failures)}")
    totals = [torch.zeros(3, dtype=torch.float64) for _ in models]
    with torch.no_grad():
        for ids in windows:
            original = log_probabilities(models[0], ids)
            for total, model in zip(totals, models):
                rows = original if model is models[0] else log_probabilities(model, ids)
                total += sums(original, rows, ids[1:])
    count = len(windows) * (args.window - 1)
    perplexity = (totals[0][0] / count).exp().item()
    for directory, total, layers in zip(args.models, totals[1:], simulated[1:]):
        loss, divergence, agreed = (total / count).tolist()
        found = {
            "model": directory,
            "tokens": count,
            "layers_with_quantised_inputs": layers,
            "perplexity_original": perplexity,
            "perplexity": torch.tensor(loss, dtype=torch.float64).exp().item(),
            "kl_mean": divergence,
            "top1_agreement": agreed,
        }
        print(json.dumps(found))
    print(json.dumps({name: version(name) for name in ("torch", "transformers", "compressed-tensors")}))


if __name__ == "__main__":
    main()
