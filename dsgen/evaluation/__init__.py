"""Evaluation: score a trained network, apply it to pictures, export it as ONNX."""
