"""Every figure of the notebooks, drawn from tables.

In comes a pandas table whose columns the function names. Out comes a matplotlib figure in the
one style of the project, to save or preview. Nothing here computes a result.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "charts": [
            "benchmark_statistics",
            "caption_counts",
            "example_grid",
            "frequency_curve",
            "gap_intervals",
            "line_styles",
            "lines_in_panels",
            "margin_curves",
            "methods_over_shots",
            "names_in_space",
            "pretty",
            "preview",
            "protocol_overview",
            "reliability_diagrams",
            "risk_curves",
            "save",
            "screening_levels",
            "share_bars",
            "subset_bars",
            "sweep_lines",
            "tsne_scatter",
            "LEARNED",
        ],
    },
)
