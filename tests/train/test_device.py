"""A training stays on its device."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from trainings import draw_domains


@pytest.mark.slow
def test_a_training_on_a_gpu_mixes_no_tensors_or_generators_of_both_sides(tmp_path):
    """No GPU is needed: see simulated_gpu.py. Kernels, precisions and speed are a real one's own."""
    draw_domains(tmp_path, 31, 33)
    command = [sys.executable, Path(__file__).with_name("simulated_gpu.py"), tmp_path]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "RFP_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("done") == 4
