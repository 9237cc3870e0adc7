# Two images: `docker build --target cpu .` and `docker build --target cuda .`
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
WORKDIR /src
COPY . .
RUN pip wheel --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim AS base
RUN useradd --create-home tailor
COPY --from=build /wheels /wheels
WORKDIR /work
ENTRYPOINT ["tailor"]
CMD ["--help"]

# The CPU build of torch: the default one brings CUDA libraries of several gigabytes.
FROM base AS cpu
RUN pip install --no-cache-dir uv \
 && uv pip install --system --no-cache --torch-backend cpu "$(ls /wheels/*.whl)[media,pdf]" && rm -r /wheels
USER tailor

FROM base AS cuda
RUN pip install --no-cache-dir torch "$(ls /wheels/*.whl)[media,pdf,quantize]" && rm -r /wheels
USER tailor
