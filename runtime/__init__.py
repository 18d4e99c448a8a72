"""Run exported velocity graphs: numpy, Pillow, PyAV and ONNX Runtime, never torch."""
