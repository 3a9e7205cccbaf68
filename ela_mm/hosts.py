"""Registers what each installed host can use."""
from importlib import import_module
from importlib.util import find_spec

# Modules to import for their registrations, by host.
HOSTS = dict(
    mmdet=('ela_mm.models.backbones.mmdet', 'ela_mm.datasets.mmdet'),
    mmpretrain=('ela_mm.models.backbones.mmpretrain',
                'ela_mm.datasets.mmpretrain'))


def register() -> list:
    """Register backbones and datasets with every installed host.

    Returns:
        list: Names of the hosts that are installed.
    """
    installed = [host for host in HOSTS if find_spec(host) is not None]
    for host in installed:
        for module in HOSTS[host]:
            import_module(module)
    return installed
