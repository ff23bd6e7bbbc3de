"""Thresholds from calibration data, and their certificates."""
