"""The ops that :mod:`ela_mm.compat.mmcv_ops` provides as ``mmcv._ext``.

Each kind has a file with forward and backward, for CPUs and GPUs, by
torchvision's kernels or plain torch. ``OPS`` lists them all. Argument names and
in-place outputs are those of mmcv 2.x's extension, since ``mmcv.ops`` calls it
by keyword.
"""
from .border_align import border_align_backward, border_align_forward
from .boxes import bbox_overlaps, nms, nms_match, softnms
from .carafe import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
)
from .deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from .deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .deform_roi_pool import deform_roi_pool_backward, deform_roi_pool_forward
from .focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from .masked_conv import masked_col2im_forward, masked_im2col_forward
from .psa_mask import psamask_backward, psamask_forward
from .roi_align import roi_align_backward, roi_align_forward
from .roi_pool import roi_pool_backward, roi_pool_forward
from .sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)

# Ops by the name that users know them by.
OPS = {
    'NMS': (nms, softnms, nms_match),
    'overlaps of boxes': (bbox_overlaps, ),
    'RoIAlign': (roi_align_forward, roi_align_backward),
    'RoIPool': (roi_pool_forward, roi_pool_backward),
    'deformable RoIPool':
    (deform_roi_pool_forward, deform_roi_pool_backward),
    'border align': (border_align_forward, border_align_backward),
    'focal loss':
    (sigmoid_focal_loss_forward, sigmoid_focal_loss_backward,
     softmax_focal_loss_forward, softmax_focal_loss_backward),
    'deformable convolution v1 and v2':
    (deform_conv_forward, deform_conv_backward_input,
     deform_conv_backward_parameters, modulated_deform_conv_forward,
     modulated_deform_conv_backward),
    'multi-scale deformable attention':
    (ms_deform_attn_forward, ms_deform_attn_backward),
    'CARAFE': (carafe_forward, carafe_backward, carafe_naive_forward,
               carafe_naive_backward),
    'masked convolution': (masked_im2col_forward, masked_col2im_forward),
    'PSA masks': (psamask_forward, psamask_backward),
    'SyncBatchNorm':
    (sync_bn_forward_mean, sync_bn_forward_var, sync_bn_forward_output,
     sync_bn_backward_param, sync_bn_backward_data),
}

__all__ = ['OPS', *(op.__name__ for ops in OPS.values() for op in ops)]
