"""The step of each joint-embedding method, written out from its parts: who sees which view, what is compared, who gets a gradient.

The losses themselves are tested against outside references in `tests/losses`.
"""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from tests.conftest import joint_views, make_joint
from visiontune.losses import barlow_twins, koleo, negative_cosine, nt_xent, sigreg, sinkhorn, vicreg_parts
from visiontune.pretrain.dino import DINO

STEP, STEPS = 3, 10


def setting(monkeypatch, name, backbone="test_resnet", **more):
    """A method at step 3 of 10 in float64, with a teacher that is not the student, and its views."""
    torch.manual_seed(0)
    size = 64 if backbone == "test_resnet" else 32
    module = make_joint(name, backbone, image_size=size, **more).double().train()
    if module.teacher is not None:
        with torch.no_grad():
            for parameter in module.teacher.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
    monkeypatch.setattr(type(module), "step", property(lambda _: STEP))
    module.scheduled_steps = STEPS
    views = joint_views(name, size)
    return module, [v.double() for v in views] if isinstance(views, list) else views.double()


def agree(module, batch, by_hand, rel: float = 1e-9) -> None:
    """The same loss, and the same gradient of everything that is trained."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    expected = by_hand()  # first: a step may leave something behind
    wanted = torch.autograd.grad(expected, parameters, allow_unused=True)
    got = module.training_step(batch, 0)
    found = torch.autograd.grad(got, parameters, allow_unused=True)
    assert got.item() == pytest.approx(expected.item(), rel=rel)
    for g, w in zip(found, wanted, strict=True):
        assert (g is None) == (w is None)
        assert g is None or torch.allclose(g, w, rtol=1e3 * rel, atol=rel)


def both(network, views):
    """Two views through a network in one pass, `(B, D)` each."""
    return network(torch.cat(views)).chunk(2)


def contrast(q, k, temperature):
    logits = F.normalize(q, dim=1) @ F.normalize(k, dim=1).T / temperature
    return F.cross_entropy(logits, torch.arange(len(q)))


def test_simclr_contrasts_normed_projections_of_both_views(monkeypatch):
    m, views = setting(monkeypatch, "simclr")
    z = m.projector(m.backbone(torch.cat(views)))
    assert torch.allclose(z.mean(dim=0), torch.zeros(z.shape[1], dtype=z.dtype), atol=1e-9)
    assert torch.allclose(z.std(dim=0, unbiased=False), torch.ones(z.shape[1], dtype=z.dtype), atol=1e-2)
    agree(m, views, lambda: nt_xent(*m.projector(m.backbone(torch.cat(views))).chunk(2), m.temperature))


def test_mocov2_contrasts_the_first_view_with_the_teachers_second_and_the_queue(monkeypatch):
    m, views = setting(monkeypatch, "mocov2")

    def by_hand():
        q = F.normalize(m.projector(m.backbone(views[0])), dim=1)
        k = F.normalize(m.teacher.projector(m.teacher.backbone(views[1])), dim=1).detach()
        logits = torch.cat([(q * k).sum(dim=1, keepdim=True), q @ m.queue.rows.clone().to(q.dtype).T], dim=1) / m.temperature
        return F.cross_entropy(logits, torch.zeros(len(q), dtype=torch.long))

    agree(m, views, by_hand, rel=1e-6)  # keys are float32
    k = F.normalize(m.teacher.projector(m.teacher.backbone(views[1])), dim=1)
    assert torch.allclose(m.queue.rows[: len(k)], k.to(m.queue.rows.dtype), atol=1e-6)
    agree(m, views, by_hand, rel=1e-6)  # with those keys among its negatives


def test_mocov3_contrasts_each_view_with_the_teachers_other_one(monkeypatch):
    m, views = setting(monkeypatch, "mocov3")

    def by_hand():
        q0, q1 = both(lambda x: m.predictor(m.projector(m.backbone(x))), views)
        k0, k1 = (k.detach() for k in both(lambda x: m.teacher.projector(m.teacher.backbone(x)), views))
        return 2 * m.temperature * (contrast(q0, k1, m.temperature) + contrast(q1, k0, m.temperature))

    agree(m, views, by_hand)


def test_byol_predicts_the_teachers_other_view(monkeypatch):
    m, views = setting(monkeypatch, "byol")

    def by_hand():
        p = both(lambda x: m.predictor(m.projector(m.backbone(x))), views)
        z = [x.detach() for x in both(lambda x: m.teacher.projector(m.teacher.backbone(x)), views)]
        return sum((F.normalize(p[i], dim=1) - F.normalize(z[1 - i], dim=1)).square().sum(dim=1).mean() for i in range(2))

    agree(m, views, by_hand)


def test_simsiam_predicts_the_other_view_whose_gradient_is_stopped(monkeypatch):
    m, views = setting(monkeypatch, "simsiam")

    def by_hand():
        z = both(lambda x: m.projector(m.backbone(x)), views)
        p = m.predictor(torch.cat(z)).chunk(2)
        return -sum(F.cosine_similarity(p[i], z[1 - i].detach()).mean() for i in range(2)) / 2

    agree(m, views, by_hand)


def test_barlow_twins_and_vicreg_compare_plain_projections(monkeypatch):
    m, views = setting(monkeypatch, "barlow_twins")
    agree(m, views, lambda: m.loss_scale * barlow_twins(*both(lambda x: m.projector(m.backbone(x)), views), m.redundancy))
    m, views = setting(monkeypatch, "vicreg")

    def by_hand():
        parts = vicreg_parts(*both(lambda x: m.projector(m.backbone(x)), views))
        return 25 * parts[0] + 25 * parts[1] + parts[2]

    agree(m, views, by_hand)


def multi_crop(network, views):
    """Two large and two small views, `(V, B, D)`; each size in one pass."""
    return torch.cat([network(torch.cat(views[:2])), network(torch.cat(views[2:]))]).unflatten(0, (4, -1))


def across(told, shares):
    """The mean cross entropy of each view's logits with the shares of every other of the first two."""
    pairs = [(t, v) for t in range(2) for v in range(len(told)) if t != v]
    return -sum((shares[t] * F.log_softmax(told[v], dim=-1)).sum(dim=-1).mean() for t, v in pairs) / len(pairs)


def test_swav_tells_from_each_view_where_the_others_were_sorted(monkeypatch):
    m, views = setting(monkeypatch, "swav", queue_start=0.5)  # the queue waits for step 5
    directions = F.normalize(m.prototypes.weight.detach(), dim=1)

    def by_hand(kept=None):
        embedding = multi_crop(m.backbone, views)  # the projector's batch norm sees all views together
        z = F.normalize(m.projector(embedding.flatten(0, 1)).view(4, -1, 16), dim=-1)
        sorted_along = [z[i].detach() if kept is None else torch.cat([kept[i], z[i].detach()]) for i in range(2)]
        codes = [sinkhorn(rows.float() @ directions.T.float(), 0.05, 3)[-z.shape[1] :].double() for rows in sorted_along]
        return across(z @ F.normalize(m.prototypes.weight, dim=1).T / m.temperature, codes)

    loss = by_hand()
    assert m.training_step(views, 0).item() == pytest.approx(loss.item(), rel=1e-5)  # sorting is in float32
    m.queue_start = 0.1
    kept = [queue.rows.double().clone() for queue in m.queues]
    with_queue = by_hand(kept)
    assert abs(with_queue.item() - loss.item()) > 1e-4
    assert m.training_step(views, 0).item() == pytest.approx(with_queue.item(), rel=1e-5)


def temperature_now(module) -> float:
    """Half way of `teacher_warmup` is 5 of 10 steps: 3 of 5 from start to end."""
    start, end = module.teacher_temperatures
    return start + (end - start) * STEP / (module.teacher_warmup * STEPS)


def test_dino_tells_what_the_centred_and_sharpened_teacher_says(monkeypatch):
    m, views = setting(monkeypatch, "dino", teacher_temperature=0.09, teacher_temperature_start=0.05)
    m.centring.center.uniform_(-0.3, 0.3)
    center = m.centring.center.clone()

    def by_hand():
        told = multi_crop(lambda x: m.head(m.backbone(x)), views) / 0.1
        said = torch.stack(both(lambda x: m.teacher.head(m.teacher.backbone(x)), views[:2])).detach()
        return across(told, ((said - center) / temperature_now(m)).softmax(dim=-1))

    agree(m, views, by_hand)
    said = m.teacher.head(m.teacher.backbone(torch.cat(views[:2])))
    assert torch.allclose(m.centring.center, 0.9 * center + 0.1 * said.mean(dim=0), atol=1e-9)


def seen_by(m, views):
    """Teacher's and student's pooled embeddings and tokens of the two large views, the student's with hidden cells."""
    pictures = torch.cat(views[:2])
    masks = m.mask(pictures, torch.Generator().manual_seed(1))
    m.mask = lambda *_: masks
    embed = lambda net, x: (net(x), net.forward_features(x)[:, net.num_prefix_tokens :])  # noqa: E731
    with torch.no_grad():
        teacher = embed(m.teacher.backbone, pictures)
    with m.hiding(pictures, masks.hidden) as seen:
        student = embed(m.backbone, seen)
    hidden = masks.hidden.flatten(1)
    return SimpleNamespace(teacher=teacher, student=student, hidden=hidden, masked=hidden.any(dim=1).nonzero().flatten().tolist())


def patches_told(s, head, shares):
    """Of each view with hidden patches their mean cross entropy; the mean over all views, the others counting 0: the authors' code."""
    total = 0.0
    for at, i in enumerate(s.masked):
        told = F.log_softmax(head(s.student[1][i, s.hidden[i]]) / 0.1, dim=-1)
        total = total - (shares[at] * told).sum(dim=-1).mean()
    return total / len(s.hidden)


def test_ibot_tells_what_the_teacher_sees_in_pictures_and_in_hidden_patches(monkeypatch):
    m, views = setting(monkeypatch, "ibot", "test_vit")
    m.centring.center.uniform_(-0.3, 0.3)
    m.patch_centring.center.uniform_(-0.3, 0.3)
    centers = m.centring.center.clone(), m.patch_centring.center.clone()

    def by_hand():
        s, t = seen_by(m, views), temperature_now(m)
        told = torch.cat([m.head(s.student[0]), m.head(m.backbone(torch.cat(views[2:])))]).unflatten(0, (4, -1)) / 0.1
        shares = ((m.teacher.head(s.teacher[0]) - centers[0]) / t).softmax(dim=-1).unflatten(0, (2, -1)).detach()
        patch_shares = [((m.teacher.head(s.teacher[1][i, s.hidden[i]]) - centers[1]) / t).softmax(dim=-1).detach() for i in s.masked]
        assert 0 < len(s.masked) < len(s.hidden)
        return across(told, shares) + patches_told(s, m.head, patch_shares)

    agree(m, views, by_hand)


def test_dinov2_uses_all_prototypes_alike_has_two_heads_and_keeps_pictures_apart(monkeypatch):
    m, views = setting(monkeypatch, "dinov2", "test_vit")

    def by_hand():
        s, t = seen_by(m, views), temperature_now(m)
        told = torch.cat([m.head(s.student[0]), m.head(m.backbone(torch.cat(views[2:])))]).unflatten(0, (4, -1)) / 0.1
        shares = sinkhorn(m.teacher.head(s.teacher[0]), t).unflatten(0, (2, -1))
        wanted = [m.teacher.patch_head(s.teacher[1][i, s.hidden[i]]) for i in s.masked]
        patch_shares = sinkhorn(torch.cat(wanted), t).split([len(w) for w in wanted])
        apart = sum(koleo(view) for view in s.student[0].chunk(2))
        return across(told, shares) + patches_told(s, m.patch_head, patch_shares) + 0.1 * apart

    agree(m, views, by_hand)


def test_lejepa_pulls_all_views_to_the_mean_of_the_large_ones(monkeypatch):
    m, views = setting(monkeypatch, "lejepa")

    def by_hand():
        z = m.projector(multi_crop(m.backbone, views).flatten(0, 1)).view(4, -1, 16).float()
        cloud = sigreg(z, directions=16, generator=torch.Generator().manual_seed(STEP))
        return 0.95 * (z - (z[0] + z[1]) / 2).square().mean() + 0.05 * cloud

    loss = by_hand()
    assert m.training_step(views, 0).item() == pytest.approx(loss.item(), rel=1e-6)


def test_distillation_compares_embeddings_and_patches_of_the_same_crop(monkeypatch):
    m, images = setting(monkeypatch, "distill", mean=[0.4] * 3, std=[0.3] * 3)

    def by_hand():
        pictures = images * 0.3 + 0.4  # as they were before the student's normalisation
        shown = (pictures - m.guide_mean) / m.guide_std
        wanted, wanted_maps = m.guide(shown).detach(), m.guide.forward_features(shown).detach()
        maps = m.patch_projector(m.backbone.forward_features(images))
        maps = F.interpolate(maps, size=wanted_maps.shape[-2:], mode="bilinear", align_corners=False)
        a, b = maps.flatten(2).mT, wanted_maps.flatten(2).mT
        patches = (1 - F.cosine_similarity(a, b, dim=-1)).mean(), F.smooth_l1_loss(a, b)
        return 1 + negative_cosine(m.projector(m.backbone(images)), wanted), patches

    picture, (cosine, smooth) = by_hand()
    with torch.no_grad():
        got = m.training_step(images, 0).item() - picture.item()
    assert got == pytest.approx(0.9 * cosine.item() + 0.1 * smooth.item(), rel=1e-4)  # AM-RADIO's mix
    assert m.guide_std.flatten().tolist() != [0.3] * 3


def test_weight_decay_rises_with_the_methods_own_optimiser_and_decay_alone():
    options = {"image_size": 32, "prototypes": 8, "projector_hidden": 8, "projector_out": 8}
    assert DINO("test_vit", **options).weight_decay_end == 0.4
    assert DINO("test_vit", optimizer="sgd", weight_decay=1e-4, **options).weight_decay_end is None
    assert DINO("test_vit", weight_decay=0.0, **options).weight_decay_end is None
    assert DINO("test_vit", weight_decay=0.0, weight_decay_end=0.1, **options).weight_decay_end == 0.1
