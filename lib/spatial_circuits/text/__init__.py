"""Text: prompts become embeddings, a mask, tokens as strings, and the role of each token.

Where does it go?
    a relation word    a phrase in `data.captions` (a new relation in `data.scenes` first): parser,
                       roles and encoders know it at once, and no other word's vector moves
    an encoder         a class with `dim` and `encode` (`batch.Encoder`), anywhere; see below
    a wording          `wordings.FAMILIES`: one template a family
    a counterpart      `counterparts`: a prompt with one factor changed
    a prompt set       `data.metrics.prompt_set`
    tokens of a role   `roles`, and nowhere else
    any two things     `parser`: their words and a relation, T2I-CompBench's prompts too
    tokens of a word   `words`, for every tokenizer
    a pipeline's T5    `pipeline_encoder`

An encoder of one's own, in a module that can be imported (mine.py beside the notebook will do):

    class Neighbours(RandomTokenEncoder):
        def encode(self, prompts): ...

`encoder("mine:Neighbours", dim=64)` builds it; {"name": "mine:Neighbours", "options": {"dim": 64}}
is the record that `save_model` takes: the model loads wherever `mine` can be imported. For one
session `ENCODERS["neighbours"] = Neighbours` does; `save_model` then writes module:Class where
another process can import it. An encoder with a method `tensors()` (what its embeddings are made
of, by name) is checked by hash when its model is loaded; heirs of ours have one. Take and pass on
their option `vocabulary`, and a model also keeps the words of its training.
"""
