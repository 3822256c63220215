"""Measures quality and speed: metrics, Scenes-Bench, reconstruction, speed, plots and the demo."""
