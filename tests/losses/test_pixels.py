import pytest
import torch

from visiontune.losses import paint, patchify, pixel_loss, unpatchify


@pytest.mark.parametrize(("size", "patch", "channels"), [((32, 32), (8, 8), 3), ((24, 48), (8, 16), 1), ((30, 20), (6, 5), 4)])
def test_unpatchify_after_patchify_is_the_identity(size, patch, channels):
    images = torch.randn(2, channels, *size)
    patches = patchify(images, patch)
    grid = (size[0] // patch[0], size[1] // patch[1])
    assert patches.shape == (2, grid[0] * grid[1], patch[0] * patch[1] * channels)
    assert unpatchify(patches, patch, grid).equal(images)


def test_a_patch_is_rows_then_columns_then_channels_of_its_square():
    images = torch.randn(1, 3, 8, 8)
    second = patchify(images, (4, 4))[0, 1].reshape(4, 4, 3)
    assert second.equal(images[0, :, 0:4, 4:8].permute(1, 2, 0))


def test_a_picture_that_is_no_whole_number_of_patches_is_refused():
    with pytest.raises(ValueError, match="10x8"):
        patchify(torch.zeros(1, 3, 10, 8), (4, 4))


def test_painting_the_mean_scores_about_one_and_the_truth_zero():
    target = torch.randn(4, 6, 48)
    assert pixel_loss(torch.zeros(4, 6, 48), target).item() == pytest.approx(47 / 48, rel=1e-4)
    assert pixel_loss(target, target, normalize=False).item() == 0.0


def test_normalised_targets_ignore_brightness_and_contrast_of_a_patch():
    target, painted = torch.randn(2, 3, 48), torch.randn(2, 3, 48)
    assert pixel_loss(painted, 5 * target + 2).item() == pytest.approx(pixel_loss(painted, target).item(), rel=1e-4)


def test_gradcheck():
    painted, target = (torch.randn(1, 2, 6, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(pixel_loss, (painted, target))


def test_the_trivial_painter_says_the_mean():
    target = torch.randn(2, 3, 48)
    assert pixel_loss(None, target).item() == pixel_loss(torch.zeros_like(target), target).item()
    assert pixel_loss(None, target, normalize=False, power=1).item() == pytest.approx(target.abs().mean().item())


def test_painted_patches_are_pasted_where_they_were_hidden_and_nowhere_else():
    images = torch.rand(2, 3, 8, 8)
    mask = torch.tensor([[True, False, False, True], [False, False, True, False]])
    predicted = torch.randn(2, 4, 48)
    unit = {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}
    rows = paint(images, predicted, mask, (4, 4), normalized=False, **unit)
    hidden = unpatchify(mask.unsqueeze(-1).expand(2, 4, 48), (4, 4), (2, 2))
    assert rows["original"].equal(images)
    assert rows["masked"].equal(torch.where(hidden, 0, images))
    assert rows["painted"].equal(unpatchify(predicted, (4, 4), (2, 2)).clamp(0, 1))
    assert rows["pasted"].equal(torch.where(hidden, rows["painted"], images))


def test_a_perfect_painter_of_normalised_patches_paints_the_picture():
    images = torch.rand(2, 3, 8, 8)
    patches = patchify(images, (4, 4))
    normalised = (patches - patches.mean(-1, keepdim=True)) / (patches.var(-1, keepdim=True) + 1e-6) ** 0.5
    unit = {"mean": torch.zeros(1, 3, 1, 1), "std": torch.ones(1, 3, 1, 1)}
    rows = paint(images, normalised, torch.ones(2, 4, dtype=torch.bool), (4, 4), normalized=True, **unit)
    assert torch.allclose(rows["painted"], images, atol=1e-5)
