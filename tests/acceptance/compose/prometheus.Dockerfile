# Stands for docker.io/prom/prometheus where that cannot be pulled: the same program, from Debian.
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends prometheus \
    && install -d -o nobody /prometheus
USER nobody
VOLUME /prometheus
ENTRYPOINT ["prometheus"]
