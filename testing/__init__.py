"""What tests and benchmarks share: databases to copy and to empty, and a RabbitMQ."""
