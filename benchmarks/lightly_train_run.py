"""LightlyTrain's half of benchmarks/side_by_side.py; runs in an environment that has lightly-train 0.18, without visiontune.

    python benchmarks/lightly_train_run.py recipe SETTINGS.json OUT    what LightlyTrain would train with, in visiontune's words
    python benchmarks/lightly_train_run.py train SETTINGS.json OUT     train, tell how long it took

Both write OUT/said.json. Settings are those of `lightly_train.pretrain` that the comparison sets (see `side_by_side.py`); all else is
LightlyTrain's default, and is read from the arguments that its own training builds.
"""

import inspect
import json
import sys
import time
from pathlib import Path
from typing import Any

import peers


def transform_args(settings: dict[str, Any]) -> dict[str, Any]:
    size, small = settings["image_size"], settings["local_size"]
    return {"image_size": (size, size)} | ({"local_view": {"view_size": (small, small)}} if settings["method"] == "dino" else {})


def recipe(settings: dict[str, Any]) -> dict[str, Any]:
    """LightlyTrain's numbers for this training as a recipe: `method`, `optim`, and `data` with the views and normalisation."""
    train = peers._lightly_train()[1]
    from lightly.utils.scheduler import CosineWarmupScheduler
    from lightly_train._methods import method_helpers
    from lightly_train._models import package_helpers

    method, epochs = settings["method"], settings["epochs"]
    kind = method_helpers.get_method_cls(method=method)
    model = package_helpers.get_wrapped_model(model=f"timm/{settings['backbone']}", num_input_channels=3)
    optim = train.get_optimizer_args(optim_type="auto", optim_args=None, method_cls=kind, wrapped_model=model)
    scaling = train.get_scaling_info(dataset_size=settings["pictures"], epochs=epochs)
    args = train.get_method_args(method_cls=kind, method_args=None, scaling_info=scaling, optimizer_args=optim, wrapped_model=model)
    views = train.get_transform_args(method=method, transform_args=transform_args(settings))
    steps_per_epoch = settings["pictures"] // settings["batch_size"]
    told = {
        "method": {"name": method} | (simclr(args) if method == "simclr" else dino(args, steps_per_epoch * epochs)),
        "optim": {
            "name": optim.type().value,
            "lr": optim.lr * 256 / args.reference_batch_size,
            "lr_scale": args.lr_scale_method,
            "weight_decay": optim.weight_decay,
            # its `Method.configure_optimizers`
            "warmup_epochs": min(10, epochs / 10),
            "min_lr_factor": inspect.signature(CosineWarmupScheduler).parameters["end_value"].default,
        },
        "data": {"augment": augment(views, settings), "mean": views.normalize.mean, "std": views.normalize.std},
    }
    if told["optim"]["name"] == "sgd":
        told["optim"]["momentum"] = optim.momentum
    if method == "dino":
        warmup = min(args.warmup_steps, int(args.warmup_max_steps_fraction * steps_per_epoch * epochs))
        # its `DINO.configure_gradient_clipping` writes 3 as a number
        told["optim"] |= {"warmup_epochs": warmup / steps_per_epoch, "weight_decay_end": args.weight_decay_end, "clip": 3.0}
    return told


def simclr(args: Any) -> dict[str, Any]:
    return {
        "temperature": args.temperature,
        "projector_hidden": args.hidden_dim,
        "projector_out": args.output_dim,
        "projector_layers": args.num_layers,
        "projector_shift": True,  # lightly's head ends with a batch norm as torch makes it
    }


def dino(args: Any, steps: int) -> dict[str, Any]:
    # Its teacher's warm-up has a fixed number of steps: a short run ends on the way.
    warmed = min(1.0, steps / args.warmup_teacher_temp_steps)
    return {
        "prototypes": args.output_dim,
        "student_temperature": args.student_temp,
        "teacher_temperature": args.warmup_teacher_temp + warmed * (args.teacher_temp - args.warmup_teacher_temp),
        "teacher_temperature_start": args.warmup_teacher_temp,
        "teacher_warmup": min(1.0, args.warmup_teacher_temp_steps / steps),
        "momentum_start": args.momentum_start,
        "center_momentum": args.center_momentum,
        "freeze_prototypes": min(1.0, args.student_freeze_last_layer_steps / steps),
        "projector_hidden": args.hidden_dim,
        "projector_out": args.bottleneck_dim,
        "projector_norm": args.batch_norm,
    }


def augment(args: Any, settings: dict[str, Any]) -> dict[str, Any]:
    if args.random_rotation or args.channel_drop:
        raise ValueError("Rotation and dropped channels are not compared here.")
    jitter, flip = args.color_jitter, args.random_flip
    size = settings["image_size"]
    keys = {
        "views": 2,
        "flip": flip.horizontal_prob,
        "vertical_flip": flip.vertical_prob,
        "jitter": jitter.prob,
        **{name: jitter.strength * getattr(jitter, name) for name in ("brightness", "contrast", "saturation", "hue")},
        "grey": args.random_gray_scale,
        **crop(args.random_resize),
        **blur(args.gaussian_blur, size),
        **solarize(args.solarize),
    }
    if settings["method"] == "dino":
        keys["second"] = blur(args.global_view_1.gaussian_blur, size) | solarize(args.global_view_1.solarize)
        local = args.local_view
        keys["local"] = {"views": local.num_views, "image_size": local.view_size[0], **crop(local.random_resize)}
        keys["local"] |= blur(local.gaussian_blur, local.view_size[0]) | solarize(args.solarize)
    return keys


def crop(args: Any) -> dict[str, Any]:
    return {"crop_scale": args.scale_as_tuple(), "crop_ratio": args.ratio_as_tuple()}


def blur(args: Any, size: int) -> dict[str, Any]:
    # its sigma is in pixels of the view, visiontune's in pixels of a view of 224
    return {"blur": args.prob, "blur_sigma": [sigma * 224 / size for sigma in args.sigmas]}


def solarize(args: Any) -> dict[str, Any]:
    return {"solarize": args.prob, "solarize_threshold": round(255 * args.threshold)} if args else {"solarize": 0.0}


def train(settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """Train; seconds of the training itself, from Lightning's `on_fit_start` to `on_fit_end`, as visiontune counts its own."""
    peers._lightly_train()
    import lightly_train
    import pytorch_lightning as L

    class Clock(L.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.began = time.monotonic()

        def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
            self.seconds, self.steps = time.monotonic() - self.began, trainer.global_step

    clock, fit = Clock(), L.Trainer.fit

    def watched(trainer: Any, *args: Any, **kwargs: Any) -> None:  # `trainer_args={"callbacks": ...}` would replace its own callbacks
        trainer.callbacks.append(clock)
        fit(trainer, *args, **kwargs)

    L.Trainer.fit = watched
    lightly_train.pretrain(
        out=out / "run",
        data=settings["data"],
        model=f"timm/{settings['backbone']}",
        method=settings["method"],
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        num_workers=settings["workers"],
        seed=settings["seed"],
        transform_args=transform_args(settings),
        accelerator=settings["accelerator"],
        devices=1,
        precision="32-true",
    )
    weights = out / "run" / "exported_models" / "exported_last.pt"
    return {"seconds": clock.seconds, "steps": clock.steps, "weights": str(weights)}


if __name__ == "__main__":
    what, settings_file, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    given = json.loads(settings_file.read_text())
    said = recipe(given) if what == "recipe" else train(given, folder)
    (folder / "said.json").write_text(json.dumps(said, indent=1))
