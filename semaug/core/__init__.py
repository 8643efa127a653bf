"""What everything else stands on, on torch alone: Gaussian bounds, class moments, pixels, accuracies."""
