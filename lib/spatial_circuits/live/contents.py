"""Contents: what a page, or a recording, needs of a model beside its networks.

Text tables, mean outputs of heads, relation vectors, the solver's times, roles of heads.
"""
import base64
import zlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from diffusers import SchedulerMixin
from torch import Tensor

from ..analyses.ablation import mean_outputs
from ..analyses.factors import labels, partition, relation_effects, token_vectors
from ..analyses.heads import parse_head
from ..analyses.injection import relation_vectors
from ..claims.population import TOKEN_SITES, circuit_roles, injection_layer, read_from
from ..data import captions, detect, metrics, scenes
from ..hooks.core import BRANCHES, Heads
from ..model.pipeline import Model
from ..model.sampler import STEPS, ready_scheduler
from ..text.batch import Encoder
from ..text.contextual import PretrainedEncoder
from ..text.random_tokens import FusedTokenEncoder, RandomTokenEncoder
from ..text.wordings import FAMILIES, reworded
from .graphs import Graph, encoder_graph

MOST_STEPS = 40          # that the page offers
_COMMON = ("T3 the", "T4 the, the", "full stop")     # that a reader of a page is likely to try
_EARLY = slice(0, 3)     # steps whose relation vectors are taken: layout is set early
_SOLVER = {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++",
           "solver_order": 2, "solver_type": "midpoint", "thresholding": False,
           "final_sigmas_type": "zero"}


class Workbench:
    """A model with what its changes need, made at first use and kept.

    Relations are written into the stream before the `layer` of the first of the `readers`, the
    object heads, or into the position embedding (0) if none are known (chapter 10).
    """

    def __init__(self, model: Model, relation_heads: Heads = (),
                 prompts: Sequence[str] | None = None, steps: int = STEPS, readers: Heads = ()):
        self.model, self.relation_heads, self.steps = model, list(relation_heads), steps
        self.layer = injection_layer(readers)
        self.prompts = prompts or metrics.prompt_set("264")
        self._effects: dict[str, Tensor] = {}

    @cached_property
    def mean(self) -> Tensor:
        """Mean outputs of all heads [steps, branches, L, H, N, d], over all phrases."""
        return mean_outputs(self.model, self.prompts[:22], steps=self.steps)

    @cached_property
    def vectors(self) -> Tensor:
        """[8, N, D]: what the relation heads write for each relation, early in the run.

        Raises ValueError if no relation heads are known.
        """
        if not self.relation_heads:
            raise ValueError(f"no relation heads are known for the model {self.model.name}; write "
                             "the relation into a token instead")
        prompts, heads = self.prompts[:44], self.relation_heads
        vectors = relation_vectors(self.model, prompts, heads, steps=self.steps)
        return vectors[:, _EARLY].mean(1).cpu()

    def effects(self, role: str) -> Tensor:
        """[8, D]: the effect of each relation on the embedding of a role's token (`factors`)."""
        if role not in self._effects:
            vectors = token_vectors(self.model.encoder, self.prompts, role).cpu()
            parts = partition(vectors, labels(self.prompts, role), n_perm=0)
            self._effects[role] = relation_effects(parts)
        return self._effects[role]


def packed_array(values: Tensor | np.ndarray, half: bool = False) -> dict:
    """An array as JSON: shape, type and deflated bytes in base64; in fp16 if `half`."""
    kind = np.float16 if half else np.float32
    array = np.asarray(values.cpu() if isinstance(values, Tensor) else values).astype(kind)
    return {"shape": list(array.shape), "type": kind.__name__,
            "data": packed_bytes(array.tobytes())}


def packed_bytes(data: bytes) -> str:
    """Bytes deflated, in base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def packed_graph(graph: Graph) -> dict:
    """A network as JSON: its ONNX deflated in base64, and its weights as an array."""
    return {"onnx": packed_bytes(graph.onnx), "weights": packed_array(graph.weights, half=True)}


def language() -> dict[str, Any]:
    """The words of the captions and the constants of the detector, for parser and verdict."""
    return {"shapes": scenes.SHAPES, "colors": scenes.COLORS, "relations": scenes.RELATIONS,
            "offsets": scenes.OFFSETS.tolist(), "reverse": scenes.REVERSE.tolist(),
            "phrases": captions.PHRASES,
            "phraseRelation": captions.PHRASE_RELATION, "synonyms": captions.SYNONYMS,
            "roles": captions.ROLES, "detector": {
                "level": detect.LEVEL, "minArea": detect.MIN_AREA, "minFill": detect.MIN_FILL,
                "margin": metrics.MARGIN, "align": scenes.ALIGN}}


def schedules(scheduler: SchedulerMixin, most: int = MOST_STEPS) -> list[dict]:
    """For runs of 1 to `most` steps: the model's times [steps], and alpha and sigma [steps + 1].

    Raises ValueError for any solver but DPM-Solver++ 2M with a last sigma of 0, which is what the
    page computes.
    """
    found = {**scheduler.config, "_class_name": type(scheduler).__name__}
    for key, wanted in _SOLVER.items():
        if found.get(key) != wanted:
            raise ValueError(f"the scheduler's {key} is {found.get(key)!r}; a page samples with "
                             f"{wanted!r} alone")
    out = []
    for steps in range(1, most + 1):
        ready = ready_scheduler(scheduler, steps)
        levels = [ready._sigma_to_alpha_sigma_t(s) for s in ready.sigmas.double()]
        out.append({"times": ready.timesteps.tolist(), "alpha": [float(a) for a, _ in levels],
                    "sigma": [float(s) for _, s in levels]})
    return out


def text_contents(model: Model) -> tuple[dict, dict[str, dict]]:
    """How a page encodes sentences for the model: (description, arrays).

    Kinds: "words", tables of words and places; "graph", an untrained contextual encoder as ONNX;
    "table", for all others: embeddings of the training captions and their rewordings, and whether
    the encoder reads past capitals and doubled spaces.
    """
    encoder = model.encoder
    ours = type(encoder) in (RandomTokenEncoder, FusedTokenEncoder)     # an heir may encode anew
    if isinstance(encoder, RandomTokenEncoder) and ours:
        arrays = {"table": packed_array(encoder.table), "position": packed_array(encoder.position)}
        if isinstance(encoder, FusedTokenEncoder):
            arrays["dose"] = packed_array(encoder.dose * encoder.relation)
        return {"kind": "words", "vocabulary": encoder.vocabulary, "special": 2, "unknown": None,
                "end": 1, "maxTokens": encoder.max_tokens}, arrays
    if isinstance(encoder, PretrainedEncoder) and encoder.drawn and encoder.words:
        ids = encoder.tokenizer.convert_tokens_to_ids
        known = encoder.tokenizer.convert_ids_to_tokens(range(len(encoder.tokenizer)))
        return {"kind": "graph", "vocabulary": known, "special": known.index(encoder.words[0]),
                "unknown": ids("<unk>"), "end": ids("</s>"), "maxTokens": encoder.max_tokens,
                "graph": packed_graph(encoder_graph(encoder))}, {}
    return _table(model, table_sentences())


def table_sentences() -> list[str]:
    """The null prompt, the training captions, the complete ones among them in the wordings of
    _COMMON, and the 22 phrases in every wording."""
    told = [text for family in FAMILIES for text in
            reworded(metrics.prompt_set("264" if family in _COMMON else "22"), family)]
    return list(dict.fromkeys(["", *captions.all_captions(), *told]))


def _reads_alike(encoder: Encoder, one: str, other: str) -> bool:
    """Whether the encoder makes the same of two sentences; not if it cannot read one of them."""
    try:
        first, second = (encoder.encode([said]).embeddings for said in (one, other))
    except ValueError:
        return False
    return torch.equal(first, second)


def _table(model: Model, sentences: Sequence[str]) -> tuple[dict, dict[str, dict]]:
    kept, tokens, roles, parts = [], [], [], []
    for sentence in sentences:
        try:
            batch = model.encoder.encode([sentence])
        except ValueError:                       # a wording that this encoder cannot read
            continue
        kept.append(sentence)
        tokens.append(batch.tokens[0])
        roles.append(batch.roles[0])
        parts.append(batch.embeddings[0])
    starts, plain = np.cumsum([0, *map(len, parts)]).tolist(), metrics.prompt_set("22")[0]
    return ({"kind": "table", "sentences": kept, "tokens": tokens, "roles": roles,
             "starts": starts, "wordings": [reworded([plain], f)[0] for f in FAMILIES],
             "uncased": _reads_alike(model.encoder, plain, plain.upper()),
             "unspaced": _reads_alike(model.encoder, plain, plain.replace(" ", "  "))},
            {"sentences": packed_array(torch.cat(parts), half=True)})


def model_contents(model: Model) -> tuple[dict, dict, dict[str, dict]]:
    """A model in numbers, the way it reads text, and arrays: means of all heads' outputs
    [steps, L, H, N, d] in the conditional branch, what relation heads write for each relation
    [8, N, D], and each relation's effect on a token [8, D].

    Raises ValueError for another solver or picture size than the page's.
    """
    config = model.transformer.config
    if (config.in_channels, config.sample_size) != (4, 2 * scenes.GRID):
        raise ValueError(f"model {model.name} has {config.in_channels} channels of "
                         f"{config.sample_size} latents a side; a page draws 4 of "
                         f"{2 * scenes.GRID}")
    roles, times = circuit_roles(model.folder), schedules(model.scheduler)
    text, arrays = text_contents(model)
    bench = Workbench(model, [parse_head(h) for h in roles.get("relation", [])])
    mean = bench.mean[:, BRANCHES.index("cond")]
    arrays["mean"] = packed_array(mean)      # in fp16 some pairs of heads end in another picture
    if bench.relation_heads:
        arrays["vectors"] = packed_array(bench.vectors)
    for site in TOKEN_SITES:
        arrays[f"effects_{site}"] = packed_array(bench.effects(site))
    about = {"layers": config.num_layers, "heads": config.num_attention_heads,
             "headDim": config.attention_head_dim, "width": model.transformer.inner_dim,
             "places": scenes.GRID ** 2, "dim": model.encoder.dim, "schedules": times,
             "prediction": model.scheduler.config.prediction_type, "steps": STEPS,
             "members": {head: role for role, found in roles.items() for head in found},
             "reads": read_from(model.folder)}
    return about, text, arrays
