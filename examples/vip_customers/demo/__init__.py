"""`make demo-vip`: real purchases through real workers, checked against the file's own count."""

from local.service import Service

VIP = Service("vip", app="examples.vip_customers.tasks", tool="examples.vip_customers")
