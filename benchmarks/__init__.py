"""Benchmarks: every script checks its contenders against float64 first and times them side by side afterwards."""
