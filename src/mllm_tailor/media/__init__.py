"""Open pictures, PDF pages, videos and recordings safely. No torch."""
