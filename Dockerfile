# docker build --build-arg EXTRA=cuda -t mlingo_jax:cuda .
# docker run --rm --gpus all -v "$PWD/runs:/music/runs" mlingo_jax:cuda mlingo_jax.train --config=demo
FROM python:3.12-slim

# cuda, tpu or torch, or several with commas; empty for a CPU.
ARG EXTRA=""

# As the first process of a container Python would not be ended by a signal before it listens to it: tini is the first.
RUN apt-get update && apt-get install --no-install-recommends --yes tini && rm -r /var/lib/apt/lists/*

COPY pyproject.toml README.md LICENSE /source/
COPY mlingo_jax /source/mlingo_jax
COPY conversion /source/conversion
COPY configs /source/configs
COPY launch /source/launch
RUN pip install --no-cache-dir "/source${EXTRA:+[$EXTRA]}" && rm -r /source

# No root: what is written to a mounted folder belongs to this user.
RUN useradd --create-home --uid 1000 mlingo && mkdir /music && chown mlingo /music
USER mlingo
WORKDIR /music
ENV PYTHONUNBUFFERED=1

ENTRYPOINT ["tini", "--", "python", "-m"]
CMD ["mlingo_jax.train", "--help"]
