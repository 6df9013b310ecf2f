"""Beyond one machine, measured on one: the foundation model on several workers, many experts beside it,
and what a token, a candidate and a key cost.
"""

from benchmarks.options import Options, Values
from benchmarks.scale_costs import measure_costs
from benchmarks.scale_experts import measure_experts
from benchmarks.scale_sharded import measure_sharded


def measure(options: Options) -> Values:
    """Keys are described in docs/benchmarks.md."""
    return {**measure_sharded(options), **measure_experts(options), **measure_costs(options)}
