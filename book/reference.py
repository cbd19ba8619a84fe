# %% [markdown]
# # Reference
#
# Every public function of the library, from its docstring. Modules are listed in the order of their imports: a module uses only
# those above it.

# %% tags=["parameters"]
model: str = "rte"
seed: int = 1
scale: str = "full"  # smoke | full

# %% tags=["remove-input"]
from IPython.display import Markdown

from spatial_circuits.reference import page

Markdown(page())
