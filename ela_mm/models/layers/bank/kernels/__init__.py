"""Layer attention's work as kernels of Triton, for GPUs.

A map (B, C, H, W) is B C planes of H W numbers, plane after plane, and a plane
belongs to one head: what retrieves reads weights by head, and what follows reads
the norm's by channel. Most kernels take a tile of planes and walk along them, so
that a sum, what follows it, and what is to be known of the result take one pass
together. Arithmetic is in ``ACC``: float32, or float64 for maps in float64.

:mod:`ela_mm.models.layers.bank.gpu` launches them, and
:mod:`~ela_mm.models.layers.bank.layer` says the same in the framework's
operations. Importing these modules takes Triton 3.
"""
