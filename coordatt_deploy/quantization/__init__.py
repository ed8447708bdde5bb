"""int8 and smaller: recipes, calibration data, ranges, and what prepares weights for rounding."""
