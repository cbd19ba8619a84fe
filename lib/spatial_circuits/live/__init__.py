"""Live: a model as files that a page runs by itself, without Python, server or network.

graphs     the networks as ONNX, opened at every cross-attention head
contents   what else a page, or a recording, needs: text tables, means of heads, relation vectors,
           the solver's times
runtime    onnxruntime-web, fetched once by npm, with a fixed hash
bundle     all of it as scripts in a folder, kept by the hash of model and code
assets     the page's own code: noise, captions, detector, engine, address, controls, and the
           frame of a page that stands alone
"""
