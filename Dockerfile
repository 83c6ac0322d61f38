# The page and the API with the shipped checkpoints, as a Docker Space runs them: user 1000, port 7860, no network at start.
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 user
USER 1000
WORKDIR /home/user/app

# The last two let NVIDIA's container runtime bring its driver in, where there is one.
ENV HOME=/home/user \
    PATH=/home/user/.venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    ORT_DISABLE_TELEMETRY=1 \
    HF_HUB_OFFLINE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility

# Before the code, so that a change of code reuses this layer of several GB. What only training needs is left out, and so
# is what serving never loads: headers, static libraries, tests, and Triton, the compiler behind torch.compile.
COPY --chown=1000 requirements.txt ./
RUN python -m venv /home/user/.venv \
    && sed '/^# Training only/,$d' requirements.txt > /tmp/serving.txt \
    && pip install -r /tmp/serving.txt \
    && rm /tmp/serving.txt \
    && find /home/user/.venv -name '*.a' -delete \
    && find /home/user/.venv -type d \( -path '*/torch/include' -o -path '*/torch/test' -o -path '*/nvidia/*/include' \
        -o -path '*/site-packages/triton' \) \
        -prune -exec rm -rf {} +

COPY --chown=1000 LICENSE ./
COPY --chown=1000 nbcore nbcore
COPY --chown=1000 checkpoints checkpoints
COPY --chown=1000 app app

# A Space stands behind a proxy of a private network, so the address of a visitor is the last that is not of one.
ENV NB_HOST=0.0.0.0 \
    NB_PORT=7860 \
    NB_LOG_FORMAT=json \
    NB_TRUSTED_PROXIES=127.0.0.0/8,10.0.0.0/8,172.16.0.0/12,192.168.0.0/16,100.64.0.0/10,::1 \
    NB_RATE_PER_MINUTE=240

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
CMD ["python", "-m", "app"]
