"""Greedy continuations of a few prompts by vLLM on the CPU, one JSON object a prompt.

    vllm_generate.py MODEL [--dtype bfloat16] [--tokens 32] [--prompt TEXT]...

Text on standard output, what vLLM has to say on standard error. Exit code 1 when the model does not load.
"""

import argparse
import json
import os
import sys
from importlib.metadata import version

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
# The engine in this process: its errors are exceptions here.
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

from prompts import PROMPTS


def main():
    parser = argparse.ArgumentParser(description="Greedy texts from vLLM on the CPU.")
    parser.add_argument("model")
    parser.add_argument("--dtype", default="bfloat16", help="of what is not quantised")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--prompt", action="append", help=f"default: the first three of {len(PROMPTS)}")
    args = parser.parse_args()
    from vllm import LLM, SamplingParams

    prompts = args.prompt or PROMPTS[:3]
    engine = LLM(model=args.model, dtype=args.dtype, max_model_len=1024, max_num_seqs=4, enforce_eager=True, seed=0)
    greedy = SamplingParams(temperature=0, max_tokens=args.tokens, ignore_eos=True)
    for prompt, result in zip(prompts, engine.generate(prompts, greedy, use_tqdm=False)):
        answer = result.outputs[0]
        print(json.dumps({"prompt": prompt, "text": answer.text, "tokens": list(answer.token_ids)}), flush=True)
    print(json.dumps({"model": args.model, "vllm": version("vllm-cpu"), "torch": version("torch")}))


if __name__ == "__main__":
    sys.exit(main())
