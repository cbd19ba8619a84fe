"""Learning: after how many images something is learned, and which of two things comes first."""
import numpy as np
import pandas as pd

from .intervals import wilson

SHARES = {"a tenth": 0.1, "half": 0.5}      # of the last gain of a run


def crossing(curve: pd.Series, level: float = 0.5) -> float:
    """Images, the curve's index, after which it first reaches the level, interpolated from the
    value before; NaN if never. The curve must hold no NaN."""
    reached = (curve >= level).to_numpy()
    if not reached.any():
        return np.nan
    first = int(reached.argmax())
    near = curve.iloc[max(0, first - 1):first + 1]
    return float(np.interp(level, near, near.index))


def when_learned(gains: dict[str, pd.Series]) -> dict[tuple[str, str], float]:
    """{(name, share): images} until the gains of a run, by name, reach SHARES of their last
    values."""
    return {(name, said): crossing(gain, share * gain.iloc[-1])
            for name, gain in gains.items() for said, share in SHARES.items()}


def comes_first(learned: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """In how many runs `one` reaches each of SHARES before `other`, a row a share.

    learned: a row a run, columns as of `when_learned`; runs in which either is never learned are
    left out. Columns: first, runs, low, high (Wilson's interval), and least and most images by
    which it is ahead. Raises ValueError if no run is left.
    """
    rows = {}
    for said in SHARES:
        lead = (learned[other, said] - learned[one, said]).dropna()
        first, runs = int((lead > 0).sum()), len(lead)
        rows[said] = (first, runs, *wilson(first, runs), lead.min(), lead.max())
    return pd.DataFrame(rows, ["first", "runs", "low", "high", "least", "most"]).T
