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

# torch from its own CPU index: the default one brings CUDA libraries of several gigabytes.
FROM base AS cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" torch \
 && pip install --no-cache-dir "$(ls /wheels/*.whl)[media,pdf]" && rm -r /wheels
USER tailor

FROM base AS cuda
RUN pip install --no-cache-dir torch "$(ls /wheels/*.whl)[media,pdf,quantize]" && rm -r /wheels
USER tailor
