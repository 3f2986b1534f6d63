"""The model of stock and orders; knows no database and no queue."""
