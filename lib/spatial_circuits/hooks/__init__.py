"""Hooks: read and edit a model while it runs; the model itself stays as it is.

core     what a hook is (where, when, which CFG branch), and the attention call it sees
attach   `hooked`, the context that attaches hooks to a transformer
edits    what can be changed: ablation, interchange interventions, hidden tokens, added vectors
readers  what can be kept: patterns, mean outputs, the residual stream
run      sample a model under hooks

A new edit is a class in `edits`, beside `Ablate`: a `stage` and `act(call, active)`. A new reader
is a class in `readers`, beside `Patterns`: `start`, `read(call)` and a property with the result.
"""
