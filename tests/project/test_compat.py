"""mmcv-lite stands in for mmcv; checkpoints load, malicious ones do not."""
import os
import subprocess

import numpy as np
import pytest
import torch
from mmcv.ops import (
    batched_nms,
    nms,
    nms_match,
    roi_align,
    sigmoid_focal_loss,
    soft_nms,
)
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.optim import OneCycleLR
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler
from mmengine.utils import digit_version
from support import ROOT
from support.malicious import RunsCode
from torchvision.ops import box_iou

from ela_mm import compat
from ela_mm.compat import checkpoints, products
from ela_mm.compat.checkpoints import restricted_getattr

# Outputs of the compiled ops of mmcv 2.1.0.
GOLDEN = np.load(ROOT / 'tests' / 'data' / 'mmcv_ops_2.1.0.npz')


def golden(name):
    return torch.from_numpy(GOLDEN[name])


def same_detections(ours, theirs):
    """Equal rows, in any order among equal scores, which no NMS defines."""
    assert torch.equal(ours[:, 4], theirs[:, 4])

    def by_row(dets):
        return dets[np.lexsort(dets.numpy().T[[3, 2, 1, 0, 4]])]

    return torch.equal(by_row(ours), by_row(theirs))


@pytest.mark.parametrize('offset', [0, 1])
def test_nms(offset):
    boxes, scores = golden('boxes2'), golden('scores2')
    dets, _ = nms(boxes, scores, 0.5, offset=offset)
    keep = golden(f'nms2_off{offset}_keep')
    assert same_detections(dets,
                           torch.cat([boxes, scores[:, None]], 1)[keep])


@pytest.mark.parametrize('method', ['naive', 'linear', 'gaussian'])
def test_soft_nms(method):
    dets, keep = soft_nms(
        golden('boxes2'), golden('scores2'), 0.4, 0.5, 1e-3, method)
    expected = golden(f'softnms2_{method}_dets')
    if method == 'gaussian':  # exp() differs in the last bit
        torch.testing.assert_close(dets, expected)
    else:
        assert same_detections(dets, expected)
    assert set(keep.tolist()) == set(golden(f'softnms2_{method}_keep').tolist())


def test_nms_with_groups():
    """Who is kept is mmcv's NMS; the others go to the best that they overlap."""
    boxes, scores = golden('boxes2'), golden('scores2')
    groups = nms_match(torch.cat([boxes, scores[:, None]], 1), 0.5)
    keep = [int(group[0]) for group in groups]
    assert set(keep) == set(golden('nms2_off0_keep').tolist())
    assert scores[keep].tolist() == sorted(scores[keep].tolist(), reverse=True)
    assert sorted(torch.cat(groups).tolist()) == list(range(len(boxes)))
    overlaps = box_iou(boxes, boxes)
    for group in groups:
        assert (scores[group].diff() <= 0).all()
        for i in group[1:]:
            first = next(k for k in keep if overlaps[k, i] >= 0.5)
            assert first == group[0]


def test_nms_with_groups_by_hand():
    """An overlap of just the threshold joins; nothing has no overlap."""
    dets = torch.tensor([[0, 0, 10, 10, .7], [0, 0, 10, 5, .9],
                         [5, 5, 5, 5, .8], [0, 0, 10, 4.9, .6],
                         [0, 0, 9, 10, .5]])
    assert [group.tolist() for group in nms_match(dets, 0.5)] == [
        [1, 0, 3], [2], [4]]
    assert nms_match(dets.numpy(), 1.)[0].tolist() == [1]
    assert nms_match(torch.zeros(0, 5), 0.5) == []


def test_batched_nms_keeps_classes_apart():
    _, keep = batched_nms(
        golden('boxes2'), golden('scores2'), golden('bnms2_idx'),
        dict(type='nms', iou_threshold=0.5))
    assert set(keep.tolist()) == set(golden('bnms2_keep').tolist())


@pytest.mark.parametrize('case', ['s0_a1_avg', 's2_a0_avg', 's0_a1_max'])
def test_roi_align(case):
    sampling, aligned, mode = case.split('_')
    x = golden('roi_x').requires_grad_()
    out = roi_align(x, golden('rois'), (7, 7), 0.25, int(sampling[1]), mode,
                    aligned == 'a1')
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
    torch.testing.assert_close(
        out, golden(f'roialign_o7_{case}'), rtol=0, atol=2e-5)
    torch.testing.assert_close(
        x.grad, golden(f'roialign_o7_{case}_grad'), rtol=0, atol=2e-5)


@pytest.mark.parametrize('dtype', [torch.half, torch.bfloat16])
def test_half_precision_on_the_cpu(dtype):
    boxes, scores = golden('boxes1'), golden('scores1')
    dets, _ = nms(boxes.to(dtype), scores.to(dtype), 0.5)
    assert dets.dtype == dtype
    x = golden('roi_x').to(dtype).requires_grad_()
    out = roi_align(x, golden('rois').to(dtype), (7, 7), 0.25, 2, 'avg', True)
    out.sum().backward()
    assert out.dtype == x.grad.dtype == dtype and x.grad.any()


@pytest.mark.parametrize('weighted', [False, True])
def test_sigmoid_focal_loss_and_its_gradient(weighted):
    """Against the formula, written with probabilities."""
    logits = torch.randn(6, 4, requires_grad=True)
    target = torch.tensor([0, 3, 4, 1, 4, 2])  # 4 is background
    weight = torch.tensor([1., 2., 3., .5]) if weighted else None
    ours = sigmoid_focal_loss(logits, target, 2.0, 0.25, weight, 'none')
    p = logits.sigmoid()
    positive = target[:, None] == torch.arange(4)
    loss = torch.where(positive, -0.25 * (1 - p)**2 * p.log(),
                       -0.75 * p**2 * (1 - p).log())
    if weighted:
        factors = torch.tensor([1., 2., 3., .5, 1.])
        loss = loss * factors[target][:, None]
    torch.testing.assert_close(ours, loss)
    gradients = [torch.autograd.grad(x.sum(), logits, retain_graph=True)[0]
                 for x in (ours, loss)]
    torch.testing.assert_close(*gradients)


def test_no_boxes():
    empty = torch.zeros(0, 4)
    assert nms(empty, torch.zeros(0), 0.5)[0].shape == (0, 5)
    assert soft_nms(empty, torch.zeros(0))[0].shape == (0, 5)


def test_other_ops_name_themselves_and_the_way_out():
    import mmcv._ext
    if hasattr(mmcv._ext, '__file__'):
        pytest.skip('a compiled mmcv is installed')
    with pytest.raises(NotImplementedError,
                       match="'nms_rotated'.*CARAFE.*mim install"):
        mmcv._ext.nms_rotated()


def test_install_twice_adds_one_finder():
    import sys
    compat.install()
    names = [type(finder).__name__ for finder in sys.meta_path]
    assert names.count('_ExtFinder') == 1


@pytest.mark.skipif(
    not hasattr(torch.serialization, 'add_safe_globals'),
    reason='torch < 2.4 allows no further types; mmengine loads without '
    'weights_only there')
def test_mmengine_checkpoints_load_under_weights_only(tmp_path):
    hub = MessageHub('compat')
    hub.update_scalar('loss', 0.5)
    hub.update_scalar('lr', np.float64(0.1))
    hub.update_info('iter', 3)
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(message_hub=hub.state_dict(), order=np.arange(3)), path)
    loaded = torch.load(path, weights_only=True)
    buffer = loaded['message_hub']['log_scalars']['loss']
    assert isinstance(buffer, HistoryBuffer) and buffer.mean() == 0.5


@pytest.mark.skipif(
    not hasattr(torch.serialization, 'safe_globals'),
    reason='torch < 2.5 cannot allow types for a while')
def test_hosts_that_tidy_up_leave_the_types_allowed(tmp_path):
    """As onedl-mmengine does around each load."""
    path = tmp_path / 'checkpoint.pth'
    torch.save(dict(buffer=HistoryBuffer([1.], [1])), path)
    with torch.serialization.safe_globals([HistoryBuffer, np.ndarray]):
        pass
    loaded = torch.load(path, weights_only=True)
    assert loaded['buffer'].mean() == 1


@pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.6'),
    reason='torch < 2.6 loads without weights_only by default')
def test_nothing_else_is_allowed(monkeypatch):
    """Types of numbers, and a getattr that reaches statistics alone."""
    allowed = []
    monkeypatch.setattr(torch.serialization, 'add_safe_globals',
                        allowed.extend)
    checkpoints.install()
    assert {name for _, name in allowed} == {
        'mmengine.logging.history_buffer.HistoryBuffer', 'numpy.ndarray',
        'mmengine.optim.scheduler.param_scheduler.OneCycleParamScheduler',
        'numpy.dtype', 'builtins.getattr',
        *(f'{type(np.dtype(kind)).__module__}.{type(np.dtype(kind)).__name__}'
          for kind in np.typecodes['AllInteger'] + '?efd'),
        *(f'numpy.{core}.multiarray.{name}' for core in ('core', '_core')
          for name in ('_reconstruct', 'scalar')),
    }
    for what, name in allowed:
        if name == 'builtins.getattr':
            assert what is restricted_getattr
        else:
            assert what.__name__ == name.rpartition('.')[2]


@pytest.mark.parametrize('curve', ['cos', 'linear'])
def test_the_state_of_onecycle_resumes(tmp_path, curve):
    """It holds the function of its curve."""
    def scheduler():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=.1)
        return OneCycleLR(optimizer, eta_max=.2, total_steps=9,
                          anneal_strategy=curve)

    first, second = scheduler(), scheduler()
    for _ in range(4):
        first.step()
    torch.save(first.state_dict(), tmp_path / 'state.pth')
    second.load_state_dict(torch.load(tmp_path / 'state.pth',
                                      weights_only=True))
    for schedule in (first, second):
        schedule.step()
    assert second.get_last_value() == first.get_last_value()


@pytest.mark.parametrize('kind', [
    'bool', 'int8', 'uint8', 'int32', 'int64', 'float16', 'float32', 'float64'])
def test_a_metric_of_any_kind_of_number_resumes(tmp_path, kind):
    """The hub has it as the best score."""
    hub = MessageHub.get_instance(f'best score of {kind}')
    for name, value in dict(scalar=np.dtype(kind).type(1),
                            array=np.ones(1, kind)).items():
        hub.update_info(name, value)
    torch.save(hub.state_dict(), tmp_path / 'hub.pth')
    loaded = torch.load(tmp_path / 'hub.pth', weights_only=True)
    assert loaded['runtime_info'] == hub.runtime_info
    assert loaded['runtime_info']['array'].dtype == kind


class UsesGetattr:

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


def test_malicious_checkpoints_are_refused(tmp_path):
    marker = tmp_path / 'ran'
    for name, payload in (('system', RunsCode(f'touch {marker}')),
                          ('call', RunsCode(['touch', str(marker)],
                                            subprocess.call)),
                          ('eval', RunsCode(f'open({str(marker)!r}, "w")',
                                            eval)),
                          ('getattr', UsesGetattr())):
        path = tmp_path / f'{name}.pth'
        torch.save(dict(state_dict={}, payload=payload), path)
        with pytest.raises(Exception, match='getattr|posix|eval|subprocess|'
                           'not trust|Weights'):
            torch.load(path, weights_only=True)
    assert not marker.exists()


@pytest.mark.parametrize('obj, name', [(HistoryBuffer, '__init__'),
                                       (os, 'system'), (HistoryBuffer, 'data'),
                                       (HistoryBuffer(), 'mean'),
                                       (OneCycleParamScheduler, '__init__'),
                                       (OneCycleParamScheduler, 'mean')])
def test_restricted_getattr_reaches_nothing_else(obj, name):
    with pytest.raises(ValueError, match='do not trust it'):
        restricted_getattr(obj, name)


@pytest.mark.parametrize('leaves_out', [products._LEAVES_OUT, False],
                         ids=['as it is', 'as torch 2.0'])
@pytest.mark.parametrize('shape', [(1, 1, 1, 1), (6, 1, 8, 3), (2, 40, 50, 60)])
def test_products_do_not_add_what_lies_in_memory(shape, leaves_out,
                                                 monkeypatch):
    """torch 2.0 multiplies NaN by beta=0 in small products."""
    monkeypatch.setattr(products, '_LEAVES_OUT', leaves_out)
    batch, m, k, n = shape
    left = torch.randn(batch, m, k, dtype=torch.float64)
    right = torch.randn(batch, k, n, dtype=torch.float64)
    expected = torch.einsum('bmk,bkn->bmn', left, right) * .3
    out = torch.full_like(expected, float('nan'))
    products.scaled_bmm(left, right, .3, out=out)
    torch.testing.assert_close(out, expected)
    for _ in range(3):  # in memory that was just given back
        del out
        out = products.scaled_bmm(left, right, .3)
        torch.testing.assert_close(out, expected)
        out.fill_(float('nan'))
