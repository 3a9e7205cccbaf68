"""mmcv's ops without a compiler: against formulas, and mmcv's own values."""
import math
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from mmcv.ops import (
    DeformConv2dPack,
    DeformRoIPoolPack,
    MaskedConv2d,
    ModulatedDeformConv2dPack,
    ModulatedDeformRoIPoolPack,
    PSAMask,
    bbox_overlaps,
    border_align,
    carafe,
    deform_conv2d,
    deform_roi_pool,
    modulated_deform_conv2d,
    roi_pool,
    softmax_focal_loss,
)
from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction
from mmcv.ops.sync_bn import SyncBatchNormFunction
from support.versions import needs_torch_2_1
from torch.autograd import gradcheck
from torchvision.ops import box_iou

DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(
    not torch.cuda.is_available(), reason='needs a GPU'))]
on_devices = pytest.mark.parametrize('device', DEVICES)


def random(*shape, device='cpu'):
    return torch.randn(*shape, dtype=torch.float64, device=device,
                       requires_grad=True)


def same_with_gradients(ours, theirs, inputs):
    """Equal values, and equal gradients of every input."""
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(theirs)
    for x, y in zip(torch.autograd.grad(ours, inputs, grad),
                    torch.autograd.grad(theirs, inputs, grad)):
        assert x.abs().max() > 0
        torch.testing.assert_close(x, y)


def sample(maps, y, x, padding):
    """Bilinear samples (B, C, ...) at pixels y, x (B, ...), by grid_sample."""
    height, width = maps.shape[2:]
    grid = torch.stack([2 * x / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
    return F.grid_sample(maps, grid.flatten(1, -2)[:, None],
                         padding_mode=padding, align_corners=True).view(
                             *maps.shape[:2], *y.shape[1:])


# --- deformable convolution --------------------------------------------------


def deformable(x, offset, weight, mask, stride, padding, dilation, groups,
               deform_groups):
    """Samples of every kernel position, then a convolution of 1 x 1."""
    kh, kw = weight.shape[2:]
    oh, ow = offset.shape[2:]
    offset = offset.view(len(x), deform_groups, kh * kw, 2, oh, ow)
    columns = []
    for g, part in enumerate(x.chunk(deform_groups, 1)):
        for i in range(kh * kw):
            y = (torch.arange(oh)[:, None] * stride[0] - padding[0] +
                 i // kw * dilation[0] + offset[:, g, i, 0])
            z = (torch.arange(ow) * stride[1] - padding[1] +
                 i % kw * dilation[1] + offset[:, g, i, 1])
            seen = sample(part, y, z, 'zeros')
            columns.append(seen * mask[:, g * kh * kw + i, None])
    # (B, deform groups, positions, channels, ...) to channels and positions
    columns = torch.stack(columns, 1).unflatten(1, (deform_groups, kh * kw))
    columns = columns.transpose(2, 3).flatten(1, 2).flatten(1, 2)
    return F.conv2d(columns, weight.flatten(1)[..., None, None],
                    groups=groups)


GEOMETRY = [
    ((1, 1), (1, 1), (1, 1), 1, 1),
    ((2, 1), (1, 2), (1, 2), 2, 2),
]


@pytest.mark.parametrize('stride, padding, dilation, groups, deform_groups',
                         GEOMETRY)
def test_deformable_convolution(stride, padding, dilation, groups,
                                deform_groups):
    x, weight = random(2, 4, 7, 8), random(6, 4 // groups, 3, 2)
    bias = random(6)
    shape = F.conv2d(x, weight, None, stride, padding, dilation, groups).shape
    offset = random(2, deform_groups * 12, *shape[2:])
    mask = random(2, deform_groups * 6, *shape[2:])
    geometry = stride, padding, dilation, groups, deform_groups
    same_with_gradients(
        deform_conv2d(x, offset, weight, *geometry),
        deformable(x, offset, weight, torch.ones_like(mask), *geometry),
        (x, offset, weight))
    same_with_gradients(
        modulated_deform_conv2d(x, offset, mask, weight, bias, *geometry),
        deformable(x, offset, weight, mask, *geometry) +
        bias[:, None, None], (x, offset, mask, weight, bias))


@pytest.mark.parametrize('frozen', ['x', 'weight', 'twice'])
def test_parts_of_the_backward_pass(frozen):
    """The weight alone, all but the weight, and one graph used twice."""
    x, weight, offset = random(1, 2, 5, 5), random(3, 2, 3, 3), random(
        1, 18, 3, 3)
    x.requires_grad_(frozen != 'x')
    offset.requires_grad_(frozen != 'x')
    weight.requires_grad_(frozen != 'weight')
    inputs = [t for t in (x, offset, weight) if t.requires_grad]
    ours = deform_conv2d(x, offset, weight)
    theirs = deformable(x, offset, weight, torch.ones(1, 9, 3, 3).double(),
                        (1, 1), (0, 0), (1, 1), 1, 1)
    for _ in range(2 if frozen == 'twice' else 1):
        grad = torch.randn_like(ours)
        for ours_, theirs_ in zip(*(
                torch.autograd.grad(out, inputs, grad, retain_graph=True)
                for out in (ours, theirs))):
            torch.testing.assert_close(ours_, theirs_)


@on_devices
def test_deformable_convolution_has_the_values_of_mmcv(device):
    """Of the compiled ops, from mmcv's tests."""
    x = torch.tensor([[[[1., 2, 3], [0, 1, 2], [3, 5, 2]]]], device=device,
                     requires_grad=True)
    conv = DeformConv2dPack(1, 1, 2).to(device)
    conv.conv_offset.weight.data = torch.tensor([
        [.1, .4, .6, .1], [.3, .2, .1, .3], [.5, .5, .2, .8],
        [.8, .3, .9, .1], [.3, .1, .2, .5], [.3, .7, .5, .3],
        [.6, .2, .5, .3], [.4, .1, .8, .4]], device=device).view(8, 1, 2, 2)
    conv.conv_offset.bias.data = torch.tensor(
        [.7, .1, .8, .5, .6, .5, .4, .7], device=device)
    conv.weight.data = torch.tensor([[[[.4, .2], [.1, .9]]]], device=device)
    out = conv(x)
    out.sum().backward()
    for ours, theirs in (
        (out, [[[[1.65, 0], [0, 0]]]]),
        (x.grad, [[[[-.666, .204, 0], [.03, -.416, .012], [0, .252, .129]]]]),
        (conv.conv_offset.bias.grad,
         [1.44, -.72, 0, 0, -.1, -.08, -.54, -.54]),
        (conv.weight.grad, [[[[3.62, 0], [.4, .18]]]]),
    ):
        torch.testing.assert_close(ours.cpu(), torch.tensor(theirs),
                                   rtol=1e-4, atol=1e-5)


@on_devices
def test_modulated_convolution_has_the_values_of_mmcv(device):
    x = torch.tensor([[[[1., 2, 3]] * 3]], device=device, requires_grad=True)
    conv = ModulatedDeformConv2dPack(1, 1, 2, padding=1, bias=False).to(device)
    conv.weight.data.fill_(1)
    out = conv(x)
    out.sum().backward()
    outer, inner = [.5, 1.5, 2.5, 1.5], [1., 3, 5, 3]
    for ours, theirs in (
        (out, [[[outer, inner, inner, outer]]]),
        (x.grad, [[[[2.] * 3] * 3]]),
        (conv.weight.grad, [[[[9., 9], [9, 9]]]]),
        (conv.conv_offset.bias.grad[8:], [4.5] * 4),  # of the masks
    ):
        torch.testing.assert_close(ours.cpu(), torch.tensor(theirs))


def test_offsets_that_are_no_numbers():
    """Where a network diverges, no other memory is read: 0, as mmcv's."""
    x, weight = torch.randn(1, 2, 5, 5), torch.ones(1, 2, 1, 1)
    offset = torch.zeros(1, 2, 5, 5)
    offset[0, 0, 0, :3] = torch.tensor([math.nan, math.inf, -math.inf])
    offset[0, 1, 1, 0] = 1e30
    offset.requires_grad_()
    expected = x.sum(1, keepdim=True)
    expected[..., 0, :3] = expected[..., 1, 0] = 0
    for out in (deform_conv2d(x, offset, weight),
                modulated_deform_conv2d(x, offset, torch.ones(1, 1, 5, 5),
                                        weight)):
        torch.testing.assert_close(out, expected)
        out.sum().backward()
    assert offset.grad.isfinite().all()


def test_offsets_of_more_pixels_than_the_output():
    """As DyHead has them: mmcv reads the beginning of a picture's memory."""
    x, weight, bias = random(2, 2, 3, 3), random(3, 2, 3, 3), random(3)
    offset, mask = random(2, 18, 6, 5), random(2, 9, 6, 5)
    read = [y.flatten(1)[:, :y.size(1) * 9].view(2, -1, 3, 3)
            for y in (offset, mask)]
    geometry = (1, 1), (1, 1), (1, 1), 1, 1
    same_with_gradients(
        modulated_deform_conv2d(x, offset, mask, weight, bias, 1, 1),
        deformable(x, read[0], weight, read[1], *geometry) +
        bias[:, None, None], (x, offset, mask, weight, bias))
    with pytest.raises(ValueError, match='1 x 5 pixels for an output of 3 x 3'):
        modulated_deform_conv2d(x, offset[:, :, :1], mask[:, :, :1], weight,
                                bias, 1, 1)


# --- multi-scale deformable attention ----------------------------------------


@on_devices
def test_multi_scale_deformable_attention(device):
    """By its formula, pixel by pixel; gradients by finite differences."""
    shapes = torch.tensor([[3, 4], [2, 2]], device=device)
    value = random(2, 16, 2, 3, device=device)
    places = (torch.rand(2, 3, 2, 2, 2, 2, dtype=torch.float64,
                         device=device) * 1.2 - .1).requires_grad_()
    weights = random(2, 3, 2, 2, 2, device=device)
    starts = torch.tensor([0, 12], device=device)

    def attend(*inputs):
        return MultiScaleDeformableAttnFunction.apply(
            inputs[0], shapes, starts, *inputs[1:], 64)

    expected = torch.zeros(2, 3, 2, 3, dtype=torch.float64)
    for b, q, h, level, p in torch.cartesian_prod(
            *(torch.arange(n) for n in (2, 3, 2, 2, 2))).tolist():
        height, width = shapes[level].tolist()
        x, y = (places[b, q, h, level, p].detach().cpu() *
                torch.tensor([width, height]) - .5).tolist()
        for row in range(height):
            for column in range(width):
                near = max(0, 1 - abs(y - row)) * max(0, 1 - abs(x - column))
                expected[b, q, h] += (
                    near * weights[b, q, h, level, p].item() *
                    value[b, starts[level] + row * width + column,
                          h].detach().cpu())
    inputs = value, places, weights
    torch.testing.assert_close(attend(*inputs).cpu(), expected.flatten(2))
    assert gradcheck(attend, inputs)


# --- CARAFE ------------------------------------------------------------------


@on_devices
@pytest.mark.parametrize('kernel, groups, scale', [(3, 1, 2), (5, 2, 3)])
def test_carafe(kernel, groups, scale, device):
    """Against what unfold sees, repeated for every fine pixel."""
    x = random(2, 4, 3, 4, device=device)
    masks = random(2, groups * kernel**2, 3 * scale, 4 * scale, device=device)
    seen = F.unfold(x, kernel, padding=kernel // 2).view(
        2, groups, 4 // groups, kernel**2, 3, 4)
    fine = seen.repeat_interleave(scale, 4).repeat_interleave(scale, 5)
    kernels = masks.view(2, groups, 1, kernel**2, 3 * scale, 4 * scale)
    same_with_gradients(carafe(x, masks, kernel, groups, scale),
                        (fine * kernels).sum(3).flatten(1, 2), (x, masks))


# --- pooling of regions ------------------------------------------------------


def pooled_by_hand(x, rois, size, scale):
    """Bin after bin, as RoIPool's loops in mmcv say."""
    rows = []
    for index, x1, y1, x2, y2 in rois.tolist():
        x1, y1 = x1 * scale, y1 * scale
        x2, y2 = (x2 + 1) * scale, (y2 + 1) * scale
        bins = []
        for i in range(size[0]):
            for j in range(size[1]):
                top, left, bottom, right = (
                    max(0, round_(place * ((end - start) / n) + start))
                    for round_, place, start, end, n in (
                        (math.floor, i, y1, y2, size[0]),
                        (math.floor, j, x1, x2, size[1]),
                        (math.ceil, i + 1, y1, y2, size[0]),
                        (math.ceil, j + 1, x1, x2, size[1])))
                part = x[int(index), :, top:bottom, left:right]
                bins.append(part.flatten(1).max(1).values
                            if part.numel() and x2 > x1 and y2 > y1
                            else x.new_zeros(x.size(1)))
        rows.append(torch.stack(bins, 1).view(-1, *size))
    return torch.stack(rows)


corners = st.floats(-6, 40).map(lambda value: round(value, 2))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), corners, corners, corners,
                          corners), min_size=1, max_size=5),
       st.sampled_from([1., .25, .5]))
def test_roi_pool(rois, scale):
    """Regions that lie outside or inside out too."""
    x = torch.randperm(2 * 3 * 80).double().view(2, 3, 8, 10).requires_grad_()
    rois = torch.tensor(rois, dtype=torch.float64)
    ours = roi_pool(x, rois, (2, 3), scale)
    theirs = pooled_by_hand(x, rois, (2, 3), scale)
    torch.testing.assert_close(ours, theirs)
    grad = torch.randn_like(ours)
    if theirs.requires_grad:
        torch.testing.assert_close(*(
            torch.autograd.grad(out, x, grad)[0] for out in (ours, theirs)))


@on_devices
def test_roi_pool_of_many_sizes(device, monkeypatch):
    """In parts, where memory would not do for all at once."""
    from ela_mm.compat.ops import roi_pool as module
    x = random(2, 3, 20, 30, device=device)
    corner = torch.rand(40, 2, dtype=torch.float64) * 15
    rois = torch.cat([torch.arange(40)[:, None] % 2, corner,
                      corner + torch.rand(40, 2) * 14], 1).to(device)
    whole = roi_pool(x, rois, (7, 7), 1.)
    monkeypatch.setattr(module, '_AT_ONCE', 2000)
    same_with_gradients(roi_pool(x, rois, (7, 7), 1.), whole, [x])
    torch.testing.assert_close(
        whole, pooled_by_hand(x, rois, (7, 7), 1.).to(whole))


@on_devices
def test_deformable_roi_pool_has_the_values_of_mmcv(device):
    """Without offsets, which the pack starts from."""
    for pack in (DeformRoIPoolPack, ModulatedDeformRoIPoolPack):
        x = torch.tensor([[[[1., 2, 5, 6], [3, 4, 7, 8], [9, 10, 13, 14],
                            [11, 12, 15, 16]]]], device=device,
                         requires_grad=True)
        pool = pack((2, 2), 1, sampling_ratio=2).to(device)
        out = pool(x, x.new_tensor([[0, 0, 0, 3, 3]]))
        # The modulated one starts with factors of a half.
        factor = 1 if pack is DeformRoIPoolPack else 2
        torch.testing.assert_close(factor * out.cpu(), torch.tensor(
            [[[[1.9375, 4.75], [7.5625, 10.375]]]]))
        out.sum().backward()
        torch.testing.assert_close(factor * x.grad[0, 0, 0].cpu(), torch.tensor(
            [.47265625, .4296875, .4296875, .04296875]))


@on_devices
@pytest.mark.parametrize('ratio', [0, 2])
def test_deformable_roi_pool(ratio, device):
    """Against samples of the shifted bins; finite differences besides."""
    x = random(2, 3, 9, 11, device=device)
    rois = torch.tensor([[0, 2.3, 1.1, 15.2, 12.4], [1, 5.5, 3., 18.7, 9.9]],
                        dtype=torch.float64, device=device)
    offset = random(2, 2, 2, 3, device=device)
    scale, gamma = .5, .1
    theirs = []
    for k in range(2):
        x1, y1, x2, y2 = (rois[k, 1:] * scale - .5).unbind()
        for i in range(2):
            for j in range(3):
                height, width = (y2 - y1) / 2, (x2 - x1) / 3
                ny, nx = (ratio or math.ceil(side)
                          for side in (height.item(), width.item()))
                y = (y1 + gamma * (y2 - y1) * offset[k, 1, i, j] + height * (
                    i + (torch.arange(ny, device=device).double() + .5) / ny))
                z = (x1 + gamma * (x2 - x1) * offset[k, 0, i, j] + width * (
                    j + (torch.arange(nx, device=device).double() + .5) / nx))
                y, z = torch.meshgrid(y, z, indexing='ij')
                theirs.append(sample(x[k:k + 1], y[None], z[None],
                                     'border').mean((2, 3))[0])
    theirs = torch.stack(theirs).view(2, 2, 3, 3).permute(0, 3, 1, 2)

    def pool(x, offset):
        return deform_roi_pool(x, rois, offset, (2, 3), scale, ratio, gamma)

    same_with_gradients(pool(x, offset), theirs, (x, offset))
    assert gradcheck(lambda offset: pool(x.detach(), offset), [offset])


@on_devices
@pytest.mark.parametrize('pool_size', [1, 4])
def test_border_align(pool_size, device):
    x = random(2, 8, 9, 10, device=device)
    corner = torch.rand(2, 6, 2, dtype=torch.float64, device=device) * 4
    boxes = torch.cat([corner, corner + 4 * torch.rand_like(corner)], -1)
    x1, y1, x2, y2 = (side[..., None] for side in boxes.unbind(-1))
    steps = torch.arange(pool_size + 1, device=device) / pool_size
    theirs = torch.stack([
        sample(part, y.expand(2, 6, pool_size + 1),
               z.expand(2, 6, pool_size + 1), 'border').amax(-1)
        for part, y, z in zip(
            x.chunk(4, 1),
            (y1, y1 + steps * (y2 - y1), y2, y2 - steps * (y2 - y1)),
            (x1 + steps * (x2 - x1), x1, x2 - steps * (x2 - x1), x2))], -1)
    same_with_gradients(border_align(x, boxes, pool_size), theirs, [x])


@on_devices
def test_border_align_has_the_values_of_mmcv(device):
    x = torch.tensor([[
        [[1., 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]],
        [[6, 7, 5, 8], [2, 1, 3, 4], [12, 9, 11, 10]],
        [[-2, -3, 2, 0], [-4, -5, 1, -1], [-1, -1, -1, -1]],
        [[0, -1, 2, 1], [-4, -3, -2, -1], [-1, -2, -3, -4]]]], device=device)
    boxes = torch.tensor([[[0., 0, 2, 1], [1, 0, 3, 1], [0, 1, 1, 2]]],
                         device=device)
    for pool_size, bottom in ((1, -1), (2, 1)):
        expected = [[[3, 6, 1, 2], [4, 7, bottom, 1], [6, 12, -1, -2]]]
        assert border_align(x, boxes, pool_size).tolist() == [expected]


# --- the others --------------------------------------------------------------


@on_devices
def test_masked_convolution(device):
    """The convolution where the mask is, and zeros elsewhere."""
    conv = MaskedConv2d(3, 4, 3, padding=1).double().to(device)
    x = random(1, 3, 6, 7, device=device)
    mask = torch.rand(1, 6, 7, device=device) > .6
    torch.testing.assert_close(
        conv(x, mask), F.conv2d(x, conv.weight, conv.bias, padding=1) * mask)
    assert not conv(x, torch.zeros_like(mask)).any()
    wide = MaskedConv2d(3, 2, (1, 3), padding=(0, 1)).double().to(device)
    torch.testing.assert_close(wide(x, mask), wide(x) * mask)


def test_softmax_focal_loss():
    """Against the formula with logarithms; a class below 0 has no loss."""
    logits, weight = random(5, 3), torch.tensor([1., 2., .5]).double()
    target = torch.tensor([0, 2, 1, -1, 2])
    for weights in (None, weight):
        for reduction in ('sum', 'mean'):
            log_p = logits.log_softmax(1)[range(5), target.clamp(min=0)]
            theirs = -.25 * (1 - log_p.exp())**2 * log_p * (target >= 0)
            if weights is not None:
                theirs = theirs * weights[target]
            same_with_gradients(
                softmax_focal_loss(logits, target, 2., .25, weights,
                                   reduction),
                getattr(theirs, reduction)(), [logits])


@on_devices
@pytest.mark.parametrize('kind', ['collect', 'distribute'])
def test_psa_masks(kind, device):
    """Pair of pixels after pair of pixels."""
    x = random(2, 15, 3, 4, device=device)  # masks of 3 x 5
    theirs = x.new_zeros(2, 12, 12)
    for own in range(12):
        for other in range(12):
            row = other // 4 - own // 4 + 1
            column = other % 4 - own % 4 + 2
            if 0 <= row < 3 and 0 <= column < 5:
                pair = (other, own) if kind == 'collect' else (own, other)
                theirs[(slice(None), *pair)] = x[:, row * 5 + column,
                                                 own // 4, own % 4]
    same_with_gradients(PSAMask(kind, (3, 5))(x), theirs.view(2, 12, 3, 4),
                        [x])


@pytest.mark.parametrize('mode', ['default', 'N'])
def test_sync_batch_norm(mode):
    """As PyTorch's batch norm in one process; mmcv takes float32 alone."""
    x = torch.randn(4, 3, 5, 2, requires_grad=True)
    weight, bias = (torch.rand(3, requires_grad=True) for _ in range(2))
    ours, theirs = ([torch.zeros(3), torch.ones(3)] for _ in range(2))
    same_with_gradients(
        SyncBatchNormFunction.apply(x, *ours, weight, bias, .1, 1e-5, None, 1,
                                    mode),
        F.batch_norm(x, *theirs, weight, bias, True, .1, 1e-5),
        (x, weight, bias))
    torch.testing.assert_close(ours, theirs)


def test_overlaps_of_boxes():
    boxes = torch.tensor([[0., 0, 10, 10], [5, 5, 15, 15], [20, 20, 25, 30]])
    torch.testing.assert_close(bbox_overlaps(boxes, boxes),
                               box_iou(boxes, boxes))
    assert bbox_overlaps(boxes[:1], boxes[1:2], 'iof', True, 1).tolist() == [
        pytest.approx(36 / 121)]


@pytest.mark.parametrize('dtype', [
    pytest.param(torch.half, marks=needs_torch_2_1), torch.bfloat16])
def test_half_precision(dtype):
    """On the CPU, where torchvision has no kernels of these types."""
    x = torch.randn(1, 4, 8, 8, dtype=dtype, requires_grad=True)
    rois = torch.tensor([[0., 1, 1, 6, 6]], dtype=dtype)
    weight = torch.randn(2, 4, 3, 3, dtype=dtype, requires_grad=True)
    offset = torch.rand(1, 18, 8, 8).to(dtype).requires_grad_()
    mask = torch.rand(1, 9, 8, 8).to(dtype)
    shift = torch.rand(1, 2, 2, 2).to(dtype).requires_grad_()
    for out in (
        deform_conv2d(x, offset, weight, 1, 1),
        modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1),
        roi_pool(x, rois, (2, 2)),
        deform_roi_pool(x, rois, shift, (2, 2)),
        border_align(x, rois[None, :, 1:], 2),
        carafe(x, torch.rand(1, 9, 16, 16).to(dtype), 3, 1, 2),
    ):
        assert out.dtype == dtype and out.isfinite().all()
        x.grad = None
        out.sum().backward()
        assert x.grad.dtype == dtype and x.grad.any()
    assert all(leaf.grad.dtype == dtype and leaf.grad.any()
               for leaf in (weight, offset, shift))


def test_a_compiled_mmcv_comes_first(tmp_path):
    """An extension in mmcv's folders is taken, not what is offered here."""
    (tmp_path / '_ext.py').write_text('nms = "compiled"\n')

    def first_spec(folder):  # as an import looks for it
        specs = (finder.find_spec('mmcv._ext', [str(folder)])
                 for finder in sys.meta_path)
        return next(spec for spec in specs if spec)

    assert first_spec(tmp_path).origin == str(tmp_path / '_ext.py')
    assert type(first_spec(tmp_path / 'none').loader).__name__ == '_ExtFinder'
