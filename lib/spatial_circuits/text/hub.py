"""Hub: models of transformers and diffusers by folder or hub name, without long waits offline."""
from pathlib import Path
from typing import Any


def read_pretrained(cls: Any, name: str | Path, **options) -> Any:
    """From a folder, the hub's cache or the hub, in that order; safetensors only.

    Raises OSError, within seconds, for what none of them has, is damaged, or lacks weights.
    """
    from huggingface_hub import HfApi, constants
    model = "Tokenizer" not in cls.__name__
    if model:
        options |= {"use_safetensors": True, "output_loading_info": True}
    try:
        try:
            made = cls.from_pretrained(name, local_files_only=True, **options)
        except OSError:
            if Path(name).exists() or constants.HF_HUB_OFFLINE:
                raise
            HfApi().model_info(str(name), timeout=2)    # the loader would try for half a minute
            made = cls.from_pretrained(name, **options)
    except Exception as error:                          # a damaged folder raises whatever it likes
        raise OSError(f"{name} cannot be read: {' '.join(str(error).split())[:300]}") from error
    if model and made[1]["missing_keys"]:
        raise OSError(f"{name} lacks the weights {sorted(made[1]['missing_keys'])[0]} (and others)")
    return made[0] if model else made
