"""Plots as HTML and SVG that need no script: bars, and lines over time."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from agentfs.cli import output

_WIDTH, _HEIGHT = 860, 240
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 12, 10, 26
_TICKS = 4


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar, or a line: its name, its class of colour, and its value, or values."""

    name: str
    style: str
    value: float = 0.0
    values: Sequence[float | None] = ()


def bar(parts: Sequence[Part], whole: float) -> str:
    """A bar whose parts stand side by side, *whole* being its full length."""
    pieces = "".join(
        f'<i class="{part.style}" style="width:{100 * part.value / whole:.3f}%"'
        f' title="{escape(part.name)}: {output.size(part.value)}"></i>'
        for part in parts
        if part.value > 0 and whole > 0
    )
    return f'<span class="bar">{pieces}</span>'


def legend(parts: Sequence[Part]) -> str:
    """What the colours mean."""
    items = "".join(f'<li><i class="{one.style}"></i>{escape(one.name)}</li>' for one in parts)
    return f'<ul class="legend">{items}</ul>'


def lines(times_s: Sequence[float], series: Sequence[Part], *, is_share: bool = False) -> str:
    """Values over time; None where there is none. Shares are from 0 to 1, all else is bytes."""
    known = [value for part in series for value in part.values if value is not None]
    top = 1.0 if is_share else _nice_bytes(max(known, default=0.0))
    first, span = times_s[0], max(times_s[-1] - times_s[0], 1e-9)
    inner_width, inner_height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM

    def x(at: float) -> float:
        return _LEFT + inner_width * (at - first) / span

    def y(value: float) -> float:
        return _TOP + inner_height * (1 - value / top)

    drawn = []
    for tick in range(_TICKS + 1):
        value = top * tick / _TICKS
        label = f"{value:.0%}" if is_share else output.size(value)
        drawn.append(
            f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(value):.1f}"'
            f' y2="{y(value):.1f}"/>'
            f'<text class="y" x="{_LEFT - 8}" y="{y(value) + 4:.1f}">{label}</text>'
        )
    for tick in range(_TICKS + 1):
        at = first + span * tick / _TICKS
        anchor = "start" if tick == 0 else "end" if tick == _TICKS else "middle"
        drawn.append(
            f'<text x="{x(at):.1f}" y="{_HEIGHT - 6}" text-anchor="{anchor}">'
            f"{_clock(at, span)}</text>"
        )
    for part in series:
        values = zip(times_s, part.values, strict=True)
        points = [f"{x(at):.1f} {y(value):.1f}" for at, value in values if value is not None]
        if points:
            way = f"M{'L'.join(points)}h0"  # which makes a dot of a single point
            title = f"<title>{escape(part.name)}</title>"
            drawn.append(f'<path class="{part.style}" d="{way}">{title}</path>')
    described = escape(", ".join(part.name for part in series))
    return (
        f'<div class="scroll"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img"'
        f' aria-label="{described} over time">'
        f"{''.join(drawn)}</svg></div>"
    )


def _nice_bytes(most: float) -> float:
    """The end of an axis for values up to *most*: its ticks are 1, 2 or 5 of a unit, times ten."""
    if most <= 0:
        return float(_TICKS)
    unit = 1024.0 ** max(math.floor(math.log(most, 1024)), 0)
    step = most / unit / _TICKS
    power = 10.0 ** math.floor(math.log10(step))
    nice = next(n for n in (1.0, 2.0, 2.5, 5.0, 10.0) if n * power >= step * (1 - 1e-9))
    return nice * power * unit * _TICKS


def _clock(at: float, span_s: float) -> str:
    """A moment, as exactly as a stretch of so many seconds wants it."""
    form = "%H:%M:%S" if span_s < 600 else "%H:%M" if span_s < 86400 else "%d %b %H:%M"
    return time.strftime(form, time.localtime(at))
