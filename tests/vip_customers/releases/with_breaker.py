"""The congratulation has a circuit breaker, with the settings' values."""

import celeryconfig
from examples.vip_customers import handlers
from examples.vip_customers.tasks import project
from messaging.options import Breaker, handler
from messaging.worker.app import make_app

handler(breaker=Breaker())(handlers.congratulate_vip_customer)
app = make_app(project, celeryconfig)
