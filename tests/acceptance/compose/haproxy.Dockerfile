# Stands for docker.io/library/haproxy where that cannot be pulled: the same program, from Debian.
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends haproxy
USER haproxy
