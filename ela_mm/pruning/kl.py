"""Redundancy of neighbouring attention layers (equation 11) and its parts."""
import math
from typing import NamedTuple, Tuple

import torch
from torch import Tensor

from ..errors import UsageError

# Padding value and lower clamp of weights. The paper lets it go to 0; 1e-8,
# this project's choice, bounds D at -log(eps) = 18.4 nats.
EPS = 1e-8
CEILING = -math.log(EPS)
#: Measures that a criterion may rank layers by, each with its field of
#: :class:`Parts`.
REDUNDANCY = dict(paper='kl', excess='excess', conditional='conditional')
# What each measure is called in reports.
MEASURES = dict(
    paper='KL divergence',
    excess='excess of the KL divergence over that of uniform weights',
    conditional='conditional part of the KL divergence')


def check_redundancy(name: str) -> str:
    """Return ``name``; raise a UsageError if no measure is called that."""
    if not isinstance(name, str) or name not in REDUNDANCY:
        raise UsageError(f'redundancy={name!r}: expected one of '
                         f'{tuple(REDUNDANCY)}')
    return name


class Parts(NamedTuple):
    """A layer's redundancy by each measure, averaged over batch and heads.

    Let P (n, ) be the weights of the previous active layer, P' (m, ) those of
    this layer, and s the share of P' on layers that the previous one has not
    seen. Equation 11 then splits into two parts::

        D(P || P') = KL(P || P'_1..n / (1 - s)) - log(1 - s)

    The first says how differently the two attend to the layers that both see.
    The second says how much the later one attends to what is new: itself, and
    layers in between that are visible to later layers only. With uniform
    weights the first part is 0 and the second is log(m / n).

    Attributes:
        kl (Tensor): D, equation 11, nats.
        excess (Tensor): D minus the D of uniform weights, log(m / n), nats;
            negative where a layer attends less to what is new than uniform
            weights would.
        conditional (Tensor): The first part alone, nats, >= 0; always 0 if n
            is 1.
        own_share (Tensor): s, in [0, 1].
    """
    kl: Tensor
    excess: Tensor
    conditional: Tensor
    own_share: Tensor


def redundancy_parts(prev: Tensor, curr: Tensor, eps: float = EPS) -> Parts:
    """Measure a layer's redundancy and split it into its parts, in one pass.

    Args:
        prev (Tensor): (B, h, n), P: weights of the earlier active layer.
        curr (Tensor): (B, h, m) with m >= n, P': weights of the next active
            layer of the same stage. n and m count the layers in memory.
        eps (float): Padding value and lower clamp of both. Defaults to 1e-8.

    Returns:
        Parts: Four scalars, float32, on the weights' device; they carry no
        gradient. Values slightly below 0, above -1e-6, are rounding.

    Raises:
        UsageError: If the shapes do not fit together.
    """
    kl, conditional = kl_and_first_part(prev, curr, eps)
    before, now = prev.shape[2], curr.shape[2]
    own = curr[..., before:].detach().float().sum(-1).mean()
    return Parts(kl, kl - uniform_kl(before, now), conditional, own)


@torch.no_grad()
def kl_and_first_part(prev: Tensor, curr: Tensor,
                      eps: float = EPS) -> Tuple[Tensor, Tensor]:
    """Compute equation 11 and its first part, as in :func:`redundancy_parts`.

    Returns:
        tuple: ``kl`` and ``conditional`` of :class:`Parts`.
    """
    if (prev.dim() != 3 or curr.dim() != 3 or prev.shape[:2] != curr.shape[:2]
            or prev.shape[2] > curr.shape[2]):
        raise UsageError(
            f'expected weights (B, h, n) and (B, h, m) with m >= n, got '
            f'{tuple(prev.shape)} and {tuple(curr.shape)}')
    before, now = prev.shape[2], curr.shape[2]
    p = torch.nn.functional.pad(prev.float(), (0, now - before), value=eps)
    p = p.clamp(min=eps)  # (B, h, m)
    p_next = curr.float().clamp(min=eps)  # (B, h, m)
    terms = p * (p / p_next).log()  # (B, h, m)
    # Not 1 - s: if all weight is on new layers, only rounding would be left.
    rest = p_next[..., :before].sum(-1)  # (B, h)
    first = terms[..., :before].sum(-1) + rest.log()  # (B, h)
    if before == 1:  # a single layer has all the weight; the rest is rounding
        first = torch.zeros_like(first)
    return terms.sum(-1).mean(), first.mean()


def adjacent_kl(prev: Tensor, curr: Tensor, eps: float = EPS) -> Tensor:
    """Compute the KL divergence between the weights of two neighbours (eq. 11).

    D(P || P') = sum_i P_i log(P_i / P'_i), where the shorter P is padded with
    eps. The value belongs to the later layer: if it is small, that layer
    repeats the weights of the layer before.

    Args:
        prev (Tensor): (B, h, n), P: weights of the earlier active layer.
        curr (Tensor): (B, h, m) with m >= n, P': weights of the next active
            layer of the same stage. n and m count the layers in memory.
        eps (float): Padding value and lower clamp of both. The paper lets it
            go to 0; 1e-8, this project's choice, bounds D at -log(eps) = 18.4
            nats.

    Returns:
        Tensor: Scalar float32 in nats, averaged over batch and heads; carries
        no gradient. Slightly negative values, above -1e-6, are rounding.

    Raises:
        UsageError: If the shapes do not fit together.
    """
    return kl_and_first_part(prev, curr, eps)[0]


def uniform_kl(before: int, now: int) -> float:
    """Compute the KL divergence of two neighbours with uniform weights.

    Equation 11 compares distributions of different length, so it does not
    vanish for uniform weights: it is log(now / before), that is 0.693, 0.405,
    0.288, ..., which depends on the position in the stage alone.

    Args:
        before (int): n, the number of layers in memory when the earlier layer
            attends.
        now (int): m, the number when the later layer attends.

    Returns:
        float: Nats.
    """
    return math.log(now / before)
