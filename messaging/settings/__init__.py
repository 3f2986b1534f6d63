"""Settings from the environment, and the rules that they keep with each other."""

from messaging.settings.fields import MessagingSettings as MessagingSettings
