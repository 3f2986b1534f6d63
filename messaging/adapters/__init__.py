"""What projects may use behind their own ports: mail."""
