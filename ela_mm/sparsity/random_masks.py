"""Fixed random masks, with which the authors of CKA-SR train."""
from typing import Dict, Sequence

import torch

from .scheme import Scheme, Tensors, top_mask


def uniform_densities(shapes: Dict[str, Sequence[int]],
                      density: float) -> Dict[str, float]:
    """Give every layer the same density.

    Args:
        shapes (Dict[str, Sequence[int]]): Shape of each weight.
        density (float): Density, in (0, 1].

    Returns:
        Dict[str, float]: Density of each layer.
    """
    return dict.fromkeys(shapes, density)


def erk_densities(shapes: Dict[str, Sequence[int]],
                  density: float) -> Dict[str, float]:
    """Distribute weights over layers by Erdos-Renyi-Kernel (ERK).

    The number of weights that exist in a layer is proportional to the sum of
    its weight's dimensions, n_out + n_in + k_h + k_w (RigL, arXiv 1911.11134,
    section 3), so that wide layers become the sparsest. Layers whose number
    would exceed their size are dense, and the others share the rest.

    Args:
        shapes (Dict[str, Sequence[int]]): Shape of each weight; for a grouped
            convolution as it is stored.
        density (float): Density of all layers together, in (0, 1].

    Returns:
        Dict[str, float]: Density of each layer, in (0, 1].
    """
    sizes = {name: torch.Size(s).numel() for name, s in shapes.items()}
    total = density * sum(sizes.values())
    shares = {name: sum(shape) for name, shape in shapes.items()}
    densities = {}
    while shares:
        left = total - sum(sizes[name] for name in densities)
        scale = left / sum(shares.values())
        dense = [n for n, share in shares.items() if scale * share >= sizes[n]]
        if not dense:
            break
        for name in dense:
            densities[name] = 1.
            del shares[name]
    densities.update((n, scale * s / sizes[n]) for n, s in shares.items())
    return {name: densities[name] for name in shapes}


class _Random(Scheme):
    """Random masks, with the densities of a subclass."""

    @staticmethod
    def densities(shapes, density):
        raise NotImplementedError

    def start(self, weights: Tensors, density: float,
              generator: torch.Generator, gradients: Tensors) -> Tensors:
        """Draw masks; see :meth:`~ela_mm.sparsity.scheme.Scheme.start`.

        Each layer keeps exactly the number of weights that its density says,
        rounded. (The released code draws each weight independently.) This is
        this project's choice: seeds then differ in positions alone.
        """
        shapes = {name: weight.shape for name, weight in weights.items()}
        masks = {}
        for name, share in self.densities(shapes, density).items():
            scores = torch.rand(shapes[name], generator=generator)
            count = max(round(share * scores.numel()), 1)
            masks[name] = top_mask(scores, count).to(weights[name].device)
        return masks


class Uniform(_Random):
    """Fixed random masks, equally dense in all layers."""
    densities = staticmethod(uniform_densities)


class ERK(_Random):
    """Fixed random masks, with the densities of Erdos-Renyi-Kernel."""
    densities = staticmethod(erk_densities)
