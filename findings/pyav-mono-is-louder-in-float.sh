#!/usr/bin/env bash
# PyAV 18.1.0 (FFmpeg): the same stereo tone brought to mono by AudioResampler is 3 dB louder in float formats (peak 0.707)
# than in 16 or 32 bit integers (0.5). The integer formats normalise the sum of the channels, the float formats keep its
# power. A clip whose codec decodes to float (AAC, Opus, MP3) and a WAV of the same sound therefore reach a model at
# different levels. Averaging the channels by hand gives 0.5 for both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet --disable-pip-version-check av==18.1.0 numpy==2.4.6 2>/dev/null
"$folder/env/bin/python" - <<'PYTHON' | tee "$folder/seen"
import av
import numpy as np


def peak(sample_format, dtype, scale):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)
    frame = av.AudioFrame.from_ndarray((np.stack([tone, tone]) * scale).astype(dtype), sample_format, "stereo")
    frame.sample_rate = 48000
    resampler = av.AudioResampler(sample_format, "mono", 48000)
    parts = [part.to_ndarray() for source in (frame, None) for part in resampler.resample(source)]
    return round(float(np.abs(np.concatenate(parts, axis=1)).max()) / scale, 3)


print("16 bit ", peak("s16p", np.int16, 2**15 - 1))
print("32 bit ", peak("s32p", np.int32, 2**31 - 1))
print("float  ", peak("fltp", np.float32, 1))
print("double ", peak("dblp", np.float64, 1))
PYTHON
diff "$folder/seen" - <<'EXPECTED' && echo "as found"
16 bit  0.5
32 bit  0.5
float   0.707
double  0.707
EXPECTED
