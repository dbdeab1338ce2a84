"""How good an embedding is, without tuning the backbone."""

from visiontune.evaluate.embed import embed_all
from visiontune.evaluate.few_labels import few_labels
from visiontune.evaluate.knn import knn_predict
from visiontune.evaluate.linear import linear_probe
from visiontune.evaluate.rank import rank_me
from visiontune.losses import spread

__all__ = ["embed_all", "few_labels", "knn_predict", "linear_probe", "rank_me", "spread"]
