"""Detection heads on families of timm: a small member of each, on small pictures.

    python benchmarks/detect_families.py [--heads fcos dfine] [--models resnet10t ...] [--go-on] [--quick]

Each head is tried on one fixed batch of noise, two pictures of which one has two boxes: 5 steps of AdamW at 3e-4. "trains" means that the
loss is finite at every step and lower at the end, and that every parameter that learns was reached. Of D-FINE it is the loss of the noised
boxes, whose matches are fixed: those of the others, and how many learn, change from step to step. What is said of a failure is kept.
`strides` and `channels` are of the maps that were found, `notes` what had to be done for them. A network that aborts Python leaves a row
that says so.
"""

import argparse
import csv
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from common import machine, parse, write_rows

from visiontune import Detector
from visiontune.boxes import Boxes

# The smallest of each family, and pictures that it takes.
FAMILIES = {
    "beit_base_patch16_224": 224, "cait_xxs24_224": 224, "coat_tiny": 224, "coatnet_nano_rw_224": 224, "convformer_s18": 128,
    "convit_tiny": 224, "convnext_atto": 128, "convnextv2_atto": 128, "cspresnet50": 128, "davit_tiny": 128,
    "deit3_small_patch16_224": 224, "deit_tiny_patch16_224": 224, "densenet121": 128, "dla34": 128, "dm_nfnet_f0": 128,
    "edgenext_xx_small": 128, "efficientformer_l1": 224, "efficientformerv2_s0": 224, "efficientnet_b0": 128, "efficientvit_b0": 128,
    "efficientvit_m0": 224, "eva02_tiny_patch14_224": 224, "fastvit_t8": 128, "focalnet_tiny_srf": 128, "gcvit_xxtiny": 224,
    "ghostnet_050": 128, "hardcorenas_a": 128, "hgnet_tiny": 128, "hiera_tiny_224": 224, "hrnet_w18_small": 128,
    "inception_next_tiny": 128, "inception_v4": 160, "levit_128s": 224, "mambaout_femto": 128, "maxvit_pico_rw_256": 256,
    "mixer_s32_224": 224, "mnasnet_small": 128, "mobilenetv3_small_050": 128, "mobilenetv4_conv_small": 128, "mobileone_s0": 128,
    "mobilevit_xxs": 128, "mobilevitv2_050": 128, "mvitv2_tiny": 224, "nest_tiny": 224, "nextvit_small": 128, "nf_resnet26": 128,
    "pit_ti_224": 224, "poolformer_s12": 128, "pvt_v2_b0": 128, "regnetx_002": 128, "repghostnet_050": 128, "repvgg_a0": 128,
    "repvit_m0_9": 128, "res2net50_14w_8s": 128, "resmlp_12_224": 224, "resnet10t": 128, "rexnet_100": 128, "sequencer2d_s": 224,
    "skresnet18": 128, "starnet_s1": 128, "swin_tiny_patch4_window7_224": 224, "swinv2_tiny_window8_256": 256,
    "tf_efficientnet_lite0": 128, "tiny_vit_5m_224": 224, "tresnet_m": 128, "twins_svt_small": 224, "vgg11_bn": 128,
    "visformer_tiny": 224, "vit_small_patch14_reg4_dinov2": 112, "vit_tiny_patch16_224": 128, "vit_tiny_r_s16_p8_224": 224,
    "volo_d1_224": 224, "vovnet39a": 128, "xception41": 128, "xcit_nano_12_p16_224": 224, "xcit_nano_12_p8_224": 224,
}  # fmt: skip


# D-FINE takes their own maps, which differ more than a pyramid's: some of each kind.
DFINE_FAMILIES = (
    "beit_base_patch16_224", "coatnet_nano_rw_224", "convnext_atto", "davit_tiny", "deit_tiny_patch16_224", "densenet121",
    "efficientnet_b0", "eva02_tiny_patch14_224", "focalnet_tiny_srf", "hiera_tiny_224", "hrnet_w18_small", "levit_128s", "mambaout_femto",
    "maxvit_pico_rw_256", "mobilenetv4_conv_small", "mobilevitv2_050", "pvt_v2_b0", "regnetx_002", "repvit_m0_9", "resnet10t",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256", "vgg11_bn", "vit_small_patch14_reg4_dinov2",
    "vit_tiny_patch16_224", "xcit_nano_12_p8_224",
)  # fmt: skip
HEADS = {"fcos": tuple(FAMILIES), "dfine": DFINE_FAMILIES}
SMALL_DFINE = {"hidden": 64, "decoder_layers": 2, "queries": 50, "denoising": 20}
STEPS = 5
CSV = Path(__file__).with_suffix(".csv")


def made(head: str, name: str) -> Detector:
    torch.manual_seed(0)
    options: dict[str, Any] = {"head_args": SMALL_DFINE} if head == "dfine" else {}
    size = FAMILIES[name]
    return Detector(name, num_classes=2, head=head, image_size=size, pyramid_width=32, freeze_batch_norms=False, **options).train()


def losses_of(detector: Detector, size: int, parts: tuple[str, ...] = ()) -> list[float]:
    """Losses before each step and after the last: of all parts together, or of some.

    Raises:
        RuntimeError: if a parameter that learns was not reached.
    """
    images = torch.randint(0, 255, (2, 3, size, size), dtype=torch.uint8)
    targets = [Boxes(torch.tensor([[4.0, 6, 60, 80], [20, 20, 100, 100]]), torch.tensor([0, 1])), Boxes.none()]
    optimizer, losses = torch.optim.AdamW([p for p in detector.parameters() if p.requires_grad], lr=3e-4), []
    for step in range(STEPS + 1):
        torch.manual_seed(0)  # D-FINE noises boxes
        found = detector.head.loss(detector.features(images), targets, (size, size))
        losses.append(sum(found[part] for part in parts or found).item())
        if step < STEPS:
            optimizer.zero_grad()
            sum(found.values()).backward()
            optimizer.step()
    if missed := [n for n, p in detector.named_parameters() if p.requires_grad and p.grad is None]:
        raise RuntimeError(f"{len(missed)} parameters have no gradient, {missed[0]} for one")
    return losses


def trains(losses: list[float]) -> bool:
    return all(math.isfinite(x) for x in losses) and losses[-1] < losses[0]


def attempt(head: str, name: str) -> dict[str, Any]:
    size = FAMILIES[name]
    row: dict[str, Any] = {"head": head, "model": name, "image_size": size}
    try:
        detector = made(head, name)
        row |= {"parameters": sum(p.numel() for p in detector.backbone.parameters())}
        row |= {"strides": " ".join(map(str, detector.maps.strides)), "channels": " ".join(map(str, detector.maps.widths))}
        row |= {"notes": "; ".join(detector.maps.notes)}
        losses = losses_of(detector, size, ("denoising",) if head == "dfine" else ())
    except Exception as error:  # a defect, ours or timm's: named in the table rather than hidden
        said = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return row | {"outcome": "failed", "said": said}
    row |= {"first": round(losses[0], 4), "last": round(losses[-1], 4), "said": ""}
    if not trains(losses):
        row["said"] = f"the loss went from {losses[0]:.4f} to {losses[-1]:.4f} in {STEPS} steps"
    return row | {"outcome": "failed" if row["said"] else "trains"}


def apart(head: str, name: str) -> dict[str, Any]:
    """The same in a process of its own."""
    code = f"import json, detect_families as d; print('\\n' + json.dumps(d.attempt({head!r}, {name!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        last = {"head": head, "model": name, "image_size": FAMILIES[name], "outcome": "failed"}
        return last | {"said": f"the process ended with {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def read_rows(path: Path = CSV) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS))
    parser.add_argument("--models", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--go-on", action="store_true", help="keep the rows of the CSV that are there, and add those that are missing")
    parser.add_argument("--quick", action="store_true", help="one convnet, to see that it runs")
    args = parse(parser, __file__)
    if args.quick:
        args.models = ["resnet10t"]
    rows: list[dict[str, Any]] = list(read_rows(args.csv)) if args.go_on and args.csv.is_file() else []
    done = {(r["head"], r["model"]) for r in rows}
    columns = ("head", "model", "image_size", "parameters", "strides", "channels", "outcome", "first", "last", "said", "notes")
    for head in args.heads:
        for name in HEADS[head]:
            if name not in args.models or (head, name) in done:
                continue
            row = apart(head, name)
            rows.append({key: row.get(key, "") for key in columns} | machine())
            write_rows(args.csv, rows)


if __name__ == "__main__":
    main()
