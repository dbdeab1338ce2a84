from types import SimpleNamespace

import torch
from timm.layers import SyncBatchNormAct

from visiontune import SimCLR, build


def test_synchronised_batch_norms_keep_the_activation_inside_them():
    module = SimCLR("test_efficientnet", projector_hidden=8, projector_out=4)
    recipe = SimpleNamespace(trainer=SimpleNamespace(sync_batchnorm=True))
    build.sync_batch_norms(module, recipe, SimpleNamespace(world_size=1))
    assert any(isinstance(m, SyncBatchNormAct) for m in module.backbone.modules())
    assert isinstance(module.projector[1], torch.nn.SyncBatchNorm)
    assert not any(isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)) for m in module.modules())
