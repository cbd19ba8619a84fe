"""Embeddings of all captions by the contextual encoders, fp16: text-NAME.safetensors."""
import sys
from pathlib import Path
from safetensors.torch import save_file
from spatial_circuits.text import encoder
from spatial_circuits.captions import all_captions
out = Path(sys.argv[1])
caps = ["", *all_captions()]
def put(name, e):
    b = e.encode(caps)
    print(name, tuple(b.embeddings.shape), flush=True)
    save_file({"embeddings": b.embeddings.half(), "mask": b.mask.to("cpu").byte()}, out / f"text-{name}.safetensors")
for s in range(6): put(f"t5-untrained-{s}", encoder("t5-untrained", seed=s))
put("minilm", encoder("minilm"))
