"""Which weights exist: ERK, uniform, SNIP and RigL."""
import math

import pytest
import torch
from scipy.optimize import brentq
from torch import nn

from ela_mm.errors import UsageError
from ela_mm.sparsity.build import SCHEMES, build_scheme
from ela_mm.sparsity.layers import sparse_layers
from ela_mm.sparsity.random_masks import erk_densities, uniform_densities
from ela_mm.sparsity.rigl import RigL
from ela_mm.sparsity.scheme import check_density

# A ResNet-20's: small at both ends, large at the end.
SHAPES = dict(
    stem=(16, 3, 3, 3), a=(16, 16, 3, 3), b=(32, 16, 3, 3), c=(32, 16, 1, 1),
    d=(64, 64, 3, 3), fc=(10, 64))
SIZES = {name: math.prod(shape) for name, shape in SHAPES.items()}
TOTAL = sum(SIZES.values())


def weights():
    return {n: torch.randn(shape) for n, shape in SHAPES.items()}


def start(scheme, density, seed=0, gradients=None, **options):
    return build_scheme(dict(type=scheme, **options)).start(
        weights(), density, torch.Generator().manual_seed(seed), gradients)


@pytest.mark.parametrize('density', [1., .9, .3, .15, .1, .05, .02, .002])
def test_erk_fills_layers_as_high_as_they_go(density):
    """min(1, s * dimensions / weights), with s so that the sum fits."""
    raw = {n: sum(SHAPES[n]) / SIZES[n] for n in SHAPES}

    def too_many(s):
        return sum(min(1., s * raw[n]) * SIZES[n] for n in SHAPES) - (
            density * TOTAL)

    top = 2 / min(raw.values())
    s = top if density == 1 else brentq(too_many, 0, top, xtol=1e-14)
    ours = erk_densities(SHAPES, density)
    assert list(ours) == list(SHAPES)
    for name, value in ours.items():
        assert value == pytest.approx(min(1., s * raw[name]), rel=1e-8), name


def test_uniform_is_uniform():
    assert uniform_densities(SHAPES, .3) == dict.fromkeys(SHAPES, .3)


@pytest.mark.parametrize('scheme', ['ERK', 'uniform', 'RigL'])
def test_random_masks_have_their_density_and_their_seed(scheme):
    densities = (uniform_densities if scheme == 'uniform' else
                 erk_densities)(SHAPES, .1)
    masks = start(scheme, .1)
    for name, mask in masks.items():
        assert mask.dtype == torch.bool and mask.shape == SHAPES[name]
        assert mask.sum() == round(densities[name] * SIZES[name])
    assert all(torch.equal(m, n) for m, n in zip(
        masks.values(), start(scheme, .1).values()))
    assert not torch.equal(masks['d'], start(scheme, .1, seed=1)['d'])
    # All places are as likely: no row of the largest layer is empty.
    assert masks['d'].flatten(1).any(1).all()


@pytest.mark.parametrize('scheme', ['ERK', 'uniform', 'SNIP'])
def test_no_layer_vanishes(scheme):
    masks = start(scheme, 1e-6, gradients=weights())
    assert all(mask.any() for mask in masks.values())


@pytest.mark.parametrize('density', [0, -.1, 1.1, math.nan, '.5', True])
def test_density_is_a_share(density):
    with pytest.raises(UsageError, match='density=.*(above 0 and at most 1|a number)'):
        check_density(density)


def test_snip_keeps_the_largest_products():
    ws, gs = weights(), weights()
    masks = build_scheme(dict(type='SNIP')).start(ws, .05, None, gs)
    products = torch.cat([(ws[n] * gs[n]).abs().flatten() for n in SHAPES])
    count = round(.05 * TOTAL)
    bound = products.sort(descending=True).values[count - 1]
    for name, mask in masks.items():
        assert torch.equal(mask, (ws[name] * gs[name]).abs() >= bound), name
    assert sum(int(mask.sum()) for mask in masks.values()) == count


@pytest.mark.parametrize('value, message', [
    (math.nan, 'not finite in d:'),
    (0., r'0 in 1 layers, which it would remove \(d, .*zero_init_residual=False'),
])
def test_snip_refuses_gradients_that_say_nothing(value, message):
    gradients = weights()
    gradients['d'].fill_(value)
    with pytest.raises(UsageError, match=message):
        start('SNIP', .1, gradients=gradients)


def test_rigl_drops_the_small_and_grows_where_the_gradient_is_large():
    weight, gradient = torch.randn(20, 30), torch.randn(20, 30)
    mask = torch.rand(20, 30) < .4
    weight *= mask
    count = int(mask.sum())
    new = RigL().update(weight, gradient, mask, .3)
    assert int(new.sum()) == count
    # By sorting lists instead.
    places = [divmod(i, 30) for i in range(600)]
    alive = sorted((p for p in places if mask[p]),
                   key=lambda p: -abs(weight[p].item()))
    exchanged = int(.3 * count)
    kept = set(alive[:count - exchanged])
    absent = sorted((p for p in places if p not in kept),
                    key=lambda p: -abs(gradient[p].item()))
    grown = set(absent[:exchanged])
    assert {p for p in places if new[p]} == kept | grown
    assert grown & set(alive), 'some came back at once'


def test_rigl_of_a_dense_layer_has_nothing_to_exchange():
    mask = torch.ones(4, 4, dtype=torch.bool)
    args = torch.randn(4, 4), torch.randn(4, 4)
    assert RigL().update(*args, mask, .3).all()
    mask[0, 0] = False  # one place is free
    assert RigL().update(*args, mask, .5).sum() == 15


def test_rigl_anneals():
    scheme = RigL(fraction=.3, until=.75)
    assert scheme.fraction(0) == pytest.approx(.3)
    assert scheme.fraction(.375) == pytest.approx(.15)
    assert scheme.fraction(.25) == pytest.approx(.225)
    assert scheme.fraction(.75) == scheme.fraction(1.) == 0


@pytest.mark.parametrize('scheme', ['ERK', 'uniform', 'SNIP'])
def test_others_stay(scheme):
    scheme = SCHEMES[scheme]()
    assert scheme.interval == 0 and scheme.fraction(.1) == 0


@pytest.mark.parametrize('cfg, message', [
    (dict(type='GraSP'), "'GraSP': expected one of ERK, uniform, SNIP, RigL"),
    (dict(batches=2), 'type None'),
    (dict(type='ERK', interval=3), "ERK: .*'interval'; it takes no parameters"),
    (dict(type='RigL', every=3), "RigL: .*'every'; it takes interval, "),
    (dict(type='RigL', interval=0), 'interval=0'),
    (dict(type='RigL', fraction=0), 'fraction=0'),
    (dict(type='RigL', until=1.5), 'until=1.5'),
    (dict(type='SNIP', batches=0), 'batches=0'),
    (dict(type='SNIP', batches='1'), "batches='1': expected a whole number"),
    (dict(type='RigL', interval=2.5), 'interval=2.5: expected a whole number'),
    (dict(type='RigL', until='1'), "until='1': expected a number"),
    ('ERK', "scheme='ERK': expected a dict with a type"),
])
def test_wrong_schemes_are_named(cfg, message):
    with pytest.raises(UsageError, match=message):
        build_scheme(cfg)


# --- which layers -------------------------------------------------------------


def test_layers_that_are_masked():
    net = nn.ModuleDict(dict(
        conv=nn.Conv2d(3, 4, 3), depthwise=nn.Conv2d(4, 4, 3, groups=4),
        norm=nn.BatchNorm2d(4), frozen=nn.Conv2d(4, 4, 1).requires_grad_(False),
        query=nn.Conv1d(1, 1, 3), embedding=nn.Embedding(3, 3),
        head=nn.ModuleDict(dict(fc=nn.Linear(4, 2), fc2=nn.Linear(4, 2))),
        headless=nn.Linear(2, 2)))
    masked, dense = sparse_layers(net, ['head'])
    assert list(masked) == ['conv.weight', 'depthwise.weight', 'headless.weight']
    assert masked['conv.weight'] is net['conv'].weight
    assert dense == {
        'frozen.weight': 'frozen', 'query.weight': 'one channel',
        'head.fc.weight': 'left out', 'head.fc2.weight': 'left out'}
    masked, _ = sparse_layers(net, ['head.fc', 'conv'])
    assert list(masked) == [
        'depthwise.weight', 'head.fc2.weight', 'headless.weight']


def test_nothing_to_mask_is_an_error():
    with pytest.raises(UsageError, match='no convolution or linear layer'):
        sparse_layers(nn.BatchNorm2d(3))
    with pytest.raises(UsageError, match="Linear has no module 'fc'"):
        sparse_layers(nn.Linear(3, 3), ['fc'])
    with pytest.raises(UsageError, match="leave_out='head.fc': .* a list"):
        sparse_layers(nn.Linear(3, 3), 'head.fc')


def test_queries_and_keys_of_attention_are_never_masked():
    from ela_mm.hosts.mmdet import ELAResNet
    masked, dense = sparse_layers(ELAResNet(18, base_channels=16))
    assert sum('.query.' in n or '.key.' in n for n in dense) == 16
    assert not [n for n in masked if '.query.' in n or '.key.' in n]
    assert sum('.value.' in n for n in masked) == 8
