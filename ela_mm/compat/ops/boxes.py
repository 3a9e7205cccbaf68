"""Hard NMS, soft-NMS, NMS with groups, and overlaps of boxes."""
from typing import List

import torch
import torchvision
from torch import Tensor

from .precision import computable


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
        offset: int) -> Tensor:
    """Find the boxes that hard NMS keeps, in order of decreasing score.

    Args:
        boxes (Tensor): (N, 4), x1 y1 x2 y2.
        scores (Tensor): (N, ).
        iou_threshold (float): Boxes that overlap a better one by more are
            dropped.
        offset (int): 0, or 1 if the width of a box is x2 - x1 + 1.

    Returns:
        Tensor: (K, ) int64, indices of the boxes.
    """
    boxes = computable(boxes)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    return torch.ops.torchvision.nms(boxes, scores.to(boxes.dtype),
                                     iou_threshold)


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float,
            sigma: float, min_score: float, method: int,
            offset: int) -> Tensor:
    """Run soft-NMS (Bodla et al., ICCV 2017), which torchvision lacks.

    Args:
        boxes (Tensor): (N, 4) on the CPU.
        scores (Tensor): (N, ) on the CPU.
        dets (Tensor): (N, 5), written: box and decayed score of kept boxes.
        iou_threshold (float): Overlap from which methods 0 and 1 decay scores.
        sigma (float): Width of the gaussian of method 2.
        min_score (float): Boxes whose score decays below it are dropped.
        method (int): 0 naive (hard), 1 linear, 2 gaussian.
        offset (int): As in :func:`nms`.

    Returns:
        Tensor: (K, ) int64, the kept boxes; rows ``dets[:K]`` belong to them.
    """
    x1, y1, x2, y2 = computable(boxes).unbind(1)
    scores = computable(scores).clone()
    areas = (x2 - x1 + offset) * (y2 - y1 + offset)
    remaining = torch.arange(len(scores))
    keep = []
    while len(remaining):
        best = int(scores[remaining].argmax())
        i = remaining[best]
        keep.append(i)
        remaining = torch.cat([remaining[:best], remaining[best + 1:]])
        width = torch.min(x2[i], x2[remaining]) - torch.max(
            x1[i], x1[remaining]) + offset
        height = torch.min(y2[i], y2[remaining]) - torch.max(
            y1[i], y1[remaining]) + offset
        inter = width.clamp(min=0) * height.clamp(min=0)
        iou = inter / (areas[i] + areas[remaining] - inter)
        if method == 2:
            weight = torch.exp(-iou * iou / sigma)
        else:
            decayed = 1 - iou if method == 1 else torch.zeros_like(iou)
            weight = torch.where(iou >= iou_threshold, decayed,
                                 torch.ones_like(iou))
        scores[remaining] *= weight
        remaining = remaining[scores[remaining] >= min_score]
    keep = torch.stack(keep) if keep else remaining
    dets[:len(keep), :4] = boxes[keep]
    dets[:len(keep), 4] = scores[keep]
    return keep


def nms_match(dets: Tensor, iou_threshold: float) -> List[List[int]]:
    """Find the boxes that hard NMS keeps, each with those it suppresses.

    Args:
        dets (Tensor): (N, 5) on the CPU, x1 y1 x2 y2 score.
        iou_threshold (float): Boxes that overlap a better one by as much or
            more join its group.

    Returns:
        List[List[int]]: Indices of the boxes in each group; groups and boxes
        are in order of decreasing score.
    """
    boxes, scores = computable(dets).split([4, 1], 1)
    remaining = scores.squeeze(1).argsort(descending=True)
    groups = []
    while len(remaining):
        overlaps = torchvision.ops.box_iou(
            boxes[remaining[:1]], boxes[remaining])[0]
        joins = overlaps >= iou_threshold
        joins[0] = True  # a box without extent does not overlap itself
        groups.append(remaining[joins].tolist())
        remaining = remaining[~joins]
    return groups


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int,
                  aligned: bool, offset: int) -> None:
    """Compute the overlaps of boxes, by mmcv's own code in plain torch.

    Args:
        bboxes1 (Tensor): (M, 4), x1 y1 x2 y2.
        bboxes2 (Tensor): (N, 4).
        ious (Tensor): (M, N), or (M, ) if ``aligned``; written.
        mode (int): 0 for intersection over union, 1 for intersection over the
            first box.
        aligned (bool): Whether to compare boxes pair by pair.
        offset (int): As in :func:`nms`.
    """
    # Imported here, since mmcv.ops imports this package.
    from mmcv.ops.bbox import _bbox_overlaps_cpu

    ious.copy_(
        _bbox_overlaps_cpu(bboxes1, bboxes2, ('iou', 'iof')[mode], aligned,
                           offset))
