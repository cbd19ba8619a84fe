"""Data: what a picture shows, what its caption says, and whether the two agree. No model is needed.

scenes    two objects in a relation as tensors, drawn from (seed, index) by a preset
captions  the 22 phrases, a scene's caption, and the parse of a prompt into shapes, colours, roles
render    scenes to uint8 pictures [B, 3, 128, 128], and folders of them that `datasets` loads
detect    pictures to blobs: shape, colour, centre; and the share of each image token they cover
metrics   a picture's scores against its prompt, the prompt sets, ceiling and chance

A relation word goes into `captions` (its relation, if new, into `scenes`), a preset into `scenes`,
a shape or colour into `scenes`, `render` and `detect`, a metric into `metrics`.
"""
