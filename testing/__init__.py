"""Helpers of tests and benchmarks: databases to copy and to empty, and a RabbitMQ."""
