"""Hosts that run their blocks one by one: EfficientNet, MobileNetV3 and VGG.

They have no module for each stage, or modules in which the width changes. Here
a stage is a run of neighbouring blocks that return maps of one width and size.
"""
from typing import Iterator, List, NamedTuple, Tuple

from torch import Tensor, nn

from .detached import DetachedStage
from .fresh_norms import FreshNormsMixin
from .placed import PlacedAttentionMixin
from .sequences import last_channels
from .stages import AttentionLayerInfo, StageSpec


class Part(NamedTuple):
    """One of the modules that a host runs one after the other.

    Attributes:
        name (str): Name of the module in the backbone.
        place (int): Index of the host's layer that it belongs to, which
            ``out_indices`` and ``frozen_stages`` refer to.
        is_block (bool): Whether attention may follow it.
        returned (bool): Whether its output is the output of that layer.
            Defaults to True.
    """
    name: str
    place: int
    is_block: bool
    returned: bool = True


class RunsMixin(FreshNormsMixin, PlacedAttentionMixin):
    """Adds layer attention to runs of blocks, ``stage1``, ``stage2``, ...

    Attributes:
        frozen_from (int): Value of ``frozen_stages`` that freezes place 0 only.
    """
    kinds = {'base': DetachedStage}
    frozen_from = 1

    def parts(self) -> Iterator[Part]:
        """Yield the modules that the host runs, in order."""
        raise NotImplementedError(
            f'{type(self).__name__} must say what it runs')

    def _runs(self) -> List[List[Part]]:
        """Split the host's modules into runs of blocks and single modules."""
        runs: List[List[Part]] = []
        width = None  # of the current run
        for part in self.parts():
            module = self.get_submodule(part.name)
            new = last_channels(module) if part.is_block else None
            if new is None or new != width or _strides(module):
                runs.append([])
            runs[-1].append(part)
            width = new
        return runs

    def stage_specs(self) -> List[StageSpec]:
        """Describe every run of blocks."""
        runs = [run for run in self._runs() if run[0].is_block]
        return [
            StageSpec(f'stage{number}',
                      last_channels(self.get_submodule(run[0].name)),
                      self._attention_norm_cfg, [0.] * len(run),
                      getattr(self, 'with_cp', False))
            for number, run in enumerate(runs, start=1)
        ]

    def add_attention(self) -> None:
        """Add stages beside the host's blocks, which keep their place."""
        specs = self.stage_specs()
        self.fit_head_dim([spec.channels for spec in specs])
        self._attention_paths = [spec.name for spec in specs]
        self._plan: List[Tuple[str, List[Part]]] = []
        following = iter(specs)
        for run in self._runs():
            spec = next(following) if run[0].is_block else None
            self._plan.append((spec.name if spec else '', run))
            if spec:
                stage = self.attention_kind.build(
                    nn.Sequential(), spec, **self.attention_options)
                stage.belong(self, [part.name for part in run])
                self.add_module(spec.name, stage)

    def forward(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Run the host's modules in its order, and attention behind blocks.

        Args:
            x (Tensor): (B, 3, H, W), normalised images.

        Returns:
            Tuple[Tensor, ...]: (B, C, H, W), one for each entry of ``out_indices``.
        """
        if self.attention_kind is None:
            return super().forward(x)
        outs = []
        for name, run in self._plan:
            modules = [self.get_submodule(part.name) for part in run]
            seen = (getattr(self, name)(x, blocks=modules) if name
                    else [modules[0](x)])
            outs += [y for part, y in zip(run, seen)
                     if part.returned and part.place in self.out_indices]
            x = seen[-1]
        return (*outs, *self.behind(x))

    def behind(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Return what the host returns besides maps, from the last map."""
        return ()

    def is_frozen(self, layer: AttentionLayerInfo) -> bool:
        """Return whether ``frozen_stages`` freezes a layer and its block."""
        run = dict(self._plan)[layer.stage_name]
        return run[layer.index].place <= self.frozen_stages - self.frozen_from

    def _freeze_stages(self) -> None:
        """Freeze blocks as the host does, and their attention with them."""
        super()._freeze_stages()
        for layer in self.attention_layers:
            if self.is_frozen(layer):
                layer.module.eval().requires_grad_(False)


class EfficientNetAttentionMixin(RunsMixin):
    """Adds layer attention to an EfficientNet."""
    norm_cfg_by_default = dict(type='BN', eps=1e-3)

    def parts(self) -> Iterator[Part]:
        """Yield the first and last convolution, and blocks between them."""
        for place, layer in enumerate(self.layers):
            name = f'layers.{place}'
            if not isinstance(layer, nn.Sequential):
                yield Part(name, place, False)
                continue
            for i in range(len(layer)):
                yield Part(f'{name}.{i}', place, True, i == len(layer) - 1)


class MobileNetV3AttentionMixin(RunsMixin):
    """Adds layer attention to a MobileNetV3."""
    norm_cfg_by_default = dict(type='BN', eps=0.001, momentum=0.01)
    frozen_from = 0

    def parts(self) -> Iterator[Part]:
        """Yield ``layer0``, ``layer1``, ...: a convolution at either end."""
        for place, name in enumerate(self.layers):
            yield Part(name, place, 0 < place < len(self.layers) - 1)


class VGGAttentionMixin(RunsMixin):
    """Adds layer attention to a VGG, behind each convolution."""
    norm_cfg_by_default = dict(type='LN')

    def parts(self) -> Iterator[Part]:
        """Yield convolutions, which count as blocks, and poolings."""
        for place, (start, end) in enumerate(self.range_sub_modules):
            for i in range(start, end):
                yield Part(f'features.{i}', place,
                           not isinstance(self.features[i], nn.MaxPool2d),
                           i == end - 1)

    def behind(self, x: Tensor) -> Tuple[Tensor, ...]:
        """Return class scores if the host has a classifier of its own."""
        return (self.classifier(x.flatten(1)), ) if self.num_classes > 0 else ()


def _strides(module: nn.Module) -> bool:
    """Return whether a module shrinks its map."""
    return any(max(part.stride) > 1 for part in module.modules()
               if isinstance(part, nn.Conv2d))
