"""Layer attention as Triton kernels, for GPUs.

A map (B, C, H, W) is B C planes of H W numbers, one after the other. A plane
belongs to one head, whose attention weights it is summed with, and to one channel,
whose norm it is normalised with. Most kernels take a tile of planes and walk along
them, so that one pass forms a sum, applies the norm, and measures the result.
Arithmetic is in ``ACC``: float32, or float64 for maps in float64.

:mod:`ela_mm.models.layers.bank.gpu` launches the kernels;
:mod:`~ela_mm.models.layers.bank.layer` computes the same in PyTorch's operations.
Importing these modules requires Triton 3.
"""
