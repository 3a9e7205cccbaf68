"""Nothing in a training step reads a value back: a GPU would be waited for."""
import pytest
import torch
from support.toy import small_network
from torch.utils._python_dispatch import TorchDispatchMode

from ela_mm.hosts.mmdet import ELAResNet
from ela_mm.models.layers.bank import without_bank
from ela_mm.pruning import KLStatistics

# What takes numbers out of a tensor, or makes as many as the numbers say.
READS = ('_local_scalar_dense', 'is_nonzero', 'equal', 'nonzero',
         'masked_select', '_unique2', 'repeat_interleave.Tensor')
METHODS = ('item', 'tolist', 'numpy', 'cpu', '__bool__', '__int__',
           '__float__', '__index__')


class NoReads(TorchDispatchMode):

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).split('aten.')[-1]
        assert not name.startswith(READS), f'{name} reads a value'
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_reads(monkeypatch):

    def refuse(name):
        def refused(self, *args, **kwargs):
            raise AssertionError(f'Tensor.{name} reads a value')
        return refused

    for name in METHODS:
        monkeypatch.setattr(torch.Tensor, name, refuse(name))
    with NoReads():
        yield


def steps(net, statistics=None):
    optimizer = torch.optim.SGD(
        [p for p in net.parameters() if p.requires_grad], lr=0.1)
    if statistics is not None:
        net.observe(statistics.update)

    def run():
        for x in torch.ones(2, 2, 3, 64, 64):
            sum(out.square().mean() for out in net(x)).backward()
            optimizer.step()
            optimizer.zero_grad()

    return run


@pytest.mark.parametrize('plain', [False, True])
@pytest.mark.parametrize('pruned', [False, True])
def test_a_step_of_mrla_base_in_a_window(pruned, plain, request):
    net, statistics = small_network(), KLStatistics()
    if pruned:
        net.skip_layers(['layer2.1'])
        net.skip_layers(['layer3.1'], 'retrieval')
    run = steps(net, statistics)
    request.getfixturevalue('no_reads')
    if plain:
        with without_bank():
            run()
    else:
        run()


def test_a_step_of_a_long_stage_and_of_autocast(request):
    net = ELAResNet(101, base_channels=4, head_dim=4, norm_eval=False)
    run = steps(net, KLStatistics())
    request.getfixturevalue('no_reads')
    with torch.autocast('cpu', torch.bfloat16):
        run()


@pytest.mark.parametrize('plain', [False, True])
def test_a_step_of_mrla_light(plain, request):
    net = ELAResNet(18, base_channels=32, attention='light', norm_eval=False)
    run = steps(net)
    request.getfixturevalue('no_reads')
    if plain:
        with without_bank():
            run()
    else:
        run()


@pytest.mark.parametrize('read', [
    lambda x: x.item(), lambda x: x.tolist(), bool,
    lambda x: x.clamp(min=0).nonzero(), lambda x: torch.equal(x, x)])
def test_a_read_is_found(read, request):
    x = torch.ones(())
    request.getfixturevalue('no_reads')
    with pytest.raises(AssertionError, match='reads a value'):
        read(x)
