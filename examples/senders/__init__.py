"""Other apps that enqueue commands; each file runs by itself."""
