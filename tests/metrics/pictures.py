"""Random pictures' boxes with everything that a count must get right: crowds, empty pictures, classes that are absent or never found."""

import torch

from visiontune.boxes import Boxes


def random_pictures(N: int, *, K: int = 5, most: int = 8, seed: int = 0, absent: tuple[int, ...] = (3,)) -> tuple[list, list, list]:
    """Predictions, truth and crowds of N pictures; `absent` classes are found but never there."""
    g = torch.Generator().manual_seed(seed)
    there = torch.tensor([k for k in range(K) if k not in absent])

    def some(least: int, end: int) -> int:
        return int(torch.randint(least, end, (1,), generator=g))

    def boxes(n: int) -> torch.Tensor:
        corner = torch.rand(n, 2, generator=g) * 300
        side = torch.exp(torch.rand(n, 2, generator=g) * 3.6 + 1.6)  # 5 to 180 pixels: of all three sizes
        return torch.cat([corner, corner + side], dim=1)

    found, truth, crowd = [], [], []
    for i in range(N):
        n = 0 if i % 7 == 0 else some(1, most)
        xyxy, labels = boxes(n), there[torch.randint(len(there), (n,), generator=g)]
        truth.append(Boxes(xyxy, labels))
        c = some(0, 2) if i % 3 == 0 else 0
        crowd.append(Boxes(boxes(c), there[torch.randint(len(there), (c,), generator=g)]))
        # predictions: moved copies of the truth, some twice, some with another label; some within the crowd; some anywhere
        copies = torch.cat([torch.randperm(n, generator=g)[: max(0, n - 1)], torch.randint(n, (n // 2,), generator=g)]) if n else None
        parts = [(boxes(m := some(0, 3)), torch.randint(K, (m,), generator=g))]
        if copies is not None and len(copies):
            noise = torch.randn(len(copies), 4, generator=g) * 0.08 * (xyxy[copies, 2:] - xyxy[copies, :2]).repeat(1, 2)
            other = torch.where(torch.rand(len(copies), generator=g) < 0.2, (labels[copies] + 1) % K, labels[copies])
            parts.append((xyxy[copies] + noise, other))
        if c:
            x1, y1, x2, y2 = crowd[-1].xyxy[0].tolist()
            inside = torch.tensor([[x1, y1, (x1 + x2) / 2, (y1 + y2) / 2], [(x1 + x2) / 2, y1, x2, y2]])
            parts.append((inside, crowd[-1].labels[:1].expand(2)))
        said = torch.cat([p[0] for p in parts])
        scores = (torch.rand(len(said), generator=g) * 50).round() / 50  # some are equal
        found.append(Boxes(said, torch.cat([p[1] for p in parts]), scores))
    return found, truth, crowd
