"""CKA against its definition, and the regularisers against theirs."""
import itertools
import math

import pytest
import torch
from torch import nn

from ela_mm.errors import UsageError
from ela_mm.sparsity import aug_cka_sr, cka_matrix, cka_sr, linear_cka
from ela_mm.sparsity.cka import pooled
from ela_mm.sparsity.stages import block_features, find_stages


def features(count, n=8, shape=(3, 4, 5), dtype=torch.float64):
    """Features that resemble each other, away from 0."""
    common = torch.randn(n, *shape, dtype=dtype)
    return [(common + torch.randn(n, *shape, dtype=dtype) + 1).requires_grad_()
            for _ in range(count)]


def hsic_1(k, l):  # noqa: E741
    """The unbiased estimator by its formula, entry by entry."""
    n = len(k)
    k = k * (1 - torch.eye(n, dtype=k.dtype))
    l = l * (1 - torch.eye(n, dtype=l.dtype))  # noqa: E741
    ones = torch.ones(n, dtype=k.dtype)
    return ((k @ l).trace() + k.sum() * l.sum() / ((n - 1) * (n - 2)) -
            2 / (n - 2) * ones @ k @ l @ ones) / (n * (n - 3))


def hsic_0(k, l):  # noqa: E741
    n = len(k)
    h = torch.eye(n, dtype=k.dtype) - 1 / n
    return (k @ h @ l @ h).trace() / (n - 1)**2


def by_definition(x, y, unbiased=True):
    hsic = hsic_1 if unbiased else hsic_0
    x, y = x.flatten(1), y.flatten(1)
    k, l = x @ x.T, y @ y.T  # noqa: E741
    return hsic(k, l) / (hsic(k, k) * hsic(l, l)).sqrt()


def gradients(value, inputs):
    return torch.autograd.grad(value, inputs, retain_graph=True)


@pytest.mark.parametrize('unbiased', [True, False])
@pytest.mark.parametrize('n', [4, 5, 8])
def test_values_and_gradients_are_the_definitions(unbiased, n):
    x, y = features(2, n)
    z = torch.randn(n, 6, dtype=torch.float64, requires_grad=True)
    for a, b in ((x, y), (x, z), (z, y)):
        ours = linear_cka(a, b, unbiased)
        theirs = by_definition(a, b, unbiased)
        assert ours.shape == () and ours.dtype == torch.float64
        assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
        for g, h in zip(gradients(ours, (a, b)), gradients(theirs, (a, b))):
            torch.testing.assert_close(g, h, rtol=1e-8, atol=1e-12)


def test_unbiased_is_pytorch_ckas():
    package = pytest.importorskip('cka')
    x, y = features(2)
    grams = [a.flatten(1) @ a.flatten(1).T for a in (x, y)]
    xy, xx, yy = package.hsic(grams[0][None], grams[1][None])
    theirs = (xy / (xx * yy).sqrt()).squeeze()
    ours = linear_cka(x, y)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-10)
    for g, h in zip(gradients(ours, (x, y)), gradients(theirs, (x, y))):
        torch.testing.assert_close(g, h, rtol=1e-8, atol=1e-12)


def test_unbiased_means_zero_for_unrelated_features():
    values = [linear_cka(torch.randn(8, 50), torch.randn(8, 50)).item()
              for _ in range(400)]
    mean = sum(values) / len(values)
    assert abs(mean) < 0.04
    assert min(values) < -0.1, 'it may be negative'
    biased = [linear_cka(torch.randn(8, 50), torch.randn(8, 50),
                         unbiased=False).item() for _ in range(20)]
    assert min(biased) > 0.5


def test_scale_and_offset_do_not_count():
    x, y = (a.detach() for a in features(2))
    for unbiased in (True, False):
        value = linear_cka(x, y, unbiased)
        moved = linear_cka(1e-3 * x + 1e4, 1e5 * y - 3, unbiased)
        assert moved.item() == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize('unbiased', [True, False])
def test_matrix_holds_all_pairs(unbiased):
    xs = features(4)
    matrix = cka_matrix(xs, unbiased)
    for i, j in itertools.product(range(4), repeat=2):
        assert matrix[i, j].item() == pytest.approx(
            by_definition(xs[i], xs[j], unbiased).item(), rel=1e-10)


def test_float64_within_any_precision():
    """Also under autocast, which makes matrix products of 16 bits."""
    x, y = features(2, dtype=torch.float32)
    expected = by_definition(x.double(), y.double()).item()
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = linear_cka(x, y)
    assert value.item() == pytest.approx(expected, rel=1e-12)
    half = linear_cka(x.half(), y.half())
    assert half.dtype == torch.float64
    assert half.item() == pytest.approx(expected, rel=1e-2)


# --- the regularisers ---------------------------------------------------------


def test_cka_sr_is_over_ordered_pairs_with_the_diagonal():
    stages = [features(3), features(2, shape=(6, 2, 2))]
    expected = sum(
        by_definition(x, y) for stage in stages for x in stage for y in stage)
    value = cka_sr(stages)
    assert value.item() == pytest.approx(expected.item(), rel=1e-10)
    # The diagonal is the constant 1 each; the gradient is that of i < j, twice.
    above = sum(by_definition(x, y) for stage in stages
                for x, y in itertools.combinations(stage, 2))
    assert value.item() == pytest.approx(5 + 2 * above.item(), rel=1e-10)
    inputs = [x for stage in stages for x in stage]
    for g, h in zip(gradients(value, inputs), gradients(2 * above, inputs)):
        torch.testing.assert_close(g, h, rtol=1e-8, atol=1e-12)


def test_aug_cka_sr_is_the_mean_over_pairs_of_all_stages():
    stages = [features(3), features(2, shape=(6, 2, 2))]
    every = [x for stage in stages for x in stage]
    pairs = list(itertools.combinations(every, 2))
    expected = sum(by_definition(x, y, False) for x, y in pairs) / len(pairs)
    assert aug_cka_sr(stages).item() == pytest.approx(expected.item(), rel=1e-10)


# --- features that leave nothing to compare -----------------------------------


def alike(n=8, dtype=torch.float32):
    return torch.randn(1, 3, 4, dtype=dtype).repeat(n, 1, 1)


COLLAPSED = dict(
    zero=lambda: torch.zeros(8, 3, 4),
    alike=lambda: 1e3 * alike(),
    alike_but_for_rounding=lambda: alike() * (
        1 + 3e-8 * torch.randn(8, 3, 4)),
    half=lambda: alike(dtype=torch.float16),
    tiny=lambda: 1e-30 * alike(dtype=torch.float64))


@pytest.mark.parametrize('unbiased', [True, False])
@pytest.mark.parametrize('name', COLLAPSED)
def test_collapsed_features_have_no_similarity_and_no_gradient(name, unbiased):
    x = COLLAPSED[name]().requires_grad_()
    y, z = features(2)
    matrix = cka_matrix([y, x, z], unbiased)
    assert not matrix[1].any() and not matrix[:, 1].any()
    assert matrix[0, 2].item() == pytest.approx(
        by_definition(y, z, unbiased).item(), rel=1e-10)
    for gradient in gradients(matrix.sum(), (x, y, z)):
        assert gradient.isfinite().all()
    assert not gradients(matrix.sum(), x)[0].any()


def test_a_single_different_sample_is_nothing_to_the_unbiased_estimator():
    x = torch.ones(8, 20, dtype=torch.float64)
    x[3] = torch.randn(20, dtype=torch.float64)
    x.requires_grad_()
    y, = features(1)
    value = linear_cka(x, y)
    assert value == 0
    assert not gradients(value, x)[0].any()
    assert linear_cka(x, y, unbiased=False) > 0.01


@pytest.mark.parametrize('spread', [1e-2, 1e-4, 1e-6])
def test_small_differences_count_until_they_are_rounding(spread):
    base, y = (a.detach() for a in features(2))
    x = (100 + spread * base).requires_grad_()
    value = linear_cka(x, y)
    assert value.item() == pytest.approx(by_definition(base, y).item(),
                                         rel=1e-4)
    assert gradients(value, x)[0].isfinite().all()


def test_many_dimensions_are_not_taken_for_a_collapse():
    """Unrelated samples have nearly orthogonal features, in 16 bits too."""
    x = torch.randn(8, 200_000).half()
    assert cka_matrix([x, x]).diagonal().tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_nan_stays_nan(value):
    x, y = (a.detach().clone() for a in features(2))
    x[0, 0, 0, 0] = value
    assert linear_cka(x, y).isnan()


@pytest.mark.parametrize('n, unbiased, least', [(3, True, 4), (2, False, 3)])
def test_too_few_samples_are_refused(n, unbiased, least):
    x, y = features(2, n)
    with pytest.raises(UsageError, match=f'CKA of {n} samples.*least {least}'):
        linear_cka(x, y, unbiased)
    linear_cka(*features(2, least), unbiased)


def test_other_samples_are_refused():
    with pytest.raises(UsageError, match=r'\[5, 8\] samples'):
        linear_cka(torch.randn(8, 2), torch.randn(5, 2))


# --- bounding the cost --------------------------------------------------------


@pytest.mark.parametrize('shape, limit, expected', [
    ((2, 3, 10, 21), 630, (10, 21)),
    ((2, 3, 10, 21), 629, (5, 11)),
    ((2, 3, 10, 21), 50, (2, 5)),
    ((2, 3, 10, 21), 2, (1, 1)),  # channels are not pooled
])
def test_maps_are_pooled_until_they_fit(shape, limit, expected):
    x = torch.randn(*shape)
    y = pooled(x, limit)
    assert y.shape == (*shape[:2], *expected)
    if expected == shape[2:]:
        assert y is x
    if expected == (1, 1):
        torch.testing.assert_close(y[..., 0, 0], x.mean((2, 3)))


def test_tokens_are_pooled_along_their_sequence():
    x = torch.randn(2, 30, 7)
    y = pooled(x, 7 * 15)
    assert y.shape == (2, 15, 7)
    torch.testing.assert_close(y[:, 0], x[:, :2].mean(1))
    assert pooled(x.flatten(1), 5).shape == (2, 210)


# --- stages -------------------------------------------------------------------


def named(stages):
    return {stage: list(blocks) for stage, blocks in stages.items()}


def blocks(n):
    return nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(n)))


class Model(nn.Module):

    def __init__(self, **children) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


def test_stages_of_all_kinds_of_backbones():
    from mmdet.models.backbones import SwinTransformer
    from mmpretrain.models.backbones import ConvNeXt, VisionTransformer

    from ela_mm.hosts.mmdet import ELAResNet
    from ela_mm.hosts.mmpretrain import ELAResNet_CIFAR
    sizes = lambda net: [len(x) for x in find_stages(net).values()]  # noqa: E731
    assert sizes(ELAResNet(50)) == [3, 4, 6, 3]
    assert sizes(ELAResNet_CIFAR(20, attention=None)) == [2, 2, 2]
    assert sizes(ConvNeXt('atto')) == [2, 2, 6, 2]
    assert sizes(VisionTransformer('deit-tiny')) == [12]
    swin = SwinTransformer(embed_dims=24)
    assert sizes(swin) == [2, 2, 6, 2]
    for found in find_stages(swin).values():
        for name, block in found.items():
            assert swin.get_submodule(name) is block


def test_the_backbone_of_a_model_is_searched():
    backbone = Model(layer1=blocks(2), layer2=blocks(3), head=blocks(2))
    neck = Model(layers=blocks(4))
    found = find_stages(Model(neck=neck, backbone=backbone))
    assert named(found) == {
        'backbone.layer1': ['backbone.layer1.0', 'backbone.layer1.1'],
        'backbone.layer2': [f'backbone.layer2.{i}' for i in range(3)]
    }
    wrapped = Model(backbone=Model(timm_model=backbone))
    assert list(find_stages(wrapped)) == [
        'backbone.timm_model.layer1', 'backbone.timm_model.layer2']
    assert list(find_stages(backbone)) == ['layer1', 'layer2']


def test_stages_may_be_named():
    csp = Model(backbone=Model(stage1=nn.Sequential(blocks(1), blocks(3))))
    with pytest.raises(UsageError, match='Model has no stages of blocks'):
        find_stages(csp)
    assert named(find_stages(csp, ['backbone.stage1.1'])) == {
        'backbone.stage1.1': [f'backbone.stage1.1.{i}' for i in range(3)]
    }
    for wrong in ('backbone.stage9', 'backbone.stage1.1.0'):
        with pytest.raises(UsageError, match=f'no sequence of blocks {wrong!r}'):
            find_stages(csp, [wrong])
    with pytest.raises(UsageError, match='expected a list of names'):
        find_stages(csp, 'backbone.stage1.1')


def test_lists_within_a_stage_are_no_blocks():
    pvt = Model(layers=nn.ModuleList([
        nn.ModuleList([nn.Linear(2, 2), nn.ModuleList([nn.Linear(2, 2)])])]))
    with pytest.raises(UsageError, match='no stages'):
        find_stages(Model(backbone=pvt))


def test_features_of_blocks_that_return_more_than_a_tensor():
    """MViT's with a size, Conformer's two branches; TridentNet's are alike."""
    x, tokens = torch.zeros(4, 8, 2, 3), torch.zeros(4, 6, 5)
    for output in (x, (x, (2, 3)), (x, tokens), [x]):
        assert block_features(output) is x
    for branches in ([x, x + 1], (x, tokens, x + 1), [], dict(x=x)):
        assert block_features(branches) is branches
