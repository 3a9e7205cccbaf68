"""ELA's backbones, one file a host.

In Python they are ``ela_mm.models.backbones.mmdet.ELAResNet`` and
``ela_mm.models.backbones.mmpretrain.ELAResNet``: the same network under the
same name, each on its own host's blocks.
"""
