"""Tiny diffusers pipelines around a PixArt transformer, built from a seed and saved by stock diffusers."""
import json

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
)
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from spatial_circuits.text.encoders import complete_record

SCHEDULERS = {"dpm": DPMSolverMultistepScheduler, "euler": EulerDiscreteScheduler,
              "ddim": DDIMScheduler, "heun": HeunDiscreteScheduler}
PIECES = ("▁", "▁a", "▁red", "▁blue", "▁dog", "▁cat", "▁circle", "▁square", "▁is", "▁above", "▁below",
          "▁on", "▁the", "▁left", "▁right", "▁of", "▁to", "s", *"abcdefghijklmnopqrstuvwxyz")


def tokenizer():
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0),
             *((piece, -1.0 if len(piece) > 1 else -8.0) for piece in PIECES)]
    return T5Tokenizer(vocab=vocab, extra_ids=0)


def pipeline(kind="sigma", scheduler="dpm", size=32, layers=3, heads=2, head_dim=8, out_channels=8,
             seed=0, **config):
    """A pipeline whose pictures are 8 * size px a side; text moves its output."""
    torch.manual_seed(seed)
    coder = T5EncoderModel(T5Config(vocab_size=3 + len(PIECES), d_model=16, d_kv=8, d_ff=32, num_heads=2,
                                    num_layers=2, feed_forward_proj="gated-gelu", dropout_rate=0.0))
    vae = AutoencoderKL(block_out_channels=(4, 4, 4, 4), norm_num_groups=2, layers_per_block=1,
                        down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
                        latent_channels=4, sample_size=8 * size, scaling_factor=0.13025)
    transformer = PixArtTransformer2DModel(
        num_attention_heads=heads, attention_head_dim=head_dim, num_layers=layers,
        cross_attention_dim=heads * head_dim, out_channels=out_channels, sample_size=size,
        caption_channels=16, **config)
    for block in transformer.transformer_blocks:
        torch.nn.init.normal_(block.attn2.to_out[0].weight, std=0.3)
    made = SCHEDULERS[scheduler]()
    cls = {"alpha": PixArtAlphaPipeline, "sigma": PixArtSigmaPipeline}[kind]
    pipe = cls(tokenizer(), coder, vae, transformer, made)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def as_pipeline(model, folder):
    """One of our models as stock diffusers saves it; the VAE's statistics go into its 1 x 1 convolutions, the encoder's
    name into text.json."""
    vae = model.vae.model
    plain = {"latents_mean": None, "latents_std": None, "shift_factor": None, "scaling_factor": 1.0}
    copied = AutoencoderKL.from_config({**vae.config, **plain})
    copied.load_state_dict(vae.state_dict())
    mean, std = model.vae.mean.flatten(), model.vae.std.flatten()
    with torch.no_grad():
        copied.post_quant_conv.bias += copied.post_quant_conv.weight[:, :, 0, 0] @ mean
        copied.post_quant_conv.weight *= std[:, None, None]
    PixArtAlphaPipeline(None, None, copied, model.transformer, model.scheduler).save_pretrained(folder)
    (folder / "text.json").write_text(json.dumps(complete_record(model.text)[0]))
    return folder
