import pytest
import torch

from visiontune.masking import random_masking, take


@pytest.mark.parametrize(("N", "ratio", "hidden"), [(64, 0.75, 48), (196, 0.75, 147), (15, 0.4, 6), (4, 0.99, 3), (9, 0.0, 0)])
def test_the_same_number_of_patches_is_hidden_in_every_picture(N, ratio, hidden):
    masking = random_masking(5, N, ratio)
    assert masking.hidden.shape == (5, hidden)
    assert masking.mask.sum(dim=1).tolist() == [hidden] * 5


def test_every_patch_is_either_visible_or_hidden():
    masking = random_masking(3, 20, 0.6)
    both = torch.cat([masking.visible, masking.hidden], dim=1)
    assert both.sort(dim=1).values.equal(torch.arange(20).expand(3, 20))


def test_pictures_get_different_masks_and_a_generator_repeats_them():
    first = random_masking(4, 50, 0.5, generator=torch.Generator().manual_seed(1))
    again = random_masking(4, 50, 0.5, generator=torch.Generator().manual_seed(1))
    assert first.mask.equal(again.mask)
    assert len(first.mask.unique(dim=0)) == 4


def test_each_patch_is_hidden_as_often_as_the_ratio_says():
    share = random_masking(4000, 16, 0.75).mask.float().mean(dim=0)
    assert (share - 0.75).abs().max() < 0.04  # five standard deviations of a share counted 4000 times


def test_a_ratio_of_one_is_refused():
    with pytest.raises(ValueError, match="ratio"):
        random_masking(1, 4, 1.0)


def test_take_gathers_tokens_by_index():
    tokens = torch.arange(24.0).reshape(2, 4, 3)
    assert take(tokens, torch.tensor([[3, 0], [1, 1]])).equal(torch.stack([tokens[0, [3, 0]], tokens[1, [1, 1]]]))
