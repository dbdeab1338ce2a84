"""A light U-shaped decoder from feature maps to pixels, thrown away after pretraining."""

from collections.abc import Sequence

from torch import Tensor, nn


class UNetDecoder(nn.Module):
    """Doubles the resolution until pixels are reached, adding a map of the encoder wherever one has that resolution.

    Source: SparK (arXiv 2301.03580), section 3.2 and the authors' code: at each doubling a transposed convolution of 4x4, then two
    convolutions of 3x3 with batch norm, the width halved; one convolution of 1x1 to pixels.

    Args:
        dim: width at the coarsest resolution.
        stride: pixels of a position there. What is left of it after all factors of two is made by a pixel shuffle at the end.
        channels: of the picture.
    """

    def __init__(self, dim: int, stride: int, channels: int) -> None:
        super().__init__()
        doublings, rest = 0, stride
        while rest % 2 == 0:
            doublings, rest = doublings + 1, rest // 2
        # 16 is our floor, for small decoders; the paper's is wide enough not to meet it
        self.widths = [max(16, dim // 2**i) for i in range(doublings + 1)]
        self.doublings = nn.ModuleList(_double(a, b) for a, b in zip(self.widths, self.widths[1:], strict=False))
        self.pixels = nn.Sequential(nn.Conv2d(self.widths[-1], channels * rest**2, kernel_size=1), nn.PixelShuffle(rest))

    def forward(self, maps: Sequence[Tensor | None]) -> Tensor:
        """One map for each resolution from the coarsest on, `(B, widths[i], h * 2**i, w * 2**i)` or None -> `(B, channels, H, W)`."""
        x = maps[0]
        assert x is not None
        for i, double in enumerate(self.doublings):
            x = double(x)
            if i + 1 < len(maps) and (skip := maps[i + 1]) is not None:
                x = x + skip
        return self.pixels(x)


def _double(width: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(width, width, kernel_size=4, stride=2, padding=1),
        nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU6(inplace=True),
        nn.Conv2d(width, out, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out),
    )
