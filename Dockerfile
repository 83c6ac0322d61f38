# The page and the API with the shipped checkpoints, as a Docker Space runs them: user 1000, port 7860, no network at start.
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 user
USER user
WORKDIR /home/user/app

ENV PATH=/home/user/.venv/bin:$PATH \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HUB_OFFLINE=1

# Before the code, so that a change of code reuses this layer of several GB.
COPY --chown=user requirements.txt ./
RUN python -m venv /home/user/.venv && pip install -r requirements.txt

COPY --chown=user LICENSE ./
COPY --chown=user nbcore nbcore
COPY --chown=user checkpoints checkpoints
COPY --chown=user app app

EXPOSE 7860
HEALTHCHECK --interval=30s --timeout=5s --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/healthz', timeout=4)"]
CMD ["python", "-m", "app", "--host", "0.0.0.0", "--port", "7860"]
