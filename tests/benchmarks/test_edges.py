"""Benchmarks of edges: attribution against path patching, and exchange in one batch against one by one. Costs are ratios within one run."""
import time

import pytest
from test_speed import note

from spatial_circuits.analyses.edges import edge_attribution
from spatial_circuits.analyses.exact_edges import check_edges
from spatial_circuits.analyses.token_exchange import exchange_tokens
from spatial_circuits.data.metrics import prompt_set
from spatial_circuits.model.store import load

PROMPTS = prompt_set("264")[:8]


@pytest.fixture(scope="module")
def fast():
    return load("rte").fast()


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def test_edge_attribution(benchmark, fast):
    """All edges of a model by gradient against path patching of each; and one step's cost against a plain forward of it."""
    table = benchmark.pedantic(lambda: edge_attribution(fast, PROMPTS, every=7), rounds=2)
    _, numbers = check_edges(fast, PROMPTS, table, 12, every=7)
    sampling = seconds(lambda: fast.latents(PROMPTS, list(range(8))))
    note(benchmark, edges=len(table), cost_ratio=numbers["cost ratio"], rank_correlation=numbers["rank correlation"],
         over_sampling=benchmark.stats.stats.median / sampling)


def test_token_exchange(benchmark, fast):
    """Every token and pair: time a picture, over that of sampling as many plain ones."""
    prompts = PROMPTS[:2]
    count = len(prompts) * (1 + 3 * 22)
    frame = benchmark.pedantic(lambda: exchange_tokens(fast, prompts), rounds=1)
    assert len(frame) == count
    plain = seconds(lambda: fast.images(prompts * 67, list(range(count))))
    note(benchmark, images=count, over_sampling=benchmark.stats.stats.median / plain)
