"""The kinds of files that a network ships as, for whoever asks before torch is there."""

FORMATS = {"onnx": ".onnx", "torch_export": ".pt2", "safetensors": ".safetensors"}
MOST_IMAGES = 4096  # in a batch whose size a file fixes
