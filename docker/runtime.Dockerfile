# A student on a vehicle, without PyTorch and without this program:
#   docker build -f docker/runtime.Dockerfile --target python -t depth .
#   docker build -f docker/runtime.Dockerfile --target cpp -t depth-cpp .
#   docker run -v "$PWD:/srv" depth student.onnx --out seen front=1266.4:front.jpg ...
FROM python:3.11-slim-bookworm AS python

RUN python -m pip install --no-cache-dir numpy==2.4.6 onnxruntime==1.32.0 pillow==13.0.0
COPY examples/deploy/depth.py /opt/depth.py
WORKDIR /srv
ENTRYPOINT ["python", "/opt/depth.py"]

FROM debian:trixie-slim AS build

RUN apt-get update && apt-get install -y --no-install-recommends g++ cmake make libonnxruntime-dev
COPY examples/deploy /src
RUN cmake -S /src -B /build && cmake --build /build

FROM debian:trixie-slim AS cpp

RUN apt-get update && apt-get install -y --no-install-recommends libonnxruntime1.21 && rm -rf /var/lib/apt/lists/*
COPY --from=build /build/depth /usr/local/bin/depth
WORKDIR /srv
ENTRYPOINT ["depth"]
