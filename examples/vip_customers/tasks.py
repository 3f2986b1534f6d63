"""The shop put together: `celery -A examples.vip_customers.tasks worker`."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import SettingsConfigDict

import celeryconfig
from examples.vip_customers.adapters import PostgresShop
from examples.vip_customers.handlers import bus
from messaging.project import Project
from messaging.settings import MessagingSettings
from messaging.worker.app import make_app


class Settings(MessagingSettings):
    """The shop's settings, from the environment or a `.env` file."""

    model_config = SettingsConfigDict(env_prefix="VIP_")
    database_url: str = Field("postgresql+psycopg2://allocation@127.0.0.1:5490/vip", repr=False)


project = Project("vip", bus, Settings, PostgresShop, migrations=Path(__file__).with_name("migrations"))
app = make_app(project, celeryconfig)
