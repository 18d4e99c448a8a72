"""rfp: unpaired image translation by rectified flow (Liu, Gong, Liu 2022, arXiv:2209.03003, section 5.3).

The packages form one line of arrows, `cli → export → train → runtime`; an arrow means "may import".
"""

import os

__version__ = "0.1.0"

# ONNX Runtime 1.32 for Linux tells Microsoft of its sessions and keeps a device id in ~/.cache, unless this is set.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
