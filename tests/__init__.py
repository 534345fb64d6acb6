"""The tests of leakguard."""
