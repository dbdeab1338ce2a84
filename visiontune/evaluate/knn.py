"""Weighted k-nearest-neighbour classification. Wu et al. 2018 (arXiv 1805.01978), section 3.4; settings as in DINO.

N training and M test pictures, D width, K classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def knn_predict(train: Tensor, labels: Tensor, test: Tensor, *, k: int = 20, temperature: float = 0.07, chunk: int = 1024) -> Tensor:
    """The class of each test picture by a vote of its `k` nearest training pictures, weighted by `exp(cosine / temperature)`.

    Args:
        train: `(N, D)`; normalised here.
        labels: `(N,)` int64.
        test: `(M, D)`.
        chunk: test pictures compared at a time, to bound memory.

    Returns:
        `(M,)` int64.
    """
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    K = int(labels.max()) + 1
    predicted = []
    for part in test.split(chunk):
        similarity, nearest = (part @ train.T).topk(min(k, len(train)), dim=1)
        votes = torch.zeros(len(part), K).scatter_add_(1, labels[nearest], (similarity / temperature).exp())
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted)
