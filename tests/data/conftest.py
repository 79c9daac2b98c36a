"""Hypothesis draws the same examples each time, and a busy machine fails no test."""

from hypothesis import HealthCheck, settings

slow = [HealthCheck.too_slow]
settings.register_profile("same", deadline=None, derandomize=True, suppress_health_check=slow)
settings.load_profile("same")
