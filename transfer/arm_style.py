"""How arms are drawn: by colour, and by line and marker, which tell every two of them apart without colour.

Colours are Okabe and Ito's (2008), told apart by the colour-blind; a family of arms shares one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from transfer.gain import (
    ARMS,
    AUX_HEAD,
    AUX_HEAD_ADAPTER,
    BLENDED,
    C2AL,
    CONTROL,
    CONTROL_MATCHED,
    FINETUNE,
    FM_HEAD,
    FM_SINGLE_SURFACE,
    KD,
    LIGHTGBM,
    LIGHTGBM_TREATED,
    LOGIT_RESIDUAL,
    TAE,
    TAE_AUX_HEAD_ADAPTER,
    TAE_C2AL,
    TAE_CONCAT,
    TAE_CROSS_ATTENTION,
    TAE_HISTORY,
    TAE_KD,
    TAE_SEQUENCE,
    TREATED,
    USER_EMBEDDING,
)


@dataclass(frozen=True)
class Style:
    """Attributes: ``colour``, ``line`` and ``marker`` as matplotlib takes them, and the ``label`` of the legend."""

    colour: str
    line: Any
    marker: str
    label: str


_BLACK, _SKY, _ORANGE, _PURPLE, _BLUE, _GREEN, _RED = (
    "#000000",
    "#56B4E9",
    "#E69F00",
    "#CC79A7",
    "#0072B2",
    "#009E73",
    "#D55E00",
)
_DASHED_DOTTED = (0, (5, 1, 1, 1, 1, 1))
_NONE = ""

_STYLES = {
    CONTROL: Style(_BLACK, "-", _NONE, "control"),
    CONTROL_MATCHED: Style(_SKY, "--", _NONE, "matched control"),
    LIGHTGBM: Style(_RED, "--", "s", "LightGBM"),
    FM_SINGLE_SURFACE: Style(_GREEN, ":", "D", "FM of the surface alone"),
    FM_HEAD: Style(_GREEN, _DASHED_DOTTED, _NONE, "FM's own head"),
    TREATED: Style(_BLUE, "-", "o", "treated (TAE + logit residual)"),
    TAE: Style(_ORANGE, "-.", _NONE, "TAE"),
    LOGIT_RESIDUAL: Style(_PURPLE, ":", _NONE, "logit residual"),
    KD: Style(_SKY, "-", "x", "kd"),
    AUX_HEAD: Style(_SKY, "-.", "x", "aux_head"),
    AUX_HEAD_ADAPTER: Style(_SKY, ":", "x", "aux_head_adapter"),
    USER_EMBEDDING: Style(_BLUE, "--", "v", "user_embedding"),
    TAE_SEQUENCE: Style(_ORANGE, "-", "^", "tae_sequence"),
    TAE_CONCAT: Style(_ORANGE, "--", "^", "tae_concat"),
    TAE_CROSS_ATTENTION: Style(_ORANGE, ":", "^", "tae_cross_attention"),
    TAE_AUX_HEAD_ADAPTER: Style(_BLUE, "-.", "D", "tae_aux_head_adapter"),
    TAE_KD: Style(_BLUE, ":", "v", "tae_kd"),
    TAE_HISTORY: Style(_ORANGE, "-.", "v", "tae_history"),
    C2AL: Style(_PURPLE, "-", "P", "c2al"),
    TAE_C2AL: Style(_PURPLE, "--", "P", "tae_c2al"),
    BLENDED: Style(_RED, "-", "s", "blended (LightGBM + FM)"),
    LIGHTGBM_TREATED: Style(_RED, ":", "s", "LightGBM that reads the FM's logit"),
    FINETUNE: Style(_BLACK, ":", "o", "finetune"),
}


def style(arm: str) -> Style:
    """Of an arm; one that is not known is drawn in grey, under its own name."""
    return _STYLES.get(arm, Style("#7f7f7f", "-", "*", arm))


def in_order(arms: Iterable[str]) -> list[str]:
    """Known arms as :data:`transfer.gain.ARMS` has them, then others by name."""
    given = set(arms)
    return [*(arm for arm in ARMS if arm in given), *sorted(given.difference(ARMS))]
