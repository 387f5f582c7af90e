"""What every lesson begins with: `from minipage.lesson import setup`, and then `plt, np = setup()`."""

from __future__ import annotations

from types import ModuleType

COLORS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"]  # Okabe and Ito: told apart by all eyes


def setup() -> tuple[ModuleType, ModuleType]:
    """Sharp plots of the lessons' looks. Returns matplotlib.pyplot and numpy."""
    import matplotlib.pyplot as plt
    import numpy as np
    from cycler import cycler
    from matplotlib_inline.backend_inline import set_matplotlib_formats

    set_matplotlib_formats("svg")
    plt.rcParams["figure.figsize"] = 7.5, 3
    plt.rcParams["axes.spines.top"] = plt.rcParams["axes.spines.right"] = False
    plt.rcParams["axes.prop_cycle"] = cycler(color=COLORS)
    return plt, np
