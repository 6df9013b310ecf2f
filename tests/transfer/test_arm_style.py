"""Every arm has a style of its own."""

from transfer import gain
from transfer.arm_style import in_order, style


def test_arms_are_told_apart_without_colour() -> None:
    known = [style(arm) for arm in gain.ARMS]
    assert len({(each.line, each.marker) for each in known}) == len(gain.ARMS)
    assert len({each.label for each in known}) == len(gain.ARMS)
    assert style("something_else") not in known and style("something_else").label == "something_else"


def test_every_arm_of_a_comparison_has_a_place() -> None:
    compared = {arm for pair in gain.PAIRS for arm in pair} | set(gain.TRAINED_ONCE)
    assert compared <= set(gain.ARMS) and len(set(gain.ARMS)) == len(gain.ARMS)
    assert in_order(["zebra", "tae", "control", "ant"]) == ["control", "tae", "ant", "zebra"]
