"""The benchmark of kernels on a GPU, where there is none and where there is one."""

import pytest
import torch

from benchmarks import attention_gpu
from benchmarks.options import Options
from streaming.errors import ConfigError


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    with pytest.raises(ConfigError, match="attention_gpu times kernels on a GPU: no CUDA device"):
        attention_gpu.measure(Options())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_every_figure_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    small = {"SEQUENCES": 2, "LENGTH": 256, "RAGGED": 4, "LONGEST": 64, "ROUNDS": 1, "LAUNCHES": 1, "PEAK": 256}
    for name, value in small.items():
        monkeypatch.setattr(attention_gpu, name, value)
    values = attention_gpu.measure(Options())
    assert {"gpu", "gpu_fwd_share", "gpu_fwdbwd_share_bias", "gpu_vs_flash_fwdbwd", "gpu_ragged_ms"} <= values.keys()
    assert values["gpu_bytes_per_token"] == 4 * attention_gpu.HEADS * attention_gpu.WIDTH * 2  # output and gradients
