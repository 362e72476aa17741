"""Configurations as the classes of this package, whichever model type a repo or an object is of."""

from __future__ import annotations

import os
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import PretrainedConfig

from .registry import find, load


class FamilyConfig:
    """What the configurations of a family share: each loads a repo of any of the family's model types as its class."""

    @classmethod
    def from_pretrained(
        cls: Any,
        pretrained_model_name_or_path: str | os.PathLike[str],
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        revision: str = "main",
        **kwargs: Any,
    ) -> Any:
        """Load the configuration of a repo as the class of its own model type, whichever of the family's that is.

        Raises:
            ValueError: a repo of another family, named, or a config.json that is none or says what cannot be built.
        """
        options: dict[str, Any] = {
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
            "revision": revision,
        }
        return load_config(pretrained_model_name_or_path, cls.__module__, **options, **kwargs)


def load_config(repo: str | os.PathLike[str], family: str | None = None, /, **options: Any) -> Any:
    """The configuration of a repo, as the class of its own model type.

    Args:
        repo: a folder, or a repo on the Hub.
        family: see `registry.find`; None: any.
        **options: of `from_pretrained`.

    Raises:
        ValueError: as `FamilyConfig.from_pretrained`.
    """
    no_object = f"The config.json of {repo} is no JSON object."
    try:
        values, _ = PretrainedConfig.get_config_dict(repo, **options)
    except TypeError as error:  # transformers of the lowest version writes into whatever it has read
        raise ValueError(no_object) from error
    if not isinstance(values, dict):
        raise ValueError(no_object)
    own: Any = load(find(values.get("model_type"), family).config)
    try:
        return super(FamilyConfig, own).from_pretrained(repo, **options)
    except (StrictDataclassError, ArithmeticError, AttributeError, LookupError, TypeError) as error:
        reason = " ".join(str(error.__cause__ or error).split())
        raise ValueError(f"The config.json of {repo}: {reason}") from error


def own_config(config: PretrainedConfig, family: str | None = None) -> Any:
    """`config` as this package's class of the same model type; itself where it is one already.

    Raises:
        ValueError: a configuration of another family, named.
    """
    own = load(find(config.model_type, family).config)
    if isinstance(config, own):
        return config
    converted = own.from_dict(config.to_dict())
    converted._attn_implementation = config._attn_implementation
    return converted
