"""Everything the device needs that wants diffusers, written to a folder: position embeddings, sampler times, a reference output."""
import sys
from pathlib import Path
import torch
from safetensors.torch import save_file, load_file
from diffusers import DPMSolverMultistepScheduler
from spatial_circuits import dit
from spatial_circuits.noise import Noise
from spatial_circuits.text import encoder
from spatial_circuits.captions import all_captions
out = Path(sys.argv[1]); out.mkdir(parents=True, exist_ok=True)
s = Noise(prediction="sample").scheduler(); s.set_timesteps(14)
pos = {f"pos{d}": dit.build(p, 128).pos_embed.pos_embed[0].clone() for p, d in (("tiny", 128), ("nano", 192))}
torch.manual_seed(0)
save_file({**pos, "sigmas": s.sigmas.double(), "times": s.timesteps.double()}, out / "assets.safetensors")
print(s.sigmas, s.timesteps)
