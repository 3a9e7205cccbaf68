"""Centred kernel alignment (CKA) of features, and the regulariser CKA-SR.

CKA-SR is from "Learning Sparse Neural Networks with Identity Layers" (arXiv
2307.07389). Every feature is turned into a vector of unit length, its centred
and flattened Gram matrix; the CKA of two features is the product of their
vectors. So F features cost F Gram matrices, N x N each, and one matrix product
for all pairs.
"""
from math import ceil, prod
from typing import Sequence, Tuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ..errors import UsageError

# With fewer samples the unbiased HSIC divides by 0, and the biased CKA of any
# two features is 1.
MIN_SAMPLES = {True: 4, False: 3}


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = True) -> Tensor:
    """Compute the linear CKA of two features of the same samples.

    HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)) with K = X X' and L = Y Y'. It is
    invariant to the scale of either feature and to an offset.

    Args:
        x (Tensor): (N, ...), a feature of N samples.
        y (Tensor): (N, ...), another one; its other dimensions may differ.
        unbiased (bool): Whether to use the unbiased estimator HSIC_1, with
            which CKA lies in [-1, 1], or the biased one, with which it lies in
            [0, 1]. Defaults to True.

    Returns:
        Tensor: Scalar float64. It is 0, without a gradient, if one of the
        features has collapsed, that is if its samples differ by rounding only.
        CKA is undefined there, and its gradient is infinite nearby (the
        released code divides by it nevertheless). NaN if a feature has NaN or
        infinite elements.

    Raises:
        UsageError: On fewer than 4 samples (3 if biased), or on different
            numbers of samples.
    """
    return cka_matrix([x, y], unbiased)[0, 1]


def cka_matrix(features: Sequence[Tensor], unbiased: bool = True) -> Tensor:
    """Compute the linear CKA of all pairs of features of the same samples.

    Args:
        features (Sequence[Tensor]): F features (N, ...).
        unbiased (bool): Estimator, as in :func:`linear_cka`. Defaults to True.

    Returns:
        Tensor: (F, F) float64, symmetric, 1 on the diagonal; 0 in the row and
        the column of a collapsed feature.

    Raises:
        UsageError: As in :func:`linear_cka`, or if there are no features.
    """
    _check(features, unbiased)
    with _without_autocast(features):
        units = torch.stack([_unit(x, unbiased) for x in features])  # (F, N N)
        return units @ units.T  # (F, F)


def _check(features: Sequence[Tensor], unbiased: bool) -> None:
    counts = {len(feature) for feature in features}
    if len(counts) != 1:
        raise UsageError(f'features of {sorted(counts)} samples: expected at '
                         'least one feature, all of the same samples')
    least = MIN_SAMPLES[unbiased]
    if min(counts) < least:
        kind = 'unbiased' if unbiased else 'biased'
        raise UsageError(
            f'CKA of {min(counts)} samples: the {kind} estimator needs at '
            f'least {least}; give it more samples of a batch')


def _without_autocast(features: Sequence[Tensor]) -> torch.autocast:
    return torch.autocast(features[0].device.type, enabled=False)


def hsic_matrix(features: Sequence[Tensor], unbiased: bool = True) -> Tensor:
    """Compute the unscaled HSIC of all pairs of features of the same samples.

    Summed over batches and divided by the roots of its diagonal, this gives
    minibatch CKA (Nguyen et al., arXiv 2010.15327, equation 3). That averages
    HSIC_1 instead of CKA, since a mean of ratios over few samples is biased.

    Args:
        features (Sequence[Tensor]): F features (N, ...).
        unbiased (bool): Estimator, as in :func:`linear_cka`. Defaults to True.

    Returns:
        Tensor: (F, F) float64, without a gradient: N (N - 3) HSIC_1, or
        (N - 1)^2 HSIC_0; 0 in the row and the column of a collapsed feature.

    Raises:
        UsageError: As in :func:`cka_matrix`.
    """
    _check(features, unbiased)
    with torch.no_grad(), _without_autocast(features):
        grams = torch.stack([(gram * ~collapsed).flatten() for gram, collapsed
                             in (_centred(x, unbiased) for x in features)])
        return grams @ grams.T  # (F, F)


def _unit(x: Tensor, unbiased: bool) -> Tensor:
    """Return the centred Gram matrix of a feature as a unit vector (N N, )."""
    gram, collapsed = _centred(x, unbiased)
    squares = gram.square().sum()
    # Also before rsqrt, since its infinite gradient times 0 would be NaN.
    squares = torch.where(collapsed, torch.ones_like(squares), squares)
    unit = gram * squares.rsqrt()
    return torch.where(collapsed, torch.zeros_like(unit), unit).flatten()


def _centred(x: Tensor, unbiased: bool) -> Tuple[Tensor, Tensor]:
    """Return a feature's centred Gram matrix (N, N), and if it collapsed."""
    rounding = torch.finfo(x.dtype).eps
    n = len(x)
    x = x.flatten(1).double()  # (N, D)
    size = x.detach().norm()
    # HSIC ignores an offset; removing it preserves small differences.
    x = x - x.mean(0)
    gram = x @ x.T  # (N, N)
    spread = gram.detach().trace().sqrt()
    if unbiased:
        # U-centring: then <K, L> is N (N - 3) HSIC_1(K, L).
        off_diagonal = 1 - torch.eye(n, dtype=gram.dtype, device=gram.device)
        gram = gram * off_diagonal
        sums = gram.sum(0) / (n - 2)  # (N, )
        gram = gram - sums - sums[:, None] + sums.sum() / (n - 1)
        gram = gram * off_diagonal
    # Only rounding is left if the samples do not differ, or if a single one
    # does, which the unbiased estimator cannot see. Unrelated samples in D
    # dimensions leave 1 / sqrt(D) of the spread, far above 1e-7.
    collapsed = (spread <= rounding * size) | (
        gram.detach().norm() <= 1e-7 * spread**2)
    return gram, collapsed


def cka_sr(stages: Sequence[Sequence[Tensor]]) -> Tensor:
    """Compute the regulariser of CKA-SR.

    It is the sum over stages of the unbiased CKA of all ordered pairs of the
    stage's features, including each feature with itself (appendix, equation
    11, and the released code). The latter is the constant 1, so the gradient is
    that of twice the sum over i < j. The sum is not divided by the number of
    pairs, so a good weight of the loss depends on depth.

    Args:
        stages (Sequence[Sequence[Tensor]]): Features (N, ...) of the blocks of
            each stage.

    Returns:
        Tensor: Scalar float64.

    Raises:
        UsageError: As in :func:`cka_matrix`.
    """
    return torch.stack([cka_matrix(stage).sum() for stage in stages]).sum()


def aug_cka_sr(stages: Sequence[Sequence[Tensor]]) -> Tensor:
    """Compute the regulariser of AugCKA-SR.

    It is the mean of the biased CKA over all pairs i < j of features of the
    whole network (appendix, equation 14). The released code computes it in
    float32; this uses float64.

    Args:
        stages (Sequence[Sequence[Tensor]]): Features, as in :func:`cka_sr`; at
            least two in total.

    Returns:
        Tensor: Scalar float64.

    Raises:
        UsageError: As in :func:`cka_matrix`.
    """
    features = [feature for stage in stages for feature in stage]
    matrix = cka_matrix(features, unbiased=False)
    i, j = torch.triu_indices(*matrix.shape, offset=1, device=matrix.device)
    return matrix[i, j].mean()


def pooled(x: Tensor, max_features: int) -> Tensor:
    """Average-pool a feature so that no sample exceeds a number of elements.

    Args:
        x (Tensor): (N, C, H, W), or tokens (N, L, C). Features of another form
            are returned unchanged.
        max_features (int): Largest number of elements per sample.

    Returns:
        Tensor: ``x`` itself if it fits; otherwise pooled to H and W, or L,
        divided by the smallest integer that makes it fit, rounded up.
    """
    if x.dim() not in (3, 4):
        return x
    channels, *sides = x.shape[1:] if x.dim() == 4 else (x.shape[2], x.shape[1])
    divisor, size = 1, sides
    while channels * prod(size) > max_features and divisor < max(sides):
        divisor += 1
        size = [ceil(side / divisor) for side in sides]
    if divisor == 1:
        return x
    # For tokens (N, L, C), it takes N for channels and pools over (L, C).
    return adaptive_avg_pool2d(x, (*size, None)[:2])
