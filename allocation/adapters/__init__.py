"""PostgreSQL and mail, behind the ports of the service layer."""
