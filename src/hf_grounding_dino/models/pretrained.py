"""Loading, saving and initialisation of every detector."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..layers.backbone import ConvEncoder
from .configuration import own_config
from .registry import class_for


class DetectorPreTrainedModel(PreTrainedModel):
    """Constructed from a configuration of any model type of its family, it is of the class of that type.

    A module's own parameters are initialised by its `initialize_parameters`, if it has that.
    """

    base_model_prefix = "model"
    main_input_name = "pixel_values"
    input_modalities = ["image", "text"]
    supports_gradient_checkpointing = True
    _supports_sdpa = True

    def __new__(cls, config: PretrainedConfig | None = None, *args: Any, **kwargs: Any) -> Self:
        """Make the class of the configuration's model type: its name is written to disk."""
        own: Any = cls if config is None else class_for(cls, config.model_type)
        made: Self = object.__new__(own) if issubclass(own, cls) else own(config, *args, **kwargs)
        return made

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(own_config(config, self.config_class.__module__))

    def gradient_checkpointing_enable(
        self, gradient_checkpointing_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """As in transformers.

        Raises:
            ValueError: `use_reentrant=True`, under which the contexts of the layers would lose their gradients.
        """
        if (gradient_checkpointing_kwargs or {}).get("use_reentrant"):
            raise ValueError("`use_reentrant=True` is not supported for gradient checkpointing; leave it out.")
        super().gradient_checkpointing_enable(gradient_checkpointing_kwargs, **kwargs)

    def enable_input_require_grads(self) -> None:
        """As in transformers, for the words alone: what embeds an image gives more than a tensor."""
        embeddings = self.get_input_embeddings()
        self._require_grads_hook = embeddings.register_forward_hook(lambda *call: call[-1].requires_grad_(True))
        self._require_grads_hooks = [self._require_grads_hook]

    def tie_weights(self, missing_keys: set[str] | None = None, recompute_mapping: bool = True) -> None:
        """As in transformers; afterwards no parameter that the network does not use is trained."""
        super().tie_weights(missing_keys, recompute_mapping)
        for module in self.modules():
            if isinstance(module, ConvEncoder):
                module.freeze_unused()

    @classmethod
    def is_custom_code(cls) -> bool:
        """Initialise every module, as for the models of transformers: the parameters keep what was loaded."""
        return False

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        initialize = getattr(module, "initialize_parameters", None)
        if initialize is not None:
            initialize()
