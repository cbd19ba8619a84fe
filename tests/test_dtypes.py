"""Number formats by name: what is asked for is what runs, and what a device cannot is refused."""
import pytest
import tiny_pixart
import torch

from spatial_circuits.cli import main
from spatial_circuits.cli.options import open_model
from spatial_circuits.model import dtypes
from spatial_circuits.model.store import is_pipeline, load

PROMPT = "red square is above blue circle"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("stock") / "pipe"
    tiny_pixart.pipeline(layers=1).save_pretrained(place)
    return place


@pytest.mark.parametrize("name", dtypes.FORMATS)
def test_a_model_runs_in_the_format_asked_for(name, folder):
    for model in (open_model(str(folder), "cpu", dtype=name), open_model("rte", "cpu", dtype=name)):
        assert {p.dtype for p in model.transformer.parameters()} == {dtypes.FORMATS[name]}
        assert model.vae.model.dtype == dtypes.FORMATS[name]
        assert model.latents([PROMPT], [0], steps=2).isfinite().all()
    off = (model.images([PROMPT], [0]).float() - load("rte").images([PROMPT], [0]).float()).abs().mean()
    assert (off == 0) == (name == "fp32") and off < 8


def test_pipelines_are_told_from_our_models(folder):
    assert is_pipeline(folder) and is_pipeline("PixArt-alpha/PixArt-XL-2-512x512") and not is_pipeline("rte")


def test_what_a_device_cannot_is_refused_before_a_model_is_read(monkeypatch, capsys, tmp_path):
    def fails(query, *_):
        if query.dtype == torch.float16:
            raise RuntimeError("not implemented for 'Half'")
        return query
    monkeypatch.setattr(dtypes, "scaled_dot_product_attention", fails)
    for line in (["check"], ["sample", PROMPT], ["heatmap", "--prompt", PROMPT, "--word", "above"], ["evaluate"],
                 ["synopsis"], ["ablate"], ["screen"], ["share"]):
        assert main([*line, "--model", "nowhere", "--dtype", "fp16", "--device", "cpu"]) == 2
        assert "device 'cpu' cannot run in fp16; choose from fp32, bf16" in capsys.readouterr().err
    with pytest.raises(ValueError, match="dtype 'int8' is unknown; choose from fp32, bf16, fp16"):
        dtypes.check_dtype("int8", "cpu")
    assert main(["ablate", "--precise", "--dtype", "bf16"]) == 2
    assert "--precise is fp32; leave it out, or --dtype bf16" in capsys.readouterr().err
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not dtypes.can_run("bf16", "cuda")
