"""What is measured of a trained network or generator. Nothing below imports these modules."""
