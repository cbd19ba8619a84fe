"""The book: notebooks, pages, figures and widgets. The only package that knows a plot or a path.

======================  ============================================================================
module                  what it does, and what is added where
======================  ============================================================================
runner                  which notebooks run, into which folder; a rule for all pages goes here
execute                 one notebook in its process: environment, kernel, end
progress                the bar and its time left
notebooks               notebooks as files: twins, comparison, what is stripped of outputs
records                 a chapter's slow calls, kept by hash (sources, frozen), re-run in part
sphinx                  the extension of the HTML build: what all pages share
folding                 which code a page folds
figures, head_figures   a new figure: a function from tables or tensors to a matplotlib figure
verdict                 what may turn out otherwise in a run, set apart from the text
recording, explorer     the explorer of the pages: what it records, and its HTML
ways                    one model's way from words to picture, by the heads that its tables name
claims_grid, first_page the first page: claims by run, and the figures of its sentences
widgets                 the live widgets of JupyterLab; a new widget goes here
assets/                 scripts and styles of the explorer
======================  ============================================================================

A new page is a text twin book/NAME.py and a line in _toc.yml; `spatial-circuits run-book --in-place
NAME` makes its notebook. A new module of the library is a line in book/reference.md.
"""
