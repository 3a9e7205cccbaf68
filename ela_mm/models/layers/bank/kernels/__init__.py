"""Layer attention as Triton kernels, for GPUs.

A map (B, C, H, W) is stored as B C planes of H W numbers, one after the other. A
plane belongs to one head, which has the weights for the sum, and to one channel,
which has the parameters of the norm. Most kernels take a tile of planes and walk
along them, so that one pass forms a sum, applies the norm, and measures the
result. Arithmetic is in ``ACC``: float32, or float64 for maps in float64.

:mod:`ela_mm.models.layers.bank.gpu` launches the kernels;
:mod:`~ela_mm.models.layers.bank.layer` computes the same in PyTorch's operations.
Importing these modules requires Triton 3.
"""
