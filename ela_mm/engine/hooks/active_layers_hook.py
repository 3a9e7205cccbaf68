"""Logs which attention layers are active in a network under test."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from ...models.backbones.layer_attention_mixin import ela_backbones


@HOOKS.register_module()
class ActiveLayersHook(Hook):
    """Logs how many attention layers are active, once the weights are loaded.

    ``tools/test.py`` registers it.
    """

    def before_test(self, runner) -> None:
        """Log a line for each backbone with layer attention."""
        for name, backbone in ela_backbones(runner.model).items():
            layers = backbone.attention_layers
            skipped = [layer.name for layer in layers if not layer.active]
            if layers:
                runner.logger.info(
                    f'{len(layers) - len(skipped)} of {len(layers)} attention '
                    f'layers active in {name}' +
                    (f'; skipped: {", ".join(skipped)}' if skipped else ''))
