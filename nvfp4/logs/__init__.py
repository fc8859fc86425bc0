"""Turn calibration logs into statistics, plots and lists of sensitive layers."""
