"""What a fitted program says: log p(x), posterior, predictions, diagnosis, comparison, calibration."""
