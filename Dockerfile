# A container of the suite. CPU: docker build -t covidseg .
# CUDA (any host with NVIDIA's container toolkit): docker build --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu126 -t covidseg .
# Then: docker run --rm --gpus all --shm-size=1g -u $(id -u):$(id -g) -v $PWD:/work covidseg train model=covidsegnet
FROM python:3.11-slim-bookworm
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1 HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib
WORKDIR /opt/covidseg
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY src src
COPY conf conf
COPY experiments experiments
RUN pip install --extra-index-url "$TORCH_INDEX" -c constraints.txt '.[dicom]'
# Runs, data and results lie in the folder that is mounted, whoever the container runs as.
WORKDIR /work
ENTRYPOINT ["covidseg"]
CMD ["--help"]
