"""One backbone, measured in a process of its own: `python -m visiontune.benchmark.child FOLDER/spec.json`.

Its memory is then its own, and whatever ends it (a crash, the system that is out of memory, weights that do not load) ends no other.
Each part is written into `result.json` beside the spec as soon as it is done, so that nothing measured is lost.
"""

import contextlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from visiontune import backbones, build
from visiontune import probe as probing
from visiontune.benchmark import memory
from visiontune.benchmark.cost import count
from visiontune.benchmark.machine import PAUSE, Watch
from visiontune.benchmark.recipes import prepare_boxes
from visiontune.benchmark.steps import Steps
from visiontune.benchmark.timing import Speed, Stopwatch, measure, measure_on, quartiles
from visiontune.data.parallel import die_with
from visiontune.errors import UserError
from visiontune.finish import silence

SPEC, RESULT, CONSOLE = "spec.json", "result.json", "console.txt"


class Parts:
    """What can be measured of one backbone, each on its own.

    Args:
        spec: `backbone`, `weights`, `data`, `val`, `image_size`, `overrides` as `probe` takes them; `device`, `precision`;
            `seconds` and `windows` of a timing; `probes`, `shots`, `fresh`; of pictures with boxes where they are, as `boxes`.
        folder: where the parts that are done lie.
    """

    def __init__(self, spec: dict[str, Any], folder: Path) -> None:
        self.spec, self.folder, self.device = spec, folder, torch.device(spec["device"])
        self.idle = memory.resident()
        self._found: probing.Frozen | build.Prepared | None = None
        self._tables: build.Tables | None = None

    @property
    def found(self) -> probing.Frozen | build.Prepared:
        if self._found is None:
            words = {key: self.spec[key] for key in ("backbone", "weights")}
            if self.spec.get("boxes"):
                self._found = prepare_boxes(self.spec, words, self._tables)
                self._tables = self._found.tables  # annotations are read once
            else:
                places = {key: self.spec[key] for key in ("data", "val", "image_size", "overrides")}
                self._found = probing.prepare(probing.labelled_recipe(**words, **places))
            print("\n".join(self._found.notes), flush=True)
        return self._found

    @property
    def size(self) -> tuple[int, int]:
        return build.picture_size(self.found.recipe)

    def cost(self) -> dict[str, Any]:
        """Counted on the CPU."""
        network = self.found.module.backbone
        told = getattr(network, "pretrained_cfg", None) or {}
        tag = f".{told['tag']}" if self.spec["weights"] == "timm" and told.get("tag") else ""
        size = self.size
        about = {"architecture": f"{self.found.recipe.backbone.name.split('.', 1)[0]}{tag}", "image_size": list(size)}
        return about | {"seed": self.found.recipe.seed} | asdict(count(network, size, self.found.recipe.data.channels))

    def inference(self) -> dict[str, Any]:
        """Pictures a second from pixels on the device to scores; and of one picture alone how long it takes."""
        steps, watch = self._steps()
        entry = self._timed(steps, watch, steps.inference)
        alone = [1000 / rate for rate in watch.rates(steps.inference(1, entry["channels_last"]), seconds=watch.seconds / 2)]
        low, high = quartiles(alone)
        return entry | {"latency_ms": statistics.median(alone), "latency_ms_low": low, "latency_ms_high": high}

    def training(self) -> dict[str, Any]:
        """Pictures a second of an optimiser step."""
        self._found = None  # what networks keep from inference mode cannot be trained through
        steps, watch = self._steps()
        return self._timed(steps, watch, steps.training, first=2)  # a batch norm has no statistics of one value

    def compiled_inference(self) -> dict[str, Any]:
        """As `inference`, by torch.compile."""
        return self._compiled("inference")

    def compiled_training(self) -> dict[str, Any]:
        """As `training`, by torch.compile."""
        return self._compiled("training")

    def accuracy(self) -> dict[str, Any]:
        """What the probes say of the embedding, in full precision."""
        spec, self._found = self.spec, None  # statistics may have changed
        found = self.found
        assert isinstance(found, probing.Frozen), "pictures with boxes have no such part"
        said: list[str] = []

        def say(text: str) -> None:
            print(text, flush=True)
            said.append(text)

        scores = probing.judge(found, probes=spec["probes"], shots=spec["shots"], fresh=spec["fresh"], say=say, device=str(self.device))
        # of pictures that cannot be read, and labels that are too few
        return {"scores": [asdict(score) for score in scores], "said": [text for text in said if not text.startswith("embeddings of")]}

    def _compiled(self, part: str) -> dict[str, Any]:
        """On the batch and in the memory format of the step that was not compiled: the gain is then of compiling alone.

        A sweep would compile every batch of it anew, for half a minute each and more.
        """
        eager = read_result(self.folder).get(part, {})
        if "batch_size" not in eager:
            raise UserError(f"there is no {part} that is not compiled to compare it with; see its reason")
        self._found = None  # the network of the parts before, and of those behind, is not compiled
        steps, watch = self._steps(compiled=True)
        self._found = None
        machine = Watch(self.device, min(PAUSE, watch.seconds))
        with contextlib.ExitStack() as stack:

            def settled() -> None:
                self._forget()
                stack.enter_context(machine)  # not before: its compiler's processes are not others'

            speed, seconds = measure_on(getattr(steps, part), watch, eager["batch_size"], eager["channels_last"], settled)
            held = memory.peak(self.device)
        return self._entry(speed, held, machine) | {"compile_seconds": seconds}

    def _steps(self, *, compiled: bool = False) -> tuple[Steps, Stopwatch]:
        spec, recipe = self.spec, self.found.recipe
        torch.backends.cudnn.benchmark = True  # pictures have one size
        steps = Steps(
            self.found.module.backbone, size=self.size, channels=recipe.data.channels, device=self.device,
            precision=spec["precision"], compiled=compiled,
        )  # fmt: skip
        return steps, Stopwatch(spec["seconds"], spec["windows"], steps.synchronize)

    def _timed(self, steps: Steps, watch: Stopwatch, make: Callable[[int, bool], Any], *, first: int = 1) -> dict[str, Any]:
        convnet = not backbones.has_attention(steps.network)
        self._forget()
        room = memory.Room(self.device)
        with Watch(self.device, min(PAUSE, watch.seconds)) as machine:
            speed = measure(make, watch, convnet=convnet, first=first, room=room.for_twice, settled=self._forget)
            held = memory.peak(self.device)
        return self._entry(speed, held, machine)

    def _entry(self, speed: Speed, held: int, machine: Watch) -> dict[str, Any]:
        return {
            "images_per_second": speed.images_per_second, "low": speed.quartiles[0], "high": speed.quartiles[1],
            "batch_size": speed.batch_size, "channels_last": speed.channels_last, "peak_memory_bytes": held,
            "idle_memory_bytes": self.idle if self.device.type == "cpu" else 0, "rates": speed.rates, "tried": speed.tried,
            "stopped": speed.stopped, "warnings": machine.words(speed.spread), "machine": machine.for_machines(),
        }  # fmt: skip

    def _forget(self) -> None:
        memory.forget_peak(self.device)


# In their order; behind them, as runs of their own, the trainings of `recipes.TRAININGS`.
PARTS: dict[str, Callable[[Parts], dict[str, Any]]] = {
    "cost": Parts.cost, "inference": Parts.inference, "training": Parts.training,
    "compiled_inference": Parts.compiled_inference, "compiled_training": Parts.compiled_training, "accuracy": Parts.accuracy,
}  # fmt: skip


def read_result(folder: Path) -> dict[str, Any]:
    """By part what was measured, or `{"failed": reason}`; empty if there is nothing."""
    try:
        return json.loads((folder / RESULT).read_text())
    except (OSError, ValueError):
        return {}


def write_result(folder: Path, result: dict[str, Any]) -> None:
    beside = folder / "result.tmp"
    beside.write_text(json.dumps(result, indent=1) + "\n")
    beside.replace(folder / RESULT)


def main(argv: Sequence[str]) -> int:
    die_with(os.getppid())
    silence()
    folder = Path(argv[0]).parent
    spec = json.loads(Path(argv[0]).read_text())
    parts = Parts(spec, folder)
    for name in spec["parts"]:
        try:
            entry = PARTS[name](parts)
        except UserError as error:
            entry = {"failed": str(error)}
        except Exception as error:  # of a layer that a device or precision lacks, of memory, of whatever a network does
            entry = {"failed": _reason(error)}
        if "failed" in entry:
            print(f"error: {name}: {entry['failed']}", flush=True)
        entry |= {"asked": spec["asked"][name], "date": time.strftime("%Y-%m-%dT%H:%MZ", time.gmtime())}
        write_result(folder, read_result(folder) | {name: entry})
        if name == "cost" and "failed" in entry:  # there is no network
            return 2
    return 0


def _reason(error: BaseException) -> str:
    """Its kind and first line; of what torch.compile wraps the error inside, without which it says nothing."""
    while (inside := getattr(error, "inner_exception", None)) is not None:
        error = inside
    return f"{type(error).__name__}: {(str(error).strip() or 'no reason given').splitlines()[0]}"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
