"""Quantises a decoder with llm-compressor, for comparison: the same model, the same texts, the same arithmetic.

    llm_compressor.py SOURCE OUT SCHEME [--text FILE] [--skip 40] [--samples 64] [--window 512]

SCHEME is `w8a8-dynamic` or `w8a8-static`, symmetric, or with `-asymmetric` behind it; `w8a8-dynamic-gptq`, which is SmoothQuant of
strength 0.8 and GPTQ; `w8a16`; or `w4a16-g64`. But for GPTQ weights are
rounded to nearest with the scales of the largest magnitude, per output channel or per group of 64 inputs; activations per
token at run time, or per tensor from the smallest and largest value seen. `lm_head` stays float, everything is in f32.
The static schemes are calibrated on the windows behind the first --skip of FILE, which is tokenised as a whole, without
special tokens, as `zeropoint run` does for a `perplexity` task; the first ones are left to measure on.

Needs an environment of its own (README.md): llm-compressor pins other versions than requirements.txt.
"""

import argparse
import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import check
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.smoothquant import SmoothQuantModifier
from transformers import AutoModelForCausalLM, AutoTokenizer


def scheme(name):
    """The arguments of weights and input activations of a named scheme."""
    channel = {"num_bits": 8, "strategy": "channel", "symmetric": True, "observer": "memoryless_minmax"}
    group = {"num_bits": 4, "strategy": "group", "group_size": 64, "symmetric": True, "observer": "memoryless_minmax"}
    token = {"num_bits": 8, "strategy": "token", "symmetric": True, "dynamic": True, "observer": None}
    tensor = {"num_bits": 8, "strategy": "tensor", "observer": "static_minmax"}
    weights, inputs = {
        "w8a8-dynamic": (channel, token),
        "w8a8-dynamic-gptq": (channel, token),
        "w8a8-dynamic-asymmetric": (channel, token | {"symmetric": False}),
        "w8a8-static": (channel, tensor | {"symmetric": True}),
        "w8a8-static-asymmetric": (channel, tensor | {"symmetric": False}),
        "w8a16": (channel, None),
        "w4a16-g64": (group, None),
    }[name]
    inputs = QuantizationArgs(**inputs) if inputs else None
    return QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**weights), input_activations=inputs)


def main():
    parser = argparse.ArgumentParser(description="A decoder quantised by llm-compressor.")
    for name in ("source", "out", "scheme"):
        parser.add_argument(name)
    parser.add_argument("--text", help="what the static schemes are calibrated on")
    parser.add_argument("--skip", type=int, default=40, help="windows that are left out")
    parser.add_argument("--samples", type=int, default=64, help="windows that are taken")
    parser.add_argument("--window", type=int, default=512, help="tokens of a window")
    args = parser.parse_args()

    model = AutoModelForCausalLM.from_pretrained(args.source, dtype=torch.float32)
    data = None
    if "static" in args.scheme or "gptq" in args.scheme:
        windows = check.token_windows(args.source, args.text, args.window)[args.skip : args.skip + args.samples]
        rows = [{"input_ids": row[None], "attention_mask": torch.ones_like(row[None])} for row in windows]
        data = torch.utils.data.DataLoader(rows, batch_size=None)
    kind = GPTQModifier if "gptq" in args.scheme else QuantizationModifier
    recipe = [kind(config_groups={"group_0": scheme(args.scheme)}, ignore=["lm_head"])]
    if "gptq" in args.scheme:
        recipe.insert(0, SmoothQuantModifier(smoothing_strength=0.8))
    oneshot(model=model, recipe=recipe, dataset=data, num_calibration_samples=args.samples, max_seq_length=args.window)
    model.save_pretrained(args.out, save_compressed=True)
    AutoTokenizer.from_pretrained(args.source).save_pretrained(args.out)


if __name__ == "__main__":
    main()
