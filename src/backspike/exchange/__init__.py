"""Networks to and from other tools: `bs.nir`, `bs.onnx`, and `bs.convert` for other libraries."""
