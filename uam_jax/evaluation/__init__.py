"""Measures quality and speed: metrics, Scenes-Bench, reconstruction, benchmarks, plots and the demo."""
