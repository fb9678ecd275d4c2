"""Every figure of the notebooks, drawn from tables.

In comes a pandas table whose columns the function names. Out comes a matplotlib figure in the
one style of the project, with an alternative text, to save or preview. Nothing here computes a
result.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "bars": [
            "arm_intervals",
            "benchmark_statistics",
            "gap_intervals",
            "reliability_diagrams",
            "screening_levels",
            "share_bars",
            "subset_bars",
            "two_by_two",
        ],
        "lines": [
            "frequency_curve",
            "MEASURE_TITLES",
            "lines_in_panels",
            "margin_curves",
            "methods_over_shots",
            "protocol_overview",
            "rise_over_dose",
            "risk_curves",
            "sweep_lines",
        ],
        "maps": [
            "caption_counts",
            "example_grid",
            "names_in_space",
            "scores_by_domain",
            "tsne_scatter",
        ],
        "style": ["LEARNED", "STYLES", "looks", "pretty", "preview", "save"],
    },
)
