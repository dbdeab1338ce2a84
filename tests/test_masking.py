import pytest
import torch

from visiontune.masking import block_masking, enlarge, grid_masking, multi_block_masking, random_masking, take


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


# ---------------------------------------------------------------- blocks, squares, context and targets


@pytest.mark.parametrize(("grid", "ratio"), [((14, 14), 0.4), ((14, 14), 0.75), ((6, 10), 0.5), ((3, 3), 0.9), ((8, 8), 0.0)])
def test_blocks_hide_an_exact_number_of_patches(grid, ratio):
    N = grid[0] * grid[1]
    masking = block_masking(7, grid, ratio)
    hidden = N - max(1, int(N * (1 - ratio)))
    assert masking.mask.sum(dim=1).tolist() == [hidden] * 7
    assert torch.cat([masking.visible, masking.hidden], dim=1).sort(dim=1).values.equal(torch.arange(N).expand(7, N))


def test_blocks_hang_together_more_than_random_patches_do():
    def neighbours(mask):  # share of hidden patches whose right neighbour is hidden too
        m = mask.view(-1, 14, 14).float()
        return (m[..., :-1] * m[..., 1:]).sum() / m[..., :-1].sum()

    blocks = neighbours(block_masking(200, (14, 14), 0.4).mask)
    assert neighbours(random_masking(200, 196, 0.4).mask) < 0.45 < 0.75 < blocks


@pytest.mark.parametrize(
    ("grid", "cell", "ratio", "cells"), [((56, 56), (8, 8), 0.6, 30), ((8, 8), (1, 1), 0.6, 39), ((4, 6), (2, 3), 0.99, 3)]
)
def test_aligned_squares_are_hidden_whole(grid, cell, ratio, cells):
    """Of 7x7 squares the authors hide ceil(0.6 * 49) = 30."""
    masking = grid_masking(5, grid, cell, ratio)
    mask = masking.mask.view(5, grid[0] // cell[0], cell[0], grid[1] // cell[1], cell[1])
    of_cells = mask.any(dim=4).any(dim=2)
    assert of_cells.equal(mask.all(dim=4).all(dim=2))
    assert of_cells.sum(dim=(1, 2)).tolist() == [cells] * 5
    assert masking.visible.shape[1] + masking.hidden.shape[1] == grid[0] * grid[1]
    assert len(of_cells.unique(dim=0)) > 1


@pytest.mark.parametrize("grid", [(14, 14), (8, 8), (16, 9), (3, 20)])
def test_targets_are_rectangles_and_never_in_the_context(grid):
    N = grid[0] * grid[1]
    masks = multi_block_masking(300, grid)
    A = round(0.175 * N)
    assert masks.targets.shape == (300, 4, A)
    assert masks.context.shape == (300, N - 4 * A)
    of_context = torch.zeros(300, N, dtype=torch.bool).scatter_(1, masks.context, True)
    assert of_context.sum(dim=1).tolist() == [N - 4 * A] * 300
    assert not of_context.gather(1, masks.targets.flatten(1)).any()
    y, x = masks.targets // grid[1], masks.targets % grid[1]
    tall, wide = (v.amax(dim=2) - v.amin(dim=2) + 1 for v in (y, x))
    assert (tall * wide >= A).all()
    assert (tall * wide - A < torch.maximum(tall, wide)).all()  # at most a part of one row is cut
    assert masks.targets.sort(dim=2).values.diff(dim=2).ge(1).all()  # no patch twice


def test_targets_have_the_papers_aspect_ratios_and_lie_everywhere():
    masks = multi_block_masking(2000, (14, 14))
    y, x = masks.targets // 14, masks.targets % 14
    aspect = (y.amax(dim=2) - y.amin(dim=2) + 1).double() / (x.amax(dim=2) - x.amin(dim=2) + 1)
    assert aspect.min() >= 0.6
    assert aspect.max() <= 1.7
    assert aspect.unique().numel() >= 3
    assert masks.targets.unique().numel() == 196


def test_a_generator_repeats_blocks_and_targets():
    def both(seed):
        generator = torch.Generator().manual_seed(seed)
        return block_masking(2, (6, 6), 0.5, generator=generator).mask, multi_block_masking(2, (6, 6), generator=generator).targets

    assert all(torch.equal(a, b) for a, b in zip(both(3), both(3), strict=True))
    assert not torch.equal(both(3)[1], both(4)[1])


def test_what_cannot_be_masked_is_refused():
    with pytest.raises(ValueError, match="cells of 3x3 but got 8x8"):
        grid_masking(1, (8, 8), (3, 3), 0.5)
    with pytest.raises(ValueError, match="leave a context"):
        multi_block_masking(1, (4, 4), targets=6)
    with pytest.raises(ValueError, match="ratio"):
        block_masking(1, (4, 4), 1.0)


def test_masks_are_made_without_waiting_for_the_device():
    """On a meta device there are no numbers to look at: whatever reads one fails."""
    for masks in (block_masking(2, (8, 8), 0.5, device="meta"), grid_masking(2, (8, 8), (2, 2), 0.6, device="meta")):
        assert masks.hidden.device.type == "meta"
    assert multi_block_masking(2, (8, 8), device="meta").targets.shape == (2, 4, 11)


def test_enlarge_repeats_each_cell():
    mask = torch.tensor([[[True, False], [False, True]]])
    assert enlarge(mask, (4, 6)).int().tolist() == [[[1, 1, 1, 0, 0, 0]] * 2 + [[0, 0, 0, 1, 1, 1]] * 2]
