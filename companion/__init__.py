"""What runs and draws the notebooks; it needs the checkout and is not part of the wheel."""
