"""The text encoder of a diffusers pipeline behind the protocol of all encoders."""
import inspect
from typing import Any

import torch
from diffusers.utils import is_bs4_available, is_ftfy_available

from .batch import TextBatch
from .parser import spoken
from .words import token_spans


class PipelineEncoder:
    """Tokenizer and T5 of a PixArt pipeline, through the pipeline's own `encode_prompt`: text is
    cleaned, padded and cut as it does when it is called (120 tokens, 300 in PixArt-Sigma)."""

    def __init__(self, pipe: Any):
        self.pipe, self.dim = pipe, int(pipe.text_encoder.config.d_model)
        call = inspect.signature(pipe.__call__).parameters
        self.max_tokens: int = call["max_sequence_length"].default
        can = is_bs4_available() and is_ftfy_available()    # without, a pipeline warns and does not
        self.options = {"clean_caption": can and call["clean_caption"].default,
                        "max_sequence_length": self.max_tokens}

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextBatch:
        """T is `max_tokens` for every prompt. Raises ValueError for a prompt that has more."""
        pipe = self.pipe
        texts = pipe._text_preprocessing(list(prompts), self.options["clean_caption"])
        ids = [pipe.tokenizer(text)["input_ids"] for text in texts]
        for prompt, row in zip(prompts, ids):
            if len(row) > self.max_tokens:
                raise ValueError(f"prompt {prompt!r} has {len(row)} tokens; "
                                 f"at most {self.max_tokens} fit")
        parts = [pipe.encode_prompt(list(prompts[i:i + 16]), False, **self.options)
                 for i in range(0, len(prompts), 16)]
        mask = torch.cat([part[1] for part in parts]).bool().cpu()                      # [B, T]
        states = torch.cat([part[0].float().cpu() for part in parts])
        pads = self.max_tokens - torch.tensor([len(row) for row in ids])
        tokens = [[*pipe.tokenizer.convert_ids_to_tokens(row), *[pipe.tokenizer.pad_token] * n]
                  for row, n in zip(ids, pads.tolist())]
        roles = [_roles(prompt, own, m) for prompt, own, m in zip(prompts, tokens, mask.tolist())]
        return TextBatch(states * mask[..., None], mask, tokens, roles)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of the T5."""
        return dict(self.pipe.text_encoder.named_parameters())


def _roles(prompt: str, tokens: list[str], mask: list[bool]) -> list[str]:
    """The role of each token; the last attended one that is no text is the end."""
    said, spans = spoken(prompt), token_spans(prompt, tokens)
    roles = [said.role(*span) if seen else "pad" for span, seen in zip(spans, mask)]
    last = sum(mask) - 1
    if last >= 0 and spans[last][0] == spans[last][1]:
        roles[last] = "end"
    return roles
