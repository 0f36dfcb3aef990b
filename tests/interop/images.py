"""Every small checkpoint of tests/fixtures that takes images, quantised by Zeropoint and loaded by transformers.

    images.py --zeropoint BIN [NAME...]                     (families.sh calls it)

For each fixture (or those named) and for dynamic and static W8A8 it runs `zeropoint run` on the fixture's images and checks that

- the class named by `architectures` loads the result, every tensor finds its place, and the layers stored as integers are
  those that compressed-tensors holds as integers, bit for bit (check.py has the checks);
- transformers' outputs, with activations quantised, are near the original's: mean cosine at least --min-original;
- what `zeropoint encode` makes of each image file (of CLIP, each text too) agrees with transformers, which prepares the same
  file with its own PIL image processor, to a mean cosine of --min-cosine. JPEG decoders differ by a step or two of 255.

Exit code 1 when a check fails.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import check
import families


def processor(directory, model_type):
    """The PIL image processor of a model type, which is what Zeropoint follows to the bit."""
    import importlib

    name = {"vit": "ViT", "deit": "DeiT", "clip": "CLIP"}[model_type]
    module = importlib.import_module(f"transformers.models.{model_type}.image_processing_pil_{model_type}")
    return getattr(module, f"{name}ImageProcessorPil").from_pretrained(directory)


def run(zeropoint, fixture, scheme, reference, work):
    """Quantises a fixture, calibrated on its own images (and texts), and returns the directory of the model."""
    out = work / "out"
    data = [f"{fixture}/images/"]
    if "texts" in reference:
        (work / "texts.txt").write_text("".join(f"{text}\n" for text in reference["texts"]), encoding="utf-8")
        data.append(str(work / "texts.txt"))
    config = work / "config.toml"
    config.write_text(
        f"version = 1\nmodel.source = {json.dumps(str(fixture))}\noutput.dir = {json.dumps(str(out))}\n"
        f'calibration.data = {json.dumps(data)}\nquantization.scheme = "w8a8-{scheme}"\nevaluation.tasks = []\n',
        encoding="utf-8",
    )
    subprocess.run([zeropoint, "run", str(config), "--no-cache", "--quiet"], check=True)
    return out / "model"


def encoded(zeropoint, model, data, work):
    """The vectors or logits of `zeropoint encode` and what each is of."""
    rows = work / "rows.jsonl"
    subprocess.run([zeropoint, "encode", str(model), "--data", str(data), "--out", str(rows), "--quiet"], check=True)
    return [json.loads(line) for line in rows.read_text(encoding="utf-8").splitlines()]


def image_output(model, pixels):
    """The vector or the logits of one image, as `zeropoint encode` prints them."""
    import torch

    with torch.no_grad():
        if model.config.model_type == "clip":
            vector = model.get_image_features(pixel_values=pixels)
            return torch.nn.functional.normalize(getattr(vector, "pooler_output", vector), dim=-1)[0]
        output = model(pixel_values=pixels)
        return output.logits[0] if hasattr(output, "logits") else output.pooler_output[0]


def text_output(model, ids):
    """The vector of one text (CLIP)."""
    import torch

    with torch.no_grad():
        vector = model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids))
        return torch.nn.functional.normalize(getattr(vector, "pooler_output", vector), dim=-1)[0]


def one(zeropoint, fixture, scheme, args, work):
    """Checks one fixture with one scheme; returns a line for the table and what failed."""
    import torch
    import transformers
    from PIL import Image

    reference = check.read_json(fixture / "reference.json")
    directory = run(zeropoint, fixture, scheme, reference, work)
    config = check.read_json(directory / "config.json")
    factory = getattr(transformers, config["architectures"][0])
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    failures = []
    model, info = factory.from_pretrained(directory, output_loading_info=True, **options)
    model.eval()
    check.check_loading(info, failures)
    linears = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    tensors = families.with_module_names(check.read_tensors(directory), config["model_type"], linears)
    quantised, floats = check.check_layers(model, tensors, failures)
    original = factory.from_pretrained(fixture, **options).eval()
    if config["model_type"] == "clip":  # decompression hangs on `forward`, which get_image_features does not call
        size = config["vision_config"]["image_size"]
        with torch.no_grad():
            model(input_ids=torch.tensor([reference["input_ids"][0]]), pixel_values=torch.zeros(1, 3, size, size))
    prepare = processor(directory, config["model_type"])
    ours, theirs, floating = [], [], []
    for row in encoded(zeropoint, directory, f"{fixture}/images/", work):
        with Image.open(row["image"]) as image:
            pixels = prepare(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        ours.append(torch.tensor(row.get("logits") or row["embedding"]))
        theirs.append(image_output(model, pixels))
        floating.append(image_output(original, pixels))
    if len(ours) != len(reference["images"]):
        failures.append(f"{len(ours)} images were encoded, {len(reference['images'])} are there")
    for row, ids in zip(encoded(zeropoint, directory, work / "texts.txt", work), reference["input_ids"], strict=True) \
            if "texts" in reference else []:
        ids = torch.tensor([ids])
        ours.append(torch.tensor(row["embedding"]))
        theirs.append(text_output(model, ids))
        floating.append(text_output(original, ids))
    to_original = families.mean_cosine(theirs, floating)
    agreement = families.mean_cosine(ours, theirs)
    if not to_original >= args.min_original:
        failures.append(f"mean cosine to the original {to_original:.5f}, at least {args.min_original} is expected")
    if not agreement >= args.min_cosine:
        failures.append(f"mean cosine of zeropoint and transformers {agreement:.5f}, at least {args.min_cosine} is expected")
    line = f"{fixture.name:28} {scheme:8} {len(quantised):3} {len(floats):3} {to_original:9.5f} {agreement:9.5f}"
    return line, failures


def main():
    parser = argparse.ArgumentParser(description="Quantised image fixtures in transformers.")
    parser.add_argument("names", nargs="*", help="fixtures (default: all that take images)")
    parser.add_argument("--zeropoint", required=True, help="the program")
    parser.add_argument("--min-original", type=float, default=0.99)
    parser.add_argument("--min-cosine", type=float, default=0.999)
    args = parser.parse_args()
    import transformers

    transformers.logging.set_verbosity_error()
    names = args.names or sorted(path.parent.parent.name for path in families.FIXTURES.glob("*/images/wide.png"))
    return families.table(args.zeropoint, names, one, args)


if __name__ == "__main__":
    sys.exit(main())
