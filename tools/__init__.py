"""What measures the project; no part of the product."""
