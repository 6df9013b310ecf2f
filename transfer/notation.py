"""How figures of a report are written, alike in a terminal, in Markdown and on a page."""

from transfer.gain import Gain

LEGEND = (
    "NE: normalised entropy, lower is better. Gain: fall of NE in % [95 % interval over users and seeds]. "
    "▲ better, ▼ worse; △ ▽ within the noise floor: the gain between two control seeds, n/a with one."
)


def number(value: float | None) -> str:
    """Four digits after the point; a dash for what is not defined."""
    return "—" if value is None or value != value else f"{value:.4f}"


def percent(value: float) -> str:
    """Signed, and six characters wide at most below 100 000 %: an arm that diverged must not widen the table."""
    digits = 2 if abs(value) < 99.995 else 1 if abs(value) < 999.95 else 0
    return f"{value:+.{digits}f}"


def interval(one: Gain) -> str:
    """``[-0.12, +1.23]``."""
    return f"[{percent(one.lo)}, {percent(one.hi)}]"


def mark(one: Gain) -> str:
    """A triangle where the interval excludes 0, hollow within the noise floor; a blank elsewhere."""
    if not one.excludes_zero:
        return " "
    within_floor = one.verdict == "none"
    return ("△" if within_floor else "▲") if one.gain_pct > 0 else ("▽" if within_floor else "▼")


def floor(value: float | None) -> str:
    """A noise floor in %."""
    return "n/a" if value is None else percent(value).removeprefix("+")
