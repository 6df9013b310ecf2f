"""What was chosen for each layer and why: kept as JSON, printed as a table."""

from collections.abc import Iterator
from typing import Literal

from rich.table import Table

from streaming.config import Config


class Option(Config):
    """One kernel for one layer.

    Attributes:
        error: root mean square of the outputs' error on sampled inputs, against that of the outputs in float32.
        predicted: the same, expected from running statistics alone; None of tables.
        microseconds: of a call with as many rows as are usual.
        nbytes: of weights, scales and biases.
    """

    error: float
    predicted: float | None = None
    microseconds: float
    nbytes: int


class LayerReport(Config):
    """One layer.

    Attributes:
        name: its path in the model.
        kind: ``linear`` or ``table``.
        shape: of the weight: outputs and inputs, or rows and width.
        rows: of a usual call; of a table, bags.
        keep: whether a linear layer's output stays in the kernel's dtype.
        options: by kernel, those that were measured.
        kernel: the chosen one.
        put_back: what was chosen before, in turn, where the bound on the whole model did not let it stand.
        ne_cost_pct: expected relative change of NE with this layer alone compact, in %
            (:mod:`hypercast.serving.precision.cost`).
    """

    name: str
    kind: Literal["linear", "table"]
    shape: tuple[int, int]
    rows: int
    keep: bool = False
    options: dict[str, Option]
    kernel: str
    put_back: list[str] = []
    ne_cost_pct: float = 0.0

    @property
    def chosen(self) -> Option:
        """The option of the chosen kernel."""
        return self.options[self.kernel]

    @property
    def float32(self) -> Option:
        """The option of leaving the layer as it is."""
        return self.options["float32"]


class Report(Config):
    """All layers of a model, and what they come to.

    Attributes:
        layers: in the model's order.
        unavailable: kernels that were asked for and this machine has no use for, with the reason.
        ne_cost_pct: expected relative change of NE with all choices, %, on the sample.
        logit_change: root mean square of the change of logits on the sample.
        candidates: in the sample.
    """

    layers: list[LayerReport]
    unavailable: dict[str, str]
    ne_cost_pct: float
    logit_change: float
    candidates: int

    def of(self, kind: Literal["linear", "table"]) -> list[LayerReport]:
        """The layers of one kind."""
        return [layer for layer in self.layers if layer.kind == kind]

    @property
    def table_ratio(self) -> float:
        """Bytes of the tables in float32 over those chosen; 1 without tables."""
        tables = self.of("table")
        return sum(each.float32.nbytes for each in tables) / max(1, sum(each.chosen.nbytes for each in tables) or 1)

    def to_rich(self) -> Table:
        """One line a layer, and their sum."""
        heads = ("layer", "shape", "rows", "kernel", "KiB", "of", "us", "of", "error", "predicted", "NE cost %")
        table = Table()
        for head in heads:
            table.add_column(head, justify="left" if head in ("layer", "kernel") else "right")
        for line in self._lines():
            table.add_row(*line)
        chosen, before = ([getattr(each, name) for each in self.layers] for name in ("chosen", "float32"))
        table.add_section()
        table.add_row(
            "all",
            *("", "", ""),
            *(f"{sum(option.nbytes for option in options) / 1024:,.0f}" for options in (chosen, before)),
            *(f"{sum(option.microseconds for option in options):,.0f}" for options in (chosen, before)),
            *("", "", f"{self.ne_cost_pct:.5f}"),
        )
        return table

    def _lines(self) -> Iterator[list[str]]:
        for layer in self.layers:
            chosen, before = layer.chosen, layer.float32
            yield [
                layer.name,
                f"{layer.shape[0]} x {layer.shape[1]}",
                str(layer.rows),
                " < ".join([layer.kernel, *reversed(layer.put_back)]),
                f"{chosen.nbytes / 1024:,.1f}",
                f"{before.nbytes / 1024:,.1f}",
                f"{chosen.microseconds:,.0f}",
                f"{before.microseconds:,.0f}",
                f"{chosen.error:.4f}",
                "" if chosen.predicted is None else f"{chosen.predicted:.4f}",
                f"{layer.ne_cost_pct:.5f}",
            ]
