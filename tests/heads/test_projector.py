"""The ends of a projector: what each has to learn, and lightly's head as an outside reference."""

import pytest
import torch
from lightly.models.modules.heads import SimCLRProjectionHead

from visiontune import SimCLR
from visiontune.heads.projector import projector

ENDS = {"norm": [], "scaled_norm": ["weight"], "shifted_norm": ["weight", "bias"], "bias": ["weight", "bias"], "plain": ["weight"]}


@pytest.mark.parametrize(("last", "learned"), ENDS.items())
def test_each_end_learns_what_its_method_says(last, learned):
    end = projector(8, 16, 4, last=last)[-1]
    assert isinstance(end, torch.nn.BatchNorm1d) == last.endswith("norm")
    assert [name for name, _ in end.named_parameters()] == learned


def test_simclr_has_lightlys_projector_where_a_shift_is_asked_for_and_the_papers_else():
    torch.manual_seed(0)
    theirs = SimCLRProjectionHead(8, 16, 4).double()
    ours = projector(8, 16, 4, last="shifted_norm").double()
    theirs.layers.load_state_dict(dict(zip(theirs.layers.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(32, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    kinds = {shift: SimCLR("test_resnet", projector_shift=shift).projector[-1] for shift in (False, True)}
    assert [name for name, _ in kinds[False].named_parameters()] == ["weight"]
    assert [name for name, _ in kinds[True].named_parameters()] == ["weight", "bias"]
