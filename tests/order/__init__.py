"""Order per key, kept through failures, kills and re-runs."""
