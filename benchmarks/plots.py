"""Charts as SVG: bars for figures as shares of their goals, and lines over minutes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

from benchmarks.figure import Figure

LEFT, WIDTH, ROW, TOP = 430, 420, 26, 46  # pixels
CAP = 2.0  # a longer bar is cut here; its number is shown


def goals_svg(figures: Iterable[Figure]) -> str:
    """Return the chart; the line at 1 is the goal."""
    bars = [figure for figure in figures if figure.goal is not None]
    height = TOP + ROW * len(bars) + 20
    goal_x = LEFT + WIDTH / CAP
    rows = "\n".join(_row(figure, TOP + ROW * number) for number, figure in enumerate(bars))
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + 110}" height="{height}"
 font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
<text x="10" y="20" font-size="15">Each figure as a share of its goal (longer is better, 1 is the goal)</text>
{rows}
<line x1="{goal_x}" y1="{TOP - 10}" x2="{goal_x}" y2="{height - 12}" stroke="black" stroke-dasharray="4 3"/>
</svg>
"""


def share_of_goal(figure: Figure) -> float:
    """Return a figure's share of its goal; above 1 is better than the goal."""
    if figure.goal is None:
        raise ValueError(f"{figure.key} has no goal")
    return figure.value / figure.goal if figure.at_least else figure.goal / figure.value


def _row(figure: Figure, y: int) -> str:
    share = share_of_goal(figure)
    length = min(share, CAP) / CAP * WIDTH
    colour = "#2a7f62" if figure.met else "#b3472f"
    label = escape(_short(f"{figure.what} : {figure.against}"))
    return (
        f'<text x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{label}</text>'
        f'<rect x="{LEFT}" y="{y}" width="{length:.1f}" height="{ROW - 8}" fill="{colour}"/>'
        f'<text x="{LEFT + length + 6:.1f}" y="{y + 13}">'
        f"{figure.value:.2f} × ({escape(figure.goal_text)})</text>"
    )


def _short(text: str, limit: int = 66) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class Panel:
    """Lines over the same minutes, by name."""

    title: str
    lines: dict[str, list[float]]


COLOURS = ("#2a7f62", "#b3472f", "#3b5b92")
PANEL, GRAPH, SIDE = 190, 130, 60  # pixels


def lines_svg(panels: Iterable[Panel]) -> str:
    """Return charts below each other; each begins at zero."""
    charts = [_panel(panel, 20 + PANEL * number) for number, panel in enumerate(panels)]
    joined = "\n".join(charts)
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{SIDE + WIDTH * 2 + 150}"
 height="{20 + PANEL * len(charts)}" font-family="sans-serif" font-size="12">
<rect width="100%" height="100%" fill="white"/>
{joined}
</svg>
"""


def _panel(panel: Panel, top: int) -> str:
    minutes = max(len(values) for values in panel.lines.values())
    highest = max(max(values) for values in panel.lines.values()) or 1
    across, foot = WIDTH * 2 / max(1, minutes - 1), top + 20 + GRAPH
    parts = [
        f'<text x="{SIDE}" y="{top + 10}" font-size="14">{escape(panel.title)}</text>',
        f'<text x="{SIDE - 6}" y="{top + 30}" text-anchor="end">{highest:,.0f}</text>',
        f'<text x="{SIDE - 6}" y="{foot}" text-anchor="end">0</text>',
        f'<path d="M{SIDE} {top + 20}V{foot}H{SIDE + WIDTH * 2}" stroke="black" fill="none"/>',
        f'<text x="{SIDE + WIDTH * 2}" y="{foot + 14}" text-anchor="end">{minutes} min</text>',
    ]
    for number, (name, values) in enumerate(panel.lines.items()):
        points = " ".join(
            f"{SIDE + minute * across:.1f},{foot - value / highest * GRAPH:.1f}"
            for minute, value in enumerate(values)
        )
        colour = COLOURS[number]
        parts.append(f'<polyline points="{points}" stroke="{colour}" fill="none" stroke-width="1.5"/>')
        label_y = top + 34 + 16 * number
        parts.append(f'<text x="{SIDE + WIDTH * 2 + 10}" y="{label_y}" fill="{colour}">{escape(name)}</text>')
    return "\n".join(parts)
