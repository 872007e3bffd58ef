"""`bs.onnx`: networks as ONNX files, for onnxruntime and what else reads them.

`write` needs the extra `onnx`. This package only writes ONNX: the one file it runs is the one that
it has just made, in memory. `docs/onnx.md` says what is supported, and how to run the files.
"""

from .onnx_write import Exported as Exported
from .onnx_write import write as write
