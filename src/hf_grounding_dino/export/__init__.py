"""ONNX, OpenVINO and torch.export."""
