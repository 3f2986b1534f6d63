# One image for every role: migration, workers, beat, Flower and the mail catcher differ in their command only.
FROM python:3.12-slim

ENV PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1

WORKDIR /app

# Requirements first: a change of the code does not install them again.
COPY requirements.txt .
RUN pip install -r requirements.txt

COPY messaging messaging
COPY allocation allocation
COPY tasks tasks
COPY local local
COPY celeryconfig.py flowerconfig.p[y] ./

# The code stays root's: what runs may write to its data folder and nowhere else.
RUN useradd --system --uid 10001 --no-create-home --shell /usr/sbin/nologin app \
    && mkdir /data && chown app /data
USER app
VOLUME /data

CMD ["celery", "-A", "tasks", "worker", "--loglevel=INFO"]
