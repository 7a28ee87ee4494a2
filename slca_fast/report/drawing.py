"""One drawing serves twice: saved as a light PNG, and as an inline SVG that follows the page's theme."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import matplotlib.style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

_SERIES_LIGHT = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#db2777", "#4d7c0f")


@dataclass(frozen=True)
class Theme:
    """Colours by role."""

    text: str
    muted: str
    grid: str
    background: str
    series: tuple[str, ...]


PNG_THEME = Theme("#1f2937", "#6b7280", "#e5e7eb", "#ffffff", _SERIES_LIGHT)
# placeholder colours, each replaced by a CSS variable in the SVG so that one drawing serves light and dark
SVG_THEME = Theme("#a1e001", "#a1e002", "#a1e003", "none", tuple(f"#a1e1{i:02x}" for i in range(len(_SERIES_LIGHT))))
_CSS_VARIABLES = {
    SVG_THEME.text: "var(--text)",
    SVG_THEME.muted: "var(--muted)",
    SVG_THEME.grid: "var(--grid)",
    **{colour: f"var(--series-{i})" for i, colour in enumerate(SVG_THEME.series)},
}

Draw = Callable[[Theme], Figure]


def png(draw: Draw) -> bytes:
    """The figure on white at 160 dots per inch; the same bytes for the same run."""
    buffer = io.BytesIO()
    with _style(PNG_THEME):
        figure = draw(PNG_THEME)
        FigureCanvasAgg(figure)
        figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return buffer.getvalue()


def svg(draw: Draw, name: str, description: str) -> str:
    """The figure as an ``<svg>`` element without URLs, coloured by the page's CSS variables.

    ``name`` keeps the ids of several figures on one page apart; ``description`` must be escaped already.
    """
    buffer = io.StringIO()
    with _style(SVG_THEME, name):
        figure = draw(SVG_THEME)
        FigureCanvasSVG(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    view_box = re.search(r'viewBox="([^"]+)"', text)
    assert view_box is not None
    body = text[text.index(">", text.index("<svg")) + 1 :]
    body = re.sub(r"<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"[ \t]*\n\s*", "\n", body)
    for colour, variable in _CSS_VARIABLES.items():
        body = body.replace(colour, variable)
    return f'<svg viewBox="{view_box[1]}" role="img" aria-label="{description}">{body}'


def _style(theme: Theme, salt: str = ""):
    settings = {
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "font.size": 9.5,
        "text.color": theme.text,
        "text.parse_math": False,
        "axes.labelcolor": theme.muted,
        "axes.edgecolor": theme.grid,
        "axes.facecolor": "none",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": False,
        "axes.titlesize": 10,
        "grid.color": theme.grid,
        "grid.linewidth": 0.8,
        "xtick.color": theme.grid,
        "ytick.color": theme.grid,
        "xtick.labelcolor": theme.muted,
        "ytick.labelcolor": theme.muted,
        "figure.facecolor": theme.background,
        "savefig.facecolor": theme.background,
        "legend.frameon": False,
        "figure.constrained_layout.w_pad": 0.1,
        "figure.constrained_layout.h_pad": 0.08,
        "svg.fonttype": "none",
        "svg.hashsalt": salt,
        "lines.linewidth": 1.8,
    }
    return _Quiet(matplotlib.style.context(["default", settings]))


class _Quiet:
    """A style context in which a class name with a glyph that the font lacks is no warning."""

    def __init__(self, style) -> None:
        self._style, self._warnings = style, warnings.catch_warnings()

    def __enter__(self) -> None:
        self._warnings.__enter__()
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from")
        self._style.__enter__()

    def __exit__(self, *error) -> None:
        self._style.__exit__(*error)
        self._warnings.__exit__(*error)
