#!/usr/bin/env bash
# safetensors 0.8.0 with numpy 2.4.6: `safetensors.numpy.save` writes a transposed array in the order in which it lies in
# memory, under the shape of the view. It comes back with other values and without an error. The torch interface
# refuses a tensor that is not contiguous. A weight transposed in NumPy before it is saved is wrong on the other side;
# `numpy.ascontiguousarray` first is the way round.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6 2>/dev/null
"$folder/env/bin/python" - <<'PYTHON' | tee "$folder/seen"
import numpy as np
from safetensors.numpy import load, save

weight = np.arange(6, dtype=np.float32).reshape(2, 3).T
print("saved ", weight.tolist())
print("loaded", load(save({"weight": weight}))["weight"].tolist())
print("copied", load(save({"weight": np.ascontiguousarray(weight)}))["weight"].tolist())
PYTHON
diff "$folder/seen" - <<'EXPECTED' && echo "as found"
saved  [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
loaded [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
copied [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
EXPECTED
