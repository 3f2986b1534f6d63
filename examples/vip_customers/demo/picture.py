"""The growth of VIPs as a picture, an SVG that any browser shows."""

from datetime import date, timedelta
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 860, 440
LEFT, RIGHT, TOP, BOTTOM = 70, 50, 60, 50  # margins
DATES = 6  # labels below the picture
STEPS = 5  # lines across it, at most

Growth = list[tuple[date, int]]  # VIPs at the end of a day


def draw(file: Path, shop: Growth, counted: Growth, title: str) -> None:
    """Draw what the shop recorded as a line over the file's own count, day by day; neither may be empty."""
    days = [day for day, _ in shop + counted]
    plot = Plot(min(days), max(days), max(shop[-1][1], counted[-1][1]))
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}">',
        '<g font-family="sans-serif" font-size="13" fill="#333">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
        f'<text x="{LEFT}" y="32" font-size="19">{escape(title)}</text>',
        *plot.scales(),
        f'<path d="{plot.stairs(counted)}" fill="none" stroke="#f2b179" stroke-width="7"/>',
        f'<path d="{plot.stairs(shop)}" fill="none" stroke="#1f5f8b" stroke-width="2"/>',
        *_legend((("#f2b179", 7, "counted in the file"), ("#1f5f8b", 2, "recorded by the shop"))),
        "</g>\n</svg>\n",
    ]
    file.write_text("\n".join(parts), encoding="utf-8")


class Plot:
    """Where a day and a number of VIPs are on the picture."""

    def __init__(self, first: date, last: date, most: int) -> None:
        self.first, self.days = first, max(1, (last - first).days)
        self.step = _round_step(most / STEPS)
        self.most = max(most, 1)

    def x(self, day: date) -> float:
        """Return the place of a day, in pixels from the left."""
        return round(LEFT + (WIDTH - LEFT - RIGHT) * (day - self.first).days / self.days, 1)

    def y(self, vips: int) -> float:
        """Return the place of a number, in pixels from the top."""
        return round(HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * vips / self.most, 1)

    def stairs(self, growth: Growth) -> str:
        """Return the path of a number that stays constant between the days on which it grows."""
        steps = "".join(f"H{self.x(day)}V{self.y(vips)}" for day, vips in growth)
        return f"M{LEFT} {self.y(0)}{steps}H{WIDTH - RIGHT}"

    def scales(self) -> list[str]:
        """Return the lines and labels of both axes."""
        lines = [
            f'<path d="M{LEFT} {self.y(vips)}H{WIDTH - RIGHT}" stroke="#ddd"/>'
            f'<text x="{LEFT - 8}" y="{self.y(vips) + 4}" text-anchor="end">{vips}</text>'
            for vips in range(0, self.most + 1, self.step)
        ]
        days = sorted({self.first + timedelta(self.days * i // (DATES - 1)) for i in range(DATES)})
        labels = [
            f'<text x="{self.x(day)}" y="{HEIGHT - BOTTOM + 24}" text-anchor="middle">{day}</text>'
            for day in days
        ]
        return lines + labels


def _legend(entries: tuple[tuple[str, int, str], ...]) -> list[str]:
    return [
        f'<path d="M{LEFT + 16} {TOP + 20 + 24 * i}h36" stroke="{colour}" stroke-width="{width}"/>'
        f'<text x="{LEFT + 62}" y="{TOP + 24 + 24 * i}">{escape(text)}</text>'
        for i, (colour, width, text) in enumerate(entries)
    ]


def _round_step(least: float) -> int:
    """Return the next of 1, 2, 5, 10, 20, 50, …"""
    power = 1
    while True:
        for factor in (1, 2, 5):
            if factor * power >= least:
                return factor * power
        power *= 10
