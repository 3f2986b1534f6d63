# One image for every role: migration, workers, beat, Flower and the mail catcher differ only in their command.
ARG PYTHON_VERSION=3.12
FROM python:${PYTHON_VERSION}-slim

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app

# Requirements first: a change of the code does not reinstall them.
COPY requirements-server.txt .
RUN pip install -r requirements-server.txt

COPY reliable_celery reliable_celery
COPY messaging messaging
COPY allocation allocation
COPY tasks tasks
COPY local local
COPY celeryconfig.py flowerconfig.py ./

# The code belongs to root, and is readable whatever the checkout's umask was: processes may write only to the data
# folder. No VOLUME: each container would leave an anonymous one behind.
RUN chmod -R a+rX /app \
    && python -m compileall -q /app \
    && useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin app \
    && mkdir /data && chown app /data
USER app

CMD ["celery", "-A", "tasks", "worker", "--loglevel=INFO"]
