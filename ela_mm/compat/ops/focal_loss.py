"""Focal loss (Lin et al., ICCV 2017) with sigmoids or with a softmax."""
import torch
import torchvision
from torch import Tensor

from .precision import computable


def _focal_loss(input: Tensor, target: Tensor, weight: Tensor, gamma: float,
                alpha: float) -> Tensor:
    classes = torch.arange(input.size(1), device=input.device)
    one_hot = (target[:, None] == classes).to(input.dtype)  # (N, C)
    loss = torchvision.ops.sigmoid_focal_loss(input, one_hot, alpha, gamma)
    if weight.numel():
        # Background, class C, has no weight in the list: its weight is 1.
        padded = torch.cat([weight, weight.new_ones(1)])
        loss = loss * padded[target.clamp(max=len(weight))][:, None]
    return loss


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor,
                               output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Compute the sigmoid focal loss of every class, into ``output``.

    Args:
        input (Tensor): (N, C) logits.
        target (Tensor): (N, ) int64 classes; C is background.
        weight (Tensor): (C, ) weights of the classes, or empty.
        output (Tensor): (N, C), written.
        gamma (float): Focusing exponent.
        alpha (float): Weight of the positive term; 1 - alpha is that of the
            negative term.
    """
    output.copy_(
        _focal_loss(computable(input), target, weight, gamma, alpha))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor,
                                grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Compute the derivative of every loss by its logit, into ``grad_input``.

    Args:
        input (Tensor): As in the forward.
        target (Tensor): As in the forward.
        weight (Tensor): As in the forward.
        grad_input (Tensor): (N, C), written.
        gamma (float): As in the forward.
        alpha (float): As in the forward.
    """
    with torch.enable_grad():
        logits = computable(input).detach().requires_grad_()
        loss = _focal_loss(logits, target, weight, gamma, alpha)
        # Each loss depends on its own logit alone.
        grad_input.copy_(torch.autograd.grad(loss.sum(), logits)[0])


def _of_target(softmax: Tensor, target: Tensor,
               weight: Tensor) -> tuple:
    """Return probability and weight of each sample's class.

    The weight is 0 for a negative class.
    """
    known = target >= 0
    classes = target.clamp(min=0)
    p = softmax.gather(1, classes[:, None]).squeeze(1)
    weights = weight[classes] if weight.numel() else torch.ones_like(p)
    return p, weights * known


def softmax_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor,
                               output: Tensor, gamma: float,
                               alpha: float) -> None:
    """Compute the softmax focal loss of the target classes, into ``output``.

    Args:
        input (Tensor): (N, C) probabilities.
        target (Tensor): (N, ) int64 classes; a negative one has no loss.
        weight (Tensor): (C, ) weights of the classes, or empty.
        output (Tensor): (N, ), written.
        gamma (float): Focusing exponent.
        alpha (float): Factor of the loss.
    """
    p, weights = _of_target(input, target, weight)
    log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
    output.copy_(-alpha * (1 - p)**gamma * log_p * weights)


def softmax_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor,
                                buff: Tensor, grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Compute the derivatives of every loss by its logits, into ``grad_input``.

    Args:
        input (Tensor): As in the forward.
        target (Tensor): As in the forward.
        weight (Tensor): As in the forward.
        buff (Tensor): Not used here; mmcv's signature has it.
        grad_input (Tensor): (N, C), written.
        gamma (float): As in the forward.
        alpha (float): As in the forward.
    """
    p, weights = _of_target(input, target, weight)
    log_p = p.clamp(min=torch.finfo(p.dtype).tiny).log()
    # Derivative of the loss by p, times p, for the chain rule of softmax.
    slope = alpha * weights * (
        gamma * (1 - p)**(gamma - 1) * p * log_p - (1 - p)**gamma)
    one_hot = torch.zeros_like(input).scatter_(
        1, target.clamp(min=0)[:, None], 1)
    grad_input.copy_(slope[:, None] * (one_hot - input))
