# The image of every process of ours; which one it is, the command says. Without the embedded
# servers: DATABASE_URL and REDIS_URL name others.

FROM python:3.13-slim AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /build
RUN python -m venv --without-pip /opt/assignment-workers
# What we need changes less often than what we write: these layers are kept.
COPY requirements.lock requirements-build.lock ./
RUN python -m pip --python /opt/assignment-workers/bin/python install \
        --require-hashes --requirement requirements.lock
RUN python -m pip install --require-hashes --requirement requirements-build.lock
# Nothing is downloaded from here on. celeryconfig.py becomes a part of the wheel.
COPY pyproject.toml README.md LICENSE celeryconfig.py ./
COPY docs/operators.md ./docs/
COPY src ./src
RUN python -m pip wheel --no-index --no-deps --no-build-isolation --wheel-dir dist . \
    && python -m pip --python /opt/assignment-workers/bin/python install \
        --no-index --no-deps dist/*.whl

FROM python:3.13-slim
ENV PATH=/opt/assignment-workers/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --system --uid 10001 --no-create-home --home-dir /nonexistent assignment-workers
COPY --from=build /opt/assignment-workers /opt/assignment-workers
WORKDIR /srv
USER 10001:10001
# In this form, without a shell, a signal to stop reaches the process.
ENTRYPOINT ["assignment-workers"]
CMD ["--help"]
