"""Networks of a few hundred parameters, exported, and children that are functions instead of processes."""

import copy
from types import SimpleNamespace

import pytest
import timm
import torch

from visiontune.backbones import Spec
from visiontune.benchmark import child, loop
from visiontune.export import timm_config
from visiontune.export.weights_file import export_weights_file

ARGS = {"patch_size": 4, "depths": [1, 1, 1, 1], "dims": [2, 2, 4, 4]}


@pytest.fixture(scope="session")
def networks(tmp_path_factory):
    """An exported folder `one`, a file `two.safetensors`, one whose weights diverged, and one that holds no network."""
    root = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    model = timm.create_model("convnext_atto", num_classes=0, **ARGS)
    config = timm_config(model, Spec("convnext_atto", ARGS, 32), [0.5] * 3, [0.5] * 3, 0, ())
    export_weights_file(model, config, root / "one")
    export_weights_file(model, config, root / "two.safetensors")
    broken = copy.deepcopy(model)
    with torch.no_grad():
        broken.stem[0].weight[0] = float("nan")
    export_weights_file(broken, config, root / "diverged.safetensors")
    export_weights_file(model, config | {"model_args": {**ARGS, "dims": [2, 2, 4, 8]}}, root / "other.safetensors")
    (root / "torn.safetensors").write_bytes((root / "two.safetensors").read_bytes()[:1000])
    return root


@pytest.fixture
def compiler(monkeypatch):
    """Blocks are compiled for real but for their code, which stays Python's; each program made is noted, as training or not.

    `compiler.fails` is raised instead where a program with gradients is made.
    """

    compiler, plain = SimpleNamespace(made=[], fails=None), torch.nn.Module.compile

    def backend(graph, inputs):
        training = torch.is_grad_enabled()
        if training and compiler.fails is not None:
            raise compiler.fails
        compiler.made.append(training)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **more: plain(self, **more | {"backend": backend}))
    return compiler


@pytest.fixture
def functions(monkeypatch):
    """Children run inside this process; the list of their specs' folders, one a child."""
    began = []

    def run(self, folder):
        began.append(folder.name)
        return child.main([str(folder / child.SPEC)])

    monkeypatch.setattr(loop.Loop, "_run_child", run)
    monkeypatch.setattr(child, "die_with", lambda parent: None)
    return began
