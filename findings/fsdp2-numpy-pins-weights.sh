#!/usr/bin/env bash
# torch 2.13.0: reading a gathered weight of an FSDP2 model as a numpy array (to hash it, to log a histogram) ends the
# training later: `Tensor.numpy` marks the storage as not resizable for good, and FSDP2 frees gathered weights by resizing
# their storage to nothing. The error comes from `reshard`, or from the next forward pass, and does not name the cause.
# `numpy.from_dlpack` on the same tensor gives the same array without copying and leaves the storage as it was.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 2>/dev/null
"$folder/env/bin/python" - "$folder" 2>/dev/null <<'PYTHON' | tee "$folder/seen"
import sys

import numpy as np
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meeting", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
for name, read in (("numpy.from_dlpack", np.from_dlpack), ("Tensor.numpy", lambda weight: weight.numpy())):
    layer = torch.nn.Linear(4, 4)
    fully_shard(layer, mesh=mesh)
    layer.unshard()
    total = float(read(layer.weight.detach()).sum())
    try:
        layer.reshard()
        print(f"{name}: resharded")
    except RuntimeError as error:
        print(f"{name}: {error}")
PYTHON
diff "$folder/seen" - <<'EXPECTED' && echo "as found"
numpy.from_dlpack: resharded
Tensor.numpy: Trying to resize storage that is not resizable
EXPECTED
