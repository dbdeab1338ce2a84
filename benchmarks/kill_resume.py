"""Twenty kills spread over a run, resumed with 0, 1 or 2 workers: is every epoch's multiset of pictures that of the unbroken run?

python benchmarks/kill_resume.py [/scratch/folder] [--kills 20] [--seed 0] [--repeats 1] [--shards] [--quick]

Each picture is of one colour that is its number, so what the network was given tells which pictures it saw. The run is the real
command, started here so that every training step's pictures are written down; of a step that was trained again after a kill the last
time counts, as it does for the weights. A kill is SIGKILL to the whole process group.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from common import machine, parse, work_in, write_rows

PICTURES, BATCH, EPOCHS = 1000, 48, 12


def make(root: Path) -> None:
    import numpy as np
    from PIL import Image

    for i in range(PICTURES):
        folder = root / f"{i % 10}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), (i % 256, i // 256, 128), dtype=np.uint8)).save(folder / f"{i:05d}.png")


def train(arguments: list[str]) -> int:
    """`python -m visiontune.fit` with every step's pictures written down."""
    from visiontune import fit
    from visiontune.pretrain.mae import MAE

    step = MAE.training_step
    log = open(os.environ["SEEN"], "a")  # noqa: SIM115 (open until the process is killed)
    log.write("\n")  # the last life may have been killed within a line

    def noted(self, batch, batch_idx):
        middle = batch[0][:, :, 16, 16].tolist()
        log.write(json.dumps([self.trainer.global_step, [r + 256 * g for r, g, _ in middle]]) + "\n")
        log.flush()
        # long enough that a kill can come between any two steps
        time.sleep(0.01)
        return step(self, batch, batch_idx)

    MAE.training_step = noted
    return fit.main(arguments)


def seen(file: Path) -> dict[int, list[int]]:
    """Step -> pictures, the last time counts."""
    found: dict[int, list[int]] = {}
    for line in (file.read_text() if file.is_file() else "").splitlines():
        try:
            step, pictures = json.loads(line)
        except ValueError:  # the kill came while it was written
            continue
        found[step] = pictures
    return found


def start(words: list[str], log: Path, out: Path) -> subprocess.Popen:
    command = [sys.executable, __file__, "--train", *words]
    with out.open("a") as file:
        return subprocess.Popen(command, env=os.environ | {"SEEN": str(log)}, stdout=file, stderr=file, start_new_session=True)


def main() -> None:
    if sys.argv[1:2] == ["--train"]:
        sys.exit(train(sys.argv[2:]))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="emptied first (default: a temporary one)")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--shards", action="store_true")
    parser.add_argument("--quick", action="store_true", help="one kill in three epochs, to see that it runs")
    args = parse(parser, __file__)
    if args.quick:
        args.kills = 1
    with work_in(args.folder) as work:
        sys.exit(measure(work, args))


def measure(work: Path, args: argparse.Namespace) -> int:
    """The exit status: 0 if killing changed nothing."""
    epochs = (3 if args.quick else EPOCHS) // args.repeats
    shutil.rmtree(work, ignore_errors=True)
    photos = work / "photos"
    make(photos)
    if args.shards:
        subprocess.run([sys.executable, "-m", "visiontune", "shard", str(photos), str(work / "shards")], check=True)
        photos = work / "shards"
    recipe = [
        "pretrain/mae", f"data.train={photos}", "data.image_size=32", f"data.batch_size={BATCH}", f"epochs={epochs}",
        "backbone.name=vit_tiny_patch16_224", "backbone.args={patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}",
        "method={name: mae, decoder_dim: 32, decoder_depth: 1, decoder_heads: 2}", "trainer.accelerator=cpu", "trainer.devices=1",
        "checkpoint_minutes=0.01", "data.augment.flip=0",
        f"data.repeats={args.repeats}",
    ]  # fmt: skip
    whole = start([*recipe, "data.workers=1", "--out", str(work / "whole")], work / "whole.jsonl", work / "whole.txt")
    assert whole.wait() == 0, (work / "whole.txt").read_text()[-2000:]
    expected = seen(work / "whole.jsonl")
    per_epoch = PICTURES // BATCH * args.repeats

    rng = random.Random(args.seed)
    run, log = work / "killed", work / "killed.jsonl"
    moments = sorted(rng.sample(range(len(expected) - 5), args.kills))  # steps
    rows = []
    for kill in range(1, args.kills + 2):
        fresh = not (run / "recipe.yaml").is_file()  # killed before there was anything to resume
        if fresh:
            shutil.rmtree(run, ignore_errors=True)
        workers = rng.choice([0, 1, 2])
        words = [*recipe, "--out", str(run)] if fresh else ["--resume", str(run)]
        process = start([*words, f"data.workers={workers}"], log, work / "killed.txt")
        if kill > args.kills:
            assert process.wait() == 0, (work / "killed.txt").read_text()[-2000:]
            break
        # Kills are spread over the whole run; some come while it starts, or anywhere within a step, a checkpoint or an epoch's end.
        early = rng.random() < 0.15
        while not early and process.poll() is None and max(seen(log), default=-1) < moments[kill - 1]:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 4 if early else 0.1))
        if process.poll() is not None:
            raise SystemExit(f"the run ended by itself, with status {process.returncode}, before kill {kill}: see {work / 'killed.txt'}")
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        rows.append({"kill": kill, "workers": workers, "while_starting": early, "last_step": max(seen(log), default=-1)})
        print(rows[-1], flush=True)
    found = seen(log)
    same = 0
    for epoch in range(epochs):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        a, b = (Counter(p for s in steps for p in x[s]) for x in (expected, found))
        assert set(a.values()) == {args.repeats}, "a picture twice in an unbroken epoch"
        same += a == b
    exact = sum(expected[s] == found[s] for s in expected)
    kind = {"repeats": args.repeats, "shards": args.shards}
    summary = {
        "epochs_with_the_same_multiset": same,
        "epochs": epochs,
        "steps_with_the_same_pictures_in_order": exact,
        "steps": len(expected),
    }
    write_rows(args.csv, [row | kind | summary | machine() for row in rows])
    print(summary)
    return 0 if same == epochs and exact == len(expected) == len(found) else 1


if __name__ == "__main__":
    main()
