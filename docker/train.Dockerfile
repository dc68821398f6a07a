# All three stages:
#   docker build -f docker/train.Dockerfile -t surround .
#   docker run --gpus all --shm-size 8g -v /data:/data -v "$PWD/runs:/srv/runs" \
#     surround teacher-cache pandaset --data /data/pandaset
# PyTorch is the CUDA build; it needs only the driver of the host.
FROM python:3.11-slim-bookworm

WORKDIR /opt/surround
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY data_cache ./data_cache
COPY stages ./stages
COPY pipeline ./pipeline
RUN python -m pip install --no-cache-dir -c constraints.txt '.[export]'

# Weights that `surround weights NAME` fetches are kept beside the runs.
ENV XDG_CACHE_HOME=/srv/runs/.cache
WORKDIR /srv
ENTRYPOINT ["surround"]
