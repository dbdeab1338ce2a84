"""How far ONNX files are from PyTorch, over families of timm's backbones, in fp32 and in half precision.

    python benchmarks/onnx_parity.py [--only resnet18 ...] [--go-on] [--quick]

Random weights of one seed, batch norms that have seen noise, 10 classes. Each is exported with a free batch by
`visiontune.export.export_onnx`, which compares the outputs on one and on three pictures of noise through onnxruntime; `difference` is the
largest one as a share of the largest output. What torch's exporter or the comparison said of a backbone that fails is kept. Writes the CSV.
"""

import argparse
import csv
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import machine, need, parse, write_rows

from visiontune.backbones import create
from visiontune.errors import UserError
from visiontune.export import export_onnx, timm_config

# name, pixels, arguments: small ones of families that people use, convolutional, transformers and both.
BACKBONES: list[tuple[str, int, dict[str, Any]]] = [
    ("resnet10t", 96, {}),
    ("resnet18", 96, {}),
    ("regnety_002", 96, {}),
    ("convnext_atto", 96, {}),
    ("tf_efficientnet_lite0", 96, {}),
    ("vit_tiny_patch16_224", 96, {}),
    ("swin_tiny_patch4_window7_224", 64, {"window_size": 4}),
    ("mobilenetv4_conv_small", 96, {}),
    ("eva02_tiny_patch14_224", 98, {}),
    ("deit_tiny_distilled_patch16_224", 96, {}),
    ("swinv2_tiny_window8_256", 64, {"window_size": 4}),
    ("vit_small_patch16_dinov3", 96, {}),
    ("convnextv2_atto", 96, {}),
    ("efficientnet_b0", 96, {}),
    ("densenet121", 96, {}),
    ("repvgg_a0", 96, {}),
    ("nf_regnet_b0", 96, {}),
    ("mambaout_femto", 96, {}),
    ("fastvit_t8", 96, {}),
    ("edgenext_xx_small", 96, {}),
]


def outcome(network: Any, config: dict[str, Any], *, fp16: bool) -> tuple[str, str]:
    """The largest difference, and what was said of a failure."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            return f"{export_onnx(network, config, Path(folder) / 'm.onnx', fp16=fp16).difference:.1e}", ""
        except UserError as error:
            return "", str(error).replace(folder, "...")


def row(name: str, size: int, args: dict[str, Any]) -> dict[str, Any]:
    torch.manual_seed(0)
    network = create(name, image_size=size, num_classes=10, args=args)
    with torch.no_grad():
        for _ in range(3):
            network(torch.randn(8, 3, size, size))
    spec: Any = network.spec
    config = timm_config(network, spec, [0.5] * 3, [0.25] * 3, 10, list("0123456789"))
    difference, said = outcome(network, config, fp16=False)
    half, half_said = outcome(network, config, fp16=True)
    found = {"model": name, "parameters": sum(p.numel() for p in network.parameters()), "image_size": size}
    return found | {"difference": difference, "difference_fp16": half, "said": said or half_said}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--go-on", action="store_true", help="keep the rows of the CSV that are there, and add what is missing")
    parser.add_argument("--quick", action="store_true", help="one backbone, to see that it runs")
    args = parse(parser, __file__)
    for package in ("onnx", "onnxscript", "onnxruntime"):
        need(package, package, "the comparison")
    import onnx
    import onnxruntime

    if args.quick:
        args.only = [BACKBONES[0][0]]
    rows: list[dict[str, Any]] = list(csv.DictReader(args.csv.open(newline=""))) if args.go_on and args.csv.exists() else []
    done = {r["model"] for r in rows}
    for name, size, more in BACKBONES:
        if name in done or (args.only and name not in args.only):
            continue
        rows.append(row(name, size, more) | {"onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__, **machine()})
        write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
