"""The similarity of blocks' features, against the definition of HSIC_1."""
import numpy as np
import pytest
import torch
from support.toy import ToyClassifier

from ela_mm.analysis.report.similarity import similarity_section
from ela_mm.analysis.similarity import Neighbours, Similarity, compare_features
from ela_mm.errors import UsageError


def network(kind='mmdet.ELAResNet', **options):
    model = ToyClassifier(
        dict(type=kind, depth=34, base_channels=16, **options))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=.05)
    return model.eval()


def batches(*sizes):
    return [dict(inputs=torch.randn(n, 3, 32, 32)) for n in sizes]


def block_outputs(model, batch):
    """By block, (N, ...) float64."""
    found, handles = {}, []
    for stage in model.backbone.res_layers:
        for i, block in enumerate(getattr(model.backbone, stage)):
            handles.append(block.register_forward_hook(
                lambda m, a, out, key=f'{stage}.{i}': found.update(
                    {key: out.double()})))
    with torch.no_grad():
        model.backbone(batch['inputs'])
    for handle in handles:
        handle.remove()
    return found


def hsic_1(x, y):
    """The unbiased estimator, as a sum over quadruples would have it."""
    n = len(x)
    k = x.flatten(1) @ x.flatten(1).T
    l = y.flatten(1) @ y.flatten(1).T  # noqa: E741
    k.fill_diagonal_(0)
    l.fill_diagonal_(0)
    return ((k * l).sum() + k.sum() * l.sum() / (n - 1) / (n - 2) -
            2 / (n - 2) * (k.sum(0) * l.sum(0)).sum()) / (n * (n - 3))


@pytest.mark.parametrize('kind', ['mmdet.ELAResNet', 'mmdet.ResNet'])
def test_cka_is_the_ratio_of_mean_hsic(kind):
    model = network(kind)
    data = batches(6, 6)
    found = compare_features(model, data)
    assert found.images == 12
    assert found.blocks[:4] == ['layer1.0', 'layer1.1', 'layer1.2', 'layer2.0']
    seen = [block_outputs(model, batch) for batch in data]

    def mean(a, b):
        return np.mean([hsic_1(x[a], x[b]).item() for x in seen])

    for a, b in (('layer1.0', 'layer1.2'), ('layer2.3', 'layer3.0'),
                 ('layer3.4', 'layer3.5')):
        i, j = found.blocks.index(a), found.blocks.index(b)
        expected = mean(a, b) / np.sqrt(mean(a, a) * mean(b, b))
        assert found.cka[i, j] == pytest.approx(expected, rel=1e-5)
    assert np.allclose(np.diag(found.cka), 1)
    assert bool(found.neighbours) == (kind == 'mmdet.ELAResNet')


def test_kl_stands_beside_the_same_layers_cka():
    model = network()
    seen = {}
    model.backbone.observe(
        lambda name, prev, curr: seen.update({name: (prev, curr)}))
    data = batches(8)
    with torch.no_grad():
        model.backbone(data[0]['inputs'])
    model.backbone.skip_layers(['layer3.2'])
    found = compare_features(model, data)
    pairs = {pair.name: pair for pair in found.neighbours}
    assert 'layer3.2' not in pairs and 'layer3.0' not in pairs
    # The layer before is the active one before.
    assert pairs['layer3.3'].previous == 'layer3.1'
    prev, curr = (p.double() for p in seen['layer1.2'])
    common = curr[..., :prev.shape[-1]]
    kl = (prev * (prev / common).log()).sum(-1).mean().item()
    assert pairs['layer1.2'].kl == pytest.approx(kl, rel=1e-4)
    i, j = (found.blocks.index(n) for n in ('layer3.3', 'layer3.1'))
    assert pairs['layer3.3'].cka == found.cka[i, j]
    # Nothing stays in the model.
    assert not any(m._forward_hooks for m in model.modules())
    assert all(s.observer is None for s in model.backbone.attention_stages)


def similarity(kl, cka):
    names = [f'layer1.{i}' for i in range(len(kl) + 1)]
    return Similarity(
        8, {'layer1': names}, np.eye(len(names)),
        [Neighbours(n, p, k, c)
         for n, p, k, c in zip(names[1:], names, kl, cka)])


def test_rank_correlation():
    perfect = similarity([.1, .2, .3, .4, 9.], [.9, .8, .7, .3, .1])
    assert perfect.rank_correlation()[0] == pytest.approx(-1)
    # 1 - 6 sum(d^2) / (n (n^2 - 1)) with ranks 1 2 3 4 5 and 2 1 3 5 4.
    mixed = similarity([1, 2, 3, 4, 5], [.2, .1, .3, .5, .4])
    assert mixed.rank_correlation()[0] == pytest.approx(1 - 6 * 4 / 120)
    assert 'Rank correlation' in ' '.join(
        similarity_section(mixed, 'drawn').text)
    for few in (similarity([1, 2, 3, 4], [1, 2, 3, 4]),
                similarity([1] * 6, [1, 2, 3, 4, 5, 6])):
        assert few.rank_correlation() is None
        assert 'no rank correlation' in ' '.join(
            similarity_section(few, 'drawn').text)


def test_section_of_a_plain_network():
    found = compare_features(network('mmdet.ResNet'), batches(5))
    section = similarity_section(found, 'drawn')
    assert 'no layer attention' in ' '.join(section.text)
    assert [table.caption for table in section.tables] == ['Most alike']
    rows = section.tables[0].rows
    off = found.cka - np.eye(len(found.cka))
    assert float(rows[0][2]) == pytest.approx(off.max(), abs=1e-3)
    matrix = section.tables[0].csv
    assert matrix[0][1:] == found.blocks
    assert [row[1:] for row in matrix[1:]] == found.cka.tolist()
    assert 'layer3' in section.pictures[0].alt


def test_batches_that_are_too_small():
    found = compare_features(network(), batches(3, 4))
    assert found.images == 4
    with pytest.raises(UsageError, match='no batch of 4 pictures'):
        compare_features(network(), batches(3, 3))
