"""`make demo`: another app sends real orders through real servers while the mail server is down."""
