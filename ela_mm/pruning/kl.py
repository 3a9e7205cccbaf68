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
#: What a criterion may rank layers by, and the value of ``Parts`` that it is.
REDUNDANCY = dict(paper='kl', excess='excess', conditional='conditional')
# In words.
MEASURES = dict(
    paper='KL divergence',
    excess='excess of the KL divergence over that of uniform weights',
    conditional='conditional part of the KL divergence')


def check_redundancy(name: str) -> str:
    """Return the name of a measure; raise a UsageError if it is none."""
    if not isinstance(name, str) or name not in REDUNDANCY:
        raise UsageError(f'redundancy={name!r}: expected one of '
                         f'{tuple(REDUNDANCY)}')
    return name


class Parts(NamedTuple):
    """How redundant a layer is, by each measure, means over batch and heads.

    With P (n, ) the weights of the active layer before, P' (m, ) its own, and
    s the share of P' on what that one has not seen, equation 11 splits::

        D(P || P') = KL(P || P'_1..n / (1 - s)) - log(1 - s)

    into how differently the two attend to what both see, and how much the
    later one attends to what is new: itself, and layers between the two that
    only later ones see. With uniform weights the first is 0 and the second
    log(m / n).

    Attributes:
        kl (Tensor): D, equation 11, nats.
        excess (Tensor): D less that of uniform weights, log(m / n), nats;
            negative where a layer attends to what is new less than uniform
            weights would.
        conditional (Tensor): The first part alone, nats, >= 0; 0 in any case
            where n is 1.
        own_share (Tensor): s, 0 to 1.
    """
    kl: Tensor
    excess: Tensor
    conditional: Tensor
    own_share: Tensor


def redundancy_parts(prev: Tensor, curr: Tensor, eps: float = EPS) -> Parts:
    """Measure a layer's redundancy, and split it, in one pass over the weights.

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
    # Not 1 - s: where all weight is on what is new, that leaves only rounding.
    rest = p_next[..., :before].sum(-1)  # (B, h)
    first = terms[..., :before].sum(-1) + rest.log()  # (B, h)
    if before == 1:  # one layer alone has all of the weight, but for rounding
        first = torch.zeros_like(first)
    return terms.sum(-1).mean(), first.mean()


def adjacent_kl(prev: Tensor, curr: Tensor, eps: float = EPS) -> Tensor:
    """KL divergence between the attention weights of two neighbours.

    D(P || P') = sum_i P_i log(P_i / P'_i), where P, which knows fewer layers,
    is padded with eps. It belongs to the later layer: a small value says that
    its weights repeat those of the layer before.

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
    """KL divergence of two neighbours that weigh all layers alike.

    Equation 11 compares distributions of different length: it is
    log(now / before), 0.693, 0.405, 0.288 and so on, by position alone.

    Args:
        before (int): n, layers in memory when the earlier one attends.
        now (int): m, when the later one does.

    Returns:
        float: Nats.
    """
    return math.log(now / before)
