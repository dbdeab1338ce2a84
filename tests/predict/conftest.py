"""Exported weights that nobody trained: reading, order and formats do not ask for more."""

import numpy as np
import pytest
import torch
from PIL import Image

from tests.conftest import CONV, paint
from visiontune.backbones import create
from visiontune.export import save_timm_folder

NAMES = ("ash", "birch", "cedar", "douglas fir")


@pytest.fixture(scope="session")
def make_exported(tmp_path_factory):
    """A folder of random weights, with what its `config.json` says of labels."""

    def make(num_classes=4, backbone=CONV, image_size=32, **more):
        torch.manual_seed(0)
        network = create(backbone["name"], image_size=image_size, num_classes=num_classes, args=backbone["args"])
        for parameter in network.get_classifier().parameters():  # untrained scores would all be a quarter
            torch.nn.init.normal_(parameter, std=0.5)
        folder = tmp_path_factory.mktemp("exported") / "model"
        names = {"num_classes": num_classes, "class_names": NAMES[:num_classes]} if num_classes else {}
        save_timm_folder(network, folder, network.spec, mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3], **names, **more)
        return folder

    return make


@pytest.fixture(scope="session")
def tuned(make_exported):
    return make_exported()


@pytest.fixture(scope="session")
def mixed(tmp_path_factory):
    """21 pictures of several sizes, three of which are broken: 00.png ... 20.png."""
    folder = tmp_path_factory.mktemp("mixed")
    rng = np.random.default_rng(1)
    for i in range(21):
        path = folder / f"{i:02d}.png"
        if i in (0, 7, 20):
            path.write_text("<html>")
        else:
            Image.fromarray(paint(i % 2, rng, size=24 + i)).save(path)
    return folder
