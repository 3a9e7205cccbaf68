"""Registers what each installed host can use."""
from importlib import import_module
from importlib.util import find_spec

# Modules to import for their registrations, by host.
HOSTS = dict(
    mmdet=('ela_mm.hosts.mmdet', 'ela_mm.datasets.mmdet'),
    mmpretrain=('ela_mm.hosts.mmpretrain',
                'ela_mm.datasets.mmpretrain'))


def register() -> None:
    """Register backbones and datasets with every installed host."""
    for host, modules in HOSTS.items():
        if find_spec(host) is not None:
            for module in modules:
                import_module(module)
