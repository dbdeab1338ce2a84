"""Half an hour on one CUDA card that says whether training is as fast and as sound there as it is meant to be. Writes one CSV to send back.

    python benchmarks/gpu.py [--cifar CIFAR10] [--minutes 30] [--parts mae waits ...] [--csv gpu.csv]
    python benchmarks/gpu.py --device cpu --quick        every branch that needs no card, with tiny networks

CIFAR10 holds train/CLASS/* and test/CLASS/*. A row is one number of one part, with its goal where it has one; a part that fails leaves a
row with its reason, and the others go on. Rows of a CPU say that all parts run, and nothing of speed.

mae         a step of MAE on ViT-B/16 at 224 pixels: milliseconds, and MFU: the operations that forward and backward pass come down to
            (torch's counter; a multiply-add is two) over what the card's matrix units do at most, dense, in 16 bits.
compile     the same with the encoder's blocks compiled, and what that gains.
data        the share of time in which the same step waits for JPEG files (500 x 375 pixels, made for this), through `fit`'s own loader.
precision   losses in bf16 and fp16 against fp32's over the same steps, of a transformer and a convnet.
waits       how often a step of each method makes the host wait for the card.
detect      short training of FCOS and D-FINE in bf16.
benchmark   `python -m visiontune benchmark` of three backbones.
simclr      SimCLR on CIFAR-10 by recipes/cifar/simclr_resnet18_100ep.yaml for the minutes that are left, at most 100 epochs.
"""

import argparse
import csv
import gc
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from common import fit, machine, write_rows
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from visiontune import MAE, Detector, SimCLR, build
from visiontune.benchmark.waits import noted
from visiontune.boxes import Boxes
from visiontune.finish import silence
from visiontune.recipe import load_recipe

# Dense teraFLOPS in 16 bits with sums in 32, of NVIDIA's data sheets (of GeForce cards of its architecture papers); first match counts.
PEAKS = {
    "B200": 2250, "H200": 989, "GH200": 989, "H100 PCIe": 756, "H100 NVL": 835, "H100": 989, "A100": 312, "A800": 312, "A30": 165,
    "A40": 150, "A10G": 70, "A10": 125, "L40S": 362, "L40": 181, "L4": 121, "T4": 65, "V100": 125, "RTX 6000 Ada": 364, "RTX A6000": 155,
    "RTX 5090": 210, "RTX 4090": 165, "RTX 4080": 97, "RTX 3090": 71, "RTX 3080": 60, "RTX 2080 Ti": 54,
}  # fmt: skip
KNN_GOAL, KNN_EPOCHS = 83.2, 100


@dataclass
class Plan:
    """What to measure with.

    Attributes:
        device: where.
        quick: tiny networks, few steps.
        minutes: all of it may take; the last part takes what is left.
        peak_tflops: of the card, instead of the table's.
        cifar: folder of CIFAR-10.
        folder: for files of the parts.
        batch: pictures of a step of ViT-B; halved until they fit.
    """

    device: torch.device
    quick: bool
    minutes: float
    peak_tflops: float | None
    cifar: Path | None
    folder: Path
    batch: int
    began: float = field(default_factory=time.monotonic)

    @property
    def accelerator(self) -> str:
        return "gpu" if self.device.type == "cuda" else "cpu"

    @property
    def precision(self) -> str:
        """Of the parts that are about speed."""
        return build.auto_precision("cuda")[0] if self.device.type == "cuda" else "bf16-mixed"

    @property
    def left(self) -> float:
        """Minutes."""
        return self.minutes - (time.monotonic() - self.began) / 60

    def sizes(self, full: Any, quick: Any) -> Any:
        return quick if self.quick else full

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


Row = dict[str, Any]
Part = Callable[[Plan], Iterator[Row]]


def number(what: str, value: Any, unit: str = "", goal: str = "", note: str = "") -> Row:
    return {"what": what, "value": round(value, 4) if isinstance(value, float) else value, "unit": unit, "goal": goal, "note": note}


# ---------------------------------------------------------------- training through Lightning, as `fit` does


class Steps(L.Callback):
    """Seconds of the steps after the first `warm_up` ones, their losses, and the waits of each."""

    def __init__(self, plan: Plan, warm_up: int, *, watch: bool = False) -> None:
        self.plan, self.warm_up, self.watch = plan, warm_up, watch
        self.steps, self.began, self.seconds = 0, 0.0, 0.0
        self.losses: list[torch.Tensor] = []
        self.waits: list[list[str]] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self.watch:
            self.within = noted(self.plan.device)
            self.inside = self.within.__enter__()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.watch:
            self.within.__exit__(None, None, None)
            self.waits.append(self.inside)
        self.losses.append(outputs["loss"].detach().float())
        self.steps += 1
        if self.steps == self.warm_up:
            self.plan.synchronize()
            self.began = time.perf_counter()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.plan.synchronize()
        self.seconds = (time.perf_counter() - self.began) / max(1, self.steps - self.warm_up)


def train(plan: Plan, module: Any, batches: Any, *, warm_up: int = 2, watch: bool = False, precision: str | None = None) -> Steps:
    """Steps of a module on a list of batches, or on a data module's pictures."""
    steps = Steps(plan, warm_up, watch=watch)
    trainer = L.Trainer(
        max_epochs=1, accelerator=plan.accelerator, devices=1, precision=precision or plan.precision, callbacks=[steps], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=10**6,
        num_sanity_val_steps=0, limit_val_batches=0, use_distributed_sampler=False, default_root_dir=plan.folder,
    )  # fmt: skip
    data = DataLoader(batches, batch_size=None) if isinstance(batches, list) else batches
    trainer.fit(module, data)
    return steps


def mae(plan: Plan, *, compiled: bool = False) -> MAE:
    torch.manual_seed(0)
    tiny = {"backbone_args": {"embed_dim": 32, "depth": 2, "num_heads": 2}, "decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2}
    module = MAE("vit_base_patch16_224", image_size=224, lr=1e-4, warmup_steps=1, total_steps=1000, **plan.sizes({}, tiny))
    if compiled:
        build.compile_blocks(module.backbone)
    return module


def random_pictures(plan: Plan, batch: int, size: int = 224) -> torch.Tensor:
    return torch.randint(0, 255, (batch, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).to(plan.device)


def operations(module: MAE) -> float:
    """Floating-point operations of a picture, forward and backward; attention in single products, which are counted on every device."""
    counter, device = FlopCounterMode(display=False), next(module.parameters()).device
    with counter, sdpa_kernel(SDPBackend.MATH):
        module.training_step(torch.zeros(2, 3, 224, 224, dtype=torch.uint8, device=device), 0).backward()
    module.zero_grad()
    return counter.get_total_flops() / 2


def peak_flops(plan: Plan) -> float | None:
    """The card's, a second; None where nobody says."""
    if plan.peak_tflops is not None:
        return 1e12 * plan.peak_tflops
    name = torch.cuda.get_device_name(plan.device) if plan.device.type == "cuda" else ""
    return next((1e12 * tera for key, tera in PEAKS.items() if re.search(rf"\b{key}\b", name)), None)


# ---------------------------------------------------------------- parts


def mae_step(plan: Plan, *, compiled: bool = False) -> Steps:
    while True:
        try:
            batches = [random_pictures(plan, plan.batch)] * plan.sizes(30, 4)
            return train(plan, mae(plan, compiled=compiled), batches, warm_up=plan.sizes(8, 2))
        except RuntimeError as error:
            if not build.is_out_of_memory(error) or plan.batch == 1:
                raise
        plan.batch //= 2
        build.free_memory()
        if plan.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(plan.device)


def part_mae(plan: Plan) -> Iterator[Row]:
    flops, found = operations(mae(plan)), mae_step(plan)
    batch = plan.batch
    yield number("MAE ViT-B/16 step", 1000 * found.seconds, "ms", note=f"batch {batch}, {plan.precision}, eager")
    yield number("MAE ViT-B/16 pictures a second", batch / found.seconds)
    yield number("operations of a picture", flops / 1e9, "GFLOP")
    if plan.device.type == "cuda":
        yield number("peak memory", torch.cuda.max_memory_allocated(plan.device) / 2**30, "GiB")
    peak = peak_flops(plan)
    if peak is None:
        yield number("MFU", "", goal=">= 35 %", note="not known of this device; give --peak-tflops")
    else:
        yield number("MFU", 100 * flops * batch / found.seconds / peak, "%", ">= 35 %", f"of {peak / 1e12:g} TFLOPS, eager")


def part_compile(plan: Plan) -> Iterator[Row]:
    torch.compiler.reset()
    eager, batch = mae_step(plan), plan.batch
    compiled = mae_step(plan, compiled=True)
    if plan.batch != batch:  # of both on one batch
        eager = mae_step(plan)
    yield number("MAE ViT-B/16 step, compiled", 1000 * compiled.seconds, "ms")
    yield number("compile gain", eager.seconds / compiled.seconds, "x", "> 1")
    if (peak := peak_flops(plan)) is not None:
        mfu = 100 * operations(mae(plan)) * plan.batch / compiled.seconds / peak
        yield number("MFU, compiled", mfu, "%", ">= 35 %", f"of {peak / 1e12:g} TFLOPS")


def part_data(plan: Plan) -> Iterator[Row]:
    """The step on files, against the same on a batch that is there."""
    photos, batch, steps, count = plan.folder / "photos", plan.batch, *plan.sizes((60, 4096), (4, 16))
    make_photos(photos, count)
    tiny = ["backbone.args={embed_dim: 32, depth: 2, num_heads: 2}", "method.decoder_depth=1", "data.workers=0"]
    settings = [f"data.train={photos}", f"data.batch_size={batch}", "backbone.name=vit_base_patch16_224", "epochs=1"]
    settings += ["optim.warmup_epochs=0", *plan.sizes([], tiny)]
    settings += [f"trainer.accelerator={plan.accelerator}", "trainer.devices=1", f"data.repeats={-(-steps * batch // count)}"]
    prepared = build.prepare(load_recipe("pretrain/mae", settings).single)
    pictures = build.make_data(prepared.recipe, prepared.tables, None)
    try:
        on_files = train(plan, prepared.module, pictures, warm_up=plan.sizes(20, 2))
    finally:
        pictures.close()
    again = build.prepare(load_recipe("pretrain/mae", settings).single).module
    in_memory = train(plan, again, [random_pictures(plan, batch)] * plan.sizes(30, 4), warm_up=plan.sizes(8, 2))
    share = 100 * max(0.0, 1 - in_memory.seconds / on_files.seconds)
    workers = f"{prepared.recipe.data.workers} workers, batch {batch}"
    yield number("time waiting for JPEG files", share, "%", "< 5 %", workers)
    yield number("pictures a second from JPEG files", batch / on_files.seconds)


def make_photos(folder: Path, count: int) -> None:
    """JPEG files of the size and about the bytes of ImageNet's: smooth colours with some noise."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        smooth = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((500, 375), Image.Resampling.BICUBIC)
        noisy = np.asarray(smooth, dtype=np.int16) + rng.integers(-12, 13, (375, 500, 1), dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:05d}.jpg", quality=90)


def part_precision(plan: Plan) -> Iterator[Row]:
    """On the CPU fp16 is left out: Lightning trains in bf16 instead."""
    batch, steps = plan.sizes((64, 100), (4, 6))
    short: dict[str, Any] = {"lr": 1e-3, "optimizer": "adamw", "warmup_steps": 5, "total_steps": steps}
    images = random_pictures(plan, batch, 64)
    batches = [images.roll(i, dims=3) for i in range(steps)]
    vit, resnet = plan.sizes(({"patch_size": 8}, {}), ({"embed_dim": 32, "depth": 2, "num_heads": 2}, {"channels": [8, 8, 16, 16]}))
    small = plan.sizes({}, {"decoder_dim": 32, "decoder_depth": 1, "decoder_heads": 2})
    head = plan.sizes({}, {"projector_hidden": 16, "projector_out": 8})
    made: dict[str, tuple[Callable[[], Any], list[Any]]] = {
        "MAE on a transformer": (lambda: MAE("vit_tiny_patch16_224", image_size=64, backbone_args=vit, **small, **short), batches),
        "SimCLR on a ResNet": (
            lambda: SimCLR(plan.sizes("resnet18", "resnet10t"), image_size=64, backbone_args=resnet, **head, **short),
            [[x, x.flip(3)] for x in batches],
        ),
    }
    for name, (make, data) in made.items():
        losses = {}
        for precision in ("32-true", "bf16-mixed", *(("16-mixed",) if plan.device.type == "cuda" else ())):
            torch.manual_seed(0)
            losses[precision] = torch.stack(train(plan, make(), data, precision=precision).losses).cpu()
        for precision in list(losses)[1:]:
            ours, theirs = (losses[p][-max(1, steps // 4) :].mean().item() for p in (precision, "32-true"))
            finite = bool(losses[precision].isfinite().all())
            note = f"mean of the last quarter of {steps} steps: {ours:.4f} against {theirs:.4f}; first losses {first_of(losses, precision)}"
            yield number(f"{name}: loss in {precision} over fp32's", ours / theirs if finite else math.nan, "x", "1 +- 0.02", note)


def first_of(losses: dict[str, torch.Tensor], precision: str) -> str:
    return " and ".join(f"{losses[p][0].item():.4f}" for p in (precision, "32-true"))


def part_waits(plan: Plan) -> Iterator[Row]:
    """Of steps after the first two, which set things up; between two reports, which are one wait each."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.pretrain.test_strangers import KINDS
    from tests.pretrain.test_strangers import build as make

    for kind in KINDS[:2] if plan.quick else KINDS:
        for precision in dict.fromkeys((plan.precision, "16-mixed" if plan.device.type == "cuda" else plan.precision)):
            torch.manual_seed(0)
            module, data = make(kind, "uint8")
            batch = next(iter(data))
            found = train(plan, module, [batch] * 4, watch=True, precision=precision).waits[2:]
            told = "; ".join(dict.fromkeys(wait for step in found for wait in step))
            yield number(f"waits a step of {kind}, {precision}", statistics.mean(map(len, found)), goal="0", note=told)


def part_detect(plan: Plan) -> Iterator[Row]:
    size, batch, steps = plan.sizes((512, 8, 12), (64, 2, 3))
    for head in ("fcos", "dfine"):
        torch.manual_seed(0)
        tiny = {
            "backbone_args": {"channels": [8, 8, 16, 16]},
            "head_args": {"queries": 20, "hidden": 32, "decoder_layers": 2, "denoising": 10} if head == "dfine" else {},
        }
        module = Detector("resnet10t", num_classes=3, head=head, image_size=size, freeze_batch_norms=False, **plan.sizes({}, tiny))
        boxes = Boxes(torch.tensor([[4.0, 6, size / 2, size / 3], [size / 4, size / 4, size - 4, size - 8]]), torch.tensor([0, 1]))
        found = train(
            plan, module, [(random_pictures(plan, batch, size).cpu(), [boxes] * batch)] * steps, precision="bf16-mixed", watch=True
        )
        losses = torch.stack(found.losses)
        finite = bool(losses.isfinite().all())
        yield number(
            f"{head}: loss of the last step in bf16", losses[-1].item() if finite else math.nan, goal="finite", note=f"{steps} steps"
        )
        yield number(f"{head}: step", 1000 * found.seconds, "ms", note=f"batch {batch}, {size} pixels")
        yield number(f"{head}: waits a step", len(found.waits[-1]), note="matching waits")


def part_benchmark(plan: Plan) -> Iterator[Row]:
    names = ["resnet18", "vit_tiny_patch16_224", "convnext_atto"]
    words = ["benchmark", "sample:digits/train", "--val", "sample:digits/test", "--weights", "random", "--probe", "knn"]
    words += ["--backbones", *names]
    words += ["--device", plan.device.type, "--out", str(plan.folder / "which"), *plan.sizes([], ["--at", "32", "--seconds", "0.02"])]
    done = subprocess.run([sys.executable, "-m", "visiontune", *words], capture_output=True, text=True)
    table = plan.folder / "which/results.csv"
    if not table.is_file():
        raise RuntimeError((done.stderr.strip() or "no results.csv").splitlines()[-1])
    with table.open(newline="") as file:
        for row in csv.DictReader(file):
            speed = row.get("images_per_second") or ""
            yield number(f"benchmark of {row['name']}: pictures a second", speed, goal="finished", note=row.get("reason") or row["status"])


def part_simclr(plan: Plan) -> Iterator[Row]:
    if plan.cifar is None:
        yield number("SimCLR on CIFAR-10: k-NN", "", "%", f"{KNN_GOAL} after {KNN_EPOCHS} epochs", "not run: give --cifar FOLDER")
        return
    train_on, test = plan.cifar.absolute() / "train", plan.cifar.absolute() / "test"
    settings = [f"data.train={train_on}", f"probe.train={train_on}", f"probe.val={test}", f"trainer.accelerator={plan.accelerator}"]
    settings += ["trainer.devices=1", *plan.sizes([], ["data.batch_size=8", "data.workers=0", "method.projector_hidden=16"])]
    recipe = "cifar/simclr_resnet18_100ep"
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:  # an epoch of the same, for how many there is time
        one = fit(recipe, folder, "epochs=1", "probe.every=1", *settings)
    fixed, epoch = max(0.0, time.monotonic() - began - one["seconds"]), one["seconds"]
    epochs = max(1, min(KNN_EPOCHS, int((60 * plan.left - fixed) / epoch)))
    with tempfile.TemporaryDirectory() as folder:
        result = fit(recipe, folder, f"epochs={epochs}", f"probe.every={epochs}", *settings)
    goal = f"{KNN_GOAL} after {KNN_EPOCHS} epochs"
    yield number("SimCLR on CIFAR-10: k-NN", 100 * result["knn_top1"], "%", goal, f"after {epochs} epochs")
    yield number("SimCLR on CIFAR-10: linear probe", 100 * result["probe_top1"], "%", "85.6 after 100 epochs", f"after {epochs} epochs")
    yield number("SimCLR on CIFAR-10: pictures a second", result["images_per_second"])


PARTS: dict[str, Part] = {
    "mae": part_mae, "compile": part_compile, "data": part_data, "precision": part_precision, "waits": part_waits, "detect": part_detect,
    "benchmark": part_benchmark, "simclr": part_simclr,
}  # fmt: skip


def run_parts(plan: Plan, names: list[str], file: Path) -> list[Row]:
    """Each part in turn, every row written as soon as it is there."""
    about = {"device": str(plan.device), "quick": plan.quick, **machine()}
    rows: list[Row] = []
    for name in names:
        began = time.monotonic()

        def write(row: Row, name: str = name, began: float = began) -> None:
            rows.append({"part": name, **row, "seconds": round(time.monotonic() - began, 1), **about})
            write_rows(file, rows)

        if plan.left <= 0:
            write(number("not begun", "", note=f"the {plan.minutes:g} minutes are over"))
            continue
        try:
            for row in PARTS[name](plan):
                write(row)
        except Exception as error:  # a part that fails ends no other
            write(number("failed", "", note=f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"))
        gc.collect()
        if plan.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(plan.device)
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny networks and few steps: do all parts run?")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=30.0, help="no part begins after them")
    parser.add_argument("--cifar", type=Path, metavar="FOLDER", help="CIFAR-10 as train/CLASS and test/CLASS; without, simclr is left out")
    parser.add_argument("--peak-tflops", type=float, help="of the card in 16 bits, dense; default: by its name")
    parser.add_argument("--csv", type=Path, default=Path("gpu.csv"))
    args = parser.parse_args(argv)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("error: --device: there is no CUDA here; `--device cpu --quick` tries all parts without", file=sys.stderr)
        return 2
    silence()
    with tempfile.TemporaryDirectory() as folder:
        plan = Plan(
            torch.device(args.device), args.quick, args.minutes, args.peak_tflops, args.cifar, Path(folder), 2 if args.quick else 256
        )
        rows = run_parts(plan, args.parts, args.csv)
    failed = [row for row in rows if row["what"] == "failed"]
    print(f"{args.csv.absolute()}: {len(rows)} rows, {len(failed)} parts failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
