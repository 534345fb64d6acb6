"""What leakguard adds to a clean request, counted exactly."""
