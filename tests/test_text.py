"""Text encoders: one protocol, and roles that fit every tokenizer."""
import shutil

import huggingface_hub
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from spatial_circuits.data.captions import PHRASES, ROLES, WORDS, all_captions, parse
from spatial_circuits.model.noise import Noise
from spatial_circuits.model.store import load, save_model
from spatial_circuits.text import vocabulary
from spatial_circuits.text.batch import NORM
from spatial_circuits.text.encoders import ENCODERS, encoder, load_encoder, text_record
from spatial_circuits.text.random_tokens import sinusoid
from spatial_circuits.text.roles import (
    mask_of_role,
    occurrences,
    of_role,
    role_mask,
    role_table,
    token_of_role,
)

PIECES = ("▁red", "▁b", "lue", "▁cir", "cle", "▁", "square", "▁tri", "an", "gle", "▁is", "▁ab",
          "ove", "▁dir", "ect",
          "ly", "▁diagonal", "▁and", "▁to", "▁the", "▁left", "▁right", "▁of", "▁up", "per",
          "▁down", "▁from", "▁be",
          "low", "▁high", "er", "▁than", "▁", *"abcdefghijklmnopqrstuvwxyz")
PROMPTS = ("red square is above blue circle", "triangle is diagonally up and left from blue square",
           "square is to the right of circle", "red triangle is directly below square")


def t5_folder(folder, spaces_in_offsets: bool):
    """A tiny T5 with pieces of words, "▁" before each, as SentencePiece cuts them.

    The older tokenizers count the space
    before a word as part of it, the newer do not.
    """
    pieces = [(p, -len(PIECES) / (1 + len(p))) for p in dict.fromkeys(PIECES)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0), *pieces]
    if spaces_in_offsets:
        pieces = Tokenizer(models.Unigram(vocabulary, unk_id=2))
        pieces.pre_tokenizer = pre_tokenizers.Metaspace()
        pieces.post_processor = processors.TemplateProcessing(single="$A </s>",
                                                              special_tokens=[("</s>", 1)])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, pad_token="<pad>",
                                            eos_token="</s>", unk_token="<unk>")
    else:
        tokenizer = T5Tokenizer(vocab=vocabulary, extra_ids=0)
    torch.manual_seed(0)
    model = T5EncoderModel(T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=4, d_ff=32,
                                    num_layers=2, num_heads=4,
                                    dropout_rate=0.0))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def clip_folder(folder):
    """A tiny CLIP text model: BOS first, and the pad token is the end token."""
    known = {w: i for i, w in enumerate(("<bos>", "<eos>", *WORDS))}
    words = Tokenizer(models.WordLevel(known, unk_token="<eos>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 0), ("<eos>", 1)])
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<bos>", eos_token="<eos>",
                            pad_token="<eos>",
                            unk_token="<eos>").save_pretrained(folder)
    torch.manual_seed(0)
    CLIPTextModel(CLIPTextConfig(vocab_size=len(WORDS) + 2, hidden_size=16, intermediate_size=32,
                                 num_hidden_layers=2,
                                 num_attention_heads=2, max_position_embeddings=24,
                                 bos_token_id=0, eos_token_id=1,
                                 pad_token_id=1)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    return {"t5": t5_folder(root / "t5", False), "t5 with spaces": t5_folder(root / "t5s", True),
            "clip": clip_folder(root / "clip")}


@pytest.fixture(scope="module")
def encoders(folders):
    return {"rte": encoder("rte"), "rte-nopos": encoder("rte-nopos"), "minilm": encoder("minilm"),
            "t5-untrained": encoder("t5-untrained"), "t5": encoder("t5", name=folders["t5"]),
            "t5 with spaces": encoder("t5", name=str(folders["t5 with spaces"])),
            "clip": encoder("clip", name=folders["clip"])}


NAMES = ("rte", "rte-nopos", "minilm", "t5-untrained", "t5", "t5 with spaces", "clip")


@pytest.mark.parametrize("name", NAMES)
def test_protocol(encoders, name):
    coder = encoders[name]
    batch = coder.encode(list(PROMPTS))
    b, t, d = batch.embeddings.shape
    assert (b, d) == (4, coder.dim) and batch.embeddings.dtype == torch.float32
    assert batch.mask.shape == (b, t) and batch.mask.dtype == torch.bool
    assert all(len(row) == t for row in batch.tokens + batch.roles)
    assert batch.embeddings[~batch.mask].abs().sum() == 0
    assert batch.embeddings[batch.mask].norm(dim=1).min() > 0
    assert [[r == "pad" for r in row] for row in batch.roles] == (~batch.mask).tolist()
    for i, prompt in enumerate(PROMPTS):  # alone, without padding, a prompt reads the same
        alone = coder.encode([prompt])
        n = alone.mask.shape[1]
        assert torch.allclose(alone.embeddings[0], batch.embeddings[i, :n], atol=1e-4)
        assert alone.roles[0] == batch.roles[i][:n] and "pad" not in alone.roles[0]
    part = batch[[2, 0]]
    assert torch.equal(part.embeddings, batch.embeddings[[2, 0]])
    assert part.roles == [batch.roles[2], batch.roles[0]]


def text_of(tokens: list[str], roles: list[str], role: str) -> str:
    """The letters of the tokens of a role, without the marks of word starts and continuations."""
    said = (t for t, r in zip(tokens, roles) if r == role)
    return "".join(t.replace("▁", "").replace("##", "") for t in said)


@pytest.mark.parametrize("name", NAMES)
def test_roles_cover_their_words(encoders, name):
    prompts = [*all_captions()[5::17], "Red Square is  above the Blue Circle",
               "above blue circle is red square"]
    if name == "t5 with spaces":
        prompts[-2] = prompts[-2].replace("  ", " ")  # it makes the second space a piece of its own
    lower = prompts
    if name in ("t5", "t5 with spaces"):              # its pieces are lower case
        lower = [p.lower() for p in prompts]
    batch = encoders[name].encode(lower)
    assert {parse(p).phrase for p in lower} == set(range(len(PHRASES)))
    for prompt, tokens, roles in zip(lower, batch.tokens, batch.roles):
        said = {role: "".join(prompt[a:b].lower().split()) for a, b, role in parse(prompt).spans}
        for role in ROLES[:5]:
            assert text_of(tokens, roles, role) == said.get(role, ""), (prompt, tokens, roles)
        rest = text_of(tokens, roles, "filler").removeprefix("[CLS]").removeprefix("<bos>")
        assert rest in ("is", "isthe")
        assert roles.count("end") == 1 and set(roles[roles.index("end") + 1:]) <= {"pad"}


@pytest.mark.parametrize("name", NAMES)
def test_the_null_is_an_end_token(encoders, name):
    batch = encoders[name].encode([""])
    assert batch.roles[0][-1] == "end" and set(batch.roles[0][:-1]) <= {"filler"}
    assert batch.mask.all()
    assert batch.mask.shape[1] == (2 if name in ("minilm", "clip") else 1)


def test_pieces_and_marks_are_there_to_be_aligned(encoders):
    """The tokenizers above do cut words into pieces, begin with BOS and mark the end."""
    t5, old = (encoders[n].encode([PROMPTS[0]]).tokens[0] for n in ("t5", "t5 with spaces"))
    wanted = ["▁red", "▁", "square", "▁is", "▁ab", "ove", "▁b", "lue", "▁cir", "cle", "</s>"]
    assert t5 == old == wanted
    clip = encoders["clip"].encode(list(PROMPTS[:2]))
    assert clip.tokens[0][0] == "<bos>" and clip.tokens[0][7:] == ["<eos>"] * 4
    assert clip.roles[0] == ["filler", "colour1", "shape1", "filler", "relation", "colour2",
                             "shape2", "end", *["pad"] * 3]


def test_a_contextual_encoder_tells_apart_what_a_table_does_not(encoders):
    pair = ["red square is above blue circle", "red square is below blue circle"]
    last = {n: encoders[n].encode(pair).embeddings[:, -2]
            for n in ("rte", "rte-nopos", "minilm", "t5-untrained")}
    change = {n: ((e[0] - e[1]).norm() / e[0].norm()).item() for n, e in last.items()}
    assert change["rte"] == change["rte-nopos"] == 0
    assert min(change["minilm"], change["t5-untrained"]) > 0.05


@pytest.mark.parametrize("name", ("minilm", "t5-untrained"))
def test_standardised_states_have_the_table_s_norm(encoders, name):
    batch = encoders[name].encode(all_captions())
    states = batch.embeddings[batch.mask]
    assert states.norm(dim=1).mean() == pytest.approx(NORM, rel=1e-3)
    assert states.mean(0).abs().max() < 1e-2
    deviation = states.std(0)
    alive = deviation > deviation.max() / 2  # a few of MiniLM's are constant but for rounding
    assert alive.float().mean() > 0.98 and deviation[alive].std() < 0.01 * deviation[alive].mean()


def test_rte_norms(encoders):
    table, nopos = encoders["rte"], encoders["rte-nopos"]
    assert torch.allclose(table.table.norm(dim=1), torch.tensor(NORM))
    assert torch.equal(table.table, nopos.table)
    assert table.position[:12].norm(dim=1).mean() == pytest.approx(NORM, rel=1e-5)
    words = nopos.encode(["red square is above circle"])
    assert torch.allclose(words.embeddings[words.mask].norm(dim=1), torch.tensor(NORM))
    difference = table.encode(["red square is above circle"]).embeddings - words.embeddings
    assert torch.allclose(difference[0], table.position[:6], atol=1e-5)
    assert not torch.equal(encoder("rte", seed=1).table, table.table)


def test_paper_position_code_is_nearly_constant_and_a_centered_short_one_is_not():
    def neighbours(code):
        return torch.cosine_similarity(code[:11], code[1:12]).mean()
    paper, short = sinusoid(20, 4096), sinusoid(20, 128, base=100.0, center=True)
    assert neighbours(paper) == pytest.approx(0.974, abs=0.003)
    assert paper[:12].mean(0).norm() == pytest.approx(6.87, abs=0.05)
    assert torch.cosine_similarity(paper[0], paper[4], dim=0) == pytest.approx(0.771, abs=0.003)
    assert neighbours(short) < 0.85 and short[:12].mean(0).norm() < 1e-3


@given(st.permutations(["red", "square", "is", "above", "blue", "circle"]))
def test_without_positions_word_order_only_reorders_the_rows(words):
    start = ["red", "square", "is", "above", "blue", "circle"]
    order = [start.index(w) for w in words] + [6]
    for name, equal in (("rte-nopos", True), ("rte", list(words) == start)):
        coder = _CACHED.setdefault(name, encoder(name))
        one, two = (coder.encode([" ".join(w)]).embeddings[0] for w in (start, words))
        assert torch.equal(one[order], two) is equal


_CACHED: dict = {}


@pytest.mark.parametrize("name", ("rte", "rte-nopos"))
@pytest.mark.parametrize("prompt, word, near", [
    ("red hexagon is above blue circle", "hexagon", "known: above"),
    ("red sqare is above blue circle", "sqare", "nearest known: square"),
    ("red square is above blue circle.", "circle.", "nearest known: circle")])
def test_an_unknown_word_is_named_with_its_nearest(encoders, name, prompt, word, near):
    with pytest.raises(ValueError) as error:
        encoders[name].encode(["red square is above blue circle", prompt])
    assert repr(word) in str(error.value) and near in str(error.value)


@pytest.mark.parametrize("name", ("rte", "minilm", "t5"))
def test_a_prompt_that_is_too_long_is_named(encoders, name):
    with pytest.raises(ValueError, match="red square red square.*at most"):
        encoders[name].encode(["circle", "red square " * 10 + "is above blue circle"])


def test_fp16_t5_is_refused_and_bf16_is_not(folders):
    with pytest.raises(ValueError, match="float16.*choose float32 or bfloat16"):
        encoder("t5", name=folders["t5"], dtype="float16")
    full, half = (encoder("t5", name=folders["t5"], dtype=d) for d in ("float32", "bfloat16"))
    assert half.model.dtype == torch.bfloat16
    one, two = (e.encode(list(PROMPTS)).embeddings for e in (full, half))
    assert two.dtype == torch.float32 and not torch.equal(one, two)
    assert torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0) > 0.99


def test_an_untrained_t5_is_its_seed_s():
    one, again, other = (encoder("t5-untrained", dim=16, seed=s).encode([PROMPTS[0]]).embeddings
                         for s in (0, 0, 1))
    assert torch.equal(one, again) and not torch.allclose(one, other)


@pytest.mark.parametrize("name, options, message", [
    ("bert", {}, f"'bert' is unknown; choose from {', '.join(ENCODERS)}"),
    ("rte", {"bass": 30.0}, "no option 'bass'; choose from dim, position, base, center, seed"),
    ("rte", {"base": "30"}, "option base of text encoder rte is '30'; it must be of type float"),
    ("rte", {"center": 1}, "option center of text encoder rte is 1; it must be of type bool"),
    ("rte", {"dim": True}, "option dim of text encoder rte is True; it must be of type int"),
    ("rte-nopos", {"dim": 7}, "dim is 7; it must be an even number"),
    ("rte", {"base": -1}, "base is -1; it must be above 0"),
    ("minilm", {"dim": 64}, "minilm has no option 'dim'; choose from none"),
    ("t5", {"name": "no/such-model"}, "'no/such-model' is neither a folder with a t5 model nor"),
])
def test_wrong_names_and_options_are_refused(name, options, message):
    with pytest.raises(ValueError) as error:
        encoder(name, **options)
    assert message in str(error.value)


# The first two numbers of four tokens of PROMPTS[0]: what the shipped models were trained on.
RECORDED = {
    "rte": (0.1126, 0.4086, 0.2649, -0.8733, -0.3349, -0.544, -1.4906, -0.6363),
    "rte-nopos": (-0.6763, -0.098, -0.5876, -0.4832, -0.4672, 0.3841, -0.7811, -0.0235),
    "minilm": (0.0624, -0.8754, 0.7743, -0.3163, -0.0358, -0.164, -0.497, 0.2496),
    "t5-untrained": (0.0463, -0.4256, 0.7407, 0.1943, 0.6, 1.0031, 0.8535, 0.6002),
}


@pytest.mark.parametrize("name", RECORDED)
def test_embeddings_are_those_of_the_shipped_models(encoders, name):
    found = encoders[name].encode([PROMPTS[0]]).embeddings[0, 1:5, :2].flatten()
    assert torch.allclose(found, torch.tensor(RECORDED[name]), atol=2e-3)


@pytest.fixture
def more_words(monkeypatch):
    """Words that come first, in the middle and last in the alphabet."""
    monkeypatch.setattr(vocabulary, "WORDS", tuple(sorted((*WORDS, "aloft", "over", "yonder"))))


def test_a_further_word_moves_no_vector(encoders, more_words):
    for name in ("rte", "rte-nopos", "t5-untrained"):
        more = encoder(name)
        assert set(more.words) == {*WORDS, "aloft", "over", "yonder"}
        assert torch.equal(more.encode(list(PROMPTS)).embeddings,
                           encoders[name].encode(list(PROMPTS)).embeddings)
    alone = encoder("rte", vocabulary=("over", "circle"))
    assert torch.equal(alone.encode(["over circle"]).embeddings,
                       encoder("rte").encode(["over circle"]).embeddings)
    with pytest.raises(ValueError, match="unknown word 'red'.*known: over circle"):
        alone.encode(["red circle"])
    vectors = encoder("rte-nopos").encode(["over aloft yonder"]).embeddings[0, :3]
    assert torch.allclose(vectors.norm(dim=1), torch.tensor(NORM))
    assert torch.corrcoef(vectors).fill_diagonal_(0).abs().max() < 0.5


def test_the_first_captions_are_still_spoken():
    assert set(vocabulary.first_captions()) <= set(all_captions())
    assert set(vocabulary.FIRST_WORDS) <= set(WORDS)


def test_a_saved_model_knows_its_words_alone(lively, tmp_path, more_words, monkeypatch):
    folder = save_model(tmp_path / "m", lively(), {"name": "rte"}, noise=Noise())
    monkeypatch.setattr(vocabulary, "WORDS", WORDS)
    assert "over" in load(folder).encoder.words and "over" not in encoder("rte").words


def test_a_t5_replaced_after_training_is_refused(lively, tmp_path):
    t5_folder(tmp_path / "t5", False)
    text = {"name": "t5", "options": {"name": str(tmp_path / "t5")}}
    folder = save_model(tmp_path / "m", lively(16), text, noise=Noise())
    assert load(folder).encoder.dim == 16
    model = T5EncoderModel.from_pretrained(tmp_path / "t5")
    torch.nn.init.normal_(model.shared.weight)
    model.save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="m/text.json: text encoder 't5' is not the one of train"):
        load(folder)


def test_relative_paths_are_kept_absolute_or_inside(folders, lively, tmp_path, monkeypatch):
    monkeypatch.chdir(folders["t5"].parent)
    text = text_record("t5", {"name": "t5"})
    folder = save_model(tmp_path / "m", lively(16), text, noise=Noise())
    assert text_record("./t5") == {"name": "t5", "options": {"name": str(folders["t5"])}}
    monkeypatch.chdir(tmp_path)
    assert load(folder).text["options"]["name"] == str(folders["t5"])
    record = {"name": "t5", "options": {"name": "encoder"}}
    clip_folder(tmp_path / "encoder")  # of the working folder: not meant
    t5_folder(folder / "encoder", False)
    assert load_encoder(record, folder).tokenizer.eos_token == "</s>"


@pytest.mark.parametrize("harm", ["another kind", "no weights", "no tokenizer", "broken config"])
def test_a_damaged_folder_is_refused_in_one_line(folders, tmp_path, harm):
    folder = shutil.copytree(folders["clip" if harm == "another kind" else "t5"], tmp_path / "x")
    if harm == "no weights":
        (folder / "model.safetensors").unlink()
    elif harm == "no tokenizer":
        for file in folder.glob("tok*"):
            file.unlink()
    elif harm == "broken config":
        (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="x' is neither a folder with a t5 model") as error:
        encoder("t5", name=str(folder))
    assert "\n" not in str(error.value)


def test_an_unreachable_hub_is_not_asked_for_long(monkeypatch):
    """The loaders of transformers and diffusers retry for half a minute: they must not be asked."""
    asked = []
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)

    def model_info(api, name, timeout):
        raise ConnectionError("Name or service not known")

    def from_pretrained(name, **options):
        asked.append(options["local_files_only"])
        raise OSError("not in the cache")
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    monkeypatch.setattr(T5EncoderModel, "from_pretrained", from_pretrained)
    with pytest.raises(ValueError, match="'nosuch' is neither .* Name or service not known"):
        encoder("t5", name="nosuch")
    assert asked == [True]


OWN = """
from spatial_circuits.text.random_tokens import RandomTokenEncoder
class Loud(RandomTokenEncoder):
    def __init__(self, factor: float, dim: int = 128):
        super().__init__(dim)
        self.table = self.table * factor
def function():
    pass
"""


def test_a_class_of_one_s_own_is_saved_by_where_it_is_imported_from(lively, tmp_path, monkeypatch):
    (tmp_path / "own_encoder.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    made = encoder("own_encoder:Loud", factor=2.0)
    monkeypatch.setitem(ENCODERS, "loud", type(made))
    folder = save_model(tmp_path / "m", lively(), {"name": "loud", "options": {"factor": 2.0}},
                        noise=Noise())
    monkeypatch.delitem(ENCODERS, "loud")       # another process knows the module alone
    model = load(folder)
    assert model.text["name"] == "own_encoder:Loud"
    assert torch.equal(model.encoder.table, made.table)
    for name, options, message in (
            ("own_encoder:Loud", {}, "missing 1 required positional argument: 'factor'"),
            ("own_encoder:Loud", {"factr": 1}, "no option 'factr'; choose from factor, dim"),
            ("own_encoder:function", {}, "is no class with a method `encode`"),
            ("os:system", {"command": "true"}, "is no class with a method `encode`"),
            ("own_encoder:Nobody", {}, "cannot be imported"),
            ("nowhere:X", {}, "cannot be imported"),
            ("loud", {}, "or name a class of your own module:Class")):
        with pytest.raises(ValueError, match=message):
            encoder(name, **options)


def test_an_encoder_needs_dim_and_encode(monkeypatch):
    monkeypatch.setitem(ENCODERS, "nothing", object)
    with pytest.raises(ValueError, match="'nothing' lacks a whole number `dim` or a method"):
        encoder("nothing")


@pytest.mark.parametrize("name, option, value", [
    ("rte", "base", float("nan")), ("rte", "base", float("inf")), ("rte", "seed", 10**30),
    ("t5-untrained", "bias", float("nan"))])
def test_numbers_that_are_none_are_refused(name, option, value):
    with pytest.raises(ValueError, match=f"option {option} of text encoder {name} is .*finite"):
        encoder(name, **{option: value})


def test_tokens_of_a_role(encoders):
    batch = encoders["minilm"].encode([PROMPTS[2], PROMPTS[0]])
    mask = mask_of_role(batch.roles, "relation")
    assert mask.sum(1).tolist() == [4, 1] and mask.dtype == torch.bool
    assert torch.equal(role_table(batch.roles)[..., ROLES.index("relation")], mask.float())
    assert token_of_role(batch, "relation").tolist() == [3, 4]
    rows, tokens = occurrences(batch, "relation")
    assert rows.tolist() == [0, 0, 0, 0, 1] and tokens.tolist() == [3, 4, 5, 6, 4]
    assert torch.allclose(of_role(batch, "relation")[0], batch.embeddings[0, 3:7].mean(0))
    assert role_mask(encoders["minilm"], [PROMPTS[0]], "colour1+colour2").sum() == 2
    for ask in (of_role, token_of_role):
        with pytest.raises(ValueError, match="no token has the role 'colour1' in '.CLS. square is"):
            ask(batch, "colour1")
        with pytest.raises(ValueError, match="role 'place' is unknown"):
            ask(batch, "place")
