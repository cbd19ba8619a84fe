"""Training when things go wrong: each fault is named, and nothing that was there is lost."""
import os
import resource
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from spatial_circuits.model.compiling import compiled_or_eager, gelu_by_sigmoid, sigmoid_gelu
from spatial_circuits.model.vae import VAE
from spatial_circuits.text.encoders import encoder
from spatial_circuits.training import loop
from spatial_circuits.training.checkpoint import restore, save_state
from spatial_circuits.training.lock import claimed, locked
from spatial_circuits.training.log import Log, read_log
from spatial_circuits.training.loop import train, update
from spatial_circuits.training.recipe import Recipe

FAST = Recipe(size="atom", batch=4, cache=8, steps=6, warmup=1, precision="no", compile=False)
RTE = {"name": "rte", "options": {}}


@pytest.fixture
def go(tmp_path, rte, vae, atom, one_thread):
    """A function that trains in folder `name`."""
    def run(name: str = "a", recipe: Recipe = FAST, *, coder=rte, coder_vae=vae, **options):
        return train(recipe, coder, coder_vae, tmp_path / name, progress=False, **options)
    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def checkpoint(folder: Path) -> Path:
    (path,) = folder.glob("checkpoint-*")
    return path


# ---- what a run was started with

def test_resume_refuses_another_encoder_option_vae_and_precision_by_name(go, tmp_path, vae):
    go(stop_at=2, text=RTE)
    before = contents(tmp_path / "a")
    flat = {"name": "rte-nopos", "options": {}}
    base = {"name": "rte", "options": {"base": 30.0}}
    other = VAE(vae.model, vae.mean + 0.5, vae.std)
    half = replace(FAST, precision="auto")
    for message, options in (
        ("another encoder: rte, now rte-nopos", {"coder": encoder("rte-nopos"), "text": flat}),
        (r"another encoder option: {}, now {'base': 30.0}", {"text": base}),
        (r"another encoding of captions: sha256 \w{12}, now sha256 \w{12}",
         {"coder": encoder("rte-nopos")}),
        (r"another VAE: sha256 \w{12}, now sha256 \w{12}", {"coder_vae": other}),
        ("another recipe; it differs in precision", {"recipe": half}),
    ):
        with pytest.raises(ValueError, match=message):
            go(resume=True, **options)
    assert contents(tmp_path / "a") == before
    go(resume=True)                                 # an encoder without a name: its captions decide


def test_resume_refuses_what_auto_precision_became(go, tmp_path, monkeypatch):
    auto = replace(FAST, precision="auto")
    monkeypatch.setattr(loop, "resolve_precision", lambda *_: "no")
    go(recipe=auto, stop_at=2)
    monkeypatch.setattr(loop, "resolve_precision", lambda *_: "bf16")
    with pytest.raises(ValueError, match="another precision: no, now bf16"):
        go(recipe=auto, resume=True)


@pytest.mark.parametrize("text, message", [
    (None, "run.json is missing"), ("[]", "run.json is damaged"), ("{", "run.json is .*damaged: Expecting")])
def test_a_record_that_is_gone_or_damaged_is_named(go, tmp_path, text, message):
    go(stop_at=2)
    path = tmp_path / "a" / "run.json"
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=message):
        go(resume=True)


def test_other_versions_are_told(go, tmp_path):
    go(stop_at=2)
    path = tmp_path / "a" / "run.json"
    path.write_text(path.read_text().replace(torch.__version__.split("+")[0], "1.0.0"))
    with pytest.warns(UserWarning, match="was started with torch 1.0.0"):
        go(resume=True)


# ---- values

@pytest.mark.parametrize("options, message", [
    ({"evaluate_every": 0}, "evaluate_every is 0; it must be a whole number of at least 1"),
    ({"checkpoint_every": -5}, "checkpoint_every is -5"), ({"stop_at": 2.5}, "stop_at is 2.5"),
    ({"stop_at": 0}, "stop_at is 0"),
    ({"device": "mps"}, "device 'mps' is unknown; choose cpu, cuda"),
    ({"recipe": replace(FAST, precision="fp16"), "device": "cpu"}, "precision fp16 needs a GPU"),
    ({"recipe": replace(FAST, lr=float("nan"))}, "lr is nan"),
])
def test_wrong_values_are_refused_before_anything_is_written(go, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        go(**options)
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(go):
    with pytest.raises(ValueError, match="device 'cuda' is not available"):
        go(device="cuda")


def test_clip_0_does_not_clip(go):
    none, wide, narrow = (go(f"{clip}", replace(FAST, clip=clip)).state_dict()
                          for clip in (0.0, 1e9, 1e-3))
    assert all(torch.equal(none[k], wide[k]) for k in none)
    assert not all(torch.equal(none[k], narrow[k]) for k in none)


# ---- the loss scale of fp16

def two_layers():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    return net, [torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9) for layer in net]


@pytest.mark.parametrize("clip", [0.0, 0.1])
def test_two_optimizers_unscale_once_each(clip):
    ends = []
    for scaler in (None, torch.amp.GradScaler("cpu", init_scale=2.0 ** 10, growth_interval=2)):
        net, opts = two_layers()
        for _ in range(4):
            loss = net(torch.ones(2, 4)).square().mean()
            (scaler.scale(loss) if scaler else loss).backward()
            update(opts, list(net.parameters()), clip, scaler)
        ends.append(torch.cat([p.flatten() for p in net.parameters()]))
    assert torch.allclose(*ends, atol=1e-6) and scaler.get_scale() == 2.0 ** 12


def test_the_loss_scale_is_in_the_checkpoint(tmp_path):
    net, opts = two_layers()
    ema = loop.EMAModel(net.parameters())
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    scaler.scale(net(torch.ones(2, 4)).mean()).backward()
    update(opts, list(net.parameters()), 1.0, scaler)
    save_state(tmp_path, 3, net, ema, opts, scaler)
    other = torch.amp.GradScaler("cpu", init_scale=2.0)
    assert restore(tmp_path, net, ema, opts, other) == 3
    assert other.state_dict() == scaler.state_dict()


# ---- checkpoints and disks

@pytest.mark.parametrize("key", ["ema.0", "optimizer.1.0.momentum_buffer", "model.proj_out.weight"])
def test_a_flipped_bit_is_refused_by_hash(go, tmp_path, key):
    go(stop_at=2)
    path = checkpoint(tmp_path / "a")
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors[key].view(torch.int32).flatten()[0] ^= 1
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=f"{path.name} is damaged: sha256 .*, expected"):
        go(resume=True)


def test_a_full_disk_leaves_the_old_checkpoint_and_one_line(go, tmp_path):
    go(stop_at=2)
    before = contents(tmp_path / "a")
    old, limits = checkpoint(tmp_path / "a"), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (old.stat().st_size // 2, limits[1]))
    try:
        with pytest.raises(OSError, match="checkpoint-00000004.safetensors") as caught:
            go(resume=True, stop_at=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    after = contents(tmp_path / "a")
    assert after.keys() == before.keys() and after[old.name] == before[old.name]
    go(resume=True)


def test_a_log_that_cannot_be_written_is_named(tmp_path):
    log = Log(tmp_path / "log.jsonl")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="log.jsonl"):
            log.write(step=1, text="x" * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_two_runs_in_one_folder_are_refused(go, tmp_path):
    go(stop_at=2)
    before = contents(tmp_path / "a")
    with locked(tmp_path / "a"):
        for options in ({"resume": True}, {}):
            with pytest.raises(BlockingIOError, match="a is in use by another training run"):
                go(**options)
    assert contents(tmp_path / "a") == before
    go(resume=True)                                   # free again


def test_a_run_may_wait_for_another_in_its_folder(tmp_path):
    (tmp_path / "a").mkdir()
    order, held = [], threading.Event()

    def other():
        with claimed(tmp_path / "a"):
            held.set()
            time.sleep(0.3)
            order.append("other")
    thread = threading.Thread(target=other)
    thread.start()
    held.wait()
    with claimed(tmp_path / "a", wait=True):
        order.append("ours")
    thread.join()
    assert order == ["other", "ours"]


# ---- losses, signals, compilers

def test_training_stops_at_the_first_loss_that_is_not_finite(go, tmp_path, monkeypatch):
    go(stop_at=2)
    before = contents(tmp_path / "a")
    calls, true = [], loop.batch_loss

    def poisoned(*arguments):
        calls.append(1)
        return true(*arguments) * (float("nan") if len(calls) == 2 else 1.0)
    monkeypatch.setattr(loop, "batch_loss", poisoned)
    message = r"loss of step 4 is not finite, at learning rates lr 0\.0"
    with pytest.raises(ValueError, match=message):
        go(resume=True, checkpoint_every=4)
    assert len(calls) == 2 and contents(tmp_path / "a")[checkpoint(tmp_path / "a").name] == before[
        "checkpoint-00000002.safetensors"]


def test_weights_that_are_not_finite_are_not_saved(go, tmp_path):
    with pytest.raises(ValueError, match="not finite after step 1|loss of step 2 is not finite"):
        go(recipe=replace(FAST, lr=1e38, muon_lr=1e38), checkpoint_every=1)
    assert not list((tmp_path / "a").glob("checkpoint-*")) or checkpoint(tmp_path / "a")
    for path in (tmp_path / "a").glob("checkpoint-*"):
        assert all(v.isfinite().all() for k, v in load_file(path).items() if k.startswith("model."))


def test_sigterm_ends_the_step_and_says_how_to_resume(go, tmp_path, capsys):
    def evaluate(model):
        os.kill(os.getpid(), signal.SIGTERM)
        return {}
    with pytest.raises(SystemExit) as caught:
        go(evaluate=evaluate, evaluate_every=3)
    assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and "the same command with --resume goes on" in message
    assert checkpoint(tmp_path / "a").name == "checkpoint-00000004.safetensors"
    resumed, whole = go(resume=True).state_dict(), go("whole").state_dict()
    assert all(torch.equal(resumed[k], whole[k]) for k in whole)
    assert read_log(tmp_path / "a" / "log.jsonl")[-1]["step"] == 6


def test_without_a_compiler_training_goes_on_without_compiling(go, tmp_path, monkeypatch):
    plain = go("plain").state_dict()

    def broken(function, **_):
        def fail(*arguments, **options):
            raise RuntimeError("CppCompileError: no C++ compiler\nmany\nlines")
        return fail
    monkeypatch.setattr(torch, "compile", broken)
    with pytest.warns(UserWarning, match="torch.compile does not work here.*no C\\+\\+ compiler$"):
        weights = go(recipe=replace(FAST, compile=True)).state_dict()
    assert all(torch.equal(weights[k], plain[k]) for k in plain)


def test_gelu_by_sigmoid_is_the_same_function(tiny):
    x = torch.linspace(-9, 9, 1801, dtype=torch.float64)
    assert torch.allclose(sigmoid_gelu(x), torch.nn.functional.gelu(x, approximate="tanh"), rtol=0, atol=1e-15)
    gelus = [block.ff.net[0] for block in tiny.transformer.transformer_blocks] + [tiny.transformer.caption_projection.act_1]
    x = torch.randn(3, 8)
    plain = [gelu(x) if isinstance(gelu, torch.nn.GELU) else gelu.gelu(x) for gelu in gelus]
    with gelu_by_sigmoid(tiny.transformer):
        swapped = [gelu(x) if isinstance(gelu, torch.nn.GELU) else gelu.gelu(x) for gelu in gelus]
        assert all(torch.equal(y, sigmoid_gelu(x)) for y in swapped)
    assert all(torch.allclose(y, z, atol=1e-6) for y, z in zip(plain, swapped, strict=True))
    assert not any({"forward", "gelu"} & vars(gelu).keys() for gelu in gelus)


def test_a_compiled_model_has_its_gelu_by_sigmoid_while_it_is_called(go, tmp_path, monkeypatch):
    """In place of compiled code stands the model itself, so that only the wiring is seen."""
    seen = []

    def compiled(model, **_):
        def call(*arguments, **options):
            gelus = [m for m in model.modules() if getattr(m, "approximate", None) == "tanh"]
            seen.append(len([m for m in gelus if sigmoid_gelu in vars(m).values()]) == len(gelus) == 3)
            return model(*arguments, **options)
        return call
    go("plain", recipe=replace(FAST, steps=1))
    monkeypatch.setattr(torch, "compile", compiled)
    model = go("compiled", recipe=replace(FAST, steps=1, compile=True))
    losses = [read_log(tmp_path / name / "log.jsonl")[0]["loss"] for name in ("plain", "compiled")]
    assert seen == [True, True]                     # the trial, and the step
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert not any({"forward", "gelu"} & vars(module).keys() for module in model.modules())


def test_a_compiler_that_is_not_there_is_noticed():
    torch._dynamo.reset()
    options = {"cpp.cxx": ("/nonexistent/c++",), "force_disable_caches": True}
    without = torch._inductor.config.patch(options)
    with without, pytest.warns(UserWarning, match="torch.compile does not work here"):
        function = compiled_or_eager(torch.sin, lambda f: f(torch.ones(7)))
    assert function is torch.sin
    torch._dynamo.reset()


def test_a_run_that_fails_before_its_first_step_leaves_no_folder(go, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        def fail(*_, **__):
            raise RuntimeError("out of memory")
        patch.setattr(loop, "build_transformer", fail)
        go()
    assert not (tmp_path / "a").exists()
    go()
